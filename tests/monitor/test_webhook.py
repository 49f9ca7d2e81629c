import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest
from pydantic import SecretStr

from headrace.settings import ConfigError
from monitor.settings import MonitorSettings
from monitor.webhook import Webhook, masked
from schemas.alert import EXAMPLE, Alert

TOKEN = "s3cret-t0ken"
PATIENCE_S = 20.0


class Receiver:
    """A webhook on a free port: `answer(number)` gives the status of the request of that number, or None to hang until released."""

    def __init__(self, answer: Callable[[int], int | None]) -> None:
        self.bodies: list[bytes] = []
        self.authorizations: list[str | None] = []
        self.arrived = threading.Semaphore(0)
        self.released = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.authorizations.append(self.headers["Authorization"])
                status = answer(len(receiver.bodies) - 1)
                receiver.arrived.release()
                if status is None:
                    receiver.released.wait(PATIENCE_S)
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hooks/{TOKEN}?key={TOKEN}"

    def alerts(self) -> list[Alert]:
        return [msgspec.json.decode(body, type=Alert) for body in self.bodies]

    def stop(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def receiving() -> Iterator[Callable[[Callable[[int], int | None]], Receiver]]:
    receivers: list[Receiver] = []

    def start(answer: Callable[[int], int | None]) -> Receiver:
        receivers.append(Receiver(answer))
        return receivers[-1]

    yield start
    for receiver in receivers:
        receiver.stop()


Start = Callable[[Callable[[int], int | None]], Receiver]


def settings(url: str | None, **others: float) -> MonitorSettings:
    secret = SecretStr(url) if url else None
    return MonitorSettings(**{"webhook_url": secret, "webhook_backoff_s": 0.01, "webhook_timeout_s": 5.0, **others})  # type: ignore[arg-type]


def numbered(number: int) -> Alert:
    return msgspec.structs.replace(EXAMPLE, ts_ms=number)


def test_alerts_arrive_as_json_in_order(receiving: Start) -> None:
    receiver = receiving(lambda _: 204)
    webhook = Webhook(settings(receiver.url))
    for number in range(5):
        webhook.post(numbered(number))
    webhook.close(PATIENCE_S)
    assert receiver.alerts() == [numbered(number) for number in range(5)]
    assert (webhook.sent, webhook.failed, webhook.dropped) == (5, 0, 0)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_receiver_that_fails_twice_and_then_accepts_gets_the_alert_once_accepted(receiving: Start, status: int) -> None:
    receiver = receiving(lambda number: status if number < 2 else 200)
    webhook = Webhook(settings(receiver.url))
    webhook.post(EXAMPLE)
    webhook.close(PATIENCE_S)
    assert receiver.alerts() == [EXAMPLE] * 3
    assert (webhook.sent, webhook.failed, webhook.dropped) == (1, 2, 0)


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_an_alert_refused_for_good_is_not_tried_again(receiving: Start, status: int) -> None:
    receiver = receiving(lambda number: status if number == 0 else 200)
    webhook = Webhook(settings(receiver.url))
    webhook.post(numbered(0))
    webhook.post(numbered(1))
    webhook.close(PATIENCE_S)
    assert receiver.alerts() == [numbered(0), numbered(1)]
    assert (webhook.sent, webhook.failed, webhook.dropped) == (1, 1, 1)


def test_after_its_last_attempt_an_alert_is_dropped_and_counted(receiving: Start) -> None:
    receiver = receiving(lambda _: 500)
    webhook = Webhook(settings(receiver.url, webhook_attempts=3))
    webhook.post(EXAMPLE)
    webhook.close(PATIENCE_S)
    assert (len(receiver.bodies), webhook.sent, webhook.failed, webhook.dropped) == (3, 0, 3, 1)


def test_a_receiver_that_hangs_holds_nobody_up_and_is_left_after_the_timeout(receiving: Start) -> None:
    receiver = receiving(lambda number: None if number == 0 else 200)
    webhook = Webhook(settings(receiver.url, webhook_timeout_s=0.3))
    started_s = time.monotonic()
    webhook.post(EXAMPLE)
    assert receiver.arrived.acquire(timeout=PATIENCE_S)
    assert time.monotonic() - started_s < 0.3  # posting did not wait for the answer that never comes
    webhook.close(PATIENCE_S)
    assert receiver.alerts() == [EXAMPLE, EXAMPLE]
    assert (webhook.sent, webhook.failed, webhook.dropped) == (1, 1, 0)


def test_a_full_queue_drops_the_newest_and_closing_ends_in_time(receiving: Start) -> None:
    receiver = receiving(lambda _: None)
    webhook = Webhook(settings(receiver.url, webhook_queue=2, webhook_timeout_s=PATIENCE_S, webhook_attempts=1))
    webhook.post(numbered(0))
    assert receiver.arrived.acquire(timeout=PATIENCE_S)
    for number in range(1, 5):
        webhook.post(numbered(number))  # two wait, two find the queue full
    assert (webhook.waiting, webhook.dropped) == (2, 2)
    started_s = time.monotonic()
    webhook.close(timeout_s=0.2)
    assert time.monotonic() - started_s < 5
    assert (webhook.waiting, webhook.dropped) == (0, 4)


def test_closing_cuts_the_wait_before_the_next_attempt_short(receiving: Start) -> None:
    receiver = receiving(lambda _: 500)
    webhook = Webhook(settings(receiver.url, webhook_backoff_s=60.0))
    webhook.post(EXAMPLE)
    assert receiver.arrived.acquire(timeout=PATIENCE_S)
    webhook.close(timeout_s=0.2)
    assert webhook._thread is not None
    webhook._thread.join(PATIENCE_S)
    assert (webhook.sent, webhook.failed, webhook.dropped) == (0, 1, 1)


def test_nobody_listening_is_counted_and_the_secret_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        port = taken.getsockname()[1]
        webhook = Webhook(settings(f"http://user:{TOKEN}@127.0.0.1:{port}/{TOKEN}?token={TOKEN}", webhook_attempts=2))
        with caplog.at_level(logging.DEBUG):
            webhook.post(EXAMPLE)
            webhook.close(PATIENCE_S)
    assert (webhook.failed, webhook.dropped) == (2, 1)
    assert f"http://127.0.0.1:{port}/***: attempt 1 of rejected_share firing failed: ConnectionRefusedError" in caplog.text
    assert TOKEN not in caplog.text


def test_user_and_password_of_the_address_become_its_header(receiving: Start) -> None:
    receiver = receiving(lambda _: 200)
    webhook = Webhook(settings(receiver.url.replace("http://", "http://me:p%40ss@")))
    webhook.post(EXAMPLE)
    webhook.close(PATIENCE_S)
    assert receiver.authorizations == ["Basic bWU6cEBzcw=="]
    assert webhook.sent == 1


@pytest.mark.parametrize("url", [None, SecretStr("")])
def test_without_an_address_nothing_is_posted_and_no_thread_runs(url: SecretStr | None) -> None:
    webhook = Webhook(MonitorSettings(webhook_url=url))
    webhook.post(EXAMPLE)
    webhook.close()
    assert (webhook.sent, webhook.dropped, webhook._thread) == (0, 0, None)


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "hooks.example.com/x", "http:///x", "http://host:port/x", "http://host/a b", "http://[half/x"]
)
def test_an_address_that_cannot_be_used_is_refused_at_the_start_without_being_shown(url: str) -> None:
    with pytest.raises(ConfigError, match=r"setting monitor\.webhook_url: expected http") as refused:
        Webhook(settings(f"{url}{TOKEN}"))
    assert TOKEN not in str(refused.value) and "host" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hooks.example.com/T0/B0/x", "https://hooks.example.com/***"),
        ("http://me:pw@host:8080/?t=x#y", "http://host:8080/***"),
    ],
)
def test_only_scheme_host_and_port_of_an_address_are_shown(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_settings_do_not_show_the_address() -> None:
    assert TOKEN not in repr(settings(f"https://host/{TOKEN}"))

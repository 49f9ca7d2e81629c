"""The API and the controller as processes of their own, on an embedded broker: promotion to response, under load, and a clean stop."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka.partitioner import murmur2
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from serving_models import ACTION, FEATURES, WriteVersion

from headrace import broker
from headrace.policy_settings import PolicySettings
from headrace.settings import StreamSettings
from serving.versions import ModelStore

WAIT_S = 60.0
LOAD = "from headrace.policy_settings import PolicySettings as P; from headrace.settings import StreamSettings as S, load; "
SERVE = LOAD + "from serving import server, settings; server.run(load(settings.ServingSettings), load(P), load(S))"
CONTROL = LOAD + "from serving import controller_server as c, controller_settings as s; c.run(load(s.ControllerSettings), load(P), load(S))"


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker whose topics no other test writes to."""
    with broker.running("embedded", tmp_path_factory.mktemp("broker")) as running:
        yield running.address


Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run(policy: PolicySettings) -> Iterator[Run]:
    processes: list[subprocess.Popen[str]] = []

    def run(code: str, **environment: str) -> subprocess.Popen[str]:
        variables = {
            "HEADRACE_POLICY_ACTION": ACTION.model_dump_json(),
            "HEADRACE_POLICY_FEATURES": FEATURES.model_dump_json(),
            "HEADRACE_POLICY_MODEL_DIR": str(policy.model_dir),
            "HEADRACE_SERVING_EXPLORE_SIGMA": "0",
            "HEADRACE_SERVING_BASELINE_SHARE": "0",
            "HEADRACE_CONTROLLER_POLL_INTERVAL_S": "0.1",
            **environment,
        }
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **variables},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def call(port: int, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode() if body else None)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())
    except urllib.error.URLError:
        return 0, {}


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def exposures(address: str, partitions: int) -> list[tuple[int, dict[str, Any]]]:
    consumer = Consumer({"bootstrap.servers": address, "group.id": "test", "enable.auto.commit": False})
    consumer.assign([TopicPartition("exposures", partition, OFFSET_BEGINNING) for partition in range(partitions)])
    found = []
    while (message := consumer.poll(3.0)) is not None:
        assert message.error() is None
        found.append((message.partition(), json.loads(message.value())))
    consumer.close()
    return found


def rank(user: str) -> dict[str, Any]:
    candidates = [{"item_id": f"i-{n}", "scores": {"click": 0.1 + 0.01 * n, "pay": 0.5 - 0.02 * n}} for n in range(20)]
    return {"user_id": user, "state": {"hour": 3.0}, "candidates": candidates, "page_size": 5}


@pytest.mark.slow
def test_a_promoted_version_reaches_the_responses_under_load_and_every_page_is_logged(
    own_broker: str, run: Run, write_version: WriteVersion
) -> None:
    stream = StreamSettings(broker=own_broker)
    broker.create_topics(stream)
    port = broker.free_port()
    ports = {"HEADRACE_SERVING_PORT": str(port), "HEADRACE_CONTROLLER_METRICS_PORT": "0", "HEADRACE_STREAM_BROKER": own_broker}
    server = run(SERVE, **ports)
    until(lambda: call(port, "/readyz")[0] == 200)
    assert call(port, "/v1/act", {"user_id": "u", "state": {}})[1]["action"] == ACTION.baseline
    run(CONTROL, **ports)
    answers: list[tuple[int, dict[str, Any]]] = []
    stop = threading.Event()

    def hammer(thread: int) -> None:
        while not stop.is_set():
            answers.append(call(port, "/v1/rank", rank(f"u-{thread}-{len(answers) % 50}")))

    threads = [threading.Thread(target=hammer, args=(thread,)) for thread in range(3)]
    for thread in threads:
        thread.start()
    for number in (1, 2, 3):
        write_version(number, [0.5 * number, 0.3 * number])
        until(lambda number=number: call(port, "/readyz")[1].get("model_version") == f"fusion-{number:06d}")
        seen = len(answers)
        until(lambda seen=seen: len(answers) > seen + 10)
    stop.set()
    for thread in threads:
        thread.join()
    server.send_signal(signal.SIGTERM)
    output, _ = server.communicate(timeout=WAIT_S)
    assert (server.returncode, "stopped with" in output) == (0, False), output

    assert {status for status, _ in answers} == {200}
    expected = {"": [1.0, 1.0], **{f"fusion-{number:06d}": [0.5 * number, 0.3 * number] for number in (1, 2, 3)}}
    for _, page in answers:
        assert page["action"] == pytest.approx(expected[page["model_version"]], abs=1e-6)
    assert {page["model_version"] for _, page in answers} == set(expected)
    logged = exposures(own_broker, stream.partitions)
    assert sorted(exposure["request_id"] for _, exposure in logged) == sorted(page["request_id"] for _, page in answers)
    for partition, exposure in logged:
        assert partition == (murmur2(exposure["user_id"].encode()) & 0x7FFFFFFF) % stream.partitions


def test_without_a_broker_the_api_starts_answers_and_stops(run: Run, write_version: WriteVersion, policy: PolicySettings) -> None:
    write_version(1)
    ModelStore(policy.model_dir, policy.policy, policy.spec_hash).promote("fusion-000001", [], now_ms=1)
    port = broker.free_port()
    away = f"127.0.0.1:{broker.free_port()}"
    server = run(SERVE, HEADRACE_SERVING_PORT=str(port), HEADRACE_STREAM_BROKER=away, HEADRACE_SERVING_SHUTDOWN_TIMEOUT_S="1")
    until(lambda: call(port, "/healthz")[0] == 200)
    until(lambda: call(port, "/readyz")[1].get("detail", "").startswith(f"the broker {away} does not answer"))
    assert call(port, "/readyz")[0] == 503
    status, page = call(port, "/v1/rank", rank("u-1"))
    assert (status, page["model_version"], page["logged"]) == (200, "fusion-000001", True)
    server.send_signal(signal.SIGINT)
    output, _ = server.communicate(timeout=WAIT_S)
    assert "stopped with 1 events that the broker did not take" in output
    assert server.returncode == 0


def test_a_taken_port_is_one_line_that_names_the_process(run: Run) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        output, _ = run(SERVE, HEADRACE_SERVING_PORT=str(port)).communicate(timeout=WAIT_S)
    assert output.splitlines()[-1].endswith(f"ConfigError: port {port} is taken: set serving.port or stop PID {os.getpid()} ({comm()})")


def comm() -> str:
    return Path("/proc/self/comm").read_text().strip()

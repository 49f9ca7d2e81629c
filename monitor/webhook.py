"""Posts alerts to a webhook from a thread of its own: a slow or dead receiver never holds the stream up."""

import base64
import logging
import queue
import threading
import urllib.error
import urllib.request
from urllib.parse import unquote, urlsplit

from headrace.settings import ConfigError
from monitor.settings import MonitorSettings
from schemas.alert import Alert
from schemas.codec import encode_json

log = logging.getLogger(__name__)

BACKOFF_MAX_S = 60.0
_RETRIED_STATUS = (408, 425, 429)
"""Client errors that another attempt may cure; every other 4xx will be refused again."""


def masked(url: str) -> str:
    """The address as it may be logged: without user, password, path and query, any of which may be a secret."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}/***"


class Webhook:
    """Posts one Alert after the other, in order, as JSON (schemas.alert.Alert). The receiver accepts with any 2xx status.

    An alert is tried `webhook_attempts` times, with waits that double; then it is dropped, counted and logged. A receiver that
    took an alert and lost the connection before its answer gets it again: alerts are told apart by (rule, state, ts_ms).
    """

    def __init__(self, settings: MonitorSettings) -> None:
        self.sent = 0
        self.failed = 0
        """Attempts that failed."""
        self.dropped = 0
        """Alerts given up: all attempts failed, the queue was full, or the process ended first."""
        self._settings = settings
        secret = settings.webhook_url
        self._url = (secret.get_secret_value() or None) if secret else None  # empty: an environment variable set to nothing
        self._queue: queue.Queue[Alert | None] = queue.Queue(settings.webhook_queue)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        if self._url is not None:
            self._address = _checked(self._url)

    @property
    def waiting(self) -> int:
        """Alerts that are queued and not yet being posted."""
        return self._queue.qsize()

    def post(self, alert: Alert) -> None:
        """Hand an alert over; returns at once. Without a webhook address there is nothing to do."""
        if self._url is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(alert)
        except queue.Full:
            self.dropped += 1
            log.error("webhook %s: %d alerts wait already; dropped %s %s", self._address, self.waiting, alert.rule, alert.state)

    def close(self, timeout_s: float = 5.0) -> None:
        """Let the thread finish what is queued, for at most `timeout_s`; what is left then is dropped."""
        if self._thread is None:
            return
        try:
            self._queue.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)
        except queue.Full:
            pass  # the thread hangs in front of a full queue: it is told to stop below
        self._closing.set()
        while not self._queue.empty():
            try:
                left = self._queue.get_nowait()
            except queue.Empty:
                break
            self.dropped += left is not None

    def _run(self) -> None:
        while not self._closing.is_set():
            alert = self._queue.get()
            if alert is None:
                return
            self._deliver(alert)

    def _deliver(self, alert: Alert) -> None:
        body = encode_json(alert)
        for attempt in range(1, self._settings.webhook_attempts + 1):
            problem, curable = self._attempt(body)
            if problem is None:
                self.sent += 1
                return
            self.failed += 1
            log.warning("webhook %s: attempt %d of %s %s failed: %s", self._address, attempt, alert.rule, alert.state, problem)
            wait_s = min(BACKOFF_MAX_S, self._settings.webhook_backoff_s * 2 ** (attempt - 1))
            if not curable or attempt == self._settings.webhook_attempts or self._closing.wait(wait_s):
                break
        self.dropped += 1
        log.error("webhook %s: gave up %s %s", self._address, alert.rule, alert.state)

    def _attempt(self, body: bytes) -> tuple[str | None, bool]:
        """What went wrong, if anything, and whether trying again may help. The texts of errors may hold the address: names only."""
        assert self._url is not None
        request = _request(self._url, body)
        try:
            with _OPENER.open(request, timeout=self._settings.webhook_timeout_s):
                return None, True
        except urllib.error.HTTPError as error:
            error.close()
            return f"HTTP {error.code}", error.code >= 500 or error.code in _RETRIED_STATUS
        except urllib.error.URLError as error:
            return type(error.reason).__name__, True
        except Exception as error:  # a receiver may answer anything, and http.client has an exception for each of it
            return type(error).__name__, True


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST becomes a GET without a body: better told as the HTTP error that it is."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _request(url: str, body: bytes) -> urllib.request.Request:
    """The POST of `body`. A user and password in the address go into its header, for urllib would take them for a host name."""
    parts = urlsplit(url)
    headers = {"Content-Type": "application/json", "User-Agent": "headrace-monitor"}
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
    return urllib.request.Request(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), body, headers)


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isascii() and url.isprintable() and " " not in url
        if usable:
            return masked(url)
    except ValueError:
        pass  # a port that is no number: the address is not repeated here, for it may hold a token
    raise ConfigError("setting monitor.webhook_url: expected http://HOST/... or https://HOST/...; the value is not shown, it may be secret")

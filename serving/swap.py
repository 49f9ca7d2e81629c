"""The served version, and how it is replaced without a request noticing.

Loading and warming up happen in a thread of their own (Meituan's response times rose for minutes when both shared the request
threads and graphs were initialised lazily); requests see one reference that changes at once, and hold it for as long as they
last. What cannot be loaded leaves the old version in place.
"""

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from headrace.policy_settings import PolicySettings
from schemas.codec import UNREADABLE
from schemas.policy import PolicyVersion
from serving.actor import Actor, ActorError, load_actor
from serving.embeddings import ServedEmbeddings
from serving.metrics import ServingMetrics

log = logging.getLogger(__name__)

decode_policy_version = msgspec.json.Decoder(PolicyVersion).decode


@dataclass(frozen=True)
class Served:
    """One version as requests see it; without an actor the baseline action is the mean."""

    actor: Actor | None = None
    announced_ms: int = -1

    @property
    def model_version(self) -> str:
        """Empty: no version."""
        return self.actor.model_version if self.actor else ""


def version_folder(version: PolicyVersion, policy: PolicySettings) -> Path:
    """Where the version's files are: its URI where that is a folder here, else the same version of our own model store.

    Raises ActorError for a URI that is neither.
    """
    url = urlsplit(version.uri)
    if url.scheme == "file" and Path(unquote(url.path)).is_dir():
        return Path(unquote(url.path))
    own = policy.model_dir / policy.policy / "candidates" / version.model_version
    if own.is_dir():
        return own
    raise ActorError("missing", f"{version.model_version}: neither {version.uri} nor {own} is a folder on this machine")


class ServedVersion:
    """Holds what is served and replaces it. `offer` may be called from any thread; only the newest offer is loaded."""

    def __init__(
        self, policy: PolicySettings, warm_up_requests: int, metrics: ServingMetrics, embeddings: ServedEmbeddings | None = None
    ) -> None:
        self._policy = policy
        self._embeddings = embeddings
        self._warm_up_requests = warm_up_requests
        self._metrics = metrics
        self._served = Served()
        self._offered: PolicyVersion | None = None
        self._busy = False
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._load_offers, name="model-load", daemon=True)
        metrics.serving("", policy.policy)

    @property
    def served(self) -> Served:
        """What to serve now. Read it once a request."""
        return self._served

    def start(self) -> None:
        """Start the load thread, with the model store's current version as the first offer."""
        if self._embeddings:
            self._embeddings.start()
        path = self._policy.model_dir / self._policy.policy / "current.json"
        try:
            self.offer(decode_policy_version(path.read_bytes()))
        except FileNotFoundError:
            log.info("no version promoted yet (%s): serving the baseline action", path)
        except (OSError, *UNREADABLE) as error:
            self._fail("malformed", f"{path}: {error}")
        self._thread.start()

    def stop(self) -> None:
        """Stop the load thread after the version that it is loading."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()
        if self._embeddings:
            self._embeddings.stop()

    def offer(self, version: PolicyVersion) -> None:
        """Serve this version as soon as it is loaded, unless a later announcement is served, or offered, already.

        One that could not be loaded is tried again whenever it is announced again: its files may have come meanwhile.
        """
        with self._changed:
            newest_ms = max(self._served.announced_ms, self._offered.announced_ms if self._offered else -1)
            if version.announced_ms > newest_ms:
                self._offered = version
                self._changed.notify_all()

    def trouble(self) -> str:
        """Why this process should not get traffic yet: its first version is still being loaded. Empty otherwise."""
        with self._changed:
            loading = self._offered is not None or self._busy
        return "the first version is being loaded" if loading and self._served.announced_ms < 0 else ""

    def settled(self, timeout_s: float) -> bool:
        """Wait until nothing is offered or being loaded; False if it takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._offered is None and not self._busy, timeout_s)

    def _load_offers(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._offered is not None or self._stopped)
                if self._stopped:
                    return
                version, self._offered, self._busy = self._offered, None, True
            assert version is not None
            try:
                self._swap(version)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _swap(self, version: PolicyVersion) -> None:
        started_s = time.perf_counter()
        look_up = self._embeddings.look_up if self._embeddings else None
        try:
            actor = (
                load_actor(version_folder(version, self._policy), self._policy, self._warm_up_requests, look_up)
                if version.model_version
                else None
            )
        except ActorError as error:
            self._fail(error.reason, str(error))
            return
        except Exception as error:  # whatever it is, the thread must live to load the next version
            log.exception("a fault of ours while loading %s", version.model_version)
            self._fail("fault", repr(error))
            return
        load_s = time.perf_counter() - started_s
        self._served = Served(actor, version.announced_ms)
        self._metrics.swapped(version.model_version, self._policy.policy, load_s)
        log.info("serving %s (%s), loaded and warmed up in %.0f ms", version.model_version or "the baseline", version.reason, 1000 * load_s)

    def _fail(self, reason: str, detail: str) -> None:
        self._metrics.swap_failures.labels(reason).inc()
        log.error("kept serving %s: %s", self._served.model_version or "the baseline", detail)

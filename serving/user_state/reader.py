"""What serving has of the user state: one read a request, of the store that the worker on this machine writes."""

import logging
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from aiokafka.partitioner import murmur2

from headrace.settings import ConfigError
from headrace.store import StoreFollower
from schemas.codec import UNREADABLE
from schemas.exposure import FeatureValue
from serving.user_state.features import StoredFeatures
from serving.user_state.history import decode_history
from serving.user_state.step import user_row

log = logging.getLogger(__name__)

State = dict[str, FeatureValue]
NOT_YET = "the user state is not open yet"


class ReadsUserState(Protocol):
    """What serving has of the user state, wherever that is kept."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def of(self, user_id: str, now_ms: int) -> State: ...

    def trouble(self) -> str: ...


def partition_of(user_id: str, partitions: int) -> int:
    """The partition of a user's events: that of Java's default partitioner, and of our producers'."""
    return int(murmur2(user_id.encode()) & 0x7FFFFFFF) % partitions


class UserStateReader:
    """Follows the stores of all partitions from a thread of its own. `count` gets the outcome of each read: hit, miss, unavailable."""

    def __init__(self, folder: Path, partitions: int, features: StoredFeatures, refresh_ms: int, count: Callable[[str], None]) -> None:
        self._folder = folder
        self._partitions = partitions
        self._features = features
        self._refresh_s = refresh_ms / 1000
        self._count = count
        self._followers: dict[int, StoreFollower] = {}
        self._troubles = dict.fromkeys(range(partitions), NOT_YET)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="user-state", daemon=True)

    def start(self) -> None:
        """Open what is there, and follow it."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def of(self, user_id: str, now_ms: int) -> State:
        """The stored features of a user; none of a user who is not known, or whose partition cannot be read."""
        follower = self._followers.get(partition_of(user_id, self._partitions))
        try:
            row = follower.find(user_row(user_id)) if follower else None
            features = {} if row is None else self._features.of(decode_history(row), now_ms)
        except (ConfigError, *UNREADABLE) as error:  # files that are gone, rows of another version's layout
            log.error("the state of user %r cannot be read: %s", user_id, error)
            follower = None
        if follower is None:
            self._count("unavailable")
            return {}
        self._count("miss" if row is None else "hit")
        return features

    def trouble(self) -> str:
        """Why some users' features cannot be read; empty where all can."""
        return next(iter(self._troubles.values()), "")

    def _follow(self) -> None:
        with tempfile.TemporaryDirectory(prefix="headrace-user-state-") as own:
            while not self._stopped.is_set():
                for partition in range(self._partitions):
                    self._refresh(partition, Path(own) / str(partition))
                self._stopped.wait(self._refresh_s)
            self._followers.clear()

    def _refresh(self, partition: int, own_folder: Path) -> None:
        try:
            follower = self._followers.get(partition)
            if follower is None or not follower.catch_up():
                self._followers[partition] = StoreFollower(self._folder / str(partition), own_folder)
            if self._troubles.pop(partition, ""):
                log.info("user state of partition %d: opened", partition)
        except ConfigError as error:
            self._followers.pop(partition, None)
            if self._troubles.get(partition) != str(error):
                log.warning("user state of partition %d cannot be read: %s", partition, error)
            self._troubles[partition] = str(error)

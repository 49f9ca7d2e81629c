"""What serving has of the user state where its worker keeps it in a server of the Redis protocol: one read a request, over the network."""

import logging
import time
from collections.abc import Callable
from typing import cast

from redis import RedisError

from headrace.redis_store import connect, rows_name
from schemas.codec import UNREADABLE
from schemas.exposure import FeatureValue
from serving.user_state.features import StoredFeatures
from serving.user_state.history import decode_history
from serving.user_state.reader import partition_of
from serving.user_state.step import user_row

log = logging.getLogger(__name__)

PAUSE_S = 1.0
"""After a read that failed no request waits for another one: its users are served without stored features."""


class RedisUserStateReader:
    """Asks the server for each user. `count` gets the outcome of each read: hit, miss, unavailable."""

    def __init__(
        self, address: str, name: str, partitions: int, features: StoredFeatures, timeout_ms: int, count: Callable[[str], None]
    ) -> None:
        self._address, self._name, self._partitions = address, name, partitions
        self._features = features
        self._count = count
        self._server = connect(address, timeout_ms / 1000)
        self._trouble = ""
        self._asks_from_s = 0.0

    def start(self) -> None:
        """Find out whether the server answers."""
        try:
            self._server.ping()
            self._trouble = ""
        except RedisError as error:
            self._failed(error)

    def stop(self) -> None:
        """Release the connection."""
        self._server.close()

    def of(self, user_id: str, now_ms: int) -> dict[str, FeatureValue]:
        """The stored features of a user; none of a user who is not known, or where the server does not answer in time."""
        if time.monotonic() < self._asks_from_s:
            self._count("unavailable")
            return {}
        try:
            row = cast(bytes | None, self._server.hget(rows_name(self._name, partition_of(user_id, self._partitions)), user_row(user_id)))
            features = {} if row is None else self._features.of(decode_history(row), now_ms)
        except RedisError as error:
            self._failed(error)
        except UNREADABLE as error:  # rows of another version's layout
            log.error("the state of user %r cannot be read: %s", user_id, error)
        else:
            self._trouble = ""
            self._count("miss" if row is None else "hit")
            return features
        self._count("unavailable")
        return {}

    def trouble(self) -> str:
        """Why users' features cannot be read; empty where they can. Asks again where the last read failed, as no request may come."""
        if self._trouble and time.monotonic() >= self._asks_from_s:
            self.start()
        return self._trouble

    def _failed(self, error: RedisError) -> None:
        if not self._trouble:
            log.warning("the user state in redis://%s cannot be read: %s", self._address, error)
        self._trouble = f"the user state in redis://{self._address} cannot be read: {error}"
        self._asks_from_s = time.monotonic() + PAUSE_S

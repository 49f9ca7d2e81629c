"""A partition's durable state in a server of the Redis protocol: what `store.py` has on a disk, for readers on other machines.

    {name}/{partition}/rows    hash: the rows by key
    {name}/{partition}/keys    sorted set: their keys, all of one score, so that they are sorted as bytes
    {name}/{partition}/meta    hash: offsets, counts, topic ids and layout, and the owner: who opened it last

A write is one transaction (MULTI ... EXEC) that holds the change and the offsets that it covers. It watches the owner: a worker that
lost the partition to another one changes nothing any more.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast
from uuid import uuid4

from redis import Redis, RedisError, WatchError
from redis.backoff import NoBackoff
from redis.retry import Retry

from headrace.durable_rows import DurableRows
from headrace.settings import ConfigError
from headrace.step import Count

TIMEOUT_S = 5.0
ROWS_AT_ONCE = 1_000
OWNER, COVERED = b"owner", b"covered"


def connect(address: str, timeout_s: float) -> Redis:
    """A client of the server at HOST:PORT. It connects when it is first used, and tries nothing twice: its own way waits for seconds."""
    host, _, port = address.rpartition(":")
    once = Retry(NoBackoff(), 0)
    return Redis(host=host, port=int(port), socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=once)


def rows_name(name: str, partition: int | str) -> str:
    """Where the rows of a partition are."""
    return f"{name}/{partition}/rows"


class RedisStore(DurableRows):
    """The rows of one partition of one stage, with the input offsets and the counts that belong to them.

    Where the server loses its last writes, the offsets that go with them are lost, too, and whoever opens it sees that they are older
    than those committed to Kafka.
    """

    def __init__(self, address: str, name: str, folder: Path) -> None:
        """Open or create it, as its only owner. `folder` is where it would be on a disk: its last part is the partition."""
        self.folder = PurePosixPath(f"redis:/{address}/{name}/{folder.name}")
        self._server = connect(address, TIMEOUT_S)
        self._rows, self._keys, self._meta = (f"{name}/{folder.name}/{part}" for part in ("rows", "keys", "meta"))
        self._owner = uuid4().hex.encode()
        try:
            self._server.hset(self._meta, OWNER, self._owner)
            stored = cast(bytes | None, self._server.hget(self._meta, COVERED))
        except RedisError as error:
            raise self._explained(error) from error
        self._take_over(stored)

    def rows(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The rows whose keys begin with `prefix`, sorted by key."""
        after = b"[" + prefix
        while keys := cast(list[bytes], self._asked("zrange", self._keys, after, b"+", bylex=True, offset=0, num=ROWS_AT_ONCE)):
            for key, value in zip(keys, self.find(keys), strict=True):
                if not key.startswith(prefix):
                    return
                if value is not None:
                    yield key, value
            after = b"(" + keys[-1]

    def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of rows; None where there is no such row."""
        return cast(list[bytes | None], self._asked("hmget", self._rows, list(keys))) if keys else []

    def write(self, changes: Sequence[tuple[bytes, bytes | None]], offsets: dict[str, int], counts: Counter[Count]) -> None:
        """Apply `changes` (None deletes), move `offsets` on and add `counts`, all or nothing. Raises ConfigError."""
        covered = self._moved_on(offsets, counts)
        last = dict(changes)  # of several changes of a row
        put = {key: value for key, value in last.items() if value is not None}
        gone = [key for key, value in last.items() if value is None]
        try:
            with self._server.pipeline() as both:
                self._require_owner(both)
                if put:
                    both.hset(self._rows, mapping=put)  # type: ignore[arg-type]
                    both.zadd(self._keys, dict.fromkeys(put, 0))
                if gone:
                    both.hdel(self._rows, *gone)
                    both.zrem(self._keys, *gone)
                both.hset(self._meta, COVERED, covered)
                both.execute()
        except RedisError as error:
            raise self._explained(error) from error

    def wipe(self) -> None:
        """Forget everything: the state is rebuilt from Kafka."""
        self._take_over(None)
        try:
            with self._server.pipeline() as both:
                self._require_owner(both)
                both.delete(self._rows, self._keys)
                both.hdel(self._meta, COVERED)
                both.execute()
        except RedisError as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Release the connection."""
        self._server.close()

    def _require_owner(self, both: Any) -> None:
        """Begin a transaction that comes to nothing where another worker has opened the partition, before or meanwhile."""
        both.watch(self._meta)
        if both.hget(self._meta, OWNER) != self._owner:
            raise WatchError
        both.multi()

    def _asked(self, command: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self._server, command)(*arguments, **options)
        except RedisError as error:
            raise self._explained(error) from error

    def _explained(self, error: RedisError) -> ConfigError:
        """The one line that says what to do."""
        if isinstance(error, WatchError):
            return ConfigError(f"state in {self.folder} was opened by another worker: give workers of one group different partitions")
        return ConfigError(f"cannot use state in {self.folder}: {error}; start the server there, or set another user_state.redis")

"""A partition's durable state: RocksDB, one atomic write a delivered batch that holds the change *and* the offsets that it covers."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from rocksdict import AccessType, BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteBatch, WriteBufferManager

from headrace.durable_rows import DurableRows
from headrace.settings import ConfigError
from headrace.step import Count

WRITE_BUFFER_BYTES = 16 << 20
"""A partition's writes are kept in memory up to here, and as many again while they go to disk."""
_ALL_WRITE_BUFFERS = WriteBufferManager(128 << 20, False)
"""All partitions of a process together: a share for each where there are more than eight, or they would hold 32 MiB each."""
_BLOCK_CACHE = Cache(8 << 20)
"""Of all partitions together. What a step reads it reads once: RocksDB's own 32 MiB for each partition would only be filled."""
MIN_BLOB_BYTES = 1 << 10
"""Larger values are written to files of their own kind, once: compaction moves keys, and drops a file when all of it is deleted. A value
that lives longer than those that were written with it keeps a file of 16 MiB: a step that has such values writes them anew."""
_META = b"\x00meta"
"""Sorts before every row of a step: their keys begin with a letter."""


class PartitionStore(DurableRows):
    """The rows of one partition of one stage, with the input offsets and the counts that belong to them.

    It survives kill -9 exactly. Where the machine dies, the last writes may be missing, all of a write or none: the offsets in it
    are then older than those committed to Kafka, and whoever opens it sees that by comparing them.
    """

    def __init__(self, folder: Path, read_only: bool = False, is_followed: bool = False) -> None:
        """Open or create it; `read_only` looks at it as it is now, beside a worker that writes or without one.

        `is_followed`: a StoreFollower may read it.
        """
        self.folder: Path = folder
        self._is_followed = is_followed
        self._db = _open(folder, AccessType.read_only(False) if read_only else AccessType.read_write(), is_followed)
        self._take_over(cast(bytes | None, self._db.get(_META)))

    def rows(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The rows whose keys begin with `prefix`, sorted by key."""
        for key, value in self._db.items(from_key=prefix):
            assert isinstance(key, bytes), key  # raw mode
            if not key.startswith(prefix):
                return
            if key != _META:
                yield key, value

    def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of rows; None where there is no such row."""
        return cast(list[bytes | None], self._db.get(list(keys))) if keys else []

    def write(self, changes: Sequence[tuple[bytes, bytes | None]], offsets: dict[str, int], counts: Counter[Count]) -> None:
        """Apply `changes` (None deletes), move `offsets` on and add `counts`, all or nothing."""
        batch = WriteBatch(raw_mode=True)
        for key, value in changes:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        batch.put(_META, self._moved_on(offsets, counts))
        try:
            self._db.write(batch)
        except Exception as error:
            raise _explained(self.folder, error) from error

    def wipe(self) -> None:
        """Forget everything: the state is rebuilt from Kafka."""
        self.close()
        aside = self.folder.with_name(f".{self.folder.name}.wiped")  # others that read it by its name may put a file there meanwhile
        shutil.rmtree(aside, ignore_errors=True)
        self.folder.rename(aside)
        shutil.rmtree(aside)
        self.__init__(self.folder, is_followed=self._is_followed)  # type: ignore[misc]

    def close(self) -> None:
        """Release the folder for another worker."""
        self._db.close()


class StoreFollower:
    """Reads a store that another process on this machine writes, as it was at the last `catch_up`: a RocksDB secondary instance.

    It must be made anew where the writer's store is another one (RocksDB goes on showing the old one without a word), and where the
    writer's log is: what a secondary has read of the old log hides what has become of it in the files, until something new is written.
    """

    def __init__(self, folder: Path, own_folder: Path) -> None:
        """`own_folder` is for the logs that RocksDB writes. Raises ConfigError where there is no such store, or not yet."""
        self._folder = folder
        self._writes_to = self._writer()
        self._db = _open(folder, AccessType.secondary(str(own_folder)), is_followed=True)

    def catch_up(self) -> bool:
        """Take in what was written meanwhile. False where another follower must be made. Raises ConfigError where there is no store."""
        if self._writer() != self._writes_to:
            return False
        try:
            self._db.try_catch_up_with_primary()
        except Exception as error:
            raise _explained(self._folder, error) from error
        return True

    def find(self, key: bytes) -> bytes | None:
        """The value of a row; None where there is no such row. Raises ConfigError where the files cannot be read."""
        try:
            return cast(bytes | None, self._db.get(key))
        except Exception as error:
            raise _explained(self._folder, error) from error

    def _writer(self) -> tuple[bytes, str]:
        """What RocksDB calls the store, and the log that is written."""
        try:
            identity = (self._folder / "IDENTITY").read_bytes()
            logs = [path.name for path in self._folder.iterdir() if path.suffix == ".log"]
        except OSError as error:
            raise ConfigError(f"no state in {self._folder}: {error.strerror}") from error
        return identity, max(logs, default="")


def _open(folder: Path, access: AccessType, is_followed: bool) -> Rdict:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Rdict(str(folder), _options(is_followed), access_type=access)
    except Exception as error:
        raise _explained(folder, error) from error


def _options(is_followed: bool) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_write_buffer_manager(_ALL_WRITE_BUFFERS)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_enable_blob_files(True)
    options.set_min_blob_size(MIN_BLOB_BYTES)
    options.set_blob_compression_type(DBCompressionType.lz4())
    tables = BlockBasedOptions()
    tables.set_block_cache(_BLOCK_CACHE)
    options.set_block_based_table_factory(tables)
    options.set_keep_log_file_num(2)
    if is_followed:
        options.set_enable_blob_files(False)  # a secondary instance that reads a value from one ends its process
    return options


def _explained(folder: Path, error: Exception) -> ConfigError:
    """The one line that says what to do."""
    text = str(error)
    if isinstance(error, PermissionError) or "Permission denied" in text:
        return ConfigError(f"no permission to write state in {folder}: set stream.state_dir to a folder of your own")
    if "No space left" in text:
        return ConfigError(f"disk full: no space for state in {folder}: free some, or set stream.state_dir to another disk")
    if "lock" in text.lower() and "LOCK" in text:
        return ConfigError(
            f"state in {folder} is in use by another worker: give each worker its own stream.state_dir, or stop the other one"
        )
    return ConfigError(f"cannot use state in {folder}: {text}")

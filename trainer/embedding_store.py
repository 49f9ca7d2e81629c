"""The cold rows of a dynamic embedding table, and its copy in a checkpoint: RocksDB.

The store that a trainer works on is scratch: a trainer that starts makes it anew from the copy in its checkpoint. So nothing is logged
ahead or synced while rows come and go, and what was written after the checkpoint is gone with the crash that lost the rest of that time.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from rocksdict import BlockBasedOptions, DataBlockIndexType, DBCompressionType, Options, Rdict, WriteBatch, WriteOptions
from rocksdict import Checkpoint as Snapshot

from headrace.id_index import Keys
from headrace.settings import ConfigError
from trainer.embedding_table import Records

WRITE_BUFFER_BYTES = 32 << 20
BLOCK_BYTES = 1 << 10
"""Some 12 rows: all that is read, and checked, for one."""
BITS_A_KEY = 10
"""Of the Bloom filters: they keep a row that lies in one file from being looked for in the others."""
FILTER_SHARE = 0.05
"""Of the write buffer, for its own Bloom filter: without it, a quarter of a read is the search among the newest rows, in vain."""
FILES_A_COMPACTION, LEVEL_BYTES = 8, 512 << 20
"""Twice the files at a time and twice the size of a level that RocksDB has by default: a row is written again less often."""
SCAN_ROWS = WRITE_ROWS = 1 << 16
"""At a time: a million rows as Python's bytes take 150 MB."""

Known = tuple[Keys, npt.NDArray[np.uint32], npt.NDArray[np.uint32]]
"""Ids, when each was seen, and how often it came: 0 for those that have rows."""


class EmbeddingStore:
    """Records by id. A record of two words is that of an id that waits."""

    def __init__(self, folder: Path, copy: Path | None = None) -> None:
        """Open an empty store, or one with the rows of a checkpoint's copy. Raises ConfigError where the disk refuses."""
        self.folder = folder
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for file in sorted(copy.iterdir()) if copy else []:
                place = folder / file.name
                if file.suffix == ".sst":
                    os.link(file, place)  # never changed once written
                else:
                    shutil.copyfile(file, place)
            self._db = Rdict(str(folder), _options())
        except Exception as error:
            raise ConfigError(f"cannot use embeddings in {folder}: {error}; free space, or set another stream.state_dir") from error
        unlogged = WriteOptions()
        unlogged.disable_wal = True  # type: ignore[method-assign, assignment]  # a property, whatever its stub says
        self._unlogged = unlogged

    def read(self, keys: Keys) -> Records:
        """The records of rows that are there."""
        found = cast(list[bytes], self._db.get(_names(keys)))  # raw mode
        return np.frombuffer(b"".join(found), np.uint32).reshape(len(keys), -1)

    def write(self, keys: Keys, records: Records) -> None:
        """Add or replace records."""
        order = np.argsort(keys)  # RocksDB's memory is a sorted list: in order, a row costs a third
        for start in range(0, len(keys), WRITE_ROWS):
            part = order[start : start + WRITE_ROWS]
            batch = WriteBatch(raw_mode=True)
            for name, record in zip(_names(keys[part]), _rows(records[part]), strict=True):
                batch.put(name, record)
            self._apply(batch)

    def delete(self, keys: Keys) -> None:
        """Forget records, where they are there."""
        batch = WriteBatch(raw_mode=True)
        for name in _names(keys):
            batch.delete(name)
        self._apply(batch)

    def scan(self) -> Iterator[Known]:
        """All ids, in parts."""
        keys, heads = bytearray(), bytearray()
        for key, record in self._db.items():
            keys += cast(bytes, key)
            heads += record[:8] if len(record) == 8 else record[:4] + b"\0\0\0\0"
            if len(keys) == 8 * SCAN_ROWS:
                yield _known(keys, heads)
                keys, heads = bytearray(), bytearray()
        if keys:
            yield _known(keys, heads)

    def snapshot(self, folder: Path) -> None:
        """Copy the store as it is now into a folder that is not there: files that do not change are linked."""
        try:
            Snapshot(self._db).create_checkpoint(str(folder))
        except Exception as error:
            raise ConfigError(f"cannot write {folder}: {error}; free space there, or set another stream.state_dir") from error

    def close(self) -> None:
        """Release the folder."""
        self._db.close()

    def _apply(self, batch: WriteBatch) -> None:
        try:
            self._db.write(batch, self._unlogged)
        except Exception as error:
            raise ConfigError(f"cannot write embeddings in {self.folder}: {error}; free space, or set another stream.state_dir") from error


def _names(keys: Keys) -> list[Any]:
    """As bytes that sort as the numbers do."""
    return _rows(keys.astype(">u8")[:, None])


def _rows(matrix: npt.NDArray[Any]) -> list[Any]:
    """Each row as bytes: in C, for a slice each costs twice the time."""
    rows: list[Any] = np.ascontiguousarray(matrix).view(f"V{matrix.itemsize * matrix.shape[1]}").ravel().tolist()
    return rows


def _known(keys: bytearray, heads: bytearray) -> Known:
    seen, times = np.frombuffer(bytes(heads), np.uint32).reshape(-1, 2).T
    return np.frombuffer(bytes(keys), ">u8").astype(np.uint64), seen, times


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_compression_type(DBCompressionType.none())  # floats do not shrink
    options.set_memtable_prefix_bloom_ratio(FILTER_SHARE)
    options.set_memtable_whole_key_filtering(True)
    options.set_level_zero_file_num_compaction_trigger(FILES_A_COMPACTION)
    options.set_max_bytes_for_level_base(LEVEL_BYTES)
    options.set_optimize_filters_for_hits(True)  # only rows that are there are looked for
    options.set_keep_log_file_num(2)
    tables = BlockBasedOptions()
    tables.set_block_size(BLOCK_BYTES)
    tables.disable_cache()  # whoever reads a row keeps it: its block would only push another's out, a fifth of a read's time
    tables.set_bloom_filter(BITS_A_KEY, block_based=False)
    tables.set_data_block_index_type(DataBlockIndexType.binary_and_hash())
    options.set_block_based_table_factory(tables)
    return options

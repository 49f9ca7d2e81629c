"""Which files of an hour are merged, and their merged bytes. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from joiner.sink.columns import as_table, evolved, parquet
from joiner.sink.journal import FileName

ROW_GROUP_BYTES = 32 << 20
"""Row groups of about this size in memory: small ones are joined."""


class Merge(NamedTuple):
    """Files that become one."""

    name: str
    originals: list[str]


def plan_merge(files: Iterable[tuple[str, int]], partition: int, owner: str, file_bytes: int) -> Merge | None:
    """The next merge among (path, bytes) of one folder; None where nothing is to be merged.

    Files of a partition are taken in the order of their offsets: small ones, which are those of at most half of `file_bytes`, as many
    as fit into it.
    """
    ours = [(name, path, size) for path, size in files if (name := FileName.of(path)) and name.partition == partition]
    group: list[tuple[FileName, str]] = []
    group_bytes = 0
    for name, path, size in sorted(ours):
        if size > file_bytes // 2:
            continue
        if group and group_bytes + size > file_bytes:
            if len(group) > 1:
                break
            group, group_bytes = [], 0
        group.append((name, path))
        group_bytes += size
    if len(group) < 2:
        return None
    first, path = group[0]
    merged = FileName(partition, first.first_offset, max(name.next_offset for name, _ in group), owner)
    return Merge(f"{path.rpartition('/')[0]}/{merged.name}", [path for _, path in group])


def merge(contents: Sequence[bytes]) -> tuple[bytes, int]:
    """The rows of Parquet files, one after the other, as one; and how many rows."""
    files = [_open(content) for content in contents]
    schema = None
    for file in files:
        schema = evolved(schema, file.schema_arrow)
    assert schema is not None
    return parquet((as_table(batches, schema) for batches in _row_groups(files)), schema), sum(file.metadata.num_rows for file in files)


def _open(content: bytes) -> pq.ParquetFile:
    plain = pq.ParquetFile(pa.BufferReader(content))
    messages = [field.name for field in plain.schema_arrow if pa.types.is_binary(field.type)]
    return pq.ParquetFile(pa.BufferReader(content), read_dictionary=messages)


def _row_groups(files: Iterable[pq.ParquetFile]) -> Iterator[list[pa.RecordBatch]]:
    batches: list[pa.RecordBatch] = []
    for file in files:
        for number in range(file.num_row_groups):
            batches += file.read_row_group(number, use_threads=False).to_batches()
            if sum(batch.nbytes for batch in batches) >= ROW_GROUP_BYTES:
                yield batches
                batches = []
    if batches:
        yield batches

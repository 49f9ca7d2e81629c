"""Reads what the sink wrote: every sample exactly once, at any moment. Imports no Kafka and no Faust."""

import time

import pyarrow as pa
import pyarrow.dataset as ds

from headrace.settings import ConfigError
from joiner.sink.columns import RetypedError, decode_columns, evolved
from joiner.sink.journal import FOLDER, FileName, Journal, Version, newest
from joiner.sink.ownership import read_journal
from joiner.sink.settings import StorageOptions
from joiner.sink.target import Target, open_target

PATIENCE_S = 60.0
FOLDERS = pa.schema([pa.field("date", pa.string()), pa.field("hour", pa.int32())])
"""Columns that come from the folders' names: the hour of ts_ms, in UTC."""

Journals = dict[int, tuple[Version, Journal]]


def open_samples(uri: str, options: StorageOptions | None = None) -> ds.Dataset:
    """The samples at `uri` as they are now; rows that come later are not in it.

    Its columns are those of all files: a column that a file does not have is null. A scan reads files that may have been merged
    meanwhile: they stay for `sink.keep_replaced_s`, then it raises FileNotFoundError, and has to be opened anew. Raises ConfigError
    where nothing is there, or it is not understood.
    """
    target = open_target(uri, options or StorageOptions())
    try:
        return _open(target)
    except (OSError, RuntimeError) as error:
        raise target.explain(error) or error from error


def _open(target: Target) -> ds.Dataset:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        try:
            before = read_journals(target)
            files = list(target.files())
            after = read_journals(target)
        except FileNotFoundError:
            continue  # a version that was replaced between its name and its content
        if _nothing_moved(before, after):
            return _dataset(target, before, [path for path, _ in files])
    raise TimeoutError(f"{target.uri} changed more quickly than it could be listed, for {PATIENCE_S:.0f} s")


def read_journals(target: Target) -> Journals:
    """Each partition's journal, with its version. Raises FileNotFoundError where one was replaced meanwhile."""
    names: dict[int, list[str]] = {}
    for path, _ in target.files(FOLDER):
        partition, _, name = path.removeprefix(f"{FOLDER}/").partition("/")
        if partition.isdecimal():
            names.setdefault(int(partition), []).append(name)
    versions = {partition: version for partition, found in names.items() if (version := newest(found))}
    return {partition: (version, read_journal(target, f"{FOLDER}/{partition}", version)) for partition, version in sorted(versions.items())}


def _nothing_moved(before: Journals, after: Journals) -> bool:
    """Whether the files of `before` were all there between the two looks: those that a flush added are told by their offsets."""
    return before.keys() == after.keys() and all(
        version.owner == after[partition][0].owner and journal.merges == after[partition][1].merges
        for partition, (version, journal) in before.items()
    )


def part_of(path: str, journals: Journals) -> bool:
    """Whether a file's rows count. Raises ConfigError for a partition without a journal."""
    name = FileName.of(path)
    if name is None or path.startswith(FOLDER):
        return False
    if name.partition not in journals:
        raise ConfigError(f"{path} is there, but no journal of partition {name.partition} below {FOLDER}: it was removed")
    _, journal = journals[name.partition]
    return path not in journal.absent and name.next_offset <= journal.next_offset


def _dataset(target: Target, journals: Journals, paths: list[str]) -> ds.Dataset:
    schema: pa.Schema | None = None
    for partition, (_, journal) in journals.items():
        columns = decode_columns(journal.columns)
        try:
            schema = evolved(schema, columns) if columns is not None else schema
        except RetypedError as error:
            raise ConfigError(f"{target.uri}: partition {partition}: {error}") from error
    if schema is None:
        raise ConfigError(f"{target.uri} holds no samples: has the sink written there (`headrace worker sink`)?")
    return ds.dataset(
        [target.absolute(path) for path in sorted(paths) if part_of(path, journals)],
        schema=pa.schema([*schema, *FOLDERS]),
        format="parquet",
        filesystem=target.fs,
        partitioning=ds.partitioning(FOLDERS, flavor="hive"),
        partition_base_dir=target.root,
    )

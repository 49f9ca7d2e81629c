"""`headrace transitions`: the Parquet samples of months -> Parquet transitions, by the live collector's own code, out of core.

Row groups are read in the order of their oldest row, which their statistics tell, one partition after the other: a user's pages are
all of one partition. So the oldest row of the row groups that are still to come is the watermark, exactly.
"""

import shutil
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experience.history import END_MS, History, columns_needed
from experience.settings import ExperienceSettings
from headrace.replay_folder import BatchParts
from headrace.settings import ConfigError
from joiner.sink.dataset import open_samples
from joiner.sink.settings import StorageOptions
from schemas.sample import label_column, sample_schema

LABEL, DELAY = label_column(""), "label_delay_ms"

_SHARED = ["request_id", "user_id", "policy", "model_version", "exposure"]
"""Columns whose values the rows of a page share."""
_REPEATING = ("instance", "policy", "model_version", "bucket", "user_id", "session_id", "propensity")

BATCHES_BEHIND = 16
"""Batches (of 4 MiB at most) that wait to be written: about a row group, of which most is written at its end."""


class RowGroup(NamedTuple):
    """Some rows of a file, and the time of the oldest."""

    oldest_ms: int
    path: str
    number: int
    rows: int


def transitions_command(uri: str, out: Path, settings: ExperienceSettings, storage: StorageOptions, console: Console) -> dict[str, int]:
    """Build them into the folder `out`, which must not be there or be empty; gives the counts. Raises ConfigError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not an empty folder: name another one")
    samples = open_samples(uri, storage)
    unfinished = out.with_name(f".{out.name}.unfinished")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        counts = build(samples, settings, unfinished, console)
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
        return counts
    except FileNotFoundError as error:
        raise ConfigError(f"{error} while reading {uri}: the sink has merged files meanwhile; begin again") from error
    except OSError as error:
        raise ConfigError(f"cannot write --out {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def row_groups(samples: ds.Dataset) -> dict[int, list[RowGroup]]:
    """By partition, oldest first."""
    found: defaultdict[int, list[RowGroup]] = defaultdict(list)
    for path in samples.files:
        with pq.ParquetFile(path, filesystem=samples.filesystem) as file:
            metadata = file.metadata
            columns = {metadata.schema.column(place).path: place for place in range(metadata.num_columns)}
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                statistics = group.column(columns["ts_ms"]).statistics
                partition = group.column(columns["source_partition"]).statistics
                if statistics is None or partition is None:
                    raise ConfigError(f"{path} has no statistics of ts_ms and source_partition: it was not written by the sink")
                found[partition.min].append(RowGroup(statistics.min, path, number, group.num_rows))
    return {partition: sorted(groups) for partition, groups in sorted(found.items())}


def build(samples: ds.Dataset, settings: ExperienceSettings, out: Path, console: Console) -> dict[str, int]:
    """Build transitions into a new folder; gives the counts of `History`."""
    kinds = tuple(name.removeprefix(LABEL) for name in samples.schema.names if name.startswith(LABEL) and name != DELAY)
    with console.status(f"reading the footers of {len(samples.files)} files"):
        partitions = row_groups(samples)
    counts: Counter[str] = Counter()
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("samples"), TimeRemainingColumn())
    parts = BatchParts(out, "lz4", _REPEATING)
    # A thread reads ahead by one row group, and one writes up to one behind: pyarrow works without the interpreter's lock.
    with Progress(*bar, console=console) as progress, ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        task = progress.add_task("transitions", total=sum(group.rows for groups in partitions.values() for group in groups))
        written: deque[Future[None]] = deque()
        for groups in partitions.values():
            history = History(kinds, settings)
            for batch in history.transitions(_batches(samples, groups, kinds, reader, lambda rows: progress.advance(task, rows))):
                written.append(writer.submit(parts.write, batch))
                if len(written) > BATCHES_BEHIND:
                    written.popleft().result()
            counts += history.counts
        for write in written:
            write.result()
    parts.close()
    return dict(counts)


def _batches(
    samples: ds.Dataset, groups: list[RowGroup], kinds: tuple[str, ...], reader: Executor, advance: Callable[[int], None]
) -> Iterator[tuple[pa.RecordBatch, int]]:
    schema = pa.schema([sample_schema(kinds).field(name) for name in columns_needed(kinds)])
    promises_ms = [group.oldest_ms for group in groups[1:]] + [END_MS]
    ahead = reader.submit(_read, samples, groups[0], schema)
    for number, (group, promise_ms) in enumerate(zip(groups, promises_ms, strict=True)):
        batches = ahead.result()
        if number + 1 < len(groups):
            ahead = reader.submit(_read, samples, groups[number + 1], schema)
        for batch in batches[:-1]:
            yield batch, group.oldest_ms
        yield batches[-1], promise_ms
        advance(group.rows)


def _read(samples: ds.Dataset, group: RowGroup, schema: pa.Schema) -> list[pa.RecordBatch]:
    with pq.ParquetFile(group.path, filesystem=samples.filesystem, read_dictionary=_SHARED) as file:
        there = [name for name in schema.names if name in file.schema_arrow.names]
        table = file.read_row_group(group.number, columns=there, use_threads=False).combine_chunks()
    return [_filled(batch, schema) for batch in table.to_batches()]


def _filled(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with what its file does not have: zeros in labels (of a kind of feedback that came later, or is no more), else null."""
    columns: list[Any] = []
    for field in schema:
        is_label = field.name.startswith(LABEL) and field.name != DELAY
        if field.name not in batch.schema.names:
            columns.append(pa.repeat(pa.scalar(0, field.type), len(batch)) if is_label else pa.nulls(len(batch), field.type))
        else:
            columns.append(batch[field.name].fill_null(0) if is_label else batch[field.name])
    return pa.RecordBatch.from_arrays(columns, names=schema.names)

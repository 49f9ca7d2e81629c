"""What an event costs the joiner's step and store while many items are open, beside a bare dict of the same requests.

`python -m benchmarks.open_items joiner|dict OPEN_ITEMS SLIDE` opens so many items on four partitions, then slides the window: every
further exposure closes an older one and forgets one that is older still, so that the numbers stay. Nothing is sent; what the step
would send is made. The dict holds requests and nothing else, and what is put, looked up and deleted is the same: by what it grows
memory itself is slower where there is more of it. Each run prints one JSON object.
"""

import gc
import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.contestant import peak_mb
from benchmarks.join_log import PARTITIONS, START_MS, WINDOW_MS, exposure_messages, reaction
from benchmarks.joiner import machine
from headrace.step import Record
from headrace.store import PartitionStore
from headrace.worker import GC_THRESHOLDS
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings
from schemas.codec import decode_exposure_key, decode_feedback
from schemas.topics import EXPOSURES, FEEDBACK

SCOPE = "the joiner's step and store without a broker: as many items close as open"
LEVELS = (100_000, 1_000_000, 5_000_000, 10_000_000)
SLIDE = 400_000
"""Exposures that slide the window; a fifth of the level where that is more, so that RocksDB has to tidy up, too."""
BATCH = 2_500
"""Exposures a batch: what a fetch of one mebibyte brings of a partition."""
REACTIONS = 258
"""Feedback a batch of exposures, on items chosen at random among the open ones: 31 in 300."""

Batch = tuple[int, str, list[Record]]
"""Partition, topic, records."""


class Partition(Protocol):
    """What holds the open items of one partition."""

    def apply(self, topic: str, records: list[Record]) -> float:
        """Take a batch; gives the CPU time (s) that it took of this thread."""
        ...

    @property
    def open_items(self) -> int:
        """How many are open."""
        ...


class JoinerPartition:
    """The step and the store, as a stage has them."""

    def __init__(self, number: int, folder: Path) -> None:
        self._store = PartitionStore(folder / str(number))
        self._step = PartitionJoin(JoinerSettings(join_window_ms=WINDOW_MS), number, self._store)

    def apply(self, topic: str, records: list[Record]) -> float:
        """Join and store; the outputs are dropped."""
        started_s = time.thread_time()
        outcome = self._step.apply(topic, records, records[-1].arrival_ms)
        self._store.write(outcome.changes, {topic: records[-1].offset + 1}, outcome.counts)
        return time.thread_time() - started_s

    @property
    def open_items(self) -> int:
        """How many are open."""
        return int(self._step.gauges()["open_items"])


class DictPartition:
    """A dict of the requests, the newest `most` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._pages: dict[str, int] = {}
        self._oldest: deque[str] = deque()

    def apply(self, topic: str, records: list[Record]) -> float:
        """Put or look up, and delete the oldest; the time that it takes to open the messages is not counted."""
        decode = decode_exposure_key if topic == EXPOSURES else decode_feedback
        request_ids = [decode(record.value).request_id for record in records]
        started_s = time.thread_time()
        pages, oldest = self._pages, self._oldest
        if topic == EXPOSURES:
            for request_id, record in zip(request_ids, records, strict=True):
                if request_id not in pages:
                    pages[request_id] = record.offset
                    oldest.append(request_id)
            while len(oldest) > self._most:
                del pages[oldest.popleft()]
        else:
            for request_id in request_ids:
                pages.get(request_id)
        return time.thread_time() - started_s

    @property
    def open_items(self) -> int:
        """How many are open."""
        return len(self._pages)


def batches(first: int, end: int, open_items: int) -> Iterator[Batch]:
    """The exposures number `first` to `end` at a pace that has `open_items` in a window, and the feedback of the same time."""
    chance = np.random.default_rng((7, first))
    for start in range(first, end, BATCH * PARTITIONS):
        values = list(exposure_messages(start, min(end, start + BATCH * PARTITIONS), open_items, 1, 7, WINDOW_MS))
        last = start + len(values) - 1
        now_ms = START_MS + last * WINDOW_MS // open_items
        for partition in range(PARTITIONS):
            pages = range(start + partition, last + 1, PARTITIONS)
            yield partition, EXPOSURES, [Record(page // PARTITIONS, now_ms, values[page - start]) for page in pages]
        oldest = max(0, last - open_items + BATCH * PARTITIONS)
        chosen = (chance.integers(oldest, last + 1 - PARTITIONS, (PARTITIONS, REACTIONS)) // PARTITIONS * PARTITIONS).tolist()
        reacted = start // (BATCH * PARTITIONS) * REACTIONS
        for partition, of_partition in enumerate(chosen):
            # the last one at the time of the newest exposure: the watermark keeps up
            yield (
                partition,
                FEEDBACK,
                [
                    Record(reacted + number, now_ms, reaction(reacted + number, page + partition, f"i{page + partition}", now_ms))
                    for number, page in enumerate(of_partition)
                ],
            )


def measure(partitions: Sequence[Partition], open_items: int, slide: int) -> dict[str, float]:
    """Fill, slide by a window, so that pages are forgotten too, then measure while so many exposures slide it further.

    CPU time is that of every thread, RocksDB's included, but for making the events.
    """
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)  # as a worker runs
    first = 2 * open_items
    for number, topic, records in batches(0, first, open_items):
        partitions[number].apply(topic, records)
    held = sum(partition.open_items for partition in partitions)
    events, applying_s, started_s, cpu_s = 0, 0.0, time.thread_time(), time.process_time()
    for number, topic, records in batches(first, first + slide, open_items):
        events += len(records)
        applying_s += partitions[number].apply(topic, records)
    making_s = time.thread_time() - started_s - applying_s
    cpu_s = time.process_time() - cpu_s - making_s
    return {
        "open_items": held,
        "open_items_afterwards": sum(partition.open_items for partition in partitions),
        "events": events,
        "cpu_us_per_event": round(1e6 * cpu_s / events, 2),
        "cpu_us_per_event_of_rocksdb_threads": round(1e6 * (cpu_s - applying_s) / events, 2),
        "peak_rss_mb": round(peak_mb("self"), 1),
    }


def run(what: str, open_items: int, slide: int) -> dict[str, float]:
    """One of the two, in this process."""
    if what == "dict":
        return measure([DictPartition(open_items // PARTITIONS) for _ in range(PARTITIONS)], open_items, slide)
    with tempfile.TemporaryDirectory(prefix="headrace-open-items-", ignore_cleanup_errors=True) as folder:
        return measure([JoinerPartition(number, Path(folder)) for number in range(PARTITIONS)], open_items, slide)


def main(levels: Sequence[int]) -> dict[str, Any]:
    """Every level in a process of its own: its memory is only that."""
    progress = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True))
    measured = []
    with progress:
        task = progress.add_task("")
        for level in levels:
            figures = {}
            for what in ("joiner", "dict"):
                progress.update(task, description=f"{level:,} open items: {what}")
                figures[what] = in_a_process(what, level)
            peer = {f"dict_{name}": figures["dict"][name] for name in ("cpu_us_per_event", "peak_rss_mb")}
            measured.append({**figures["joiner"], **peer})
    first = measured[0]
    for of_level in measured:
        for name in ("cpu_us_per_event", "dict_cpu_us_per_event"):
            of_level[f"{name}_to_first"] = round(of_level[name] / first[name], 2)
    return {"benchmark": "open-items", "scope": SCOPE, "levels": measured, "machine": machine()}


def in_a_process(what: str, level: int) -> dict[str, float]:
    """`run` of a level."""
    command = [sys.executable, "-m", "benchmarks.open_items", what, str(level), str(max(SLIDE, level // 5))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{' '.join(command[1:])} failed: {done.stderr[-300:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def show(report: dict[str, Any]) -> None:
    """The report as a table on standard error."""
    table = Table("open items", title=report["scope"], title_justify="left")
    for name in ("CPU us/event", "to the first", "of it RocksDB's threads", "peak MB", "a dict: CPU us/event", "to the first", "peak MB"):
        table.add_column(name, justify="right")
    names = ("cpu_us_per_event", "cpu_us_per_event_to_first", "cpu_us_per_event_of_rocksdb_threads", "peak_rss_mb")
    for level in report["levels"]:
        figures = [level[name] for name in (*names, "dict_cpu_us_per_event", "dict_cpu_us_per_event_to_first", "dict_peak_rss_mb")]
        table.add_row(f"{level['open_items']:,}", *(f"{figure:,.0f}" if figure >= 100 else f"{figure:.2f}" for figure in figures))
    Console(stderr=True).print(table)


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))

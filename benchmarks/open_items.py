"""What an event costs the joiner's step and store while many items are open: a process of its own, so that its memory is only that.

`python -m benchmarks.open_items OPEN_ITEMS MEASURED` opens so many items on four partitions, then slides the window: every further
exposure closes an older one, so that the number stays. Nothing is sent; what the step would send is made. Prints one JSON object.
"""

import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.contestant import peak_mb
from benchmarks.join_log import PARTITIONS, START_MS, WINDOW_MS, exposure_messages, reaction
from headrace.step import Record
from headrace.store import PartitionStore
from headrace.worker import GC_THRESHOLDS
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings
from schemas.topics import EXPOSURES, FEEDBACK

BATCH = 2_500
"""Exposures a batch: what a fetch of one mebibyte brings of a partition."""
REACTIONS = 258
"""Feedback a batch of exposures, on items chosen at random among the open ones: 31 in 300."""

Batch = tuple[int, str, list[Record]]
"""Partition, topic, records."""


class Partition:
    """The step and the store of one partition, as a stage has them."""

    def __init__(self, number: int, folder: Path) -> None:
        self._store = PartitionStore(folder / str(number))
        self._step = PartitionJoin(JoinerSettings(join_window_ms=WINDOW_MS), number, self._store)

    def apply(self, topic: str, records: list[Record]) -> None:
        """Join and store; the outputs are dropped."""
        outcome = self._step.apply(topic, records, records[-1].arrival_ms)
        self._store.write(outcome.changes, {topic: records[-1].offset + 1}, outcome.counts)

    @property
    def open_items(self) -> int:
        """How many are open."""
        return int(self._step.gauges()["open_items"])


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


def measure(open_items: int, measured: int, folder: Path) -> dict[str, float]:
    """Fill, then slide by `measured` exposures. CPU time is that of every thread, RocksDB's included, but for making the events."""
    partitions = [Partition(number, folder) for number in range(PARTITIONS)]
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)  # as a worker runs
    for number, topic, records in batches(0, open_items, open_items):
        partitions[number].apply(topic, records)
    held = sum(partition.open_items for partition in partitions)
    events, applying_s, started_s, cpu_s = 0, 0.0, time.thread_time(), time.process_time()
    for number, topic, records in batches(open_items, open_items + measured, open_items):
        events += len(records)
        before_s = time.thread_time()
        partitions[number].apply(topic, records)
        applying_s += time.thread_time() - before_s
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


def main() -> None:
    """See the module."""
    with tempfile.TemporaryDirectory(prefix="headrace-open-items-") as folder:
        print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]), Path(folder))))


if __name__ == "__main__":
    main()

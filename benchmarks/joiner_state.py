"""The joiner's worker with millions of open items: memory, and how long a restart takes.

`headrace worker joiner` opens `items` from Kafka, is stopped and started again, then killed with -9 and started again. Each time a few
events that close the oldest pages wait in the topics: the clock runs from the start of the process to the moment when the topic of
samples has grown. The samples are read at the end: every closed page once, with the right label.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.contestant import Contestant, Ends, looks_until_quiet, running
from benchmarks.join_log import FLUSH, PARTITIONS, START_MS, WINDOW_MS, Message, exposure_messages, fill, flushes, reaction
from benchmarks.joiner import headrace_command, machine
from benchmarks.samples import Faults, Row, SampleReader
from headrace import broker as brokers
from headrace.scrape import metrics
from headrace.settings import StreamSettings
from schemas.topics import EXPOSURES, FEEDBACK, SAMPLES

FILL_MS = WINDOW_MS // 2
"""Event time of the fill: nothing closes within it."""
CHUNK = 100_000
REACTED_EVERY = 10
"""One page of so many on a partition has a reaction, a second after it."""
STALL_S = 120.0
FIGURES = (
    *("peak_rss_mb", "fill_s", "fill_events_per_s", "stop_s", "restart_after_stop_s", "peak_rss_mb_after_stop"),
    *("restart_after_kill_s", "peak_rss_mb_after_kill", "samples", *Faults._fields),
)

Say = Callable[[str], None]


def log_messages(items: int) -> Iterator[Message]:
    """Pages of one item at an even pace, each chunk followed by its feedback."""
    for first in range(0, items, CHUNK):
        end = min(items, first + CHUNK)
        values = exposure_messages(first, end, items, 1, 3, FILL_MS)
        yield from ((EXPOSURES, page % PARTITIONS, value) for page, value in zip(range(first, end), values, strict=True))
        for page in (page for page in range(first, end) if has_reaction(page)):
            ts_ms = START_MS + page * FILL_MS // items + 1000
            yield FEEDBACK, page % PARTITIONS, reaction(page, page, f"i{page}", ts_ms)


def has_reaction(page: int) -> bool:
    """Whether the log has one on it."""
    return page // PARTITIONS % REACTED_EVERY == 0


class StateRun:
    """A joiner on one broker and one state folder, through its restarts."""

    def __init__(self, broker: brokers.LocalBroker, items: int, folder: Path, say: Say) -> None:
        self._broker, self._items, self._folder, self._say = broker, items, folder, say
        self._ends, self._closed = Ends(broker.address), 0
        self._port = brokers.free_port()
        brokers.create_topics(StreamSettings(broker=broker.address, partitions=PARTITIONS))
        fill(broker.address, log_messages(items))

    def measure(self) -> dict[str, Any]:
        """Fill, stop, start, kill, start."""
        report: dict[str, Any] = {"open_items": self._items}
        with self._worker() as worker:
            self._say("the worker opens the items")
            self._wait_until_open(worker)
            report["fill_s"] = round(time.time() - worker.first_batch_s(), 1)
            report["fill_events_per_s"] = round(self._items * (1 + 1 / REACTED_EVERY) / report["fill_s"])
            report["peak_rss_mb"] = round(worker.peak_mb(), 1)
            stopped_s = time.time()
            worker.stop()
            report["stop_s"] = round(time.time() - stopped_s, 1)
        for after in ("stop", "kill"):
            self._say(f"restart after {after}")
            fill(self._broker.address, self._closers())
            with self._worker() as worker:
                report[f"restart_after_{after}_s"] = round(self._first_output_s(worker), 2)
                report[f"peak_rss_mb_after_{after}"] = round(worker.peak_mb(), 1)
                worker.kill()  # the second restart is one after kill -9
        self._say("reading the samples")
        reader = SampleReader(self._broker.address)
        rows = list(reader.read(SAMPLES, self._ends.of(SAMPLES)))
        reader.close()
        report["samples"] = len(rows)
        return report | faults_of_prefix(rows)._asdict()

    @contextmanager
    def _worker(self) -> Iterator[Contestant]:
        """The worker, on the state that is there."""
        with running(*headrace_command(self._broker.address, "state", self._folder, self._port), self._folder) as worker:
            yield worker

    def _closers(self) -> list[Message]:
        """Events that close the oldest blocks: ten seconds of pages, or as many as a few fetches hold."""
        self._closed += 1
        block_ms = 4 * 10_000 * FILL_MS // self._items
        step_ms = max(10_000, min(FILL_MS // 3, block_ms))
        return list(flushes(START_MS + WINDOW_MS + self._closed * step_ms, f"{FLUSH}{self._closed}"))

    def _wait_until_open(self, worker: Contestant) -> None:
        seen, seen_s = 0.0, time.monotonic()
        while seen < self._items:
            page = metrics(self._port)
            count = page.total("headrace_open_items") if page else 0.0
            if count > seen:
                seen, seen_s = count, time.monotonic()
            if not worker.is_alive or time.monotonic() - seen_s > STALL_S:
                raise ValueError(f"the worker opened {seen:.0f} of {self._items} items; its log ends with: {worker.log_end()!r}")
            time.sleep(0.5)

    def _first_output_s(self, worker: Contestant) -> float:
        first_end = self._ends.of(SAMPLES)
        looks = list(looks_until_quiet(worker, self._ends, SAMPLES, first_end, STALL_S))
        grown = next((look for look in looks if look.end > first_end), None)
        if grown is None:
            raise ValueError(f"no sample came after the restart; its log ends with: {worker.log_end()!r}")
        return grown.at_s - worker.started_s


def faults_of_prefix(rows: Sequence[Row]) -> Faults:
    """What is wrong with samples that must be all pages up to the newest that came, partition by partition."""
    pages = [(int(request_id.removeprefix("r")), label) for request_id, _, label in rows]
    came = {page for page, _ in pages}
    ends = {partition: max((page for page in came if page % PARTITIONS == partition), default=-1) for partition in range(PARTITIONS)}
    expected = sum(len(range(partition, end + 1, PARTITIONS)) for partition, end in ends.items())
    wrong = sum(label != float(has_reaction(page)) for page, label in pages)
    return Faults(wrong, len(pages) - len(came), expected - len(came) + sum(end < 0 for end in ends.values()))


def main(items: int, kind: str) -> dict[str, Any]:
    """The worker with so many open items."""
    progress = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True))
    with progress, tempfile.TemporaryDirectory(prefix="headrace-bench-") as temporary:
        task = progress.add_task(f"filling the topics with {items:,} exposures")
        with brokers.running(kind, Path(temporary) / "broker") as broker:
            run = StateRun(broker, items, Path(temporary) / "worker", lambda text: progress.update(task, description=text))
            figures = run.measure()
    return {"benchmark": "joiner-state", "broker": kind, **figures, "machine": machine()}


def show(report: dict[str, Any]) -> None:
    """The report as a table on standard error."""
    table = Table("what", title=f"the joiner's worker with {report['open_items']:,} open items", title_justify="left")
    table.add_column("figure", justify="right")
    for name in FIGURES:
        table.add_row(name.replace("_", " "), f"{report[name]:,}")
    Console(stderr=True).print(table)

"""The join beside its bare floor: the same events in memory, in one process, in turns.

Headrace's `PartitionJoin` does all that the joiner does between the broker and the disk: checks, join, the state's changes, and Arrow
messages ready to send. The floor is the least that a Python join can be: orjson, a dict of open items, a list of labelled rows with a
sample's columns; it checks nothing, keeps nothing for a restart and makes no message. Its rows refer to the log's own bytes, where
Headrace holds copies: compare resident memory with that in mind. Labels are verified in every round of both.
"""

import gc
import os
import platform
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from rich.console import Console
from rich.table import Table

from headrace.memory_rows import InMemory
from headrace.step import Record
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings
from schemas.codec import decode_batch, encode_json
from schemas.exposure import ExposedItem, Exposure, FeatureValue
from schemas.feedback import Feedback
from schemas.topics import EXPOSURES, FEEDBACK

SCOPE = "one partition, records in memory -> samples in memory; no broker, no disk. The broker-to-broker benchmark is another one"
START_MS = 1_700_000_000_000
PAGE_INTERVAL_MS = 1
WINDOW_MS = 60_000
LONGEST_DELAY_MS = 20_000
BATCH = 2_000
"""Exposures a batch: what a fetch of one mebibyte brings."""
FEEDBACK_SHARE = 31 / 300

Pair = tuple[str, str]
Batch = tuple[str, list[Record], int]


class Log(NamedTuple):
    """Batches of both topics as (topic, records, wall clock in ms), and the (request, item) pairs that have feedback."""

    batches: list[Batch]
    labelled: frozenset[Pair]
    exposures: int
    items: int
    feedback: int
    exposure_bytes: float


@dataclass(frozen=True)
class Run:
    """One run over a log: what it took, what it held, and the labelled (request, item, label) rows that came out."""

    wall_s: float
    cpu_s: float
    rss_growth_mib: float
    rows: list[tuple[str, str, float]]


def make_log(pages: int, items_a_page: int, seed: int = 1) -> Log:
    """Pages at a steady pace; a share of them gets a click on one item, some seconds later."""
    chance = random.Random(seed)
    exposures: list[tuple[int, bytes]] = []
    reactions: list[tuple[int, bytes]] = []
    labelled: set[Pair] = set()
    for page in range(pages):
        ts_ms, request_id, user_id = START_MS + page * PAGE_INTERVAL_MS, f"r-{page:08d}", f"u-{chance.randrange(10**6):06d}"
        items = [
            ExposedItem(f"i-{chance.randrange(10**6):06d}-{place}", place, {"click": chance.random()}) for place in range(items_a_page)
        ]
        state: dict[str, FeatureValue] = {
            "hour": 13.0,
            "age_days": chance.random(),
            "city": "hz",
            "recent": [f"i-{chance.randrange(10**6):06d}" for _ in range(4)],
        }
        shown = Exposure(
            request_id=request_id,
            user_id=user_id,
            ts_ms=ts_ms,
            policy="fusion",
            model_version="fusion-000012",
            state=state,
            action=[chance.random()],
            items=items,
        )
        exposures.append((ts_ms, encode_json(shown)))
        if chance.random() < FEEDBACK_SHARE:
            item_id, reacted_ms = chance.choice(items).item_id, ts_ms + chance.randrange(1, LONGEST_DELAY_MS)
            click = Feedback(
                event_id=f"e-{page:08d}", request_id=request_id, user_id=user_id, item_id=item_id, ts_ms=reacted_ms, kind="click"
            )
            reactions.append((reacted_ms, encode_json(click)))
            labelled.add((request_id, item_id))
    reactions.sort()
    size = statistics.fmean(len(value) for _, value in exposures)
    return Log(list(_in_batches(exposures, reactions)), frozenset(labelled), pages, pages * items_a_page, len(reactions), size)


def _in_batches(exposures: list[tuple[int, bytes]], reactions: list[tuple[int, bytes]]) -> Iterator[Batch]:
    """Batches of exposures, each followed by the feedback of the same time."""
    done = 0
    for first in range(0, len(exposures), BATCH):
        shown = exposures[first : first + BATCH]
        last_ms = shown[-1][0] if first + BATCH < len(exposures) else START_MS + 10**9
        yield EXPOSURES, [Record(first + place, ts_ms, value) for place, (ts_ms, value) in enumerate(shown)], shown[-1][0]
        end = done
        while end < len(reactions) and reactions[end][0] <= last_ms:
            end += 1
        yield FEEDBACK, [Record(done + place, ts_ms, value) for place, (ts_ms, value) in enumerate(reactions[done:end])], shown[-1][0]
        done = end


def run_headrace(log: Log) -> Run:
    """The joiner's step; what it would store is made and dropped."""
    step, sent, meter = InMemory(partial(PartitionJoin, JoinerSettings(join_window_ms=WINDOW_MS), 0)), [], _Meter()
    for topic, records, now_ms in log.batches:
        sent += step.apply(topic, records, now_ms).outputs
        meter.look()
    step.tick(now_ms)
    sent += step.tick(now_ms + 10 * WINDOW_MS).outputs  # both topics idle: everything closes
    wall_s, cpu_s = meter.stop()
    rows: list[tuple[str, str, float]] = []
    for output in sent:
        batch, _ = decode_batch(output.value, "samples")
        rows += zip(batch["request_id"].to_pylist(), batch["item_id"].to_pylist(), batch["label_click"].to_pylist(), strict=True)
    return Run(wall_s, cpu_s, meter.growth_mib, rows)


def run_floor(log: Log) -> Run:
    """A dict of what orjson decodes: rows with the columns of a sample."""
    loads = orjson.loads
    rows_open: dict[Pair, list[Any]] = {}
    oldest: deque[list[Any]] = deque()
    newest_ms = {EXPOSURES: 0, FEEDBACK: 0}
    out: list[list[Any]] = []
    meter = _Meter()
    for topic, records, _ in log.batches:
        for record in records:
            event = loads(record.value)
            ts_ms = newest_ms[topic] = event["ts_ms"]
            request_id = event["request_id"]
            if topic == EXPOSURES:
                user_id, items, policy, model_version = event["user_id"], event["items"], event["policy"], event["model_version"]
                for item in items:
                    item_id = item["item_id"]
                    row = [
                        ts_ms,
                        request_id,
                        user_id,
                        item_id,
                        item["position"],
                        len(items),
                        policy,
                        model_version,
                        0.0,
                        None,
                        None,
                        record.offset,
                        record.value,
                    ]
                    rows_open[request_id, item_id] = row
                    oldest.append(row)
            elif (hit := rows_open.get((request_id, event["item_id"]))) is not None and 0 <= ts_ms - hit[0] <= WINDOW_MS:
                hit[8] += event["value"]
                hit[9], hit[10] = ts_ms - hit[0], record.arrival_ms
        ended_ms = min(newest_ms.values()) - WINDOW_MS
        while oldest and oldest[0][0] < ended_ms:
            row = oldest.popleft()
            del rows_open[row[1], row[3]]
            out.append(row)
        meter.look()
    out += oldest
    wall_s, cpu_s = meter.stop()
    return Run(wall_s, cpu_s, meter.growth_mib, [(row[1], row[3], row[8]) for row in out])


class _Meter:
    """Wall and CPU time since its making, and the largest growth of resident memory that it saw."""

    def __init__(self) -> None:
        gc.collect()
        self._first_mib, self.growth_mib = _resident_mib(), 0.0
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def look(self) -> None:
        self.growth_mib = max(self.growth_mib, _resident_mib() - self._first_mib)

    def stop(self) -> tuple[float, float]:
        self.look()
        return time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s


def _resident_mib() -> float:
    """Resident memory of this process now; 0 where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    except OSError:
        return 0.0


def faults(log: Log, run: Run) -> dict[str, int]:
    """How many labels are wrong, and how many rows came twice or never."""
    came = {(request_id, item_id): label for request_id, item_id, label in run.rows}
    wrong = sum(label != float(pair in log.labelled) for pair, label in came.items())
    return {"wrong": wrong, "duplicate": len(run.rows) - len(came), "missing": log.items - len(came)}


def measure(pages: int, items_a_page: int, rounds: int) -> dict[str, Any]:
    """Both joins over the same log, in turns: medians, and the ratio of their speeds (1: as fast as the floor)."""
    log = make_log(pages, items_a_page)
    events = log.exposures + log.feedback
    joins: dict[str, Callable[[Log], Run]] = {"headrace": run_headrace, "floor": run_floor}
    runs: dict[str, list[Run]] = {name: [] for name in joins}
    found: dict[str, list[dict[str, int]]] = {name: [] for name in joins}
    gc.collect()
    gc.freeze()  # the log itself is no part of either join: the collector need not walk it
    try:
        for _ in range(rounds):
            for name, join in joins.items():
                run = join(log)
                found[name].append(faults(log, run))
                runs[name].append(Run(run.wall_s, run.cpu_s, run.rss_growth_mib, []))
    finally:
        gc.unfreeze()
    report: dict[str, Any] = {
        "exposures": log.exposures,
        "items_a_page": items_a_page,
        "feedback": log.feedback,
        "exposure_bytes": round(log.exposure_bytes),
    }
    for name in joins:
        wall_s = statistics.median(run.wall_s for run in runs[name])
        report[name] = {
            "events_per_s": round(events / wall_s),
            "events_per_s_by_round": [round(events / run.wall_s) for run in runs[name]],
            "cpu_s_per_100k_events": round(statistics.median(run.cpu_s for run in runs[name]) * 1e5 / events, 3),
            "peak_rss_growth_mib": round(max(run.rss_growth_mib for run in runs[name]), 1),
            "faults": {fault: max(round_faults[fault] for round_faults in found[name]) for fault in found[name][0]},
        }
    pairs = list(zip(runs["headrace"], runs["floor"], strict=True))
    report["speed_ratio"] = round(statistics.median(floor.wall_s / ours.wall_s for ours, floor in pairs), 2)
    report["cpu_ratio"] = round(statistics.median(floor.cpu_s / ours.cpu_s for ours, floor in pairs), 2)
    return report


def main(events: int = 300_000, rounds: int = 3) -> dict[str, Any]:
    """Pages of one item, then a tenth as many pages of ten. `events` counts exposures; feedback comes on top.

    Raises ValueError where a label was wrong.
    """
    report: dict[str, Any] = {
        "benchmark": "join",
        "scope": SCOPE,
        "machine": {
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
            "load_1min": os.getloadavg()[0],
        },
        "rounds": rounds,
        "one_item_pages": measure(events, 1, rounds),
        "ten_item_pages": measure(max(1, events // 10), 10, rounds),
    }
    for case in ("one_item_pages", "ten_item_pages"):
        for name in ("headrace", "floor"):
            if any(report[case][name]["faults"].values()):
                raise ValueError(f"{name} joined {case} wrongly: {report[case][name]['faults']}")
    return report


def show(report: dict[str, Any]) -> None:
    """The report as a table on standard error."""
    table = Table("case", title=report["scope"], title_justify="left")
    for name in ("join", "events/s (median)", "CPU s per 100k", "peak memory MiB", "ratio to the floor", "of CPU"):
        table.add_column(name, justify="left" if name == "join" else "right")
    for case in ("one_item_pages", "ten_item_pages"):
        measured = report[case]
        for name in ("headrace", "floor"):
            run = measured[name]
            ratios = (f"{measured['speed_ratio']:.2f}", f"{measured['cpu_ratio']:.2f}") if name == "headrace" else ("1", "1")
            figures = (f"{run['events_per_s']:,}", f"{run['cpu_s_per_100k_events']:.2f}", f"{run['peak_rss_growth_mib']:.0f}")
            table.add_row(case.replace("_", " "), name, *figures, *ratios)
    Console(stderr=True).print(table)

"""The experience collector beside polars: the same messages of samples into transitions, in one process, in turns.

- `headrace`: the collector's step as its worker runs it, one delivered message a call: decode, checks, sessions, TD instances, Arrow
  messages ready to send, and one atomic write of state and offsets to RocksDB a call (on the temporary folder's disk);
- `polars`: a straightforward group-by of the whole log at once: decode, pages, sort, shift, one table. Nothing durable, nothing
  incremental, no lineage of feedback, no message; it uses all cores, so that CPU seconds are compared, of all threads.

Every transition of one is compared with the other's. Beside that: what an open session takes in memory, and the path from Parquet files.
"""

import gc
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from rich.console import Console
from rich.table import Table

from benchmarks.experience_log import KINDS, Message, messages
from experience.sessions import PartitionSessions
from experience.settings import ExperienceSettings
from headrace.step import Outcome, Record
from headrace.store import PartitionStore
from joiner.sink.columns import as_table, stored
from joiner.sink.columns import parquet as as_file
from schemas.codec import decode_batch
from schemas.sample import sample_schema
from schemas.topics import SAMPLES

SETTINGS = ExperienceSettings(session_gap_ms=60_000)
NO_POLARS = "polars is not installed: pip install polars"
ROW_GROUP_MESSAGES = 32
"""About 32 MiB in memory, which is what the sink makes of small files."""
Build = Callable[[ds.Dataset, ExperienceSettings, Path], object]
Row = tuple[str, int, float, bool, bool]
"""What is compared of a transition: session, step, reward, done, whether there is a next page."""


@dataclass
class Run:
    """One run: seconds, the growth of resident memory at its highest and in its second half (10**6 bytes), the transitions by id."""

    wall_s: float
    cpu_s: float
    peak_mb: float = 0.0
    second_half_mb: float = 0.0
    rows: dict[str, Row] = field(default_factory=dict)


def run_headrace(log: list[Message], folder: Path) -> Run:
    """All messages, then silence."""
    store = PartitionStore(folder)
    outputs: list[bytes] = []
    resident_mb = [_resident_mb()]
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    step = PartitionSessions(SETTINGS, 0, store)

    def carry_out(outcome: Outcome, next_offset: int) -> None:
        store.write(outcome.changes, {SAMPLES: next_offset}, outcome.counts)
        outputs.extend(output.value for output in outcome.outputs)

    for offset, message in enumerate(log):
        carry_out(step.apply(SAMPLES, [Record(offset, 0, message.value)], 0), offset + 1)
        resident_mb.append(_resident_mb() - sum(map(len, outputs)) / 1e6)  # what was sent is no part of the collector
    carry_out(step.tick(0), len(log))
    carry_out(step.tick(10**10), len(log))
    run = Run(time.perf_counter() - wall_s, time.process_time() - cpu_s)
    run.peak_mb = max(resident_mb) - resident_mb[0]
    run.second_half_mb = resident_mb[-1] - resident_mb[len(resident_mb) // 2]
    store.close()
    run.rows = _rows([decode_batch(value, "transitions")[0] for value in outputs])
    return run


def run_polars(log: list[Message]) -> Run:
    """The log as one table."""
    import polars as pl  # noqa: PLC0415 - for development only

    wall_s, cpu_s = time.perf_counter(), time.process_time()
    batches = [decode_batch(message.value, "samples")[0] for message in log]
    frame = pl.concat([pl.DataFrame(pl.from_arrow(_plain(batch).drop_columns(["feedback_offsets"]))) for batch in batches])
    weights = {kind: reward.weight for kind, reward in SETTINGS.reward.kinds.items()}
    pages = (
        frame.group_by("source_offset", maintain_order=True)
        .agg(
            pl.col("request_id", "user_id", "ts_ms", "policy", "model_version", "left", "exposure").first(),
            *(pl.col(f"label_{kind}").sum() for kind in KINDS),
            pl.col("label_delay_ms").is_not_null().sum().alias("feedback_count"),
            pl.col("feedback_arrival_ms").max(),
        )
        .sort("user_id", "ts_ms", "request_id")
    )
    following = pl.col("ts_ms").shift(-1).over("user_id")
    went_on = (~pl.col("left") & (following - pl.col("ts_ms") <= SETTINGS.session_gap_ms)).fill_null(False)
    failed = (pl.col("label_click") + pl.col("label_pay")) == 0
    rule = SETTINGS.reward
    pages = pages.with_columns(went_on=went_on, failed=failed)
    pages = pages.with_columns(session=(~pl.col("went_on").shift(1, fill_value=False)).cum_sum())
    pages = pages.with_columns(
        session_id=pl.col("request_id").first().over("session"),
        step=pl.int_range(pl.len()).over("session"),
        done=~pl.col("went_on"),
        next_exposure=pl.when("went_on").then(pl.col("exposure").shift(-1)),
        reward=sum(weight * pl.col(f"label_{kind}").cast(pl.Float32) for kind, weight in weights.items())
        - pl.when(pl.col("failed") & pl.col("went_on")).then(rule.penalty_no_conversion).otherwise(0.0)
        - pl.when(pl.col("failed") & ~pl.col("went_on")).then(rule.penalty_left).otherwise(0.0),
    )
    run = Run(time.perf_counter() - wall_s, time.process_time() - cpu_s)
    names = ("request_id", "session_id", "step", "reward", "done", "next_exposure")
    for request_id, session_id, step, reward, done, exposure in zip(*(pages[name].to_list() for name in names), strict=True):
        run.rows[request_id] = (session_id, step, reward, done, exposure is not None)
    return run


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    place = batch.schema.get_field_index("exposure")
    return batch.set_column(place, "exposure", batch["exposure"].cast(pa.binary()))


def _rows(batches: list[pa.RecordBatch]) -> dict[str, Row]:
    names = ("request_id", "session_id", "step", "reward", "done", "next_exposure")
    rows = (row for batch in batches for row in zip(*(batch[name].to_pylist() for name in names), strict=True))
    return {
        request_id: (session_id, step, reward, done, exposure is not None) for request_id, session_id, step, reward, done, exposure in rows
    }


def mismatches(found: dict[str, Row], expected: dict[str, Row]) -> int:
    """Transitions that one has and the other has not, or has otherwise."""
    wrong = len(found.keys() ^ expected.keys())
    for request_id in found.keys() & expected.keys():
        ours, theirs = found[request_id], expected[request_id]
        wrong += (*ours[:2], *ours[3:]) != (*theirs[:2], *theirs[3:]) or abs(ours[2] - theirs[2]) > 1e-4
    return wrong


def memory(sessions: int) -> dict[str, float]:
    """What an open session takes beyond its page's message and ids: as many sessions of one page each as asked for."""
    log = list(messages(sessions, pages_a_session=1, message_ms=1))
    with tempfile.TemporaryDirectory() as folder:
        store = PartitionStore(Path(folder) / "0")
        step = PartitionSessions(SETTINGS.model_copy(update={"session_gap_ms": 1 << 40, "dedup_horizon_ms": 0}), 0, store)
        gc.collect()
        before_mb, payload = 0.0, 0
        for offset, message in enumerate(log):
            batch = decode_batch(message.value, "samples")[0]
            outcome = step.apply(SAMPLES, [Record(offset, 0, message.value)], 0)
            store.write(outcome.changes, {SAMPLES: offset + 1}, outcome.counts)
            if offset < len(log) // 4:  # write buffers and pools have filled by then
                before_mb, start = _resident_mb(), step.gauges()["open_sessions"]
                continue
            payload += sum(map(len, batch["exposure"].dictionary.to_pylist()))
            payload += sum(len(text) for name in ("request_id", "user_id") for text in set(batch[name].to_pylist()))
        grown = step.gauges()["open_sessions"] - start
        taken = (_resident_mb() - before_mb) * 1e6
        store.close()
    return {"open_sessions": grown, "payload_bytes": round(payload / grown), "bytes_beyond_payload": round((taken - payload) / grown)}


def parquet(log: list[Message], folder: Path, build: Build) -> dict[str, Any]:
    """The same samples from a Parquet file, written by the sink's own code, into Parquet transitions."""
    groups = [log[start : start + ROW_GROUP_MESSAGES] for start in range(0, len(log), ROW_GROUP_MESSAGES)]
    batches = ([decode_batch(message.value, "samples")[0] for message in group] for group in groups)
    schema = stored(sample_schema(KINDS))
    (folder / "samples.parquet").write_bytes(as_file((as_table(group, schema) for group in batches), schema))
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    samples = ds.dataset([str(folder / "samples.parquet")], format="parquet")
    build(samples, SETTINGS, folder / "transitions")
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    built = _rows(ds.dataset(folder / "transitions", format="parquet").to_table().to_batches())
    return {"wall_s": wall_s, "cpu_s": cpu_s, "rows": built}


def _resident_mb() -> float:
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def main(samples: int, rounds: int, sessions: int, build: Build) -> dict[str, Any]:
    """Medians over rounds in turns. `build` makes Parquet transitions of a data set, in a new folder. Raises ValueError without polars."""
    if find_spec("polars") is None:
        raise ValueError(NO_POLARS)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:  # what the other parts leave in the allocator would hide it
        memory_of_sessions = fresh.submit(memory, sessions).result()
    log = list(messages(samples // 10))
    rows = sum(message.rows for message in log)
    runs: dict[str, list[Run]] = {"headrace": [], "polars": []}
    files: list[dict[str, Any]] = []
    wrong = 0
    gc.collect()
    gc.freeze()  # the log is no part of either
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            ours, theirs = run_headrace(log, folder / "state"), run_polars(log)
            built = parquet(log, folder, build)
        wrong += mismatches(ours.rows, theirs.rows) + mismatches(built.pop("rows"), theirs.rows)
        files.append(built)
        for name, run in (("headrace", ours), ("polars", theirs)):
            run.rows = {}
            runs[name].append(run)
    gc.unfreeze()
    of = {name: [rows / run.cpu_s for run in found] for name, found in runs.items()}
    return {
        "benchmark": "experience",
        "machine": {"python": platform.python_version(), "cpus": os.cpu_count(), "load_1min": os.getloadavg()[0]},
        "samples": rows,
        "rounds": rounds,
        "samples_per_s": round(statistics.median(of["headrace"])),
        "samples_per_s_wall": round(statistics.median(rows / run.wall_s for run in runs["headrace"])),
        "polars_samples_per_s": round(statistics.median(of["polars"])),
        "polars_samples_per_s_wall": round(statistics.median(rows / run.wall_s for run in runs["polars"])),
        "ratio_to_polars": round(statistics.median(a / b for a, b in zip(of["headrace"], of["polars"], strict=True)), 3),
        "peak_rss_mb": round(max(run.peak_mb for run in runs["headrace"]), 1),
        "rss_growth_in_second_half_mb": round(statistics.median(run.second_half_mb for run in runs["headrace"]), 1),
        "parquet_samples_per_s": round(statistics.median(rows / run["cpu_s"] for run in files)),
        "parquet_samples_per_s_wall": round(statistics.median(rows / run["wall_s"] for run in files)),
        **memory_of_sessions,
        "mismatches": wrong,
    }


def show(report: dict[str, Any]) -> None:
    """The report as a table on standard error."""
    table = Table("figure", title=f"the experience collector: {report['samples']:,} samples, median of {report['rounds']} rounds, CPU time")
    table.add_column("value", justify="right")
    for name in [key for key in report if key not in ("benchmark", "machine", "samples", "rounds")]:
        table.add_row(name, f"{report[name]:,}")
    Console(stderr=True).print(table)

"""The Parquet sink beside its bare floor: the same record batches from one broker into local Parquet files, in turns.

Headrace's run is the worker process as users start it: Faust, journals, fsync, each row exactly once. The floor is the least that does
the same work: a confluent-kafka loop that decodes the batches and hands them to a ParquetWriter (zstd, files and row groups of about the
same size); it keeps no offsets, recognises nothing that was delivered twice, parts no hours, and what a crash leaves is lost or torn. Both
read all partitions in one process. The clock runs from the first partition that is opened until the last row counts: starting Python and
joining the group are not in it (in CPU time and memory they are). The rows are counted in every round of both.
"""

import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from rich.console import Console
from rich.table import Table

from headrace.settings import ConfigError
from joiner.sink.dataset import open_samples, read_journals
from joiner.sink.settings import SinkSettings, StorageOptions
from joiner.sink.target import Target, open_target
from schemas.codec import decode_batch, encode_batch, encode_json
from schemas.exposure import ExposedItem, Exposure, FeatureValue
from schemas.sample import sample_schema
from schemas.topics import SAMPLES

PARTITIONS = 4
START_MS = 1_700_000_000_000
PAGE_INTERVAL_MS = 24
"""300,000 pages are two hours: files of each partition in three folders."""
BATCH_PAGES = 2_000
KINDS = ("click", "pay", "like", "dwell")
TIMEOUT_S = 300.0


StartBroker = Callable[[Path, int], AbstractContextManager[str]]
"""Given its folder and the topics' partition count: a broker with the topics, and its address."""


class Run(NamedTuple):
    """What one run took: wall time, and of its process the CPU time and the largest resident memory."""

    wall_s: float
    cpu_s: float
    peak_rss_mb: float = 0.0


def batches(pages: int, items_a_page: int, seed: int = 1) -> Iterator[pa.RecordBatch]:
    """Batches as the joiner sends them, of messages of about 410 bytes (a page with one item)."""
    chance = random.Random(seed)
    for first in range(0, pages, BATCH_PAGES):
        numbers = range(first, min(first + BATCH_PAGES, pages))
        yield _batch([_page(number, items_a_page, chance) for number in numbers], first)


def _page(number: int, items: int, chance: random.Random) -> Exposure:
    shown = [ExposedItem(f"i-{chance.randrange(10**6):06d}-{place}", place, {"click": chance.random()}) for place in range(items)]
    recent: FeatureValue = [f"i-{chance.randrange(10**6):06d}" for _ in range(4)]
    return Exposure(
        request_id=f"r-{number:08d}",
        user_id=f"u-{chance.randrange(10**6):06d}",
        ts_ms=START_MS + number * PAGE_INTERVAL_MS,
        policy="fusion",
        model_version="fusion-000012",
        state={"hour": 13.0, "age_days": chance.random(), "city": "hz", "recent": recent},
        action=[chance.random()],
        items=shown,
    )


def _batch(pages: list[Exposure], first_offset: int) -> pa.RecordBatch:
    rows = [(place, page, item) for place, page in enumerate(pages) for item in page.items]
    columns: dict[str, list[Any]] = {
        "request_id": [page.request_id for _, page, _ in rows],
        "user_id": [page.user_id for _, page, _ in rows],
        "item_id": [item.item_id for _, _, item in rows],
        "position": [item.position for _, _, item in rows],
        "page_size": [len(page.items) for _, page, _ in rows],
        "ts_ms": [page.ts_ms for _, page, _ in rows],
        "policy": [page.policy for _, page, _ in rows],
        "model_version": [page.model_version for _, page, _ in rows],
        **{f"label_{kind}": [float(place % 10 == 0) for place, _, _ in rows] for kind in KINDS},
        "label_delay_ms": [1_000 if place % 10 == 0 else None for place, _, _ in rows],
        "feedback_arrival_ms": [page.ts_ms if place % 10 == 0 else None for place, page, _ in rows],
        "left": [False] * len(rows),
        "closed_by": ["window"] * len(rows),
        "source_partition": [first_offset // BATCH_PAGES % PARTITIONS] * len(rows),
        "source_offset": [first_offset + place for place, _, _ in rows],
        "feedback_offsets": [[place] if place % 10 == 0 else [] for place, _, _ in rows],
    }
    schema = sample_schema(KINDS)
    arrays = [pa.array(columns[name], schema.field(name).type) for name in schema.names[:-1]]
    messages = pa.array([encode_json(page) for page in pages], pa.binary())
    exposure = pa.DictionaryArray.from_arrays(pa.array([place for place, _, _ in rows], pa.int32()), messages)
    return pa.RecordBatch.from_arrays([*arrays, exposure], schema=schema)


def fill(broker: str, pages: int, items_a_page: int) -> int:
    """Put the batches into the topic. Gives their rows."""
    producer = Producer({"bootstrap.servers": broker, "message.max.bytes": 12 << 20, "log_level": 0})
    rows = 0
    for number, batch in enumerate(batches(pages, items_a_page)):
        producer.produce(SAMPLES, encode_batch(batch, START_MS), partition=number % PARTITIONS)
        producer.poll(0)
        rows += batch.num_rows
    if producer.flush(60):
        raise ConfigError("the broker did not take all batches")
    return rows


def run_headrace(broker: str, folder: Path, rows: int, number: int, web_port: int) -> Run:
    """`headrace worker sink`, in a group of its own."""
    uri = folder / f"headrace-{number}"
    target = open_target(str(uri), StorageOptions())
    environment = {
        **os.environ,
        "HEADRACE_STREAM_BROKER": broker,
        "HEADRACE_STREAM_PARTITIONS": str(PARTITIONS),
        "HEADRACE_STREAM_STATE_DIR": str(folder / "state"),
        "HEADRACE_STREAM_GROUP_PREFIX": f"bench-{number}",
        "HEADRACE_SINK_URI": str(uri),
        "HEADRACE_SINK_FLUSH_S": "0.5",
    }
    command = [sys.executable, "-m", "headrace", "worker", "sink", "--web-port", str(web_port)]
    with (folder / "sink.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not any(uri.glob("_headrace/*/*.json")):
            _require_alive(process, folder, deadline_s)
        begun_s = time.monotonic()
        while _rows_there(target) < rows:
            _require_alive(process, folder, deadline_s)
        wall_s = time.monotonic() - begun_s
        found = open_samples(str(uri)).count_rows()
        if found != rows:
            raise AssertionError(f"{found} rows, not {rows}")
    finally:
        process.send_signal(signal.SIGTERM)
        _, _, used = os.wait4(process.pid, 0)
    return Run(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1_000)


def _require_alive(process: "subprocess.Popen[bytes]", folder: Path, deadline_s: float) -> None:
    if process.poll() is not None or time.monotonic() > deadline_s:
        raise ConfigError(f"the sink did not finish: see {folder / 'sink.log'}")
    time.sleep(0.05)


def _rows_there(target: Target) -> int:
    """As the journals say, for the little that costs: both processes share the cores."""
    try:
        journals = [journal for _, journal in read_journals(target).values()]
    except FileNotFoundError:
        return 0
    return sum(number for journal in journals for name, _, number in journal.counts if name == "out")


def run_floor(broker: str, folder: Path, rows: int, number: int) -> Run:
    """A consumer and a ParquetWriter a partition."""
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "floor", "enable.auto.commit": False, "log_level": 0})
    consumer.assign([TopicPartition(SAMPLES, partition, 0) for partition in range(PARTITIONS)])
    flush_bytes = SinkSettings.model_fields["flush_bytes"].default
    waiting: dict[int, list[pa.RecordBatch]] = {partition: [] for partition in range(PARTITIONS)}
    where = folder / f"floor-{number}"
    where.mkdir()
    begun_s, used_s, taken, files = time.monotonic(), time.process_time(), 0, 0

    def write(partition: int) -> None:
        nonlocal files
        if waiting[partition]:
            pq.write_table(pa.Table.from_batches(waiting[partition]), where / f"{files}.parquet", compression="zstd")
            waiting[partition], files = [], files + 1

    while taken < rows:
        for message in consumer.consume(100, 0.1):
            if (error := message.error()) is not None:
                raise KafkaException(error)
            batch, _ = decode_batch(message.value() or b"", SAMPLES)
            partition = message.partition() or 0
            waiting[partition].append(batch)
            taken += batch.num_rows
            if sum(part.nbytes for part in waiting[partition]) >= flush_bytes:
                write(partition)
    for partition in waiting:
        write(partition)
    run = Run(time.monotonic() - begun_s, time.process_time() - used_s)
    consumer.close()
    found = sum(pq.read_metadata(path).num_rows for path in where.iterdir())
    if found != rows:
        raise AssertionError(f"{found} rows, not {rows}")
    return run


def main(rows: int, rounds: int, start_broker: StartBroker, web_port: int) -> dict[str, Any]:
    """Both, alternating, for pages of one item and of ten; medians."""
    report: dict[str, Any] = {"machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"}
    for items in (1, 10):
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name, start_broker(Path(name) / "broker", PARTITIONS) as broker:
            sent = fill(broker, rows // items, items)
            runs: dict[str, list[Run]] = {"headrace": [], "floor": []}
            for number in range(rounds):
                runs["headrace"].append(run_headrace(broker, Path(name), sent, number, web_port))
                runs["floor"].append(run_floor(broker, Path(name), sent, number))
        rows_per_s = {who: statistics.median(sent / run.wall_s for run in found) for who, found in runs.items()}
        report[f"items_{items}"] = {
            "rows": sent,
            "rows_per_s": round(rows_per_s["headrace"]),
            "floor_rows_per_s": round(rows_per_s["floor"]),
            "ratio_to_floor": round(
                statistics.median(floor.wall_s / ours.wall_s for ours, floor in zip(runs["headrace"], runs["floor"], strict=True)), 2
            ),
            "cpu_s": round(statistics.median(run.cpu_s for run in runs["headrace"]), 2),
            "peak_rss_mb": round(max(run.peak_rss_mb for run in runs["headrace"])),
        }
    return report


def show(report: dict[str, Any]) -> None:
    """The report as a table."""
    table = Table(title=f"samples from the broker into Parquet files ({report['machine']})")
    for column in ("items a page", "rows", "rows/s", "floor rows/s", "ratio", "CPU s", "peak MB"):
        table.add_column(column, justify="right")
    for items in (1, 10):
        found = report[f"items_{items}"]
        table.add_row(
            str(items),
            f"{found['rows']:,}",
            f"{found['rows_per_s']:,}",
            f"{found['floor_rows_per_s']:,}",
            f"{found['ratio_to_floor']:.2f}",
            f"{found['cpu_s']:.1f}",
            f"{found['peak_rss_mb']:,}",
        )
    Console().print(table)

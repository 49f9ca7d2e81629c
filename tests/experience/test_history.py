"""Transitions from Parquet files are those that the live collector sends, whatever lies in which file."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from experience_log import Life, Shown, message, offsets_of_page, record, sample_batch
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from rich.console import Console
from test_sessions_reference import INSTANCES, logs, random_logs, reference_settings, seen, should

from experience.history import END_MS, History, columns_needed
from experience.settings import ExperienceSettings
from headrace.settings import ConfigError
from headrace.transitions import build, transitions_command
from joiner.sink.metrics import SinkMetrics
from joiner.sink.settings import SinkSettings, StorageOptions
from joiner.sink.target import open_target
from joiner.sink.writer import Chunk, PartitionWriter

QUIET = Console(file=io.StringIO())
HOUR_MS = 3_600_000


def plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    place = batch.schema.get_field_index("exposure")
    return batch.set_column(place, "exposure", batch["exposure"].cast(pa.binary()))


def by_id(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert len({row["transition_id"] for row in rows}) == len(rows)
    return {row["transition_id"]: seen(row) for row in rows}


@random_logs
@given(st.data())
def test_pages_cut_anywhere_into_batches_give_the_transitions_of_the_reference(data: Any) -> None:
    log, of = data.draw(logs()), reference_settings(data.draw(INSTANCES))
    batch = plain(sample_batch(log)).select(columns_needed(("click", "pay")))
    ends = sorted({*data.draw(st.lists(st.integers(0, len(batch)), max_size=6)), len(batch)})
    parts = [batch.slice(start, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    times = [min(part["ts_ms"].to_pylist(), default=END_MS) for part in parts] + [END_MS]
    promises = [min(times[number + 1 :]) for number in range(len(parts))]
    history = History(("click", "pay"), of)
    rows = [row for built in history.transitions(zip(parts, promises, strict=True)) for row in built.to_pylist()]
    assert by_id(rows) == should(log, of)
    assert history.counts["incomplete"] == 0
    assert (history.counts["pages"], history.counts["transitions"]) == (len(log), len(rows))


def test_a_page_whose_rows_never_come_is_closed_by_time_and_counted() -> None:
    batch = plain(sample_batch([Shown("a", "u", 1000), Shown("b", "u", 1001), Shown("c", "u", 5000)])).select(
        columns_needed(("click", "pay"))
    )
    history = History(("click", "pay"), reference_settings())
    rows = [row for built in history.transitions([(batch.slice(0, 3), 4000), (batch.slice(4), END_MS)]) for row in built.to_pylist()]
    assert [row["request_id"] for row in rows] == ["a", "b", "c"]
    assert history.counts["incomplete"] == 1


def in_parquet(pages: list[Shown], path: Path, rows_a_group: int) -> None:
    pq.write_table(pa.Table.from_batches([plain(sample_batch(pages))]), path, row_group_size=rows_a_group)


def test_row_groups_are_read_by_their_oldest_row_whatever_the_files_are_called(tmp_path: Path) -> None:
    of = reference_settings(("td1", "mc"))
    log = [Shown(f"r{number:03d}", f"u{number % 3}", 1000 + 4 * number) for number in range(200)]
    for name, pages in (("a", log[120:]), ("b", log[:50]), ("c", log[50:120])):
        in_parquet(pages, tmp_path / f"{name}.parquet", rows_a_group=7)
    samples = ds.dataset(sorted(map(str, tmp_path.iterdir())), format="parquet")
    counts = build(samples, of, tmp_path / "out", QUIET)
    assert by_id(ds.dataset(tmp_path / "out").to_table().to_pylist()) == should(log, of)
    assert counts == {"samples": 400, "pages": 200, "transitions": 400}


def test_the_command_builds_from_what_the_sink_wrote_what_the_live_collector_sends(tmp_path: Path) -> None:
    of = ExperienceSettings(session_gap_ms=HOUR_MS)
    log = [
        Shown(f"r{number:03d}", f"u{number % 5}", HOUR_MS * 400_000 + number * 600_000, ((float(number % 2), 0.0),)) for number in range(60)
    ]
    cuts = [log[start : start + 7] for start in range(0, len(log), 7)]
    records = []
    for offset, pages in enumerate(cuts):
        records.append(record(offset, message([*pages], pages[0].ts_ms)))
    life = Life(of)
    for one in records:
        life.deliver(one)
    life.end()
    target = open_target(str(tmp_path / "samples"), StorageOptions())
    sink = PartitionWriter(3, target, SinkSettings(uri="nowhere"), SinkMetrics(CollectorRegistry()))
    sink.open("", 0)
    chunk = Chunk(0, 0)
    sink.take(chunk, records, 0)
    sink.flush(chunk, 0)
    counts = transitions_command(str(tmp_path / "samples"), tmp_path / "out", of, StorageOptions(), QUIET)
    assert counts["transitions"] == 60
    ours = by_id(ds.dataset(tmp_path / "out").to_table().to_pylist())
    assert ours == by_id(life.rows())


def test_a_kind_that_a_file_does_not_have_earns_nothing_there(tmp_path: Path) -> None:
    in_parquet([Shown("a", "u", 1000, ((1.0, 2.0),))], tmp_path / "new.parquet", 10)
    old = plain(sample_batch([Shown("b", "u", 1001, ((1.0,),))], ("click",)))
    pq.write_table(pa.Table.from_batches([old]), tmp_path / "old.parquet")
    schema = pa.unify_schemas([pq.read_schema(tmp_path / name) for name in ("new.parquet", "old.parquet")])
    samples = ds.dataset([str(tmp_path / name) for name in ("new.parquet", "old.parquet")], schema=schema, format="parquet")
    build(samples, ExperienceSettings(), tmp_path / "out", QUIET)
    rows = ds.dataset(tmp_path / "out").to_table().sort_by("request_id").to_pylist()
    assert [(row["reward_click"], row["reward_pay"]) for row in rows] == [(1.0, 20.0), (1.0, 0.0)]


@pytest.mark.parametrize("newer", [[], [Shown("b", "u", 1001, ((1.0, 2.0), (0.0, 0.0)))]])
def test_of_files_of_samples_version_1_no_feedback_is_known(tmp_path: Path, newer: list[Shown]) -> None:
    old = plain(sample_batch([Shown("a", "u", 1000, ((1.0, 2.0),))])).drop_columns(["feedback_offsets"])
    pq.write_table(pa.Table.from_batches([old]), tmp_path / "old.parquet")
    if newer:
        in_parquet(newer, tmp_path / "new.parquet", 10)
    schema = pa.unify_schemas([pq.read_schema(path) for path in sorted(tmp_path.iterdir())])
    samples = ds.dataset(sorted(map(str, tmp_path.iterdir())), schema=schema, format="parquet")
    build(samples, ExperienceSettings(), tmp_path / "out", QUIET)
    rows = ds.dataset(tmp_path / "out").to_table().sort_by("request_id").to_pylist()
    assert [(row["reward"], row["feedback_offsets"]) for row in rows] == [(21.0, []), *((21.0, offsets_of_page(page)) for page in newer)]


def test_nothing_there_and_an_out_that_is_not_empty_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no samples"):
        transitions_command(str(tmp_path / "empty"), tmp_path / "out", ExperienceSettings(), StorageOptions(), QUIET)
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "x").write_text("")
    with pytest.raises(ConfigError, match="is not an empty folder: name another one"):
        transitions_command(str(tmp_path / "empty"), tmp_path / "out", ExperienceSettings(), StorageOptions(), QUIET)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

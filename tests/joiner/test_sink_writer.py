"""What the sink's writer refuses, recognises and remembers, and what a reader is told."""

from collections import Counter as Multiset
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from sink_samples import HOUR_MS, NOW_MS, START_MS, Page, local, message, read, run, samples, settings, tidy, writer

from headrace.settings import ConfigError, load
from headrace.step import Record
from joiner.sink.dataset import _nothing_moved, open_samples, part_of, read_journals
from joiner.sink.journal import FROZEN_MS, FileName, Journal, Version
from joiner.sink.settings import SinkSettings
from joiner.sink.target import Target
from joiner.sink.writer import Chunk, PartitionWriter
from schemas.codec import encode_batch


def test_files_of_an_old_and_a_new_schema_are_read_together(tmp_path: Path) -> None:
    run(local(tmp_path), [message(0, Page(0))], settings())
    run(local(tmp_path), [message(0, Page(0)), message(1, Page(1), kinds=("click", "pay"))], settings(compact_after_s=1e6))
    run(local(tmp_path), [message(0, Page(5, START_MS + HOUR_MS), kinds=("pay",), partition=1)], settings(), partition=1)

    dataset = open_samples(str(tmp_path))

    table = dataset.to_table().sort_by([("source_offset", "ascending"), ("position", "ascending")])
    assert table["label_pay"].to_pylist() == [None, None, 0.0, 1.0, 0.0, 1.0]
    assert table["label_click"].to_pylist() == [0.0, 1.0, 0.0, 1.0, None, None]
    assert table["date"].to_pylist() == ["2024-10-04"] * 6
    assert table["hour"].to_pylist() == [0, 0, 0, 0, 1, 1]
    assert dataset.to_table(filter=(ds.field("date") == "2024-10-04") & (ds.field("hour") == 1)).num_rows == 2


def retyped(offset: int) -> Record:
    batch = samples([Page(9)])
    place = batch.schema.names.index("label_click")
    schema = batch.schema.set(place, pa.field("label_click", pa.int64()))
    columns = [*batch.columns[:place], pa.array([0, 1]), *batch.columns[place + 1 :]]
    return Record(offset, NOW_MS, encode_batch(pa.RecordBatch.from_arrays(columns, schema=schema), 0))


def test_a_retyped_column_is_refused_at_once_also_after_a_restart(tmp_path: Path) -> None:
    run(local(tmp_path), [message(0, Page(0))], settings())
    sink = writer(local(tmp_path), settings())
    sink.open("", NOW_MS)

    with pytest.raises(ConfigError, match="column label_click is int64, but float in the files that are there: a column keeps its type"):
        sink.take(Chunk(1, 1), [retyped(1)], NOW_MS)


def take(sink: PartitionWriter, *records: Record) -> Chunk:
    chunk = Chunk(records[0].offset, records[0].offset)
    sink.take(chunk, records, NOW_MS)
    return chunk


def nulls(offset: int) -> Record:
    batch = samples([Page(9)])
    place = batch.schema.names.index("item_id")
    schema = batch.schema.set(place, pa.field("item_id", pa.string()))
    columns = [*batch.columns[:place], pa.array(["a", None]), *batch.columns[place + 1 :]]
    return Record(offset, NOW_MS, encode_batch(pa.RecordBatch.from_arrays(columns, schema=schema), 0))


def without_a_column(offset: int) -> Record:
    batch = samples([Page(9)])
    return Record(offset, NOW_MS, encode_batch(batch.drop_columns(["source_offset"]), 0))


def of_another_topic(offset: int) -> Record:
    batch = samples([Page(9)]).replace_schema_metadata({"headrace.schema": "transitions", "headrace.version": "1"})
    return Record(offset, NOW_MS, encode_batch(batch, 0))


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (Record(3, NOW_MS, b"no batch"), "not a record batch of samples"),
        (Record(3, NOW_MS, b""), "not a record batch of samples"),
        (of_another_topic(3), "expected a batch of samples version 2, got transitions version 1"),
        (without_a_column(3), "a batch without source_offset, or with nulls there"),
        (nulls(3), "a batch without item_id, or with nulls there"),
    ],
)
def test_a_message_that_is_no_batch_of_samples_is_a_dead_letter(tmp_path: Path, record: Record, why: str) -> None:
    sink = writer(local(tmp_path), settings())
    sink.open("", NOW_MS)
    chunk = Chunk(3, 3)

    (letter,) = sink.take(chunk, [record, message(4, Page(0))], NOW_MS)
    sink.flush(chunk, NOW_MS)

    assert why in letter.detail
    assert (letter.stage, letter.reason, letter.source_topic, letter.source_offset) == ("sink", "malformed", "samples", 3)
    assert sink.journal.next_offset == 5
    assert counts(sink) == {("in", "samples"): 3, ("rejected", "malformed"): 1, ("out", "parquet"): 2}


def counts(sink: PartitionWriter) -> dict[tuple[str, str], int]:
    return {(name, label): number for name, label, number in sink.journal.counts}


def test_counts_go_on_after_a_restart_and_offsets_without_rows_are_covered(tmp_path: Path) -> None:
    run(local(tmp_path), [message(0, Page(0))], settings())
    again = [message(1, Page(0)), message(2, Page(0), Page(1))]
    sink = run(local(tmp_path), again, settings(), a_chunk=1)

    assert counts(sink) == {("in", "samples"): 8, ("out", "parquet"): 4, ("ignored", "duplicate"): 4}
    assert sink.journal.next_offset == 3
    assert read(tmp_path) == Multiset({(0, "a"): 1, (0, "b"): 1, (1, "a"): 1, (1, "b"): 1})


@pytest.mark.parametrize(("horizon_rows", "rows"), [(1_000, 20), (4, 22), (0, 22)])
def test_pages_delivered_again_are_recognised_within_the_horizon(tmp_path: Path, horizon_rows: int, rows: int) -> None:
    chosen = settings(dedup_horizon_rows=horizon_rows, compact_after_s=1e6)
    run(local(tmp_path), [message(number, Page(number)) for number in range(10)], chosen, a_chunk=1)

    run(local(tmp_path), [message(10, Page(0))], chosen)

    assert read(tmp_path).total() == rows


def test_hours_that_somebody_removed_are_gone_and_nothing_else(tmp_path: Path) -> None:
    old, new = Page(0), Page(1, START_MS + HOUR_MS)
    run(local(tmp_path), [message(0, old, new)], settings(compact_after_s=1e6))
    for path in tmp_path.glob("date=2024-10-04/hour=00/*"):
        path.unlink()

    sink = run(local(tmp_path), [message(1, Page(2, START_MS + HOUR_MS))], settings())
    tidy(sink, NOW_MS)

    assert read(tmp_path) == Multiset([*new.rows, *Page(2).rows])


def test_a_target_of_another_topic_is_refused(tmp_path: Path) -> None:
    sink = run(local(tmp_path), [message(0, Page(0))], settings())
    sink.open("first", NOW_MS)

    with pytest.raises(ConfigError, match=r"holds rows of an earlier topic samples .* name another sink.uri"):
        writer(local(tmp_path), settings()).open("second", NOW_MS)
    other = settings().model_copy(update={"topic": "other-samples"})
    with pytest.raises(ConfigError, match=r"setting sink.topic = 'other-samples': .* holds samples; name another sink.uri"):
        writer(local(tmp_path), other).open("first", NOW_MS)
    writer(local(tmp_path), settings()).open("first", NOW_MS)
    writer(local(tmp_path), settings()).open("", NOW_MS)  # a broker without ids


def test_a_journal_that_is_damaged_stops_the_sink_and_the_reader(tmp_path: Path) -> None:
    run(local(tmp_path), [message(0, Page(0))], settings())
    (journal,) = tmp_path.glob("_headrace/0/*.json")
    journal.write_text("torn")

    with pytest.raises(ConfigError, match="is not readable"):
        writer(local(tmp_path), settings()).open("", NOW_MS)
    with pytest.raises(ConfigError, match="is not readable"):
        open_samples(str(tmp_path))


def test_a_reader_is_told_that_nothing_is_there_or_that_a_journal_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no samples: has the sink written there"):
        open_samples(str(tmp_path))

    run(local(tmp_path), [message(0, Page(0))], settings())
    run(local(tmp_path), [message(0, Page(7), partition=1)], settings(), partition=1)
    for journal in tmp_path.glob("_headrace/1/*.json"):
        journal.unlink()
    with pytest.raises(ConfigError, match="no journal of partition 1 below _headrace: it was removed"):
        open_samples(str(tmp_path))


def test_files_that_others_put_there_are_left_alone_and_not_read(tmp_path: Path) -> None:
    run(local(tmp_path), [message(0, Page(0))], settings(compact_after_s=1e6))
    other = next(tmp_path.glob("date=*/hour=*")) / "report.parquet"
    other.write_bytes(b"of somebody else")

    sink = run(local(tmp_path), [message(1, Page(1))], settings())
    tidy(sink, NOW_MS + 2 * FROZEN_MS)

    assert read(tmp_path).total() == 4
    assert other.read_bytes() == b"of somebody else"


def path_of(first: int, last: int) -> str:
    return f"date=2024-10-04/hour=00/{FileName(0, first, last, '00000001aaaa').name}"


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        (path_of(0, 5), True),
        (path_of(5, 10), True),
        (path_of(10, 12), False),  # of a flush after this journal
        (path_of(3, 4), False),  # absent
        ("_headrace/0/00000001-aaaa-00000001.json", False),
        ("date=2024-10-04/hour=00/other.parquet", False),
    ],
)
def test_a_file_counts_if_the_journal_covers_it_and_does_not_name_it_absent(path: str, counts: bool) -> None:
    journal = Journal(topic="samples", next_offset=10, absent={path_of(3, 4): 7})

    assert part_of(path, {0: (Version(1, "aaaa", 1), journal)}) == counts


@pytest.mark.parametrize(
    ("version", "changed", "same"),
    [
        (Version(1, "aaaa", 1), {}, True),
        (Version(1, "aaaa", 9), {"next_offset": 99}, True),
        (Version(1, "aaaa", 9), {"merges": 1}, False),
        (Version(2, "aaaa", 1), {}, False),
        (Version(1, "bbbb", 1), {}, False),
    ],
)
def test_a_listing_is_taken_again_if_a_merge_or_another_owner_came_between(version: Version, changed: dict[str, int], same: bool) -> None:
    before = {0: (Version(1, "aaaa", 1), Journal(topic="samples"))}

    assert _nothing_moved(before, {0: (version, Journal(topic="samples", **changed))}) == same  # type: ignore[arg-type]
    assert not _nothing_moved(before, {})


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> list[int]:
    """Something happens between a reader's first look at the journals and its listing. Gives a list that grows with each look."""
    looks: list[int] = []

    def look(target: Target) -> object:
        found = read_journals(target)
        looks.append(len(looks))
        if len(looks) == 1:
            happens()
        return found

    monkeypatch.setattr("joiner.sink.dataset.read_journals", look)
    return looks


def test_a_merge_during_the_listing_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = run(local(tmp_path), [message(number, Page(number)) for number in range(4)], settings(compact_after_s=1.0))
    looks = meanwhile(monkeypatch, lambda: tidy(sink, NOW_MS + 1_000))

    assert read(tmp_path).total() == 8
    assert len(looks) == 4


def test_a_flush_during_the_listing_is_not_in_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = run(local(tmp_path), [message(0, Page(0))], settings(compact_after_s=1e6))
    chunk = take(sink, message(1, Page(1)))
    looks = meanwhile(monkeypatch, lambda: sink.flush(chunk, NOW_MS))

    assert read(tmp_path) == Multiset(Page(0).rows)
    assert len(looks) == 2
    assert read(tmp_path).total() == 4


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"topic": "exposures"}, "sink.topic = 'exposures': choose one of samples"),
        ({"uri": ""}, "sink.uri = ''"),
        ({"flush_s": 0}, "sink.flush_s = 0: Input should be greater than 0"),
        ({"s3_endpoint": "minio:9000"}, "sink.s3_endpoint = 'minio:9000'"),
        ({"s3_access_key": "key"}, "s3_access_key and s3_secret_key go together"),
    ],
)
def test_a_wrong_setting_is_one_line(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(SinkSettings, **wrong)

    assert says in str(caught.value)

"""Columns that come and go, hours, shared messages, keys and merges: the pure parts between batches and files."""

from collections import Counter as Multiset

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sink_samples import HOUR_MS, START_MS, Page, samples

from joiner.sink.columns import RetypedError, as_table, by_hour, decode_columns, encode_columns, evolved, parquet, stored
from joiner.sink.compaction import merge, plan_merge
from joiner.sink.dedup import PAGE_KEY, ROW_KEY, SeenKeys, key_columns, key_hashes
from joiner.sink.journal import FileName, hour_folder
from schemas.sample import sample_schema

X = pa.field("x", pa.int64(), nullable=False)
Y = pa.field("y", pa.string(), nullable=False)


@pytest.mark.parametrize(
    ("known", "new", "both"),
    [
        (None, [X], [X]),
        ([X], [X], [X]),
        ([X], [X, Y], [X, Y.with_nullable(True)]),
        ([X, Y], [X], [X, Y.with_nullable(True)]),
        ([X], [X.with_nullable(True)], [X.with_nullable(True)]),
        ([X, Y], [Y, X], [X, Y]),
        ([Y], [pa.field("y", pa.dictionary(pa.int32(), pa.string()), nullable=False)], [Y]),
    ],
)
def test_columns_come_and_go(known: list[pa.Field] | None, new: list[pa.Field], both: list[pa.Field]) -> None:
    found = evolved(known and pa.schema(known), pa.schema(new))

    assert found.equals(pa.schema(both))
    assert decode_columns(encode_columns(found)).equals(found)


def test_a_column_that_is_retyped_is_refused() -> None:
    with pytest.raises(RetypedError, match=r"^column x is double, but int64 in the files that are there$"):
        evolved(pa.schema([Y, X]), pa.schema([pa.field("x", pa.float64())]))


def test_a_new_kind_of_feedback_is_null_in_older_rows() -> None:
    old, new = samples([Page(0)]), samples([Page(1)], kinds=("click", "pay"))
    schema = evolved(evolved(None, old.schema), new.schema)

    table = pq.read_table(pa.BufferReader(parquet([as_table([old, new], schema)], schema)))

    assert table["label_pay"].to_pylist() == [None, None, 0.0, 1.0]
    assert table["label_click"].to_pylist() == [0.0, 1.0, 0.0, 1.0]


def test_a_file_has_the_types_of_the_samples_and_holds_a_page_s_message_once() -> None:
    batches = [samples([Page(number, items=tuple("abcdefghij")) for number in range(first, first + 50)]) for first in (0, 50)]
    schema = evolved(None, batches[0].schema)

    content = parquet([as_table(batches, schema)], schema)

    file = pq.ParquetFile(pa.BufferReader(content))
    assert file.schema_arrow.remove_metadata().equals(stored(sample_schema(("click",))))
    assert file.read()["exposure"].to_pylist()[::10] == [f'{{"request_id": "r{number}"}}'.encode() for number in range(100)]
    column = file.metadata.row_group(0).column(file.schema_arrow.names.index("exposure"))
    messages_bytes = sum(4 + len(f'{{"request_id": "r{number}"}}') for number in range(100))
    assert messages_bytes < column.total_uncompressed_size < 2 * messages_bytes  # 1,000 rows


def test_rows_are_parted_by_the_hour_and_take_along_only_their_own_messages() -> None:
    early, late = Page(0, START_MS), Page(1, START_MS + HOUR_MS)
    folders = by_hour([samples([early, late]), samples([Page(2, START_MS + HOUR_MS - 1)])])

    hour = START_MS // HOUR_MS
    assert list(folders) == [hour_folder(hour), hour_folder(hour + 1)]
    assert [[row for batch in batches for row in batch["source_offset"].to_pylist()] for batches in folders.values()] == [
        [0, 0, 2, 2],
        [1, 1],
    ]
    assert [len(batch["exposure"].dictionary) for batches in folders.values() for batch in batches] == [1, 1, 1]


def test_a_page_is_the_key_of_samples_and_a_row_that_of_other_topics() -> None:
    assert key_columns("samples") == PAGE_KEY
    assert key_columns("pointwise-samples") == ROW_KEY == ("request_id", "source_offset", "item_id", "closed_by")

    batch = samples([Page(0), Page(1)])
    pages, rows = (key_hashes([batch[name] for name in key]).tolist() for key in (PAGE_KEY, ROW_KEY))
    assert pages[0] == pages[1] != pages[2] == pages[3]
    assert len(set(rows)) == 4


def test_keys_are_told_apart_by_every_column_and_by_their_order() -> None:
    values = [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    strings, numbers = pa.array([text for text, _ in values]), pa.array([number for _, number in values])

    hashes = [*key_hashes([strings, numbers]).tolist(), *key_hashes([numbers, strings]).tolist()]
    assert len(set(hashes)) == 8
    assert hashes == [*key_hashes([strings, numbers]).tolist(), *key_hashes([numbers, strings]).tolist()]


def test_the_newest_keys_are_known_and_the_older_ones_forgotten_at_last() -> None:
    seen, rng, horizon = SeenKeys(1_000), np.random.default_rng(0), 1_000
    added: list[int] = []
    for _ in range(200):
        keys = rng.integers(0, 2**63, rng.integers(1, 90), dtype=np.uint64)
        assert not seen.are_known(keys).any()
        seen.add(keys)
        added += keys.tolist()
        assert seen.are_known(np.array(added[-horizon:], np.uint64)).all()

    known = seen.are_known(np.array(added, np.uint64))
    assert horizon <= known.sum() <= 2 * horizon + 90
    assert known[-known.sum() :].all()
    assert len(seen._older) + len(seen._newer) < 25


def test_without_a_horizon_nothing_is_known() -> None:
    seen = SeenKeys(0)
    seen.add(np.array([1], np.uint64))

    assert not seen.are_known(np.array([1], np.uint64)).any()


def named(first: int, last: int, partition: int = 0) -> str:
    return f"h/{FileName(partition, first, last, '00000001aaaa').name}"


@pytest.mark.parametrize(
    ("files", "merged"),
    [
        ([], None),
        ([(named(0, 5), 10)], None),
        ([(named(0, 5), 10), (named(5, 9), 10)], ((0, 9), 2)),
        ([(named(5, 9), 10), (named(0, 5), 10), ("h/other.parquet", 1), (named(0, 3, partition=1), 1)], ((0, 9), 2)),
        ([(named(0, 5), 51), (named(5, 9), 10)], None),
        ([(named(0, 5), 51), (named(5, 9), 10), (named(9, 11), 10)], ((5, 11), 2)),
        ([(named(0, 5), 50), (named(5, 9), 30), (named(9, 11), 21), (named(11, 12), 5)], ((0, 9), 2)),
        ([(named(0, 5), 50), (named(5, 9), 50), (named(9, 11), 50)], ((0, 9), 2)),
        ([(named(0, 9), 10), (named(3, 5), 10)], ((0, 9), 2)),
    ],
)
def test_small_files_of_a_partition_are_merged_in_their_order_as_many_as_fit(
    files: list[tuple[str, int]], merged: tuple[tuple[int, int], int] | None
) -> None:
    plan = plan_merge(files, partition=0, owner="00000002bbbb", file_bytes=100)

    assert (plan is None) == (merged is None)
    if plan is not None and merged is not None:
        (first, last), count = merged
        assert plan.name == f"h/{FileName(0, first, last, '00000002bbbb').name}"
        assert len(plan.originals) == count


def test_a_merge_joins_row_groups_and_columns() -> None:
    contents = []
    for number, kinds in enumerate([("click",), ("click", "pay"), ("pay",)]):
        batch = samples([Page(number)], kinds)
        schema = evolved(None, batch.schema)
        contents.append(parquet([as_table([batch], schema)], schema))

    content, rows = merge(contents)

    file = pq.ParquetFile(pa.BufferReader(content))
    assert rows == file.metadata.num_rows == 6 and file.num_row_groups == 1
    table = file.read()
    assert Multiset(table["source_offset"].to_pylist()) == {0: 2, 1: 2, 2: 2}
    assert table["label_click"].to_pylist() == [0.0, 1.0, 0.0, 1.0, None, None]
    assert table["label_pay"].to_pylist() == [None, None, 0.0, 1.0, 0.0, 1.0]
    assert table["exposure"].to_pylist()[-1] == b'{"request_id": "r2"}'

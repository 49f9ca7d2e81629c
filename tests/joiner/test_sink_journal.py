"""Names, versions and transitions of the sink's journal."""

from typing import Any

import pytest

from joiner.sink.journal import (
    FROZEN_MS,
    RECENT_FILES,
    WRITING,
    FileName,
    Journal,
    Version,
    decode_journal,
    encode_journal,
    end_of_hour_ms,
    hour_folder,
    last_owner,
    newest,
)

A, B, C = "date=2026-01-31/hour=07/a", "date=2026-01-31/hour=07/b", "date=2026-01-31/hour=08/c"
END_OF_HOUR_7_MS = 1_769_846_400_000


@pytest.mark.parametrize(
    ("names", "counts", "owner"),
    [
        ([], None, (0, "")),
        (["00000001-aaaa-00000000.json"], None, (1, "aaaa")),
        (["00000001-aaaa-00000002.json", "00000001-aaaa-00000010.json"], (1, "aaaa", 10), (1, "aaaa")),
        (["00000001-aaaa-00000009.json", "00000002-0000-00000000.json"], (1, "aaaa", 9), (2, "0000")),
        (["00000001-aaaa-00000009.json", "00000002-0000-00000001.json"], (2, "0000", 1), (2, "0000")),
        (["00000002-00ff-00000003.json", "00000002-ff00-00000001.json"], (2, "ff00", 1), (2, "ff00")),
        (["00000001-aaaa-00000003.json.tmp", "notes.txt"], None, (0, "")),
    ],
)
def test_the_highest_version_counts_and_the_highest_claim_owns(names: list[str], counts: Any, owner: tuple[int, str]) -> None:
    assert newest(names) == (counts and Version(*counts))
    assert last_owner(names) == owner


def test_names_sort_as_their_numbers_and_are_read_back() -> None:
    version, file = Version(3, "a1f3", 17), FileName(3, 1_200, 2_400, "00000004a1f3")

    assert version.name == "00000003-a1f3-00000017.json" and Version.of(version.name) == version
    assert file.name == "00003-000000001200-000000002400-00000004a1f3.parquet"
    assert FileName.of(f"{hour_folder(0)}/{file.name}") == file
    assert FileName.of("date=2026-01-31/hour=07/part-0.parquet") is None


@pytest.mark.parametrize(
    ("hour", "folder"),
    [(0, "date=1970-01-01/hour=00"), (491_623, "date=2026-01-31/hour=07"), (-1, "date=1969-12-31/hour=23")],
)
def test_an_hour_has_a_folder_and_an_end(hour: int, folder: str) -> None:
    assert hour_folder(hour) == folder
    assert end_of_hour_ms(folder) == (hour + 1) * 3_600_000


def flushed(journal: Journal, rows: dict[str, int], next_offset: int = 5, horizon_rows: int = 100, now_ms: int = 7) -> Journal:
    return journal.with_files(rows, next_offset, b"columns", [("in", "samples", 3)], horizon_rows, now_ms)


def test_a_file_counts_from_the_version_that_says_so() -> None:
    begun = Journal(topic="samples").with_intent([A, B])
    assert begun.absent == {A: WRITING, B: WRITING} and begun.unfinished() == [A, B] and begun.next_offset == 0

    done = flushed(begun, {A: 10, B: 20})
    assert not done.absent and done.next_offset == 5 and done.recent == [(A, 10), (B, 20)]
    assert done.hours == {"date=2026-01-31/hour=07": 7}
    assert done.merges == 0
    assert decode_journal(encode_journal(done)) == done


def test_merged_files_cease_to_count_when_the_new_one_begins_to() -> None:
    journal = flushed(Journal(topic="samples"), {A: 10, C: 5, B: 20})

    begun = journal.with_intent(["m"], is_merge=True)
    assert begun.absent == {"m": WRITING} and begun.merges == 1

    done = begun.with_merged("m", 30, [A, B], delete_at_ms=50)
    assert done.absent == {A: 50, B: 50}
    assert done.recent == [(C, 5), ("m", 30)]
    assert done.due(49) == [] and done.due(50) == [A, B]
    assert not done.without_deleted([A, B]).absent


def test_files_merged_without_a_keep_are_not_taken_for_unfinished_ones() -> None:
    done = Journal(topic="samples").with_intent(["m"], is_merge=True).with_merged("m", 30, [A], delete_at_ms=0)

    assert done.unfinished() == [] and done.due(1) == [A]


def test_a_new_owner_dooms_what_was_unfinished_until_its_writer_cannot_come_back() -> None:
    journal = Journal(topic="samples", absent={A: WRITING, B: 70})

    taken = journal.taken_over("id", now_ms=100)

    assert taken.absent == {A: 100 + FROZEN_MS, B: 70} and taken.topic_id == "id"
    assert taken.due(100) == [B] and taken.due(100 + FROZEN_MS) == [A, B]


@pytest.mark.parametrize(
    ("rows", "horizon_rows", "kept"),
    [([10, 10, 10], 100, 3), ([10, 10, 10], 20, 2), ([10, 10, 10], 21, 3), ([10, 10, 10], 0, 0), ([1] * 400, 1_000, RECENT_FILES)],
)
def test_the_newest_files_are_remembered_as_many_as_hold_the_horizon(rows: list[int], horizon_rows: int, kept: int) -> None:
    files = {f"date=2026-01-31/hour=07/{number}": count for number, count in enumerate(rows)}

    assert flushed(Journal(topic="samples"), files, horizon_rows=horizon_rows).recent == list(files.items())[len(files) - kept :]


@pytest.mark.parametrize(
    ("written_ms", "now_ms", "quiet"),
    [
        (0, END_OF_HOUR_7_MS - 1, []),
        (END_OF_HOUR_7_MS - 999, END_OF_HOUR_7_MS, []),
        (END_OF_HOUR_7_MS - 1_000, END_OF_HOUR_7_MS, ["date=2026-01-31/hour=07"]),
    ],
)
def test_an_hour_is_merged_when_it_is_over_and_got_no_file_for_a_while(written_ms: int, now_ms: int, quiet: list[str]) -> None:
    journal = flushed(Journal(topic="samples"), {A: 1}, now_ms=written_ms)

    assert journal.quiet_hours(now_ms, quiet_ms=1_000) == quiet
    assert journal.without_hour("date=2026-01-31/hour=07").quiet_hours(now_ms, 0) == []


@pytest.mark.parametrize(("value", "why"), [(b"{}", "topic"), (b"torn", "JSON"), (b'{"topic": "samples", "format": 2}', "format 2")])
def test_a_journal_that_is_not_understood_is_refused(value: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode_journal(value)

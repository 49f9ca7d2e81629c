from pathlib import Path

import msgspec
import pytest
from synthetic_logs import MONDAY_MS, kuairand_row, kuairand_rows, write_kuairand_csv, write_kuairand_parquet

from headrace.logs import kuairand
from headrace.logs.recorded_log import LogEvent, Refusal, find_files
from headrace.settings import ConfigError
from schemas.exposure import Exposure
from schemas.feedback import Feedback
from schemas.topics import EXPOSURES

WINDOW_MS = 1_800_000


def opened(event: LogEvent) -> Exposure | Feedback:
    return msgspec.json.decode(event.value, type=Exposure if event.topic == EXPOSURES else Feedback)


def test_a_row_is_a_page_of_one_video_and_the_feedback_that_it_got(tmp_path: Path) -> None:
    row = kuairand_row(7, 42, MONDAY_MS, is_click=1, is_like=1, long_view=1, play_time_ms=21_400, duration_ms=30_000, tab=1)
    log = kuairand.read([write_kuairand_csv(tmp_path / "log.csv", [row])], WINDOW_MS)
    page, *reactions = [opened(event) for event in log.events()]
    assert isinstance(page, Exposure)
    assert (page.request_id, page.user_id, page.ts_ms, page.scene, page.policy) == ("7-0", "7", MONDAY_MS, "tab-1", "baseline")
    assert [(item.item_id, item.position, item.features) for item in page.items] == [("42", 0, {"duration_s": 30.0})]
    assert page.action == kuairand.ACTION.baseline
    played_ms = MONDAY_MS + 21_400
    assert [(event.kind, event.ts_ms, event.value) for event in reactions if isinstance(event, Feedback)] == [
        ("click", MONDAY_MS, 1.0),
        ("like", played_ms, 1.0),
        ("long_view", played_ms, 1.0),
        ("dwell", played_ms, 21_400.0),
    ]
    assert {(event.request_id, event.item_id, event.user_id) for event in reactions if isinstance(event, Feedback)} == {("7-0", "42", "7")}


def test_csv_and_parquet_with_the_same_rows_give_the_same_events(tmp_path: Path) -> None:
    rows = kuairand_rows(200)
    from_csv = kuairand.read([write_kuairand_csv(tmp_path / "log.csv", rows)], WINDOW_MS)
    from_parquet = kuairand.read([write_kuairand_parquet(tmp_path / "log.parquet", rows)], WINDOW_MS)
    assert list(from_csv.events()) == list(from_parquet.events())
    assert from_csv.event_count == len(list(from_csv.events())) > 200


def test_events_come_in_event_time_order_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    log = kuairand.read([write_kuairand_csv(tmp_path / "log.csv", kuairand_rows(300)[::-1])], WINDOW_MS)
    times = [event.ts_ms for event in log.events()]
    assert times == sorted(times)
    assert log.newest_ms == times[-1]


def test_a_state_holds_only_what_its_user_had_done_before(tmp_path: Path) -> None:
    rows = [
        kuairand_row(7, 1, MONDAY_MS, is_click=1, long_view=1, play_time_ms=90_000),
        kuairand_row(8, 5, MONDAY_MS + 30_000, is_click=1),
        kuairand_row(7, 2, MONDAY_MS + 60_000),  # the click on video 1 is known by now, its long view is not
        kuairand_row(7, 3, MONDAY_MS + 2 * 3_600_000),
    ]
    log = kuairand.read([write_kuairand_csv(tmp_path / "log.csv", rows)], WINDOW_MS)
    states = {page.items[0].item_id: page.state for event in log.events() if isinstance(page := opened(event), Exposure)}
    assert (states["1"]["recent_items"], states["1"]["log_pages"], states["1"]["since_click"]) == ([], 0.0, "")
    assert (states["2"]["recent_items"], states["2"]["recent_click"], states["2"]["recent_long_view"]) == (["1"], ["1"], [])
    assert (states["2"]["since_click"], states["2"]["since_long_view"], states["2"]["log_gap_s"]) == (
        "1h",
        "",
        pytest.approx(4.1109, abs=1e-4),
    )
    assert (states["3"]["recent_items"], states["3"]["recent_long_view"], states["3"]["since_click"]) == (["1", "2"], ["1"], "6h")
    assert (states["3"]["hour"], states["3"]["weekday"], states["3"]["tab"], states["3"]["log_session_pages"]) == ("2", "0", "0", 0.0)


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_what_comes_later_in_the_log_changes_no_earlier_event(tmp_path: Path, cut: int) -> None:
    rows = sorted(kuairand_rows(120), key=lambda row: int(row["time_ms"]))
    whole = kuairand.read([write_kuairand_csv(tmp_path / "whole.csv", rows)], WINDOW_MS)
    begun = kuairand.read([write_kuairand_csv(tmp_path / "begun.csv", rows[:cut])], WINDOW_MS)
    until_ms = rows[cut]["time_ms"]
    assert [event for event in whole.events() if event.ts_ms < until_ms] == [event for event in begun.events() if event.ts_ms < until_ms]


@pytest.mark.parametrize(
    ("cells", "detail"),
    [
        ({"time_ms": ""}, "time_ms must be a whole number from 0 to 253402300799999, got b''"),
        ({"time_ms": "9" * 18}, f"time_ms must be a whole number from 0 to 253402300799999, got b'{'9' * 18}'"),
        ({"user_id": "x\u00e9"}, "user_id must be a whole number from 0 on, got b'x\\xc3\\xa9'"),
        ({"play_time_ms": -1}, "play_time_ms must be a whole number from 0 on, got b'-1'"),
        ({"is_like": 2}, "is_like must be a whole number from 0 to 1, got b'2'"),
        ({"duration_ms": "nan"}, "duration_ms must be a whole number from 0 on, got b'nan'"),
        ({"video_id": "1" * 30}, f"video_id must be a whole number from 0 on, got b'{'1' * 30}'"),
    ],
)
def test_a_row_with_a_wrong_cell_is_malformed(tmp_path: Path, cells: dict[str, object], detail: str) -> None:
    rows = [kuairand_row(1, 1, MONDAY_MS), kuairand_row(2, 2, MONDAY_MS) | cells, kuairand_row(3, 3, MONDAY_MS)]
    log = kuairand.read([write_kuairand_csv(tmp_path / "log.csv", rows)], WINDOW_MS)
    assert log.refused == [Refusal(1, "malformed", detail)]
    assert log.place(1) == ("log.csv", 3)
    assert [event.row for event in log.events()] == [0, 2]


def test_nulls_and_negative_numbers_in_parquet_are_malformed(tmp_path: Path) -> None:
    rows = [kuairand_row(1, 1, MONDAY_MS), kuairand_row(2, 2, MONDAY_MS, tab=None), kuairand_row(3, 3, MONDAY_MS, is_hate=-1)]
    log = kuairand.read([write_kuairand_parquet(tmp_path / "log.parquet", rows)], WINDOW_MS)
    assert [(refusal.row, refusal.reason) for refusal in log.refused] == [(1, "malformed"), (2, "malformed")]
    assert log.place(2) == ("log.parquet", 3)


def test_torn_and_blank_lines_are_malformed_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    path = write_kuairand_csv(tmp_path / "log.csv", kuairand_rows(3))
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, lines[0], "1,2,3", "", lines[1], lines[2][:20]]))
    log = kuairand.read([path], WINDOW_MS)
    assert [(log.place(refusal.row), refusal.reason) for refusal in log.refused] == [
        (("log.csv", 3), "malformed"),
        (("log.csv", 4), "malformed"),
        (("log.csv", 6), "malformed"),
    ]
    assert log.rows_in == 5
    assert {event.row for event in log.events()} == {0, 3}


def test_repeated_rows_are_duplicates_across_files_but_another_play_time_is_another_page(tmp_path: Path) -> None:
    row = kuairand_row(1, 1, MONDAY_MS, play_time_ms=5)
    first = write_kuairand_csv(tmp_path / "log_standard_1.csv", [row, row])
    second = write_kuairand_csv(tmp_path / "log_standard_2.csv", [row, row | {"play_time_ms": 6}])
    log = kuairand.read(find_files(tmp_path, kuairand.FORMAT.file_patterns), WINDOW_MS)
    assert [file.name for file in log.files] == [first.name, second.name]
    assert [(log.place(refusal.row), refusal.reason) for refusal in log.refused] == [
        ((first.name, 3), "duplicate"),
        ((second.name, 2), "duplicate"),
    ]
    assert log.rows_in == 4


def test_missing_columns_are_named(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,video_id,time_ms,is_click\n1,2,3,0\n")
    with pytest.raises(ConfigError, match=r"lacks the columns is_like, is_follow, is_comment, .*, tab$"):
        kuairand.read([tmp_path / "log.csv"], WINDOW_MS)
    rows = [{"user_id": 1, "video_id": 2}]
    with pytest.raises(ConfigError, match="lacks the columns time_ms, is_click"):
        kuairand.read([write_kuairand_parquet(tmp_path / "log.parquet", rows)], WINDOW_MS)


def test_a_parquet_column_that_is_no_number_is_named(tmp_path: Path) -> None:
    rows = [kuairand_row(1, 1, MONDAY_MS) | {"tab": "1"}]
    with pytest.raises(ConfigError, match="column tab must hold whole numbers, it holds string"):
        kuairand.read([write_kuairand_parquet(tmp_path / "log.parquet", rows)], WINDOW_MS)


def test_a_file_that_is_no_parquet_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_text("user_id,video_id\n")
    with pytest.raises(ConfigError, match=r"not a Parquet file: .*log\.parquet: [^\n]*$"):
        kuairand.read([tmp_path / "log.parquet"], WINDOW_MS)

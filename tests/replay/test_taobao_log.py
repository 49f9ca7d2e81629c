from pathlib import Path

import msgspec
import pytest
from synthetic_logs import SATURDAY_S, taobao_rows, write_taobao

from headrace.logs import taobao
from headrace.settings import ConfigError
from schemas.exposure import Exposure
from schemas.feedback import Feedback
from schemas.topics import EXPOSURES, FEEDBACK

WINDOW_MS = 3_600_000
T = SATURDAY_S


def joined(path: Path, window_ms: int = WINDOW_MS) -> list[tuple[str, str, int]]:
    """Kind, request and time (s after T) of the feedback that has a page."""
    log = taobao.read([path], window_ms)
    opened = [msgspec.json.decode(event.value, type=Feedback) for event in log.events() if event.topic == FEEDBACK]
    return [(event.kind, event.request_id, event.ts_ms // 1000 - T) for event in opened]


def refused(path: Path, window_ms: int = WINDOW_MS) -> list[tuple[int, str]]:
    """Line and reason."""
    log = taobao.read([path], window_ms)
    return [(log.place(refusal.row)[1], refusal.reason) for refusal in log.refused]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1, 5, 9, "pv", T), (1, 5, 9, "buy", T + 10)], [("buy", "1-0", 10)]),
        ([(1, 5, 9, "pv", T), (1, 5, 9, "pv", T + 5), (1, 5, 9, "cart", T + 10)], [("cart", "1-1", 10)]),  # the newest earlier pv
        ([(1, 5, 9, "cart", T + 10), (1, 5, 9, "pv", T + 20), (1, 5, 9, "pv", T)], [("cart", "1-2", 10)]),  # time counts, not lines
        ([(1, 5, 9, "fav", T), (1, 5, 9, "pv", T)], [("fav", "1-1", 0)]),  # at the same second the page comes first
        ([(1, 5, 9, "pv", T), (1, 5, 9, "buy", T + 3600)], [("buy", "1-0", 3600)]),  # the window's end is inside
        ([(1, 5, 9, "pv", T), (1, 5, 9, "buy", T + 3601)], []),
        ([(1, 5, 9, "pv", T), (1, 6, 9, "buy", T + 1)], []),  # another item
        ([(2, 5, 9, "pv", T), (1, 5, 9, "buy", T + 1)], []),  # another user
        ([(1, 5, 9, "buy", T), (1, 5, 9, "pv", T + 1)], []),  # a later page
    ],
)
def test_feedback_goes_to_its_users_newest_earlier_page_of_the_item(
    tmp_path: Path, rows: list[tuple[object, ...]], expected: list[object]
) -> None:
    path = write_taobao(tmp_path / "log.csv", rows)
    assert joined(path) == expected
    without = [number for number, row in enumerate(rows, 1) if row[3] != "pv"] if not expected else []
    assert refused(path) == [(line, "feedback_without_exposure") for line in without]


def test_a_page_view_is_the_exposure_of_one_item_and_no_click(tmp_path: Path) -> None:
    log = taobao.read([write_taobao(tmp_path / "log.csv", [(1, 5, 9, "pv", T)])], WINDOW_MS)
    (event,) = log.events()
    page = msgspec.json.decode(event.value, type=Exposure)
    assert (event.topic, page.request_id, page.user_id, page.ts_ms, page.policy) == (EXPOSURES, "1-0", "1", T * 1000, "baseline")
    assert [(item.item_id, item.features) for item in page.items] == [("5", {"category": "9"})]
    assert (page.state["hour"], page.state["weekday"], page.state["recent_items"]) == ("0", "5", [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1,5,9,pv", "malformed"),
        ("1,5,9,pv,", "malformed"),
        ("1,5,9,click,1511539300", "malformed"),
        ("one,5,9,pv,1511539300", "malformed"),
        ("1,5,9,pv,1511539300,6", "malformed"),
        ("", "malformed"),
        (f"1,5,9,pv,{T - 1}", "outside_window"),
        ("1,5,9,pv,1512316800", "outside_window"),
        ("1,5,9,pv,15115", "outside_window"),
        (f"2,6,9,pv,{T}", "duplicate"),
        (f"2,6,9,buy,{T}", None),
        ("1,5,9,pv,1512316799", None),
        (f"2,6,8,pv,{T}", None),  # another category: not equal
    ],
)
def test_a_line_is_refused_with_its_reason_and_number(tmp_path: Path, line: str, reason: str | None) -> None:
    path = write_taobao(tmp_path / "log.csv", [(2, 6, 9, "pv", T)], tail=line + "\n2,7,9,pv,1511539201\n")
    assert refused(path) == ([(2, reason)] if reason else [])
    assert taobao.read([path], WINDOW_MS).rows_in == 3


def test_a_torn_last_line_without_newline_counts_as_a_row(tmp_path: Path) -> None:
    path = write_taobao(tmp_path / "log.csv", taobao_rows(20), tail="9,4,1,p")
    assert refused(path)[-1] == (len(taobao_rows(20)) + 1, "malformed")


def test_every_row_becomes_one_event_or_one_refusal(tmp_path: Path) -> None:
    rows = [*taobao_rows(200), *taobao_rows(10), (1, 5, 9, "buy", T), (1, 5, 9, "pv", 5)]
    log = taobao.read([write_taobao(tmp_path / "log.csv", rows)], WINDOW_MS)
    places = [*(event.row for event in log.events()), *(refusal.row for refusal in log.refused)]
    assert sorted(places) == list(range(len(rows)))
    assert log.event_count == len(list(log.events()))


def test_bytes_that_are_no_text_are_rows_that_are_malformed(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"1,5,9,pv,1511539300\n\xff\xfe,5,9,pv,1511539300\n1,5,9,p\x00v,1511539300\n")
    assert refused(tmp_path / "log.csv") == [(2, "malformed"), (3, "malformed")]


def test_an_empty_file_is_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "log.csv").touch()
    with pytest.raises(ConfigError, match=r"^empty log: .*log\.csv$"):
        taobao.read([tmp_path / "log.csv"], WINDOW_MS)

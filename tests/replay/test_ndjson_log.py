import json
from pathlib import Path

import pytest
from synthetic_logs import exposure, feedback, write_ndjson

from headrace.logs import ndjson
from headrace.logs.recorded_log import find_files
from headrace.settings import ConfigError
from schemas.topics import EXPOSURES, FEEDBACK

WINDOW_MS = 60_000


def test_lines_are_opened_in_event_time_order_and_their_bytes_go_on_untouched(tmp_path: Path) -> None:
    click, page = feedback("e-1", "r-1", "u-1", 2_000), exposure("r-1", "u-1", 1_000)
    path = tmp_path / "log.ndjson"
    path.write_text(f'{json.dumps(click)}\n{{"exposure" : {json.dumps(page["exposure"], indent=None)} }}\n')
    log = ndjson.read([path], WINDOW_MS)
    assert [(event.ts_ms, event.topic, event.row) for event in log.events()] == [(1_000, EXPOSURES, 1), (2_000, FEEDBACK, 0)]
    assert [event.value for event in log.events()] == [json.dumps(page["exposure"]).encode(), json.dumps(click["feedback"]).encode()]


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ("", "truncated"),
        ("{", "truncated"),
        ("[]", "Expected `object`, got `array`"),
        ("{}", "expected {"),
        (json.dumps({**exposure("r", "u", 1), **feedback("e", "r", "u", 1)}), "expected {"),
        (json.dumps({"exposures": {}}), "unknown field `exposures`"),
        (json.dumps(exposure("r", "u", 1)["exposure"]), "unknown field `request_id`"),
        (json.dumps({"feedback": exposure("r", "u", 1)["exposure"]}), "`ts_ms`|unknown field|missing"),
        (json.dumps(exposure("r", "u", "soon")), "Expected `int`, got `str`"),  # type: ignore[arg-type]
        (json.dumps(feedback("e", "r", "u", -1)), "Expected `int` >= 0"),
        (json.dumps(exposure("r", "u", 1, items=[])), "length >= 1"),
        ('{"exposure": null}', "Expected `object`, got `null`"),
    ],
)
def test_a_line_that_is_no_event_is_malformed(tmp_path: Path, line: str, detail: str) -> None:
    log = ndjson.read([write_ndjson(tmp_path / "log.ndjson", [exposure("r-1", "u-1", 1_000), line])], WINDOW_MS)
    ((row, reason, said),) = log.refused
    assert (log.place(row), reason) == (("log.ndjson", 2), "malformed")
    assert any(part in said for part in detail.split("|")), said
    assert log.rows_in == 2


def test_bytes_that_are_no_utf_8_are_malformed(tmp_path: Path) -> None:
    (tmp_path / "log.ndjson").write_bytes(b'{"feedback": {"event_id": "\xff"}}\n')
    assert [refusal.reason for refusal in ndjson.read([tmp_path / "log.ndjson"], WINDOW_MS).refused] == ["malformed"]


def test_an_id_that_stands_on_an_earlier_line_is_a_duplicate_in_any_file(tmp_path: Path) -> None:
    page, click = exposure("r-1", "u-1", 1_000), feedback("r-1", "r-1", "u-1", 2_000)
    write_ndjson(tmp_path / "a.ndjson", [page, click])
    write_ndjson(tmp_path / "b.ndjson", [click, page, exposure("r-2", "u-1", 500)])
    log = ndjson.read(find_files(tmp_path, ndjson.FORMAT.file_patterns), WINDOW_MS)
    assert [(log.place(refusal.row), refusal.reason) for refusal in log.refused] == [
        (("b.ndjson", 1), "duplicate"),
        (("b.ndjson", 2), "duplicate"),
    ]
    assert [event.row for event in log.events()] == [4, 0, 1]


def test_a_folder_without_a_log_is_refused_with_the_names_that_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no log in folder .*: expected \*\.ndjson or \*\.jsonl$"):
        find_files(tmp_path, ndjson.FORMAT.file_patterns)
    with pytest.raises(ConfigError, match=r"no such log: .*absent"):
        find_files(tmp_path / "absent", ndjson.FORMAT.file_patterns)

"""The public logs, where HEADRACE_LOGS names a folder that has them; docs/replay.md says where they are to be had."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic_logs import hashes

from headrace.replay import replay_command

pytestmark = pytest.mark.logs
LOGS = os.environ.get("HEADRACE_LOGS")


def log_folder(name: str) -> Path:
    if not LOGS:
        pytest.skip(f"HEADRACE_LOGS is not set: name a folder with {name}/ (docs/replay.md says where the logs are had)")
    folder = Path(LOGS) / name
    if not folder.is_dir():
        pytest.skip(f"HEADRACE_LOGS={LOGS} has no {name}/ (docs/replay.md says where the log is had)")
    return folder


@pytest.mark.parametrize(("name", "log_format"), [("kuairand_pure", "kuairand"), ("taobao_userbehavior", "taobao")])
@pytest.mark.slow
def test_a_real_log_is_accounted_for_row_by_row_and_gives_the_same_bytes_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, log_format: str
) -> None:
    folder = log_folder(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_TRAINER_STEPS_PER_TRANSITION", "0.001")  # the account is tested here, not the learner
    reports: list[dict[str, Any]] = []
    for out in ("first", "second"):
        reports.append(replay_command(folder, log_format, tmp_path / out, console=Console(quiet=True)))
    report = reports[0]
    assert hashes(tmp_path / "first") == hashes(tmp_path / "second")
    assert report["rows_in"] == report["rows_used"] + sum(report["rejected"].values())
    lines = [json.loads(line) for line in (tmp_path / "first" / "rejected.ndjson").read_text().splitlines()]
    assert len({(line["file"], line["line"]) for line in lines}) == len(lines) == sum(report["rejected"].values())
    # Nothing is lost on the way: every page that the log's rows are became one transition, each with one sample.
    assert report["pages"] == report["stages"]["joiner"]["out"] == report["stages"]["trainer"]["out"]
    assert report["ignored"] == {}
    assert report["rows_used"] > 0.5 * report["rows_in"]

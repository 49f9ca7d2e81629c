import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from synthetic_logs import (
    SATURDAY_S,
    exposure,
    feedback,
    hashes,
    kuairand_rows,
    taobao_rows,
    write_kuairand_csv,
    write_ndjson,
    write_taobao,
)
from typer.testing import CliRunner

from headrace.cli import app
from headrace.replay import FORMATS, replay_command, replay_settings
from headrace.settings import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples" / "log.ndjson"
REPORT_KEYS = {"rows_in", "rows_used", "rejected", "stages", "join_rate", "label_delay_s", "reward_mean", "v_mean", "a_mean"}


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)


def replayed(path: Path, log_format: str, out: Path, **options: Any) -> dict[str, Any]:
    report = replay_command(path, log_format, out, console=Console(quiet=True), **options)
    assert json.loads((out / "report.json").read_text()) == report
    assert report["rows_in"] == report["rows_used"] + sum(report["rejected"].values())
    lines = [json.loads(line) for line in (out / "rejected.ndjson").read_text().splitlines()]
    assert len(lines) == sum(report["rejected"].values())
    return report


def kuairand_log(folder: Path) -> Path:
    rows = kuairand_rows(240)
    return write_kuairand_csv(folder / "log_standard_small.csv", [*rows, rows[3], rows[5] | {"is_like": "?"}])


def taobao_log(folder: Path) -> Path:
    return write_taobao(folder / "UserBehavior.csv", [*taobao_rows(240), (1, 99, 1, "buy", SATURDAY_S), (1, 2, 3, "pv", 5)], tail="5,4,1")


def ndjson_log(folder: Path) -> Path:
    lines: list[dict[str, Any] | str] = []
    for page in range(240):
        user, ts_ms = f"u-{page % 7}", 1_700_000_000_000 + page * 20_000
        served = {"policy": "fusion", "model_version": "fusion-000001", "action": [0.5 + page % 10 / 10]} if page % 2 else {}
        lines.append(exposure(f"r-{page}", user, ts_ms, **served))
        if page % 3 == 0:
            lines.append(feedback(f"e-{page}", f"r-{page}", user, ts_ms + 900))
    return write_ndjson(folder / "log.ndjson", [*lines, "{torn"])


LOGS = {"kuairand": kuairand_log, "taobao": taobao_log, "ndjson": ndjson_log}


@pytest.mark.parametrize("log_format", LOGS)
def test_a_log_becomes_samples_transitions_a_policy_and_a_report(tmp_path: Path, log_format: str) -> None:
    report = replayed(LOGS[log_format](tmp_path), log_format, tmp_path / "out")
    assert report.keys() >= REPORT_KEYS
    samples, transitions = pq.read_table(tmp_path / "out" / "samples"), pq.read_table(tmp_path / "out" / "transitions")
    assert len(samples) == report["stages"]["joiner"]["out"] == 240
    assert len(transitions) == report["stages"]["experience"]["out"] == report["stages"]["trainer"]["in"] == 240
    assert report["reward_mean"] == pytest.approx(sum(transitions["reward"].to_pylist()) / 240)
    assert 0 < report["join_rate"] < 1
    assert 0 <= report["label_delay_s"]["p50"] <= report["label_delay_s"]["p95"] > 0
    assert isinstance(report["v_mean"], float)
    candidate = json.loads((tmp_path / "out" / "policy" / "candidate.json").read_bytes())
    assert candidate["created_ms"] < 1_760_000_000_000  # a time of the log, not of this run
    actor = onnxruntime.InferenceSession(tmp_path / "out" / "policy" / "actor.onnx")
    assert [output.name for output in actor.get_outputs()] == ["action", "normalised"]
    assert sorted(path.name for path in (tmp_path / "out" / "policy").iterdir()) == ["actor.onnx", "candidate.json", "checkpoint"]


@pytest.mark.parametrize("log_format", LOGS)
def test_two_replays_of_a_log_give_identical_bytes(tmp_path: Path, log_format: str) -> None:
    path = LOGS[log_format](tmp_path)
    first, second = tmp_path / "first", tmp_path / "elsewhere" / "second"
    replayed(path, log_format, first)
    replayed(path, log_format, second)
    assert hashes(first) == hashes(second)
    assert {"report.json", "rejected.ndjson", "samples/part-00000.parquet", "policy/actor.onnx", "policy/checkpoint/learner.pt"} <= hashes(
        first
    ).keys()


def test_another_seed_learns_another_policy_from_the_same_transitions(tmp_path: Path) -> None:
    path = ndjson_log(tmp_path)
    replayed(path, "ndjson", tmp_path / "0")
    replayed(path, "ndjson", tmp_path / "1", seed=1)
    zero, one = hashes(tmp_path / "0"), hashes(tmp_path / "1")
    assert zero["transitions/part-00000.parquet"] == one["transitions/part-00000.parquet"]
    assert zero["policy/actor.onnx"] != one["policy/actor.onnx"]


def test_every_row_of_the_example_is_accounted_for(tmp_path: Path) -> None:
    report = replayed(EXAMPLE, "ndjson", tmp_path / "out")
    assert (report["rows_in"], report["rows_used"], report["rejected"]) == (52, 50, {"malformed": 1, "unknown_request": 1})
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.ndjson").read_text().splitlines()]
    assert [(line["file"], line["line"], line["reason"]) for line in lines] == [
        ("log.ndjson", 7, "malformed"),
        ("log.ndjson", 14, "unknown_request"),
    ]
    assert report["v_mean"] is None
    assert any("too few" in note for note in report["notes"])


def test_baseline_traffic_teaches_v_and_leaves_the_actor_at_the_baseline(tmp_path: Path) -> None:
    report = replayed(kuairand_log(tmp_path), "kuairand", tmp_path / "out")
    assert report["pages_by_policy"] == {"baseline": 240}
    assert report["a_mean"] == 0.0
    assert any("all traffic is baseline" in note for note in report["notes"])
    assert json.loads((tmp_path / "out" / "policy" / "candidate.json").read_bytes())["golden_action"] == [1.0]


@pytest.mark.parametrize(
    ("bad", "reason", "line"),
    [
        (feedback("e-x", "r-none", "u-0", 1_700_000_000_500), "unknown_request", 322),
        (feedback("e-x", "r-0", "u-0", 1_700_003_600_000), "late", 322),
        (feedback("e-x", "r-0", "u-0", 1_700_000_000_500, item_id="i-77"), "unknown_item", 322),
        (feedback("e-x", "r-0", "u-0", 1_700_000_000_500, kind="dance"), "unknown_kind", 322),
        (exposure("r-x", "u-0", 1_700_000_001_000, state={"hour": "late"}), "wrong_state", 322),
        (exposure("r-x", "u-0", 1_700_000_001_000, action=[1.0, 2.0]), "wrong_action", 322),
        (exposure("r-x", "u-0", 1_700_000_001_000, items=["i-1", "i-1"]), "malformed", 322),
        (exposure("r-0", "u-0", 1_700_000_001_000), "duplicate", 322),
    ],
)
def test_a_row_that_a_stage_refuses_is_rejected_by_its_reason(tmp_path: Path, bad: dict[str, Any], reason: str, line: int) -> None:
    path = ndjson_log(tmp_path)
    path.write_text(path.read_text() + json.dumps(bad) + "\n")
    replayed(path, "ndjson", tmp_path / "out")
    last = (tmp_path / "out" / "rejected.ndjson").read_text().splitlines()[-1]
    assert json.loads(last)["reason"] == reason
    assert json.loads(last)["line"] == line


def test_a_row_with_several_refused_events_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_JOINER_JOIN_WINDOW_MS", "10000")  # playing takes longer: like, long view and dwell of a row are late
    report = replayed(kuairand_log(tmp_path), "kuairand", tmp_path / "out")
    late = report["rejected"]["late"]
    rows = [row for row in kuairand_rows(240) if row["play_time_ms"] > 10_000]
    assert late == len(rows) > 0
    assert report["stages"]["experience"]["out"] == 240  # their pages and clicks were used all the same


def test_environment_wins_over_the_file_which_wins_over_what_fits_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kuairand = FORMATS["kuairand"]
    assert replay_settings(kuairand, tmp_path).joiner.feedback_kinds[0] == "click"
    assert replay_settings(kuairand, tmp_path).joiner.join_window_ms == 1_800_000
    (tmp_path / "mine.toml").write_text('[joiner]\njoin_window_ms = 5\nfeedback_kinds = ["dwell"]\n')
    monkeypatch.setenv("HEADRACE_CONFIG", str(tmp_path / "mine.toml"))
    monkeypatch.setenv("HEADRACE_JOINER_JOIN_WINDOW_MS", "7")
    joiner = replay_settings(kuairand, tmp_path).joiner
    assert (joiner.join_window_ms, joiner.feedback_kinds) == (7, ("dwell",))
    assert replay_settings(kuairand, tmp_path).policy.features.ids[0].name == "hour"


def test_results_are_kept_unless_force_is_given_and_foreign_files_always(tmp_path: Path) -> None:
    path, out = ndjson_log(tmp_path), tmp_path / "out"
    replayed(path, "ndjson", out)
    before = hashes(out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"out is not empty \(it holds notes.txt, policy, .*--force$"):
        replayed(path, "ndjson", out)
    replayed(path, "ndjson", out, force=True)
    assert hashes(out) == {**before, "notes.txt": hashes(out)["notes.txt"]}
    assert (out / "notes.txt").read_text() == "mine"


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    replayed(EXAMPLE, "ndjson", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "log_format", "message"),
    [
        ("", "ndjson", "empty log: "),
        ("", "taobao", "empty log: "),
        ("", "kuairand", "not a KuaiRand log: .* lacks the columns user_id, video_id"),
        ("a,b\n", "kuairand", "not a KuaiRand log: .* lacks the columns user_id"),
        ("{}\n\n", "ndjson", r"^all 2 rows rejected \(malformed 2\); the first: log line 1: malformed: expected"),
        ("1,2,3,pv,7\n", "taobao", r"^all 1 rows rejected \(outside_window 1\); the first: log line 1: "),
        (json.dumps(feedback("e-1", "r-1", "u-1", 5)) + "\n", "ndjson", r"^all 1 rows rejected \(unknown_request 1\)"),
    ],
)
def test_a_log_that_cannot_be_used_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path, content: str, log_format: str, message: str
) -> None:
    (tmp_path / "log").write_text(content)
    with pytest.raises(ConfigError, match=message) as raised:
        replayed(tmp_path / "log", log_format, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_out_that_is_a_file_or_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--out .*file is a file: name a folder"):
        replayed(EXAMPLE, "ndjson", tmp_path / "file")
    with pytest.raises(ConfigError, match=r"cannot write --out .*below: Not a directory"):
        replayed(EXAMPLE, "ndjson", tmp_path / "file" / "below")


def test_the_folder_of_the_log_is_not_written_to(tmp_path: Path) -> None:
    ndjson_log(tmp_path)
    with pytest.raises(ConfigError, match="is the log's own folder"):
        replayed(tmp_path, "ndjson", tmp_path, force=True)


def test_a_full_disk_is_one_line_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_table(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", write_table)
    with pytest.raises(ConfigError, match=r"^disk full: no space for --out .*out: free some, or name a folder on another disk$"):
        replayed(EXAMPLE, "ndjson", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_log_that_is_not_there_ends_the_command_with_one_line_and_code_2(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "headrace",
        "replay",
        "--format",
        "taobao",
        str(tmp_path / "absent.csv"),
        "--out",
        str(tmp_path / "out"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=EXAMPLE.parents[1])
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"headrace: no such log: {tmp_path / 'absent.csv'}\n"


def test_the_command_prints_the_report_as_json_where_asked(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["replay", "--format", "ndjson", str(EXAMPLE), "--out", str(tmp_path / "out"), "--json", "-"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows_in"] == 52

"""`headrace state`: what it shows beside a running worker and without one, and how it refuses."""

import json
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pipeline
import pytest
from test_cli import headrace

from headrace.broker import create_topics, free_port, running
from headrace.settings import ConfigError, StreamSettings
from headrace.state import LAYOUTS, read_state
from headrace.state_table import show
from headrace.store import PartitionStore
from joiner.rows import LAYOUT
from schemas.topics import EXPOSURES, FEEDBACK

PAGES = 400


def settings_of(folder: Path, broker: str = "") -> StreamSettings:
    return StreamSettings(state_dir=folder, broker=broker or f"127.0.0.1:{free_port()}", group_prefix="state")


def caught_up(folder: Path, broker: str, events: int) -> dict[str, Any]:
    """The joiner's report once all of the log is in its state, and it has told Kafka what it needs no more."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        if (folder / "joiner").exists():
            report = report_on(folder, broker)
            committed = [offsets["committed"] for part in report["partitions"] for offsets in part["offsets"].values()]
            if sum(report["totals"]["counts"].get("in", {}).values()) == events and None not in committed:
                return report
        time.sleep(0.2)
    raise TimeoutError(f"the joiner has not read {events} events")


def report_on(folder: Path, broker: str = "") -> dict[str, Any]:
    """The joiner's report; a partition that is just being made cannot be read yet."""
    try:
        return read_state("joiner", settings_of(folder, broker))
    except ConfigError:
        return {"partitions": [], "totals": {"counts": {}}}


@pytest.mark.slow
def test_it_shows_the_state_beside_a_running_worker_and_the_same_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_JOINER_JOIN_WINDOW_MS", str(pipeline.WINDOW_MS))
    events = [pair for pair in pipeline.log_of(PAGES, seed=5) if not pair[1].value.count(b"the-end-")]
    shown = Counter(event.topic for _, event in events)
    with running("embedded", tmp_path / "broker") as broker:
        create_topics(StreamSettings(broker=broker.address))
        worker = pipeline.Worker("joiner", broker.address, tmp_path / "state", "state", tmp_path, 6.0)
        try:
            pipeline.produce(broker.address, events)
            beside = caught_up(tmp_path / "state", broker.address, len(events))
            for _ in range(20):
                report_on(tmp_path / "state")
            assert worker.process.poll() is None
            worker.stop()
        finally:
            worker.kill()
    alone = read_state("joiner", settings_of(tmp_path / "state"))

    assert [part["partition"] for part in beside["partitions"]] == list(range(pipeline.PARTITIONS))
    totals = beside["totals"]
    assert totals["counts"]["in"] == dict(shown)
    assert 0 < totals["open_pages"] < totals["open_items"]
    assert totals["open_pages"] + totals["closed_requests"] <= PAGES
    assert totals["watermark_ms"] == min(part["watermark_ms"] for part in beside["partitions"])
    for part in beside["partitions"]:
        assert part["watermark_ms"] == min(part["exposures_ms"], part["feedback_ms"])
        assert part["oldest_open_ms"] + pipeline.WINDOW_MS >= part["watermark_ms"] - pipeline.WINDOW_MS // 8
        assert part["rows"]["open_blocks"]["rows"] == part["open_blocks"]
        assert part["rows"]["messages"]["bytes"] > 0
        assert part["disk_bytes"] > 0
        assert part["offsets"][EXPOSURES].keys() == {"stored", "committed", "end", "lag"}
        assert 0 <= part["offsets"][EXPOSURES]["committed"] <= part["offsets"][EXPOSURES]["stored"]
    assert sum(part["offsets"][topic]["stored"] for part in beside["partitions"] for topic in (EXPOSURES, FEEDBACK)) == len(events)
    assert alone["broker"] is None
    for with_worker, without in zip(beside["partitions"], alone["partitions"], strict=True):
        assert without["offsets"] == {topic: {"stored": offsets["stored"]} for topic, offsets in with_worker["offsets"].items()}
        assert {name: with_worker[name] for name in with_worker.keys() - {"offsets", "disk_bytes"}} == {
            name: without[name] for name in without.keys() - {"offsets", "disk_bytes"}
        }


def test_the_command_prints_tables_or_json(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "var" / "state" / "experience" / "3")
    store.require_layout(LAYOUTS["experience"])
    store.write([(b"p1", b"x" * 10), (b"p2", b"y" * 10), (b"w", b"1")], {"samples": 7}, Counter())
    store.close()
    nowhere = f"127.0.0.1:{free_port()}"

    shown = headrace("state", "experience", cwd=tmp_path, HEADRACE_STREAM_BROKER=nowhere)
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["open_pages", "2", "0.0"] in lines
    assert ["3", "samples", "7"] in lines
    assert "no broker answers: without committed offsets and lag" in shown.stdout

    printed = headrace("state", "experience", "--json", "-", cwd=tmp_path, HEADRACE_STREAM_BROKER=nowhere)
    [part] = json.loads(printed.stdout)["partitions"]
    assert {name: row for name, row in part["rows"].items() if "early" not in name} == {
        "seen_pages": {"rows": 0, "bytes": 0},
        "open_pages": {"rows": 2, "bytes": 24},
        "progress": {"rows": 0, "bytes": 0},
        "clock": {"rows": 1, "bytes": 2},
    }
    assert (part["partition"], part["layout"], part["offsets"]) == (3, LAYOUTS["experience"], {"samples": {"stored": 7}})


def test_a_folder_without_state_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty" / "joiner" / "faust").mkdir(parents=True)
    for folder in ("nowhere", "empty"):
        failed = headrace("state", "joiner", cwd=tmp_path, HEADRACE_STREAM_STATE_DIR=folder)
        assert failed.returncode == 2
        assert failed.stderr == (
            f"headrace: no state in {folder}/joiner: no `headrace worker joiner` has read anything there yet; "
            "set stream.state_dir to the folder that the worker uses\n"
        )


def test_a_partition_that_has_read_nothing_is_shown_as_empty(tmp_path: Path) -> None:
    PartitionStore(tmp_path / "joiner" / "0").close()
    report = read_state("joiner", settings_of(tmp_path))
    show(report)
    assert (report["totals"]["open_pages"], report["partitions"][0]["offsets"], report["totals"]["watermark_ms"]) == (0, {}, None)


def test_state_in_another_layout_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "joiner" / "0"
    store = PartitionStore(folder)
    store.write([(b"b" + bytes(8), b"a block of an earlier version")], {EXPOSURES: 1}, Counter())
    store.close()
    with pytest.raises(
        ConfigError, match=rf"the state in {folder} has layout 1, this version reads {LAYOUT}: `headrace worker joiner` of this"
    ):
        read_state("joiner", settings_of(tmp_path))
    store = PartitionStore(folder)
    assert dict(store.rows()) == {b"b" + bytes(8): b"a block of an earlier version"}
    store.close()


def test_files_that_are_no_state_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "joiner" / "0").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"cannot use state in .*joiner/0: .*CURRENT"):
        read_state("joiner", settings_of(tmp_path))
    shutil.rmtree(tmp_path / "joiner")
    (tmp_path / "joiner").write_text("")
    with pytest.raises(ConfigError, match=r"cannot read state in .*joiner: Not a directory"):
        read_state("joiner", settings_of(tmp_path))

"""The broker-to-broker benchmark: its log is what the schemas say, every contestant labels it rightly, and a wrong label is found."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from benchmarks import joiner
from benchmarks.join_log import FLUSH, PARTITIONS, SPAN_MS, START_MS, WINDOW_MS, make_log
from benchmarks.samples import Faults, faults
from headrace.cli import app
from schemas.exposure import Exposure
from schemas.feedback import Feedback
from schemas.topics import EXPOSURES, FEEDBACK


@pytest.mark.parametrize("items_a_page", [1, 10])
def test_the_log_holds_the_events_and_labels_that_it_promises(items_a_page: int) -> None:
    log = make_log(4000, items_a_page)
    shown = [(partition, msgspec.json.decode(value, type=Exposure)) for topic, partition, value in log.messages if topic == EXPOSURES]
    reactions = [(partition, msgspec.json.decode(value, type=Feedback)) for topic, partition, value in log.messages if topic == FEEDBACK]
    pages = {page.request_id: (partition, page) for partition, page in shown}
    assert len(shown) - PARTITIONS == log.exposures == 4000 // items_a_page
    assert len(reactions) - PARTITIONS == log.feedback == 413
    labels = {(page.request_id, item.item_id): 0.0 for _, page in shown for item in page.items if not page.request_id.startswith(FLUSH)}
    delays_ms = []
    for partition, feedback in reactions:
        shown_on, page = pages[feedback.request_id]
        assert (shown_on, page.user_id) == (partition, feedback.user_id)
        delays_ms.append(feedback.ts_ms - page.ts_ms)
        if delays_ms[-1] <= WINDOW_MS and not page.request_id.startswith(FLUSH):
            labels[feedback.request_id, feedback.item_id] = 1.0
    assert labels == log.labels
    assert max(delays_ms) > WINDOW_MS, "no late feedback to get wrong"
    assert START_MS + SPAN_MS * 0.99 < max(page.ts_ms for _, page in shown if not page.request_id.startswith(FLUSH)) < START_MS + SPAN_MS


@pytest.mark.slow
def test_every_contestant_gives_the_right_labels(tmp_path: Path) -> None:
    log = make_log(30_000, 2)  # as many as take the fastest many looks and ticks of the CPU clock
    told: list[str] = []
    runs = joiner.measure("embedded", log, joiner.CONTESTANTS, 1, tmp_path, told.append)
    report = joiner.case_report(log, runs)

    for name in joiner.CONTESTANTS:
        assert runs[name][0].faults == Faults(0, 0, 0), name
        assert 0 < runs[name][0].wall_s < runs[name][0].wall_with_start_s
        assert 0 < report[name]["cpu_s_per_100k"] < report[name]["cpu_s_per_100k_with_start"]
        assert report[name]["peak_rss_mb"] > 20
    assert all(report[joiner.ratio_to(name)] > 0 for name in joiner.PEERS)
    assert report["samples"] == 30_000
    assert [text.rpartition(" ")[2] for text in told if "round" in text] == list(joiner.CONTESTANTS)
    json.dumps(report)


@pytest.mark.slow
def test_a_log_whose_labels_are_not_what_it_holds_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = make_log(2000, 1)
    first, second, third, *_ = log.labels
    wrong = log.labels | {first: 1.0 - log.labels[first]}  # one label is another
    del wrong[second]  # one sample should not be there
    wrong["r-never", "i-never"] = wrong.pop(third)  # and one never comes, while another should not be there
    monkeypatch.setattr(joiner, "TIMEOUT_S", 8.0)

    runs = joiner.measure("embedded", log._replace(labels=wrong), ("floor",), 1, tmp_path, lambda _: None)

    assert runs["floor"][0].faults == Faults(wrong_labels=3, duplicates=0, missing=1)


def test_wrong_double_and_missing_samples_are_counted() -> None:
    labels = {("r0", "i0"): 0.0, ("r1", "i1"): 1.0, ("r2", "i2"): 0.0}
    right = [("r0", "i0", 0.0), ("r1", "i1", 1.0), ("r2", "i2", 0.0)]
    assert faults(labels, right) == Faults(0, 0, 0)
    assert faults(labels, [*right, right[0]]) == Faults(0, 1, 0)
    assert faults(labels, right[1:]) == Faults(0, 0, 1)
    assert faults(labels, [("r0", "i0", 1.0), *right[1:]]) == Faults(1, 0, 0)
    assert faults(labels, [*right, ("r9", "i9", 0.0)]) == Faults(1, 0, 0)


@pytest.mark.parametrize(("fault", "code"), [(None, 0), ("wrong_labels", 1), ("duplicates", 1), ("missing", 1)])
def test_the_command_fails_where_a_sample_is_at_fault(fault: str | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    report: dict[str, Any] = {**dict.fromkeys(Faults._fields, 0), **({fault: 1} if fault else {})}
    monkeypatch.setattr(joiner, "main", lambda *_: report)
    result = CliRunner().invoke(app, ["bench", "joiner", "--json", "-"])
    assert result.exit_code == code
    assert json.loads(result.stdout) == report


@pytest.mark.slow
def test_a_contestant_that_dies_is_an_error_with_the_end_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object) -> tuple[list[str], dict[str, str]]:
        return ["/bin/sh", "-c", "echo this went wrong; exit 3"], {}

    monkeypatch.setattr(joiner, "peer_command", dies)
    with pytest.raises(ValueError, match=r"floor-1 ended by itself.*this went wrong"):
        joiner.measure("embedded", make_log(1000, 1), ("floor",), 1, tmp_path, lambda _: None)

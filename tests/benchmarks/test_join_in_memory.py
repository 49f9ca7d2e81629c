"""The benchmark of the join runs, and both of its joins label rightly."""

import json

import pytest

from benchmarks import join_in_memory as join


def test_the_benchmark_reports_both_joins_without_a_wrong_duplicate_or_missing_label() -> None:
    report = json.loads(json.dumps(join.main(events=3000, rounds=2)))
    for case, items in (("one_item_pages", 1), ("ten_item_pages", 10)):
        assert report[case]["items_a_page"] == items
        assert report[case]["feedback"] > 0
        for name in ("headrace", "floor"):
            assert report[case][name]["faults"] == {"wrong": 0, "duplicate": 0, "missing": 0}
            assert len(report[case][name]["events_per_s_by_round"]) == 2
    assert "broker-to-broker" in report["scope"]


def test_a_wrong_label_is_found() -> None:
    log = join.make_log(2000, 1)
    run = join.run_floor(log)
    (request_id, item_id, label), *rest = run.rows
    flipped = join.Run(0.0, 0.0, 0.0, [(request_id, item_id, 1.0 - label), *rest[:-1], rest[0]])
    assert join.faults(log, flipped) == {"wrong": 1, "duplicate": 1, "missing": 1}


@pytest.mark.parametrize("join_", [join.run_floor, join.run_headrace])
def test_both_joins_have_labels_to_get_right(join_: object) -> None:
    log = join.make_log(2000, 1)
    assert callable(join_)
    labelled = {(request_id, item_id) for request_id, item_id, label in join_(log).rows if label == 1.0}
    assert labelled == log.labelled

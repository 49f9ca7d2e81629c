import json
from collections import Counter
from typing import Any

import pytest
from monitor_records import SETTINGS, T0, announcement, letter, record, samples, transitions

from headrace.step import Count
from monitor.report import build_report, loop_closed
from monitor.tally import PartitionTally
from monitor.versions import Generation, freshness_ms, weighted_quantile
from schemas.topics import DEAD_LETTERS, POLICIES, SAMPLES, TRANSITIONS


def two_partitions() -> list[PartitionTally]:
    """Baseline and policy pages on two partitions; v1 and v3 were promoted and answered, v2 was promoted but replaced before it did."""
    one, two = PartitionTally(SETTINGS, 0), PartitionTally(SETTINGS, 1)
    one.apply(SAMPLES, [record(0, samples([("a1", "v1", 2_000, 50), ("a1", "v1", 2_000, None), ("a2", "v3", 9_000, None)], 0))], T0)
    two.apply(SAMPLES, [record(0, samples([("b1", "v1", 1_500, 250)], 0))], T0)
    one.apply(
        TRANSITIONS,
        [record(0, transitions([("a1", "a", "fusion", "v1", 1.0, 2_000, False), ("a2", "a", "fusion", "v3", 3.0, 9_000, True)], 0))],
        T0,
    )
    two.apply(
        TRANSITIONS,
        [
            record(
                0,
                transitions(
                    [
                        ("b1", "b", "fusion", "v1", 2.0, 1_500, True),
                        ("c1", "c", "baseline", "", 0.5, 0, True),
                        ("d", "d", "fusion", "", 1.0, 0, True),
                    ],
                    0,
                ),
            )
        ],
        T0,
    )
    promoted = [
        announcement("v1", 1_000, 10, learned_from={"": 10}, arrivals_ms={500: 4}),
        announcement("v3", 8_000, 30, learned_from={"": 20, "v1": 10}, arrivals_ms={7_000: 1, 7_500: 1}),
        announcement("v2", 8_500, 20, learned_from={"": 20}, arrivals_ms={6_000: 2}),
    ]
    two.apply(POLICIES, [record(n, value) for n, value in enumerate(promoted)], T0)
    one.apply(DEAD_LETTERS, [record(0, letter(1)), record(1, letter(2, stage="serving", reason="malformed"))], T0)
    two.apply(DEAD_LETTERS, [record(0, letter(3))], T0)
    return [one, two]


def test_the_report_of_two_partitions() -> None:
    report = build_report(two_partitions())

    assert report["stages"] == {
        "joiner": {"in": None, "out": 4, "rejected": {"late": 2}},
        "experience": {"in": 4, "out": 5, "rejected": {}},
        "trainer": {"in": 5, "out": None, "rejected": {}},
        "controller": {"in": None, "out": 3, "rejected": {}},
        "monitor": {"in": 15, "out": None, "rejected": {}},
        "serving": {"in": None, "out": None, "rejected": {"malformed": 1}},
    }
    assert [(v["model_version"], v["promoted_ms"], v["first_response_ms"], v["pages"], v["reward_mean"]) for v in report["versions"]] == [
        ("v1", T0 + 1_000, T0 + 1_500, 2, 1.5),
        ("v2", T0 + 8_500, None, 0, None),
        ("v3", T0 + 8_000, T0 + 9_000, 1, 3.0),
    ]
    policy = report["reward"]["policy"]
    assert (policy["pages"], policy["sessions"], policy["mean"]) == (3, 2, 2.0)
    assert policy["ci95"][0] <= 2.0 <= policy["ci95"][1]
    assert report["reward"]["baseline"] == {"pages": 1, "sessions": 1, "sum": 0.5, "mean": 0.5, "ci95": None}
    assert report["reward"]["exploration"]["mean"] == 1.0
    # ages: v1's four 1.0 s (0.5 -> 1.5 s); v2's two 3.0 s (6.0 -> 9.0 s, by v3); v3's own 2.0 s and 1.5 s
    assert report["freshness_s"] == {"p50": 1.0, "p95": 3.0, "n": 8}
    assert report["learned_from"] == {"v1": {"": 10}, "v2": {"": 20}, "v3": {"": 20, "v1": 10}}
    assert report["join"] == {"pages": 3, "rate": 2 / 3, "label_delay_s_mean": 0.15}
    assert report["loop_closed"] is True


def test_the_report_is_json_and_does_not_depend_on_the_order_of_partitions() -> None:
    tallies = two_partitions()
    assert json.loads(json.dumps(build_report(tallies), allow_nan=False)) == build_report(tallies[::-1])


def test_an_empty_report_has_every_key_and_no_number_made_up() -> None:
    report = build_report([])
    assert report["reward"]["policy"] == {"pages": 0, "sessions": 0, "sum": 0.0, "mean": None, "ci95": None}
    assert report["freshness_s"] == {"p50": None, "p95": None, "n": 0}
    assert (report["versions"], report["loop_closed"]) == ([], False)
    assert build_report([PartitionTally(SETTINGS, 0)]) == report


def test_counts_that_a_stage_reports_itself_replace_what_passed_by() -> None:
    counts = Counter({Count("in", "exposures"): 10, Count("in", "feedback"): 5, Count("out", "samples"): 8, Count("rejected", "late"): 2})
    report = build_report(two_partitions(), {"joiner": counts, "simulator": Counter({Count("out", "exposures"): 10})})
    assert report["stages"]["joiner"] == {"in": 15, "out": 8, "rejected": {"late": 2}}
    assert report["stages"]["simulator"] == {"in": 0, "out": 10, "rejected": {}}
    assert report["stages"]["experience"]["in"] == 4


def test_lineage_goes_by_what_was_learned_and_not_by_the_name() -> None:
    tally = PartitionTally(SETTINGS, 0)
    tally.apply(
        POLICIES, [record(0, announcement("v9", 5, 90, arrivals_ms={0: 1})), record(1, announcement("v10", 6, 100, arrivals_ms={1: 1}))], T0
    )
    tally.apply(SAMPLES, [record(0, samples([("a1", "v10", 1_001, None)], 0))], T0)
    report = build_report([tally])
    assert [version["model_version"] for version in report["versions"]] == ["v9", "v10"]
    assert report["freshness_s"] == {"p50": 1.0, "p95": 1.001, "n": 2}


def test_a_version_that_answered_unannounced_is_listed_without_a_promotion() -> None:
    tally = PartitionTally(SETTINGS, 0)
    tally.apply(SAMPLES, [record(0, samples([("a1", "v9", 5, None)], 0))], T0)
    [version] = build_report([tally])["versions"]
    assert (version["model_version"], version["promoted_ms"], version["first_response_ms"]) == ("v9", None, T0 + 5)


def test_what_a_pinned_version_learned_long_ago_says_nothing_of_freshness() -> None:
    tally = PartitionTally(SETTINGS, 0)
    tally.apply(POLICIES, [record(0, announcement("v1", 5, reason="pinned", arrivals_ms={-90_000_000: 5}))], T0)
    tally.apply(SAMPLES, [record(0, samples([("a1", "v1", 6, None)], 0))], T0)
    assert build_report([tally])["freshness_s"]["n"] == 0


@pytest.mark.parametrize(
    ("lineage", "ages"),
    [
        ([], []),
        ([Generation({100: 2}, 400)], [(300, 2)]),
        ([Generation({100: 2}, None)], []),  # nobody was served what it learned
        ([Generation({100: 2}, None), Generation({200: 1}, 500)], [(300, 1), (400, 2)]),  # the next one carried it
        ([Generation({100: 1}, None), Generation({}, None), Generation({200: 1}, 500), Generation({300: 1}, None)], [(300, 1), (400, 1)]),
        ([Generation({100: 1}, 900), Generation({200: 1}, 500)], [(300, 1), (400, 1)]),  # the later version answered first
    ],
)
def test_freshness_follows_the_lineage(lineage: list[Generation], ages: list[tuple[int, int]]) -> None:
    assert sorted(freshness_ms(lineage)) == ages


@pytest.mark.parametrize(
    ("weighted", "quantile", "value"),
    [
        ([], 0.5, None),
        ([(7, 1)], 0.0, 7),
        ([(7, 1)], 1.0, 7),
        ([(1, 1), (2, 1)], 0.5, 1),
        ([(2, 1), (1, 1)], 0.51, 2),
        ([(1, 95), (9, 5)], 0.95, 1),
        ([(1, 94), (9, 6)], 0.95, 9),
    ],
)
def test_weighted_quantiles_are_exact(weighted: list[tuple[int, int]], quantile: float, value: int | None) -> None:
    assert weighted_quantile(weighted, quantile) == value


def test_weighted_quantile_equals_that_of_the_values_written_out() -> None:
    weighted = [(13, 4), (2, 7), (40, 1), (5, 3)]
    written_out = sorted(value for value, weight in weighted for _ in range(weight))
    for percent in range(1, 101):
        expected = written_out[-(-percent * len(written_out) // 100) - 1]
        assert weighted_quantile(weighted, percent / 100) == expected, percent


A_VERSION: dict[str, Any] = {"model_version": "v1", "promoted_ms": 1, "first_response_ms": 2, "learned_from": {"": 5}}
ITS_HEIR: dict[str, Any] = {"model_version": "v2", "promoted_ms": 3, "first_response_ms": None, "learned_from": {"": 5, "v1": 1}}


@pytest.mark.parametrize(
    ("versions", "closed"),
    [
        ([], False),
        ([A_VERSION], False),
        ([A_VERSION, ITS_HEIR], True),
        ([A_VERSION | {"promoted_ms": None}, ITS_HEIR], False),
        ([A_VERSION | {"first_response_ms": None}, ITS_HEIR], False),
        ([A_VERSION | {"learned_from": {"": 0}}, ITS_HEIR], False),
        ([A_VERSION, ITS_HEIR | {"learned_from": {"": 6, "v1": 0}}], False),
    ],
)
def test_the_loop_is_closed_only_by_a_version_that_was_learned_served_and_learned_from(
    versions: list[dict[str, Any]], closed: bool
) -> None:
    assert loop_closed(versions) is closed

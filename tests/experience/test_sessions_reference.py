"""The step against the brute-force reference, over random logs: cut, out of order, delivered again, crashed, without its disk."""

from typing import Any
from unittest.mock import patch

import numpy as np
from experience_log import KINDS, Life, Shown, message, offsets_of_page, page_of, record, transitions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import Seen, expected

from experience.settings import ExperienceSettings, KindReward, PolicyReward, RewardSettings
from schemas.codec import decode_batch

GAP_MS = 10
# No deadline: a busy machine is not a wrong result. Derandomised: the same logs every time.
random_logs = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
REWARD = RewardSettings(
    kinds={"click": KindReward(weight=1.0), "pay": KindReward(weight=0.7, scale="log", unit=0.5, cap=1.0)},
    penalty_no_conversion=0.3,
    penalty_left=2.0,
    policies={"bold": PolicyReward(kinds={"click": KindReward(weight=3.0, cap=4.0)}, conversion_kinds=("pay",), penalty_left=0.25)},
)
INSTANCES = st.sampled_from([("td1",), ("td2",), ("td3", "td1"), ("mc",), ("td1", "mc"), ("mc", "td1", "td4")])


def reference_settings(instances: tuple[str, ...] = ("td1",)) -> ExperienceSettings:
    return ExperienceSettings(
        session_gap_ms=GAP_MS, max_session_pages=4, dedup_horizon_ms=1000, reward=REWARD, discount=0.7, instances=instances
    )


def should(log: list[Shown], of: ExperienceSettings) -> dict[str, dict[str, Any]]:
    pages = []
    for page in log:
        labels = dict(zip(KINDS, zip(*page.labels, strict=True), strict=True))
        pages.append(Seen(page.request_id, page.user_id, page.ts_ms, page.policy, labels, page.left))
    offsets = {page.request_id: offsets_of_page(page) for page in log}
    return {name: {**row, "feedback_offsets": offsets[name.partition("/")[0]]} for name, row in expected(pages, of).items()}


def found(life: Life) -> dict[str, dict[str, Any]]:
    rows = life.rows()
    by_id = {row["transition_id"]: row for row in rows}
    assert len(by_id) == len(rows), "a transition left twice"
    return {name: seen(row) for name, row in by_id.items()}


def seen(row: dict[str, Any]) -> dict[str, Any]:
    names = (
        "user_id",
        "policy",
        "session_id",
        "step",
        "reward",
        "return",
        "discount",
        "n_steps",
        "done",
        "ends_session",
        "feedback_offsets",
    )
    parts = [name for name in row if name.startswith(("reward_", "penalty_"))]
    assert page_of(row["exposure"]) == row["request_id"]
    assert (row["propensity"], row["bucket"]) == (0.25, "7")
    return {**{name: row[name] for name in (*parts, *names, "feedback_offsets")}, "next": page_of(row["next_exposure"])}


@st.composite
def logs(draw: Any) -> list[Shown]:
    """Pages of three users and two policies in event-time order; many share a millisecond."""
    steps = draw(st.lists(st.tuples(st.sampled_from([0, 0, 1, 3, 10, 11]), st.sampled_from("uvw"), st.booleans()), max_size=30))
    names = draw(st.permutations(range(len(steps))))
    values = st.tuples(st.sampled_from([0.0, 0.0, 1.0]), st.sampled_from([0.0, 0.0, 0.0, 2.0]))
    log, ts_ms = [], 1000
    for name, (wait_ms, user_id, left) in zip(names, steps, strict=True):
        ts_ms += wait_ms
        labels = tuple(draw(st.lists(values, min_size=1, max_size=3)))
        policy = draw(st.sampled_from(["fusion", "bold", "baseline"]))
        log.append(Shown(f"r{name:02}", user_id, ts_ms, labels, left and draw(st.booleans()), policy))
    return log


@st.composite
def deliveries(draw: Any, log: list[Shown]) -> list[list[Any]]:
    """The log cut into messages, each with an honest watermark, and the messages cut into deliveries."""
    records, rest = [], list(log)
    while rest:
        size = draw(st.integers(1, len(rest)))
        pages, rest = rest[:size], rest[size:]
        honest_ms = min((page.ts_ms for page in rest), default=pages[-1].ts_ms + draw(st.integers(0, 20)))
        records.append(record(len(records), message(pages, honest_ms - draw(st.integers(0, 5)))))
    cut = []
    while records:
        size = draw(st.integers(1, len(records)))
        cut.append(records[:size])
        records = records[size:]
    return cut


def live(cuts: list[list[Any]], rebuild_at: set[int] | frozenset[int] = frozenset(), of: ExperienceSettings | None = None) -> Life:
    life = Life(of or reference_settings())
    for number, records in enumerate(cuts):
        if number in rebuild_at:
            life.rebuild()
        life.deliver(*records)
    if len(cuts) in rebuild_at:
        life.rebuild()
    life.end()
    return life


@random_logs
@given(st.data())
def test_every_cut_of_a_log_gives_the_transitions_of_the_reference(data: Any) -> None:
    log, of = data.draw(logs()), reference_settings(data.draw(INSTANCES))
    life = live(data.draw(deliveries(log)), of=of)
    assert found(life) == should(log, of)
    assert life.step.gauges() | {"watermark_ms": 0} == {"watermark_ms": 0, "open_sessions": 0, "open_pages": 0}
    assert [key for key in life.stored if key[:1] in b"pq"] == []


@random_logs
@given(st.data())
def test_pages_in_any_order_that_the_watermark_allows_give_the_same_transitions(data: Any) -> None:
    log, of = data.draw(logs()), reference_settings(data.draw(INSTANCES))
    shuffled = data.draw(st.permutations(log))
    assert found(live(data.draw(deliveries(shuffled)), of=of)) == should(log, of)


@random_logs
@given(st.data())
def test_a_step_rebuilt_from_its_rows_does_byte_for_byte_what_the_undisturbed_one_does(data: Any) -> None:
    of = reference_settings(data.draw(INSTANCES))
    cuts = data.draw(deliveries(data.draw(logs())))
    rebuild_at = data.draw(st.sets(st.integers(0, len(cuts))))
    assert live(cuts, rebuild_at, of).outcomes == live(cuts, of=of).outcomes


@random_logs
@given(st.data())
def test_users_that_share_a_key_are_told_apart(data: Any) -> None:
    log, of = data.draw(logs()), reference_settings(data.draw(INSTANCES))
    cuts = data.draw(deliveries(data.draw(st.permutations(log))))
    rebuild_at = data.draw(st.sets(st.integers(0, len(cuts))))
    with patch("experience.open_pages.user_keys", lambda user_ids: np.array([7 + (user == b"w") for user in user_ids], np.uint64)):
        life = live(cuts, rebuild_at, of)
    assert found(life) == should(log, of)


def test_another_process_with_other_keys_sends_the_same_bytes() -> None:
    log = [Shown(f"r{number:02}", f"u{number % 7}", 1000 + number) for number in range(40)]
    sent = []
    for sign in (1, -1):
        with patch(
            "experience.open_pages.user_keys", lambda ids, sign=sign: np.array([100 + sign * int(one[1:]) for one in ids], np.uint64)
        ):
            life = Life(reference_settings())
            life.deliver(record(0, message(log, 1040)))
            life.end()
        sent.append([outcome.outputs for outcome in life.outcomes])
    assert sent[0] == sent[1]
    assert len(life.rows()) == len(log)


@random_logs
@given(st.data())
def test_a_log_that_is_cleaned_at_every_chance_loses_nothing(data: Any) -> None:
    import experience.page_log

    log, of = data.draw(logs()), reference_settings(data.draw(INSTANCES))
    cuts = data.draw(deliveries(data.draw(st.permutations(log))))
    rebuild_at = data.draw(st.sets(st.integers(0, len(cuts))))
    slack = experience.page_log.SLACK_PAGES
    experience.page_log.SLACK_PAGES = -1000
    try:
        life = live(cuts, rebuild_at, of)
        assert [outcome.outputs for outcome in life.outcomes] == [outcome.outputs for outcome in live(cuts, of=of).outcomes]
    finally:
        experience.page_log.SLACK_PAGES = slack
    assert found(life) == should(log, of)


@random_logs
@given(st.data())
def test_messages_delivered_again_after_a_crash_change_nothing(data: Any) -> None:
    log, of = data.draw(logs()), reference_settings(data.draw(INSTANCES))
    cuts = data.draw(deliveries(log))
    again = [cut for cut in cuts for _ in range(data.draw(st.integers(1, 2)))]
    numbered, offset = [], 0
    for cut in again:
        numbered.append([one._replace(offset=offset + place) for place, one in enumerate(cut)])
        offset += len(cut)
    assert found(live(numbered, of=of)) == should(log, of)


@random_logs
@given(st.data())
def test_no_page_is_lost_or_sent_twice_when_the_watermark_is_wrong(data: Any) -> None:
    log = data.draw(st.permutations(data.draw(logs())))
    of = reference_settings(data.draw(INSTANCES))
    life = Life(of)
    for offset, page in enumerate(log):
        life.deliver(record(offset, message([page], data.draw(st.integers(900, 1500)))))
        if data.draw(st.booleans()):
            life.rebuild()
    life.end()
    assert sorted(row["request_id"] for row in life.rows()) == sorted(page.request_id for page in log for _ in of.instances)


@random_logs
@given(st.data())
def test_no_batch_holds_a_page_older_than_the_watermark_of_an_earlier_one(data: Any) -> None:
    promised_ms = 0
    for outcome in live(data.draw(deliveries(data.draw(logs()))), of=reference_settings(data.draw(INSTANCES))).outcomes:
        for output in outcome.outputs:
            batch, watermark_ms = decode_batch(output.value, "transitions")
            assert min(batch.column("ts_ms").to_pylist()) >= promised_ms
            promised_ms = watermark_ms


@random_logs
@given(st.data())
def test_a_step_without_its_disk_rebuilds_what_waited_from_the_offset_it_needs(data: Any) -> None:
    of = reference_settings(data.draw(INSTANCES))
    cuts = data.draw(deliveries(data.draw(logs())))
    stop = data.draw(st.integers(0, len(cuts)))
    life = Life(of)
    for cut in cuts[:stop]:
        life.deliver(*cut)
    needed_from = life.outcomes[-1].needed_from["samples"] if life.outcomes else 0
    other = Life(of)
    for one in (one for cut in cuts for one in cut if one.offset >= needed_from):
        other.deliver(one)
    other.end()
    for cut in cuts[stop:]:
        life.deliver(*cut)
    life.end()
    sent_by_both = found(life)
    before = {row["transition_id"] for outcome in life.outcomes[:stop] for row in transitions(outcome)}
    assert sent_by_both.keys() - before <= found(other).keys() <= sent_by_both.keys()
    assert all(row == sent_by_both[name] for name, row in found(other).items() if name not in before)

import random
from collections import Counter

import pyarrow as pa
import pytest
from monitor_records import SETTINGS, T0, Disk, announcement, letter, record, samples, transitions

from headrace.step import Count, Outcome, Record
from monitor.pages import DELAY_BOUNDS_MS
from monitor.ratio import Moments
from monitor.report import build_report
from monitor.settings import MonitorSettings
from monitor.tally import INPUTS, PartitionTally
from monitor.window import Bucket
from schemas.codec import encode_batch
from schemas.topics import DEAD_LETTERS, POLICIES, SAMPLES, TRANSITIONS
from schemas.transition import transition_schema

NOW_MS = T0 + 60_000


def fed(*records: tuple[str, Record], settings: MonitorSettings = SETTINGS) -> tuple[PartitionTally, list[Outcome]]:
    tally = PartitionTally(settings, 0)
    return tally, [tally.apply(topic, [one], NOW_MS) for topic, one in records]


def test_pages_rows_and_label_delays_are_counted_once_a_page_and_once_an_item() -> None:
    rows = [("r1", "v1", 0, 80), ("r1", "v1", 0, 2600), ("r2", "v1", 5, None), ("r3", "v1", 7, None), ("r3", "v1", 7, 100)]
    tally, [outcome] = fed((SAMPLES, record(0, samples(rows, 5))))

    totals = tally.pages.totals
    assert (totals.rows, totals.pages, totals.pages_joined, totals.delay_ms_sum) == (5, 3, 2, 2780)
    assert dict(zip(DELAY_BOUNDS_MS, totals.delay_classes, strict=False)) | {100: 2, 5000: 1} == {
        bound: {100: 2, 5000: 1}.get(bound, 0) for bound in DELAY_BOUNDS_MS
    }
    assert outcome.counts == Counter({Count("in", SAMPLES): 5})
    assert outcome.needed_from == {SAMPLES: 1}


def test_a_delay_beyond_the_last_bound_is_in_the_class_without_one() -> None:
    tally, _ = fed((SAMPLES, record(0, samples([("r1", "v1", 0, 3_600_001)], 0))))
    assert tally.pages.totals.delay_classes[-1] == 1


def test_the_first_response_of_a_version_is_its_earliest_exposure() -> None:
    tally, _ = fed(
        (SAMPLES, record(0, samples([("r1", "v2", 40, None), ("r2", "v1", 50, None), ("r3", "", 1, None)], 0))),
        (SAMPLES, record(1, samples([("r4", "v2", 30, None), ("r5", "v1", 90, None)], 0))),
        (SAMPLES, record(2, samples([("r6", "v0", 10, None)], 0, policy="baseline"))),
    )
    assert tally.pages.first_response_ms == {("fusion", "v2"): T0 + 30, ("fusion", "v1"): T0 + 50}


def test_a_page_delivered_again_changes_nothing_but_the_ignored_count() -> None:
    again = samples([("r1", "v1", 0, 80), ("r1", "v1", 0, None), ("r2", "v1", 5, None)], 5)
    tally, outcomes = fed((SAMPLES, record(0, again)), (SAMPLES, record(1, again)))
    assert tally.pages.totals.pages == 2
    assert outcomes[1].counts == Counter({Count("in", SAMPLES): 3, Count("ignored", "duplicate"): 3})


def test_a_transition_delivered_again_is_not_counted_twice_even_within_one_batch() -> None:
    one = ("t1", "s1", "fusion", "v1", 2.0, 0, False)
    tally, outcomes = fed(
        (TRANSITIONS, record(0, transitions([one, one], 0))),
        (TRANSITIONS, record(1, transitions([one, ("t2", "s1", "fusion", "v1", 3.0, 10, False)], 0))),
    )
    assert tally.rewards.versions["fusion", "v1"].pages == 2
    assert tally.rewards.versions["fusion", "v1"].reward == 5.0
    assert outcomes[0].counts[Count("ignored", "duplicate")] == outcomes[1].counts[Count("ignored", "duplicate")] == 1


@pytest.mark.parametrize(
    ("watermark_ms", "remembered", "pages"),
    [
        (30_000, 3, 3),
        (30_001, 2, 4),  # t20000 lies more than the horizon of 10 s behind the watermark: its id is forgotten
        (40_001, 1, 5),
    ],
)
def test_a_redelivery_is_known_by_its_id_within_the_horizon(watermark_ms: int, remembered: int, pages: int) -> None:
    def records(offset: int) -> list[tuple[str, Record]]:
        rows = [(f"t{at_ms}", "s", "fusion", "v1", 1.0, at_ms, False) for at_ms in (20_000, 30_000, 40_000)]
        return [(TRANSITIONS, record(offset + n, transitions([row], 0))) for n, row in enumerate(rows)]

    tally, _ = fed(*records(0), (TRANSITIONS, record(3, transitions([], watermark_ms))))
    assert len(tally.rewards.seen) == remembered
    for topic, one in records(4):
        tally.apply(topic, [one], NOW_MS)
    assert tally.rewards.totals.pages == pages


def test_a_row_older_than_the_watermark_promised_is_counted_all_the_same() -> None:
    tally, _ = fed(
        (TRANSITIONS, record(0, transitions([], 90_000))),
        (TRANSITIONS, record(1, transitions([("t1", "s", "fusion", "v1", 1.0, 5, True)], 0))),
    )
    assert tally.rewards.totals.pages == 1


def test_remembered_ids_are_bounded_and_their_rows_deleted() -> None:
    settings = MonitorSettings(remembered_ids_max=3)
    tally, outcomes = fed(
        *((TRANSITIONS, record(n, transitions([(f"t{n}{k}", "s", "fusion", "v", 1.0, 0, False) for k in range(2)], 0))) for n in range(3)),
        settings=settings,
    )
    assert len(tally.rewards.seen) == 2
    assert [sum(row is None for _, row in outcome.changes) for outcome in outcomes] == [0, 1, 1]


def test_sessions_end_when_done_and_open_ones_count_with_what_they_have() -> None:
    tally, _ = fed(
        (TRANSITIONS, record(0, transitions([("a1", "a", "fusion", "v1", 1.0, 0, False), ("b1", "b", "fusion", "v1", 4.0, 1, True)], 0))),
        (TRANSITIONS, record(1, transitions([("a2", "a", "fusion", "v2", 2.0, 2, False), ("c1", "c", "baseline", "", 7.0, 3, True)], 0))),
        (TRANSITIONS, record(2, transitions([("d1", "d", "fusion", "", 5.0, 4, False)], 0))),
    )
    assert set(tally.rewards.open) == {("a", "policy"), ("d", "exploration")}
    assert tally.rewards.finished["policy"] == Moments(clusters=1, n=1, reward=4, n_squared=1, reward_squared=16, n_reward=4)
    assert tally.rewards.moments("policy") == Moments(clusters=2, n=3, reward=7, n_squared=5, reward_squared=25, n_reward=10)
    assert tally.rewards.moments("baseline").mean == 7.0
    assert tally.rewards.moments("exploration").mean == 5.0


def test_a_session_that_got_its_first_version_midway_is_a_cluster_in_each_arm_and_both_end_with_it() -> None:
    tally, _ = fed(
        (TRANSITIONS, record(0, transitions([("a1", "a", "fusion", "", 1.0, 0, False), ("a2", "a", "fusion", "v1", 2.0, 1, True)], 0)))
    )
    assert not tally.rewards.open
    assert (tally.rewards.finished["exploration"].reward, tally.rewards.finished["policy"].reward) == (1.0, 2.0)


def test_a_silent_session_is_finished_by_event_time() -> None:
    rows = [("a1", "a", "fusion", "v", 1.0, 0, False), ("b1", "b", "fusion", "v", 1.0, 15_000, False)]
    tally, outcomes = fed(
        (TRANSITIONS, record(0, transitions(rows, 20_000))),
        (TRANSITIONS, record(1, transitions([("c1", "c", "fusion", "v", 1.0, 90_000, False)], 90_000))),
    )
    assert set(tally.rewards.open) == {("b", "policy"), ("c", "policy")}
    assert sum(row is None and key.startswith(b"ro") for key, row in outcomes[1].changes) == 1


def test_too_many_open_sessions_finish_the_stalest() -> None:
    settings = MonitorSettings(open_sessions_max=20)
    rows = [(f"t{n}", f"s{n:02}", "fusion", "v", 1.0, n, False) for n in range(25)]
    tally, _ = fed((TRANSITIONS, record(0, transitions(rows, 0))), settings=settings)
    assert sorted(session for session, _ in tally.rewards.open) == [f"s{n:02}" for n in range(7, 25)]
    assert tally.rewards.finished["policy"].clusters == 7


def test_only_the_newest_versions_are_kept_and_the_arm_loses_nothing() -> None:
    settings = MonitorSettings(versions_max=2)
    tally, _ = fed(
        (TRANSITIONS, record(0, transitions([(f"t{n}", "s", "fusion", f"v{n}", 1.0, n, False) for n in range(4)], 0))),
        (SAMPLES, record(0, samples([(f"r{n}", f"v{n}", n, None) for n in range(4)], 0))),
        *((POLICIES, record(n, announcement(f"v{n}", n))) for n in range(4)),
        settings=settings,
    )
    newest = {("fusion", "v2"), ("fusion", "v3")}
    assert tally.rewards.versions.keys() == tally.pages.first_response_ms.keys() == tally.versions.announced.keys() == newest
    assert tally.rewards.moments("policy").n == 4


def test_an_announcement_counts_once_and_a_rollback_changes_what_is_served() -> None:
    tally, outcomes = fed(
        (POLICIES, record(0, announcement("v1", 100, arrivals_ms={0: 3}))),
        (POLICIES, record(1, announcement("v2", 200))),
        (POLICIES, record(2, announcement("v2", 200))),
        (POLICIES, record(3, announcement("v1", 300, reason="rolled_back"))),
        (POLICIES, record(4, b"")),
    )
    served = tally.versions.served["fusion"]
    assert (served.model_version, served.announcements) == ("v1", {"promoted": 2, "rolled_back": 1})
    assert tally.versions.announced["fusion", "v1"].promoted_ms == T0 + 100
    assert [sum(n for c, n in o.counts.items() if c.name == "ignored") for o in outcomes] == [0, 0, 1, 0, 1]


def test_dead_letters_are_counted_by_stage_and_reason_once_each() -> None:
    tally, outcomes = fed(
        (DEAD_LETTERS, record(0, letter(7))),
        (DEAD_LETTERS, record(1, letter(8))),
        (DEAD_LETTERS, record(2, letter(7, ts_ms=999))),
        (DEAD_LETTERS, record(3, letter(7, reason="malformed"))),
        (DEAD_LETTERS, record(4, letter(7, stage="experience"))),
    )
    assert tally.letters.refused == {("joiner", "late"): 2, ("joiner", "malformed"): 1, ("experience", "late"): 1}
    assert outcomes[2].counts == Counter({Count("in", DEAD_LETTERS): 1, Count("ignored", "duplicate"): 1})


def test_a_dead_letter_is_forgotten_after_its_horizon_of_arrival() -> None:
    settings = MonitorSettings(letter_horizon_s=10)
    arrivals_ms = (0, 10_000, 20_001)
    tally, outcomes = fed(*((DEAD_LETTERS, record(n, letter(7 + n), at_ms)) for n, at_ms in enumerate(arrivals_ms)), settings=settings)
    assert len(tally.letters.seen) == 1
    assert sum(row is None for outcome in outcomes for _, row in outcome.changes) == 2


def test_events_fall_into_buckets_of_their_arrival() -> None:
    tally, _ = fed(
        (SAMPLES, record(0, samples([("r1", "v1", 0, None), ("r1", "v1", 0, None), ("r2", "v1", 0, None)], 0), arrival_ms=4_999)),
        (TRANSITIONS, record(0, transitions([("t1", "s", "fusion", "v1", 1.0, 0, True)], 0), arrival_ms=5_000)),
        (DEAD_LETTERS, record(0, letter(1), arrival_ms=9_999)),
    )
    first = T0 // 5000
    assert tally.window.buckets == {first: Bucket(0, 2), first + 1: Bucket(1, 2)}


def test_buckets_older_than_the_history_go_whatever_the_order_of_topics() -> None:
    settings = MonitorSettings(window_s=10, history_windows=2)
    tally, _ = fed(
        *((DEAD_LETTERS, record(n, letter(n), arrival_ms=n * 5000)) for n in range(6)),
        (DEAD_LETTERS, record(6, letter(6), arrival_ms=5000)),
        settings=settings,
    )
    first = T0 // 5000
    assert sorted(tally.window.buckets) == [first + 2, first + 3, first + 4, first + 5]


def test_a_page_counts_once_and_each_further_row_of_it_by_what_it_is() -> None:
    page = ("a", "s", "fusion", "v", 1.0, 0, False)
    messages = [
        transitions([page, page], 0),
        transitions([page], 0, instance="mc"),
        transitions([(*page[:4], 3.0, *page[5:])], 0, revision=1),
        transitions([page, ("b", *page[1:])], 0, instance="mc"),
    ]
    tally, outcomes = fed(*((TRANSITIONS, record(offset, message)) for offset, message in enumerate(messages)))
    ignored = [{count.label: n for count, n in outcome.counts.items() if count.name == "ignored"} for outcome in outcomes]
    assert ignored == [{"duplicate": 1}, {"other_instance": 1}, {"amendment": 1}, {"other_instance": 1}]
    assert (tally.rewards.totals.pages, tally.rewards.moments("policy").reward) == (2, 2.0)


def nulls_where_none_may_be() -> bytes:
    schema = transition_schema(("click",))
    columns = [pa.nulls(1, field.type) for field in schema]
    return encode_batch(pa.RecordBatch.from_arrays(columns, schema=schema), T0)


@pytest.mark.parametrize(
    ("topic", "message", "detail"),
    [
        (SAMPLES, b"", "not a record batch of samples"),
        (SAMPLES, b"\x00" * 50, "not a record batch of samples"),
        (SAMPLES, transitions([], 0), "expected a batch of samples version 2, got transitions version 3"),
        (TRANSITIONS, transitions([("t", "s", "fusion", "v", float("nan"), 0, True)], 0), "reward is not finite"),
        (TRANSITIONS, nulls_where_none_may_be(), "nulls in transition_id, instance"),
        (POLICIES, b"{", "Input data was truncated"),
        (POLICIES, b'{"policy": 3}', "Expected `str`, got `int` - at `$.policy`"),
        (DEAD_LETTERS, letter(1).replace(b"late", b"lute"), "Invalid enum value 'lute'"),
        (DEAD_LETTERS, b"[]", "Expected `object`, got `array`"),
    ],
)
def test_what_cannot_be_read_is_a_dead_letter_and_the_batch_goes_on(topic: str, message: bytes, detail: str) -> None:
    good = {
        SAMPLES: samples([("r", "v", 0, None)], 0),
        TRANSITIONS: transitions([("t", "s", "fusion", "v", 1.0, 0, True)], 0),
        POLICIES: announcement("v1", 5),
        DEAD_LETTERS: letter(3),
    }[topic]
    tally = PartitionTally(SETTINGS, 3)
    outcome = tally.apply(topic, [record(6, message), record(7, good)], NOW_MS)
    assert outcome.counts == Counter({Count("in", topic): 2, Count("rejected", "malformed"): 1})
    [refused] = outcome.dead_letters
    assert detail in refused.detail
    assert (refused.stage, refused.source_topic, refused.source_partition, refused.source_offset) == ("monitor", topic, 3, 6)
    assert (refused.size_bytes, refused.ts_ms) == (len(message), NOW_MS)


def test_a_batch_of_other_columns_is_refused() -> None:
    schema = transition_schema(("click",))
    short = pa.schema(list(schema)[:3], metadata=schema.metadata)
    _, [outcome] = fed((TRANSITIONS, record(0, encode_batch(pa.RecordBatch.from_pylist([], short), 0))))
    assert "other columns: transition_id, instance, revision" in outcome.dead_letters[0].detail
    unnamed = schema.with_metadata({b"headrace.schema": b"transitions", b"headrace.version": b"1"})
    _, [outcome] = fed((TRANSITIONS, record(0, encode_batch(pa.RecordBatch.from_pylist([], unnamed), 0))))
    assert outcome.counts[Count("rejected", "malformed")] == 1


def test_an_empty_batch_still_moves_the_watermark() -> None:
    tally, outcomes = fed((SAMPLES, record(0, samples([], 500))), (TRANSITIONS, record(0, transitions([], 700))))
    assert tally.pages.totals.watermark_ms == T0 + 500
    assert tally.gauges() == {"watermark_ms": T0 + 700, "open_sessions": 0, "remembered_ids": 0}
    assert all(not outcome.dead_letters for outcome in outcomes)


def a_log(seed: int) -> dict[str, list[Record]]:
    """A few hundred records of all topics with duplicates, bad bytes, silent sessions and old rows."""
    chance = random.Random(seed)
    log: dict[str, list[Record]] = {topic: [] for topic in INPUTS}
    sent: list[tuple[str, bytes]] = []
    for step in range(200):
        at_ms = step * 1500 + chance.randrange(1000)
        session = f"s{chance.randrange(12)}-{step // 60}"
        version = chance.choice(["", f"v{step // 40}"])
        policy = chance.choice(["baseline", "fusion"])
        message: tuple[str, bytes]
        match chance.randrange(8):
            case 0 | 1 | 2:
                rows = [
                    (f"t{step}-{n}", session, policy, version, chance.choice([0.1, 1.3, -0.7]), at_ms - n * 700, chance.random() < 0.2)
                    for n in range(chance.randrange(4))
                ]
                message = TRANSITIONS, transitions(rows, at_ms - 3000)
            case 3 | 4:
                page_rows = [(f"r{step}-{n // 2}", version, at_ms, chance.choice([None, 90, 700])) for n in range(chance.randrange(5))]
                message = SAMPLES, samples(page_rows, at_ms - 3000, policy)
            case 5:
                message = DEAD_LETTERS, letter(step % 37, ts_ms=at_ms)
            case 6:
                message = POLICIES, announcement(f"v{step // 40}", at_ms, step, arrivals_ms={step: 2})
            case _:
                message = chance.choice(sent) if sent else (POLICIES, b"?")
        sent.append(message)
        log[message[0]].append(record(len(log[message[0]]), message[1], at_ms))
    return log


def run(log: dict[str, list[Record]], chance: random.Random, crashes: bool) -> tuple[Disk, Counter[Count]]:
    """Deliver a log in random cuts, topics interleaved at random; with crashes, the step is made again from what was stored."""
    disk = Disk()
    counts: Counter[Count] = Counter()
    tally = disk.tally()
    at = dict.fromkeys(log, 0)
    while any(at[topic] < len(records) for topic, records in log.items()):
        topic = chance.choice([topic for topic, records in log.items() if at[topic] < len(records)])
        batch = log[topic][at[topic] : at[topic] + chance.randrange(1, 9)]
        outcome = tally.apply(topic, batch, NOW_MS)
        if crashes and chance.random() < 0.3:
            tally = disk.tally()  # it died before the write: the same records come again
            continue
        disk.write(outcome)
        counts.update(outcome.counts)
        at[topic] += len(batch)
        if crashes and chance.random() < 0.3:
            tally = disk.tally()
    return disk, counts


@pytest.mark.parametrize("seed", range(6))
def test_random_cuts_and_crashes_leave_the_same_rows_counts_and_report(seed: int) -> None:
    log = a_log(seed)
    whole = PartitionTally(SETTINGS, 0)
    expected_disk, expected_counts = Disk(), Counter[Count]()
    for topic, records in log.items():
        outcome = whole.apply(topic, records, NOW_MS)
        expected_disk.write(outcome)
        expected_counts.update(outcome.counts)

    for attempt in range(4):
        disk, counts = run(log, random.Random(seed * 10 + attempt), crashes=attempt > 0)
        assert disk.rows == expected_disk.rows
        assert counts == expected_counts
        assert build_report([disk.tally()]) == build_report([whole])
    report = build_report([whole])
    assert report["reward"]["policy"]["sessions"] > 2
    assert expected_counts[Count("ignored", "duplicate")] > 0


def test_a_log_delivered_twice_counts_once() -> None:
    log = a_log(1)
    once, twice = PartitionTally(MonitorSettings(), 0), PartitionTally(MonitorSettings(), 0)
    for topic, records in log.items():
        once.apply(topic, records, NOW_MS)
        twice.apply(topic, records, NOW_MS)
        again = [one._replace(offset=one.offset + len(records)) for one in records]
        twice.apply(topic, again, NOW_MS)
    assert build_report([twice]) == build_report([once])


def test_the_rows_of_a_batch_stay_small_however_much_was_counted_before() -> None:
    tally = PartitionTally(MonitorSettings(), 0)
    sizes = []
    for n in range(300):
        rows = [(f"t{n}-{k}", f"s{n}-{k}", "fusion", f"v{n // 10}", 1.0, n * 100, False) for k in range(20)]
        outcome = tally.apply(TRANSITIONS, [record(n, transitions(rows, n * 100))], NOW_MS)
        sizes.append(sum(len(key) + len(row or b"") for key, row in outcome.changes))
    assert len(tally.rewards.open) == 6000
    assert max(sizes) < 2000

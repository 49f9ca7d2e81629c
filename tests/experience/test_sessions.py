import pytest
from experience_log import KINDS, MINUTE_MS, SETTINGS, Life, Shown, exposure_bytes, message, page_of, record, transitions

from experience.sessions import OUT_OF_ORDER, PartitionSessions
from headrace.memory_rows import MemoryRows
from headrace.step import Count
from schemas.codec import decode_batch
from schemas.transition import transition_schema

M = MINUTE_MS
CLICKED = ((1.0, 0.0), (0.0, 0.0))


def story(row: dict) -> tuple:
    """What a table of cases says of a transition: page, session, step, next page, done, penalties."""
    following = page_of(row["next_exposure"])
    penalty = row["penalty_no_conversion"] or row["penalty_left"]
    return row["transition_id"], row["session_id"], row["step"], following, row["done"], penalty


# name, pages in the order of arrival, transitions (with penalties -0.5 for an intermediate page, -2 for leaving)
STORIES = [
    ("one page alone ends with the gap", [Shown("a", "u", 0)], [("a", "a", 0, None, True, -2.0)]),
    (
        "a page within the gap goes on, the last one ends",
        [Shown("a", "u", 0), Shown("b", "u", 30 * M)],
        [("a", "a", 0, "b", False, -0.5), ("b", "a", 1, None, True, -2.0)],
    ),
    (
        "a millisecond more than the gap is another session",
        [Shown("a", "u", 0), Shown("b", "u", 30 * M + 1)],
        [("a", "a", 0, None, True, -2.0), ("b", "b", 0, None, True, -2.0)],
    ),
    (
        "a user who left and comes back at once begins another session",
        [Shown("a", "u", 0, left=True), Shown("b", "u", 1)],
        [("a", "a", 0, None, True, -2.0), ("b", "b", 0, None, True, -2.0)],
    ),
    (
        "a conversion spares both penalties",
        [Shown("a", "u", 0, CLICKED), Shown("b", "u", 1, CLICKED)],
        [("a", "a", 0, "b", False, 0.0), ("b", "a", 1, None, True, 0.0)],
    ),
    (
        "users do not share sessions",
        [Shown("a", "u", 0), Shown("b", "v", 1), Shown("c", "u", 2)],
        [("a", "a", 0, "c", False, -0.5), ("b", "b", 0, None, True, -2.0), ("c", "a", 1, None, True, -2.0)],
    ),
    (
        "an older page in the same batch comes first",
        [Shown("b", "u", 5), Shown("a", "u", 0)],
        [("a", "a", 0, "b", False, -0.5), ("b", "a", 1, None, True, -2.0)],
    ),
    (
        "the request id orders pages of one millisecond",
        [Shown("b", "u", 5), Shown("a", "u", 5)],
        [("a", "a", 0, "b", False, -0.5), ("b", "a", 1, None, True, -2.0)],
    ),
]


@pytest.mark.parametrize(("pages", "expected"), [case[1:] for case in STORIES], ids=[case[0] for case in STORIES])
def test_pages_become_these_transitions(pages, expected):
    life = Life()
    life.deliver(record(0, message(pages, 0)))
    life.end()
    assert sorted(map(story, life.rows())) == expected


def test_a_long_session_is_cut_where_the_user_went_on_without_the_penalty_for_leaving():
    life = Life(SETTINGS.model_copy(update={"max_session_pages": 2}))
    life.deliver(record(0, message([Shown(name, "u", ts) for ts, name in enumerate("abc")], 0)))
    life.end()
    assert [story(row) for row in life.rows()] == [
        ("a", "a", 0, "b", False, -0.5),
        ("b", "a", 1, None, True, -0.5),
        ("c", "c", 0, None, True, -2.0),
    ]


def test_a_page_leaves_when_the_watermark_has_passed_its_successor_and_not_before():
    life = Life()
    pages = [Shown("a", "u", 1000), Shown("b", "u", 2000)]
    assert life.deliver(record(0, message(pages, 2000))).outputs == []
    assert [story(row) for row in transitions(life.deliver(record(1, message([], 2001))))] == [("a", "a", 0, "b", False, -0.5)]


def test_a_page_that_ends_a_session_leaves_when_the_watermark_has_passed_the_gap_and_not_before():
    life = Life()
    life.deliver(record(0, message([Shown("a", "u", 1000)], 1000)))
    assert life.deliver(record(1, message([], 1000 + 30 * M))).outputs == []
    assert [story(row) for row in transitions(life.deliver(record(2, message([], 1001 + 30 * M))))] == [("a", "a", 0, None, True, -2.0)]


def test_a_page_that_the_user_left_from_leaves_without_waiting_for_the_gap():
    life = Life()
    outcome = life.deliver(record(0, message([Shown("a", "u", 1000, left=True)], 1001)))
    assert [story(row) for row in transitions(outcome)] == [("a", "a", 0, None, True, -2.0)]


def test_a_page_that_the_watermark_allowed_to_come_late_is_put_in_its_place():
    life = Life()
    life.deliver(record(0, message([Shown("a", "u", 1), Shown("c", "u", 3)], 2)))
    life.deliver(record(1, message([Shown("b", "u", 2)], 10)))
    life.end()
    assert [story(row)[:4] for row in life.rows()] == [("a", "a", 0, "b"), ("b", "a", 1, "c"), ("c", "a", 2, None)]
    assert not any(OUT_OF_ORDER in outcome.counts for outcome in life.outcomes)


def test_a_page_older_than_promised_is_counted_and_leads_to_the_page_that_waits():
    life = Life()
    life.deliver(record(0, message([Shown("a", "u", 1), Shown("c", "u", 3)], 100)))
    outcome = life.deliver(record(1, message([Shown("b", "u", 2)], 100)))
    assert outcome.counts[OUT_OF_ORDER] == 2
    assert [story(row)[:4] for row in transitions(outcome)] == [("b", "a", 1, "c")]
    life.end()
    assert [story(row)[:4] for row in life.rows()] == [("a", "a", 0, "c"), ("b", "a", 1, "c"), ("c", "a", 2, None)]


def test_a_page_older_than_a_session_that_has_begun_to_leave_is_a_session_of_its_own():
    life = Life()
    life.deliver(record(0, message([Shown("b", "u", 40 * M), Shown("c", "u", 50 * M)], 51 * M)))
    life.deliver(record(1, message([Shown("a", "u", 0)], 51 * M)))
    life.end()
    assert sorted(map(story, life.rows())) == [
        ("a", "a", 0, None, True, -2.0),
        ("b", "b", 0, "c", False, -0.5),
        ("c", "b", 1, None, True, -2.0),
    ]


def test_a_page_that_came_in_time_begins_an_earlier_session_and_waits_for_its_own_successor():
    life = Life()
    life.deliver(record(0, message([Shown("c", "u", 40 * M)], 0)), record(1, message([Shown("a", "u", 0)], 0)))
    life.deliver(record(2, message([Shown("b", "u", 1 * M)], 50 * M)))
    life.end()
    assert [story(row)[:4] for row in life.rows()] == [("a", "a", 0, "b"), ("b", "a", 1, None), ("c", "c", 0, None)]


def test_a_rebuilt_step_knows_which_pages_wait_for_the_watermark_only():
    life = Life()
    life.deliver(record(0, message([Shown("a", "u", 1), Shown("b", "u", 2), Shown("c", "v", 2, left=True)], 1)))
    life.rebuild()
    assert [row["transition_id"] for row in transitions(life.deliver(record(1, message([], 3))))] == ["a", "c"]


def test_a_rebuilt_step_ends_the_oldest_session_first_whoever_has_it():
    life = Life()
    life.deliver(record(0, message([Shown("a", "u", 3 * M), Shown("b", "v", 2 * M), Shown("c", "w", 1 * M)], 0)))
    life.rebuild()
    assert [row["transition_id"] for row in transitions(life.deliver(record(1, message([], 31 * M + 1))))] == ["c"]


def test_a_page_delivered_again_is_ignored_before_and_after_it_left():
    pages = [Shown("a", "u", 0), Shown("b", "u", 1)]
    life = Life()
    life.deliver(record(0, message(pages, 2)), record(1, message(pages, 2)))
    life.rebuild()
    outcome = life.deliver(record(2, message(pages, 2)))
    assert outcome.counts[Count("ignored", "duplicate")] == 4
    life.end()
    assert [row["transition_id"] for row in life.rows()] == ["a", "b"]


def test_a_page_that_follows_itself_in_a_batch_is_not_one_page_with_twice_the_feedback():
    life = Life()
    page = Shown("a", "u", 0, CLICKED, left=True)
    outcome = life.deliver(record(0, message([page, page], 1)))
    assert outcome.counts[Count("ignored", "duplicate")] == 2
    assert [row["reward"] for row in transitions(outcome)] == [1.0]


def test_sessions_that_end_at_once_leave_in_the_order_of_their_users():
    users = [f"u{n:03}" for n in range(100)]
    life = Life()
    life.deliver(record(0, message([Shown(f"r{n}", user, 200 - n, left=True) for n, user in enumerate(users)], 201)))
    assert [row["user_id"] for row in life.rows()] == users


def test_a_page_beyond_the_horizon_is_refused_and_ids_beyond_it_are_forgotten():
    life = Life()
    life.deliver(record(0, message([Shown("a", "u", 0)], 60 * M)))
    assert life.deliver(record(1, message([Shown("a", "u", 0)], 60 * M))).counts[Count("ignored", "duplicate")] == 2
    life.deliver(record(2, message([], 60 * M + 1)))
    assert not any(key.startswith(b"s") for key in life.stored)
    outcome = life.deliver(record(3, message([Shown("a", "u", 0)], 60 * M + 1)))
    assert outcome.counts == {Count("in", "samples"): 2, Count("rejected", "late"): 2}
    assert outcome.dead_letters[0].detail == "page a is 3600001 ms older than the watermark"
    assert outcome.dead_letters[0].source_offset == 3


def test_an_idle_topic_ends_sessions_by_wall_time_and_a_busy_one_does_not():
    life = Life()
    life.deliver(record(0, message([Shown("a", "u", 5)], 0)), now_ms=1_000_000)
    assert life.step.tick(1_000_000 + 29_999).outputs == []
    assert life.step.tick(1_000_000 + 30 * M).outputs == []
    assert [story(row) for row in transitions(life.step.tick(1_000_001 + 30 * M))] == [("a", "a", 0, None, True, -2.0)]


def test_after_an_idle_time_the_backlog_is_judged_by_its_own_watermark():
    life = Life()
    life.deliver(record(0, message([Shown("a", "u", 0)], 0)), now_ms=0)
    life.keep(life.step.tick(20 * M))
    assert life.step.gauges()["watermark_ms"] == 20 * M
    life.deliver(record(1, message([Shown("b", "v", 1 * M)], 1 * M)), now_ms=20 * M)
    assert life.step.gauges()["watermark_ms"] == 1 * M
    life.deliver(record(2, message([Shown("c", "v", 2 * M)], 3 * M)), now_ms=20 * M)
    assert [story(row)[:4] for row in life.rows()] == [("b", "b", 0, "c")]
    assert not any(OUT_OF_ORDER in outcome.counts for outcome in life.outcomes)


def test_the_time_that_a_worker_was_switched_off_is_not_an_idle_time():
    life = Life()
    life.deliver(record(0, message([Shown("a", "u", 0)], 0)), now_ms=0)
    life.rebuild()
    assert life.step.tick(1_000 * M).outputs == []
    assert life.step.tick(1_010 * M).outputs == []
    assert len(transitions(life.step.tick(1_031 * M))) == 1


def test_a_topic_without_any_samples_gives_nothing_however_long_it_is_idle():
    step = PartitionSessions(SETTINGS, 0, MemoryRows())
    step.tick(0)
    outcome = step.tick(10**12)
    assert (outcome.outputs, outcome.needed_from, step.gauges()) == ([], {}, {"watermark_ms": 0, "open_sessions": 0, "open_pages": 0})


def test_needed_from_is_the_oldest_message_with_a_page_that_waits_or_began_a_session_still_open():
    life = Life(SETTINGS.model_copy(update={"dedup_horizon_ms": 0}))
    assert life.deliver(record(7, message([Shown("a", "u", 0, left=True)], 1))).needed_from == {"samples": 8}
    assert life.deliver(record(8, message([Shown("b", "u", 1)], 1))).needed_from == {"samples": 8}
    assert life.deliver(record(9, message([Shown("c", "v", 2)], 2))).needed_from == {"samples": 8}
    assert life.deliver(record(12, message([Shown("d", "u", 3)], 4))).needed_from == {"samples": 8}
    life.rebuild()
    assert life.deliver(record(13, message([Shown("e", "u", 4, left=True)], 4))).needed_from == {"samples": 8}
    assert life.deliver(record(14, message([], 5))).needed_from == {"samples": 9}
    assert life.end().needed_from == {"samples": 15}


def test_needed_from_is_no_later_than_the_oldest_delivery_whose_pages_must_be_known_again():
    life = Life(SETTINGS.model_copy(update={"dedup_horizon_ms": 10}))
    assert life.deliver(record(7, message([Shown("a", "u", 0, left=True)], 1))).needed_from == {"samples": 7}
    assert life.deliver(record(8, message([Shown("b", "u", 9, left=True)], 10))).needed_from == {"samples": 7}
    life.rebuild()
    assert life.deliver(record(9, message([], 11))).needed_from == {"samples": 8}
    assert life.deliver(record(10, message([], 20))).needed_from == {"samples": 11}


def test_pages_that_the_joiner_sends_again_break_no_session_of_a_collector_that_lost_its_disk():
    log = [record(0, message([Shown("a", "u", 0, left=True)], 1)), record(1, message([Shown("b", "u", 2)], 3))]
    log.append(record(2, message([Shown("c", "u", 4)], 5)))
    again = record(3, message([Shown("a", "u", 0)], 1))  # and without what made it the last page of its session
    log += [again, record(4, message([Shown("d", "u", 6)], 7))]
    undisturbed, first, second = Life(), Life(), Life()
    undisturbed.deliver(*log)
    undisturbed.end()

    start = first.deliver(*log[:3]).needed_from["samples"]
    second.deliver(*log[start:4])
    second.deliver(log[4])
    second.end()

    once = {row["transition_id"]: row for row in [*second.rows(), *first.rows()]}
    assert sorted(once.items()) == sorted((row["transition_id"], row) for row in undisturbed.rows())


def test_a_session_read_again_from_needed_from_without_its_rows_is_numbered_as_before():
    log = [record(place, message([Shown(f"p{place}", "u", place * M)], place * M)) for place in range(3, 8)]
    undisturbed, first, second = Life(), Life(), Life()
    undisturbed.deliver(*log)
    undisturbed.end()

    first.deliver(log[0])
    start = first.deliver(*log[1:3]).needed_from["samples"]
    second.deliver(*log[start - 3 :])
    second.end()

    once = {row["transition_id"]: row for row in [*second.rows(), *first.rows()]}
    assert list(once.values()) == undisturbed.rows()


def test_the_watermark_promises_the_oldest_page_that_waits():
    life = Life()
    outcome = life.deliver(record(0, message([Shown("a", "u", 1), Shown("b", "u", 5), Shown("c", "v", 3)], 7)))
    assert decode_batch(outcome.outputs[0].value, "transitions")[1] == 3
    assert decode_batch(life.end().outputs[0].value, "transitions")[1] > 7


def test_all_columns_of_a_transition():
    labels = ((1.0, 0.0), (0.0, 0.0), (2.0, 1.0))
    life = Life()
    outcome = life.deliver(record(0, message([Shown("a", "u", 1000, labels), Shown("b", "u", 2000)], 3000)))
    batch, _ = decode_batch(outcome.outputs[0].value, "transitions")
    assert batch.schema.equals(transition_schema(KINDS))
    assert batch.to_pylist() == [
        {
            "transition_id": "a",
            "instance": "td1",
            "revision": 0,
            "request_id": "a",
            "user_id": "u",
            "session_id": "a",
            "step": 0,
            "ts_ms": 1000,
            "policy": "fusion",
            "model_version": "fusion-000001",
            "bucket": "7",
            "propensity": 0.25,
            "reward": 13.0,
            "reward_click": 3.0,
            "reward_pay": 10.0,
            "penalty_no_conversion": 0.0,
            "penalty_left": 0.0,
            "n_steps": 1,
            "return": 13.0,
            "discount": pytest.approx(0.9),
            "done": False,
            "ends_session": False,
            "feedback_count": 2,
            "feedback_arrival_ms": 2002,
            "source_partition": 3,
            "source_offset": 0,
            "samples_offset": 0,
            "feedback_offsets": [390435590788, 390435590790],
            "exposure": exposure_bytes(Shown("a", "u", 0)),
            "next_exposure": exposure_bytes(Shown("b", "u", 0)),
        }
    ]


def test_pages_of_different_kinds_leave_in_batches_of_their_own():
    life = Life()
    life.deliver(record(0, message([Shown("a", "u", 0, ((1.0,),))], 0, ("click",))), record(1, message([Shown("b", "u", 1, CLICKED)], 0)))
    outcome = life.end()
    assert [decode_batch(output.value, "transitions")[0].schema.metadata[b"headrace.kinds"] for output in outcome.outputs] == [
        b"click",
        b"click,pay",
    ]
    assert [row["reward"] for row in transitions(outcome)] == [1.0, 1.0]


def test_many_sessions_that_end_at_once_leave_in_messages_of_limited_size_each_keeping_its_promise(monkeypatch):
    monkeypatch.setattr("experience.transitions.BATCH_BYTES", 110)
    life = Life()
    life.deliver(record(0, message([Shown(f"r{n}", f"u{n}", 9 - n) for n in range(5)], 0)))
    batches = [decode_batch(output.value, "transitions") for output in life.end().outputs]
    assert [batch.num_rows for batch, _ in batches] == [2, 2, 1]
    assert [watermark for _, watermark in batches][:2] == [5, 5]


def test_counts_and_gauges_say_what_happened():
    life = Life()
    outcome = life.deliver(record(0, message([Shown("a", "u", 0), Shown("b", "v", 0, left=True)], 1)))
    assert outcome.counts == {Count("in", "samples"): 4, Count("out", "transitions"): 1}
    assert life.step.gauges() == {"watermark_ms": 1, "open_sessions": 1, "open_pages": 1}


def test_a_delivery_of_nothing_changes_nothing():
    outcome = PartitionSessions(SETTINGS, 0, MemoryRows()).apply("samples", [], 0)
    assert (outcome.outputs, outcome.changes, outcome.needed_from) == ([], [], {})


def test_another_topic_is_a_fault_of_the_wiring():
    with pytest.raises(ValueError, match="reads samples, not exposures"):
        PartitionSessions(SETTINGS, 0, MemoryRows()).apply("exposures", [record(0, b"")], 0)

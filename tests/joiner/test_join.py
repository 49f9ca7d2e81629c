"""One rule of the join after the other."""

import pytest
from join_events import NOW_MS, SETTINGS, WINDOW_MS, counts, exposure, feedback, join, records, rows, store

from headrace.memory_rows import InMemory
from headrace.step import Outcome, Record
from schemas.codec import decode_batch, encode_batch
from schemas.dead_letter import DeadLetter
from schemas.sample import sample_schema
from schemas.topics import EXPOSURES, FEEDBACK

END_MS = 900_000
"""Later than everything else: an exposure and a feedback of this time end every window."""


def run(step: InMemory, exposures: list[bytes], reactions: list[bytes]) -> list[Outcome]:
    """Exposures first, then feedback, then time passes."""
    outcomes = [step.apply(EXPOSURES, records(*exposures), NOW_MS), step.apply(FEEDBACK, records(*reactions), NOW_MS)]
    outcomes.append(step.apply(EXPOSURES, records(exposure("end", END_MS), first_offset=1000), NOW_MS))
    outcomes.append(step.apply(FEEDBACK, records(feedback("end", END_MS), first_offset=1000), NOW_MS))
    return outcomes


def refusals(outcomes: list[Outcome]) -> list[tuple[str, str, int]]:
    return [(letter.reason, letter.source_topic, letter.source_offset) for outcome in outcomes for letter in outcome.dead_letters]


def test_a_sample_holds_what_was_shown_what_came_back_and_the_unopened_message() -> None:
    shown = exposure("r1", 1000, ["a", "b"], user_id="u7", policy="fusion", model_version="fusion-000001")
    reactions = [feedback("r1", 1040, "b", user_id="u7"), feedback("r1", 1060, "b", kind="dwell", value=250.0, user_id="u7")]
    first, second = rows(run(join(), [shown], reactions))
    common = {
        "request_id": "r1",
        "user_id": "u7",
        "page_size": 2,
        "ts_ms": 1000,
        "policy": "fusion",
        "model_version": "fusion-000001",
        "left": False,
        "closed_by": "window",
        "source_partition": 3,
        "source_offset": 0,
        "exposure": shown,
    }
    unlabelled = {"label_click": 0.0, "label_dwell": 0.0, "label_delay_ms": None, "feedback_arrival_ms": None, "feedback_offsets": []}
    labelled = {"label_click": 1.0, "label_dwell": 250.0, "label_delay_ms": 40, "feedback_arrival_ms": NOW_MS + 10}
    labelled["feedback_offsets"] = [0, 1]
    assert first == {**common, "item_id": "a", "position": 0, **unlabelled}
    assert second == {**common, "item_id": "b", "position": 1, **labelled}


def test_the_message_is_in_a_batch_once_a_page_and_its_schema_is_the_published_one() -> None:
    [output] = [
        output for outcome in run(join(), [exposure("r1", 1000, ["a", "b", "c"]), exposure("r2", 1000)], []) for output in outcome.outputs
    ]
    batch, _ = decode_batch(output.value, "samples")
    assert len(batch["exposure"].dictionary) == 2
    assert batch.schema.equals(sample_schema(SETTINGS.feedback_kinds))
    batch.validate(full=True)


@pytest.mark.parametrize(
    ("reactions", "click"),
    [
        ([], 0.0),
        ([feedback("r1", 1000)], 1.0),
        ([feedback("r1", 1000 + WINDOW_MS)], 1.0),
        ([feedback("r1", 1001 + WINDOW_MS)], 0.0),
        ([feedback("r1", 999)], 0.0),
        ([feedback("r1", 1010), feedback("r1", 1020, value=0.5)], 1.5),
        ([feedback("r1", 1010, value=-2.0)], -2.0),
        ([feedback("r1", 1010, event_id="e"), feedback("r1", 1010, event_id="e")], 1.0),
        ([feedback("r1", 1010, kind="leave", item_id="")], 0.0),
        ([feedback("r1", 1010, user_id="someone else")], 0.0),
        ([feedback("r1", 1010, "another item")], 0.0),
        ([feedback("r1", 1010, "")], 0.0),
    ],
)
def test_the_label_is_the_sum_of_the_values_of_what_counts(reactions: list[bytes], click: float) -> None:
    assert [row["label_click"] for row in rows(run(join(), [exposure("r1", 1000)], reactions))] == [click]


def test_an_item_anywhere_on_a_page_gets_its_own_label() -> None:
    items = ["a", "b", "c", "d"]
    found = rows(
        run(join(), [exposure("r1", 1000, items), exposure("r2", 1000, items)], [feedback("r1", 1010, "d"), feedback("r2", 1010, "b")])
    )
    assert [(row["request_id"], row["item_id"]) for row in found if row["label_click"]] == [("r1", "d"), ("r2", "b")]


def test_leaving_marks_every_row_of_its_page_and_is_no_label() -> None:
    found = rows(run(join(), [exposure("r1", 1000, ["a", "b"]), exposure("r2", 1000, ["a"])], [feedback("r1", 1010, "", kind="leave")]))
    assert [(row["left"], row["label_delay_ms"], row["feedback_arrival_ms"]) for row in found] == [
        (True, None, NOW_MS),
        (True, None, NOW_MS),
        (False, None, None),
    ]


@pytest.mark.parametrize(
    ("reaction", "reason"),
    [
        (feedback("r1", 1001 + WINDOW_MS), "late"),
        (feedback("r1", 999), "unknown_request"),
        (feedback("r1", 1010, user_id="someone else"), "unknown_request"),
        (feedback("never shown", 1010), "unknown_request"),
        (feedback("never shown", 1010, "", kind="leave"), "unknown_request"),
        (feedback("r1", 1010, "i2"), "unknown_item"),
        (feedback("r1", 1010, ""), "unknown_item"),
        (feedback("r1", 1010, kind="share"), "unknown_kind"),
        (feedback("never shown", 1010, kind="share"), "unknown_kind"),
        (feedback("r1", NOW_MS + 11), "future"),
        (feedback("r1", 1010, event_id="e" * 300), "malformed"),
        (feedback("r1", 1010, value=1e31), "malformed"),
        (feedback("r1", 1010, value=-1e31), "malformed"),
        (feedback("r1", 1010).replace(b'"value":1.0', b'"value":NaN'), "malformed"),
        (feedback("r1", 1010).replace(b'"value":1.0', b'"value":Infinity'), "malformed"),
        (feedback("r1", 1010).replace(b'"value":1.0', b'"value":1e999'), "malformed"),
        (feedback("r1", 1010).replace(b'"value":1.0', b'"value":null'), "malformed"),
        (feedback("r1", 1010).replace(b'"value":1.0', b'"worth":1.0'), "malformed"),
        (feedback("r1", 1010).replace(b'"r1/', b'"\\ud800'), "malformed"),
        (feedback("r1", 1010).replace(b'"r1/', b'"\xff\xfe'), "malformed"),
        (feedback("r1", 1010).replace(b'"version":1', b'"version":2'), "malformed"),
        (feedback("r1", 1010).replace(b"1010", b"-5"), "malformed"),
        (feedback("r1", 1010) + b" " * 4096, "too_large"),
        (b"", "malformed"),
        (b"[]", "malformed"),
        (b"not json", "malformed"),
    ],
)
def test_feedback_that_cannot_count_is_refused_with_its_reason_and_the_stream_goes_on(reaction: bytes, reason: str) -> None:
    outcomes = run(join(), [exposure("r1", 1000)], [feedback("r1", 1005), reaction, feedback("r1", 1050)])
    assert refusals(outcomes) == [(reason, FEEDBACK, 1)]
    assert counts(outcomes, "rejected") == {reason: 1}
    assert [row["label_click"] for row in rows(outcomes)] == [2.0]


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        (exposure("r2", NOW_MS + 11), "future"),
        (exposure("r2", 1000, ["a", "b", "a"]), "malformed"),
        (exposure("r2", 1000, []), "malformed"),
        (exposure("", 1000), "malformed"),
        (exposure("r2", 1000, model_version="v" * 257), "malformed"),
        (exposure("r2", 1000).replace(b'"action":[1.0],', b""), "malformed"),
        (exposure("r2", 1000).replace(b'"hour":1.0', b'"hour":NaN'), "malformed"),
        (exposure("r2", 1000).replace(b'"hour":1.0', b'"hour":' + b"[" * 1500 + b"]" * 1500), "malformed"),
        (exposure("r2", 1000).replace(b'"ts_ms":1000', b'"ts_ms":"1000"'), "malformed"),
        (exposure("r2", 1000).replace(b'"scene"', b'"scenery"'), "malformed"),
        (exposure("r2", 1000).replace(b'"r2"', b'"\xff"'), "malformed"),
        (exposure("r2", 1000)[:-1], "malformed"),
        (exposure("r2", 1000) + b" " * 4096, "too_large"),
        (b"", "malformed"),
    ],
)
def test_an_exposure_that_cannot_be_used_is_refused_with_its_reason_and_the_stream_goes_on(shown: bytes, reason: str) -> None:
    outcomes = run(join(), [exposure("r1", 1000), shown, exposure("r3", 1001)], [])
    assert refusals(outcomes) == [(reason, EXPOSURES, 1)]
    assert counts(outcomes, "rejected") == {reason: 1}
    assert [(row["request_id"], row["source_offset"]) for row in rows(outcomes)] == [("r1", 0), ("r3", 2)]


def test_a_dead_letter_finds_the_original_bytes_and_quotes_the_decoder_at_most_200_characters_long() -> None:
    broken = feedback("r1", 1010).replace(b'"value"', b'"' + b"v" * 500 + b'"')
    [letter] = join().apply(FEEDBACK, [Record(77, 5, broken)], NOW_MS).dead_letters
    assert letter == DeadLetter(
        stage="joiner",
        reason="malformed",
        detail=("Object contains unknown field `" + "v" * 500)[:200],
        source_topic=FEEDBACK,
        source_partition=3,
        source_offset=77,
        size_bytes=len(broken),
        ts_ms=NOW_MS,
    )


def test_an_event_of_the_future_does_not_move_the_watermark() -> None:
    step = join()
    step.apply(EXPOSURES, records(exposure("r1", 1000), exposure("r2", NOW_MS + 11)), NOW_MS)
    step.apply(FEEDBACK, records(feedback("r1", 1050), feedback("r1", NOW_MS + 11)), NOW_MS)
    assert step.gauges()["watermark_ms"] == 1000


def test_refused_but_well_formed_events_do_move_the_watermark() -> None:
    step = join()
    step.apply(EXPOSURES, records(exposure("r1", 1000), exposure("r2", 2000)), NOW_MS)
    step.apply(FEEDBACK, records(feedback("r1", 1500, kind="share")), NOW_MS)
    assert step.gauges()["watermark_ms"] == 1500


def test_a_second_exposure_of_an_open_request_is_ignored_in_the_same_batch_and_in_a_later_one() -> None:
    step = join()
    outcomes = run(step, [exposure("r1", 1000), exposure("r1", 1000)], [feedback("r1", 1010)])
    again = join()
    first = again.apply(EXPOSURES, records(exposure("r1", 1000)), NOW_MS)
    second = again.apply(EXPOSURES, records(exposure("r1", 1000), first_offset=1), NOW_MS)
    assert [(row["request_id"], row["source_offset"], row["label_click"]) for row in rows(outcomes)] == [("r1", 0, 1.0)]
    assert counts(outcomes, "ignored") == counts([first, second], "ignored") == {"duplicate_exposure": 1}
    assert not any(outcome.dead_letters for outcome in [*outcomes, first, second])


def test_an_exposure_behind_the_watermark_by_more_than_a_window_is_late() -> None:
    step = join()
    step.apply(EXPOSURES, records(exposure("r1", 1000)), NOW_MS)
    step.apply(FEEDBACK, records(feedback("r1", 1000)), NOW_MS)
    outcome = step.apply(EXPOSURES, records(exposure("r2", 1000 - WINDOW_MS), exposure("r3", 999 - WINDOW_MS), first_offset=1), NOW_MS)
    assert refusals([outcome]) == [("late", EXPOSURES, 2)]
    assert step.gauges()["open_pages"] == 2


@pytest.mark.parametrize(("passed_ms", "reasons"), [(1201, ["late"]), (1300, ["late"]), (1301, [])])
def test_feedback_on_a_closed_page_is_late_until_another_window_has_passed_and_then_unknown(passed_ms: int, reasons: list[str]) -> None:
    step = join()
    step.apply(EXPOSURES, records(exposure("r1", 1100)), NOW_MS)
    step.apply(EXPOSURES, records(exposure("r2", 9000), first_offset=1), NOW_MS)
    closed = step.apply(FEEDBACK, records(feedback("never shown", passed_ms)), NOW_MS)
    after = step.apply(FEEDBACK, records(feedback("r1", passed_ms), first_offset=1), NOW_MS)
    assert [row["request_id"] for row in rows([closed])] == ["r1"]
    assert [letter.reason for letter in after.dead_letters] == reasons
    assert step.gauges()["waiting_feedback"] == 1 + (not reasons)


def test_feedback_ahead_of_its_exposure_waits_for_it() -> None:
    step = join()
    step.apply(
        FEEDBACK,
        records(feedback("r1", 1010), feedback("r1", 1010), feedback("r1", 1020, "i2"), feedback("r1", 1030, "", kind="leave")),
        NOW_MS,
    )
    assert step.gauges()["waiting_feedback"] == 4
    outcome = step.apply(EXPOSURES, records(exposure("r1", 1000)), NOW_MS)
    assert counts([outcome], "ignored") == {"duplicate_feedback": 1}
    assert refusals([outcome]) == [("unknown_item", FEEDBACK, 2)]
    assert step.gauges()["waiting_feedback"] == 0
    step.apply(EXPOSURES, records(exposure("end", END_MS), first_offset=1), NOW_MS)
    [row] = rows([step.apply(FEEDBACK, records(feedback("end", END_MS), first_offset=4), NOW_MS)])
    assert (row["label_click"], row["left"]) == (1.0, True)


def test_waiting_feedback_is_given_up_when_its_own_window_has_passed() -> None:
    step = join()
    step.apply(FEEDBACK, records(feedback("never", 1000), feedback("end", 5000)), NOW_MS)
    at_the_edge = step.apply(EXPOSURES, records(exposure("r1", 1000 + WINDOW_MS)), NOW_MS)
    after = step.apply(EXPOSURES, records(exposure("r2", 1001 + WINDOW_MS), first_offset=1), NOW_MS)
    assert (refusals([at_the_edge]), refusals([after])) == ([], [("unknown_request", FEEDBACK, 0)])
    assert after.dead_letters[0].detail == f"no exposure of 'never' within {WINDOW_MS} ms"


def test_a_block_leaves_whole_when_the_watermark_is_more_than_a_window_past_its_newest_exposure() -> None:
    step = join()
    step.apply(EXPOSURES, records(exposure("r1", 1000), exposure("r2", 1007)), NOW_MS)
    step.apply(EXPOSURES, records(exposure("r3", 9000), first_offset=2), NOW_MS)
    assert step.apply(FEEDBACK, records(feedback("x", 1007 + WINDOW_MS)), NOW_MS).outputs == []
    left = step.apply(FEEDBACK, records(feedback("x", 1008 + WINDOW_MS), first_offset=1), NOW_MS)
    assert [row["request_id"] for row in rows([left])] == ["r1", "r2"]
    assert (len(left.outputs), counts([left], "out")) == (1, {"samples": 2})


def test_a_batch_over_a_long_time_makes_several_blocks_so_that_its_first_pages_do_not_wait_for_its_last() -> None:
    step = join()
    step.apply(EXPOSURES, records(exposure("r1", 1000), exposure("r2", 1001), exposure("r3", 1030), exposure("r4", 9000)), NOW_MS)
    first = step.apply(FEEDBACK, records(feedback("x", 1002 + WINDOW_MS)), NOW_MS)
    second = step.apply(FEEDBACK, records(feedback("x", 1031 + WINDOW_MS), first_offset=1), NOW_MS)
    assert [[row["request_id"] for row in rows([outcome])] for outcome in (first, second)] == [["r1", "r2"], ["r3"]]


def test_the_outgoing_watermark_is_the_oldest_time_that_a_later_sample_can_have() -> None:
    step = join()
    shown = [exposure("r1", 1000), exposure("r2", 1010), exposure("r3", 1188), exposure("r4", 1182)]
    step.apply(EXPOSURES, records(*shown, exposure("r5", 2000)), NOW_MS)
    both = step.apply(FEEDBACK, records(feedback("x", 1286)), NOW_MS)
    assert [decode_batch(output.value, "samples")[1] for output in both.outputs] == [1010, 1182]
    last = step.apply(FEEDBACK, records(feedback("x", 1500), first_offset=1), NOW_MS)
    assert [decode_batch(output.value, "samples")[1] for output in last.outputs] == [1500 - WINDOW_MS]


def test_an_idle_topic_does_not_hold_pages_back() -> None:
    step = join(SETTINGS.model_copy(update={"idle_s": 2.0}))
    step.apply(EXPOSURES, records(exposure("r1", 1000)), NOW_MS)
    step.apply(EXPOSURES, records(exposure("r2", 1101), first_offset=1), NOW_MS + 1999)
    assert step.tick(NOW_MS + 1999).outputs == []
    assert [row["request_id"] for row in rows([step.tick(NOW_MS + 2000)])] == ["r1"]
    assert [row["request_id"] for row in rows([step.tick(NOW_MS + 3999)])] == ["r2"]


def test_large_batches_leave_in_messages_of_at_most_a_mebibyte_cut_between_pages() -> None:
    step = join()
    pages = [
        exposure(f"r{n}", 1000, ["a", "b", "c"], state={"text": "".join(chr(33 + (n * k) % 90) for k in range(1, 1200))})
        for n in range(3000)
    ]
    found = run(step, pages, [])
    messages = [output.value for outcome in found for output in outcome.outputs]
    batches = [decode_batch(message, "samples")[0] for message in messages]
    assert len(messages) > 3
    assert max(map(len, messages)) <= 1 << 20
    assert all(batch.num_rows % 3 == 0 for batch in batches)
    uncompressed = [len(encode_batch(batch, 0)) for batch in batches]
    assert max(uncompressed) < 2 * min(uncompressed)
    assert [row["request_id"] for row in rows(found)] == [f"r{n}" for n in range(3000) for _ in range(3)]


def test_gauges_count_what_is_held() -> None:
    step = join()
    step.apply(EXPOSURES, records(exposure("r1", 1000, ["a", "b"]), exposure("r2", 1020)), NOW_MS)
    step.apply(FEEDBACK, records(feedback("r1", 1010, "a"), feedback("r9", 1015)), NOW_MS)
    assert step.gauges() == {"watermark_ms": 1015, "open_pages": 2, "open_items": 3, "waiting_feedback": 1, "paused_topics": 0}


def test_every_record_is_counted_in() -> None:
    outcomes = run(join(), [exposure("r1", 1000), b"?"], [feedback("r1", 1010), b"?", feedback("r1", 1010)])
    assert counts(outcomes, "in") == {EXPOSURES: 3, FEEDBACK: 4}
    assert counts(outcomes, "out") == {"samples": 1}


def test_a_topic_is_needed_from_its_earliest_record_that_an_open_block_or_a_waiting_feedback_needs() -> None:
    step = join()
    assert step.tick(NOW_MS).needed_from == {}
    assert step.apply(EXPOSURES, records(exposure("r1", 1000), exposure("r2", 1010), first_offset=20), NOW_MS).needed_from == {
        EXPOSURES: 20
    }
    nothing = step.apply(FEEDBACK, records(b"?", first_offset=7), NOW_MS)
    assert nothing.needed_from == {EXPOSURES: 20, FEEDBACK: 8}
    label_and_wait = step.apply(FEEDBACK, records(feedback("x", 1010), feedback("r1", 1020), first_offset=8), NOW_MS)
    assert label_and_wait.needed_from == {EXPOSURES: 20, FEEDBACK: 8}
    step.apply(EXPOSURES, records(exposure("r3", 3000), first_offset=22), NOW_MS)
    given_up = step.apply(FEEDBACK, records(feedback("r1", 1111), first_offset=10), NOW_MS)
    assert refusals([given_up]) == [("late", FEEDBACK, 10), ("unknown_request", FEEDBACK, 8)]
    assert rows([given_up])[0]["label_click"] == 1.0
    assert given_up.needed_from == {EXPOSURES: 22, FEEDBACK: 11}


def test_nothing_but_the_progress_is_stored_once_all_is_over() -> None:
    step, stored = join(), dict[bytes, bytes]()
    for outcome in run(step, [exposure("r1", 1000)], [feedback("r1", 1010), feedback("never", 1020)]):
        store(stored, outcome)
    step.apply(EXPOSURES, records(exposure("r2", END_MS + 50), first_offset=1001), NOW_MS)
    assert sorted(key[:1] for key in stored) == [b"b", b"f", b"m", b"p"]
    assert {int.from_bytes(key[1:], "big") for key in stored if key != b"m"} == {1000}


def test_a_record_of_another_topic_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(KeyError):
        join().apply("samples", records(b"x"), NOW_MS)

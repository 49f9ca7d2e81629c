"""What a restart does beside the random ones of test_join_order: changed settings, and edges that are rarely met."""

from join_events import NOW_MS, SETTINGS, WINDOW_MS, counts, exposure, feedback, join, records, rows, rows_of, store

from headrace.memory_rows import InMemory
from headrace.step import Outcome
from joiner.settings import JoinerSettings
from schemas.topics import EXPOSURES, FEEDBACK, POINTWISE_SAMPLES


def end(step: InMemory) -> list[Outcome]:
    """Let every window pass."""
    shown, reaction = exposure("end", 900_000), feedback("end", 900_000)
    return [step.apply(topic, records(value, first_offset=1000), NOW_MS) for topic, value in ((EXPOSURES, shown), (FEEDBACK, reaction))]


def stored_after(step: InMemory, *reactions: bytes) -> dict[bytes, bytes]:
    """The rows of a page r1 of two items, a and b, and of feedback on it."""
    stored: dict[bytes, bytes] = {}
    store(stored, step.apply(EXPOSURES, records(exposure("r1", 1000, ["a", "b"])), NOW_MS))
    store(stored, step.apply(FEEDBACK, records(*reactions), NOW_MS))
    return stored


def test_labels_that_were_accepted_outlive_a_shorter_window() -> None:
    stored = stored_after(join(), feedback("r1", 1090, "a"))
    shorter: JoinerSettings = SETTINGS.model_copy(update={"join_window_ms": 50})
    again = join(shorter, stored.items())
    assert again.gauges()["open_items"] == 2
    assert [row["label_click"] for row in rows(end(again))] == [1.0, 0.0]


def test_a_kind_that_is_no_longer_configured_leaves_no_column_and_a_new_one_starts_at_zero() -> None:
    stored = stored_after(join(), feedback("r1", 1010, "a"), feedback("r1", 1020, "b", kind="dwell", value=9.0))
    changed: JoinerSettings = SETTINGS.model_copy(update={"feedback_kinds": ("pay", "dwell")})
    found = rows(end(join(changed, stored.items())))
    assert [(row["label_pay"], row["label_dwell"]) for row in found] == [(0.0, 0.0), (0.0, 9.0)]
    assert "label_click" not in found[0]


def test_a_duplicate_of_feedback_from_before_the_restart_is_still_a_duplicate() -> None:
    again = join(stored=stored_after(join(), feedback("r1", 1010, "a")).items())
    repeated = again.apply(FEEDBACK, records(feedback("r1", 1010, "a"), first_offset=1), NOW_MS)
    assert counts([repeated], "ignored") == {"duplicate_feedback": 1}
    assert [row["label_click"] for row in rows(end(again))] == [1.0, 0.0]


def test_feedback_on_a_closed_page_is_no_label_of_a_page_that_is_shown_by_the_same_request_after_it() -> None:
    eager: JoinerSettings = SETTINGS.model_copy(update={"emission_mode": "eager"})
    step, stored = join(eager), dict[bytes, bytes]()
    store(stored, step.apply(EXPOSURES, records(exposure("r1", 1000), exposure("r2", 1090)), NOW_MS))
    store(stored, step.apply(FEEDBACK, records(feedback("r1", 1095), feedback("r2", 1095)), NOW_MS))
    store(stored, step.apply(EXPOSURES, records(exposure("r3", 1150), first_offset=2), NOW_MS))
    closed = step.apply(FEEDBACK, records(feedback("r2", 1150), first_offset=2), NOW_MS)
    store(stored, closed)
    assert [row["request_id"] for row in rows([closed])] == ["r1"]
    store(stored, step.apply(EXPOSURES, records(exposure("r1", 1160), first_offset=3), NOW_MS))
    left = end(join(eager, stored.items()))
    labels = [(row["request_id"], row["label_click"]) for row in rows(left)]
    assert labels == [("r2", 2.0), ("r3", 0.0), ("r1", 0.0)]
    assert [row["request_id"] for row in rows_of(left, POINTWISE_SAMPLES)] == ["end", "r3", "r1"], "r2 left when it became positive"


def test_one_event_id_on_two_pages_is_two_events() -> None:
    step = join()
    step.apply(EXPOSURES, records(exposure("r1", 1000), exposure("r2", 1000)), NOW_MS)
    step.apply(FEEDBACK, records(feedback("r1", 1010, event_id="e"), feedback("r2", 1010, event_id="e")), NOW_MS)
    assert [row["label_click"] for row in rows(end(step))] == [1.0, 1.0]


def test_a_block_at_the_very_end_of_its_window_stays_while_an_older_one_leaves() -> None:
    step = join()
    step.apply(EXPOSURES, records(exposure("r1", 1000), exposure("r2", 1050), exposure("r3", 9000)), NOW_MS)
    first = step.apply(FEEDBACK, records(feedback("never shown", 1050 + WINDOW_MS)), NOW_MS)
    assert [row["request_id"] for row in rows([first])] == ["r1"]
    in_time = step.apply(FEEDBACK, records(feedback("r2", 1050 + WINDOW_MS), first_offset=1), NOW_MS)
    assert in_time.dead_letters == []
    assert rows(end(step))[0]["label_click"] == 1.0

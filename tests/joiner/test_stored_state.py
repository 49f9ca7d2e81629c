"""What is read of the stored rows is what the step itself holds."""

from join_events import NOW_MS, SETTINGS, WINDOW_MS, exposure, feedback, join, records, store

from headrace.memory_rows import MemoryRows
from headrace.step import Outcome
from joiner.stored_state import StoredState, stored_state
from schemas.topics import EXPOSURES, FEEDBACK


def of(stored: dict[bytes, bytes]) -> StoredState:
    return stored_state(MemoryRows(stored.items()), SETTINGS.hold_ms)


def test_nothing_stored_is_nothing_open() -> None:
    assert of({}) == StoredState(None, None, None, 0, 0, 0, None, None, 0, 0, 0)


def test_the_stored_rows_say_what_is_open_what_waits_and_when_the_oldest_page_leaves() -> None:
    step, stored = join(), dict[bytes, bytes]()

    def apply(topic: str, *values: bytes, first_offset: int = 0) -> Outcome:
        outcome = step.apply(topic, records(*values, first_offset=first_offset), NOW_MS)
        store(stored, outcome)
        return outcome

    apply(EXPOSURES, exposure("r1", 1000), exposure("r2", 1001, ["a", "b"]))
    apply(EXPOSURES, exposure("r3", 1180, ["a", "b", "c"]), exposure("r4", 1170), first_offset=2)
    apply(FEEDBACK, feedback("r1", 1010), feedback("r2", 1010, "b"), feedback("never shown", 1090), feedback("r1", 1010))
    found = of(stored)
    assert found == StoredState(1090, 1180, 1090, 2, 4, 7, 1000, 1001 + WINDOW_MS + 1 - 1090, 2, 1, 0)
    assert (found.watermark_ms, found.open_pages, found.open_items, found.waiting_feedback) == tuple(
        step.gauges()[name] for name in ("watermark_ms", "open_pages", "open_items", "waiting_feedback")
    )
    last_ms = 1089 + (found.oldest_closes_in_ms or 0)
    assert apply(FEEDBACK, feedback("never shown", last_ms), first_offset=4).outputs == []
    assert len(apply(FEEDBACK, feedback("never shown", last_ms + 1), first_offset=5).outputs) == 1
    after = of(stored)
    assert (after.open_blocks, after.oldest_open_ms, after.label_feedback, after.closed_requests) == (1, 1170, 0, 2)

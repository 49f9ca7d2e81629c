"""A partition that holds more than the settings allow slows its intake down, and drops nothing."""

from collections.abc import Collection
from functools import partial

from join_events import NOW_MS, SETTINGS, exposure, feedback, records, rows

from headrace.memory_rows import MemoryRows
from headrace.step import Outcome, Record
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings
from schemas.topics import EXPOSURES, FEEDBACK

FULL = SETTINGS.model_copy(update={"max_open_items": 3, "max_waiting_feedback": 2})


class Held:
    """A join and its rows."""

    def __init__(self, settings: JoinerSettings = FULL) -> None:
        self.rows = MemoryRows()
        self.step = partial(PartitionJoin, settings, 0)(self.rows)

    def apply(self, topic: str, *values: bytes, first_offset: int = 0) -> Outcome:
        return self._kept(self.step.apply(topic, records(*values, first_offset=first_offset), NOW_MS))

    def tick(self, now_ms: int = NOW_MS, unread: Collection[str] = ()) -> Outcome:
        return self._kept(self.step.tick(now_ms, unread))

    def _kept(self, outcome: Outcome) -> Outcome:
        self.rows.change(outcome.changes)
        return outcome


def test_nothing_is_paused_up_to_the_limit() -> None:
    held = Held()
    held.apply(EXPOSURES, exposure("r1", 1000), exposure("r2", 5000, ["a", "b"]))
    assert held.step.paused() == ()


def test_exposures_that_are_ahead_of_the_feedback_wait_until_it_has_caught_up() -> None:
    held = Held()
    held.apply(FEEDBACK, feedback("x", 1000))
    held.apply(EXPOSURES, exposure("r1", 1000), exposure("r2", 1100), exposure("r3", 5000, ["a", "b"]))
    assert held.step.paused() == (EXPOSURES,)
    assert held.step.gauges()["paused_topics"] == 1
    held.tick()
    assert held.step.paused() == (EXPOSURES,), "time alone closes nothing"
    closed = held.apply(FEEDBACK, feedback("x", 1150), first_offset=1)
    assert [row["request_id"] for row in rows([closed])] == ["r1"]
    assert held.step.paused() == ()


def test_where_the_window_itself_holds_more_a_batch_of_exposures_is_taken_a_tick() -> None:
    held = Held()
    held.apply(FEEDBACK, feedback("x", 1000))
    held.apply(EXPOSURES, *(exposure(f"r{page}", 1000) for page in range(5)))
    assert held.step.paused() == (EXPOSURES,)
    held.tick()
    assert held.step.paused() == ()
    held.apply(EXPOSURES, exposure("r5", 1000), first_offset=5)
    assert (held.step.paused(), held.step.gauges()["open_items"]) == ((EXPOSURES,), 6)


def test_feedback_that_is_ahead_of_the_exposures_waits_where_too_much_of_it_is_held() -> None:
    held = Held()
    held.apply(EXPOSURES, exposure("r0", 1000))
    held.apply(FEEDBACK, feedback("r1", 1010), feedback("r2", 1020))
    assert held.step.paused() == ()
    held.apply(FEEDBACK, feedback("r3", 1030), first_offset=2)
    assert held.step.paused() == (FEEDBACK,)
    held.apply(EXPOSURES, exposure("r1", 1005), exposure("r2", 1006), first_offset=1)
    assert held.step.paused() == ()


def test_a_silent_feedback_topic_does_not_stop_the_exposures() -> None:
    held = Held(FULL.model_copy(update={"idle_s": 2.0}))
    held.apply(FEEDBACK, feedback("x", 1000))
    held.apply(EXPOSURES, *(exposure(f"r{page}", 5000) for page in range(5)))
    held.tick(NOW_MS + 1999, [EXPOSURES])
    assert held.step.paused() == (EXPOSURES,), "the feedback may only be slow"
    held.tick(NOW_MS + 2000, [EXPOSURES])
    assert held.step.paused() == ()
    held.apply(EXPOSURES, exposure("r5", 5000), first_offset=5)
    assert held.step.paused() == (EXPOSURES,), "a batch a tick"
    held.tick(NOW_MS + 2500, [EXPOSURES])
    left = held.apply(EXPOSURES, exposure("r6", 9000), first_offset=6)
    assert ([row["closed_by"] for row in rows([left])], held.step.paused()) == (["idle"] * 6, ())


def test_a_silent_exposures_topic_does_not_stop_the_feedback() -> None:
    held = Held(FULL.model_copy(update={"idle_s": 2.0}))
    held.apply(EXPOSURES, exposure("r0", 1000))
    held.apply(FEEDBACK, *(feedback(f"x{number}", 5000) for number in range(3)))
    held.tick(NOW_MS + 1999, [FEEDBACK])
    assert held.step.paused() == (FEEDBACK,)
    held.tick(NOW_MS + 2000, [FEEDBACK])
    assert held.step.paused() == ()
    held.apply(FEEDBACK, feedback("x3", 5000), first_offset=3)
    assert held.step.paused() == (FEEDBACK,)
    held.tick(NOW_MS + 2500, [FEEDBACK])
    given_up = held.apply(FEEDBACK, feedback("x4", 9000), first_offset=4)
    assert ([letter.reason for letter in given_up.dead_letters], held.step.paused()) == (["unknown_request"] * 4, ())


def test_a_slow_intake_gives_the_samples_of_an_unlimited_one() -> None:
    shown = [exposure(f"r{page}", 1000 + 40 * page) for page in range(30)] + [exposure("end", 500_000)]
    reactions = [feedback(f"r{page}", 1010 + 40 * page) for page in range(0, 30, 3)] + [feedback("end", 500_000)]

    def samples(settings: JoinerSettings) -> list[tuple[str, float]]:
        held, sent = Held(settings), list[Outcome]()
        left: dict[str, list[Record]] = {EXPOSURES: records(*shown), FEEDBACK: records(*reactions)}
        while any(left.values()):
            for topic in (EXPOSURES, FEEDBACK):
                if left[topic] and topic not in held.step.paused():
                    record = left[topic].pop(0)
                    sent.append(held.apply(topic, record.value, first_offset=record.offset))
            sent.append(held.tick())
        return [(row["request_id"], row["label_click"]) for row in rows(sent)]

    assert samples(FULL) == samples(SETTINGS) == [(f"r{page}", float(page % 3 == 0)) for page in range(30)]

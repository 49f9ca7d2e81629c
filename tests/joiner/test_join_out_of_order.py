"""The join of events in any order against a record-by-record one that knows neither blocks nor stores."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from join_events import NOW_MS, SETTINGS, exposure, feedback, join, records, rows, store

from headrace.step import Outcome, Record
from joiner.settings import JoinerSettings, KindSettings
from schemas.topics import EXPOSURES, FEEDBACK

EXAMPLES = settings(max_examples=250)
END_MS = 900_000


class Page(NamedTuple):
    request_id: str
    ts_ms: int
    items: tuple[str, ...]


class Reaction(NamedTuple):
    request_id: str
    ts_ms: int
    item_id: str
    kind: str
    value: float
    event_id: str


Batch = tuple[str, list[Page] | list[Reaction]]


@st.composite
def configured(draw: st.DrawFn) -> JoinerSettings:
    combine = st.sampled_from(["sum", "first", "last", "max"])
    durations = st.sampled_from([0, 20, 60, 200])
    kinds = {kind: KindSettings(window_ms=draw(durations), grace_ms=draw(durations), combine=draw(combine)) for kind in ("click", "dwell")}
    return SETTINGS.model_copy(update={"kinds": kinds, "grace_ms": draw(durations)})


@st.composite
def batches(draw: st.DrawFn) -> list[Batch]:
    """Pages and feedback of a few windows, out of order by as much as they like, with duplicates, in batches of either topic."""
    pages = [
        Page(f"r{number}", draw(st.integers(1000, 1600)), tuple(f"i{place}" for place in range(draw(st.integers(1, 3)))))
        for number in range(draw(st.integers(1, 8)))
    ]
    reactions = []
    for number in range(draw(st.integers(0, 25))):
        page = draw(st.sampled_from(pages))
        kind, item_id = draw(st.sampled_from(["click", "dwell"])), draw(st.sampled_from(page.items))
        ts_ms, value = page.ts_ms + draw(st.integers(-10, 250)), draw(st.sampled_from([1.0, 2.0, -3.0, 0.5]))
        reactions.append(Reaction(page.request_id, ts_ms, item_id, kind, value, f"e{number}"))
    left: dict[str, list[Any]] = {EXPOSURES: _arriving(draw, pages), FEEDBACK: _arriving(draw, reactions)}
    cut: list[Batch] = []
    while any(left.values()):
        topic = draw(st.sampled_from([topic for topic, events in left.items() if events]))
        size = draw(st.integers(1, 5))
        cut.append((topic, left[topic][:size]))
        del left[topic][:size]
    end = Page("end", END_MS, ("i0",))
    return [*cut, (EXPOSURES, [end]), (FEEDBACK, [Reaction("end", END_MS, "i0", "click", 1.0, "end")])]


def _arriving(draw: st.DrawFn, events: Sequence[Any]) -> list[Any]:
    """The events and some duplicates, each later than its time by as much as the network likes."""
    again = [draw(st.sampled_from(events)) for _ in range(draw(st.integers(0, 2)))] if events else []
    late_ms = st.sampled_from([0, 0, 10, 40, 100, 300])
    arrivals = [(event.ts_ms + draw(late_ms), number, event) for number, event in enumerate([*events, *again])]
    return [event for _, _, event in sorted(arrivals, key=lambda arrival: arrival[:2])]


def expected(cut: Sequence[Batch], joiner: JoinerSettings) -> dict[tuple[str, str], dict[str, float]]:
    """Every item's labels, by the rules as they are written down."""
    rules = joiner.rules()
    hold_ms = max(rule.window_ms + rule.grace_ms for rule in rules.values())
    newest_ms, watermark_ms = {EXPOSURES: 0, FEEDBACK: 0}, 0
    opened: dict[str, Page] = {}
    waiting: list[Reaction] = []
    hits: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    seen: set[tuple[str, str]] = set()

    def react(page: Page, reaction: Reaction) -> None:
        rule, delay_ms = rules[reaction.kind], reaction.ts_ms - page.ts_ms
        in_time = watermark_ms <= page.ts_ms + rule.window_ms + rule.grace_ms
        if 0 <= delay_ms <= rule.window_ms and in_time and (page.request_id, reaction.event_id) not in seen:
            seen.add((page.request_id, reaction.event_id))
            hits.setdefault((page.request_id, reaction.item_id, reaction.kind), []).append((reaction.ts_ms, reaction.value))

    for topic, events in cut:
        for event in events:
            if isinstance(event, Page):
                if event.request_id in opened or event.ts_ms < watermark_ms - hold_ms:
                    continue
                opened[event.request_id] = event
                for reaction in [reaction for reaction in waiting if reaction.request_id == event.request_id]:
                    waiting.remove(reaction)
                    react(event, reaction)
            elif event.request_id in opened:
                react(opened[event.request_id], event)
            else:
                waiting.append(event)
        newest_ms[topic] = max(newest_ms[topic], *(event.ts_ms for event in events))
        watermark_ms = max(watermark_ms, min(newest_ms.values()))
        waiting = [reaction for reaction in waiting if reaction.ts_ms >= watermark_ms - hold_ms]

    def label(request_id: str, item_id: str, kind: str) -> float:
        found = hits.get((request_id, item_id, kind), [])
        in_time = sorted(found, key=lambda hit: hit[0])
        how = {"sum": sum, "max": max, "first": lambda values: values[0], "last": lambda values: values[-1]}[rules[kind].combine]
        return float(how([value for _, value in in_time])) if found else 0.0

    return {
        (page.request_id, item_id): {kind: label(page.request_id, item_id, kind) for kind in ("click", "dwell")}
        for page in opened.values()
        for item_id in page.items
        if page.request_id != "end"
    }


def encoded(cut: Sequence[Batch]) -> list[tuple[str, list[Record]]]:
    offsets = {EXPOSURES: 0, FEEDBACK: 0}
    found = []
    for topic, events in cut:
        values = [
            exposure(event.request_id, event.ts_ms, event.items)
            if isinstance(event, Page)
            else feedback(event.request_id, event.ts_ms, event.item_id, event.event_id, event.kind, event.value)
            for event in events
        ]
        found.append((topic, records(*values, first_offset=offsets[topic])))
        offsets[topic] += len(values)
    return found


@EXAMPLES
@given(st.data())
@pytest.mark.slow
def test_events_in_any_order_get_the_labels_of_a_record_by_record_join_and_so_they_do_through_crashes(data: st.DataObject) -> None:
    joiner, cut = data.draw(configured()), data.draw(batches())
    fates = st.sampled_from(["lives", "lives", "restart", "lost"])
    stored: dict[bytes, bytes] = {}
    step, sent = join(joiner), list[Outcome]()
    for topic, batch in encoded(cut):
        fate = data.draw(fates)
        sent.append(outcome := step.apply(topic, batch, NOW_MS))
        if fate == "lost":  # sent, and not stored
            step = join(joiner, sorted(stored.items()))
            sent.append(outcome := step.apply(topic, batch, NOW_MS))
        store(stored, outcome)
        if fate == "restart":
            step = join(joiner, sorted(stored.items()))
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows(sent):
        labels = {"click": row["label_click"], "dwell": row["label_dwell"]}
        assert found.setdefault((row["request_id"], row["item_id"]), labels) == labels
    assert found == expected(cut, joiner)

"""The join against a brute-force one, however the two topics are cut and read; and through crashes."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from join_events import NOW_MS, SETTINGS, WINDOW_MS, Row, counts, join, records, rows, store

from headrace.memory_rows import InMemory
from headrace.step import Outcome, Record
from schemas.codec import decode_batch, encode_json
from schemas.exposure import ExposedItem, Exposure
from schemas.feedback import LEAVE, Feedback
from schemas.topics import EXPOSURES, FEEDBACK

Log = dict[str, list[Record]]
Reads = list[tuple[str, list[Record]]]
EXAMPLES = settings(max_examples=100, deadline=None)
KINDS = SETTINGS.feedback_kinds
END = Exposure(request_id="end", user_id="u0", ts_ms=500_000, state={}, action=[], items=[ExposedItem("i0", 0)])
"""Later than all windows, and read last, in a batch of its own: its page stays open and is no part of the comparison."""


@st.composite
def events(draw: st.DrawFn) -> tuple[list[Exposure], list[Feedback]]:
    """A few pages within some windows and the feedback on them, each in event-time order, duplicates behind their originals."""
    exposures: list[Exposure] = []
    reactions: list[Feedback] = []
    ts_ms = 1000
    for page in range(draw(st.integers(1, 8))):
        ts_ms += draw(st.integers(0, WINDOW_MS))
        items = [ExposedItem(f"i{place}", place) for place in range(draw(st.integers(1, 3)))]
        shown = Exposure(request_id=f"r{page}", user_id=f"u{page % 2}", ts_ms=ts_ms, state={}, action=[], items=items)
        exposures += [shown] * draw(st.sampled_from([1, 1, 1, 2]))
        for number in range(draw(st.integers(0, 4))):
            kind = draw(st.sampled_from([*KINDS, *KINDS, LEAVE, "share"]))
            reaction = Feedback(
                event_id=f"e{page}/{number}",
                request_id=draw(st.sampled_from([shown.request_id] * 5 + ["never shown"])),
                user_id=draw(st.sampled_from([shown.user_id] * 5 + ["nobody"])),
                item_id="" if kind == LEAVE else draw(st.sampled_from(["i0", "i0", "i1", "i2"])),
                ts_ms=ts_ms + draw(st.integers(-20, 2 * WINDOW_MS)),
                kind=kind,
                value=draw(st.sampled_from([1.0, 0.1, 0.2, 1e15])),
            )
            reactions += [reaction] * draw(st.sampled_from([1, 1, 1, 2]))
    return exposures, sorted(reactions, key=lambda reaction: reaction.ts_ms)


def log_of(exposures: Sequence[Exposure], reactions: Sequence[Feedback]) -> Log:
    end = Feedback(event_id="end", request_id="end", user_id="u0", item_id="i0", ts_ms=END.ts_ms, kind="click")
    return {EXPOSURES: records(*map(encode_json, [*exposures, END])), FEEDBACK: records(*map(encode_json, [*reactions, end]))}


@st.composite
def reads(draw: st.DrawFn, log: Log) -> Reads:
    """The log cut into batches of any size, the topics in any order."""
    at, cut = {EXPOSURES: 0, FEEDBACK: 0}, []
    while left := [topic for topic in at if at[topic] < len(log[topic]) - 1]:
        topic, size = draw(st.sampled_from(left)), draw(st.integers(1, 6))
        cut.append((topic, log[topic][:-1][at[topic] : at[topic] + size]))
        at[topic] += size
    return [*cut, *((topic, log[topic][-1:]) for topic in at)]


def refusal(reaction: Feedback, page: Exposure | None) -> str:
    """Why a feedback does not count on a page, or an empty string."""
    if reaction.kind not in (*KINDS, LEAVE):
        return "unknown_kind"
    if page is None or reaction.ts_ms < page.ts_ms:
        return "unknown_request"
    if reaction.ts_ms > page.ts_ms + WINDOW_MS:
        return "late"
    if reaction.user_id != page.user_id:
        return "unknown_request"
    return "" if reaction.kind == LEAVE or reaction.item_id in [item.item_id for item in page.items] else "unknown_item"


def expected(log: Log, exposures: Sequence[Exposure], reactions: Sequence[Feedback]) -> tuple[list[Row], Counter[str]]:
    """The samples and the reasons of refusal, by looking at every feedback for every item."""
    shown = {page.request_id: page for page in exposures}
    refused = Counter(refusal(reaction, shown.get(reaction.request_id)) for reaction in reactions)
    counted: dict[tuple[str, str], tuple[Record, Feedback]] = {}
    for place, reaction in enumerate(reactions):
        if not refusal(reaction, shown.get(reaction.request_id)):
            counted.setdefault((reaction.request_id, reaction.event_id), (log[FEEDBACK][place], reaction))
    samples: list[Row] = []
    for page in shown.values():
        on_page = [(record, reaction) for record, reaction in counted.values() if reaction.request_id == page.request_id]
        for item in page.items:
            hits = [reaction for _, reaction in on_page if reaction.item_id == item.item_id]
            sources = [record for record, reaction in on_page if reaction.item_id in ("", item.item_id)]
            samples.append(
                {
                    "request_id": page.request_id,
                    "item_id": item.item_id,
                    "source_offset": exposures.index(page),
                    "left": any(reaction.kind == LEAVE for _, reaction in on_page),
                    "label_delay_ms": min((reaction.ts_ms - page.ts_ms for reaction in hits), default=None),
                    "feedback_arrival_ms": max((record.arrival_ms for record in sources), default=None),
                    "feedback_offsets": sorted(record.offset for record in sources),
                    **{f"label_{kind}": float(np.float32(sum(hit.value for hit in hits if hit.kind == kind))) for kind in KINDS},
                }
            )
    del refused[""]
    return samples, refused


def shortened(found: Sequence[Row]) -> list[Row]:
    """The columns that the brute-force join knows, in its order."""
    names = {
        "request_id",
        "item_id",
        "source_offset",
        "left",
        "label_delay_ms",
        "feedback_arrival_ms",
        "feedback_offsets",
        *(f"label_{kind}" for kind in KINDS),
    }
    return sorted(({name: row[name] for name in names} for row in found), key=lambda row: (row["source_offset"], row["item_id"]))


def promises(outcomes: Sequence[Outcome]) -> Iterator[tuple[int, int]]:
    """For every message its outgoing watermark, and the oldest sample of all later messages."""
    batches = [decode_batch(output.value, "samples") for outcome in outcomes for output in outcome.outputs]
    for place, (_, watermark_ms) in enumerate(batches[:-1]):
        yield watermark_ms, min(min(batch["ts_ms"].to_pylist()) for batch, _ in batches[place + 1 :])


@EXAMPLES
@given(st.data())
def test_any_cut_and_any_order_of_the_topics_gives_the_samples_of_the_brute_force_join(data: st.DataObject) -> None:
    exposures, reactions = data.draw(events())
    log = log_of(exposures, reactions)
    step = join()
    outcomes = [step.apply(topic, batch, NOW_MS) for topic, batch in data.draw(reads(log))]
    samples, refused = expected(log, exposures, reactions)
    assert shortened(rows(outcomes)) == samples
    assert Counter(letter.reason for outcome in outcomes for letter in outcome.dead_letters) == refused
    assert counts(outcomes, "rejected") == dict(refused)
    assert counts(outcomes, "ignored").get("duplicate_exposure", 0) == len(exposures) - len({page.request_id for page in exposures})
    assert all(watermark_ms <= oldest_ms for watermark_ms, oldest_ms in promises(outcomes))


class Crashing:
    """A partition whose process may die after any batch: what its stored rows are, and everything that it ever sent."""

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}
        self.sent: list[Outcome] = []
        self.step: InMemory = join()

    def read(self, topic: str, batch: list[Record], fate: str) -> None:
        """Apply and store a batch; die before storing it (`lost`: it is sent, and read again) or after it (`restart`)."""
        outcome = self.step.apply(topic, batch, NOW_MS)
        self.sent.append(outcome)
        if fate == "lost":
            self.restart()
            outcome = self.step.apply(topic, batch, NOW_MS)
            self.sent.append(outcome)
        store(self.stored, outcome)
        if fate == "restart":
            self.restart()

    def restart(self) -> None:
        self.step = join(stored=sorted(self.stored.items()))


@EXAMPLES
@given(st.data())
def test_a_join_that_dies_and_recovers_at_any_point_gives_the_same_samples(data: st.DataObject) -> None:
    exposures, reactions = data.draw(events())
    log = log_of(exposures, reactions)
    fates = st.sampled_from(["lives", "lives", "restart", "lost"])
    crashing, undisturbed = Crashing(), join()
    for topic, batch in data.draw(reads(log)):
        crashing.read(topic, batch, data.draw(fates))
        undisturbed.apply(topic, batch, NOW_MS)
        assert crashing.step.gauges() == undisturbed.gauges()
        assert crashing.step.tick(NOW_MS).needed_from == undisturbed.tick(NOW_MS).needed_from
    sent = rows(crashing.sent)
    once = {(row["request_id"], row["item_id"]): row for row in sent}
    assert shortened(list(once.values())) == expected(log, exposures, reactions)[0]
    assert all(row == once[row["request_id"], row["item_id"]] for row in sent)
    assert sorted(key[:1] for key in crashing.stored if key[:1] != b"c") == [b"b", b"f", b"m", b"p"]


@EXAMPLES
@given(st.data())
def test_a_join_that_lost_its_disk_gives_the_same_samples_from_the_offsets_that_it_needed(data: st.DataObject) -> None:
    exposures, reactions = data.draw(events())
    log = log_of(exposures, reactions)
    before = data.draw(reads(log))
    lost_at = data.draw(st.integers(0, len(before)))
    step, needed_from, sent = join(), {EXPOSURES: 0, FEEDBACK: 0}, list[Outcome]()
    for topic, batch in before[:lost_at]:
        sent.append(step.apply(topic, batch, NOW_MS))
        needed_from |= sent[-1].needed_from
    again = join()
    for topic, batch in data.draw(reads({topic: log[topic][needed_from[topic] :] for topic in log})):
        sent.append(again.apply(topic, batch, NOW_MS))
    once: dict[tuple[str, str], Row] = {}
    for row in rows(sent):  # whoever reads the samples takes the first of each
        once.setdefault((row["request_id"], row["item_id"]), row)
    assert shortened(list(once.values())) == expected(log, exposures, reactions)[0]

"""KuaiRand as a log of one target with a delay, and what the joiner emits of it, chunk by chunk of event time."""

import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from headrace.logs import kuairand
from headrace.logs.recorded_log import find_files
from headrace.memory_rows import InMemory
from headrace.settings import ConfigError
from headrace.step import Outcome, Record
from joiner.join import PartitionJoin
from joiner.labels import NEVER, Ints
from joiner.settings import JoinerSettings
from schemas.codec import decode_batch, decode_feedback, encode_json
from schemas.exposure import Exposure
from schemas.feedback import Feedback
from schemas.topics import EXPOSURES, FEEDBACK, POINTWISE_SAMPLES

TARGET = "long_view"
CHUNK_MS = 10 * 60 * 1000
"""A model is asked and taught so often, in event time."""
BUCKETS = 1 << 18
"""Of the hashed features: some 30,000 values, so that one in ten shares its bucket."""
SILENCE_MS = 10 * 365 * 86_400_000
"""Longer than any window."""

Bools = npt.NDArray[np.bool_]
Floats32 = npt.NDArray[np.float32]
_decode_exposure = msgspec.json.Decoder(Exposure).decode


class DelayLog(NamedTuple):
    """N exposures of one item in event-time order; their place is their offset in the topic."""

    messages: list[bytes]
    requests: list[tuple[str, str, str]]
    """request_id, user_id, item_id."""
    shown_ms: Ints
    delay_ms: Ints
    """Of the target, as the log has it; NEVER where there is none."""
    tokens_NF: Ints
    """Buckets of the hashed features."""
    dense_ND: Floats32

    @property
    def is_positive(self) -> Bools:
        """[N], in the end."""
        return np.asarray(self.delay_ms != NEVER)

    def chunk_starts(self) -> list[int]:
        """Places at which the chunks of `CHUNK_MS` begin, and N."""
        ends_ms = np.arange(self.shown_ms[0] + CHUNK_MS, self.shown_ms[-1] + CHUNK_MS, CHUNK_MS)
        return [0, *np.searchsorted(self.shown_ms, ends_ms).tolist(), len(self.shown_ms)]


class Rows(NamedTuple):
    """R rows of `pointwise-samples`: the place of their exposure, and the columns that a loss uses."""

    place: Ints
    is_positive: Bools
    is_late: Bools
    come_by: Floats32
    weight_fake_negative: Floats32
    weight_fsiw: Floats32
    log_keep: Floats32

    def take(self, of: Ints) -> "Rows":
        """The rows at these places of the columns."""
        return Rows._make(column[of] for column in self)


def final_rows(log: DelayLog, start: int, end: int) -> Rows:
    """Exposures with the label that only the future knows."""
    one = np.ones(end - start, np.float32)
    return Rows(np.arange(start, end), log.is_positive[start:end], np.zeros(end - start, np.bool_), one, one, one, 0 * one)


def read_log(path: Path, exposures: int | None) -> DelayLog:
    """The first so many exposures of a KuaiRand log (all: None), with their `TARGET`."""
    log = kuairand.read(find_files(path, kuairand.FORMAT.file_patterns), 0)
    messages: list[bytes] = []
    pages: list[Exposure] = []
    places: dict[str, int] = {}
    delays_ms: dict[int, int] = {}
    for _, topic, _, value in log.events():
        if topic == EXPOSURES and (exposures is None or len(pages) < exposures):
            page = _decode_exposure(value)
            places[page.request_id] = len(pages)
            messages.append(value)
            pages.append(page)
        elif topic == FEEDBACK and (reaction := decode_feedback(value)).kind == TARGET and reaction.request_id in places:
            place = places[reaction.request_id]
            delays_ms[place] = reaction.ts_ms - pages[place].ts_ms
    if len(pages) < 2 or not delays_ms:
        raise ConfigError(f"{path}: expected exposures with {TARGET}, got {len(pages)} exposures and {len(delays_ms)} {TARGET}")
    requests = [(page.request_id, page.user_id, page.items[0].item_id) for page in pages]
    delay_ms = np.array([delays_ms.get(place, NEVER) for place in range(len(pages))], np.int64)
    log_s = np.log1p([page.items[0].features["duration_s"] for page in pages])
    tokens = np.array([_tokens(page, int(4 * of)) for page, of in zip(pages, log_s, strict=True)], np.int64)
    shown_ms = np.array([page.ts_ms for page in pages], np.int64)
    return DelayLog(messages, requests, shown_ms, delay_ms, tokens, (log_s - 3.0)[:, None].astype(np.float32))


def _tokens(page: Exposure, quarter_logs: int) -> list[int]:
    """Nothing that the target's past is in: such features of a live system would be as late as its labels.

    No hour of day either: the model would learn from it when labels come (docs/delayed-feedback.md).
    """
    tab = page.state["tab"]
    values = (page.user_id, page.items[0].item_id, tab, quarter_logs, f"{tab} {quarter_logs}")
    return [zlib.crc32(f"{field} {value}".encode()) % BUCKETS for field, value in enumerate(values)]


def emitted(log: DelayLog, delay_ms: Ints, settings: JoinerSettings) -> list[Rows]:
    """What the joiner has sent by the end of each chunk. Raises ValueError where, in the end, a row is missing, doubled or wrong."""
    happened_ms = np.where(delay_ms == NEVER, NEVER, log.shown_ms + delay_ms)
    reacted = np.argsort(happened_ms, kind="stable")[: int((delay_ms != NEVER).sum())]
    starts = log.chunk_starts()
    chunk_ends_ms = log.shown_ms[0] + CHUNK_MS * np.arange(1, len(starts))
    first_feedback = [0, *np.searchsorted(happened_ms[reacted], chunk_ends_ms).tolist()]
    now_ms = int(max(log.shown_ms[-1], happened_ms[reacted[-1]]))
    step = InMemory(partial(PartitionJoin, settings, 0))

    def feedback(first: int, end: int) -> Outcome:
        records = [
            _feedback(log, place, int(happened_ms[place]), offset) for offset, place in enumerate(reacted[first:end].tolist(), first)
        ]
        return step.apply(FEEDBACK, records, now_ms)

    sent = []
    for (start, end), (first, last) in zip(pairwise(starts), pairwise(first_feedback), strict=True):
        shown = [Record(place, int(log.shown_ms[place]), log.messages[place]) for place in range(start, end)]
        sent.append(_rows([step.apply(EXPOSURES, shown, now_ms), feedback(first, last)]))
    after = [feedback(first_feedback[-1], len(reacted)), step.tick(now_ms), step.tick(now_ms + SILENCE_MS)]
    check_is_whole([*sent, _rows(after)], delay_ms != NEVER, settings.negative_keep_rate)
    return sent


def _feedback(log: DelayLog, place: int, ts_ms: int, offset: int) -> Record:
    request_id, user_id, item_id = log.requests[place]
    reaction = Feedback(event_id=request_id, request_id=request_id, user_id=user_id, item_id=item_id, ts_ms=ts_ms, kind=TARGET, value=1.0)
    return Record(offset, ts_ms, encode_json(reaction))


def _rows(outcomes: Iterable[Outcome]) -> Rows:
    names = (
        "source_offset",
        "is_positive",
        "closed_by",
        "positives_come_by",
        "weight_fake_negative",
        "weight_fsiw",
        "log_odds_correction",
    )
    parts: list[list[npt.NDArray[np.generic]]] = [[np.empty(0, kind)] for kind in (np.int64, np.bool_, np.bool_, *[np.float32] * 4)]
    for outcome in outcomes:
        if outcome.dead_letters:
            raise ValueError(f"the joiner refused an event: {outcome.dead_letters[0]}")
        for output in outcome.outputs:
            if output.topic == POINTWISE_SAMPLES:
                batch, _ = decode_batch(output.value, POINTWISE_SAMPLES)
                for part, name in zip(parts, names, strict=True):
                    column = batch[name].to_numpy(zero_copy_only=False)
                    part.append(column == "correction" if name == "closed_by" else column)
    return Rows._make(np.concatenate(part) for part in parts)


def check_is_whole(sent: Sequence[Rows], is_positive: Bools, keep_rate: float) -> None:
    """Every exposure leaves once without a correction (a negative may be dropped), every positive is positive in exactly one row."""
    n = len(is_positive)
    first, positive = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for rows in sent:
        first += np.bincount(rows.place[~rows.is_late], minlength=n)
        positive += np.bincount(rows.place[rows.is_positive], minlength=n)
    missing = (first == 0) & (is_positive | (keep_rate == 1.0))
    wrong = positive != is_positive
    if missing.any() or (first > 1).any() or wrong.any():
        raise ValueError(f"of {n} exposures {missing.sum()} are missing, {(first > 1).sum()} doubled, {wrong.sum()} have a wrong label")

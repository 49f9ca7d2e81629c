"""Pre-processing: a transitions record batch -> columns. Served states are opened here, once; rows that cannot be used are refused."""

import math
from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.action import ActionSpec
from schemas.codec import UNREADABLE, decode_served_state
from schemas.dead_letter import DeadLetter, Reason
from schemas.exposure import BASELINE, FeatureValue, ServedState
from schemas.features import FeatureSpec, StateColumns, WrongStateError
from schemas.topics import EXPOSURES
from trainer.replay import Transitions, hash64

STAGE = "trainer"
BOUND_SLACK = 1e-5
"""Actions may lie outside their bounds by this share of the range, rounding of float32 on the way; they are clipped."""

State = dict[str, FeatureValue]
NO_STATE: State = {}
"""s' of a page that is the last of its session."""


class Opened(NamedTuple):
    """The rows that can be learned from, and a dead letter for each that cannot.

    `revision` is that of each row: other than 0, it amends one that came before.
    """

    rows: Transitions
    revision: npt.NDArray[np.int32]
    dead_letters: list[DeadLetter]


class _Refused(ValueError):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason


class _Page(NamedTuple):
    state: State
    action: list[float]
    next_state: State


def open_transitions(
    batch: pa.RecordBatch, action: ActionSpec, features: FeatureSpec, version_number: Callable[[str], int], now_ms: int
) -> Opened:
    """Decode and check every row. `version_number` numbers model versions."""
    exposures, nexts, rewards = (batch.column(name).to_pylist() for name in ("exposure", "next_exposure", "return"))
    pages: dict[int, _Page] = {}
    served: dict[bytes, ServedState] = {}
    refused: dict[int, _Refused] = {}
    for row in range(batch.num_rows):
        try:
            pages[row] = _open_page(exposures[row], nexts[row], rewards[row], action, served)
        except _Refused as error:
            refused[row] = error
    try:
        states = _columns(list(pages.values()), features)
    except WrongStateError:
        refused.update(_wrong_states(pages, features))
        pages = {row: page for row, page in pages.items() if row not in refused}
        states = _columns(list(pages.values()), features)
    partitions, offsets = batch.column("source_partition").to_pylist(), batch.column("source_offset").to_pylist()
    dead_letters = [
        DeadLetter(
            stage=STAGE,
            reason=error.reason,
            detail=str(error),
            source_topic=EXPOSURES,
            source_partition=partitions[row],
            source_offset=offsets[row],
            size_bytes=len(exposures[row]),
            ts_ms=now_ms,
        )
        for row, error in sorted(refused.items())
    ]
    kept = batch.take(pa.array(list(pages), pa.int64()))
    rows = _transitions(kept, list(pages.values()), states, action, version_number)
    return Opened(rows, kept.column("revision").to_numpy(), dead_letters)


def _open_page(message: bytes, next_message: bytes | None, reward: float, action: ActionSpec, opened: dict[bytes, ServedState]) -> _Page:
    """`opened` keeps what was decoded: most pages come twice, as s' of one row and as s of another."""
    if not math.isfinite(reward):
        raise _Refused("malformed", f"reward: expected a finite number, got {reward!r}")
    try:
        for page in (message, next_message):
            if page is not None and page not in opened:
                opened[page] = decode_served_state(page)
    except UNREADABLE as error:
        raise _Refused("malformed", str(error)) from error
    served = opened[message]
    if len(served.action) != action.size:
        raise _Refused("wrong_action", f"action: expected {action.size} numbers, got {len(served.action)}")
    for dimension, value in zip(action.dimensions, served.action, strict=True):
        slack = BOUND_SLACK * (dimension.high - dimension.low)
        if not dimension.low - slack <= value <= dimension.high + slack:  # also refuses NaN
            raise _Refused("wrong_action", f"action {dimension.name}: expected {dimension.low} to {dimension.high}, got {value!r}")
    return _Page(served.state, served.action, NO_STATE if next_message is None else opened[next_message].state)


def _columns(pages: list[_Page], features: FeatureSpec) -> tuple[StateColumns, StateColumns]:
    """The columns of s and s'. A state that comes more than once, as one object, is encoded once."""
    places: dict[int, int] = {}
    distinct: list[State] = []
    for state in chain([page.state for page in pages], [page.next_state for page in pages]):
        if id(state) not in places:
            places[id(state)] = len(distinct)
            distinct.append(state)
    columns = features.columns(distinct)
    now = np.array([places[id(page.state)] for page in pages], np.int64)
    following = np.array([places[id(page.next_state)] for page in pages], np.int64)
    return columns.take(now), columns.take(following)


def _wrong_states(pages: dict[int, _Page], features: FeatureSpec) -> dict[int, _Refused]:
    """Which rows the specification refuses: looked at one by one only where a batch has some."""
    refused = {}
    for row, page in pages.items():
        try:
            _columns([page], features)
        except WrongStateError as error:
            refused[row] = _Refused("wrong_state", str(error))
    return refused


def _transitions(
    batch: pa.RecordBatch,
    pages: list[_Page],
    states: tuple[StateColumns, StateColumns],
    action: ActionSpec,
    version_number: Callable[[str], int],
) -> Transitions:
    served = np.array([page.action for page in pages], np.float64).reshape(len(pages), action.size)
    return Transitions(
        id_hash=hash64(batch.column("transition_id").to_pylist()),
        state=states[0],
        action=np.clip(served, action.low, action.high).astype(np.float32),
        reward=batch.column("return").to_numpy(),
        next_state=states[1],
        # a page that says it is not the last one but has no next page has no next state to learn from
        done=np.array([done or page is None for done, page in zip(*_lists(batch, "done", "next_exposure"), strict=True)], np.bool_),
        discount=batch.column("discount").to_numpy(),
        touched=np.array([policy != BASELINE for policy in batch.column("policy").to_pylist()], np.bool_),
        feedback_count=batch.column("feedback_count").to_numpy(),
        arrival_ms=batch.column("feedback_arrival_ms").fill_null(0).to_numpy(),
        version=np.array([version_number(version) for version in batch.column("model_version").to_pylist()], np.int32),
    )


def _lists(batch: pa.RecordBatch, *names: str) -> list[list[object]]:
    return [batch.column(name).to_pylist() for name in names]

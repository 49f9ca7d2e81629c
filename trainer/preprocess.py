"""Pre-processing: a transitions record batch -> columns. Served states are opened here, once; rows that cannot be used are refused."""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.action import ActionSpec
from schemas.dead_letter import DeadLetter, Reason
from schemas.exposure import BASELINE
from schemas.features import FeatureSpec, WrongStateError
from schemas.message_reader import READ_ERRORS, MessageReader, Served
from schemas.state_columns import StateColumns
from schemas.topics import EXPOSURES
from trainer.replay import Transitions, hash64

STAGE = "trainer"
BOUND_SLACK = 1e-5
"""Actions may lie outside their bounds by this share of the range, rounding of float32 on the way; they are clipped."""
NO_PAGE = b'{"state":{},"action":[]}'
"""s' of a page that is the last of its session: a state without features."""


class Opened(NamedTuple):
    """The rows that can be learned from, and a dead letter for each that cannot.

    `revision` is that of each row: other than 0, it amends one that came before.
    """

    rows: Transitions
    revision: npt.NDArray[np.int32]
    dead_letters: list[DeadLetter]


class _Refused(NamedTuple):
    reason: Reason
    detail: str


class Preprocess:
    """Opens the pages of one policy. `spec_hash` names its specification: pages that were served with another one are refused."""

    def __init__(self, action: ActionSpec, features: FeatureSpec, spec_hash: str) -> None:
        self._action = action
        self._spec_hash = spec_hash
        self._reader = MessageReader(features)

    def __call__(self, batch: pa.RecordBatch, version_number: Callable[[str], int], now_ms: int) -> Opened:
        """Decode and check every row. `version_number` numbers model versions."""
        messages, nexts, rewards = (batch.column(name).to_pylist() for name in ("exposure", "next_exposure", "return"))
        nexts = [NO_PAGE if following is None else following for following in nexts]
        # most pages come twice, as s' of one row and as s of another: they are opened once
        wrong, places, served = self._open(list(dict.fromkeys(chain(messages, nexts))))
        refused: dict[int, _Refused] = {}
        for row, (message, following, reward) in enumerate(zip(messages, nexts, rewards, strict=True)):
            why = _wrong_reward(reward) or wrong.get(message) or wrong.get(following)
            why = why or _wrong_action(served.actions[places[message]], self._action)
            if why is not None:
                refused[row] = why
        rows = [row for row in range(len(messages)) if row not in refused]
        now = np.array([places[messages[row]] for row in rows], np.int64)
        following_rows = np.array([places[nexts[row]] for row in rows], np.int64)
        actions = [served.actions[place] for place in now.tolist()]
        states = served.states.take(now), served.states.take(following_rows)
        kept = batch.take(pa.array(rows, pa.int64()))
        opened = _transitions(kept, actions, states, self._action, version_number)
        return Opened(opened, kept.column("revision").to_numpy(), _letters(batch, refused, now_ms))

    def _open(self, messages: list[bytes]) -> tuple[dict[bytes, _Refused], dict[bytes, int], Served]:
        """Why some messages are refused, the place of each of the others in the columns, and the columns."""
        refused: dict[bytes, _Refused] = {}
        try:
            served = self._reader.read(messages)
        except READ_ERRORS:  # looked at one by one only where a batch has wrong ones
            for message in messages:
                error = self._reader.why_not(message)
                if error is not None:
                    refused[message] = _Refused("wrong_state" if isinstance(error, WrongStateError) else "malformed", str(error))
            messages = [message for message in messages if message not in refused]
            served = self._reader.read(messages)
        for message, spec_hash in zip(messages, served.spec_hashes, strict=True):
            if spec_hash not in ("", self._spec_hash):
                detail = f"served with specification {spec_hash}, this trainer has {self._spec_hash}: give both the same [policy] settings"
                refused[message] = _Refused("wrong_spec", detail)
        return refused, {message: place for place, message in enumerate(messages)}, served


def _wrong_reward(reward: float) -> _Refused | None:
    return None if math.isfinite(reward) else _Refused("malformed", f"reward: expected a finite number, got {reward!r}")


def _wrong_action(served: list[float], action: ActionSpec) -> _Refused | None:
    if len(served) != action.size:
        return _Refused("wrong_action", f"action: expected {action.size} numbers, got {len(served)}")
    for dimension, value in zip(action.dimensions, served, strict=True):
        slack = BOUND_SLACK * (dimension.high - dimension.low)
        if not dimension.low - slack <= value <= dimension.high + slack:  # also refuses NaN
            return _Refused("wrong_action", f"action {dimension.name}: expected {dimension.low} to {dimension.high}, got {value!r}")
    return None


def _letters(batch: pa.RecordBatch, refused: dict[int, _Refused], now_ms: int) -> list[DeadLetter]:
    partitions, offsets = batch.column("source_partition"), batch.column("source_offset")
    return [
        DeadLetter(
            stage=STAGE,
            reason=why.reason,
            detail=why.detail,
            source_topic=EXPOSURES,
            source_partition=partitions[row].as_py(),
            source_offset=offsets[row].as_py(),
            size_bytes=len(batch.column("exposure")[row].as_py()),
            ts_ms=now_ms,
        )
        for row, why in sorted(refused.items())
    ]


def _transitions(
    batch: pa.RecordBatch,
    served: Sequence[list[float]],
    states: tuple[StateColumns, StateColumns],
    action: ActionSpec,
    version_number: Callable[[str], int],
) -> Transitions:
    actions = np.array(served, np.float64).reshape(len(served), action.size)
    return Transitions(
        id_hash=hash64(batch.column("transition_id").to_pylist()),
        state=states[0],
        action=np.clip(actions, action.low, action.high).astype(np.float32),
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

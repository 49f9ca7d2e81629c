"""Replay: the newest transitions as columns in a ring, and the ids by which a second delivery is recognised."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.features import FeatureSpec
from schemas.state_columns import StateColumns

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Transitions:
    """B transitions <s, a, r, s', done, gamma> as columns. A row of `next_state` means nothing where `done`.

    `reward` is the return over the steps to s', and `discount` what V(s') counts: gamma to the power of these steps.

    `touched` is False for baseline traffic. `arrival_ms` is the newest arrival of the page's feedback (0: none).
    `version` numbers the model version that served the page.
    """

    id_hash: npt.NDArray[np.uint64]
    state: StateColumns
    action: npt.NDArray[np.float32]
    reward: npt.NDArray[np.float32]
    next_state: StateColumns
    done: npt.NDArray[np.bool_]
    discount: npt.NDArray[np.float32]
    touched: npt.NDArray[np.bool_]
    feedback_count: npt.NDArray[np.int32]
    arrival_ms: npt.NDArray[np.int64]
    version: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.reward)

    def take(self, rows: Indices | npt.NDArray[np.bool_]) -> "Transitions":
        """Some of the rows."""
        return from_columns({name: column[rows] for name, column in to_columns(self).items()})


_SCALARS = ("id_hash", "action", "reward", "done", "discount", "touched", "feedback_count", "arrival_ms", "version")
_STATES = ("state", "next_state")


def to_columns(rows: Transitions) -> dict[str, Array]:
    """The columns by flat names: `state.dense`, `state.seq.recent_items`, `reward`, ..."""
    columns: dict[str, Array] = {name: getattr(rows, name) for name in _SCALARS}
    for name in _STATES:
        state: StateColumns = getattr(rows, name)
        columns[f"{name}.dense"], columns[f"{name}.ids"], columns[f"{name}.plain"] = state.dense, state.ids, state.plain
        columns.update({f"{name}.seq.{sequence}": ids for sequence, ids in state.sequences.items()})
    return columns


def from_columns(columns: dict[str, Array]) -> Transitions:
    """The opposite of `to_columns`."""
    fields: dict[str, Any] = {name: columns[name] for name in _SCALARS}
    for name in _STATES:
        prefix = f"{name}.seq."
        sequences = {key.removeprefix(prefix): column.astype(np.int64) for key, column in columns.items() if key.startswith(prefix)}
        ids = columns[f"{name}.ids"].astype(np.int64)
        fields[name] = StateColumns(columns[f"{name}.dense"], ids, sequences, columns[f"{name}.plain"])
    return Transitions(**fields)


def hash64(ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """The same 64 bits for the same id on every machine."""
    digests = b"".join(blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(digests, np.dtype("<u8")).astype(np.uint64)


class ReplayBuffer:
    """A ring of the newest `capacity` transitions. Row 0 is the oldest; the newest `fresh` rows were in no gradient step yet."""

    def __init__(self, features: FeatureSpec, action_size: int, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.fresh = 0
        self._start = 0
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "id_hash": ((), np.uint64),
            "action": ((action_size,), np.float32),
            "reward": ((), np.float32),
            "done": ((), np.bool_),
            "discount": ((), np.float32),
            "touched": ((), np.bool_),
            "feedback_count": ((), np.int32),
            "arrival_ms": ((), np.int64),
            "version": ((), np.int32),
        }
        for name in _STATES:
            shapes[f"{name}.dense"] = ((len(features.normalised),), np.float32)
            shapes[f"{name}.plain"] = ((features.plain_size,), np.float32)
            shapes[f"{name}.ids"] = ((len(features.tables),), np.int32)  # half the memory: no table has 2**31 rows
            for listed in features.listed:
                shapes[f"{name}.seq.{listed.name}"] = ((listed.length,), np.int64 if listed.is_dynamic else np.int32)
        self._columns = {name: np.zeros((capacity, *shape), dtype) for name, (shape, dtype) in shapes.items()}

    def add(self, rows: Transitions) -> None:
        """Append rows, oldest first; the oldest of the ring give way."""
        columns = to_columns(rows)
        count = min(len(rows), self.capacity)
        places = (self._start + self.size + np.arange(count)) % self.capacity
        for name, column in self._columns.items():
            column[places] = columns[name][len(rows) - count :]
        overflow = max(0, self.size + count - self.capacity)
        self._start = (self._start + overflow) % self.capacity
        self.size += count - overflow
        self.fresh = min(self.fresh + count, self.size)

    def amend(self, rows: Transitions) -> npt.NDArray[np.bool_]:
        """Put rows in the place of those with the same ids. Says which were there; the others have given way already."""
        places = np.flatnonzero(np.isin(self._columns["id_hash"], rows.id_hash))
        order = np.argsort(self._columns["id_hash"][places])
        ids = self._columns["id_hash"][places[order]]
        found = np.minimum(np.searchsorted(ids, rows.id_hash), max(0, len(ids) - 1))
        is_there = ids[found] == rows.id_hash if len(ids) else np.zeros(len(rows), np.bool_)
        columns = to_columns(rows)
        for name, column in self._columns.items():
            column[places[order][found[is_there]]] = columns[name][is_there]
        return is_there

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Transitions, int]:
        """`count` rows, and how many of them are fresh: these come first, oldest first, at most half of the batch.

        A fresh row is in the batch for certain, so that a version can tell which feedback it learned from; the others are drawn
        uniformly (combined experience replay, Zhang & Sutton 2017). Rows stay fresh until `mark_learned`.
        """
        fresh = min(self.fresh, count // 2)
        rows = np.concatenate(
            [np.arange(self.size - self.fresh, self.size - self.fresh + fresh), rng.integers(0, self.size, count - fresh)]
        )
        return self.rows(rows), fresh

    def mark_learned(self, count: int) -> None:
        """The oldest `count` fresh rows were in a gradient step."""
        assert 0 <= count <= self.fresh, (count, self.fresh)
        self.fresh -= count

    def rows(self, rows: Indices) -> Transitions:
        """Rows by age, 0 the oldest."""
        places = (self._start + rows) % self.capacity
        return from_columns({name: column[places] for name, column in self._columns.items()})

    def state_dict(self) -> dict[str, Array]:
        """The rows in order, oldest first, with `fresh`. How the ring lies in memory has no effect on what is sampled."""
        places = (self._start + np.arange(self.size)) % self.capacity
        return {**{name: column[places] for name, column in self._columns.items()}, "fresh": np.array(self.fresh)}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Go on from an earlier `state_dict`; of a larger ring the newest rows are kept."""
        kept = min(len(state["reward"]), self.capacity)
        for name, column in self._columns.items():
            column[:kept] = state[name][len(state[name]) - kept :]
        self._start, self.size = 0, kept
        self.fresh = min(int(state["fresh"]), kept)


class SeenIds:
    """The newest `horizon` transition ids, as 64-bit hashes: two ids collide once in about 1e14 pairs at 2e5 ids."""

    def __init__(self, horizon: int) -> None:
        self._order = np.zeros(horizon, np.uint64)
        self._next = 0
        self._known: set[int] = set()

    def first_seen(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which of these ids were not seen before; they are known from now on."""
        is_first = np.zeros(len(hashes), np.bool_)
        horizon = len(self._order)
        for row, value in enumerate(hashes.tolist()):
            if value in self._known:
                continue
            is_first[row] = True
            if len(self._known) == horizon:
                self._known.discard(int(self._order[self._next]))
            self._known.add(value)
            self._order[self._next] = value
            self._next = (self._next + 1) % horizon
        return is_first

    def state_dict(self) -> npt.NDArray[np.uint64]:
        """The known hashes, oldest first."""
        count = len(self._known)
        return self._order[(self._next - count + np.arange(count)) % len(self._order)]

    def load_state_dict(self, state: npt.NDArray[np.uint64]) -> None:
        """Go on from an earlier `state_dict`; of a longer horizon the newest ids are kept."""
        kept = state[-len(self._order) :]
        self._order[: len(kept)] = kept
        self._next = len(kept) % len(self._order)
        self._known = set(kept.tolist())

"""Dynamic embeddings: a row for every id that comes often enough, without a vocabulary and without collisions, bounded by age and number.

An id is *waiting* until it has come `admission_count` times, then it is admitted and has a row [weights D | accumulator]. Rows that were
used lately are hot (in memory), the others cold (in a store on disk). A batch's rows are gathered into one dense matrix; the optimiser's
state lies in the same row, and comes and goes with it. Row-wise AdaGrad (Duchi et al. 2011; one accumulator a row as in FBGEMM):

    G <- G + mean_d g_d^2        w <- w - rate g / (sqrt(G) + eps)

An id without a row has the default, zeros; an admitted row begins there, so that admission changes no answer. Which ids are known,
admitted and forgotten follows from what was observed, and when, alone: what is learned again from a replay buffer makes no id frequent or
young, and hot or cold makes no difference to any result.

Shape legend: B ids of a batch (0: no id), U distinct ids, D weights of a row, H hot rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.id_index import FIRST_KEY, IdIndex, Keys, Slots

Floats = npt.NDArray[np.float32]
Records = npt.NDArray[np.uint32]
Places = npt.NDArray[np.int32]

COLD, WAITING = -1, -2
"""Places: of an admitted id its hot row, from 0 on, or COLD; of one that waits WAITING less the times that it came."""
EPSILON = np.float32(1e-8)
SLACK = 16
"""One in so many is put out, or forgotten, at a time beyond what is needed: looking for the oldest costs a pass over all."""


ROWS_AT_ONCE = 1 << 18


class ColdRows(Protocol):
    """Where rows lie that are not in memory: a record [seen | weights, accumulator as bits], or [seen | times] of an id that waits."""

    def read(self, keys: Keys) -> Records: ...

    def write(self, keys: Keys, records: Records) -> None: ...

    def delete(self, keys: Keys) -> None: ...


@dataclass(frozen=True)
class TableLimits:
    """When an id gets a row, and when it is forgotten. Ages are of event time."""

    admission_count: int
    max_age_s: int
    capacity_ids: int
    """Known ids, waiting ones among them: beyond it those that came longest ago are forgotten."""
    hot_rows: int


@dataclass(frozen=True)
class Gathered:
    """The rows of a batch. `states_UD1` is theirs to change: `scatter` writes it back. Good until the next `gather`."""

    batch: int
    inverse_B: npt.NDArray[np.int64]
    rows_U: npt.NDArray[np.int64]
    """Hot rows; -1 for an id without one."""
    states_UD1: Floats

    @property
    def weights_UD(self) -> Floats:
        """The dense matrix: id b of the batch has row inverse_B[b]."""
        return self.states_UD1[:, :-1]


class EmbeddingTable:
    """One feature's embeddings."""

    def __init__(self, dim: int, limits: TableLimits, learning_rate: float, store: ColdRows) -> None:
        self.dim = dim
        self._limits = limits
        self._rate = np.float32(learning_rate)
        self._store = store
        self.index = IdIndex()
        self._states = np.zeros((limits.hot_rows, dim + 1), np.float32)  # the system gives memory when a row is first used
        self._key_of = np.zeros(limits.hot_rows, np.uint64)
        self._last_batch = np.zeros(limits.hot_rows, np.int64)
        self._is_dirty = np.zeros(limits.hot_rows, np.bool_)
        self._is_unsent = np.zeros(limits.hot_rows, np.bool_)
        self._free = np.arange(limits.hot_rows - 1, -1, -1)
        self._free_count = limits.hot_rows
        self._batch = self._waiting = 0
        self._counted: list[Keys] = []
        """Waiting ids whose times are not stored yet."""
        self._cooled: list[tuple[Keys, Floats]] = []
        """Rows put out of memory with weights that were not sent yet."""
        self._gone: list[Keys] = []

    def observe(self, keys_B: Keys, now_s: int) -> None:
        """Each of these ids came once, at about `now_s`. Admits, and forgets the oldest where there are too many. Raises ValueError."""
        keys, times = np.unique(keys_B[keys_B >= FIRST_KEY], return_counts=True)
        slots = self._known(keys)
        index, most = self.index, self._limits.admission_count
        index.seen[slots] = np.maximum(index.seen[slots], np.uint32(now_s))
        waits = np.flatnonzero(index.places[slots] <= WAITING)
        came = np.minimum(WAITING - index.places[slots[waits]] + times[waits], most)
        index.places[slots[waits]] = WAITING - came
        self._counted.append(keys[waits[came < most]])
        self._waiting -= int(np.count_nonzero(came >= most))
        rows = self._bring_in(keys, slots, waits[came >= most])
        self._is_dirty[rows[rows >= 0]] = True

    def gather(self, keys_B: Keys) -> Gathered:
        """The rows that a training batch uses, in memory. Raises ValueError for more ids than rows fit there."""
        keys_U, inverse_B = np.unique(keys_B, return_inverse=True)
        rows_U = self._bring_in(keys_U, self.index.find(keys_U), np.zeros(0, np.int64))
        states_UD1 = self._states[rows_U]
        states_UD1[rows_U < 0] = 0.0
        return Gathered(self._batch, inverse_B, rows_U, states_UD1)

    def scatter(self, gathered: Gathered, gradient_UD: Floats) -> None:
        """One step of the optimiser on the gathered rows."""
        assert gathered.batch == self._batch, "rows move with the next batch"
        states_UD1 = gathered.states_UD1
        states_UD1[:, -1] += np.einsum("ud,ud->u", gradient_UD, gradient_UD) / np.float32(self.dim)
        scale_U = self._rate / (np.sqrt(states_UD1[:, -1]) + EPSILON)
        states_UD1[:, :-1] -= gradient_UD * scale_U[:, None]
        has_row = gathered.rows_U >= 0
        rows = gathered.rows_U[has_row]
        self._states[rows] = states_UD1[has_row]
        self._is_dirty[rows] = self._is_unsent[rows] = True

    def weights(self, keys: Keys) -> Floats:
        """Rows [B, D] as they are now, for whoever only looks: nothing is counted, moved or remembered."""
        distinct, inverse = np.unique(keys, return_inverse=True)
        slots = self.index.find(distinct)
        places = np.where(slots >= 0, self.index.places[slots], WAITING)
        weights = self._states[places, :-1]
        weights[places <= COLD] = 0.0
        cold = np.flatnonzero(places == COLD)
        if len(cold):
            weights[cold] = self._store.read(distinct[cold])[:, 1:-1].view(np.float32)
        return weights[inverse]

    def forget_old(self, now_s: int) -> int:
        """Forget the ids that have not come for `max_age_s`. Gives how many."""
        slots = self.index.slots()
        old = slots[self.index.seen[slots] < max(0, now_s - self._limits.max_age_s)]
        self._forget(old)
        return len(old)

    def flush(self) -> None:
        """Bring all that changed into the store: with it, the table can be made again."""
        dirty = np.flatnonzero(self._is_dirty)
        self._store.write(self._key_of[dirty], self._records(dirty))
        self._is_dirty[dirty] = False
        keys = np.unique(np.concatenate([np.zeros(0, np.uint64), *self._counted]))
        slots = self.index.find(keys)
        waits = (slots >= 0) & (self.index.places[slots] <= WAITING)
        slots = slots[waits]
        times = (WAITING - self.index.places[slots]).astype(np.uint32)
        self._store.write(keys[waits], np.stack([self.index.seen[slots], times], axis=1))
        self._counted = []

    def know(self, keys: Keys, seen: npt.NDArray[np.uint32], times: npt.NDArray[np.uint32]) -> None:
        """Take in ids that the store has, as `flush` left them; `times` is 0 for admitted ones."""
        slots = self.index.insert(keys)
        self.index.seen[slots] = seen
        self._waiting += int(np.count_nonzero(times))
        self.index.places[slots] = np.where(times == 0, COLD, WAITING - times.astype(np.int32))

    def unsent(self) -> tuple[Keys, Keys, Floats]:
        """What whoever follows the table must hear since the last call: forgotten ids first, then ids and their rows [·, D]."""
        rows = np.flatnonzero(self._is_unsent)
        self._is_unsent[rows] = False
        cooled = [part for part in self._cooled if len(part[0])]
        keys = np.concatenate([*(part[0] for part in cooled), self._key_of[rows]])
        weights = np.concatenate([*(part[1] for part in cooled), self._states[rows, :-1]])
        newest, last = np.unique(keys[::-1], return_index=True)
        slots = self.index.find(newest)
        is_row = (slots >= 0) & (self.index.places[slots] >= COLD)
        gone = np.unique(np.concatenate([np.zeros(0, np.uint64), *self._gone]))
        self._cooled, self._gone = [], []
        return gone, newest[is_row], weights[::-1][last[is_row]]

    def rows(self) -> Iterator[tuple[Keys, Floats]]:
        """All rows [·, D] as they are now, in parts."""
        slots = self.index.slots()
        keys = self.index.keys[slots[self.index.places[slots] >= COLD]]
        for start in range(0, len(keys), ROWS_AT_ONCE):
            part = keys[start : start + ROWS_AT_ONCE]
            yield part, self.weights(part)

    def gauges(self) -> dict[str, float]:
        """How many ids are known, of them waiting, and rows in memory. From any thread."""
        return {"ids": len(self.index), "waiting_ids": self._waiting, "hot_rows": self._limits.hot_rows - self._free_count}

    def _bring_in(self, keys: Keys, slots: Slots, admitted: Slots) -> npt.NDArray[np.int64]:
        """The hot rows of distinct ids, after cold ones and those `admitted` now were brought in; -1 for ids without a row."""
        if len(keys) > self._limits.hot_rows:
            raise ValueError(f"a batch of {len(keys)} ids does not fit {self._limits.hot_rows} rows in memory: raise hot_rows")
        self._batch += 1
        places = np.where(slots >= 0, self.index.places[slots], WAITING)
        self._last_batch[places[places >= 0]] = self._batch
        cold = np.flatnonzero(places == COLD)
        if len(cold) + len(admitted):
            self._enter(keys, slots, cold, admitted)
            places = np.where(slots >= 0, self.index.places[slots], WAITING)
        return np.maximum(places, -1).astype(np.int64)

    def _known(self, keys: Keys) -> Slots:
        """The slots of distinct ids; new ones are taken in, as waiting, and the oldest forgotten where that is too many."""
        slots = self.index.find(keys)
        is_new = slots < 0
        new = int(np.count_nonzero(is_new))
        if not new:
            return slots
        if len(keys) > self._limits.capacity_ids:
            raise ValueError(f"a batch of {len(keys)} ids does not fit a table of {self._limits.capacity_ids}: raise its capacity")
        excess = len(self.index) + new - self._limits.capacity_ids
        if excess > 0:
            self._forget_oldest(excess, slots[~is_new])
        at = self.index.insert(keys[is_new])
        self.index.places[at], self.index.seen[at] = WAITING, 0
        self._waiting += new
        return self.index.find(keys)

    def _enter(self, keys: Keys, slots: Slots, cold: Slots, admitted: Slots) -> None:
        """Give rows in memory to ids that come from the store and to ids that are new."""
        count = len(cold) + len(admitted)
        if count > self._free_count:
            self._cool(count - self._free_count)
        rows = self._free[self._free_count - count : self._free_count]
        self._free_count -= count
        entering = np.concatenate([cold, admitted])
        self._states[rows] = 0.0
        if len(cold):
            self._states[rows[: len(cold)]] = self._store.read(keys[cold])[:, 1:].view(np.float32)
        self._key_of[rows], self._last_batch[rows] = keys[entering], self._batch
        self.index.places[slots[entering]] = rows

    def _cool(self, count: int) -> None:
        """Put the rows used longest ago out of memory: at least `count`, none of this batch."""
        is_held = np.ones(self._limits.hot_rows, np.bool_)
        is_held[self._free[: self._free_count]] = False
        held = np.flatnonzero(is_held & (self._last_batch < self._batch))
        count = min(len(held), max(count, self._limits.hot_rows // SLACK))
        oldest = held[np.argpartition(self._last_batch[held], count - 1)[:count]]
        dirty = oldest[self._is_dirty[oldest]]
        self._store.write(self._key_of[dirty], self._records(dirty))
        unsent = oldest[self._is_unsent[oldest]]
        self._cooled.append((self._key_of[unsent], self._states[unsent, :-1]))
        self.index.places[self.index.find(self._key_of[oldest])] = COLD
        self._release(oldest)

    def _release(self, rows: npt.NDArray[np.int64]) -> None:
        self._is_dirty[rows] = self._is_unsent[rows] = False
        self._free[self._free_count : self._free_count + len(rows)] = rows
        self._free_count += len(rows)

    def _records(self, rows: npt.NDArray[np.int64]) -> Records:
        records = np.empty((len(rows), self.dim + 2), np.uint32)
        records[:, 0] = self.index.seen[self.index.find(self._key_of[rows])]
        records[:, 1:] = self._states[rows].view(np.uint32)
        return records

    def _forget_oldest(self, excess: int, kept: Slots) -> None:
        """Forget at least `excess` ids, those that came longest ago, and none of `kept`; of one second those with the smallest keys."""
        may_go = self.index.keys >= FIRST_KEY
        may_go[kept] = False
        slots = np.flatnonzero(may_go)
        count = min(len(slots), excess + self._limits.capacity_ids // SLACK)
        seen = self.index.seen[slots]
        newest = np.partition(seen, count - 1)[count - 1]
        older, same = slots[seen < newest], slots[seen == newest]
        same = same[np.argsort(self.index.keys[same])[: count - len(older)]]
        self._forget(np.concatenate([older, same]))

    def _forget(self, slots: Slots) -> None:
        keys, places = self.index.keys[slots], self.index.places[slots].astype(np.int64)
        self.index.remove(slots)
        self._release(places[places >= 0])
        self._waiting -= int(np.count_nonzero(places <= WAITING))
        self._gone.append(keys[places >= COLD])
        is_left = [~np.isin(cooled, keys) for cooled, _ in self._cooled]
        self._cooled = [(cooled[left], weights[left]) for (cooled, weights), left in zip(self._cooled, is_left, strict=True)]
        self._store.delete(keys)

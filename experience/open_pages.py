"""The pages of open sessions as columns in slots, and each user's pages as a chain of slots.

A page takes about 200 bytes beside its message and its two ids (`headrace bench experience` measures it); a slot is used again when
its page has left, so that memory follows the open sessions and not the finished ones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from experience.pages import NUMBERS, TEXTS, Columns, widened
from experience.reward import Bools, Ints

NEVER = np.iinfo(np.int64).max
PROGRESS: dict[str, type] = {
    "step": np.int32,  # in the session; of a page that waits, other than 0 where it carries on a session whose last page is settled
    "settled": np.bool_,
    "went_on": np.bool_,
    "done": np.bool_,
    "first_offset": np.int64,  # of the samples message with the session's first page
    "serial": np.int64,  # names the page in the log (page_log.py)
}
"""What becomes of a page; `session_id`, an object, goes with it."""
_GROWTH = 1.1
_FIRST_SLOTS = 1024


class OpenPages:
    """The table. `deadline_ms` of a slot is when its user must be looked at again, `needs_from` the first offset that it needs."""

    def __init__(self) -> None:
        self._numbers = {**NUMBERS, **PROGRESS, "deadline_ms": np.int64, "needs_from": np.int64}
        self._objects = (*TEXTS, "exposure", "session_id")
        self._columns: Columns = {name: np.zeros(0, dtype) for name, dtype in self._numbers.items()}
        self._columns |= {name: np.empty(0, np.object_) for name in self._objects}
        self._columns["earned"] = np.zeros((0, 0), np.float32)
        self._next = np.zeros(0, np.int32)
        self._free = np.zeros(0, np.int32)
        self._heads: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._next) - len(self._free)

    @property
    def sessions(self) -> int:
        """Users with open pages."""
        return len(self._heads)

    def add(self, pages: Columns) -> None:
        """Put pages in, with their columns of PROGRESS and `session_id`."""
        count = len(pages["ts_ms"])
        slots = self._slots(count, pages["earned"].shape[1])
        for name, column in pages.items():
            self._columns[name][slots] = widened(column, self._columns[name].shape[1]) if name == "earned" else column
        self._columns["deadline_ms"][slots] = NEVER
        self._columns["needs_from"][slots] = self._needs(slots)
        self._chain(slots, pages["user_id"])

    def _slots(self, count: int, width: int) -> Ints:
        columns = self._columns
        if width > columns["earned"].shape[1]:
            columns["earned"] = widened(columns["earned"], width)
        if count > len(self._free):
            old = len(self._next)
            more = max(count - len(self._free), int(old * (_GROWTH - 1)), _FIRST_SLOTS)
            for name, column in columns.items():
                grown = np.zeros((old + more, *column.shape[1:]), column.dtype)
                grown[:old] = column
                columns[name] = grown
            self._next = np.append(self._next, np.full(more, -1, np.int32))
            self._free = np.append(np.arange(old + more - 1, old - 1, -1, dtype=np.int32), self._free)
            self._clear(np.arange(old, old + more))
        slots, self._free = self._free[len(self._free) - count :][::-1].astype(np.int64), self._free[: len(self._free) - count]
        return slots

    def _clear(self, slots: Ints) -> None:
        for name in ("ts_ms", "deadline_ms", "needs_from"):
            self._columns[name][slots] = NEVER
        self._columns["serial"][slots] = -1
        for name in self._objects:
            self._columns[name][slots] = None

    def _chain(self, slots: Ints, users: Sequence[str] | npt.NDArray[Any]) -> None:
        heads, following = self._heads, []
        for slot, user in zip(slots.tolist(), users, strict=True):
            following.append(heads.get(user, -1))
            heads[user] = slot
        self._next[slots] = following

    def _needs(self, slots: Ints) -> Ints:
        columns = self._columns
        is_begun = columns["settled"][slots] | (columns["step"][slots] > 0)
        offset, first_offset = columns["offset"][slots], columns["first_offset"][slots]
        return np.where(is_begun, np.minimum(offset, first_offset), offset)

    def due(self, watermark_ms: int) -> set[str]:
        """Users whose deadline the watermark is past."""
        slots = np.flatnonzero(self._columns["deadline_ms"] < watermark_ms)
        return set(self._columns["user_id"][slots].tolist())

    def of_users(self, users: Sequence[str]) -> tuple[Ints, Ints]:
        """The slots of these users' pages, and the place of each page's user."""
        slots = np.fromiter([self._heads[user] for user in users], np.int64, len(users))
        user = np.arange(len(users))
        found = []
        while len(slots):
            found.append((slots, user))
            slots = self._next[slots].astype(np.int64)
            is_there = slots >= 0
            slots, user = slots[is_there], user[is_there]
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])

    def of_known_user(self, user: str) -> Ints:
        """The slots of a user's pages; none where there is none."""
        return self.of_users([user])[0] if user in self._heads else np.empty(0, np.int64)

    def take(self, slots: Ints) -> Columns:
        """All columns of some slots."""
        return {name: column[slots] for name, column in self._columns.items()}

    def column(self, name: str, slots: Ints) -> npt.NDArray[Any]:
        """One column of some slots."""
        return self._columns[name][slots]

    def update(self, slots: Ints, progress: Columns) -> None:
        """Set columns of PROGRESS, `session_id` and `deadline_ms`."""
        for name, column in progress.items():
            self._columns[name][slots] = column
        self._columns["needs_from"][slots] = self._needs(slots)

    def replace(self, users: Sequence[str], slots: Ints, user: Ints, is_gone: Bools) -> None:
        """Of these users' pages, in `slots`, ordered by `user` (their places in `users`), let go those that are gone."""
        gone, kept, user = slots[is_gone], slots[~is_gone], user[~is_gone]
        self._clear(gone)
        self._free = np.concatenate([self._free, gone.astype(np.int32)])
        follows = np.append(user[1:] == user[:-1], False)[: len(kept)]
        self._next[kept] = np.where(follows, np.append(kept[1:], -1)[: len(kept)], -1)
        heads = self._heads
        for name in users if len(gone) else ():
            heads.pop(name, None)
        is_first = np.append(True, user[1:] != user[:-1])[: len(kept)]
        for place, slot in zip(user[is_first].tolist(), kept[is_first].tolist(), strict=True):
            heads[users[place]] = slot

    def oldest_ms(self) -> int:
        """The oldest page's ts_ms; NEVER where there is none."""
        return int(self._columns["ts_ms"].min(initial=NEVER))

    def needs_from(self) -> int:
        """The first offset that an open page needs; NEVER where there is none."""
        return int(self._columns["needs_from"].min(initial=NEVER))

    def with_serials(self, first: int, end: int) -> Ints:
        """The slots of pages with these serials, in their order."""
        serials = self._columns["serial"]
        slots = np.flatnonzero((serials >= first) & (serials < end))
        return slots[np.argsort(serials[slots])]

"""The pages of open sessions as columns in slots, and each user's pages as a chain of slots.

A page takes about 230 bytes beside its message and its two ids (`headrace bench experience` measures it); a slot is used again when
its page has left, so that memory follows the open sessions and not the finished ones. A user is found by 64 bits of hash: whoever
looks at a chain's pages must look at their user ids, too (`apart`).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from experience.columns import NUMBERS, PARTS, TEXTS, USER_ID, Columns, ids, objects, widened
from experience.reward import Bools, Ints
from headrace.id_index import FIRST_KEY, IdIndex, Keys

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
        self._numbers = {**NUMBERS, **PROGRESS, "deadline_ms": np.int64, "needs_from": np.int64, "user": np.uint64}
        self._objects = (*TEXTS, "packed", "session_id")
        self._columns: Columns = {name: np.zeros(0, dtype) for name, dtype in self._numbers.items()}
        self._columns |= {name: np.empty(0, np.object_) for name in self._objects}
        self._columns["sizes"] = np.zeros((0, len(PARTS)), np.int32)
        self._columns["earned"] = np.zeros((0, 0), np.float32)
        self._next = np.zeros(0, np.int32)
        self._free = np.zeros(0, np.int32)
        self._heads = IdIndex()

    def __len__(self) -> int:
        return len(self._next) - len(self._free)

    @property
    def sessions(self) -> int:
        """Users with open pages."""
        return len(self._heads)

    def add(self, pages: Columns) -> Keys:
        """Put pages in, with their columns of PROGRESS and `session_id`. Gives their users' keys."""
        count = len(pages["ts_ms"])
        slots = self._slots(count, pages["earned"].shape[1])
        for name, column in pages.items():
            self._columns[name][slots] = widened(column, self._columns[name].shape[1]) if name == "earned" else column
        self._columns["user"][slots] = user_keys(ids(pages, USER_ID))
        self._columns["deadline_ms"][slots] = NEVER
        self._columns["needs_from"][slots] = self._needs(slots)
        users, first, last = self._chain(slots)
        heads = self._heads.find(users)
        is_known = heads >= 0
        self._next[last[is_known]] = self._heads.places[heads[is_known]]
        self._heads.places[heads[is_known]] = first[is_known]
        heads = self._heads.insert(users[~is_known])
        self._heads.places[heads] = first[~is_known]
        return users

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

    def _chain(self, slots: Ints) -> tuple[Keys, Ints, Ints]:
        """Chain the slots of each user. Gives the users, and the first and the last slot of each."""
        keys = self._columns["user"][slots]
        order = np.argsort(keys, kind="stable")
        keys, slots = keys[order], slots[order]
        is_last = np.append(keys[1:] != keys[:-1], True)[: len(keys)]
        is_first = np.append(True, is_last[:-1])[: len(keys)]
        self._next[slots] = np.where(is_last, -1, np.append(slots[1:], -1)[: len(keys)])
        return keys[is_first], slots[is_first], slots[is_last]

    def _needs(self, slots: Ints) -> Ints:
        columns = self._columns
        is_begun = columns["settled"][slots] | (columns["step"][slots] > 0)
        offset, first_offset = columns["offset"][slots], columns["first_offset"][slots]
        return np.where(is_begun, np.minimum(offset, first_offset), offset)

    def due(self, watermark_ms: int) -> Keys:
        """Users whose deadline the watermark is past."""
        return self._columns["user"][self._columns["deadline_ms"] < watermark_ms]

    def of_users(self, users: Keys) -> tuple[Ints, Ints]:
        """The slots of these users' pages, and the place of each page's user. All must be there."""
        slots = self._heads.places[self._heads.find(users)].astype(np.int64)
        user = np.arange(len(users))
        found = [(slots, user)]
        while len(slots):
            slots = self._next[slots].astype(np.int64)
            is_there = slots >= 0
            slots, user = slots[is_there], user[is_there]
            found.append((slots, user))
        return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])

    def of_user(self, user_id: bytes) -> Ints:
        """The slots of a user's pages; none where there is none."""
        key = user_keys([user_id])
        if self._heads.find(key)[0] < 0:
            return np.empty(0, np.int64)
        slots, _ = self.of_users(key)
        return slots[[other == user_id for other in ids(self.take(slots), USER_ID)]]

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

    def replace(self, users: Keys, slots: Ints, is_gone: Bools) -> None:
        """Of these users' pages, in `slots`, let go those that are gone; the others are chained in this order."""
        gone = slots[is_gone]
        stay, first, _ = self._chain(slots[~is_gone])
        self._clear(gone)
        self._free = np.concatenate([self._free, gone.astype(np.int32)])
        self._heads.places[self._heads.find(stay)] = first
        self._heads.remove(self._heads.find(np.setdiff1d(users, stay, assume_unique=True)))

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


def user_keys(user_ids: list[bytes]) -> Keys:
    """What users are found by."""
    keys = np.fromiter(map(hash, user_ids), np.int64, len(user_ids)).view(np.uint64)
    return np.maximum(keys, np.uint64(FIRST_KEY))


def apart(user: Ints, pages: Columns) -> Ints:
    """`user` numbers the pages by their users' keys, and the first page of each is at its number. Gives it by the users themselves."""
    user_ids = objects(ids(pages, USER_ID))
    if bool((user_ids == user_ids[user]).all()):
        return user
    numbers: dict[tuple[int, bytes], int] = {}
    return np.array([numbers.setdefault(pair, len(numbers)) for pair in zip(user.tolist(), user_ids, strict=True)], np.int64)

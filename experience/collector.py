"""Pages in, settled transitions out: the open sessions of one partition, with their log. What feeds it decides what time it is.

The live step (sessions.py) and the builder from Parquet files (history.py) are two such feeders.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from experience.columns import USER_ID, Columns, concatenated, ids, objects, take
from experience.episodes import Leaving, Links, in_order, leaving, link, request_ids, steps_of
from experience.open_pages import NEVER, PROGRESS, OpenPages, apart
from experience.page_log import LETTERS, Change, PageLog
from experience.reward import Bools, Ints
from experience.settings import ExperienceSettings
from experience.transitions import transition_batches
from headrace.id_index import Keys
from headrace.step import StoredRows

_COMPARED = ("ts_ms", "step", "settled", "source_offset", "packed", "sizes")
"""What pages are brought into their order by."""


class Released(NamedTuple):
    """What left, and the rows of the store that change."""

    batches: list[pa.RecordBatch]
    changes: list[Change]


class Collector:
    """`add` pages, then `release` what the watermark settles; once each a call of the step, which stores the changes."""

    def __init__(
        self,
        settings: ExperienceSettings,
        stored: StoredRows | None = None,
        next_entry: int = 0,
        watermark_ms: int = 0,
        letters: tuple[bytes, bytes] = LETTERS,
    ) -> None:
        self._settings = settings
        self._table = OpenPages()
        self._log = PageLog(next_entry, letters) if stored is not None else None
        self._touched: list[Keys] = []
        self._new: list[Columns] = []
        self._strays: list[Columns] = []
        self._watermark_ms = watermark_ms
        if stored is not None and self._log is not None:
            pages = self._log.recover(stored)
            if pages is not None and len(pages["ts_ms"]):
                self._touched.append(self._table.add(pages))  # to find their deadlines again

    @property
    def next_entry(self) -> int:
        """Of the log."""
        return self._log.next_entry if self._log else 0

    @property
    def open_sessions(self) -> int:
        """Users with open pages."""
        return self._table.sessions

    @property
    def open_pages(self) -> int:
        """Pages that have not left."""
        return len(self._table)

    def oldest_ms(self) -> int:
        """The oldest open page's time; NEVER where there is none."""
        return self._table.oldest_ms()

    def needs_from(self) -> int:
        """The first offset that an open page needs; NEVER where there is none."""
        return self._table.needs_from()

    def add(self, pages: Columns) -> None:
        """Take pages in, each for the first time. Their order has no effect."""
        is_stray = self._strayed(pages)
        if is_stray.any():
            self._strays.append(take(pages, is_stray))
            pages = take(pages, ~is_stray)
        if len(pages["ts_ms"]):
            self._new.append(pages)

    def _strayed(self, pages: Columns) -> Bools:
        """Pages older than promised, whose user's session has begun to leave a gap and more after them: sessions of their own."""
        is_stray = np.zeros(len(pages["ts_ms"]), np.bool_)
        old = np.flatnonzero(pages["ts_ms"] < self._watermark_ms)
        for row, user_id in zip(old.tolist(), ids(take(pages, old), USER_ID), strict=True):
            slots = self._table.of_user(user_id)
            if len(slots):
                waits = ~self._table.column("settled", slots)
                begun = bool((self._table.column("step", slots) > 0).any() or not waits.all())
                first_ms = int(self._table.column("ts_ms", slots[waits]).min(initial=NEVER))
                is_stray[row] = begun and pages["ts_ms"][row] < first_ms - self._settings.session_gap_ms
        return is_stray

    def release(self, watermark_ms: int) -> Released:
        """Settle what no page with ts_ms >= watermark_ms can change, and let go what nothing needs any more."""
        self._watermark_ms = max(self._watermark_ms, watermark_ms)
        batches = [batch for strays in self._strays for batch in self._alone(strays)]
        logged, moved = self._take_in()
        users = np.unique(np.concatenate([*self._touched, self._table.due(watermark_ms)]))
        self._touched, self._strays = [], []
        if not len(users):
            changes = [] if self._log is None else self._log.append(logged, moved, _no_ints(), _nothing_changed())
            return Released(batches, changes)
        slots, user = self._table.of_users(users)
        compared = {name: self._table.column(name, slots) for name in _COMPARED}
        user = _by_offset(apart(user, compared), compared["source_offset"])
        order = in_order(compared, user)
        slots, user = slots[order], user[order]
        pages = self._table.take(slots)
        settings = self._settings
        links = link(pages, user, watermark_ms, settings.session_gap_ms, settings.max_session_pages)
        going, is_gone = leaving(links, user, settings.instances)
        batches += transition_batches(pages, links, going, settings)
        changed = self._progress(slots, user, pages, links, is_gone)
        self._table.replace(users, slots, is_gone)
        return Released(batches, [] if self._log is None else self._log.append(logged, moved, pages["serial"][is_gone], changed))

    def _take_in(self) -> tuple[Columns | None, Ints]:
        """Put new pages into the table. Gives what the log must write, those moved included, and these ones' old serials."""
        parts, moved = [], _no_ints()
        if self._log is not None and len(slots := self._log.to_move(self._table)):
            parts.append(self._table.take(slots))
            moved = parts[0]["serial"]
            self._table.update(slots, {"serial": self._log.serials(len(slots))})
        if self._new:
            new = concatenated(self._new)
            self._new = []
            count = len(new["ts_ms"])
            new |= {name: np.zeros(count, dtype) for name, dtype in PROGRESS.items()}
            new["session_id"] = objects([""] * count)
            if self._log is not None:
                new["serial"] = self._log.serials(len(moved) + count)[len(moved) :]
            self._touched.append(self._table.add(new))
            parts.append(new)
        if self._log is None or not parts:
            return None, moved
        logged = concatenated(
            [{name: part[name] for name in parts[-1] if name not in ("deadline_ms", "needs_from", "user")} for part in parts]
        )
        logged["serial"] = self._log.serials(len(logged["ts_ms"]))
        return logged, moved

    def _progress(self, slots: Ints, user: Ints, pages: Columns, links: Links, is_gone: Bools) -> Columns:
        """Note in the table what became of the pages that stay; what of it must be stored comes back."""
        waits = ~links.is_settled
        is_first = waits & np.append(True, (user[1:] != user[:-1]) | ~waits[:-1])
        step = np.where(links.is_settled | is_first, links.step, 0).astype(np.int32)
        stays = ~is_gone
        deadline_ms = np.where(is_first, links.decided_ms, NEVER)
        changes = np.flatnonzero(stays & (links.is_new | (step != pages["step"])))
        changed: Columns = {
            "step": step[changes],
            "settled": links.is_settled[changes],
            "went_on": links.went_on[changes],
            "done": links.done[changes],
            "first_offset": links.first_offset[changes],
            "session_id": links.session_id[changes],
            "serial": pages["serial"][changes],
        }
        self._table.update(slots[stays], {"deadline_ms": deadline_ms[stays]})
        if len(changes):
            self._table.update(slots[changes], changed)
        return changed

    def _alone(self, pages: Columns) -> list[pa.RecordBatch]:
        """Pages that are whole sessions."""
        count = len(pages["ts_ms"])
        yes, no = np.ones(count, np.bool_), np.zeros(count, np.bool_)
        links = Links(yes, yes, no, yes, np.zeros(count, np.int64), request_ids(pages), pages["offset"], pages["ts_ms"])
        place = np.arange(count)
        going = [Leaving(instance, place, place) for instance in sorted(self._settings.instances, key=steps_of)]
        return list(transition_batches(pages, links, going, self._settings))


def _by_offset(user: Ints, offset: Ints) -> Ints:
    """Users numbered by their oldest page's offset, and not by their keys: another process has others, and must give the same bytes."""
    first = np.full(int(user.max()) + 1, NEVER)
    np.minimum.at(first, user, offset)
    return np.argsort(np.argsort(first, kind="stable"))[user]


def _no_ints() -> Ints:
    return np.empty(0, np.int64)


def _nothing_changed() -> Columns:
    return {**{name: np.empty(0, dtype) for name, dtype in PROGRESS.items()}, "session_id": np.empty(0, np.object_)}

"""Taobao UserBehavior: user_id,item_id,category_id,behavior,timestamp (s), without header; behaviours pv, cart, fav, buy.

Zhu et al., Learning Tree-based Deep Model for Recommender Systems, KDD 2018; Alibaba Tianchi data set 649. The log has no
impressions: what was shown and not opened is not in it. A `pv` (an item's page was opened) is the exposure of a page with that one
item, and no click is made up from it. A cart, fav or buy is feedback on its user's newest earlier pv of the item, if that is
inside the join window; else it is refused as `feedback_without_exposure`. Every page is baseline traffic.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.logs.delimited import is_integer, read_delimited, to_integers
from headrace.logs.history import UserPast, history_spec
from headrace.logs.recorded_log import LogEvent, LogFormat, RecordedLog, Refusal, SourceFile
from schemas.action import ActionDimension, ActionSpec
from schemas.codec import encode_json
from schemas.exposure import ExposedItem, Exposure
from schemas.feedback import Feedback
from schemas.topics import EXPOSURES, FEEDBACK

COLUMNS = ("user_id", "item_id", "category_id", "behavior", "timestamp")
NUMBERS = ("user_id", "item_id", "category_id", "timestamp")
KINDS = ("cart", "fav", "buy")
BEHAVIORS = ("pv", *KINDS)
FROM_S = 1_511_539_200
UNTIL_S = 1_512_316_800
"""The official window, 2017-11-25 to 2017-12-03 in UTC+8: from (inclusive) and until (exclusive), seconds since the epoch."""
_PV = 0
_SEQUENCES = ("recent_items", "recent_categories", "recent_cart", "recent_buy")
_UTC_OFFSET_H = 8
_CHUNK = 8192


@dataclass(frozen=True)
class _Columns:
    """R sound rows; `behavior` indexes BEHAVIORS, `row` counts from 0 over all files."""

    row: npt.NDArray[np.int64]
    user_id: npt.NDArray[np.int64]
    item_id: npt.NDArray[np.int64]
    category_id: npt.NDArray[np.int64]
    behavior: npt.NDArray[np.int64]
    timestamp_s: npt.NDArray[np.int64]

    def take(self, index: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "_Columns":
        return _Columns(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def read(paths: list[Path], join_window_ms: int) -> RecordedLog:
    """Read the files of a log, all of them as one."""
    files: list[SourceFile] = []
    refused: list[Refusal] = []
    parts: list[_Columns] = []
    start = 0
    for path in paths:
        cells, lines, torn = read_delimited(path, list(COLUMNS), list(COLUMNS), header_lines=0)
        files.append(SourceFile(path.name, len(lines) + len(torn)))
        refused += [Refusal(start + line - 1, "malformed", detail) for line, detail in torn]
        columns, wrong = _checked(cells, start + lines - 1)
        refused += wrong
        parts.append(columns)
        start += files[-1].rows
    columns = _Columns(*(np.concatenate([getattr(part, name) for part in parts]) for name in _Columns.__dataclass_fields__))
    columns, duplicates = _without_duplicates(columns)
    columns, page_row, unseen = _with_pages(columns, join_window_ms)
    return RecordedLog(
        files=files,
        refused=sorted([*refused, *duplicates, *unseen]),
        event_count=len(columns.row),
        newest_ms=int(columns.timestamp_s[-1]) * 1000 if len(columns.row) else 0,
        events=lambda: _events(columns, page_row),
    )


def _checked(cells: pa.Table, rows: npt.NDArray[np.int64]) -> tuple[_Columns, list[Refusal]]:
    """The sound rows as numbers, and a refusal for each of the others."""
    sound = np.ones(len(cells), np.bool_)
    refused: list[Refusal] = []
    known = np.asarray(
        pc.is_in(cells["behavior"], pa.array([name.encode() for name in BEHAVIORS])).to_numpy(zero_copy_only=False), np.bool_
    )
    for name in COLUMNS:
        good, wanted = (is_integer(cells[name]), "a whole number") if name in NUMBERS else (known, "one of " + ", ".join(BEHAVIORS))
        for index in np.flatnonzero(sound & ~good):
            refused.append(Refusal(int(rows[index]), "malformed", f"{name} must be {wanted}, got {cells[name][int(index)].as_py()!r:.40}"))
        sound &= good
    cells, rows = cells.filter(pa.array(sound)), rows[sound]
    numbers = {name: to_integers(cells[name]) for name in NUMBERS}
    behavior = np.asarray(pc.index_in(cells["behavior"], pa.array([name.encode() for name in BEHAVIORS])).to_numpy(), np.int64)
    columns = _Columns(rows, numbers["user_id"], numbers["item_id"], numbers["category_id"], behavior, numbers["timestamp"])
    inside = (columns.timestamp_s >= FROM_S) & (columns.timestamp_s < UNTIL_S)
    for row, timestamp_s in zip(rows[~inside].tolist(), columns.timestamp_s[~inside].tolist(), strict=True):
        refused.append(Refusal(row, "outside_window", f"timestamp {timestamp_s} is not in [{FROM_S}, {UNTIL_S})"))
    return columns.take(inside), refused


def _without_duplicates(columns: _Columns) -> tuple[_Columns, list[Refusal]]:
    """The first of every set of equal rows, in event-time order: at the same second pages come before feedback, then as in the log."""
    order = np.lexsort((columns.row, columns.category_id, columns.item_id, columns.user_id, columns.behavior, columns.timestamp_s))
    columns = columns.take(order)
    same = np.ones(max(len(order) - 1, 0), np.bool_)
    for name in ("timestamp_s", "behavior", "user_id", "item_id", "category_id"):
        same &= np.diff(getattr(columns, name)) == 0
    repeated = np.concatenate([np.zeros(min(len(order), 1), np.bool_), same])
    refused = [Refusal(row, "duplicate", "equal to an earlier row") for row in columns.row[repeated].tolist()]
    columns = columns.take(~repeated)
    return columns.take(np.lexsort((columns.row, columns.behavior != _PV, columns.timestamp_s))), refused


def _with_pages(columns: _Columns, join_window_ms: int) -> tuple[_Columns, npt.NDArray[np.int64], list[Refusal]]:
    """The rows that are a page or have one, the row of that page, and a refusal for feedback without.

    `columns` are in event-time order. Sorted by user and item, the newest pv so far is a running maximum of positions.
    """
    order = np.lexsort((np.arange(len(columns.row)), columns.item_id, columns.user_id))
    by_item = columns.take(order)
    positions = np.arange(len(order), dtype=np.int64)
    newest = np.maximum.accumulate(np.where(by_item.behavior == _PV, positions, -1))
    seen = (newest >= 0) & (by_item.user_id[newest] == by_item.user_id) & (by_item.item_id[newest] == by_item.item_id)
    age_ms = (by_item.timestamp_s - by_item.timestamp_s[newest]) * 1000
    page_row, joined = np.empty(len(order), np.int64), np.empty(len(order), np.bool_)
    page_row[order] = by_item.row[newest]
    joined[order] = seen & (age_ms <= join_window_ms)
    refused = []
    for row, ever, age in zip(by_item.row.tolist(), seen.tolist(), age_ms.tolist(), strict=True):
        if not ever or age > join_window_ms:
            detail = f"newest pv of the item is {age} ms old, join window {join_window_ms} ms" if ever else "no earlier pv of the item"
            refused.append(Refusal(row, "feedback_without_exposure", detail))
    return columns.take(joined), page_row[joined], refused


def _events(columns: _Columns, page_row: npt.NDArray[np.int64]) -> Iterator[LogEvent]:
    """The messages, with the state of each page taken from what its user had done by then."""
    pasts: defaultdict[int, UserPast] = defaultdict(UserPast)
    for start in range(0, len(columns.row), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        cells = (getattr(columns, name)[chunk].tolist() for name in _Columns.__dataclass_fields__)
        for row, user, item, category, behavior, timestamp_s, page in zip(*cells, page_row[chunk].tolist(), strict=True):
            ts_ms, user_id, item_id = timestamp_s * 1000, str(user), str(item)
            past = pasts[user]
            if behavior == _PV:
                exposure = Exposure(
                    request_id=f"{user}-{row}",
                    user_id=user_id,
                    ts_ms=ts_ms,
                    scene="item-page",
                    state=past.state(ts_ms, KINDS, _SEQUENCES, _UTC_OFFSET_H),
                    action=ACTION.baseline,
                    items=[ExposedItem(item_id=item_id, position=0, features={"category": str(category)})],
                )
                past.on_page(ts_ms, {"recent_items": item_id, "recent_categories": str(category)})
                yield LogEvent(ts_ms, EXPOSURES, row, encode_json(exposure))
                continue
            kind = BEHAVIORS[behavior]
            past.on_feedback(kind, ts_ms, item_id)
            feedback = Feedback(
                event_id=f"{user}-{row}", request_id=f"{user}-{page}", user_id=user_id, item_id=item_id, ts_ms=ts_ms, kind=kind
            )
            yield LogEvent(ts_ms, FEEDBACK, row, encode_json(feedback))


ACTION = ActionSpec(
    dimensions=(ActionDimension(name="buy_exponent", objective="buy", meaning="multiplies the exponent of p_buy; 1 is the ranker's own"),)
)
FORMAT = LogFormat(
    name="taobao",
    title="Taobao UserBehavior: UserBehavior.csv without header",
    read=read,
    file_patterns=("UserBehavior*.csv",),
    defaults={
        # Of the feedback that has an earlier pv of its item, 43 % come within 10 minutes and 84 % within a day.
        "joiner": {"feedback_kinds": KINDS, "join_window_ms": 24 * 60 * 60 * 1000},
        "experience": {
            "reward": {"kinds": {"cart": {"weight": 1.0}, "fav": {"weight": 1.0}, "buy": {"weight": 5.0}}, "conversion_kinds": KINDS},
        },
        "policy": {"features": history_spec(KINDS, _SEQUENCES), "action": ACTION},
    },
)

"""KuaiRand (Kuaishou short videos): one row is one video shown in a swipe feed, with all the feedback that it got.

Gao et al., KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos, CIKM 2022. Read are the
original `log_standard_*.csv` and a Parquet file with the same columns. The log has no time of feedback, so our rule is: a click
happens at `time_ms` (playing starts), everything else when playing ends, at `time_ms + play_time_ms`. The log does not say what
the ranker predicted or did: every page is baseline traffic.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.logs.delimited import header, is_integer, read_delimited, to_integers
from headrace.logs.history import UserPast, history_spec
from headrace.logs.recorded_log import LogEvent, LogFormat, RecordedLog, Refusal, SourceFile
from headrace.settings import ConfigError
from schemas.action import ActionDimension, ActionSpec
from schemas.codec import encode_json
from schemas.exposure import ExposedItem, Exposure
from schemas.feedback import Feedback
from schemas.topics import EXPOSURES, FEEDBACK

FLAGS: dict[str, str] = {
    "click": "is_click",
    "like": "is_like",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "hate": "is_hate",
    "long_view": "long_view",
}
"""Columns that are 0 or 1, by kind of feedback."""
DWELL = "dwell"
KINDS = (*FLAGS, DWELL)
COLUMNS = ("user_id", "video_id", "time_ms", *FLAGS.values(), "play_time_ms", "duration_ms", "tab")
HIGHEST: dict[str, int] = dict.fromkeys(FLAGS.values(), 1) | {"time_ms": 253_402_300_799_999}
"""Largest value of a column where it is not that of 18 digits: a flag is 0 or 1, a time lies before the year 10000."""
_HISTORY_KINDS = ("click", "long_view", "like")
_SEQUENCES = ("recent_items", "recent_click", "recent_long_view")
_UTC_OFFSET_H = 8
_CHUNK = 8192
_EXPOSURE = -1

Columns = dict[str, npt.NDArray[np.int64]]


class _Order(NamedTuple):
    """Events in event-time order: which row of the columns, and the number of its kind (`_EXPOSURE`: the page itself)."""

    ts_ms: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]


def read(paths: list[Path], join_window_ms: int) -> RecordedLog:
    """Read the files of a log, all of them as one. The window is not needed: every feedback stands in its exposure's row."""
    files: list[SourceFile] = []
    refused: list[Refusal] = []
    parts: list[Columns] = []
    start = 0
    for path in paths:
        table, rows, torn, first_line = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
        files.append(SourceFile(path.name, len(rows) + len(torn), first_line))
        refused += [Refusal(start + row, "malformed", detail) for row, detail in torn]
        columns, wrong = _checked(table, start + rows)
        refused += wrong
        parts.append(columns)
        start += files[-1].rows
    columns, duplicates = _without_duplicates({name: np.concatenate([part[name] for part in parts]) for name in (*COLUMNS, "row")})
    order = _ordered(columns)
    return RecordedLog(
        files=files,
        refused=sorted(refused + duplicates),
        event_count=len(order.ts_ms),
        newest_ms=int(order.ts_ms[-1]) if len(order.ts_ms) else 0,
        events=lambda: _events(columns, order),
    )


def _read_csv(path: Path) -> tuple[pa.Table, npt.NDArray[np.int64], list[tuple[int, str]], int]:
    """Cells, their rows (from 0), torn rows, and the line of row 0."""
    names = header(path)
    _require_columns(path, names)
    cells, lines, torn = read_delimited(path, names, list(COLUMNS), header_lines=1)
    return cells, lines - 2, [(line - 2, detail) for line, detail in torn], 2


def _read_parquet(path: Path) -> tuple[pa.Table, npt.NDArray[np.int64], list[tuple[int, str]], int]:
    try:
        schema = pq.read_schema(path)
        _require_columns(path, schema.names)
        table = pq.read_table(path, columns=list(COLUMNS))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except pa.ArrowInvalid as error:
        raise ConfigError(f"not a Parquet file: {path}: {str(error).splitlines()[0]}") from error
    for field in table.schema:
        if not pa.types.is_integer(field.type):
            raise ConfigError(f"{path}: column {field.name} must hold whole numbers, it holds {field.type}")
    return table, np.arange(len(table), dtype=np.int64), [], 1


def _require_columns(path: Path, names: list[str]) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise ConfigError(f"not a KuaiRand log: {path} lacks the columns {', '.join(missing)}")


def _checked(table: pa.Table, rows: npt.NDArray[np.int64]) -> tuple[Columns, list[Refusal]]:
    """The sound rows as numbers, and a refusal for each of the others that names its first wrong column."""
    sound = np.ones(len(table), np.bool_)
    refused: list[Refusal] = []
    for name in COLUMNS:
        good = _in_range(table[name], HIGHEST.get(name, 10**18 - 1))
        for index in np.flatnonzero(sound & ~good):
            wanted = (
                f"{name} must be a whole number from 0 to {HIGHEST[name]}"
                if name in HIGHEST
                else f"{name} must be a whole number from 0 on"
            )
            refused.append(Refusal(int(rows[index]), "malformed", f"{wanted}, got {table[name][int(index)].as_py()!r:.40}"))
        sound &= good
    kept = table.filter(pa.array(sound))
    columns = {name: to_integers(kept[name]) for name in COLUMNS}
    columns["row"] = rows[sound]
    return columns, refused


def _in_range(column: pa.ChunkedArray, highest: int) -> npt.NDArray[np.bool_]:
    good = is_integer(column)
    numbers = np.zeros(len(column), np.int64)
    numbers[good] = to_integers(column.filter(pa.array(good)))
    return good & (numbers >= 0) & (numbers <= highest)


def _without_duplicates(columns: Columns) -> tuple[Columns, list[Refusal]]:
    """The first of every set of rows that are equal in all the columns that are read."""
    order = np.lexsort((columns["row"], *(columns[name] for name in COLUMNS)))
    repeated = np.zeros(len(order), np.bool_)
    if len(order):
        same = np.ones(len(order) - 1, np.bool_)
        for name in COLUMNS:
            same &= np.diff(columns[name][order]) == 0
        repeated[order[1:][same]] = True
    refused = [Refusal(int(row), "duplicate", "equal to an earlier row") for row in columns["row"][repeated]]
    return {name: values[~repeated] for name, values in columns.items()}, refused


def _ordered(columns: Columns) -> _Order:
    """All events by time; at the same millisecond pages come before feedback, and rows as they stand in the log."""
    shown_ms = columns["time_ms"]
    played_ms = shown_ms + columns["play_time_ms"]
    ts_ms, index, kind = [shown_ms], [np.arange(len(shown_ms), dtype=np.int64)], [np.full(len(shown_ms), _EXPOSURE, np.int64)]
    for number, name in enumerate(KINDS):
        happened = np.flatnonzero(columns["play_time_ms" if name == DWELL else FLAGS[name]])
        ts_ms.append((shown_ms if name == "click" else played_ms)[happened])
        index.append(happened)
        kind.append(np.full(len(happened), number, np.int64))
    joined = _Order(np.concatenate(ts_ms), np.concatenate(index), np.concatenate(kind))
    order = np.lexsort((joined.kind, columns["row"][joined.place], joined.kind != _EXPOSURE, joined.ts_ms))
    return _Order(*(values[order] for values in joined))


def _events(columns: Columns, order: _Order) -> Iterator[LogEvent]:
    """The messages, with the state of each page taken from what its user had done by then."""
    pasts: defaultdict[int, UserPast] = defaultdict(UserPast)
    for start in range(0, len(order.ts_ms), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        index = order.place[chunk]
        cells = (columns[name][index].tolist() for name in ("row", "user_id", "video_id", "play_time_ms", "duration_ms", "tab"))
        for ts_ms, kind, row, user, video, play_ms, duration_ms, tab in zip(
            order.ts_ms[chunk].tolist(), order.kind[chunk].tolist(), *cells, strict=True
        ):
            past = pasts[user]
            request_id, item_id = f"{user}-{row}", str(video)
            if kind == _EXPOSURE:
                page = _page(request_id, user, ts_ms, item_id, duration_ms, tab, past)
                past.on_page(ts_ms, {"recent_items": item_id})
                yield LogEvent(ts_ms, EXPOSURES, row, encode_json(page))
                continue
            name = KINDS[kind]
            past.on_feedback(name, ts_ms, item_id)
            feedback = Feedback(
                event_id=f"{request_id}-{name}",
                request_id=request_id,
                user_id=str(user),
                item_id=item_id,
                ts_ms=ts_ms,
                kind=name,
                value=float(play_ms) if name == DWELL else 1.0,
            )
            yield LogEvent(ts_ms, FEEDBACK, row, encode_json(feedback))


def _page(request_id: str, user: int, ts_ms: int, item_id: str, duration_ms: int, tab: int, past: UserPast) -> Exposure:
    state = past.state(ts_ms, _HISTORY_KINDS, _SEQUENCES, _UTC_OFFSET_H)
    state["tab"] = str(tab)
    return Exposure(
        request_id=request_id,
        user_id=str(user),
        ts_ms=ts_ms,
        scene=f"tab-{tab}",
        state=state,
        action=ACTION.baseline,
        items=[ExposedItem(item_id=item_id, position=0, features={"duration_s": duration_ms / 1000})],
    )


ACTION = ActionSpec(
    dimensions=(
        ActionDimension(
            name="long_view_exponent", objective="long_view", meaning="multiplies the exponent of p_long_view; 1 is the ranker's own"
        ),
    )
)
_WEIGHTS = {"click": 0.5, "long_view": 1.0, "like": 2.0, "follow": 5.0, "comment": 2.0, "forward": 3.0, "hate": -5.0}
FORMAT = LogFormat(
    name="kuairand",
    title="KuaiRand: log_standard_*.csv, or a Parquet file with the same columns",
    read=read,
    file_patterns=("exposures.parquet", "log_standard_*.csv", "data/log_standard_*.csv"),
    defaults={
        # The longest play of 94,784 rows is 13 minutes.
        "joiner": {"feedback_kinds": KINDS, "join_window_ms": 30 * 60 * 1000},
        "experience": {
            "reward": {
                "kinds": {kind: {"weight": weight} for kind, weight in _WEIGHTS.items()},
                "conversion_kinds": ("long_view", "like", "follow", "comment", "forward"),
            },
        },
        "policy": {"features": history_spec(_HISTORY_KINDS, _SEQUENCES, ids=("tab",)), "action": ACTION},
    },
)

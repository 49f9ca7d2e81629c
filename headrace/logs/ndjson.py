"""NDJSON, our own format: a line is {"exposure": {...}} or {"feedback": {...}}, the objects being those of the topics of the same name.

Lines may stand in any order; events of the same millisecond are taken pages first, then as they stand. A line is opened here only
for its keys: its bytes go to the joiner as they are, which judges them as it judges what comes from Kafka.
"""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Raw, Struct

from headrace.logs.recorded_log import LogEvent, LogFormat, RecordedLog, Refusal, SourceFile
from headrace.settings import ConfigError
from schemas.codec import decode_exposure_key, decode_feedback
from schemas.topics import EXPOSURES, FEEDBACK


class Line(Struct, forbid_unknown_fields=True):
    """One line: exactly one of the two."""

    exposure: Raw | None = None
    feedback: Raw | None = None


class _Event(NamedTuple):
    ts_ms: int
    topic: str
    row: int
    value: bytes


_decode_line = msgspec.json.Decoder(Line).decode


def read(paths: list[Path], join_window_ms: int) -> RecordedLog:
    """Read the files of a log, all of them as one. The window is not needed: feedback names its page."""
    files: list[SourceFile] = []
    refused: list[Refusal] = []
    events: list[LogEvent] = []
    seen: set[tuple[str, str]] = set()
    rows = count()
    for path in paths:
        lines = _lines(path)
        files.append(SourceFile(path.name, len(lines)))
        for row, line in zip(rows, lines, strict=False):
            event = _event(row, line, seen)
            (refused if isinstance(event, Refusal) else events).append(event)
    events.sort(key=lambda event: (event.ts_ms, event.topic != EXPOSURES, event.row))
    return RecordedLog(files, refused, len(events), events[-1].ts_ms if events else 0, lambda: iter(events))

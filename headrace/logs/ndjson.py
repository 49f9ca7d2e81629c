"""NDJSON, our own format: a line is {"exposure": {...}} or {"feedback": {...}}, the objects being those of the topics of the same name.

Lines may stand in any order; events of the same millisecond are taken pages first, then as they stand. A line is opened here only
for its keys: its bytes go to the joiner as they are, which judges them as it judges what comes from Kafka.
"""

from pathlib import Path

import msgspec
from msgspec import Raw, Struct

from headrace.logs.recorded_log import LogEvent, LogFormat, RecordedLog, Refusal, SourceFile
from headrace.settings import ConfigError
from schemas.codec import UNREADABLE, decode_exposure_key, decode_feedback
from schemas.topics import EXPOSURES, FEEDBACK


class Line(Struct, forbid_unknown_fields=True):
    """One line: exactly one of the two."""

    exposure: Raw = Raw(b"")
    feedback: Raw = Raw(b"")


_decode_line = msgspec.json.Decoder(Line).decode


def read(paths: list[Path], join_window_ms: int) -> RecordedLog:
    """Read the files of a log, all of them as one. The window is not needed: feedback names its page."""
    files: list[SourceFile] = []
    refused: list[Refusal] = []
    events: list[LogEvent] = []
    seen: set[tuple[str, str]] = set()
    start = 0
    for path in paths:
        lines = _lines(path)
        for row, line in enumerate(lines, start):
            try:
                event, identity = _opened(row, line)
            except UNREADABLE as error:
                refused.append(Refusal(row, "malformed", str(error)))
                continue
            if identity in seen:
                refused.append(Refusal(row, "duplicate", f"{event.topic} {identity[1]} stands on an earlier line"))
                continue
            seen.add(identity)
            events.append(event)
        files.append(SourceFile(path.name, len(lines)))
        start += len(lines)
    events.sort(key=lambda event: (event.ts_ms, event.topic != EXPOSURES, event.row))
    return RecordedLog(files, refused, len(events), events[-1].ts_ms if events else 0, lambda: iter(events))


def _lines(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    lines = content.split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _opened(row: int, line: bytes) -> tuple[LogEvent, tuple[str, str]]:
    """The event of a line, and the topic and id by which it would be known again."""
    opened = _decode_line(line)
    exposure, feedback = bytes(opened.exposure), bytes(opened.feedback)
    if bool(exposure) == bool(feedback):
        raise msgspec.DecodeError('expected {"exposure": {...}} or {"feedback": {...}}')
    if exposure:
        page = decode_exposure_key(exposure)
        return LogEvent(page.ts_ms, EXPOSURES, row, exposure), (EXPOSURES, page.request_id)
    reaction = decode_feedback(feedback)
    return LogEvent(reaction.ts_ms, FEEDBACK, row, feedback), (FEEDBACK, reaction.event_id)


FORMAT = LogFormat(
    name="ndjson",
    title='NDJSON: {"exposure": {...}} or {"feedback": {...}} on each line',
    read=read,
    file_patterns=("*.ndjson", "*.jsonl"),
)

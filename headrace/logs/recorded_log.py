"""A recorded log: its rows, the rows that its reader refused, and the events of the others in event-time order."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from headrace.settings import ConfigError


class LogEvent(NamedTuple):
    """One message for a topic; `row` is the row of the log that it came from, counted from 0 over all files."""

    ts_ms: int
    topic: str
    row: int
    value: bytes


class Refusal(NamedTuple):
    """A row that is not used, and why."""

    row: int
    reason: str
    detail: str


class SourceFile(NamedTuple):
    """One file of a log: `first_line` is the line number of its first row (2 below a CSV header; a Parquet row counts as a line)."""

    name: str
    rows: int
    first_line: int = 1


@dataclass(frozen=True)
class RecordedLog:
    """What a reader made of a log. `events` can be walked once or more; every walk gives the same events."""

    files: list[SourceFile]
    refused: list[Refusal]
    event_count: int
    newest_ms: int
    """Event time of the newest event: the replay's clock."""
    events: Callable[[], Iterator[LogEvent]]

    @property
    def rows_in(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    def place(self, row: int) -> tuple[str, int]:
        """File name and line number of a row."""
        starts = [0]
        for file in self.files:
            starts.append(starts[-1] + file.rows)
        number = bisect_right(starts, row) - 1
        return self.files[number].name, row - starts[number] + self.files[number].first_line


@dataclass(frozen=True)
class LogFormat:
    """One format that `headrace replay` reads.

    `read` gets the files and the join window (ms). `defaults` are settings that fit the format, section by section; the TOML file
    and the environment win over them. A folder is searched for `file_patterns`, the first that matches anything is taken.
    """

    name: str
    title: str
    read: Callable[[list[Path], int], RecordedLog]
    file_patterns: tuple[str, ...]
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)


def find_files(path: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files of a log: `path` itself, or those in the folder that match the first pattern with any match, by name.

    Raises ConfigError where there is none.
    """
    if not path.exists():
        raise ConfigError(f"no such log: {path}")
    if not path.is_dir():
        return [path]
    for pattern in patterns:
        found = sorted(file for file in path.glob(pattern) if file.is_file())
        if found:
            return found
    raise ConfigError(f"no log in folder {path}: expected {' or '.join(patterns)}")

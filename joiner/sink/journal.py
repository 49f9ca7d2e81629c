"""A partition's journal: from where the stream goes on, and which files on the target are no part of the data set. Pure.

On the target, beside the data:

    date=2026-01-31/hour=07/00003-000000001200-000000002400-00000004a1f3.parquet      rows of partition 3, offsets 1200 to 2399
    _headrace/3/00000004-a1f3-00000017.json                                           its journal: owner 4-a1f3, version 17

A journal is never changed: each version is an object of its own, and the highest (epoch, token, version) counts. Version 0 is a claim
without content: whoever opens a partition claims it with a higher epoch first and reads the last owner's newest version then. An owner
looks for a higher claim after each version that it wrote and before it acts on it. So, however long a worker was frozen, what it
wrote is either seen by its successor, or it sees that it has one (ADR 10).

`absent` is all that a reader must know. A file's name is in it from before the file is written until the version in which its rows
begin to count, and again from the version in which they cease to count until the file is deleted.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
from msgspec.structs import replace

FOLDER = "_headrace"
"""Hidden: pyarrow, Spark, Hive and Trino ignore names that begin with `_`."""
FORMAT = 1
WRITING = 0
"""Time of a file in `absent` that its owner is about to write."""
FROZEN_MS = 86_400_000
"""How long the names of files stay in `absent` that a predecessor may still write: it was frozen, and does not know that it has one."""
RECENT_FILES = 256
HOUR_MS = 3_600_000

_JOURNAL = re.compile(r"(\d{8})-([0-9a-f]{4})-(\d{8})\.json")
_FILE = re.compile(r"(\d{5})-(\d{12,})-(\d{12,})-(\d{8}[0-9a-f]{4})\.parquet")


class Version(NamedTuple):
    """Of a journal. The token tells apart two workers that claim the same epoch at the same time."""

    epoch: int
    token: str
    number: int

    @property
    def owner(self) -> tuple[int, str]:
        return self.epoch, self.token

    @property
    def name(self) -> str:
        return f"{self.epoch:08d}-{self.token}-{self.number:08d}.json"

    @classmethod
    def of(cls, name: str) -> Self | None:
        """None for a name that is not a journal's."""
        found = _JOURNAL.fullmatch(name)
        return found and cls(int(found[1]), found[2], int(found[3]))


def newest(names: Iterable[str]) -> Version | None:
    """The version that counts; None where there are only claims."""
    return max((version for name in names if (version := Version.of(name)) and version.number), default=None)


def last_owner(names: Iterable[str]) -> tuple[int, str]:
    """Who claimed last; (0, "") where nobody did."""
    return max((version.owner for name in names if (version := Version.of(name))), default=(0, ""))


def journal_folder(partition: int) -> str:
    """Where a partition's journals are."""
    return f"{FOLDER}/{partition}"


def hour_folder(hour: int) -> str:
    """Where the rows of an hour of event time are: hours since the epoch, in UTC."""
    date, _, of_day = str(np.datetime64(hour, "h")).rpartition("T")
    return f"date={date}/hour={of_day}"


def end_of_hour_ms(folder: str) -> int:
    """When the hour of a folder ends, in ms since the epoch."""
    date, _, of_day = folder.partition("/")
    return (int(np.datetime64(f"{date.removeprefix('date=')}T{of_day.removeprefix('hour=')}", "h").astype(int)) + 1) * HOUR_MS


class FileName(NamedTuple):
    """A data file's name: its rows come from samples at offsets in [first, next)."""

    partition: int
    first_offset: int
    next_offset: int
    owner: str

    @property
    def name(self) -> str:
        return f"{self.partition:05d}-{self.first_offset:012d}-{self.next_offset:012d}-{self.owner}.parquet"

    @classmethod
    def of(cls, path: str) -> Self | None:
        """None for a file that is not the sink's."""
        found = _FILE.fullmatch(path.rpartition("/")[2])
        return found and cls(int(found[1]), int(found[2]), int(found[3]), found[4])


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """One version. Paths are relative to the target's root; times are wall clock."""

    format: int = FORMAT
    topic: str
    topic_id: str = ""
    """The broker's id of the topic: offsets mean nothing in another one."""
    next_offset: int = 0
    """Everything below it is written, or was refused or ignored."""
    columns: bytes = b""
    """Arrow schema of all rows so far: the union of the files' columns."""
    absent: dict[str, int] = {}
    """Files that are no part of the data set: when to delete them (ms), or WRITING."""
    merges: int = 0
    """Merges begun so far. While it stands still, files only come, with offsets from `next_offset` on."""
    recent: list[tuple[str, int]] = []
    """(path, rows) of the newest files: whoever opens the partition learns from them which samples it has."""
    hours: dict[str, int] = {}
    """Folders with files that were not looked at since for merging: when the last one was added (ms)."""
    counts: list[tuple[str, str, int]] = []
    """The stage's durable counts (`headrace.step.Count`)."""

    def with_intent(self, paths: Iterable[str], is_merge: bool = False) -> Self:
        """These files are about to be written."""
        return replace(self, absent={**self.absent, **dict.fromkeys(paths, WRITING)}, merges=self.merges + is_merge)

    def with_files(
        self, rows: Mapping[str, int], next_offset: int, columns: bytes, counts: list[tuple[str, str, int]], horizon_rows: int, now_ms: int
    ) -> Self:
        """The files of a flush count from now on."""
        return replace(
            self,
            next_offset=next_offset,
            columns=columns,
            absent=_without(self.absent, rows),
            recent=_newest_rows([*self.recent, *rows.items()], horizon_rows),
            hours={**self.hours, **{path.rpartition("/")[0]: now_ms for path in rows}},
            counts=counts,
        )

    def with_merged(self, path: str, rows: int, originals: Iterable[str], delete_at_ms: int) -> Self:
        """The rows of `originals` count as those of `path` from now on."""
        replaced = dict.fromkeys(originals, max(delete_at_ms, WRITING + 1))
        recent = [entry for entry in self.recent if entry[0] not in replaced]
        if len(recent) < len(self.recent):
            # at the place of the newest one that it replaces
            last = max(place for place, (name, _) in enumerate(self.recent) if name in replaced)
            recent.insert(sum(name not in replaced for name, _ in self.recent[:last]), (path, rows))
        return replace(self, absent={**_without(self.absent, [path]), **replaced}, recent=recent)

    def without_hour(self, folder: str) -> Self:
        """Nothing is left to merge in this folder."""
        return replace(self, hours=_without(self.hours, [folder]))

    def without_deleted(self, paths: Iterable[str]) -> Self:
        """These files are gone."""
        return replace(self, absent=_without(self.absent, paths))

    def unfinished(self) -> list[str]:
        """The files that this journal's owner was writing."""
        return [path for path, at_ms in self.absent.items() if at_ms == WRITING]

    def taken_over(self, topic_id: str, now_ms: int) -> Self:
        """The next owner's. What is unfinished is to be deleted, and once more when its writer cannot come back any more."""
        doomed = dict.fromkeys(self.unfinished(), now_ms + FROZEN_MS)
        return replace(self, topic_id=topic_id or self.topic_id, absent={**self.absent, **doomed})

    def due(self, now_ms: int) -> list[str]:
        """Absent files to delete now."""
        return [path for path, at_ms in self.absent.items() if WRITING < at_ms <= now_ms]

    def quiet_hours(self, now_ms: int, quiet_ms: int) -> list[str]:
        """Folders of hours that are over and got no file for so long."""
        return [folder for folder, at_ms in self.hours.items() if now_ms - at_ms >= quiet_ms and end_of_hour_ms(folder) <= now_ms]


def _without(entries: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    dropped = frozenset(names)
    return {name: value for name, value in entries.items() if name not in dropped}


def _newest_rows(files: list[tuple[str, int]], horizon_rows: int) -> list[tuple[str, int]]:
    """The newest files, as many as hold `horizon_rows`, at most RECENT_FILES."""
    rows, kept = 0, 0
    while kept < min(len(files), RECENT_FILES) and rows < horizon_rows:
        kept += 1
        rows += files[-kept][1]
    return files[len(files) - kept :]


encode_journal = msgspec.json.Encoder().encode
_decode: Any = msgspec.json.Decoder(Journal).decode


def decode_journal(value: bytes) -> Journal:
    """Raises ValueError for bytes that are no journal, or one of a later format."""
    journal: Journal = _decode(value)
    if journal.format != FORMAT:
        raise ValueError(f"a journal of format {journal.format}; this version reads {FORMAT}")
    return journal

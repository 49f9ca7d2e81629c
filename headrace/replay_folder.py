"""The folder that a replay writes: who may be overwritten, Parquet parts, and the JSON files. Nothing in it depends on the clock."""

import errno
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.settings import ConfigError

SAMPLES = "samples"
TRANSITIONS = "transitions"
POLICY = "policy"
REPORT = "report.json"
REJECTED = "rejected.ndjson"
ENTRIES = (SAMPLES, TRANSITIONS, POLICY, REPORT, REJECTED)
"""All that a replay writes. Anything else in the folder is left alone."""
ROW_GROUP_ROWS = 20_000
PART_ROWS = 1_000_000


class BatchParts:
    """Record batches of one schema as `folder/part-00000.parquet` and so on; batches are gathered into row groups.

    `repeating` are the columns whose values come again and again: only these get a dictionary. All, where it is None.
    """

    def __init__(self, folder: Path, compression: str = "zstd", repeating: Sequence[str] | None = None) -> None:
        self._folder = folder
        self._options = {"compression": compression, "use_dictionary": True if repeating is None else list(repeating)}
        self._folder.mkdir()
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._part_rows = 0
        self._parts = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch. Empty ones leave no trace."""
        if batch.num_rows:
            self._waiting.append(batch)
            self._waiting_rows += batch.num_rows
        if self._waiting_rows >= ROW_GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        """Write what waits, and the footer."""
        self._flush()
        self._end_part()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.Table.from_batches(self._waiting)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._folder / f"part-{self._parts:05d}.parquet", table.schema, **self._options)
        self._writer.write_table(table, row_group_size=len(table))
        self._part_rows += len(table)
        self._waiting, self._waiting_rows = [], 0
        if self._part_rows >= PART_ROWS:
            self._end_part()

    def _end_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer, self._part_rows, self._parts = None, 0, self._parts + 1


def check_is_free(out: Path, force: bool) -> None:
    """Refuse a folder that holds anything, unless `force`. Raises ConfigError with what to do."""
    try:
        holds = sorted(entry.name for entry in out.iterdir()) if out.exists() else []
    except NotADirectoryError as error:
        raise ConfigError(f"--out {out} is a file: name a folder") from error
    except OSError as error:
        raise ConfigError(f"cannot read --out {out}: {error.strerror}") from error
    if holds and not force:
        shown = ", ".join(holds[:5]) + (", ..." if len(holds) > 5 else "")
        raise ConfigError(f"--out {out} is not empty (it holds {shown}): name another folder, or overwrite a replay's results with --force")


@contextmanager
def replay_folder(out: Path) -> Iterator[Path]:
    """The folder, without results of an earlier replay. Where the block fails nothing that it wrote stays."""
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        _remove_entries(out)
        yield out
    except BaseException as error:
        _clean_up(out, made)
        if isinstance(error, OSError):
            raise _explained(out, error) from error
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """One object, indented, keys in the order given."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One object a line."""
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def remove_folder(path: Path) -> None:
    """Remove a folder that this replay made."""
    shutil.rmtree(path)


def _remove_entries(out: Path) -> None:
    for name in ENTRIES:
        entry = out / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _clean_up(out: Path, made: bool) -> None:
    """Best effort: the reason why the replay ends matters more than a file that cannot be removed."""
    try:
        _remove_entries(out)
        if made:
            out.rmdir()
    except OSError:
        return


def _explained(out: Path, error: OSError) -> ConfigError:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ConfigError(f"no permission to write --out {out}: name a folder of your own")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ConfigError(f"disk full: no space for --out {out}: free some, or name a folder on another disk")
    return ConfigError(f"cannot write --out {out}: {error.strerror or error}")

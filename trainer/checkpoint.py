"""Checkpoints: everything a trainer remembers as one atomic set of files, in folders ckpt-00000001, ckpt-00000002, ...

A folder is written under a temporary name, flushed to disk and renamed, its manifest with the checksum of every file last. The
newest folder whose manifest holds true is the one to go on from; a torn or damaged one is passed over.
"""

import io
import json
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from headrace.settings import ConfigError

MANIFEST = "manifest.json"
PROGRESS, LEARNER, COLUMNS = "progress.json", "learner.pt", "columns.npz"
FILES = {PROGRESS, LEARNER, COLUMNS}
KEPT = 2


class CheckpointError(ConfigError):
    """A checkpoint or candidate that cannot be written or used. Its text is one line that says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """`progress` is JSON (offsets, counters, generators), `learner` tensors (weights, optimisers), `columns` arrays (replay, ids)."""

    progress: dict[str, Any]
    learner: dict[str, Any]
    columns: dict[str, npt.NDArray[Any]]


def checkpoint_folder(folder: Path, number: int) -> Path:
    """Where a checkpoint is."""
    return folder / f"ckpt-{number:08d}"


def write_checkpoint(folder: Path, number: int, checkpoint: Checkpoint, add_to: Callable[[Path], None] | None = None) -> Path:
    """Write `ckpt-<number>` and delete all but the newest two. Raises CheckpointError where the disk refuses.

    `add_to` puts more into the folder, and on disk, before it appears: what is too large to go through memory.
    """
    learner, columns = io.BytesIO(), io.BytesIO()
    torch.save(checkpoint.learner, learner)
    np.savez(columns, allow_pickle=False, **checkpoint.columns)  # type: ignore[arg-type, unused-ignore]
    files = {
        PROGRESS: json.dumps(checkpoint.progress, sort_keys=True).encode(),
        LEARNER: learner.getvalue(),
        COLUMNS: columns.getvalue(),
    }
    manifest = {name: {"bytes": len(content), "crc32": zlib.crc32(content)} for name, content in files.items()}
    path = checkpoint_folder(folder, number)
    write_folder(path, {**files, MANIFEST: json.dumps(manifest, sort_keys=True).encode()}, add_to)
    for old in _numbered(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)  # a left-over folder costs space, not correctness
    return path


def read_newest(folder: Path) -> tuple[int, Checkpoint] | None:
    """The newest whole checkpoint and its number; None where there is none."""
    for path in reversed(_numbered(folder)):
        files = _read_whole(path)
        if files is not None:
            with np.load(io.BytesIO(files[COLUMNS]), allow_pickle=False) as archive:
                columns = {name: archive[name] for name in archive.files}
            learner = torch.load(io.BytesIO(files[LEARNER]), weights_only=True)
            return int(path.name.removeprefix("ckpt-")), Checkpoint(json.loads(files[PROGRESS]), learner, columns)
    return None


def write_folder(path: Path, files: dict[str, bytes], add_to: Callable[[Path], None] | None = None) -> None:
    """Make a folder appear with all its files, or not at all. Raises CheckpointError where the disk refuses."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if add_to is not None:
            add_to(temporary)
        for name, content in files.items():
            with (temporary / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _flush_folder(temporary)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
        _flush_folder(path.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"cannot write {path}: {error.strerror}; free space there, allow writing, or set another folder") from error


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _numbered(folder: Path) -> list[Path]:
    try:
        names = [path for path in folder.iterdir() if path.name.removeprefix("ckpt-").isdecimal() and path.name.startswith("ckpt-")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {error.strerror}; allow reading, or set another state_dir") from error
    return sorted(names, key=lambda path: int(path.name.removeprefix("ckpt-")))


def _read_whole(path: Path) -> dict[str, bytes] | None:
    """The files of a checkpoint if its manifest holds true for every one."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        files = {name: (path / name).read_bytes() for name in manifest}
        is_whole = all({"bytes": len(content), "crc32": zlib.crc32(content)} == manifest[name] for name, content in files.items())
    except PermissionError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; allow reading, or set another state_dir") from error
    except (OSError, ValueError):
        return None
    return files if is_whole and files.keys() >= FILES else None

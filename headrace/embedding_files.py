"""How the rows of dynamic tables travel from the trainer to serving: numbered files in the model store.

    {model_dir}/{policy}/embeddings/{spec_hash}/{number:012d}.npz

A file holds changes: for each table ids that have no row from now on, then ids and their rows. A file with `parts` >= 0 is a start: it
and the `parts` files before it are all rows there are, and who follows forgets what it had. A trainer begins with a start, for what was
written after its checkpoint is learned anew. Files appear whole, in order, and never change.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from headrace.id_index import Keys
from headrace.settings import ConfigError

NO_START = -1
_PARTS = "parts"


class Changed(NamedTuple):
    """What whoever follows a table must hear: ids without a row from now on, then ids and their rows [·, D]."""

    gone: Keys
    keys: Keys
    weights: npt.NDArray[np.float32]


def embedding_folder(model_dir: Path, policy: str, spec_hash: str) -> Path:
    """Where the files of a policy's tables are; another specification has other tables."""
    return model_dir / policy / "embeddings" / spec_hash


def numbers(folder: Path) -> list[int]:
    """The files that are there, oldest first."""
    return sorted(int(path.stem) for path in folder.glob("*.npz") if path.stem.isdecimal())


def file_of(folder: Path, number: int) -> Path:
    """The file with a number."""
    return folder / f"{number:012d}.npz"


def write_changes(folder: Path, number: int, names: Sequence[str], changes: Mapping[str, Changed], parts: int = NO_START) -> int:
    """Make the file appear; gives its size in bytes. `names` are the tables in order. Raises ConfigError where the disk refuses."""
    columns: dict[str, npt.NDArray[np.generic]] = {_PARTS: np.array(parts, np.int64)}
    for place, name in enumerate(names):
        if name in changes:
            columns |= {f"{place}.{field}": column for field, column in changes[name]._asdict().items()}
    path = file_of(folder, number)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **columns)  # type: ignore[arg-type, unused-ignore]
        temporary.rename(path)
        return path.stat().st_size
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ConfigError(f"cannot write {path}: {error.strerror}; free space there, or set another policy.model_dir") from error


def read_parts(folder: Path, number: int) -> int:
    """How many files before it belong to it where it is a start; else NO_START. Raises OSError or ValueError."""
    return int(_columns(folder, number, _PARTS)[_PARTS])


def read_changes(folder: Path, number: int, names: Sequence[str]) -> dict[str, Changed]:
    """What a file says. Raises OSError or ValueError."""
    columns = _columns(folder, number)
    return {
        name: Changed(*(columns[f"{place}.{field}"] for field in Changed._fields))
        for place, name in enumerate(names)
        if f"{place}.keys" in columns
    }


def _columns(folder: Path, number: int, *wanted: str) -> dict[str, npt.NDArray[Any]]:
    """Those columns, or all. Raises OSError or ValueError."""
    path = file_of(folder, number)
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            return {name: archive[name] for name in wanted or archive.files}
        except (BadZipFile, EOFError, KeyError) as error:
            raise ValueError(f"{path.name} is damaged: {error}") from error

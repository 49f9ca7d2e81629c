"""Comma-separated rows with their line numbers. Every cell stays bytes: what it means, and whether it is sound, a format decides."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from headrace.settings import ConfigError

INTEGER = r"^[0-9]{1,18}$"
"""At most 18 digits: always an int64."""
_BLOCK_BYTES = 4 << 20


class DelimitedRows(NamedTuple):
    """The rows that have the right number of cells (binary columns), and the lines of those that have not."""

    cells: pa.Table
    lines: npt.NDArray[np.int64]
    torn: list[tuple[int, str]]
    """Line number and what is wrong, of every other line."""


def header(path: Path) -> list[str]:
    """The column names in the first line of a file."""
    try:
        with path.open("rb") as file:
            return file.readline(1 << 16).decode("utf-8-sig", errors="replace").strip().split(",")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def read_delimited(path: Path, names: list[str], wanted: list[str], header_lines: int) -> DelimitedRows:
    """The rows of a file whose columns are `names`; only the `wanted` ones are kept.

    No quoting: neither public log has any, and a stray quote must not swallow the lines behind it. Raises ConfigError where the
    file is empty, cannot be read, or is no text with lines.
    """
    torn: list[tuple[int, str]] = []

    def on_torn(row: pa.csv.InvalidRow) -> str:
        torn.append((row.number, f"expected {row.expected_columns} cells, got {row.actual_columns}"))
        return "skip"

    try:
        cells = pa.csv.read_csv(
            path,
            # One thread: only then a row that is skipped knows its line number.
            read_options=pa.csv.ReadOptions(use_threads=False, column_names=names, skip_rows=header_lines, block_size=_BLOCK_BYTES),
            parse_options=pa.csv.ParseOptions(quote_char=False, ignore_empty_lines=False, invalid_row_handler=on_torn),
            convert_options=pa.csv.ConvertOptions(
                column_types={name: pa.binary() for name in names}, include_columns=wanted, strings_can_be_null=False
            ),
        )
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except pa.ArrowInvalid as error:
        text = str(error).splitlines()[0]
        raise ConfigError(f"empty log: {path}" if "Empty CSV" in text else f"not a CSV log: {path}: {text}") from error
    torn_lines = np.array([line for line, _ in torn], np.int64)
    lines = np.setdiff1d(
        np.arange(1 + header_lines, 1 + header_lines + len(cells) + len(torn), dtype=np.int64), torn_lines, assume_unique=True
    )
    if len(lines) != len(cells):
        raise ConfigError(f"not a CSV log: {path}: its lines cannot be counted")
    return DelimitedRows(cells, lines, torn)


def is_integer(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Which cells are whole numbers: bytes from 0 on, or the values of an integer column that are not null."""
    good = pc.is_valid(column) if pa.types.is_integer(column.type) else pc.match_substring_regex(column, INTEGER)
    return np.asarray(good.to_numpy(zero_copy_only=False), np.bool_)


def to_integers(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The numbers of a column of which `is_integer` holds everywhere."""
    text = column if pa.types.is_integer(column.type) else column.cast(pa.string())
    return np.asarray(text.cast(pa.int64()).to_numpy(), np.int64)

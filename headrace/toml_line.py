"""Where in a TOML text a value stands: tomllib itself forgets it."""

import tomllib
from collections.abc import Sequence
from typing import Any


def toml_line(text: str, path: Sequence[str | int]) -> int | None:
    """The line, counted from 1, on which the value at `path` begins; of a value that is not there, the one of the table that it misses in.

    A text's first lines are TOML themselves, up to a value of several lines: of an array that is open a `]` makes one, element by
    element. So the value begins behind the last such line without it.
    """
    lines = text.splitlines()
    for depth in range(len(path), 0, -1):
        begins = 1
        for count in range(1, len(lines) + 1):
            read = _read("\n".join(lines[:count]))
            if read is None:
                continue
            if _has(read, path[:depth]):
                return begins
            begins = count + 1
    return None


def _read(text: str) -> dict[str, Any] | None:
    for end in ("", "]", "}", "}]", "]}"):
        try:
            return tomllib.loads(text + end)
        except tomllib.TOMLDecodeError:
            continue
    return None


def _has(value: Any, path: Sequence[str | int]) -> bool:
    for part in path:
        try:
            value = value[part]
        except (LookupError, TypeError):
            return False
    return True

"""Where a feature lies in a state: `device.os` is the value of `os` in the object `device`."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from schemas.exposure import StateValue

State = Mapping[str, StateValue]
ABSENT: Final = object()


class NoObjectError(TypeError):
    """A key leads through something that is not an object; the message says where."""


def is_path(key: str) -> bool:
    """Whether a key leads into an object."""
    return "." in key


def value_at(state: State, key: str) -> Any:
    """What lies at a key; ABSENT where nothing does. Raises NoObjectError."""
    found: Any = state
    passed: list[str] = []
    for part in key.split("."):
        if not isinstance(found, dict):
            raise NoObjectError(f"expected an object at {'.'.join(passed)!r}, got {found!r:.80}")
        if part not in found:
            return ABSENT
        found = found[part]
        passed.append(part)
    return found


def is_there(state: State, key: str) -> bool:
    """Whether anything lies at a key, right or wrong."""
    try:
        return value_at(state, key) is not ABSENT
    except NoObjectError:
        return True


def flat(state: State, keys: Iterable[str]) -> dict[str, StateValue]:
    """A state with what lies at these keys on its top level, by the whole key. Raises NoObjectError."""
    made = dict(state)
    for key in keys:
        value = value_at(state, key)
        if value is ABSENT:
            made.pop(key, None)  # a name with a dot in it is no path
        else:
            made[key] = value
    return made

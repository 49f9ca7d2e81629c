"""When a consumer has stalled: it is there, and its heartbeats are, but nothing comes through any more."""

from collections.abc import Hashable, Mapping

from headrace.settings import ConfigError

STALL_LOOKS = 4
"""So many looks without any life in a part of it, and the worker has stalled."""


class StallWatch:
    """Looks at parts of a worker now and then. A sign of life is whatever changes while all is well, records or none."""

    def __init__(self) -> None:
        self._unchanged: dict[str, tuple[Hashable, int]] = {}

    def stalled(self, signs: Mapping[str, Hashable]) -> str | None:
        """The name of a part whose sign has not changed for `STALL_LOOKS` looks, if there is one. One that is left out begins anew."""
        looks: dict[str, tuple[Hashable, int]] = {}
        for name, sign in signs.items():
            last, unchanged = self._unchanged.get(name, (None, 0))
            looks[name] = sign, unchanged + 1 if sign == last else 0
        self._unchanged = looks
        return next((name for name, (_, unchanged) in looks.items() if unchanged >= STALL_LOOKS), None)

    def fault(self, service: str, signs: Mapping[str, Hashable], heard_s: float) -> ConfigError | None:
        """What to end a service with that has stalled. `signs` are those of its partitions, `heard_s` is when its group last answered."""
        name = self.stalled({**signs, "group": heard_s})
        return None if name is None else ConfigError(f"{service} {name}: the consumer stalled, or no broker answers it")

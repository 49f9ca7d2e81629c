"""When a consumer has stalled: it is there, and its heartbeats are, but nothing comes through any more."""

from collections.abc import Hashable, Mapping

from faust.types import TP

STALL_LOOKS = 4
"""So many looks at a partition without any life in it, and the worker has stalled."""


class StallWatch:
    """Looks at partitions now and then. A sign of life is whatever changes while all is well, records or none."""

    def __init__(self) -> None:
        self._unchanged: dict[TP, tuple[Hashable, int]] = {}

    def stalled(self, signs: Mapping[TP, Hashable]) -> TP | None:
        """A partition whose sign of life has not changed for `STALL_LOOKS` looks, if there is one. One that is not named begins anew."""
        looks: dict[TP, tuple[Hashable, int]] = {}
        for tp, sign in signs.items():
            last, unchanged = self._unchanged.get(tp, (None, 0))
            looks[tp] = sign, unchanged + 1 if sign == last else 0
        self._unchanged = looks
        return next((tp for tp, (_, unchanged) in looks.items() if unchanged >= STALL_LOOKS), None)

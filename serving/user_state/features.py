"""The features that a user's history has at a moment: only those that the specification reads are made.

<kind>_<window>              events of the kind within the window (1h, 6h, 1d, 3d, 1w or any other): a number
<kind>_gap_s                 seconds since its newest event: a number
recent_<kind>                the newest items, newest last: a list
recent_<kind>_categories     their categories
<kind>_code                  binary sequence: events within each window of the feature, as one digit each
<kind>_category_code         binary sequence: how often the category changed from one event to the next, within each window
<kind>_gap_code              binary sequence: how often the next event came within each window of the one before
"""

import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from schemas.exposure import FeatureValue
from schemas.features import BinarySequenceFeature, DenseFeature, FeatureSpec, MultiIdFeature, SequenceFeature, window_ms
from serving.user_state.history import Events, History

Make = Callable[[Events, int], FeatureValue | None]
"""Events of a kind, and the request's time -> a feature's value; None where there is none."""
Counted = Callable[[int, Events, int], float]
"""A window's length, events of a kind, and the request's time -> how often something happened."""


class StoredFeatures:
    """What to make of a user's history for one specification."""

    def __init__(self, spec: FeatureSpec, kinds: tuple[str, ...], recent_items: int, horizon_ms: int) -> None:
        """Raises ValueError where a feature asks for a window that is longer than events are kept."""
        self._makes: dict[str, tuple[str, Make]] = {}
        """By key of a state: the kind of events that it is made of, and how."""
        for feature in spec.read():
            for kind in kinds:
                make = _make(feature, kind, recent_items, horizon_ms)
                if make is not None:
                    self._makes[feature.key] = (kind, make)

    @property
    def keys(self) -> frozenset[str]:
        """The keys of a state that the store fills."""
        return frozenset(self._makes)

    def of(self, history: History, now_ms: int) -> dict[str, FeatureValue]:
        """The features at `now_ms`: what happened later, or longer ago than the horizon, is not seen."""
        made: dict[str, FeatureValue] = {}
        for key, (kind, make) in self._makes.items():
            events = history.get(kind, _NONE)
            value = make(events, now_ms)
            if value is not None:
                made[key] = value
        return made


_NONE = Events()


def _make(feature: object, kind: str, recent_items: int, horizon_ms: int) -> Make | None:
    match feature:
        case DenseFeature() if feature.key == f"{kind}_gap_s":
            return partial(_gap_s, horizon_ms)
        case DenseFeature() if window := re.fullmatch(rf"{re.escape(kind)}_([1-9]\d*[smhdw])", feature.key):
            return partial(_count, _kept(feature.name, window_ms(window[1]), horizon_ms))
        case SequenceFeature() | MultiIdFeature() if feature.key == f"recent_{kind}":
            return partial(_recent_items, horizon_ms, recent_items)
        case SequenceFeature() | MultiIdFeature() if feature.key == f"recent_{kind}_categories":
            return partial(_recent_categories, horizon_ms, recent_items)
        case BinarySequenceFeature() if count := _counted(feature.key, kind, horizon_ms):
            _kept(feature.name, feature.windows_ms[-1], horizon_ms)
            return partial(_code, count, feature.windows_ms, feature.digits)
        case _:
            return None


def _counted(key: str, kind: str, horizon_ms: int) -> Counted | None:
    """What the digits of a code with this key count."""
    of_kind: dict[str, Counted] = {
        f"{kind}_code": _count,
        f"{kind}_category_code": _changes,
        f"{kind}_gap_code": partial(_short_gaps, horizon_ms),
    }
    return of_kind.get(key)


def _kept(name: str, length_ms: int, horizon_ms: int) -> int:
    if length_ms > horizon_ms:
        raise ValueError(f"feature {name}: its window is {length_ms} ms, events are kept for {horizon_ms} ms (user_state.horizon_ms)")
    return length_ms


def _count(length_ms: int, events: Events, now_ms: int) -> float:
    first, end = events.since(now_ms - length_ms, now_ms)
    return float(end - first)


def _changes(length_ms: int, events: Events, now_ms: int) -> float:
    first, end = events.since(now_ms - length_ms, now_ms)
    known = [category for category in events.categories[first:end] if category]
    return float(sum(one != following for one, following in pairwise(known)))


def _short_gaps(horizon_ms: int, length_ms: int, events: Events, now_ms: int) -> float:
    first, end = events.since(now_ms - horizon_ms, now_ms)
    return float(sum(following - one <= length_ms for one, following in pairwise(events.ts_ms[first:end])))


def _gap_s(horizon_ms: int, events: Events, now_ms: int) -> FeatureValue | None:
    first, end = events.since(now_ms - horizon_ms, now_ms)
    return (now_ms - events.ts_ms[end - 1]) / 1000 if end > first else None


def _recent_items(horizon_ms: int, length: int, events: Events, now_ms: int) -> FeatureValue:
    first, end = events.since(now_ms - horizon_ms, now_ms)
    return list(events.items[max(first, end - length) : end])


def _recent_categories(horizon_ms: int, length: int, events: Events, now_ms: int) -> FeatureValue:
    first, end = events.since(now_ms - horizon_ms, now_ms)
    return list(events.categories[max(first, end - length) : end])


def _code(count: Counted, windows_ms: tuple[int, ...], digits: int, events: Events, now_ms: int) -> FeatureValue:
    return "".join(str(min(int(count(length_ms, events, now_ms)), digits - 1)) for length_ms in windows_ms)

"""How far the states that are served lie from those that the served version was trained on, feature by feature."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from schemas.drift import DenseReference, stability_index


class DenseWindow:
    """The normalised features of the newest `rows` requests; the versions come and go, the window goes on."""

    def __init__(self, rows: int, size: int) -> None:
        self._values = np.zeros((rows, size), np.float32)
        self._count = 0

    def add(self, dense: npt.NDArray[np.float32]) -> None:
        """Take in one request's features [N]."""
        self._values[self._count % len(self._values)] = dense
        self._count += 1

    @property
    def values(self) -> npt.NDArray[np.float32] | None:
        """The features [rows, N], in no order; None until there are so many."""
        return self._values if self._count >= len(self._values) else None


class DriftMetrics(Collector):
    """Computed at each scrape (some 10 ms for 2,000 requests of 90 features), for the version that is served then."""

    def __init__(self, window: DenseWindow, names: Sequence[str], reference: Callable[[], DenseReference | None]) -> None:
        self._window = window
        self._names = names
        self._reference = reference

    def collect(self) -> Iterator[Metric]:
        """Absent without a version, and until the window is full."""
        psi = GaugeMetricFamily(
            "headrace_serving_feature_psi",
            "Population stability index of a dense feature: served now against trained on",
            labels=["feature"],
        )
        reference, values = self._reference(), self._window.values
        if reference is not None and values is not None:
            for name, value in zip(self._names, stability_index(reference, values), strict=True):
                psi.add_metric([name], float(value))
        yield psi

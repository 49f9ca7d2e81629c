"""The embeddings of dynamic tables as serving has them: read from the trainer's files, looked up for each request."""

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embedding_files import Changed, file_of, numbers, read_changes, read_parts
from headrace.id_index import IdIndex, Keys
from schemas.features import FeatureSpec
from schemas.state_columns import StateColumns, rows_input
from serving.metrics import ServingMetrics

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 4096
"""Rows that are taken in while requests wait: about a millisecond."""
_FIRST_ROWS = 1024


class _Table:
    """Ids and their rows, all in memory."""

    def __init__(self, dim: int) -> None:
        self.index = IdIndex()
        self._weights = np.zeros((_FIRST_ROWS, dim), np.float32)
        self._free: list[int] = []
        self._used = 0

    def apply(self, changed: Changed) -> None:
        slots = self.index.find(changed.gone)
        slots = slots[slots >= 0]
        self._free += self.index.places[slots].tolist()
        self.index.remove(slots)
        slots = self.index.find(changed.keys)
        is_new = slots < 0
        places = self._places(int(is_new.sum()))
        at = self.index.insert(changed.keys[is_new])
        self.index.places[at] = places
        self._weights[self.index.places[self.index.find(changed.keys)]] = changed.weights

    def _places(self, count: int) -> npt.NDArray[np.int64]:
        reused, self._free = self._free[:count], self._free[count:]
        last = self._used + count - len(reused)
        if last > len(self._weights):
            grown = np.zeros((max(last, 2 * len(self._weights)), self._weights.shape[1]), np.float32)
            grown[: len(self._weights)] = self._weights
            self._weights = grown
        places = np.concatenate([np.array(reused, np.int64), np.arange(self._used, last)])
        self._used = last
        return places

    def look_up(self, keys: Keys) -> npt.NDArray[np.float32]:
        """Rows [·, D]; zeros for ids without one."""
        slots = self.index.find(keys)
        weights = self._weights[np.where(slots >= 0, self.index.places[slots], 0)]
        weights[slots < 0] = 0.0
        return weights


class ServedEmbeddings:
    """Follows the folder in a thread of its own, and answers from any thread."""

    def __init__(self, features: FeatureSpec, folder: Path, poll_interval_s: float, metrics: ServingMetrics) -> None:
        self._dims = {feature.name: feature.dim for feature in features.dynamic}
        self._folder = folder
        self._poll_interval_s = poll_interval_s
        self._metrics = metrics
        self._tables = self._empty()
        self._applied = 0
        """The newest file that is taken in; 0: none, and no delta is, before a start was."""
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="embeddings", daemon=True)

    def _empty(self) -> dict[str, _Table]:
        return {name: _Table(dim) for name, dim in self._dims.items()}

    def start(self) -> None:
        """Take in what is there, then follow. Without dynamic tables there is nothing to do."""
        if self._dims:
            self.poll()
            self._thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._stopped.set()
        if self._dims:
            self._thread.join()

    def look_up(self, columns: StateColumns) -> dict[str, npt.NDArray[Any]]:
        """The graph's inputs for the features whose tables are dynamic."""
        inputs: dict[str, npt.NDArray[Any]] = {}
        for name in self._dims:
            keys_BT = columns.sequences[name]
            with self._lock:
                rows = self._tables[name].look_up(keys_BT.ravel().view(np.uint64))
            inputs[rows_input(name)] = rows.reshape(len(keys_BT), -1)
        return inputs

    def poll(self) -> None:
        """Take in the files that are new. What cannot be read now is tried again with the next poll."""
        try:
            self._take_in(numbers(self._folder))
        except (OSError, ValueError) as error:  # deleted under our hands, or damaged
            self._metrics.embedding_failures.inc()
            log.warning("embeddings in %s: %s", self._folder, error)

    def _take_in(self, there: list[int]) -> None:
        starts = [number for number in there if number > self._applied and read_parts(self._folder, number) >= 0]
        if starts:
            start = starts[-1]
            tables = self._empty()
            for number in range(start - read_parts(self._folder, start), start):
                self._apply(number, tables)
            with self._lock:
                self._tables, self._applied = tables, start
            self._seen(start)
        for number in there:
            if self._applied and number == self._applied + 1:  # a gap: what is missing will be in the next start
                self._apply(number, self._tables)
                self._applied = number
                self._seen(number)

    def _apply(self, number: int, tables: Mapping[str, _Table]) -> None:
        for name, changed in read_changes(self._folder, number, [*self._dims]).items():
            with self._lock:
                tables[name].apply(Changed(changed.gone, changed.keys[:0], changed.weights[:0]))
            for start in range(0, len(changed.keys), ROWS_AT_ONCE):
                part = slice(start, start + ROWS_AT_ONCE)
                with self._lock:
                    tables[name].apply(Changed(changed.gone[:0], changed.keys[part], changed.weights[part]))

    def _seen(self, number: int) -> None:
        self._metrics.embedding_rows.set(sum(len(table.index) for table in self._tables.values()))
        self._metrics.embedding_time.set(file_of(self._folder, number).stat().st_mtime)

    def _follow(self) -> None:
        while not self._stopped.wait(self._poll_interval_s):
            self.poll()

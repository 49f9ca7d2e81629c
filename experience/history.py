"""Transitions from the samples of months: the collector fed from batches that are read, not delivered. Nothing is stored on the way.

Memory holds the open sessions and the pages in hand, not the log: batches come in about the order of event time, each with the promise
that no later one holds an older row.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from experience.collector import Collector
from experience.columns import take
from experience.pages import page_columns
from experience.reward import Ints
from experience.settings import ExperienceSettings
from schemas.sample import label_column

NO_MESSAGE = -1
"""`samples_offset` of a transition whose samples came from files."""
END_MS = 1 << 62
_PAGE = ("request_id", "user_id", "ts_ms", "policy", "model_version", "page_size", "left", "source_partition", "source_offset", "exposure")
_FEEDBACK = ("label_delay_ms", "feedback_arrival_ms", "feedback_offsets")


def columns_needed(kinds: Iterable[str]) -> list[str]:
    """The columns of samples that are read."""
    return [*_PAGE, *_FEEDBACK, *map(label_column, kinds)]


class History:
    """One run. `counts` says what became of the rows and pages read: `transitions`, `incomplete`, `duplicate`, `unusable`."""

    def __init__(self, kinds: tuple[str, ...], settings: ExperienceSettings) -> None:
        self._kinds, self._settings = kinds, settings
        self._collector = Collector(settings)
        self._partial: list[pa.RecordBatch] = []
        self.counts: Counter[str] = Counter()

    def transitions(self, batches: Iterable[tuple[pa.RecordBatch, int]]) -> Iterator[pa.RecordBatch]:
        """The transitions of batches of samples; the second value promises that no later batch has a row older than it (ms)."""
        for batch, promise_ms in batches:
            self.counts["samples"] += len(batch)
            if len(batch):
                self._add_complete(batch)
            self._add_closed(promise_ms)
            yield from self._released(promise_ms)
        self._add_closed(END_MS)
        yield from self._released(END_MS)

    def _released(self, watermark_ms: int) -> Iterator[pa.RecordBatch]:
        for batch in self._collector.release(watermark_ms).batches:
            self.counts["transitions"] += len(batch)
            yield batch

    def _add_complete(self, batch: pa.RecordBatch) -> None:
        """Take the pages whose rows are all there; rows of the others wait for the rest."""
        starts_P = _starts(batch)
        sizes_P = np.diff(starts_P, append=len(batch))
        is_whole_P = sizes_P == batch["page_size"].to_numpy()[starts_P]
        if not is_whole_P.all():
            self._partial.append(batch.filter(pa.array(np.repeat(~is_whole_P, sizes_P))))
            batch = batch.filter(pa.array(np.repeat(is_whole_P, sizes_P)))
            starts_P = _starts(batch) if len(batch) else starts_P[:0]
        if len(batch):
            self._add(batch, starts_P)

    def _add_closed(self, promise_ms: int) -> None:
        """Take pages cut by the end of a file or row group: whole ones, and those whose time no later batch has."""
        if not self._partial:
            return
        rows = pa.Table.from_batches(self._partial).unify_dictionaries().combine_chunks().to_batches()[0]
        rows = rows.take(pa.array(np.lexsort((rows["source_offset"].to_numpy(), rows["source_partition"].to_numpy()))))
        starts_P = _starts(rows)
        sizes_P = np.diff(starts_P, append=len(rows))
        is_whole_P = sizes_P >= rows["page_size"].to_numpy()[starts_P]
        goes_P = is_whole_P | (rows["ts_ms"].to_numpy()[starts_P] < promise_ms)
        self.counts["incomplete"] += int((goes_P & ~is_whole_P).sum())
        goes_R = np.repeat(goes_P, sizes_P)
        self._partial = [] if goes_P.all() else [rows.filter(pa.array(~goes_R))]
        if goes_P.any():
            ready = rows.filter(pa.array(goes_R))
            self._add(ready, _starts(ready))

    def _add(self, batch: pa.RecordBatch, starts_P: Ints) -> None:
        columns, unusable = page_columns(batch, self._kinds, starts_P, NO_MESSAGE, self._settings)
        self.counts["pages"] += len(starts_P)
        if unusable:
            self.counts["unusable"] += len(unusable)
            is_usable: npt.NDArray[np.bool_] = np.ones(len(starts_P), np.bool_)
            is_usable[list(unusable)] = False
            columns = take(columns, is_usable)
        self._collector.add(columns)


def _starts(batch: pa.RecordBatch) -> Ints:
    """First row of each page: of each exposure record. A file holds it once, whatever was delivered again."""
    place = batch["source_offset"].to_numpy()
    return np.flatnonzero(np.append(True, place[1:] != place[:-1]))

"""What the monitor keeps of samples: pages, joined pages, label delays, and when each version first answered."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.step import Count
from monitor.seen import Changes, Seen
from monitor.settings import MonitorSettings
from schemas.exposure import BASELINE

PREFIX = b"p"
_FIRST = b"pf"
_SEEN = b"ps"
_TOTALS = b"pt"

DELAY_BOUNDS_MS = (100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000, 1_800_000, 3_600_000)
"""Upper bounds of the label-delay classes; the last class has none."""

Version = tuple[str, str]
"""A policy and one of its model versions."""


class PageTotals(msgspec.Struct):
    """Sums over the pages counted. A delay is that of an item's first feedback, in milliseconds from its exposure."""

    rows: int = 0
    pages: int = 0
    pages_joined: int = 0
    """Pages with any feedback."""
    delay_ms_sum: int = 0
    delay_classes: list[int] = msgspec.field(default_factory=lambda: [0] * (len(DELAY_BOUNDS_MS) + 1))
    watermark_ms: int = 0


class PageTally:
    """One partition's samples. Stored: one row of totals (about 80 B), one a version, one a record with the ids of its pages."""

    def __init__(self, settings: MonitorSettings, stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.totals = PageTotals()
        self.first_response_ms: dict[Version, int] = {}
        self._settings = settings
        ids = []
        for key, row in stored:
            if key == _TOTALS:
                self.totals = msgspec.msgpack.decode(row, type=PageTotals)
            elif key.startswith(_FIRST):
                self.first_response_ms[version_of(key, _FIRST)] = int.from_bytes(row, "big")
            else:
                ids.append((key, row))
        self.seen = Seen(_SEEN, settings.horizon_s * 1000, settings.remembered_ids_max, ids)

    def count(self, offset: int, batch: pa.RecordBatch, watermark_ms: int, changes: Changes, counts: Counter[Count]) -> int:
        """Count the pages of one record that were not counted before; returns how many those are."""
        runs = pc.run_end_encode(batch["request_id"])
        ends = runs.run_ends.to_numpy()
        starts = np.concatenate(([0], ends[:-1])).astype(np.int64) if len(ends) else np.zeros(0, np.int64)
        rows_of_page = np.diff(ends, prepend=0)
        ts_ms = batch["ts_ms"].to_numpy()[starts]
        fresh = np.array(self.seen.fresh(offset, runs.values.to_pylist(), int(ts_ms.max(initial=0)), changes), np.bool_)
        counts[Count("ignored", "duplicate")] += int(rows_of_page[~fresh].sum())
        if fresh.any():
            self._add(batch, starts, rows_of_page, fresh)
            self._note_first_responses(batch, starts[fresh], ts_ms[fresh], changes)
        self.totals.watermark_ms = max(self.totals.watermark_ms, watermark_ms)
        self.seen.forget(self.totals.watermark_ms, changes)
        changes.append((_TOTALS, msgspec.msgpack.encode(self.totals)))
        return int(fresh.sum())

    def _add(
        self, batch: pa.RecordBatch, starts: npt.NDArray[np.int64], rows_of_page: npt.NDArray[Any], fresh: npt.NDArray[np.bool_]
    ) -> None:
        delays = batch["label_delay_ms"].fill_null(-1).to_numpy()
        joined = np.logical_or.reduceat(delays >= 0, starts)
        known = delays[(delays >= 0) & np.repeat(fresh, rows_of_page)]
        classes = np.bincount(np.searchsorted(DELAY_BOUNDS_MS, known), minlength=len(DELAY_BOUNDS_MS) + 1)
        totals = self.totals
        totals.rows += int(rows_of_page[fresh].sum())
        totals.pages += int(fresh.sum())
        totals.pages_joined += int((joined & fresh).sum())
        totals.delay_ms_sum += int(known.sum())
        totals.delay_classes = [before + int(more) for before, more in zip(totals.delay_classes, classes, strict=True)]

    def _note_first_responses(
        self, batch: pa.RecordBatch, pages: npt.NDArray[np.int64], ts_ms: npt.NDArray[np.int64], changes: Changes
    ) -> None:
        rows = pa.array(pages)
        earlier: dict[Version, int] = {}
        for policy, model_version, at_ms in zip(
            batch["policy"].take(rows).to_pylist(), batch["model_version"].take(rows).to_pylist(), ts_ms.tolist(), strict=True
        ):
            version = (policy, model_version)
            known_ms = earlier.get(version, self.first_response_ms.get(version, at_ms + 1))
            if model_version and policy != BASELINE and at_ms < known_ms:
                earlier[version] = at_ms
        for version, at_ms in earlier.items():
            self.first_response_ms[version] = at_ms
            changes.append((version_key(_FIRST, version), at_ms.to_bytes(8, "big")))
        while len(self.first_response_ms) > self._settings.versions_max:
            oldest = min(self.first_response_ms, key=lambda version: (self.first_response_ms[version], version))
            del self.first_response_ms[oldest]
            changes.append((version_key(_FIRST, oldest), None))


def version_key(prefix: bytes, version: Version) -> bytes:
    """The key of a version's row: `prefix`, then policy and model version in MessagePack (ids may hold any character)."""
    return prefix + msgspec.msgpack.encode(version)


def version_of(key: bytes, prefix: bytes) -> Version:
    """The version of such a key."""
    version: Version = msgspec.msgpack.decode(key[len(prefix) :], type=Version)
    return version

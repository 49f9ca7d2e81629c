"""Pages written down as tests need them, and the samples messages that the joiner would make of them."""

import json
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from experience.sessions import PartitionSessions
from experience.settings import ExperienceSettings, RewardSettings
from headrace.memory_rows import MemoryRows
from headrace.step import Outcome, Record
from schemas.codec import decode_batch, encode_batch
from schemas.pointwise_sample import pointwise_schema
from schemas.sample import label_column, sample_schema

KINDS = ("click", "pay")
MINUTE_MS = 60_000
REWARD = RewardSettings(penalty_no_conversion=0.5, penalty_left=2.0)
SETTINGS = ExperienceSettings(session_gap_ms=30 * MINUTE_MS, reward=REWARD, dedup_horizon_ms=60 * MINUTE_MS)


class Shown(NamedTuple):
    """A page of the log. `labels` has one row an item: the summed feedback of each kind."""

    request_id: str
    user_id: str
    ts_ms: int
    labels: tuple[tuple[float, ...], ...] = ((0.0, 0.0), (0.0, 0.0))
    left: bool = False
    policy: str = "fusion"


def offsets_of(page: Shown, position: int) -> list[int]:
    """Where the item's feedback lies, if one of its labels is not zero, and behind it that of the page's `leave`."""
    first = 100 * zlib.crc32(page.request_id.encode())
    own = [first + 90 - position] if any(page.labels[position]) else []
    return [*own, first + 99] if page.left else own


def offsets_of_page(page: Shown) -> list[int]:
    return sorted({offset for position in range(len(page.labels)) for offset in offsets_of(page, position)})


def exposure_bytes(page: Shown) -> bytes:
    return json.dumps({"page": page.request_id, "propensity": 0.25, "bucket": "7"}).encode()


def page_of(exposure: bytes | None) -> str | None:
    return None if exposure is None else str(json.loads(exposure)["page"])


def sample_batch(pages: Sequence[Shown], kinds: tuple[str, ...] = KINDS) -> pa.RecordBatch:
    """Source offsets are the pages' places; a row has feedback where one of its labels is not zero, arrived ts_ms + 1000 + row."""
    schema = sample_schema(kinds)
    rows: list[dict[str, Any]] = []
    for place, page in enumerate(pages):
        for position, labels in enumerate(page.labels):
            reacted = any(labels)
            rows.append(
                {
                    "request_id": page.request_id,
                    "user_id": page.user_id,
                    "item_id": f"i-{position}",
                    "position": position,
                    "page_size": len(page.labels),
                    "ts_ms": page.ts_ms,
                    "policy": page.policy,
                    "model_version": "fusion-000001",
                    **{label_column(kind): value for kind, value in zip(kinds, labels, strict=True)},
                    "label_delay_ms": 500 if reacted else None,
                    "feedback_arrival_ms": page.ts_ms + 1000 + position if reacted else None,
                    "left": page.left,
                    "closed_by": "window",
                    "source_partition": 3,
                    "source_offset": place,
                    "feedback_offsets": offsets_of(page, position),
                }
            )
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in schema if field.name != "exposure"]
    indices = [place for place, page in enumerate(pages) for _ in page.labels]
    exposures = pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(map(exposure_bytes, pages), pa.binary()))
    return pa.RecordBatch.from_arrays([*columns, exposures], schema=schema)


def message(pages: Sequence[Shown], watermark_ms: int, kinds: tuple[str, ...] = KINDS) -> bytes:
    return encode_batch(sample_batch(pages, kinds), watermark_ms)


def early_message(pages: Sequence[Shown], kinds: tuple[str, ...] = KINDS, closed_by: str = "early", rows: int | None = None) -> bytes:
    """What the joiner sends of pages in `fast` mode before their labels are final."""
    samples = sample_batch(pages, kinds).slice(0, rows)
    schema = pointwise_schema(kinds)
    count = len(samples)
    place = samples.schema.get_field_index("closed_by")
    samples = samples.set_column(place, samples.schema.field(place), pa.array([closed_by] * count))
    more: list[pa.Array] = [pa.array([False] * count), pa.array([0] * count, pa.int64())]
    more += [pa.array([0.0] * count, pa.float32())] * 5
    return encode_batch(pa.RecordBatch.from_arrays([*samples.columns, *more], schema=schema), 0)


def record(offset: int, value: bytes) -> Record:
    return Record(offset, 0, value)


def transitions(*outcomes: Outcome) -> list[dict[str, Any]]:
    """The rows of all transition batches that were sent."""
    return [row for outcome in outcomes for output in outcome.outputs for row in decode_batch(output.value, "transitions")[0].to_pylist()]


class Life:
    """A step with the store that the stage would keep for it: it can be rebuilt at any time."""

    def __init__(self, settings: ExperienceSettings = SETTINGS) -> None:
        self.settings = settings
        self.stored: dict[bytes, bytes] = {}
        self.outcomes: list[Outcome] = []
        self.rebuild()

    def rebuild(self) -> None:
        self.step = PartitionSessions(self.settings, 3, MemoryRows(self.stored.items()))

    def keep(self, outcome: Outcome) -> Outcome:
        for key, row in outcome.changes:
            if row is None:
                self.stored.pop(key, None)
            else:
                self.stored[key] = row
        self.outcomes.append(outcome)
        return outcome

    def deliver(self, *records: Record, now_ms: int = 0, topic: str = "samples") -> Outcome:
        return self.keep(self.step.apply(topic, records, now_ms))

    def end(self) -> Outcome:
        """The topic falls silent for years: every session ends."""
        self.keep(self.step.tick(0))
        return self.keep(self.step.tick(100 * 365 * 86_400_000))

    def rows(self) -> list[dict[str, Any]]:
        return transitions(*self.outcomes)

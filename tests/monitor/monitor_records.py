"""Small batches as they lie in the monitor's topics."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from headrace.step import Outcome, Record
from monitor.settings import MonitorSettings
from monitor.tally import PartitionTally
from schemas.codec import encode_batch, encode_json
from schemas.dead_letter import DeadLetter
from schemas.policy import Lineage, PolicyVersion
from schemas.sample import sample_schema
from schemas.transition import transition_schema

T0 = 1_700_000_000_000
KINDS = ("click",)
SETTINGS = MonitorSettings(horizon_s=10, session_idle_s=80)


def samples(rows: Sequence[tuple[str, str, int, int | None]], watermark_ms: int, policy: str = "fusion") -> bytes:
    """Rows of (request_id, model_version, ts_ms, label_delay_ms); ts and watermark count from T0."""
    columns: dict[str, list[Any]] = {
        "request_id": [row[0] for row in rows],
        "user_id": ["u"] * len(rows),
        "item_id": [f"i-{place}" for place in range(len(rows))],
        "position": [0] * len(rows),
        "page_size": [1] * len(rows),
        "ts_ms": [T0 + row[2] for row in rows],
        "policy": [policy] * len(rows),
        "model_version": [row[1] for row in rows],
        "label_click": [float(row[3] is not None) for row in rows],
        "label_delay_ms": [row[3] for row in rows],
        "feedback_arrival_ms": [None] * len(rows),
        "left": [False] * len(rows),
        "closed_by": ["window"] * len(rows),
        "source_partition": [0] * len(rows),
        "source_offset": list(range(len(rows))),
        "feedback_offsets": [[]] * len(rows),
        "exposure": pa.array([b"{}"] * len(rows), pa.binary()).dictionary_encode(),
    }
    return encode_batch(pa.RecordBatch.from_pydict(columns, sample_schema(KINDS)), T0 + watermark_ms)


def transitions(
    rows: Sequence[tuple[str, str, str, str, float, int, bool]], watermark_ms: int, instance: str = "td1", revision: int = 0
) -> bytes:
    """Rows of (request_id, session_id, policy, model_version, reward, ts_ms, done); ts and watermark count from T0."""
    columns: dict[str, list[Any]] = {
        "transition_id": [row[0] if instance == "td1" else f"{row[0]}/{instance}" for row in rows],
        "instance": [instance] * len(rows),
        "revision": [revision] * len(rows),
        "request_id": [row[0] for row in rows],
        "user_id": ["u"] * len(rows),
        "session_id": [row[1] for row in rows],
        "step": [0] * len(rows),
        "ts_ms": [T0 + row[5] for row in rows],
        "policy": [row[2] for row in rows],
        "model_version": [row[3] for row in rows],
        "bucket": [""] * len(rows),
        "propensity": [1.0] * len(rows),
        "reward": [row[4] for row in rows],
        "reward_click": [row[4] for row in rows],
        "penalty_no_conversion": [0.0] * len(rows),
        "penalty_left": [0.0] * len(rows),
        "n_steps": [1] * len(rows),
        "return": [row[4] for row in rows],
        "discount": [0.9] * len(rows),
        "done": [row[6] for row in rows],
        "ends_session": [row[6] for row in rows],
        "feedback_count": [2] * len(rows),
        "feedback_arrival_ms": [None] * len(rows),
        "source_partition": [0] * len(rows),
        "source_offset": list(range(len(rows))),
        "samples_offset": [0] * len(rows),
        "feedback_offsets": [[]] * len(rows),
        "exposure": [b"{}"] * len(rows),
        "next_exposure": [None] * len(rows),
    }
    return encode_batch(pa.RecordBatch.from_pydict(columns, transition_schema(KINDS)), T0 + watermark_ms)


def announcement(
    model_version: str,
    announced_ms: int,
    transitions_learned: int = 100,
    reason: Any = "promoted",
    learned_from: dict[str, int] | None = None,
    arrivals_ms: dict[int, int] | None = None,
) -> bytes:
    return encode_json(
        PolicyVersion(
            policy="fusion",
            model_version=model_version,
            uri="file:///models",
            spec_hash="h",
            reason=reason,
            announced_ms=T0 + announced_ms,
            metrics={},
            lineage=Lineage(
                offsets={"0": 1}, seed=1, code_version="0", transitions_learned=transitions_learned, learned_from=learned_from or {}
            ),
            arrivals_ms={str(T0 + arrival): count for arrival, count in (arrivals_ms or {}).items()},
        )
    )


def letter(source_offset: int, stage: str = "joiner", reason: Any = "late", ts_ms: int = 0) -> bytes:
    return encode_json(
        DeadLetter(
            stage=stage,
            reason=reason,
            detail="",
            source_topic="feedback",
            source_partition=0,
            source_offset=source_offset,
            size_bytes=10,
            ts_ms=T0 + ts_ms,
        )
    )


def record(offset: int, value: bytes, arrival_ms: int = 0) -> Record:
    return Record(offset, T0 + arrival_ms, value)


class Disk:
    """The rows that a runner would have stored."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def write(self, outcome: Outcome) -> None:
        for key, row in outcome.changes:
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row

    def tally(self, settings: MonitorSettings = SETTINGS) -> PartitionTally:
        return PartitionTally(settings, 0, sorted(self.rows.items()))

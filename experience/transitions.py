"""Settled pages -> TD instances: the transition batches that leave the experience collector."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from experience.pages import Page
from experience.reward import penalties, total
from experience.settings import ExperienceSettings
from schemas.transition import transition_schema

BATCH_BYTES = 4 << 20
"""A batch is cut where its exposures exceed this: an idle topic can end all sessions at once, and a message must stay below 12 MiB."""


class Instance(NamedTuple):
    """One page whose future is settled: <s, a, r, s', done>.

    `went_on` says whether the user asked for another page within the gap; a session that is cut for its length is `done` although
    the user went on.
    """

    page: Page
    session_id: str
    step: int
    next_exposure: bytes | None
    done: bool
    went_on: bool


def transition_batches(instances: Sequence[Instance], settings: ExperienceSettings) -> list[pa.RecordBatch]:
    """The record batches of these instances: in their order, one for each run of the same feedback kinds, none too large."""
    batches = []
    for kinds, run in groupby(instances, key=lambda instance: instance.page.kinds):
        batches += [_batch(chunk, tuple(kinds.split(",")) if kinds else (), settings) for chunk in _chunks(run)]
    return batches


def _chunks(instances: Iterator[Instance]) -> Iterator[list[Instance]]:
    chunk: list[Instance] = []
    size_bytes = 0
    for instance in instances:
        size_bytes += len(instance.page.exposure) + len(instance.next_exposure or b"")
        if chunk and size_bytes > BATCH_BYTES:
            yield chunk
            chunk, size_bytes = [], len(instance.page.exposure) + len(instance.next_exposure or b"")
        chunk.append(instance)
    if chunk:
        yield chunk


def _batch(instances: Sequence[Instance], kinds: tuple[str, ...], settings: ExperienceSettings) -> pa.RecordBatch:
    pages = [instance.page for instance in instances]
    earned_PK = np.array([page.earned for page in pages], np.float32).reshape(len(pages), len(kinds))
    no_conversion_P, left_P = penalties(
        np.array([page.converted for page in pages], np.bool_),
        np.array([instance.went_on for instance in instances], np.bool_),
        settings.penalty_no_conversion,
        settings.penalty_left,
    )
    parts = [*(np.ascontiguousarray(earned_P) for earned_P in earned_PK.T), no_conversion_P, left_P]
    columns = [
        [page.request_id for page in pages],
        [page.user_id for page in pages],
        [instance.session_id for instance in instances],
        [instance.step for instance in instances],
        [page.ts_ms for page in pages],
        [page.policy for page in pages],
        [page.model_version for page in pages],
        total(parts),
        *parts,
        [instance.done for instance in instances],
        [page.feedback_count for page in pages],
        [page.feedback_arrival_ms for page in pages],
        [page.source_partition for page in pages],
        [page.source_offset for page in pages],
        [page.exposure for page in pages],
        [instance.next_exposure for instance in instances],
    ]
    schema = transition_schema(kinds)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)

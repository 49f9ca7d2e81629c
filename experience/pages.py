"""Rows -> pages: a batch of point-wise samples becomes the pages that were shown, list-wise, as columns.

Shape legend: R rows (samples) of a batch, P pages, K kinds of feedback.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from experience.columns import Columns, objects, pack, shared_texts
from experience.reward import Ints, by_rule, conversions, earned_parts
from experience.settings import ExperienceSettings
from schemas.codec import UNREADABLE, WrongBatchError, batch_kinds, decode_arm, decode_batch
from schemas.exposure import ServedArm
from schemas.sample import label_column, sample_schema

MAX_REWARD = 1e38
"""Rewards are float32: anything larger is an error in the feedback's value, not a success."""


class Pages(NamedTuple):
    """The pages of one samples message in the order of its rows; `row_counts` has the number of samples of each."""

    columns: Columns
    request_ids: list[str]
    row_counts: Ints
    watermark_ms: int
    unusable: dict[int, str]
    """Pages that cannot be used, and why."""


def read_pages(message: bytes, offset: int, settings: ExperienceSettings) -> Pages:
    """The pages of a samples message. Raises WrongBatchError where it is not what the topic promises."""
    try:
        batch, watermark_ms = decode_batch(message, "samples")
        kinds = batch_kinds(batch.schema)
        _check(batch, kinds)
        if not batch.num_rows:
            return Pages({}, [], np.empty(0, np.int64), watermark_ms, {})
        starts = page_starts(batch)
        columns, unusable = page_columns(batch, kinds, starts, offset, settings)
        request_ids = batch.column("request_id").take(pa.array(starts)).to_pylist()
        return Pages(columns, request_ids, np.diff(starts, append=batch.num_rows), watermark_ms, unusable)
    except WrongBatchError:
        raise
    except (ValueError, KeyError, IndexError, OSError, pa.ArrowException) as error:
        raise WrongBatchError(f"not a record batch of samples: {type(error).__name__}: {error}") from error


def _check(batch: pa.RecordBatch, kinds: tuple[str, ...]) -> None:
    expected = sample_schema(kinds)
    if not batch.schema.equals(expected):
        raise WrongBatchError(f"columns are not those of samples with kinds {','.join(kinds)}: {batch.schema.names!r:.200}")
    batch.validate(full=True)
    for field, column in zip(expected, batch.columns, strict=True):
        if not field.nullable and column.null_count:
            raise WrongBatchError(f"column {field.name} has {column.null_count} nulls")


def page_starts(batch: pa.RecordBatch) -> Ints:
    """First row of each page: where the request, or the exposure record that it was read from, changes."""
    request_ids = batch.column("request_id")
    offsets = batch.column("source_offset").to_numpy()
    other_request = pc.not_equal(request_ids[1:], request_ids[:-1]).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.concatenate(([True], other_request | (np.diff(offsets) != 0))))


def page_columns(
    batch: pa.RecordBatch, kinds: Sequence[str], starts_P: Ints, offset: int, settings: ExperienceSettings
) -> tuple[Columns, dict[int, str]]:
    """Every column is reduced as a whole. The second value are the pages that cannot be used, and why."""
    first = pa.array(starts_P)
    policies_P = shared_texts(batch.column("policy").take(first))
    labels_KR = [batch.column(label_column(kind)).to_numpy() for kind in kinds]
    earned_PK, converted_P = np.empty((len(starts_P), len(kinds)), np.float32), np.empty(len(starts_P), np.bool_)
    for rule, of_rule_P in by_rule(policies_P, settings.reward):
        earned_PK[of_rule_P] = earned_parts(labels_KR, kinds, rule, starts_P)[of_rule_P]
        converted_P[of_rule_P] = conversions(labels_KR, kinds, rule, starts_P)[of_rule_P]
    exposures = _taken(batch.column("exposure"), first)
    arms, unusable = _arms(exposures)
    for page in np.flatnonzero(
        ~(np.abs(earned_PK).sum(axis=1, dtype=np.float64) <= MAX_REWARD)
    ).tolist():  # this way round, NaN is found too
        unusable[page] = f"earned {tuple(earned_PK[page].tolist())}: no usable reward"
    has_feedback_R = batch.column("label_delay_ms").is_valid().to_numpy(zero_copy_only=False)
    columns: Columns = {
        "ts_ms": batch.column("ts_ms").to_numpy()[starts_P],
        "propensity": np.fromiter([arm.propensity for arm in arms], np.float64, len(arms)),
        "converted": converted_P,
        "left": np.logical_or.reduceat(batch.column("left").to_numpy(zero_copy_only=False), starts_P),
        "feedback_count": np.add.reduceat(has_feedback_R, starts_P, dtype=np.int32),
        "feedback_arrival_ms": np.maximum.reduceat(batch.column("feedback_arrival_ms").fill_null(-1).to_numpy(), starts_P),
        "source_partition": batch.column("source_partition").to_numpy()[starts_P],
        "source_offset": batch.column("source_offset").to_numpy()[starts_P],
        "offset": np.full(len(starts_P), offset),
        "policy": policies_P,
        "model_version": shared_texts(batch.column("model_version").take(first)),
        "bucket": shared_texts(pa.array([arm.bucket for arm in arms], pa.string())),
        "kinds": objects([",".join(kinds)] * len(starts_P)),  # np.full would make a text for each
        "earned": earned_PK,
        **pack(
            [
                _taken(batch.column("request_id"), first),
                _taken(batch.column("user_id"), first),
                _offsets(batch.column("feedback_offsets"), starts_P),
                exposures,
            ]
        ),
    }
    return columns, unusable


def _taken(column: pa.Array, first: pa.Array) -> pa.Array:
    """The pages' values; a column with a dictionary is not written out first."""
    if isinstance(column, pa.DictionaryArray):
        return column.dictionary.take(column.indices.take(first))
    return column.take(first)


def _offsets(of_rows: pa.ListArray, starts_P: Ints) -> pa.BinaryArray:
    """The offsets of each page's feedback in their order, each once, 8 bytes each; null is none."""
    page_R = np.repeat(np.arange(len(starts_P)), np.diff(starts_P, append=len(of_rows)))
    page = np.repeat(page_R, pc.list_value_length(of_rows).fill_null(0).to_numpy())
    offset = pc.list_flatten(of_rows).to_numpy()
    order = np.lexsort((offset, page))
    page, offset = page[order], offset[order]
    is_other = np.append(True, (np.diff(page) != 0) | (np.diff(offset) != 0))[: len(page)]
    page, offset = page[is_other], offset[is_other]
    ends = np.searchsorted(page, np.arange(len(starts_P) + 1)).astype(np.int32) * np.int32(8)
    return pa.Array.from_buffers(pa.binary(), len(starts_P), [None, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(offset))])


def _arms(exposures: pa.BinaryArray) -> tuple[list[ServedArm], dict[int, str]]:
    """What is opened of the messages; those that cannot be opened are unusable."""
    _, bounds, content = exposures.buffers()
    messages = memoryview(content or b"")
    ends = np.frombuffer(bounds, np.int32)[exposures.offset : exposures.offset + len(exposures) + 1].tolist()
    try:
        return [decode_arm(messages[start:end]) for start, end in pairwise(ends)], {}
    except UNREADABLE:
        pass
    arms, unusable = [], {}
    for page, (start, end) in enumerate(pairwise(ends)):
        try:
            arms.append(decode_arm(messages[start:end]))
        except UNREADABLE as error:
            arms.append(ServedArm())
            unusable[page] = f"its exposure cannot be read: {error}"
    return arms, unusable

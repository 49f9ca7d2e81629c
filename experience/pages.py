"""Rows -> pages: a batch of point-wise samples becomes the pages that were shown, list-wise."""

from itertools import repeat
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from experience.reward import conversions, earned_parts, page_sums
from experience.settings import ExperienceSettings
from schemas.codec import WrongBatchError, batch_kinds, decode_batch
from schemas.sample import label_column, sample_schema


class Page(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One page that was shown, with what it earned. `offset` is that of the samples message which it came in.

    `earned` has the parts of the reward that feedback brought, in the order of `kinds` (comma-separated, as in the batch's schema).
    """

    ts_ms: int
    request_id: str
    user_id: str
    policy: str
    model_version: str
    kinds: str
    earned: tuple[float, ...]
    converted: bool
    left: bool
    feedback_count: int
    feedback_arrival_ms: int | None
    source_partition: int
    source_offset: int
    offset: int
    exposure: bytes


class Pages(NamedTuple):
    """The pages of one samples message in the order of its rows; `row_counts` has the number of samples of each."""

    pages: list[Page]
    row_counts: list[int]
    watermark_ms: int


def read_pages(message: bytes, offset: int, settings: ExperienceSettings) -> Pages:
    """The pages of a samples message. Raises WrongBatchError where it is not what the topic promises."""
    try:
        batch, watermark_ms = decode_batch(message, "samples")
        kinds = batch_kinds(batch.schema)
        _check(batch, kinds)
        if not batch.num_rows:
            return Pages([], [], watermark_ms)
        starts = page_starts(batch)
        row_counts = np.diff(starts, append=batch.num_rows).tolist()
        return Pages(_pages(batch, kinds, starts, offset, settings), row_counts, watermark_ms)
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


def page_starts(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """First row of each page: where the request, or the exposure record that it was read from, changes."""
    request_ids = batch.column("request_id")
    offsets = batch.column("source_offset").to_numpy()
    other_request = pc.not_equal(request_ids[1:], request_ids[:-1]).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.concatenate(([True], other_request | (np.diff(offsets) != 0))))


def _pages(
    batch: pa.RecordBatch, kinds: tuple[str, ...], starts: npt.NDArray[np.int64], offset: int, settings: ExperienceSettings
) -> list[Page]:
    """One Page per start: every column is reduced as a whole, in the order of Page's fields."""
    sums_PK = page_sums([batch.column(label_column(kind)).to_numpy() for kind in kinds], starts)
    has_feedback = batch.column("label_delay_ms").is_valid().to_numpy(zero_copy_only=False)
    arrivals = np.maximum.reduceat(batch.column("feedback_arrival_ms").fill_null(-1).to_numpy(), starts).tolist()
    left = np.logical_or.reduceat(batch.column("left").to_numpy(zero_copy_only=False), starts)
    exposures = batch.column("exposure")

    def first(name: str) -> list[Any]:
        values: list[Any] = batch.column(name).take(pa.array(starts)).to_pylist()
        return values

    return list(
        map(
            Page,
            first("ts_ms"),
            first("request_id"),
            first("user_id"),
            first("policy"),
            first("model_version"),
            repeat(",".join(kinds)),
            map(tuple, earned_parts(sums_PK, kinds, settings.reward_weights).tolist()),
            conversions(sums_PK, kinds, settings.conversion_kinds).tolist(),
            left.tolist(),
            np.add.reduceat(has_feedback.astype(np.int64), starts).tolist(),
            [None if arrival < 0 else arrival for arrival in arrivals],
            first("source_partition"),
            first("source_offset"),
            repeat(offset),
            exposures.dictionary.take(exposures.indices.take(pa.array(starts))).to_pylist(),
        )
    )

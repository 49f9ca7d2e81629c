"""Sends rows to the point-wise stream when it is their time, and remembers which blocks' rows have left early."""

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np
import pyarrow as pa

from headrace.step import Count, Outcome, Output
from joiner.block import Block
from joiner.delay import DelayCounts
from joiner.labels import Ints
from joiner.pointwise import Pointwise
from joiner.rows import DELAYS_KEY, encode_row, row_key
from joiner.settings import JoinerSettings
from joiner.stored_blocks import StoredBlocks
from joiner.watermark import Watermark
from schemas.codec import encode_batch
from schemas.topics import POINTWISE_SAMPLES


class PointwiseStream:
    """The emission of a partition. With mode `none` it does nothing."""

    def __init__(self, settings: JoinerSettings, partition: int, stored: StoredBlocks, counts: Sequence[int]) -> None:
        self._rows = Pointwise(settings, partition, DelayCounts(counts))
        self._stored = stored
        self._leave_early: list[tuple[int, int, Block]] = []  # heap of (newest ts_ms, first offset, block)
        self._positive: dict[Block, set[int]] = {}  # rows of open blocks
        self._just_positive: dict[Block, list[int]] = {}

    def opened(self, block: Block) -> None:
        """A block is open; not new where it has been recovered."""
        if self._rows.mode == "fast" and block.early_ms is None:
            heappush(self._leave_early, (block.max_ts_ms, block.first_offset, block))

    def labelled_before(self, block: Block, row: int, kind: str) -> bool:
        """Note a row's feedback without sending anything. Says whether it is the first that makes the row positive."""
        if kind != self._rows.target or self._rows.mode == "none":
            return False
        positive = self._positive.setdefault(block, set())
        is_first = row not in positive
        positive.add(row)
        return is_first

    def labelled(self, block: Block, row: int, kind: str) -> None:
        """A row has feedback of this kind."""
        if self.labelled_before(block, row, kind) and self._rows.positive_leaves_as(block):
            self._just_positive.setdefault(block, []).append(row)

    def send(self, watermark: Watermark, promise_ms: int, outcome: Outcome) -> None:
        """Let the rows leave that have become positive and, in `fast` mode, the blocks' whose wait is over: at once without a wait."""
        feedback_ms = watermark.feedback_ms()
        for block, rows in self._just_positive.items():
            closed_by = self._rows.positive_leaves_as(block)
            assert closed_by is not None, block.first_offset
            looked_at_ms = feedback_ms if block.early_ms is None else block.early_ms
            self._leave(block, np.sort(np.array(rows, np.int64)), closed_by, looked_at_ms, promise_ms, outcome)
        self._just_positive.clear()
        while self._is_due(watermark.ms):
            _, _, block = heappop(self._leave_early)
            block.early_ms = feedback_ms
            outcome.changes.append((row_key(b"e", block.first_offset), encode_row(feedback_ms)))
            self._leave(block, block.every_row(), "early", feedback_ms, promise_ms, outcome)

    def has_rows_to_send(self, watermark_ms: int) -> bool:
        """Whether `send` would send anything."""
        return bool(self._just_positive) or self._is_due(watermark_ms)

    def close(self, block: Block, samples: pa.RecordBatch, looked_at_ms: int, promise_ms: int, outcome: Outcome) -> None:
        """A block is over; `samples` is all of it."""
        if self._rows.mode == "none":
            return
        self._rows.counts.add(block.hits.first_delays_ms(self._rows.target, block.rows))
        outcome.changes.append((DELAYS_KEY, encode_row(self._rows.counts.stored())))
        if block.early_ms is not None:
            outcome.changes.append((row_key(b"e", block.first_offset), None))
        if self._rows.mode != "fast":
            self._send(block, samples, block.every_row(), looked_at_ms, promise_ms, outcome)
        self._positive.pop(block, None)

    def _is_due(self, watermark_ms: int) -> bool:
        wait_ms = self._rows.wait_ms
        return bool(self._leave_early) and (not wait_ms or self._leave_early[0][0] + wait_ms < watermark_ms)

    def _leave(self, block: Block, rows: Ints, closed_by: str, looked_at_ms: int, promise_ms: int, outcome: Outcome) -> None:
        columns = self._stored.columns(block)
        messages = self._stored.messages(columns, block.pages_of(rows))
        samples = block.samples(self._rows.layout, columns, messages, closed_by, rows)
        self._send(block, samples, rows, looked_at_ms, promise_ms, outcome)

    def _send(self, block: Block, samples: pa.RecordBatch, rows: Ints, looked_at_ms: int, promise_ms: int, outcome: Outcome) -> None:
        is_positive_R = np.zeros(block.rows, np.bool_)
        is_positive_R[list(self._positive.get(block, ()))] = True
        batch = self._rows.batch(samples, is_positive_R[rows], looked_at_ms)
        if batch is not None:
            outcome.counts[Count("out", POINTWISE_SAMPLES)] += len(batch)
            outcome.outputs.append(Output(POINTWISE_SAMPLES, encode_batch(batch, promise_ms)))

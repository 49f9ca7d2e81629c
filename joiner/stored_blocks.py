"""The part of the open blocks that is not in memory: their keys and messages, as rows of the store."""

import pyarrow as pa

from headrace.step import Outcome, StoredRows
from joiner.block import Block
from joiner.labels import Ints
from joiner.pages import Pages, message_keys, read_keys, read_messages
from joiner.rows import row_key


class StoredBlocks:
    """Writes rows into outcomes, and reads them from the store or, until they are there, from the outcome's."""

    def __init__(self, stored: StoredRows) -> None:
        self._stored = stored
        self._unstored: dict[bytes, bytes] = {}

    def begin_call(self) -> None:
        """What earlier calls put is in the store by now."""
        self._unstored.clear()

    def put(self, pages: Pages, outcome: Outcome) -> None:
        """Store the pages of a new block."""
        rows = pages.rows()
        outcome.changes += rows
        self._unstored.update(rows)

    def columns(self, block: Block) -> pa.RecordBatch:
        """The keys of a block's pages."""
        [row] = self._get([row_key(b"b", block.first_offset)])
        return read_keys(row)

    def messages(self, columns: pa.RecordBatch, pages: Ints) -> pa.BinaryArray:
        """The messages of some `pages` (sorted) of a block with these `columns`."""
        return read_messages(self._get(message_keys(columns["offset"].to_numpy(), pages)), pages)

    def delete(self, block: Block, columns: pa.RecordBatch, outcome: Outcome) -> None:
        """Forget a block with these `columns`."""
        keys = [row_key(b"b", block.first_offset), *message_keys(columns["offset"].to_numpy(), block.every_page())]
        outcome.changes += [(key, None) for key in keys]

    def _get(self, keys: list[bytes]) -> list[bytes]:
        fresh = [self._unstored.get(key) for key in keys] if self._unstored else [None] * len(keys)
        stored = iter(self._stored.get([key for key, value in zip(keys, fresh, strict=True) if value is None]))
        return [next(stored) if value is None else value for value in fresh]

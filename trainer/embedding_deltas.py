"""Writes what changed in the dynamic tables for serving: all rows once, then what was learned since, again and again."""

from pathlib import Path

import numpy as np

from headrace.embedding_files import Changed, file_of, numbers, write_changes
from trainer.embeddings import Embeddings

ANEW_BYTES = 64 << 20
"""Deltas may take so much room, and twice that of all rows, before all rows are written anew and the older files deleted."""


class EmbeddingDeltas:
    """Writes into one folder. A new one begins with all rows: nobody knows how far its table is behind what was written before."""

    def __init__(self, folder: Path, embeddings: Embeddings) -> None:
        self._folder = folder
        self._embeddings = embeddings
        self._names = [*embeddings.tables]
        self._next = max(numbers(folder), default=0) + 1
        self._first_kept = self._next
        self._all_bytes = self._delta_bytes = 0
        self._is_begun = False

    def write(self) -> bool:
        """Write what changed since the last call; gives whether there was anything. Raises ConfigError where the disk refuses."""
        if not self._is_begun or self._delta_bytes > max(ANEW_BYTES, 2 * self._all_bytes):
            self._write_all()
            return True
        changes = self._embeddings.changed()
        if changes:
            self._delta_bytes += self._write(changes)
        return bool(changes)

    def _write_all(self) -> None:
        self._embeddings.changed()  # is in the rows
        first, self._all_bytes = self._next, 0
        for name, keys, weights in self._embeddings.all_rows():
            self._all_bytes += self._write({name: Changed(np.zeros(0, np.uint64), keys, weights)})
        self._write({}, self._next - first)
        self._delta_bytes, self._is_begun = 0, True
        for number in numbers(self._folder):
            if number < self._first_kept:
                file_of(self._folder, number).unlink(missing_ok=True)
        self._first_kept = first  # whoever reads the older ones may finish

    def _write(self, changes: dict[str, Changed], parts: int = -1) -> int:
        size = write_changes(self._folder, self._next, self._names, changes, parts)
        self._next += 1
        return size

"""States as columns: what the encoder reads, in the trainer and in serving alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DENSE, PLAIN, IDS = "dense", "plain", "ids"
"""Names of the graph's inputs; those of lists are `list_input`."""


def list_input(name: str) -> str:
    """The name of a sequence's, or another list's, input; that of an id with a dynamic table, too."""
    return f"seq_{name}"


def rows_input(name: str) -> str:
    """The name of the input for the embeddings of a feature with a dynamic table: [B, T * D], one id after the other."""
    return f"rows_{name}"


@dataclass(frozen=True)
class StateColumns:
    """B states as columns, in the order of the specification.

    dense [B, N] float32: numbers that the model normalises, NaN where one is missing. plain [B, P] float32: numbers and vectors that it
    takes as they are. ids [B, I] int64: rows of the tables. sequences: one int64 [B, T] for each feature that is a list, newest last; of
    one with a dynamic table keys instead of rows. An id with a dynamic table is a list of one.
    """

    dense: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]
    sequences: Mapping[str, npt.NDArray[np.int64]]
    plain: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.dense)

    def take(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "StateColumns":
        """Some of the rows."""
        sequences = {name: ids[rows] for name, ids in self.sequences.items()}
        return StateColumns(self.dense[rows], self.ids[rows], sequences, self.plain[rows])

    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """The columns by the names of the graph's inputs; those of size 0 are left out."""
        named: dict[str, npt.NDArray[Any]] = {DENSE: self.dense, PLAIN: self.plain, IDS: self.ids}
        named |= {list_input(name): ids for name, ids in self.sequences.items()}
        return {name: column for name, column in named.items() if column.shape[1]}

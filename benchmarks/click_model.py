"""A model of one click that learns online: logistic regression on hashed features, rows in the order in which they leave.

McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, describe such models; theirs has FTRL in Adagrad's place.
Shapes: B rows, F hashed features, D dense ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.delay_log import BUCKETS, DelayLog, Rows

BATCH_ROWS = 128


class RowTensors(NamedTuple):
    """What a loss gets beside the logits [B]."""

    positive: Tensor
    is_late: Tensor
    come_by: Tensor
    weight_fake_negative: Tensor
    weight_fsiw: Tensor
    log_keep: Tensor


Loss = Callable[[Tensor, RowTensors], Tensor]


class ClickModel(torch.nn.Module):
    """z = b + sum of the weights of the row's buckets + dense part."""

    def __init__(self, dense: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.buckets = torch.nn.EmbeddingBag(BUCKETS, 1, mode="sum", sparse=True)
        self.dense = torch.nn.Linear(dense, 1)
        with torch.no_grad():
            self.buckets.weight.normal_(0.0, 0.01, generator=generator)
            self.dense.weight.normal_(0.0, 0.01, generator=generator)
            self.dense.bias.zero_()

    def forward(self, tokens_BF: Tensor, dense_BD: Tensor) -> Tensor:
        """Log-odds [B]."""
        logit_B1: Tensor = self.buckets(tokens_BF) + self.dense(dense_BD)
        return logit_B1.squeeze(1)


class OnlineLearner:
    """A model and its optimiser; one pass over the rows, each batch once."""

    def __init__(self, log: DelayLog, loss: Loss, learning_rate: float, seed: int) -> None:
        self._tokens, self._dense, self._loss = torch.from_numpy(log.tokens_NF), torch.from_numpy(log.dense_ND), loss
        self._model = ClickModel(log.dense_ND.shape[1], seed)
        self._optimiser = torch.optim.Adagrad(self._model.parameters(), learning_rate)
        self._rng = np.random.default_rng(seed)

    def predict(self, start: int, end: int) -> Tensor:
        """Log-odds of the exposures at these places."""
        with torch.no_grad():
            logit_B: Tensor = self._model(self._tokens[start:end], self._dense[start:end])
        return logit_B

    def learn(self, rows: Rows) -> None:
        """The rows of a chunk, shuffled."""
        order = self._rng.permutation(len(rows.place))
        for start in range(0, len(order), BATCH_ROWS):
            batch = rows.take(order[start : start + BATCH_ROWS])
            place = torch.from_numpy(batch.place)
            logit_B = self._model(self._tokens[place], self._dense[place])
            self._optimiser.zero_grad()
            self._loss(logit_B, _tensors(batch)).backward()  # type: ignore[no-untyped-call]
            with torch.sparse.check_sparse_tensor_invariants(False):  # type: ignore[no-untyped-call]  # the default; unsaid, torch warns
                self._optimiser.step()


def _tensors(rows: Rows) -> RowTensors:
    floats = (rows.come_by, rows.weight_fake_negative, rows.weight_fsiw, rows.log_keep)
    return RowTensors(_tensor(rows.is_positive).float(), _tensor(rows.is_late), *(_tensor(column) for column in floats))


def _tensor(column: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(column))

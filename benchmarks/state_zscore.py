"""The rolling Z-score's update beside the bare NumPy mean and variance of the same batch, and beside river's StandardScaler.

NumPy only looks at the batch: nothing is merged, forgotten or checked for missing values. river merges what it learns, as we do.
"""

import statistics
from collections.abc import Callable
from time import process_time_ns
from typing import Any

import numpy as np
import pyarrow as pa
from river.preprocessing import StandardScaler

from trainer.zscore import Zscore

FEATURES = 90
BATCH_ROWS = (256, 1024, 4096)
CALLS_ROWS = 100_000
"""Rows a contestant works through in one round, in batches."""


def measure(rounds: int) -> dict[str, Any]:
    """CPU microseconds a batch, by batch size, and the ratios at 1,024 rows."""
    by_rows = {rows: _one_size(rows, rounds) for rows in BATCH_ROWS}
    figures = by_rows[1024]
    return {
        "zscore_rows_per_s": round(1024e6 / figures["zscore_us"]),
        "zscore_ratio_to_numpy": figures["zscore_ratio_to_numpy"],
        "ratio_to_river": figures["ratio_to_river"],
        "zscore_by_batch_rows": {str(rows): figures for rows, figures in by_rows.items()},
    }


def _one_size(rows: int, rounds: int) -> dict[str, float]:
    batch = np.random.default_rng(rows).normal(50.0, 10.0, (rows, FEATURES)).astype(np.float32)
    table = pa.table({f"f{column}": batch[:, column] for column in range(FEATURES)})
    zscore = Zscore(FEATURES, half_life_rows=100_000.0, warm_up_rows=100, clip=5.0, min_variance=1e-6)
    river = StandardScaler()

    def numpy_moments() -> None:
        batch.mean(0)
        batch.var(0)

    contestants: dict[str, Callable[[], None]] = {
        "zscore": lambda: zscore.update(batch),
        "numpy": numpy_moments,
        "river": lambda: river.learn_many(table),
    }
    calls = max(10, CALLS_ROWS // rows)
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            call()
            start_ns = process_time_ns()
            for _ in range(calls):
                call()
            spent[name].append((process_time_ns() - start_ns) / calls / 1000)
    of_numpy = [ours / theirs for ours, theirs in zip(spent["zscore"], spent["numpy"], strict=True)]
    of_river = [theirs / ours for ours, theirs in zip(spent["zscore"], spent["river"], strict=True)]
    return {
        **{f"{name}_us": round(statistics.median(times), 1) for name, times in spent.items()},
        "zscore_ratio_to_numpy": round(statistics.median(of_numpy), 2),
        "ratio_to_river": round(statistics.median(of_river), 1),
    }

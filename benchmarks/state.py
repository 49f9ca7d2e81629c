"""What a trainer's state costs, part by part, each beside its peer in the same run and in turns. One core, CPU time."""

import os
import platform
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import state_embeddings, state_features, state_zscore


def main(rounds: int = 5, cold_ids: int = 10_000_000) -> dict[str, Any]:
    """The figures of every part. Medians over the rounds. `peak_rss_mb` is that of a process with `cold_ids`."""
    return {
        "benchmark": "state",
        "machine": {"python": platform.python_version(), "cpus": os.cpu_count(), "load_1min": os.getloadavg()[0]},
        "rounds": rounds,
        **state_features.measure(rounds),
        **state_zscore.measure(rounds),
        **state_embeddings.measure(rounds, cold_ids),
    }


def show(report: dict[str, Any]) -> None:
    """The report as a table on standard error."""
    table = Table("figure", title="the trainer's state, one core", title_justify="left")
    table.add_column("value", justify="right")
    for name, value in report.items():
        if isinstance(value, int | float):
            table.add_row(name, f"{value:,}")
    Console(stderr=True).print(table)

"""The report of joiner.py as tables for people."""

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.joiner import ratio_to
from benchmarks.samples import Faults


def show(report: dict[str, Any]) -> None:
    """Print the medians on standard error."""
    console = Console(stderr=True)
    for case in (name for name in report if name.startswith("pages_of_")):
        measured = report[case]
        title = f"{report['broker']} broker to broker, {case.replace('_', ' ')}, {report['rounds']} rounds in turns: medians"
        table = Table("join", title=title, title_justify="left")
        for name in ("events/s", "with start", "CPU s/100k", "peak MB", "speed ratio", "faults"):
            table.add_column(name, justify="right")
        for name in (name for name in measured if isinstance(measured[name], dict)):
            figures = measured[name]
            ratio = measured.get(ratio_to(name))
            table.add_row(
                name,
                f"{figures['events_per_s']:,}",
                f"{figures['events_per_s_with_start']:,}",
                f"{figures['cpu_s_per_100k']:.2f}",
                f"{figures['peak_rss_mb']:,.0f}",
                f"{ratio:.2f}" if ratio else "",
                str(sum(figures[fault] for fault in Faults._fields)),
            )
        console.print(table)

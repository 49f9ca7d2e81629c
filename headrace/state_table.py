"""The report of `headrace state` as tables for people."""

from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table


def show(report: dict[str, Any]) -> None:
    """One row a partition and their totals; then offsets, rows by kind, and what was counted."""
    console = Console()
    console.print(_partitions(report))
    console.print(_offsets(report))
    if report["broker"] is None:
        console.print("no broker answers: without committed offsets and lag")
    console.print(_rows(report))
    for name, labels in report["totals"]["counts"].items():
        console.print(f"{name}: {', '.join(f'{label} {total:,}' for label, total in labels.items())}", soft_wrap=True)


def _partitions(report: dict[str, Any]) -> Table:
    is_joiner = "watermark_ms" in report["totals"]
    table = Table("partition", title=f"{report['service']}: {report['folder']}", title_justify="left", box=None)
    if is_joiner:
        for name in ("watermark (UTC)", "open pages", "items", "oldest open", "closes in", "labels", "waiting", "closed requests"):
            table.add_column(name, justify="right")
    for name in ("rows", "MB", "disk MB"):
        table.add_column(name, justify="right")
    for part in [*report["partitions"], report["totals"] | {"partition": "all"}]:
        cells = [str(part["partition"])]
        if is_joiner:
            cells += [_time(part["watermark_ms"]), f"{part['open_pages']:,}", f"{part['open_items']:,}", _time(part["oldest_open_ms"])]
            cells += [_seconds(part["oldest_closes_in_ms"])]
            cells += [f"{part[name]:,}" for name in ("label_feedback", "waiting_feedback", "closed_requests")]
        sizes = part["rows"].values()
        cells += [f"{sum(size.get('rows', 0) for size in sizes):,}", _mb(sum(size.get("bytes", 0) for size in sizes))]
        table.add_row(*cells, _mb(part["disk_bytes"]))
    return table


def _offsets(report: dict[str, Any]) -> Table:
    names = ("stored",) if report["broker"] is None else ("stored", "committed", "end", "lag")
    table = Table("partition", "topic", box=None)
    for name in names:
        table.add_column(name, justify="right")
    for part in report["partitions"]:
        for topic, offsets in part["offsets"].items():
            table.add_row(str(part["partition"]), topic, *("" if offsets[name] is None else f"{offsets[name]:,}" for name in names))
    return table


def _rows(report: dict[str, Any]) -> Table:
    table = Table("rows of kind", box=None)
    for name in ("rows", "MB"):
        table.add_column(name, justify="right")
    for kind, size in report["totals"]["rows"].items():
        if size:
            table.add_row(kind, f"{size['rows']:,}", _mb(size["bytes"]))
    return table


def _time(ms: int | None) -> str:
    return "" if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _seconds(ms: int | None) -> str:
    return "" if ms is None else f"{ms / 1000:,.1f} s"


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f}"

"""The demo's live view: one row a stage, then the policy. On a terminal it redraws; elsewhere it prints a line now and then."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

PLAIN_INTERVAL_S = 15.0


class StageRow(NamedTuple):
    """One stage as scraped now: totals since the run began. `lag_s` is None where a stage has no input topic."""

    stage: str
    up: bool
    rows_in: int
    rows_out: int
    rejected: int
    lag_s: float | None
    restarts: int


class View:
    """Shows successive snapshots; knows the one before, for rates."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._before: dict[str, StageRow] = {}
        self._before_s = 0.0
        self._printed_s = -PLAIN_INTERVAL_S

    def __enter__(self) -> "View":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, rows: Sequence[StageRow], report: Mapping[str, Any], elapsed_s: float, phase: str) -> None:
        """Draw what is known `elapsed_s` seconds after the start."""
        if self._live:
            self._live.update(self._draw(rows, report, elapsed_s, phase))
        elif elapsed_s - self._printed_s >= PLAIN_INTERVAL_S:
            self._printed_s = elapsed_s
            totals = ", ".join(f"{row.stage} {row.rows_in}->{row.rows_out}" for row in rows)
            self._console.print(f"{elapsed_s:5.0f} s {phase}: {totals}; {policy_line(report)}", highlight=False, soft_wrap=True)
        self._before = {row.stage: row for row in rows}
        self._before_s = elapsed_s

    def _draw(self, rows: Sequence[StageRow], report: Mapping[str, Any], elapsed_s: float, phase: str) -> Group:
        table = Table("stage", title=f"{self._title}   {elapsed_s:.0f} s   {phase}", title_justify="left")
        for name in ("in", "in/s", "out", "out/s", "lag s", "rejected", "restarts"):
            table.add_column(name, justify="right")
        seconds = max(elapsed_s - self._before_s, 1e-3)
        for row in rows:
            before = self._before.get(row.stage, row)
            table.add_row(
                Text(row.stage, style="" if row.up else "bold red"),
                f"{row.rows_in:,}",
                f"{max(0, row.rows_in - before.rows_in) / seconds:,.0f}",
                f"{row.rows_out:,}",
                f"{max(0, row.rows_out - before.rows_out) / seconds:,.0f}",
                "" if row.lag_s is None else f"{row.lag_s:.1f}",
                Text(f"{row.rejected:,}", style="yellow" if row.rejected else ""),
                Text(str(row.restarts), style="red" if row.restarts else ""),
            )
        return Group(table, Text(policy_line(report)))


def policy_line(report: Mapping[str, Any]) -> str:
    """The policy in one line: version served, reward of each arm with its interval, freshness."""
    reward = report.get("reward", {})
    arms = "  ".join(f"{arm} {interval(reward[arm])}" for arm in ("baseline", "exploration", "policy") if reward.get(arm, {}).get("pages"))
    fresh = report.get("freshness_s", {})
    freshness = f"  freshness p50 {fresh['p50']:.1f} s" if fresh.get("p50") is not None else ""
    return f"version {report.get('served_version') or '(baseline)'}   reward a page: {arms or 'none yet'}{freshness}"


def interval(arm: Mapping[str, Any]) -> str:
    """A mean with its 95 % confidence interval."""
    low, high = arm.get("ci95") or (None, None)
    bounds = f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else ""
    return f"{arm['mean']:.2f}{bounds} ({arm['pages']:,} pages)"

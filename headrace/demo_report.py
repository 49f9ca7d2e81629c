"""The demo's report: what the monitor counted, what died on the way, and whether the loop closed."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.demo_view import StageRow, interval


def assemble(
    monitored: Mapping[str, Any],
    rows: Sequence[StageRow],
    users: Mapping[str, Any],
    restarts: Counter[str],
    died: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """The report. `loop_closed` is the monitor's word: a version learned from this run, served, and was learned from again."""
    stages = {row.stage: {"in": row.rows_in, "out": row.rows_out, "rejected": row.rejected} for row in rows}
    if users and not restarts["users"]:  # their page is gone when they have left: what they wrote last is newer than the last scrape
        stages["users"] |= {"in": users["pages"], "out": sum(users["feedback"].values()), "rejected": sum(users["errors"].values())}
    for stage, seen in monitored.get("stages", {}).items():
        if stage in stages and seen.get("rejected"):
            stages[stage]["rejected_by_reason"] = seen["rejected"]
    return {
        "loop_closed": bool(monitored.get("loop_closed", False)),
        "stages": stages,
        "versions": monitored.get("versions", []),
        "served_version": monitored.get("served_version", ""),
        "user_state_reads": monitored.get("user_state_reads", {}),
        "reward": monitored.get("reward", {}),
        "freshness_s": monitored.get("freshness_s", {"p50": None, "p95": None}),
        "join": monitored.get("join", {}),
        "users": dict(users),
        "restarts": {name: n for name, n in restarts.items() if n},
        "died": list(died),
        "seconds": round(seconds, 1),
    }


def summarise(users_file: Path) -> dict[str, Any]:
    """What the simulated users wrote when they left; empty where they could not."""
    try:
        users: dict[str, Any] = json.loads(users_file.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return users


def print_report(console: Console, report: Mapping[str, Any]) -> None:
    """The report for people."""
    table = Table("stage", title="What went through", title_justify="left")
    for name in ("in", "out", "rejected", "restarts"):
        table.add_column(name, justify="right")
    for stage, counts in report["stages"].items():
        reasons = counts.get("rejected_by_reason", {})
        rejected = f"{counts['rejected']:,}" + (f" ({', '.join(f'{reason} {n}' for reason, n in reasons.items())})" if reasons else "")
        table.add_row(stage, f"{counts['in']:,}", f"{counts['out']:,}", rejected, str(report["restarts"].get(stage, 0)))
    console.print(table)
    versions = Table("version", title="Versions promoted", title_justify="left")
    for name in ("learned from", "pages served", "reward a page"):
        versions.add_column(name, justify="right")
    for version in report["versions"]:
        mean = version.get("reward_mean")
        learned = sum(version.get("learned_from", {}).values())
        versions.add_row(
            version["model_version"] or "(baseline)", f"{learned:,}", f"{version['pages']:,}", "" if mean is None else f"{mean:.3f}"
        )
    console.print(versions)
    for arm, reward in report["reward"].items():
        if reward.get("pages"):
            console.print(f"reward a page, {arm}: {interval(reward)}", highlight=False)
    fresh = report["freshness_s"]
    if fresh.get("p50") is not None:
        console.print(
            f"freshness (feedback -> first response that learned from it): p50 {fresh['p50']:.1f} s, p95 {fresh['p95']:.1f} s",
            highlight=False,
            soft_wrap=True,
        )
    for name, count in report["restarts"].items():
        console.print(f"[yellow]{name} ended {count} time(s) and was started again")
    verdict = "[bold green]the loop closed" if report["loop_closed"] else "[bold red]the loop did not close"
    console.print(f"{verdict}[/] after {report['seconds']:.0f} s; logs and models in {report['run']['folder']}", soft_wrap=True)

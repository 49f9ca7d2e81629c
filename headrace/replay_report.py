"""What a replay has to say: every row accounted for, the figures of the stages, and the terminal's view of both."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from headrace.logs.recorded_log import RecordedLog
from schemas.codec import UNREADABLE, batch_kinds, decode_served_state
from schemas.features import FeatureSpec
from schemas.state_path import is_path, is_there
from schemas.transition import reward_column


@dataclass
class RowLedger:
    """Which rows of the log were refused. A row of several events counts once, by the first of its refusals."""

    log: RecordedLog
    first: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Reason and detail by row."""

    def __post_init__(self) -> None:
        for refusal in self.log.refused:
            self.refuse(refusal.row, refusal.reason, refusal.detail)

    def refuse(self, row: int, reason: str, detail: str) -> None:
        """A row, or an event that it stands for, is refused."""
        self.first.setdefault(row, (reason, detail))

    @property
    def rows_used(self) -> int:
        """Rows all of whose events went through every stage."""
        return self.log.rows_in - len(self.first)

    def rejected(self) -> dict[str, int]:
        """Rows by reason, most frequent first."""
        reasons = Counter(reason for reason, _ in self.first.values())
        return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))

    def all_rejected(self) -> str:
        """The one line for a log of which nothing is left."""
        row, (reason, detail) = min(self.first.items())
        file, line = self.log.place(row)
        shown = ", ".join(f"{reason} {count}" for reason, count in self.rejected().items())
        return f"all {self.log.rows_in} rows rejected ({shown}); the first: {file} line {line}: {reason}: {detail}"

    def lines(self) -> list[dict[str, Any]]:
        """One object for each refused row, in the order of the log."""
        rows = []
        for row, (reason, detail) in sorted(self.first.items()):
            file, line = self.log.place(row)
            rows.append({"file": file, "line": line, "reason": reason, "detail": detail})
        return rows


@dataclass
class Tally:
    """Figures of samples and transitions, gathered batch by batch."""

    pages: int = 0
    pages_joined: int = 0
    sessions: int = 0
    transitions: int = 0
    reward_sum: float = 0.0
    part_sums: dict[str, float] = field(default_factory=dict)
    policies: Counter[str] = field(default_factory=Counter)
    """Pages by the policy that served them."""
    _delays_ms: list[np.ndarray[Any, np.dtype[np.int64]]] = field(default_factory=list)

    def on_samples(self, batch: pa.RecordBatch) -> None:
        """Count pages, those with any feedback, and the label delays."""
        if not batch.num_rows:
            return
        offsets = batch.column("source_offset").to_numpy()
        starts = np.flatnonzero(np.diff(offsets, prepend=offsets[0] - 1))
        delays = batch.column("label_delay_ms")
        joined = np.asarray(delays.is_valid().to_numpy(zero_copy_only=False), np.bool_)
        self.pages += len(starts)
        self.pages_joined += int(np.logical_or.reduceat(joined, starts).sum())
        self._delays_ms.append(np.asarray(delays.drop_null().to_numpy(), np.int64))

    def on_transitions(self, batch: pa.RecordBatch) -> None:
        """Add up rewards and sessions."""
        self.transitions += batch.num_rows
        self.policies.update(batch.column("policy").to_pylist())
        self.sessions += int(np.count_nonzero(batch.column("ends_session").to_numpy(zero_copy_only=False)))
        self.reward_sum += float(batch.column("reward").to_numpy().astype(np.float64).sum())
        for name in (*map(reward_column, batch_kinds(batch.schema)), "penalty_no_conversion", "penalty_left"):
            self.part_sums[name] = self.part_sums.get(name, 0.0) + float(batch.column(name).to_numpy().astype(np.float64).sum())

    def figures(self) -> dict[str, Any]:
        """The figures as they stand in the report; null where there is nothing to take one from."""
        delays_ms = np.concatenate(self._delays_ms) if self._delays_ms else np.empty(0, np.int64)
        return {
            "pages": self.pages,
            "sessions": self.sessions,
            "pages_by_policy": dict(sorted(self.policies.items())),
            "join_rate": self.pages_joined / self.pages if self.pages else None,
            "label_delay_s": {f"p{percent}": _quantile_s(delays_ms, percent) for percent in (50, 95)},
            "reward_mean": self.reward_sum / self.transitions if self.transitions else None,
            "reward_parts_mean": {name: total / self.transitions for name, total in self.part_sums.items()},
        }


class FeatureCoverage:
    """In which share of the pages each feature of the specification was there: a feature that never is teaches nothing."""

    def __init__(self, features: FeatureSpec) -> None:
        self._keys = {feature.name: feature.key for feature in features.read()}
        self._known = frozenset(self._keys.values())
        self._paths = frozenset(filter(is_path, self._known))
        self._present: Counter[frozenset[str]] = Counter()
        """Pages by which of the features they have: in a log there are few such sets."""

    def on_transitions(self, batch: pa.RecordBatch) -> None:
        """Look into the states of a batch; those that cannot be opened were refused."""
        for message in batch.column("exposure").to_pylist():
            try:
                state = decode_served_state(message).state
            except UNREADABLE:
                continue
            paths = (key for key in self._paths if is_there(state, key))
            self._present[self._known.intersection(state).difference(self._paths).union(paths)] += 1

    def shares(self) -> dict[str, float]:
        """From 0 (never) to 1, by feature."""
        pages = self._present.total()
        return {
            name: sum(n for keys, n in self._present.items() if key in keys) / pages if pages else 0.0 for name, key in self._keys.items()
        }


def _quantile_s(delays_ms: "np.ndarray[Any, np.dtype[np.int64]]", percent: int) -> float | None:
    """A delay that occurred, none between two."""
    return float(np.percentile(delays_ms, percent, method="inverted_cdf")) / 1000 if len(delays_ms) else None


def show_report(report: dict[str, Any], console: Console, wall_s: float) -> None:
    """The report for people, with the time that it took: that stands nowhere else."""
    console.print(f"replay of {', '.join(file['name'] for file in report['files'])}")
    rows = Table("", "rows")
    rows.add_row("in", f"{report['rows_in']:,}")
    rows.add_row("used", f"{report['rows_used']:,}")
    for reason, count in report["rejected"].items():
        rows.add_row(f"rejected: {reason}", f"{count:,}")
    console.print(rows)
    stages = Table("stage", "in", "out")
    for stage, counts in report["stages"].items():
        stages.add_row(stage, f"{counts['in']:,}", f"{counts['out']:,}")
    console.print(stages)
    delay = report["label_delay_s"]
    figures = Table("", "", show_header=False)
    figures.add_row("pages, sessions", f"{report['pages']:,}, {report['sessions']:,}")
    figures.add_row("pages with feedback", _shown(report["join_rate"]))
    figures.add_row("label delay (s), p50 and p95", f"{_shown(delay['p50'])}, {_shown(delay['p95'])}")
    figures.add_row("reward of a page", _shown(report["reward_mean"]))
    figures.add_row("V, A (mean)", f"{_shown(report['v_mean'])}, {_shown(report['a_mean'])}")
    console.print(figures)
    for note in report["notes"]:
        console.print(f"note: {note}", highlight=False)
    console.print(f"{wall_s:.1f} s, {report['rows_in'] / max(wall_s, 1e-9):,.0f} rows/s", highlight=False)


def _shown(figure: float | None) -> str:
    return "none" if figure is None else f"{figure:,.4f}"

"""The emission modes and the losses for delayed feedback, beside each other on KuaiRand: one model, taught online by what the joiner sends.

Prequential: at the end of every ten minutes of event time each model is first asked about the exposures of these minutes, which it has
not seen, and judged by their final labels; then it learns what its stream has sent by then. `oracle` learns the final labels of these
exposures at once: no stream can know them. KuaiRand says how long each video was played, and our reader's rule is that a long view is
known when playing ends: so the real delays are minutes. Two more variants stretch them, and are labelled so; the labels stay the same.

The first third of the time warms up; each contestant has the learning rate that gave it the lowest log loss in the second third (first
seed); the figures are those of the last third.
"""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.click_model import Loss, OnlineLearner, RowTensors
from benchmarks.delay_log import CHUNK_MS, TARGET, DelayLog, Rows, emitted, final_rows, read_log
from headrace.settings import ConfigError
from joiner.labels import NEVER, Ints
from joiner.settings import JoinerSettings
from trainer.delayed_feedback import (
    fake_negative_calibrated,
    fake_negative_weighted_loss,
    fsiw_loss,
    log_loss,
    sampled_logits,
)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
SCOPE = "KuaiRand, long_view: a logistic regression taught online, asked before it is taught; judged by final labels"
MINUTE_MS, HOUR_MS = 60_000, 3_600_000
LEARNING_RATES = (0.05, 0.1, 0.2, 0.4)
BIN_MS = 6 * HOUR_MS
"""Of the curves over time."""
KEEP_RATE = 0.25
STRETCH, MEAN_MS = 100, 4 * HOUR_MS
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "window": {"emission_mode": "window"},
    "eager": {"emission_mode": "eager"},
    "fast": {"emission_mode": "fast"},
    "fast + wait": {"emission_mode": "fast"},
    "1/4 negatives": {"emission_mode": "window", "negative_keep_rate": KEEP_RATE},
}


@dataclass(frozen=True)
class Variant:
    """Which delays the target's positives have; `wait_ms` is that of the stream with a wait."""

    title: str
    window_ms: int
    wait_ms: int
    delays_ms: Callable[[Ints, np.random.Generator], Ints]
    """Of the P positives, from the real ones [P]."""
    is_drawn: bool = False


def _exponential(real_ms: Ints, rng: np.random.Generator) -> Ints:
    """Cut off at the window: every label stays what it is."""
    u = rng.random(len(real_ms)) * (1.0 - np.exp(-24 * HOUR_MS / MEAN_MS))
    return np.asarray(-MEAN_MS * np.log1p(-u), np.int64)


VARIANTS = {
    "real": Variant("the log's own delays (play time)", 30 * MINUTE_MS, MINUTE_MS, lambda real_ms, _: real_ms),
    "stretched": Variant(f"STRETCHED: play time x {STRETCH}", 24 * HOUR_MS, HOUR_MS, lambda real_ms, _: real_ms * STRETCH),
    "drawn": Variant("DRAWN: exponential, mean 4 h, whatever the row", 24 * HOUR_MS, HOUR_MS, _exponential, is_drawn=True),
}


@dataclass(frozen=True)
class Contestant:
    """A stream, the loss that learns from it, and whether its predictions are calibrated (FNC)."""

    stream: str
    loss: Loss
    is_calibrated: bool = False


def _plain(logit_B: torch.Tensor, rows: RowTensors) -> torch.Tensor:
    return log_loss(logit_B, rows.positive)


CONTESTANTS = {
    "oracle": Contestant("oracle", _plain),
    "window": Contestant("window", _plain),
    "eager": Contestant("eager", _plain),
    "fast, plain": Contestant("fast", _plain),
    "fast, FNW": Contestant("fast", lambda z, rows: fake_negative_weighted_loss(z, rows.positive, rows.come_by)),
    "fast, FNW by column": Contestant("fast", lambda z, rows: log_loss(z, rows.positive, rows.weight_fake_negative)),
    "fast, FNC": Contestant("fast", _plain, is_calibrated=True),
    "fast + wait, plain": Contestant("fast + wait", _plain),
    "fast + wait, FNW": Contestant("fast + wait", lambda z, rows: fake_negative_weighted_loss(z, rows.positive, rows.come_by)),
    "fast + wait, FNC": Contestant("fast + wait", _plain, is_calibrated=True),
    "fast + wait, FSIW": Contestant("fast + wait", lambda z, rows: fsiw_loss(z, rows.positive, rows.come_by, rows.is_late)),
    "fast + wait, FSIW by column": Contestant("fast + wait", lambda z, rows: log_loss(z, rows.positive, rows.weight_fsiw)),
    "1/4 negatives, uncorrected": Contestant("1/4 negatives", _plain),
    "1/4 negatives, corrected": Contestant("1/4 negatives", lambda z, rows: log_loss(sampled_logits(z, rows.log_keep), rows.positive)),
}


def predictions(log: DelayLog, stream: list[Rows], contestant: Contestant, learning_rate: float, seed: int) -> Floats:
    """P(positive) of every exposure [N], each asked before anything of its chunk was learned."""
    learner = OnlineLearner(log, contestant.loss, learning_rate, seed)
    found, come_by = np.empty(len(log.shown_ms)), 0.0
    for (start, end), rows in zip(pairwise(log.chunk_starts()), stream, strict=True):
        probability_B = learner.predict(start, end).double().sigmoid()
        found[start:end] = (fake_negative_calibrated(probability_B, come_by) if contestant.is_calibrated else probability_B).numpy()
        learner.learn(rows)
        if not rows.is_late.all():
            come_by = float(rows.come_by[~rows.is_late].mean())
    return found


def auc(is_positive: Bools, score: Floats) -> float:
    """Area under the ROC curve, ties half."""
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    positives = int(is_positive.sum())
    return float((rank[is_positive].sum() - positives * (positives + 1) / 2) / (positives * (len(score) - positives)))


def mean_log_loss(is_positive: Bools, probability: Floats) -> float:
    """Probabilities at least 1e-6 away from 0 and 1."""
    p = np.clip(probability, 1e-6, 1 - 1e-6)
    return float(-np.where(is_positive, np.log(p), np.log1p(-p)).mean())


def in_third(log: DelayLog, third: int) -> Bools:
    """The exposures [N] of the log's first, second or last third of time: 0, 1, 2."""
    age_ms = log.shown_ms - log.shown_ms[0]
    return np.asarray(np.minimum(3 * age_ms // max(1, int(age_ms[-1])), 2) == third)


def judged(log: DelayLog, probability: Floats) -> dict[str, Any]:
    """The figures of the last third, and the curves over the whole time."""
    age_ms, of = log.shown_ms - log.shown_ms[0], in_third(log, 2)
    bins = [age_ms // BIN_MS == number for number in range(int(age_ms[-1] // BIN_MS) + 1)]
    positive = log.is_positive
    return {
        "auc": auc(positive[of], probability[of]),
        "log_loss": mean_log_loss(positive[of], probability[of]),
        "calibration": float(probability[of].sum() / positive[of].sum()),
        "log_loss_by_time": [mean_log_loss(positive[of], probability[of]) if of.any() else None for of in bins],
        "calibration_by_time": [float(probability[of].sum() / positive[of].sum()) if positive[of].any() else None for of in bins],
    }


def best_learning_rate(log: DelayLog, stream: list[Rows], contestant: Contestant, advance: Callable[[], None]) -> float:
    """Of `LEARNING_RATES`, by the second third."""
    of = in_third(log, 1)
    losses = []
    for learning_rate in LEARNING_RATES:
        losses.append(mean_log_loss(log.is_positive[of], predictions(log, stream, contestant, learning_rate, 0)[of]))
        advance()
    return LEARNING_RATES[int(np.argmin(losses))]


def streams(log: DelayLog, variant: Variant, seed: int, advance: Callable[[], None]) -> dict[str, list[Rows]]:
    """What the joiner sends, by stream."""
    delay_ms = np.full(len(log.delay_ms), NEVER)
    delay_ms[log.is_positive] = variant.delays_ms(log.delay_ms[log.is_positive], np.random.default_rng(seed))
    found = {"oracle": [final_rows(log, start, end) for start, end in pairwise(log.chunk_starts())]}
    for name, more in SETTINGS.items():
        wait_ms = variant.wait_ms if name == "fast + wait" else 0
        settings = JoinerSettings(feedback_kinds=(TARGET,), join_window_ms=variant.window_ms, fast_wait_ms=wait_ms, **more)
        found[name] = emitted(log, delay_ms, settings)
        advance()
    return found


def main(path: Path, seeds: int, names: Sequence[str] = (*VARIANTS,), exposures: int | None = None) -> dict[str, Any]:
    """Measure these variants; the JSON report."""
    torch.set_num_threads(1)  # batches are small: threads cost more than they give
    console = Console(stderr=True)
    with console.status(f"reading {path}"):
        log = read_log(path, exposures)
    if not all(0 < log.is_positive[in_third(log, third)].mean() < 1 for third in range(3) if in_third(log, third).any()):
        raise ConfigError(f"{path}: every third of the log's time needs exposures with and without {TARGET}")
    report: dict[str, Any] = {
        "benchmark": "delay",
        "scope": SCOPE,
        "machine": {"python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count()},
        "target": TARGET,
        "exposures": len(log.shown_ms),
        "positives": int(log.is_positive.sum()),
        "judged": int(in_third(log, 2).sum()),
        "hours": round(float(log.shown_ms[-1] - log.shown_ms[0]) / HOUR_MS, 1),
        "chunk_ms": CHUNK_MS,
        "bin_ms": BIN_MS,
        "seeds": seeds,
        "variants": {},
    }
    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for name in names:
            variant = VARIANTS[name]
            joins = len(SETTINGS) * (seeds if variant.is_drawn else 1)
            task = progress.add_task(name, total=joins + len(CONTESTANTS) * (len(LEARNING_RATES) + seeds))
            report["variants"][name] = _measured(log, variant, seeds, lambda task=task: progress.advance(task))  # type: ignore[misc]
    return report


def _measured(log: DelayLog, variant: Variant, seeds: int, advance: Callable[[], None]) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    rates: dict[str, float] = {}
    sent: dict[str, list[Rows]] = {}
    for seed in range(seeds):
        if variant.is_drawn or not sent:
            sent = streams(log, variant, seed, advance)
        for name, contestant in CONTESTANTS.items():
            stream = sent[contestant.stream]
            if name not in rates:
                rates[name] = best_learning_rate(log, stream, contestant, advance)
            runs[name].append(judged(log, predictions(log, stream, contestant, rates[name], seed)))
            advance()
    real_ms, last = log.delay_ms[log.is_positive], sent["fast + wait"][-36:]  # six hours
    quantiles_s = np.quantile(variant.delays_ms(real_ms, np.random.default_rng(0)), [0.1, 0.5, 0.9, 1.0]) / 1000
    return {
        "title": variant.title,
        "window_s": variant.window_ms / 1000,
        "wait_s": variant.wait_ms / 1000,
        "delay_s": dict(zip(("p10", "p50", "p90", "max"), (round(float(of), 1) for of in quantiles_s), strict=True)),
        "come_by_after_wait": round(float(np.mean([rows.come_by[~rows.is_late].mean() for rows in last if not rows.is_late.all()])), 3),
        "contestants": {name: {"learning_rate": rates[name], **_over_seeds(of, runs["oracle"])} for name, of in runs.items()},
    }


def _over_seeds(runs: list[dict[str, Any]], oracle: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds; the log loss also over the oracle's of the same seed. Curves: of seed 0."""
    figures = {name: [run[name] for run in runs] for name in ("auc", "log_loss", "calibration")}
    figures["log_loss_over_oracle"] = [run["log_loss"] - best["log_loss"] for run, best in zip(runs, oracle, strict=True)]
    spread = {name: {"mean": round(float(np.mean(of)), 5), "sd": round(float(np.std(of)), 5)} for name, of in figures.items()}
    curves = {name: [None if of is None else round(of, 4) for of in runs[0][name]] for name in ("log_loss_by_time", "calibration_by_time")}
    return {**spread, **curves}


def show(report: dict[str, Any]) -> None:
    """The report as tables on standard error."""
    console = Console(stderr=True)
    console.print(report["scope"])
    console.print("loss: log loss; over: that over the oracle's; ratio: predicted / actual positives; rate: the learning rate chosen")
    for variant in report["variants"].values():
        delay = ", ".join(f"{name} {of / 60:.1f} min" for name, of in variant["delay_s"].items())
        wait = f"wait {variant['wait_s'] / 60:g} min: {variant['come_by_after_wait']:.0%} of positives have come by then"
        title = f"{variant['title']}; {delay}; window {variant['window_s'] / 60:g} min; {wait}"
        table = Table(title=title, title_justify="left", box=None)
        table.add_column("stream, loss", no_wrap=True)
        for column in ("loss", "over", "sd", "AUC", "ratio", "sd", "rate"):
            table.add_column(column, justify="right")
        for name, of in variant["contestants"].items():
            over, ratio = of["log_loss_over_oracle"], of["calibration"]
            losses = (f"{figure:.4f}" for figure in (of["log_loss"]["mean"], over["mean"], over["sd"]))
            rest = (f"{figure:.3f}" for figure in (of["auc"]["mean"], ratio["mean"], ratio["sd"]))
            table.add_row(name, *losses, *rest, f"{of['learning_rate']:g}")
        console.print(table)

"""Curves of `headrace bench delay` over time, as an SVG picture: a row of two panels for each variant."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.svg import line, picture, text

COLOURS = {
    "oracle": "#000000",
    "window": "#1f5fa8",
    "eager": "#3bb0c9",
    "fast, plain": "#c62828",
    "fast, FNW": "#2e7d32",
    "fast, FNC": "#9e9d24",
    "fast + wait, FNW": "#c8641e",
    "fast + wait, FSIW": "#7b1fa2",
}
"""The others would only be more lines of the same kind."""
WIDTH, PANEL_WIDTH, PANEL_HEIGHT = 960, 400, 170
LEFT, TOP, GAP, LEGEND = 55, 55, 45, 50
"""Margin of the panels, height of their titles, space below a panel, height of the legend, in px."""


class Panel(NamedTuple):
    """Curves by contestant over the log's bins of time; None and what lies out of `low`..`high` is cut off."""

    title: str
    curves: dict[str, Sequence[float | None]]
    low: float
    high: float
    ticks: tuple[float, ...]
    days: float


def svg(report: dict[str, Any]) -> str:
    """The picture."""
    variants = list(report["variants"].values())
    height = LEGEND + len(variants) * (TOP + PANEL_HEIGHT + GAP)
    parts = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        x, y = LEFT + number % 4 * 220, 18 + number // 4 * 20
        parts += [line([(x, y - 4), (x + 24, y - 4)], colour, 2.5), text(x + 30, y, name, "start")]
    for number, variant in enumerate(variants):
        top = LEGEND + number * (TOP + PANEL_HEIGHT + GAP) + TOP
        parts.append(text(LEFT, top - 32, variant["title"], "start", 15))
        for column, panel in enumerate(_panels(variant, report["bin_ms"])):
            parts += _drawn(panel, LEFT + column * (PANEL_WIDTH + LEFT + 20), top)
    return picture(WIDTH, height, parts)


def _panels(variant: dict[str, Any], bin_ms: int) -> tuple[Panel, Panel]:
    curves = {name: variant["contestants"][name] for name in COLOURS}
    oracle = curves["oracle"]["log_loss_by_time"]
    over: dict[str, Sequence[float | None]] = {
        name: [None if loss is None else loss - best for loss, best in zip(of["log_loss_by_time"], oracle, strict=True)]
        for name, of in curves.items()
    }
    days = len(oracle) * bin_ms / 86_400_000
    return (
        Panel("log loss over the oracle's", over, -0.01, 0.1, (0.0, 0.05, 0.1), days),
        Panel(
            "predicted / actual positives",
            {name: of["calibration_by_time"] for name, of in curves.items()},
            0.5,
            1.6,
            (0.5, 1.0, 1.5),
            days,
        ),
    )


def _drawn(panel: Panel, left: float, top: float) -> list[str]:
    def at(day: float, value: float) -> tuple[float, float]:
        above = (min(max(value, panel.low), panel.high) - panel.low) / (panel.high - panel.low)
        return left + day / panel.days * PANEL_WIDTH, top + (1 - above) * PANEL_HEIGHT

    parts = [text(left, top - 12, panel.title, "start")]
    for tick in panel.ticks:
        parts += [line([at(0, tick), at(panel.days, tick)], "#ddd"), text(left - 8, at(0, tick)[1] + 4, f"{tick:g}", "end", 12)]
    parts += [
        text(at(day, 0)[0], top + PANEL_HEIGHT + 18, f"day {day + 1}", "start", 12) for day in range(int(panel.days) + (panel.days % 1 > 0))
    ]
    for name, curve in panel.curves.items():
        middles = [(number + 0.5) / len(curve) * panel.days for number in range(len(curve))]
        points = [at(day, value) for day, value in zip(middles, curve, strict=True) if value is not None]
        parts.append(line(points, COLOURS[name], 1.8))
    return parts

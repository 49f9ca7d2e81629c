"""The report of `headrace features check` as tables and as an SVG picture: a panel a feature."""

import math
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.svg import line, picture, text
from schemas.features import FeatureSpec

COLUMNS = 4
WIDTH, HEIGHT = 250, 170
"""Of a panel, in px as all sizes."""
LEFT, RIGHT, TOP, BOTTOM = 12, 12, 40, 30
DECADES = 6
"""Of shares, from 100 % down: the same in every panel."""
BLUE, ORANGE = "#1f5fa8", "#c8641e"


def show(report: dict[str, Any], console: Console) -> None:
    """The figures for people."""
    table = Table(title=f"{report['states']:,} states", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("feature", overflow="fold")
    table.add_column("kind")
    for name in ("cover", "p1 .. p99", "skew", "ids", "top id", "shared", "cut"):
        table.add_column(name, justify="right", no_wrap=True)
    for feature in report["features"]:
        table.add_row(
            feature["name"],
            feature["kind"],
            _share(feature.get("coverage")),
            _range(feature),
            _number(feature.get("skewness")),
            f"{feature['rows_used']:,} rows" if "rows_used" in feature else f"{feature['distinct']:,}" if "distinct" in feature else "",
            _share(feature.get("top_share")),
            _share(feature.get("shared_rows")),
            _share(feature.get("cut")),
        )
    console.print(table)
    for feature in report["features"]:
        for problem in feature["problems"]:
            console.print(f"{feature['name']}: {problem}", highlight=False, soft_wrap=True)
    if report["not_read"]:
        keys = ", ".join(f"{key} ({share:.0%})" for key, share in report["not_read"].items())
        console.print(f"no feature reads: {keys}", highlight=False, soft_wrap=True)
    if report["unreadable"]:
        console.print(f"{report['unreadable']:,} exposures cannot be read", highlight=False)


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _number(number: float | None) -> str:
    return "" if number is None else f"{number:,.4g}"


def _range(feature: dict[str, Any]) -> str:
    for low, high in (("p01", "p99"), ("length_p01", "length_p99"), ("ids_p50", "ids_p95")):
        if feature.get(low) is not None:
            return f"{_number(feature[low])} .. {_number(feature[high])}"
    return ""


def svg(report: dict[str, Any]) -> str:
    """Numbers as histograms, ids as the share of each by its rank, both axes logarithmic; features without values are said to be so."""
    panels = [feature for feature in report["features"] if feature["kind"] != "crosses"]
    columns = min(COLUMNS, len(panels))
    parts: list[str] = []
    for place, feature in enumerate(panels):
        parts += _panel(feature, place % columns * WIDTH, place // columns * HEIGHT)
    return picture(columns * WIDTH, math.ceil(len(panels) / columns) * HEIGHT, parts)


def _panel(feature: dict[str, Any], left: float, top: float) -> list[str]:
    name = feature["name"] if len(feature["name"]) <= 28 else feature["name"][:27] + "…"
    parts = [
        text(left + LEFT, top + 18, _escaped(name), "start", 13),
        text(left + LEFT, top + 33, f"{feature['kind']}, in {feature['coverage']:.1%} of states", "start", 10, "#777"),
        line([(left + LEFT, top + HEIGHT - BOTTOM), (left + WIDTH - RIGHT, top + HEIGHT - BOTTOM)], "#999"),
    ]
    histogram = feature.get("histogram") or feature.get("length_histogram")
    if histogram:
        return parts + _bars(histogram, left, top)
    if feature.get("shares_by_rank"):
        return parts + _curve(feature, left, top)
    return [*parts, text(left + WIDTH / 2, top + HEIGHT / 2, "no values", size=12, colour="#999")]


def _bars(histogram: dict[str, Any], left: float, top: float) -> list[str]:
    counts = histogram["counts"]
    width, height = (WIDTH - LEFT - RIGHT) / len(counts), HEIGHT - TOP - BOTTOM
    bars = [
        f'<rect x="{left + LEFT + place * width:.1f}" y="{top + HEIGHT - BOTTOM - height * count / max(counts):.1f}" '
        f'width="{width - 0.5:.1f}" height="{height * count / max(counts):.1f}" fill="{BLUE}"/>'
        for place, count in enumerate(counts)
    ]
    below = top + HEIGHT - 14
    return [
        *bars,
        text(left + LEFT, below, _number(histogram["low"]), "start", 10),
        text(left + WIDTH - RIGHT, below, _number(histogram["high"]), "end", 10),
    ]


def _curve(feature: dict[str, Any], left: float, top: float) -> list[str]:
    shares = feature["shares_by_rank"]
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(rank: int, share: float) -> tuple[float, float]:
        along = math.log10(rank) / (math.log10(len(shares)) or 1.0)
        return left + LEFT + width * along, top + TOP + height * min(1.0, -math.log10(share) / DECADES)

    ranks = sorted({min(len(shares), round(len(shares) ** (step / 60))) for step in range(61)})
    points = [at(rank, shares[rank - 1]) for rank in ranks]
    grid: list[str] = []
    for share, label in ((1.0, "100 %"), (1e-2, "1 %"), (1e-4, "0.01 %")):
        _, y = at(1, share)
        # each where the curve seldom is: it falls from the top left to the right
        x, anchor = (left + WIDTH - RIGHT, "end") if share == 1.0 else (left + LEFT, "start")
        grid += [line([(left + LEFT, y), (left + WIDTH - RIGHT, y)], "#ddd"), text(x, y + 10, label, anchor, 8, "#999")]
    below = top + HEIGHT - 14
    return [
        *grid,
        line(points, ORANGE, 2),
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{ORANGE}"/>' for x, y in points),
        text(left + LEFT, below, f"most frequent: {shares[0]:.2%}", "start", 10),
        text(left + WIDTH - RIGHT, below, f"{feature['distinct']:,} ids", "end", 10),
    ]


def _escaped(name: str) -> str:
    return name.replace("&", "&amp;").replace("<", "&lt;")


def markdown_table(spec: FeatureSpec) -> str:
    """The specification as a table for documentation."""
    rows = ["| feature | kind | reads | default | normalisation, pooling | table |", "|---|---|---|---|---|---|"]
    for kind in FeatureSpec.model_fields:
        for feature in getattr(spec, kind) if kind != "hash" else ():
            described = feature.model_dump(mode="json")
            reads = " x ".join(described["of"]) if "of" in described else feature.key
            how = described.get("pooling") or described.get("normalisation") or _windows(described)
            if "length" in described:
                how += f", newest {described['length']}"
            if "size" in described:
                how += f", {described['size']} numbers"
            row_count = getattr(feature, "rows", described.get("buckets"))
            table = f"{row_count:,} x {described['dim']}" if row_count else ""
            if described.get("table") == "dynamic":
                table = f"dynamic x {described['dim']}"
            default = "" if described.get("default") in (None, "", []) else described["default"]
            rows.append(f"| `{feature.name}` | {kind} | `{reads}` | {default} | {how.strip(', ')} | {table} |")
    return "\n".join(rows).replace("|  |", "| |").replace("|  |", "| |")


def _windows(described: dict[str, Any]) -> str:
    return f"{', '.join(described['windows'])}: {described['digits']} digits" if "windows" in described else ""

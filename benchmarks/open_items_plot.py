"""CPU time an event by the number of open items, as an SVG picture."""

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.svg import line, picture, text

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 40, 40, 50
"""Margins of the axes, in px as the size."""


def svg(levels: Sequence[dict[str, Any]], title: str) -> str:
    """Open items on a logarithmic axis, CPU us an event from 0 on the other."""
    highest = max(level["cpu_us_per_event"] for level in levels)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if highest / step <= 6)
    top = step * math.ceil(highest / step)
    first, last = (math.log10(edge(level["open_items"] for level in levels)) for edge in (min, max))

    def at(open_items: float, cpu_us: float) -> tuple[float, float]:
        along = (math.log10(open_items) - first) / (last - first or 1)
        return LEFT + along * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - cpu_us / top * (HEIGHT - TOP - BOTTOM)

    parts = [text(LEFT, 22, title, "start", 15), text(WIDTH / 2, HEIGHT - 8, "open items")]
    for tick in range(0, top + 1, step):
        _, y = at(10**first, tick)
        parts += [line([(LEFT, y), (WIDTH - RIGHT, y)], "#ddd"), text(LEFT - 8, y + 4, str(tick), "end")]
    for name, label, above, colour in (
        ("cpu_us_per_event", "joiner and store, all threads", 10, "#1f5fa8"),
        ("cpu_us_per_event_of_rocksdb_threads", "of it RocksDB's own threads", 28, "#c8641e"),
        ("dict_cpu_us_per_event", "a bare dict of the same requests", 10, "#4a8a3c"),
    ):
        points = [at(level["open_items"], level[name]) for level in levels]
        parts.append(line(points, colour, 2))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in points]
        parts.append(text(points[0][0] + 8, points[0][1] - above, label, "start", 13, colour))
    parts += [text(at(level["open_items"], 0)[0], HEIGHT - BOTTOM + 18, f"{level['open_items']:.1e}") for level in levels]
    return picture(WIDTH, HEIGHT, parts)

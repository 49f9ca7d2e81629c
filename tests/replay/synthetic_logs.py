"""Small logs in the formats of the public ones, made up row by row."""

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KUAIRAND_COLUMNS = (
    "user_id video_id date hourmin time_ms is_click is_like is_follow is_comment is_forward is_hate long_view play_time_ms duration_ms "
    "profile_stay_time comment_stay_time is_profile_enter is_rand tab"
).split()
"""All columns of KuaiRand's log files, in their order."""
MONDAY_MS = 1_650_816_000_000
"""2022-04-25 00:00 in UTC+8 (2022-04-24 16:00 UTC)."""
SATURDAY_S = 1_511_539_200
"""2017-11-25 00:00 in UTC+8."""


def kuairand_row(user_id: int, video_id: int, time_ms: int, **cells: Any) -> dict[str, Any]:
    """One exposure; what is not said is 0."""
    return {**dict.fromkeys(KUAIRAND_COLUMNS, 0), "date": 20220425, "user_id": user_id, "video_id": video_id, "time_ms": time_ms, **cells}


def kuairand_rows(pages: int, seed: int = 0) -> list[dict[str, Any]]:
    """Seeded pages of a dozen users within some hours."""
    rng = np.random.default_rng(seed)
    rows = []
    for page in range(pages):
        clicked = int(rng.random() < 0.4)
        rows.append(
            kuairand_row(
                int(rng.integers(12)),
                int(rng.integers(100)),
                MONDAY_MS + page * 60_000 + int(rng.integers(60_000)),
                is_click=clicked,
                is_like=int(rng.random() < 0.1),
                long_view=int(rng.random() < 0.3),
                play_time_ms=int(rng.integers(1, 60_000)) if rng.random() < 0.8 else 0,
                duration_ms=30_000,
                tab=int(rng.integers(3)),
            )
        )
    return rows


def write_kuairand_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, KUAIRAND_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_kuairand_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def write_taobao(path: Path, rows: Sequence[tuple[Any, ...]], tail: str = "") -> Path:
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows) + tail)
    return path


def taobao_rows(pages: int, seed: int = 0) -> list[tuple[int, int, int, str, int]]:
    """Seeded page views, some of them followed by a reaction."""
    rng = np.random.default_rng(seed)
    rows = []
    for page in range(pages):
        user, item, time_s = int(rng.integers(9)), int(rng.integers(50)), SATURDAY_S + page * 120
        rows.append((user, item, item % 7, "pv", time_s))
        if rng.random() < 0.3:
            rows.append((user, item, item % 7, str(rng.choice(["cart", "fav", "buy"])), time_s + int(rng.integers(1, 100))))
    return rows


def exposure(request_id: str, user_id: str, ts_ms: int, items: Sequence[str] = ("i-1",), **fields: Any) -> dict[str, Any]:
    shown = [{"item_id": item, "position": position} for position, item in enumerate(items)]
    page = {"request_id": request_id, "user_id": user_id, "ts_ms": ts_ms, "state": {"hour": 9.0}, "action": [1.0], "items": shown}
    return {"exposure": {**page, **fields}}


def feedback(
    event_id: str, request_id: str, user_id: str, ts_ms: int, item_id: str = "i-1", kind: str = "click", **fields: Any
) -> dict[str, Any]:
    reaction = {"event_id": event_id, "request_id": request_id, "user_id": user_id, "item_id": item_id, "ts_ms": ts_ms, "kind": kind}
    return {"feedback": {**reaction, **fields}}


def write_ndjson(path: Path, lines: Sequence[dict[str, Any] | str]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

"""How long after its page a transition leaves, in the modes `complete` and `early`: joiner and collector in memory, second by second.

The clock is event time, so that the figures are those of the modes and not of a machine: what a live system's batches, brokers and
polling add comes on top. Users page every twenty seconds; clicks come after three seconds in the mean, one in ten after a minute.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from experience.sessions import PartitionSessions, topics_of
from experience.settings import ExperienceSettings
from headrace.memory_rows import InMemory
from headrace.step import Outcome, Record
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings
from schemas.codec import decode_batch
from schemas.exposure import ExposedItem, Exposure, encode_exposure
from schemas.feedback import Feedback, encode_feedback
from schemas.topics import EXPOSURES, FEEDBACK, TRANSITIONS

START_MS = 1_700_000_000_000
WINDOW_MS, WAIT_MS, GAP_MS = 600_000, 5_000, 1_800_000
PAGE_INTERVAL_S, PAGES_A_SESSION = 20.0, 8
Events = dict[int, list[tuple[str, bytes]]]
"""By second."""


def events(users: int, minutes: int, rng: np.random.Generator) -> Events:
    """One session a user, begun some time in these minutes."""
    by_second: Events = defaultdict(list)
    for user in range(users):
        at_s = float(rng.uniform(0, 60 * minutes))
        for step in range(1 + int(rng.poisson(PAGES_A_SESSION - 1))):
            page = f"r{user}-{step}"
            ts_ms = START_MS + int(1000 * at_s)
            items = [ExposedItem(f"i{place}", place) for place in range(4)]
            shown = Exposure(request_id=page, user_id=f"u{user}", ts_ms=ts_ms, state={"x": 1.0}, action=[1.0], items=items)
            by_second[int(at_s)].append((EXPOSURES, encode_exposure(shown)))
            if rng.random() < 0.4:
                delay_s = float(rng.exponential(60.0 if rng.random() < 0.1 else 3.0))
                click = Feedback(
                    event_id=page, request_id=page, user_id=f"u{user}", item_id="i0", ts_ms=ts_ms + int(1000 * delay_s), kind="click"
                )
                by_second[int(at_s + delay_s)].append((FEEDBACK, encode_feedback(click)))
            at_s += float(rng.exponential(PAGE_INTERVAL_S))
    return by_second


def leave(by_second: Events, mode: Literal["complete", "early"]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The transitions, each with the second in which it left."""
    joined = JoinerSettings(join_window_ms=WINDOW_MS, emission_mode="fast", fast_wait_ms=WAIT_MS)
    settings = ExperienceSettings(session_gap_ms=GAP_MS, labels=mode)
    join = InMemory(partial(PartitionJoin, joined, 0))
    sessions = InMemory(partial(PartitionSessions, settings, 0))
    offsets: Counter[str] = Counter()

    def records(topic: str, values: list[bytes], now_ms: int) -> list[Record]:
        first, offsets[topic] = offsets[topic], offsets[topic] + len(values)
        return [Record(first + place, now_ms, value) for place, value in enumerate(values)]

    for second in range(max(by_second) + (WINDOW_MS + 2 * GAP_MS) // 1000):
        now_ms = START_MS + 1000 * (second + 1)
        outcomes: list[Outcome] = []
        for topic in (EXPOSURES, FEEDBACK):
            values = [value for of, value in by_second.get(second, []) if of == topic]
            outcomes.append(join.apply(topic, records(topic, values, now_ms), now_ms))
        outcomes.append(join.tick(now_ms))
        for output in [output for outcome in outcomes for output in outcome.outputs]:
            if output.topic in topics_of(settings):
                outcome = sessions.apply(output.topic, records(output.topic, [output.value], now_ms), now_ms)
                yield from _rows(outcome, second)
        yield from _rows(sessions.tick(now_ms), second)


def _rows(outcome: Outcome, second: int) -> Iterator[tuple[int, dict[str, Any]]]:
    for output in outcome.outputs:
        assert output.topic == TRANSITIONS, output.topic
        for row in decode_batch(output.value, TRANSITIONS)[0].to_pylist():
            yield second + 1, row


def main(users: int, minutes: int) -> dict[str, Any]:
    """Delays in seconds from a page to its transition, of pages that another one follows and of a session's last ones."""
    by_second = events(users, minutes, np.random.default_rng(0))
    report: dict[str, Any] = {
        "benchmark": "experience-latency",
        "users": users,
        "join_window_s": WINDOW_MS / 1000,
        "fast_wait_s": WAIT_MS / 1000,
        "session_gap_s": GAP_MS / 1000,
    }
    final: dict[str, dict[str, tuple[Any, ...]]] = {}
    for mode in ("complete", "early"):
        delays: dict[str, list[float]] = {"next_page": [], "session_end": [], "amendment": []}
        rows: dict[str, tuple[Any, ...]] = {}
        for second, row in leave(by_second, mode):
            what = "amendment" if row["revision"] else "session_end" if row["ends_session"] else "next_page"
            delays[what].append(second - (row["ts_ms"] - START_MS) / 1000)
            rows[row["transition_id"]] = (row["session_id"], row["step"], row["reward"], row["done"], row["next_exposure"])
        final[mode] = rows
        report[mode] = {
            what: {"transitions": len(found), **{f"p{percent}_s": round(float(np.percentile(found, percent)), 1) for percent in (50, 95)}}
            for what, found in delays.items()
            if found
        }
    report["mismatches"] = sum(final["complete"].get(name) != row for name, row in final["early"].items())
    report["mismatches"] += len(final["complete"].keys() ^ final["early"].keys())
    return report


def show(report: dict[str, Any]) -> None:
    """The report as a table on standard error."""
    table = Table("mode", "transition of", title="seconds of event time from a page to its transition")
    for name in ("transitions", "p50", "p95"):
        table.add_column(name, justify="right")
    for mode in ("complete", "early"):
        for what, found in report[mode].items():
            table.add_row(mode, what.replace("_", " "), f"{found['transitions']:,}", f"{found['p50_s']:,}", f"{found['p95_s']:,}")
    Console(stderr=True).print(table)

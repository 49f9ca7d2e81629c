import json
from functools import partial
from typing import Any

import pytest
from synthetic_logs import exposure, feedback

from experience.sessions import PartitionSessions
from experience.settings import ExperienceSettings
from headrace.memory_rows import InMemory, MemoryRows
from headrace.runner import Emitted, Event, InProcess, in_event_time_order, run
from headrace.step import Count, PartitionStep
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings
from schemas.codec import decode_batch
from schemas.topics import EXPOSURES, FEEDBACK, SAMPLES, TRANSITIONS

WINDOW_MS = 60_000
GAP_MS = 600_000
NOW_MS = 10_000_000


def chain_of(now_ms: int = NOW_MS) -> tuple[PartitionStep, PartitionSessions, int]:
    joiner, experience = JoinerSettings(join_window_ms=WINDOW_MS), ExperienceSettings(session_gap_ms=GAP_MS)
    return InMemory(partial(PartitionJoin, joiner, 0)), PartitionSessions(experience, 0, MemoryRows()), now_ms


def events(*lines: dict[str, Any]) -> list[Event]:
    """Lines of an NDJSON log as events, in their time order."""
    pages = [Event(line["exposure"]["ts_ms"], EXPOSURES, json.dumps(line["exposure"]).encode()) for line in lines if "exposure" in line]
    reactions = [Event(line["feedback"]["ts_ms"], FEEDBACK, json.dumps(line["feedback"]).encode()) for line in lines if "feedback" in line]
    return in_event_time_order(pages, reactions)


def rows(emitted: Emitted, topic: str) -> list[dict[str, Any]]:
    """All rows of a topic's messages, by user and time."""
    messages = emitted.samples if topic == SAMPLES else emitted.transitions
    found = [row for message in messages for row in decode_batch(message.value, topic)[0].to_pylist()]
    for row in found:
        row.pop("samples_offset", None)  # of the message: it depends on how the events were cut
    return sorted(found, key=lambda row: (row["user_id"], row["ts_ms"], row.get("item_id", "")))


def three_users(pages: int) -> list[Event]:
    lines = []
    for page in range(pages):
        user, ts_ms = f"u-{page % 3}", 1_000 + page * 7_000 + (2 * GAP_MS if page >= pages // 2 else 0)
        lines.append(exposure(f"r-{page}", user, ts_ms, items=["i-1", "i-2"]))
        if page % 4 == 0:
            lines.append(feedback(f"e-{page}", f"r-{page}", user, ts_ms + 3_000 + page % 11, item_id="i-2"))
        if page % 10 == 9:
            lines.append(feedback(f"l-{page}", f"r-{page}", user, ts_ms + 5_000, item_id="", kind="leave"))
        if page % 13 == 0:
            lines.append(feedback(f"x-{page}", f"r-none-{page}", user, ts_ms))
        if page % 17 == 0:
            lines.append(feedback(f"y-{page}", f"r-{page}", user, ts_ms + WINDOW_MS + 1))
    return events(*lines)


def test_pages_become_samples_and_transitions_and_the_end_of_the_log_closes_them_all() -> None:
    log = events(
        exposure("r-1", "u-1", 1_000),
        feedback("e-1", "r-1", "u-1", 4_000),
        exposure("r-2", "u-1", 9_000),
        exposure("r-3", "u-1", 9_000 + GAP_MS + 1),
    )
    emitted, chain = run(*chain_of()[:2], log, NOW_MS)
    assert [(row["request_id"], row["label_click"], row["label_delay_ms"]) for row in rows(emitted, SAMPLES)] == [
        ("r-1", 1.0, 3_000),
        ("r-2", 0.0, None),
        ("r-3", 0.0, None),
    ]
    assert [(row["transition_id"], row["session_id"], row["step"], row["done"]) for row in rows(emitted, TRANSITIONS)] == [
        ("r-1", "r-1", 0, False),
        ("r-2", "r-1", 1, True),
        ("r-3", "r-3", 0, True),
    ]
    assert emitted.dead_letters == []
    assert chain.counts["joiner"] == {Count("in", EXPOSURES): 3, Count("in", FEEDBACK): 1, Count("out", SAMPLES): 3}
    assert chain.counts["experience"] == {Count("in", SAMPLES): 3, Count("out", TRANSITIONS): 3}


@pytest.mark.parametrize("chunk_events", [1, 2, 7, 50, 5_000])
def test_the_result_does_not_depend_on_the_size_of_the_chunks(chunk_events: int) -> None:
    log = three_users(120)
    whole, _ = run(*chain_of()[:2], log, NOW_MS)
    cut, _ = run(*chain_of()[:2], log, NOW_MS, chunk_events)
    assert len(rows(whole, TRANSITIONS)) == 120
    assert rows(cut, TRANSITIONS) == rows(whole, TRANSITIONS)
    assert rows(cut, SAMPLES) == rows(whole, SAMPLES)
    refused = [sorted((letter.reason, letter.source_offset) for letter in emitted.dead_letters) for emitted in (cut, whole)]
    assert refused[0] == refused[1]
    assert {reason for reason, _ in refused[0]} == {"unknown_request", "late"}


def test_a_side_that_falls_silent_for_hours_of_event_time_does_not_close_windows_early() -> None:
    pages = [exposure(f"r-{hour}", "u-1", 1_000 + hour * 3_600_000) for hour in range(24)]
    log = events(*pages, feedback("e-1", "r-23", "u-1", 1_000 + 23 * 3_600_000 + WINDOW_MS))
    emitted, _ = run(*chain_of()[:2], log, 24 * 3_600_000 + WINDOW_MS, chunk_events=3)
    assert emitted.dead_letters == []
    assert [row["request_id"] for row in rows(emitted, SAMPLES) if row["label_click"]] == ["r-23"]


def test_messages_count_their_offsets_and_a_dead_letter_names_the_offset_of_its_event() -> None:
    log = events(exposure("r-1", "u-1", 1_000), feedback("e-1", "r-1", "u-1", 2_000), feedback("e-2", "r-2", "u-1", 3_000))
    emitted, _ = run(*chain_of()[:2], log, NOW_MS)
    assert [(letter.reason, letter.source_topic, letter.source_offset) for letter in emitted.dead_letters] == [
        ("unknown_request", FEEDBACK, 1)
    ]
    assert [message.offset for message in emitted.samples] == list(range(len(emitted.samples)))


def test_what_is_open_stays_open_until_the_log_is_closed() -> None:
    chain = InProcess(*chain_of())
    assert chain.feed(events(exposure("r-1", "u-1", 1_000), feedback("e-1", "r-1", "u-1", 2_000))) == Emitted()
    assert [row["transition_id"] for row in rows(chain.close(), TRANSITIONS)] == ["r-1"]


def test_an_empty_log_gives_nothing() -> None:
    emitted, chain = run(*chain_of()[:2], [], 0)
    assert emitted == Emitted()
    assert not any(chain.counts.values())

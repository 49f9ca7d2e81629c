"""The brokered pipeline beside the in-process runner: the same log gives the same transitions, whatever is killed meanwhile."""

import random
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pipeline
import pytest

from experience.sessions import PartitionSessions
from experience.settings import ExperienceSettings
from headrace.broker import create_topics, running
from headrace.memory_rows import InMemory
from headrace.runner import run
from headrace.settings import StreamSettings
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings

PAGES = 2_000
FAR_FUTURE_MS = pipeline.START_MS + 10**9


def in_process(events: list[tuple[int, Any]]) -> list[dict[str, Any]]:
    join = InMemory(partial(PartitionJoin, JoinerSettings(join_window_ms=pipeline.WINDOW_MS), 0))
    sessions = PartitionSessions(ExperienceSettings(session_gap_ms=pipeline.GAP_MS), 0, ())
    emitted, _ = run(join, sessions, [event for _, event in events], FAR_FUTURE_MS)
    return [row for message in emitted.transitions for row in pipeline.rows_of(message.value)]


def by_id(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One row an id; a row that was sent twice must be the same row twice."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        assert found.setdefault(row["transition_id"], row) == row
    return found


def check_pipeline(broker: str, folder: Path, kills: int, seed: int, session_timeout_s: float = 3.0) -> None:
    create_topics(StreamSettings(broker=broker))
    events = pipeline.log_of(PAGES, seed)
    expected = by_id(in_process(events))
    assert len(expected) == PAGES

    with pipeline.workers(broker, folder, f"test-{seed}", session_timeout_s) as processes:
        feeding = threading.Thread(target=pipeline.produce, args=(broker, events, 6.0 * kills))
        feeding.start()
        rng = random.Random(seed)
        for _ in range(kills):
            time.sleep(rng.uniform(4.0, 7.0))
            victim = rng.choice(processes)
            victim.kill()
            victim.start()
        feeding.join()
        rows = pipeline.read_transitions(broker, len(expected), timeout_s=60)

    assert by_id(rows) == expected
    if not kills:
        assert len(rows) == len(expected)


def test_the_embedded_broker_gives_the_transitions_of_the_in_process_runner(tmp_path: Path) -> None:
    with running("embedded", tmp_path / "broker") as broker:
        check_pipeline(broker.address, tmp_path, kills=0, seed=1)


def test_workers_killed_under_load_give_the_transitions_of_an_undisturbed_run(tmp_path: Path) -> None:
    with running("embedded", tmp_path / "broker") as broker:
        check_pipeline(broker.address, tmp_path, kills=4, seed=2)


@pytest.mark.kafka
def test_a_real_kafka_gives_the_transitions_of_the_in_process_runner(kafka_broker: str, tmp_path: Path) -> None:
    # 6 s is the least that Kafka's default group.min.session.timeout.ms allows
    check_pipeline(kafka_broker, tmp_path, kills=2, seed=3, session_timeout_s=6.0)

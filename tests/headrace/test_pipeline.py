"""The brokered pipeline beside the in-process runner: the same log gives the same transitions, whatever is killed meanwhile."""

import random
import threading
import time
from pathlib import Path

import pipeline
import pytest

from headrace.broker import create_topics, running
from headrace.settings import StreamSettings
from schemas.topics import TRANSITIONS

PAGES = 2_000


def check_pipeline(broker: str, folder: Path, kills: int, seed: int, session_timeout_s: float = 3.0) -> None:
    create_topics(StreamSettings(broker=broker))
    events = pipeline.log_of(PAGES, seed)
    expected = pipeline.undisturbed(events)
    assert len(expected[TRANSITIONS]) == PAGES

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
        for topic, rows in expected.items():
            found = pipeline.read(broker, topic, len(rows), timeout_s=60)
            kept = pipeline.first_by_key(topic, found)
            assert kept == rows
            assert all(kept[pipeline.key(topic, row)] == row for row in found)  # what is sent twice is the same twice
            assert kills or len(found) == len(rows)
        pipeline.check_lineage(broker, events, PAGES)


@pytest.mark.slow
def test_the_embedded_broker_gives_the_transitions_of_the_in_process_runner(tmp_path: Path) -> None:
    with running("embedded", tmp_path / "broker") as broker:
        check_pipeline(broker.address, tmp_path, kills=0, seed=1)


@pytest.mark.slow
def test_workers_killed_under_load_give_the_transitions_of_an_undisturbed_run(tmp_path: Path) -> None:
    with running("embedded", tmp_path / "broker") as broker:
        check_pipeline(broker.address, tmp_path, kills=4, seed=2)


@pytest.mark.kafka
@pytest.mark.slow
def test_a_real_kafka_gives_the_transitions_of_the_in_process_runner(kafka_broker: str, tmp_path: Path) -> None:
    # 6 s is the least that Kafka's default group.min.session.timeout.ms allows
    check_pipeline(kafka_broker, tmp_path, kills=2, seed=3, session_timeout_s=6.0)

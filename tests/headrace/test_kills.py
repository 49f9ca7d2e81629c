"""kill -9 at 50 random moments under load, with and without the disk: the outputs are those of an undisturbed run."""

import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pipeline
import pytest

from headrace.broker import create_topics, running
from headrace.settings import StreamSettings
from schemas.topics import TRANSITIONS

PAGES = 3_000
KILLS = 25
"""Of each of the two workers."""
LOST_DISKS = 5
"""Of these kills."""
START_TIMEOUT_S = 60.0


class Killer(threading.Thread):
    """Kills a worker again and again: mostly a moment after it opened its partitions, sometimes while it starts."""

    def __init__(self, worker: pipeline.Worker, seed: int) -> None:
        super().__init__()
        self.worker, self.rng = worker, random.Random(seed)
        self.kills = 0
        self.caught_at_work = 0

    def run(self) -> None:
        lost = set(self.rng.sample(range(KILLS), LOST_DISKS))
        while self.kills < KILLS:
            if self.rng.random() < 0.2:
                time.sleep(self.rng.uniform(0.0, 3.0))
            else:
                wait(lambda: self.worker.opened >= pipeline.PARTITIONS, self.worker)
                time.sleep(self.rng.uniform(0.0, 0.5))
            self.caught_at_work += self.worker.opened >= pipeline.PARTITIONS
            self.worker.kill()
            if self.kills in lost:
                shutil.rmtree(self.worker.state_dir / self.worker.service, ignore_errors=True)
            self.worker.start()
            self.kills += 1


def wait(condition: Callable[[], bool], worker: pipeline.Worker) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not condition():
        assert worker.process.poll() is None, f"{worker.service} ended with {worker.process.returncode}"
        assert time.monotonic() < deadline_s, f"{worker.service} has no partitions"
        time.sleep(0.02)


def check_kills(broker: str, folder: Path, seed: int, session_timeout_s: float, labels: str) -> None:
    create_topics(StreamSettings(broker=broker))
    events = pipeline.log_of(PAGES, seed)
    expected = pipeline.undisturbed(events)
    with pipeline.workers(broker, folder, f"kills-{seed}", session_timeout_s) as workers:
        killers = [Killer(worker, seed + place) for place, worker in enumerate(workers)]
        for killer in killers:
            killer.start()
        sent = 0
        while any(killer.is_alive() for killer in killers):  # the load lasts for as long as there are kills
            share = min(killer.kills for killer in killers) / KILLS
            if (target := int(share * len(events))) > sent:
                pipeline.produce(broker, events[sent:target], seconds=1.0)
                sent = target
            time.sleep(0.02)
        pipeline.produce(broker, events[sent:])
        assert [killer.kills for killer in killers] == [KILLS, KILLS]
        assert min(killer.caught_at_work for killer in killers) > KILLS / 2
        if labels == "early":
            pipeline.check_amended(broker, expected[TRANSITIONS], timeout_s=60)
        else:
            pipeline.check(broker, expected, timeout_s=60)


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["complete", "early"])
def test_fifty_kills_under_load_change_nothing(labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be_patient(monkeypatch)
    choose(labels, monkeypatch)
    with running("embedded", tmp_path / "broker") as broker:
        check_kills(broker.address, tmp_path, seed=11, session_timeout_s=1.5, labels=labels)


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.parametrize("labels", ["complete", "early"])
def test_fifty_kills_under_load_change_nothing_on_a_real_kafka(
    labels: str, kafka_broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch)
    choose(labels, monkeypatch)
    check_kills(kafka_broker, tmp_path, seed=12, session_timeout_s=6.0, labels=labels)


def choose(labels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in pipeline.EARLY_SETTINGS.items() if labels == "early" else ():
        monkeypatch.setitem(pipeline.SETTINGS, name, value)


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, it must not look like silence."""
    for service in ("JOINER", "EXPERIENCE"):
        monkeypatch.setitem(pipeline.SETTINGS, f"HEADRACE_{service}_IDLE_S", "3600")
    monkeypatch.setitem(pipeline.SETTINGS, "HEADRACE_STREAM_HEARTBEAT_INTERVAL_S", "0.3")

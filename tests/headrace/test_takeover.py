"""Joiner and experience collector, each on two workers that die, freeze, wake and lose their disks at random: without a broker."""

import asyncio
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pipeline
import pytest
from faust.types import TP

from experience.sessions import PartitionSessions
from experience.settings import ExperienceSettings
from headrace.stage import Stage
from headrace.step import MakeStep, Record
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings
from schemas.topics import EXPOSURES, FEEDBACK, SAMPLES, TRANSITIONS

PAGES = 1_200
HORIZON = 20_000
NOW_S = (pipeline.START_MS + 10**9) / 1000


class Crash(BaseException):
    """kill -9 in the middle of something."""


class Log:
    """One partition of all topics, and what the groups have committed."""

    def __init__(self) -> None:
        self.topics: dict[str, list[bytes]] = {topic: [] for topic in (EXPOSURES, FEEDBACK, SAMPLES, TRANSITIONS)}
        self.committed: dict[str, dict[TP, int]] = {"joiner": {}, "experience": {}}


class Worker:
    """A stage with a disk of its own; it is the stage's consumer and producer, too."""

    generation = 1

    def __init__(self, log: Log, service: str, folder: Path, rng: random.Random) -> None:
        self.log, self.service, self.folder, self.rng = log, service, folder, rng
        self.inputs = (EXPOSURES, FEEDBACK) if service == "joiner" else (SAMPLES,)
        self.positions: dict[TP, int] = {}
        self.commits: dict[TP, int] = {}
        self.crash_at = ""
        self.stage = self._stage()

    def _stage(self) -> Stage:
        make_step: MakeStep
        if self.service == "joiner":
            settings = JoinerSettings(join_window_ms=pipeline.WINDOW_MS)
            make_step = lambda partition, stored: PartitionJoin(settings, partition, stored)  # noqa: E731
        else:
            sessions = ExperienceSettings(session_gap_ms=pipeline.GAP_MS, dedup_horizon_ms=HORIZON)
            make_step = lambda partition, stored: PartitionSessions(sessions, partition, stored)  # noqa: E731
        return Stage(self.service, self.folder, make_step, self, lambda: self, lambda _: {}, lambda: NOW_S)  # type: ignore[arg-type,return-value]

    async def take_over(self) -> None:
        committed: dict[TP, int | None] = {TP(topic, 0): self.log.committed[self.service].get(TP(topic, 0)) for topic in self.inputs}
        self.commits.clear()
        self.positions = {tp: offset or 0 for tp, offset in committed.items()}
        try:
            self.positions.update(await self.stage.on_assigned(committed))
        except Crash:  # what it had in hand when it froze
            await self.die(lose_disk=False)
            await self.take_over()

    async def read(self, topic: str, most: int) -> bool:
        """Read a few records of a topic; whether there were any."""
        tp = TP(topic, 0)
        start = self.positions[tp]
        values = self.log.topics[topic][start : start + most]
        if values:
            self.positions[tp] = start + len(values)
            records = [Record(start + place, 0, value) for place, value in enumerate(values)]
            await self.stage.on_batch(SimpleNamespace(message=SimpleNamespace(tp=tp, generation_id=1), value=records))
            if self.rng.random() < 0.5:
                await self.settle()
        return bool(values)

    async def settle(self) -> None:
        for partition in list(self.stage.partitions.values()):
            await partition.settled()

    async def step(self, most: int) -> None:
        try:
            await self.read(self.rng.choice(self.inputs), self.rng.randrange(1, most + 1))
            await self.stage.on_tick()
            await self.settle()
        except Crash:
            await self.die(lose_disk=False)
            await self.take_over()

    def commit(self) -> None:
        self.log.committed[self.service].update(self.commits)

    async def die(self, lose_disk: bool) -> None:
        for partition in self.stage.partitions.values():
            if partition.in_hand is not None:
                partition.in_hand.cancel()  # before it is sent, or after, or stored already
                await asyncio.gather(partition.in_hand, return_exceptions=True)
        self.stage.close()
        if lose_disk:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.crash_at = ""
        self.stage = self._stage()

    # What a stage asks of its consumer and its producer.

    async def send(self, partition: int, messages: list[tuple[str, bytes | None, bytes]]) -> None:
        for _ in range(self.rng.randrange(3)):
            await asyncio.sleep(0)
        if self.crash_at == "send":
            raise Crash
        for topic, _, value in messages:
            if topic in self.log.topics:
                self.log.topics[topic].append(value)
        for _ in range(self.rng.randrange(3)):
            await asyncio.sleep(0)
        if self.crash_at == "store":
            raise Crash

    def commit_at(self, tp: TP, offset: int) -> None:
        self.commits[tp] = offset

    async def seek(self, tp: TP, offset: int) -> None:
        self.positions[tp] = offset

    def is_member(self) -> bool:
        return True

    def caught_up_at_s(self, tp: TP) -> float | None:
        return None

    def highwater(self, tp: TP) -> int:
        return len(self.log.topics[tp.topic])


class Stages:
    """The two workers of a service: one has the partition; the other may believe that it still has it."""

    def __init__(self, log: Log, service: str, folder: Path, rng: random.Random) -> None:
        self.rng = rng
        self.worker, self.other = (Worker(log, service, folder / f"{service}-{number}", rng) for number in (0, 1))

    async def take_over(self) -> None:
        await self.worker.take_over()

    async def something_happens(self) -> None:
        chance, rng = self.rng.random(), self.rng
        if chance < 0.01:  # it freezes
            self.worker, self.other = self.other, self.worker
            await self.take_over()
        elif chance < 0.03:
            await self.worker.die(lose_disk=rng.random() < 0.5)
            if rng.random() < 0.5:
                self.worker, self.other = self.other, self.worker
            await self.take_over()
        elif chance < 0.04:
            self.worker.crash_at = rng.choice(("send", "store"))
        elif chance < 0.2:
            self.worker.commit()
        elif chance < 0.25 and self.other.stage.partitions:
            await self.other.step(most=1)
        else:
            await self.worker.step(most=40)

    async def finish(self) -> None:
        await self.worker.die(lose_disk=False)
        await self.take_over()
        while any([await self.worker.read(topic, 500) for topic in self.worker.inputs]):
            await self.worker.settle()
        for worker in (self.worker, self.other):
            await worker.die(lose_disk=False)
            worker.stage.close()


async def run(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    log = Log()
    events = [pair for pair in pipeline.log_of(PAGES, seed, users=rng.choice((8, 40)), leaving=0.2) if pair[0] == 0]
    expected = pipeline.undisturbed(events)
    stages = {service: Stages(log, service, folder, rng) for service in log.committed}
    for both in stages.values():
        await both.take_over()
    fed = 0
    while fed < len(events) or rng.random() < 0.98:
        for _, event in events[fed : fed + rng.randrange(12)]:
            log.topics[event.topic].append(event.value)
            fed += 1
        await stages[rng.choice(("joiner", "experience"))].something_happens()
    for both in stages.values():
        await both.finish()
    for topic, rows in expected.items():
        found = [row for message in log.topics[topic] for row in pipeline.rows_of(message, topic)]
        assert pipeline.first_by_key(topic, found) == rows


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_dies_freezes_or_is_lost_the_outputs_are_those_of_an_undisturbed_run(tmp_path: Path, seed: int) -> None:
    await run(tmp_path, seed)

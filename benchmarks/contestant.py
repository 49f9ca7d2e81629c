"""One join as a process: started like any user starts it, watched from outside while it works, and ended."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from benchmarks.join_log import PARTITIONS
from headrace.orphans import end_with_parent
from headrace.settings import CONFIG_VARIABLE

LOOK_S = 0.02
ANSWER_S = 30.0
QUIET_S = 2.0
"""So long without a new sample, and the topic is read to see whether all are there."""
FIRST_BATCH = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) INFO \S+: .*first batch", re.MULTILINE)
"""What every contestant logs when the broker has delivered its first records, in UTC."""
_TICKS_A_S = os.sysconf("SC_CLK_TCK")


class Look(NamedTuple):
    """The wall clock (s since the epoch), the CPU time that a process has taken (s), and the end of the output topic (records)."""

    at_s: float
    cpu_s: float
    end: int


class Contestant:
    """A process that joins, and its log file."""

    def __init__(self, command: list[str], environment: dict[str, str], log_file: Path) -> None:
        self.log_file = log_file
        self.started_s = time.time()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        with log_file.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                cwd=log_file.parent,  # where no headrace.toml lies
                env={**inherited, **environment},
                preexec_fn=end_with_parent,  # noqa: PLW1509 - called before threads start
            )

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def first_batch_s(self) -> float:
        """When its first records were delivered (s since the epoch)."""
        text = self.log_file.read_text()
        found = FIRST_BATCH.search(text)
        if found is None:
            raise ValueError(f"{self.log_file} does not say when the first batch came; it ends with: {text[-300:]!r}")
        return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC).timestamp()

    def log_end(self) -> str:
        """What it said last."""
        return self.log_file.read_text()[-300:]

    def cpu_s(self) -> float:
        """User and system time of the process so far."""
        return cpu_s(self.process.pid)

    def peak_mb(self) -> float:
        """The most memory that was ever resident, in 10**6 bytes."""
        return peak_mb(self.process.pid)

    def stop(self) -> None:
        """Ask it to end; insist after 20 s."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill -9."""
        self.process.kill()
        self.process.wait()


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_S


def peak_mb(pid: int | str) -> float:
    """The most memory of a process that was ever resident, in 10**6 bytes."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


class Ends:
    """How far a topic reaches, as the broker tells it: nothing is read, so that watching costs the contestants next to nothing."""

    def __init__(self, broker: str) -> None:
        self._admin = AdminClient({"bootstrap.servers": broker, "log_level": 0})

    def create(self, topic: str) -> None:
        """A new topic."""
        self._admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)

    def of(self, topic: str) -> int:
        """The sum of the partitions' ends. It grows with every batch of records, on the embedded broker by one a batch."""
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        partitions = {TopicPartition(topic, partition): latest for partition in range(PARTITIONS)}
        deadline_s = time.monotonic() + ANSWER_S
        while True:
            try:
                return sum(future.result(ANSWER_S).offset for future in self._admin.list_offsets(partitions).values())
            except KafkaException:  # a new topic has no leader yet
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(LOOK_S)


def looks_until_quiet(contestant: Contestant, ends: Ends, topic: str, first: int, timeout_s: float) -> Iterator[Look]:
    """A look every 20 ms, until the topic has grown beyond `first` and then not for `QUIET_S`, or has not grown for `timeout_s`."""
    last = first
    grown_s = time.time()
    while contestant.is_alive:
        end = ends.of(topic)
        at_s = time.time()
        yield Look(at_s, contestant.cpu_s(), end)
        if end != last:
            last, grown_s = end, at_s
        if at_s - grown_s > (QUIET_S if end > first else timeout_s):
            return
        time.sleep(LOOK_S)


@contextmanager
def running(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[Contestant]:
    """A contestant for the length of a with block; its log is <folder>/contestant.log."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "headrace.toml"
    settings.write_text("")
    contestant = Contestant(command, {**environment, CONFIG_VARIABLE: str(settings)}, folder / "contestant.log")
    try:
        yield contestant
    finally:
        contestant.stop()

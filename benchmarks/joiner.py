"""The joiner beside its peers, broker to broker: the same topics on the same broker, in turns, every label verified.

- `headrace`: `headrace worker joiner` as users run it: durable state, offsets, samples acknowledged by Kafka;
- `floor`: confluent-kafka + orjson + a dict, nothing durable (floor.py);
- `floor-tuned`: the same with Python's collector tuned, as the joiner's is (floor_tuned.py);
- `bytewax`: the same join as a Bytewax dataflow with Bytewax's own Kafka operators and recovery (bytewax_join.py);
- `bytewax-tuned`: as fast as we could write it: own source and sink, collector tuned, nothing durable (bytewax_tuned.py).

The clock starts when a process says that its first records were delivered, and stops when an observer sees the topic of samples grow
for the last time. Afterwards a consumer reads what is there. Start-up is measured too, and told apart.
"""

import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.contestant import Contestant, Ends, Look, cpu_s, looks_until_quiet, running
from benchmarks.join_log import PARTITIONS, WINDOW_MS, JoinLog, fill, make_log
from benchmarks.samples import Faults, Row, SampleReader, faults, warm_up
from headrace import broker as brokers
from headrace.settings import StreamSettings
from schemas.topics import SAMPLES

PEERS = {"floor": "floor", "floor-tuned": "floor_tuned", "bytewax": "bytewax_join", "bytewax-tuned": "bytewax_tuned"}
"""The module of each."""
CONTESTANTS = ("headrace", *PEERS)
NO_BYTEWAX = "bytewax 0.21.1 is not installed: it has wheels for Python 3.11 and 3.12 only (pip install bytewax==0.21.1)"
TIMEOUT_S = 120.0
"""So long without a sample, and a run is over: what did not come is missing."""


@dataclass(frozen=True)
class Run:
    """One run of a contestant. Times and CPU count from its first delivered record to its last visible sample, unless named otherwise."""

    wall_s: float
    wall_with_start_s: float
    cpu_s: float
    cpu_with_start_s: float
    peak_mb: float
    broker_cpu_s: float
    faults: Faults


def headrace_command(broker: str, name: str, folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """`headrace worker joiner`, with default settings."""
    environment = {
        "HEADRACE_STREAM_BROKER": broker,
        "HEADRACE_STREAM_GROUP_PREFIX": name,
        "HEADRACE_STREAM_STATE_DIR": str(folder / "state"),
        "HEADRACE_STREAM_PARTITIONS": str(PARTITIONS),
        "HEADRACE_JOINER_JOIN_WINDOW_MS": str(WINDOW_MS),
    }
    return [sys.executable, "-m", "headrace", "worker", "joiner", "--web-port", str(port)], environment


def peer_command(module: str, broker: str, name: str, topic: str) -> tuple[list[str], dict[str, str]]:
    """A peer of this folder."""
    return [sys.executable, "-m", f"benchmarks.{module}", broker, name, topic, str(WINDOW_MS)], {}


class Arena:
    """A broker with the log in its topics, where contestants run one after the other."""

    def __init__(self, broker: brokers.LocalBroker, log: JoinLog, folder: Path) -> None:
        self._broker, self._log, self._folder = broker, log, folder
        settings = StreamSettings(broker=broker.address, partitions=PARTITIONS)
        brokers.create_topics(settings)
        fill(broker.address, log.messages)
        self._ends, self._reader = Ends(broker.address), SampleReader(broker.address)
        warm_up(broker.address, len(log.messages))
        self._runs = 0

    def run(self, name: str) -> Run:
        """Start a contestant as a new consumer group on an empty folder, and wait for its samples."""
        self._runs += 1
        run_name = f"{name}-{self._runs}"
        folder = self._folder / run_name
        topic = SAMPLES if name == "headrace" else run_name
        if name == "headrace":
            command, environment = headrace_command(self._broker.address, run_name, folder, brokers.free_port())
        else:
            self._ends.create(topic)
            command, environment = peer_command(PEERS[name], self._broker.address, run_name, topic)
        first_end = self._ends.of(topic)
        with running(command, environment, folder) as contestant:
            return self._watch(contestant, topic, first_end)

    def _watch(self, contestant: Contestant, topic: str, first_end: int) -> Run:
        looks: list[Look] = []
        broker_cpu_s: list[float] = []
        rows: list[Row] = []
        end, found, is_over = first_end, faults(self._log.labels, rows), False
        while not is_over:
            read_to = end
            for look in looks_until_quiet(contestant, self._ends, topic, read_to, TIMEOUT_S):
                looks.append(look)
                broker_cpu_s.append(cpu_s(self._broker.pid))
                end = look.end
            rows += self._reader.read(topic, end)
            found = faults(self._log.labels, rows)
            is_over = not found.missing or end == read_to or not contestant.is_alive
        if not contestant.is_alive or end == first_end:
            came = "ended by itself" if not contestant.is_alive else f"gave no sample within {TIMEOUT_S:.0f} s"
            raise ValueError(f"{contestant.log_file.parent.name} {came}; its log ends with: {contestant.log_end()!r}")
        start_s = contestant.first_batch_s()
        first = next(number for number, look in enumerate(looks) if look.at_s >= start_s)
        last = next(number for number, look in enumerate(looks) if look.end == looks[-1].end)
        return Run(
            wall_s=looks[last].at_s - start_s,
            wall_with_start_s=looks[last].at_s - contestant.started_s,
            cpu_s=looks[last].cpu_s - looks[first].cpu_s,
            cpu_with_start_s=looks[last].cpu_s,
            peak_mb=contestant.peak_mb(),
            broker_cpu_s=broker_cpu_s[last] - broker_cpu_s[first],
            faults=found,
        )

    def close(self) -> None:
        """Disconnect."""
        self._reader.close()


def measure(kind: str, log: JoinLog, contestants: Sequence[str], rounds: int, folder: Path, say: Any) -> dict[str, list[Run]]:
    """Every contestant over the same log on one broker, in turns."""
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    with brokers.running(kind, folder) as broker:
        say(f"{kind} broker: {len(log.messages):,} messages")
        arena = Arena(broker, log, folder)
        for number in range(rounds):
            first = number % len(contestants)
            for name in (*contestants[first:], *contestants[:first]):  # nobody is always the first
                say(f"pages of {log.items_a_page}, round {number + 1} of {rounds}: {name}")
                runs[name].append(arena.run(name))
        arena.close()
    return runs


def case_report(log: JoinLog, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Medians and every round of one case."""
    report: dict[str, Any] = {
        "items_a_page": log.items_a_page,
        "exposures": log.exposures,
        "feedback": log.feedback,
        "samples": len(log.labels),
        "exposure_bytes": round(log.exposure_bytes),
        "feedback_bytes": round(log.feedback_bytes),
    }
    for name, of_name in runs.items():
        report[name] = {
            "events_per_s": round(log.events / statistics.median(run.wall_s for run in of_name)),
            "events_per_s_with_start": round(log.events / statistics.median(run.wall_with_start_s for run in of_name)),
            "events_per_s_by_round": [round(log.events / run.wall_s) for run in of_name],
            "cpu_s_per_100k": round(statistics.median(run.cpu_s for run in of_name) * 1e5 / log.events, 3),
            "cpu_s_per_100k_with_start": round(statistics.median(run.cpu_with_start_s for run in of_name) * 1e5 / log.events, 3),
            "broker_cpu_s_per_100k": round(statistics.median(run.broker_cpu_s for run in of_name) * 1e5 / log.events, 3),
            "peak_rss_mb": round(max(run.peak_mb for run in of_name), 1),
            **{fault: max(getattr(run.faults, fault) for run in of_name) for fault in Faults._fields},
        }
    for name in runs.keys() - {"headrace"}:
        pairs = list(zip(runs["headrace"], runs[name], strict=True))
        report[ratio_to(name)] = round(statistics.median(peer.wall_s / ours.wall_s for ours, peer in pairs), 2)
        report[f"cpu_{ratio_to(name)}"] = round(statistics.median(peer.cpu_s / ours.cpu_s for ours, peer in pairs), 2)
    return report


def ratio_to(peer: str) -> str:
    """The key of the joiner's speed over a peer's: the median of the rounds' ratios."""
    return f"ratio_to_{peer.replace('-', '_')}"


def main(
    items: int, rounds: int, kind: str, contestants: Sequence[str] = CONTESTANTS, page_sizes: Sequence[int] = (1, 10)
) -> dict[str, Any]:
    """Measure the contestants with pages of each size. The first size's figures are at the top of the report."""
    progress = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True))
    cases: dict[str, dict[str, Any]] = {}
    left_out = {} if find_spec("bytewax") else {name: NO_BYTEWAX for name in PEERS if name.startswith("bytewax")}
    with progress, tempfile.TemporaryDirectory(prefix="headrace-bench-") as temporary:
        task = progress.add_task("making the log")
        contestants = [name for name in contestants if name not in left_out]
        for size in page_sizes:
            log = make_log(items, size)
            folder = Path(temporary) / f"pages-of-{size}"
            runs = measure(kind, log, contestants, rounds, folder, lambda text: progress.update(task, description=text))
            cases[f"pages_of_{size}"] = case_report(log, runs)
    first = cases[f"pages_of_{page_sizes[0]}"]
    return {
        "benchmark": "joiner",
        **{name: first["headrace"][name] for name in ("events_per_s", "cpu_s_per_100k", "peak_rss_mb")},
        **{ratio_to(name): first.get(ratio_to(name)) for name in PEERS},
        **{fault: max(case[name][fault] for case in cases.values() for name in contestants) for fault in Faults._fields},
        **({"left_out": left_out} if left_out else {}),
        **cases,
        "broker": kind,
        "rounds": rounds,
        "partitions": PARTITIONS,
        "window_ms": WINDOW_MS,
        "machine": machine(),
    }


def broker_kind(named: str | None) -> str:
    """The broker to measure on: the one that is named, else a real Kafka where there is one."""
    return named or ("kafka" if os.environ.get("KAFKA_HOME") else "embedded")


def has_faults(report: dict[str, Any]) -> bool:
    """Whether any run of any contestant gave a wrong sample, gave one twice, or gave one never."""
    return any(report[fault] for fault in Faults._fields)


def machine() -> dict[str, Any]:
    """Where this was measured, and with which versions."""
    cpu = next((line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")), platform.processor())
    packages: tuple[str, ...] = ("headrace", "faust-streaming", "aiokafka", "confluent-kafka", "orjson", "msgspec", "pyarrow", "rocksdict")
    packages += ("bytewax",) if find_spec("bytewax") else ()
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load_1min": os.getloadavg()[0],
        "versions": {package: version(package) for package in packages},
    }


def _cpu_info() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []

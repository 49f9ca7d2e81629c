"""`headrace demo`: the whole loop on one machine, watched, and judged at the end by whether it closed."""

import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from headrace import broker, scrape
from headrace.config import effective
from headrace.demo_report import assemble, print_report, summarise
from headrace.demo_view import StageRow, View
from headrace.json_file import write_json
from headrace.metrics import Page
from headrace.policy_settings import PolicySettings
from headrace.settings import CONFIG_VARIABLE, ConfigError, StreamSettings, load
from headrace.simulate_settings import SimulateSettings, require_json
from headrace.step import Count
from headrace.supervisor import Supervisor
from joiner.settings import JoinerSettings
from serving.commands import open_store
from serving.user_state.settings import UserStateSettings
from serving.versions import Judgement

WORKERS = ("joiner", "experience", "trainer", "monitor", "controller")
USER_STATE = "user-state"
"""The worker that there is where serving reads what it remembers."""
ONE_FOR_ALL = ("trainer", "controller")
"""What is ready without partitions."""
IN_MEMORY = ("users", "serving")
"""What keeps its counts in memory only; the others' are durable."""
READS = ("hit", "miss", "unavailable")
OWN_BROKERS = ("embedded", "kafka")
READY_TIMEOUT_S = 90.0
DRAIN_TIMEOUT_S = 60.0
QUIET_S = 4.0
"""The run is drained when no stage has counted anything new for so long."""
POLL_S = 0.5
MIN_FREE_BYTES = 200 << 20


class Loop:
    """The running processes of one demo, and what they say of themselves."""

    def __init__(self, folder: Path, environment: dict[str, str], seed: int, remembers_users: bool) -> None:
        self.folder = folder
        self.workers = (*WORKERS, USER_STATE) if remembers_users else WORKERS
        self.ports = {name: broker.free_port() for name in (*self.workers, "serving", "users")}
        self.supervisor = Supervisor({**environment, "HEADRACE_SERVING_PORT": str(self.ports["serving"])})
        self.seed = seed
        self.users_counts: Counter[str] = Counter()
        self.killed: list[str] = []
        self.restarts: Counter[str] = Counter()
        self._counted: dict[str, tuple[int, ...]] = {}
        self._before_restart: dict[str, tuple[int, ...]] = {}

    def start_services(self) -> None:
        """Start the workers, the controller and the API."""
        for name in self.workers:
            self.supervisor.add(name, ["worker", name, "--web-port", str(self.ports[name])], self.folder / f"{name}.log")
        self.supervisor.add("serving", ["serve"], self.folder / "serving.log")

    def start_users(self, minutes: float) -> None:
        """Start the simulated users; they leave by themselves after `minutes`."""
        arguments = ["simulate", "--minutes", str(minutes), "--seed", str(self.seed), "--metrics-port", str(self.ports["users"])]
        arguments += ["--json", str(self.folder / "users.json")]
        self.supervisor.add(
            "users", [*arguments, "--api", f"http://127.0.0.1:{self.ports['serving']}"], self.folder / "users.log", once=True
        )

    def poll(self) -> None:
        """Start again what died, and remember it."""
        self.killed += self.supervisor.poll()
        for name, child in self.supervisor.children.items():
            self.restarts[name] = child.restarts

    def pages(self) -> dict[str, Page]:
        """The metrics of every service that answers now."""
        found = {name: scrape.metrics(port) for name, port in self.ports.items() if name in self.supervisor.children}
        return {name: page for name, page in found.items() if page is not None}

    def report(self) -> dict[str, Any]:
        """The monitor's report; empty while it does not answer."""
        return scrape.page(self.ports["monitor"], "/report") or {}

    def whole_run(self, row: StageRow) -> StageRow:
        """The row of a process that counts in memory: one that was started again has lost what it had counted, up to the last look."""
        now = row.rows_in, row.rows_out, row.rejected
        last, lost = self._counted.get(row.stage, now), self._before_restart.get(row.stage, (0, 0, 0))
        if any(count < before for count, before in zip(now, last, strict=True)):
            lost = tuple(sum(counts) for counts in zip(lost, last, strict=True))
        self._counted[row.stage], self._before_restart[row.stage] = now, lost
        rows_in, rows_out, rejected = (sum(counts) for counts in zip(now, lost, strict=True))
        return row._replace(rows_in=rows_in, rows_out=rows_out, rejected=rejected)

    def ready(self) -> str | None:
        """What is not ready yet; None when everything is."""
        pages = self.pages()
        for name in self.workers:
            if name not in pages:
                return name
        for name in self.workers:
            if name not in ONE_FOR_ALL and not pages[name].values("headrace_lag_seconds", stage=name):
                return f"{name}'s partitions"
        serving = scrape.page(self.ports["serving"], "/readyz")
        return None if serving is not None else "serving"


class Interrupted:
    """Turns Ctrl-C, SIGTERM and a closed terminal into a flag for the length of a with block. A second Ctrl-C is not waited for."""

    def __enter__(self) -> threading.Event:
        flag = threading.Event()

        def on_signal(*_: object) -> None:
            flag.set()
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])

        self._before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        return flag

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def run_demo(minutes: float, broker_name: str, seed: int, json_file: str | None, parent: Path) -> int:
    """Run the demo and return its exit code: 0 only if the loop closed."""
    console = Console(stderr=True)
    folder = _run_folder(parent)
    with ExitStack() as stack:
        interrupted = stack.enter_context(Interrupted())
        address = stack.enter_context(_broker(broker_name, folder))
        environment = _environment(folder, broker_name, address, seed)
        os.environ.update(environment)
        list(effective())  # a wrong setting is told here, in one line, and not by a worker that never gets ready
        require_json(load(SimulateSettings), load(JoinerSettings))
        broker.create_topics(load(StreamSettings))
        loop = Loop(folder, environment, seed, remembers_users=load(UserStateSettings).serve)
        stack.callback(loop.supervisor.stop)
        view = stack.enter_context(View(console, f"headrace demo on the {broker_name} broker at {address}, logs in {folder}"))
        report = _run(loop, view, minutes, interrupted)
    report["run"] = {"minutes": minutes, "broker": broker_name, "seed": seed, "folder": str(folder), "interrupted": interrupted.is_set()}
    print_report(console, report)
    write_json(str(folder / "report.json"), report)
    write_json(json_file, report)
    return 0 if report["loop_closed"] else 1


def _run(loop: Loop, view: View, minutes: float, interrupted: threading.Event) -> dict[str, Any]:
    start_s = time.monotonic()
    loop.start_services()
    for missing in _until_ready(loop, interrupted):
        view.show([], {}, time.monotonic() - start_s, f"waiting for {missing}")
    if not interrupted.is_set():
        loop.start_users(minutes)
    deadline_s = time.monotonic() + 60 * minutes + READY_TIMEOUT_S
    rows: list[StageRow] = []
    report: dict[str, Any] = {}
    while not interrupted.is_set() and time.monotonic() < deadline_s and not loop.supervisor.children["users"].done:
        loop.poll()
        rows, report = _look(loop, rows, report)
        view.show(rows, report, time.monotonic() - start_s, "users at work")
        interrupted.wait(POLL_S)
    loop.supervisor.stop(["users"])
    rows, report = _drain(loop, view, rows, report, start_s)
    return assemble(report, rows, summarise(loop.folder / "users.json"), loop.restarts, loop.killed, time.monotonic() - start_s)


def _until_ready(loop: Loop, interrupted: threading.Event) -> Iterator[str]:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while not interrupted.is_set() and (missing := loop.ready()) is not None:
        if time.monotonic() > deadline_s:
            raise ConfigError(f"{missing} was not ready within {READY_TIMEOUT_S:.0f} s: see the logs in {loop.folder}")
        loop.poll()
        yield missing
        time.sleep(POLL_S)


def _drain(loop: Loop, view: View, rows: list[StageRow], report: dict[str, Any], start_s: float) -> tuple[list[StageRow], dict[str, Any]]:
    """Wait until everything that was sent has gone through every stage."""
    deadline_s = quiet_since_s = time.monotonic()
    deadline_s += DRAIN_TIMEOUT_S
    while time.monotonic() < deadline_s and time.monotonic() - quiet_since_s < QUIET_S:
        loop.poll()
        before = [(row.rows_in, row.rows_out) for row in rows]
        rows, report = _look(loop, rows, report)
        if before != [(row.rows_in, row.rows_out) for row in rows]:
            quiet_since_s = time.monotonic()
        view.show(rows, report, time.monotonic() - start_s, "the last pages pass through")
        time.sleep(POLL_S)
    return rows, report


def _look(loop: Loop, before: list[StageRow], report: dict[str, Any]) -> tuple[list[StageRow], dict[str, Any]]:
    """Every stage now; one that does not answer keeps its last figures."""
    pages = loop.pages()
    last = {row.stage: row for row in before}
    judgements = open_store(load(PolicySettings)).judgements()
    rows = [_row(name, pages.get(name), last.get(name), loop.restarts[name], judgements) for name in ("users", "serving", *loop.workers)]
    report = loop.report() or report
    if "serving" in pages:
        report = {**report, "served_version": _served_version(pages["serving"]), "user_state_reads": _reads(pages["serving"])}
    return [loop.whole_run(row) if row.up and row.stage in IN_MEMORY else row for row in rows], report


def _served_version(serving: Page) -> str:
    """The version that serving answers with now; empty for the baseline."""
    info = [sample for sample in serving.samples if sample.name == "headrace_serving_version_info" and sample.value == 1]
    return info[0].labels["model_version"] if info else ""


def _reads(serving: Page) -> dict[str, int]:
    """How often serving asked for a user's stored features, by what it found."""
    return {outcome: int(serving.total("headrace_serving_user_state_reads_total", outcome=outcome)) for outcome in READS}


def _row(name: str, page: Page | None, last: StageRow | None, restarts: int, judgements: Sequence[Judgement]) -> StageRow:
    if page is None:
        return last._replace(up=False, restarts=restarts) if last else StageRow(name, False, 0, 0, 0, None, restarts)
    match name:
        case "users":
            rows_in, rows_out = page.total("headrace_users_pages_total"), page.total("headrace_users_feedback_total")
            rejected, lag_s = page.total("headrace_users_errors_total"), None
        case "serving":
            rows_in = page.total("headrace_serving_decisions_total")
            rows_out = page.total("headrace_serving_deliveries_total", outcome="delivered")
            rejected, lag_s = page.total("headrace_serving_events_rejected_total"), None
        case "controller":
            verdicts = [judgement.verdict for judgement in judgements]
            rows_in, rows_out, rejected, lag_s = len(verdicts), verdicts.count("promoted"), verdicts.count("refused"), None
        case _:
            counts = page.counts(name)
            rows_in, rows_out, rejected = (_sum(counts, kind) for kind in ("in", "out", "rejected"))
            rows_out = len(judgements) if name == "trainer" else rows_out
            lag_s = page.highest("headrace_lag_seconds", stage=name)
    return StageRow(name, True, int(rows_in), int(rows_out), int(rejected), lag_s, restarts)


def _sum(counts: Counter[Count], name: str) -> int:
    return sum(n for count, n in counts.items() if count.name == name)


@contextmanager
def _broker(name: str, folder: Path) -> Iterator[str]:
    if name in OWN_BROKERS:
        with broker.running(name, folder) as running:
            yield running.address
        return
    broker.require(load(StreamSettings, broker=name).broker)
    yield name


def _environment(folder: Path, broker_name: str, address: str, seed: int) -> dict[str, str]:
    """The demo's settings: its TOML file (or the user's own), and what this run decides."""
    environment = {
        "HEADRACE_STREAM_BROKER": address,
        "HEADRACE_STREAM_STATE_DIR": str(folder / "state"),
        "HEADRACE_POLICY_MODEL_DIR": str(folder / "models"),
        "HEADRACE_SERVING_SEED": str(seed),
        "HEADRACE_TRAINER_SEED": str(seed),
    }
    if broker_name not in OWN_BROKERS:  # earlier demos may have announced versions there
        environment["HEADRACE_POLICY_POLICY"] = folder.name
    if CONFIG_VARIABLE not in os.environ:
        environment[CONFIG_VARIABLE] = str(files("headrace") / "demo.toml")
    return environment


def _run_folder(parent: Path) -> Path:
    folder = (parent / datetime.now(tz=UTC).strftime("run-%Y%m%d-%H%M%S-%f")).absolute()
    try:
        folder.mkdir(parents=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ConfigError(f"cannot write to {parent}: {error.strerror}; name another folder with --dir") from error
    if free < MIN_FREE_BYTES:
        raise ConfigError(f"disk full: {free >> 20} MB free in {folder}, the demo needs {MIN_FREE_BYTES >> 20}; free some, or use --dir")
    sys.stderr.flush()
    return folder

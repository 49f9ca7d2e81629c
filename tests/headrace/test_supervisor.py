"""Children that die are started again; children that are told to stop do."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace import supervisor as supervision
from headrace.supervisor import Child, Supervisor

SLEEPER = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


class Python(Supervisor):
    """Children run Python code instead of headrace commands."""

    def add(self, name: str, arguments: list[str], log_file: Path, *, once: bool = False) -> Child:  # type: ignore[override]
        child = Child(name, [sys.executable, "-c", *arguments], log_file, once)
        self.children[name] = child
        self._start(child)
        return child


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[Python]:
    monkeypatch.setattr(supervision, "BACKOFF_S", (0.05, 0.05))
    monkeypatch.setattr(supervision, "STOP_TIMEOUT_S", 1.0)
    running = Python({"ANSWER": "42"})
    yield running
    running.stop()


def until(children: Supervisor, holds: Callable[[], object]) -> list[str]:
    """Poll until it holds; gives the names of the children that ended."""
    ended: list[str] = []
    deadline_s = time.monotonic() + 10.0
    while not holds():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        ended += children.poll()
        time.sleep(0.02)
    return ended


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pid_of(child: Child) -> int:
    assert child.process is not None
    return child.process.pid


def test_a_killed_child_is_started_again_and_counted(children: Python, tmp_path: Path) -> None:
    child = children.add("worker", [SLEEPER], tmp_path / "log")
    first = pid_of(child)
    os.kill(first, signal.SIGKILL)

    ended = until(children, lambda: child.restarts == 1)

    assert ended == ["worker"]
    assert child.exit_codes == [-signal.SIGKILL]
    assert pid_of(child) != first


def test_a_child_that_ran_to_its_end_is_started_again_unless_once_was_enough(children: Python, tmp_path: Path) -> None:
    service = children.add("service", ["pass"], tmp_path / "service")
    task = children.add("task", ["pass"], tmp_path / "task", once=True)

    until(children, lambda: service.restarts >= 2 and task.done)

    assert task.restarts == 0


def test_a_task_that_failed_is_started_again(children: Python, tmp_path: Path) -> None:
    task = children.add("task", ["import sys; sys.exit(3)"], tmp_path / "task", once=True)

    until(children, lambda: task.restarts >= 1)

    assert task.exit_codes[0] == 3
    assert not task.done


def test_children_get_the_environment_and_write_their_log(children: Python, tmp_path: Path) -> None:
    task = children.add("task", ["import os; print(os.environ['ANSWER'])"], tmp_path / "log", once=True)

    until(children, lambda: task.done)

    assert (tmp_path / "log").read_text() == "42\n"


def test_stop_ends_even_a_child_that_ignores_it(children: Python, tmp_path: Path) -> None:
    pid = pid_of(children.add("stubborn", [STUBBORN], tmp_path / "log"))
    until(children, (tmp_path / "log").read_text)

    children.stop()

    assert not is_running(pid)
    assert children.children == {}

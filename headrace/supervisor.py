"""Runs the services of one machine as child processes, and starts again what dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headrace.orphans import end_with_parent

STOP_TIMEOUT_S = 15.0
BACKOFF_S = (0.2, 1.0, 2.0, 5.0)
"""Waits before the first, second, ... restart; a child that then lives for `STABLE_S` starts from the first again."""
STABLE_S = 30.0


@dataclass
class Child:
    """One service: its command, its log file, its process, and how often it had to be started again."""

    name: str
    command: Sequence[str]
    log_file: Path
    once: bool
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    exit_codes: list[int] = field(default_factory=list)
    started_s: float = 0.0
    start_at_s: float = 0.0
    failures: int = 0
    done: bool = False


class Supervisor:
    """Starts, watches and stops children. `poll` is to be called a few times a second."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.children: dict[str, Child] = {}
        self._environment = {**os.environ, **environment}

    def add(self, name: str, arguments: Sequence[str], log_file: Path, *, once: bool = False) -> Child:
        """Start `headrace <arguments>` and keep it running; with `once` only until it ends with code 0."""
        child = Child(name, [sys.executable, "-m", "headrace", *arguments], log_file, once)
        self.children[name] = child
        self._start(child)
        return child

    def _start(self, child: Child) -> None:
        with child.log_file.open("ab") as out:
            child.process = subprocess.Popen(
                child.command,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - the supervisor has one thread
            )
        child.started_s = time.monotonic()

    def poll(self) -> list[str]:
        """Start again whatever ended, with a growing wait; returns the names of children that ended since the last call."""
        ended = []
        now_s = time.monotonic()
        for child in self.children.values():
            if child.process is None:
                if not child.done and now_s >= child.start_at_s:
                    child.restarts += 1
                    self._start(child)
            elif (code := child.process.poll()) is not None and child.once and code == 0:
                child.done, child.process = True, None
            elif code is not None:
                ended.append(child.name)
                child.exit_codes.append(code)
                child.failures = 1 if now_s - child.started_s > STABLE_S else child.failures + 1
                child.start_at_s = now_s + BACKOFF_S[min(child.failures, len(BACKOFF_S)) - 1]
                child.process = None
        return ended

    def stop(self, names: Sequence[str] | None = None) -> None:
        """End the named children (all by default): politely at once, the stubborn ones by force after 15 s."""
        leaving = [self.children.pop(name) for name in (list(self.children) if names is None else names) if name in self.children]
        processes = [child.process for child in leaving if child.process is not None]
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        for process in processes:
            try:
                process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

"""The demo as a newcomer runs it, shorter, and with workers killed under it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SOONER = {
    "HEADRACE_TRAINER_MIN_TRANSITIONS": "600",
    "HEADRACE_TRAINER_CANDIDATE_INTERVAL_S": "5",
    "HEADRACE_TRAINER_CHECKPOINT_INTERVAL_S": "5",
}
KILLED = ("joiner", "trainer")


def start_demo(folder: Path, minutes: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    command = [sys.executable, "-m", "headrace", "demo", "--minutes", minutes, "--json", "-", "--dir", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**clean, **SOONER})


def child_of(pid: int, *arguments: str) -> int | None:
    """The demo's child process with these arguments, where it is up."""
    for process in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        if all(argument.encode() in words for argument in arguments):
            return int(process)
    return None


def wait_for(demo: subprocess.Popen[str], *arguments: str) -> int:
    deadline_s = time.monotonic() + 90
    while (found := child_of(demo.pid, *arguments)) is None:
        assert demo.poll() is None, demo.communicate()
        assert time.monotonic() < deadline_s, f"no child {arguments}"
        time.sleep(0.2)
    return found


def finish(demo: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = demo.communicate(timeout=240)
    report: dict[str, Any] = json.loads(out)
    assert (demo.returncode == 0) == report["loop_closed"], errors
    return report


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the demo's children in /proc")
def test_the_loop_closes_although_workers_are_killed(tmp_path: Path) -> None:
    demo = start_demo(tmp_path, "0.75")
    wait_for(demo, "simulate")
    for service in KILLED:
        time.sleep(12)
        os.kill(wait_for(demo, "worker", service), signal.SIGKILL)

    report = finish(demo)

    assert report["loop_closed"], json.dumps(report, indent=1)
    assert report["restarts"] == dict.fromkeys(KILLED, 1)
    stages = report["stages"]
    sent = stages["joiner"]["out"]
    assert sent <= stages["experience"]["in"] <= 1.05 * sent, "what the joiner had sent but not stored when it died comes once more"
    assert stages["serving"]["in"] >= stages["trainer"]["in"] == stages["experience"]["out"] >= 0.97 * stages["users"]["in"]
    assert stages["controller"]["out"] >= 2
    assert report["user_state_reads"]["hit"] > report["user_state_reads"]["miss"] > 0, "only the first pages of a user find nothing"
    assert report["reward"]["baseline"]["pages"] > 0 < report["reward"]["policy"]["pages"]
    assert 0 < report["freshness_s"]["p50"] <= report["freshness_s"]["p95"]
    assert report["stages"]["joiner"]["rejected"] > 0, "the users send bad events on purpose"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the demo's children in /proc")
def test_ctrl_c_ends_the_demo_with_its_report_and_no_process_left(tmp_path: Path) -> None:
    demo = start_demo(tmp_path, "5")
    wait_for(demo, "simulate")
    time.sleep(5)
    children = [int(pid) for pid in Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()]
    demo.send_signal(signal.SIGINT)

    report = finish(demo)

    assert report["run"]["interrupted"] is True
    assert report["stages"]["users"]["in"] > 0
    assert len(children) == 9
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)

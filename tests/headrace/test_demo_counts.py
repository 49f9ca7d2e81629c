"""The demo's own counts: of a process that counts in memory, over its restarts; and what Ctrl-C does."""

import os
import signal
from pathlib import Path

import pytest

from headrace.demo import Interrupted, Loop
from headrace.demo_view import StageRow


def test_a_killed_api_takes_its_counts_along_only_up_to_the_last_look(tmp_path: Path) -> None:
    loop = Loop(tmp_path, {}, seed=0, remembers_users=False)
    looks = [(100, 50, 1), (250, 120, 2), (10, 4, 0), (30, 20, 0), (5, 0, 0)]

    shown = [loop.whole_run(StageRow("serving", True, *counted, None, 0))[2:5] for counted in looks]

    assert shown == [(100, 50, 1), (250, 120, 2), (260, 124, 2), (280, 140, 2), (285, 140, 2)]


def test_the_first_ctrl_c_is_a_flag_and_the_second_one_interrupts() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interrupted() as interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted.is_set()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)

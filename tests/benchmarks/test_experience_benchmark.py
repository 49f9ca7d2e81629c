"""The benchmark of the experience collector runs, its parts agree, and a wrong transition is found."""

import io
from importlib.util import find_spec
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from rich.console import Console

from benchmarks import experience
from benchmarks.experience_log import messages
from experience.settings import ExperienceSettings
from headrace.transitions import build
from schemas.codec import decode_batch


def quiet_build(samples: ds.Dataset, settings: ExperienceSettings, out: Path) -> None:
    build(samples, settings, out, Console(file=io.StringIO()))


needs_polars = pytest.mark.skipif(find_spec("polars") is None, reason=experience.NO_POLARS)


@needs_polars
def test_all_three_give_the_same_transitions() -> None:
    report = experience.main(samples=12_000, rounds=1, sessions=2_000, build=quiet_build)
    assert report["mismatches"] == 0
    assert report["samples"] == 12_000
    assert report["open_sessions"] == 1_600  # the last four of five messages
    assert min(report["samples_per_s"], report["ratio_to_polars"], report["parquet_samples_per_s"]) > 0


@needs_polars
def test_a_wrong_transition_and_a_missing_one_are_found(tmp_path: Path) -> None:
    log = list(messages(800))
    ours, theirs = experience.run_headrace(log, tmp_path).rows, experience.run_polars(log).rows
    assert len(ours) == 800
    first, second, third, *_ = ours
    session, step, reward, done, has_next = ours[first]
    ours[first] = (session, step, reward + 1, done, has_next)
    ours[second] = (*ours[second][:3], not ours[second][3], ours[second][4])
    del ours[third]
    assert experience.mismatches(ours, theirs) == 3


def test_the_log_has_sessions_that_end_in_every_way() -> None:
    left = [left for message in messages(800) for left in decode_batch(message.value, "samples")[0]["left"].to_pylist()]
    assert 0 < sum(left) < len(left) / 10

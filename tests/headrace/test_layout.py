"""A worker that finds state of another version's layout rebuilds it from Kafka: nothing is lost, nothing comes out otherwise."""

from collections import Counter
from pathlib import Path

import pipeline
import pytest

from headrace.broker import create_topics, running
from headrace.durable_rows import FIRST_LAYOUT
from headrace.settings import StreamSettings
from headrace.store import PartitionStore
from joiner.rows import LAYOUT
from schemas.topics import TRANSITIONS

PAGES = 2_000


def write_in_the_first_layout(folder: Path) -> None:
    """Make the state one that this version cannot read: what it says of its blocks is no block, and it says so."""
    store = PartitionStore(folder)
    store.layout = FIRST_LAYOUT
    store.write([(key, b"not what is expected here") for key, _ in store.rows(b"b")], {}, Counter())
    store.close()


@pytest.mark.slow
def test_a_worker_of_a_new_version_rebuilds_the_open_state_and_its_samples_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    events = pipeline.log_of(PAGES, seed=9)
    expected = pipeline.undisturbed(events)[TRANSITIONS]
    with running("embedded", tmp_path / "broker") as broker:
        create_topics(StreamSettings(broker=broker.address))
        with pipeline.workers(broker.address, tmp_path, "layout", 3.0) as (joiner, _):
            pipeline.produce(broker.address, events[: len(events) // 2])
            half_done = pipeline.read(broker.address, TRANSITIONS, PAGES // 4, timeout_s=60)
            assert len(pipeline.first_by_key(TRANSITIONS, half_done)) >= PAGES // 4
            joiner.stop()
            folders = [tmp_path / "state" / "joiner" / str(partition) for partition in range(pipeline.PARTITIONS)]
            for folder in folders:
                write_in_the_first_layout(folder)
            joiner.start()
            pipeline.produce(broker.address, events[len(events) // 2 :])
            rows = pipeline.read(broker.address, TRANSITIONS, len(expected), timeout_s=60)
    assert pipeline.first_by_key(TRANSITIONS, rows) == expected
    log = (tmp_path / "joiner.log").read_text()
    for folder in folders:
        assert f"the state in {folder} has layout 1, this version has {LAYOUT}: rebuilding it from Kafka" in log

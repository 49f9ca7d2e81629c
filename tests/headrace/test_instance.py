"""Which member of its group a worker is."""

import subprocess
import sys
from pathlib import Path

import pipeline
import pytest

from headrace.broker import create_topics, free_port
from headrace.instance import claim, knows_named_members, member_name
from headrace.settings import ConfigError, StreamSettings
from schemas.topics import SAMPLES

CLAIM = "import sys; from pathlib import Path; from headrace.instance import claim; print(claim(Path(sys.argv[1])))"


def name_in_another_process(folder: Path) -> str:
    return subprocess.run([sys.executable, "-c", CLAIM, str(folder)], check=True, capture_output=True, text=True).stdout.strip()


def test_a_worker_that_is_started_again_on_its_folder_is_the_same_member(tmp_path: Path) -> None:
    name = name_in_another_process(tmp_path / "a")

    assert name_in_another_process(tmp_path / "a") == name
    assert name_in_another_process(tmp_path / "b") != name


def test_a_worker_at_another_address_is_another_member() -> None:
    names = {member_name(folder, host, port) for folder in ("a", "b") for host in ("10.0.0.1", "10.0.0.2") for port in (6066, 6067)}

    assert len(names) == 8
    assert member_name("a", "10.0.0.1", 6066) in names


def test_a_folder_belongs_to_one_worker_at_a_time(tmp_path: Path) -> None:
    claim(tmp_path)

    with pytest.raises(ConfigError, match=r"state in .* is in use by another worker: give each worker its own stream\.state_dir"):
        claim(tmp_path)


def test_a_folder_that_cannot_be_written_is_a_line_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")

    with pytest.raises(ConfigError, match=r"cannot write state in .*/state/joiner: Not a directory; set stream\.state_dir"):
        claim(tmp_path / "state" / "joiner")


def test_the_embedded_broker_gets_no_names(embedded_broker: str) -> None:
    assert not knows_named_members(embedded_broker)


@pytest.mark.kafka
def test_a_real_kafka_gets_names(kafka_broker: str) -> None:
    assert knows_named_members(kafka_broker)


@pytest.mark.kafka
@pytest.mark.slow
def test_a_worker_that_comes_back_at_another_address_reads_on(kafka_broker: str, tmp_path: Path) -> None:
    create_topics(StreamSettings(broker=kafka_broker))
    events = pipeline.log_of(400, seed=12)
    expected = pipeline.undisturbed(events)[SAMPLES]
    worker = pipeline.Worker("joiner", kafka_broker, tmp_path / "state", "address", tmp_path, 6.0)
    try:
        pipeline.produce(kafka_broker, events[: len(events) // 2])
        assert pipeline.read(kafka_broker, SAMPLES, len(expected) // 4, timeout_s=40)
        worker.stop()
        worker.move(free_port())
        pipeline.produce(kafka_broker, events[len(events) // 2 :])
        rows = pipeline.read(kafka_broker, SAMPLES, len(expected), timeout_s=40)
    finally:
        worker.kill()

    assert pipeline.first_by_key(SAMPLES, rows) == expected
    assert "Traceback" not in (tmp_path / "joiner.log").read_text()

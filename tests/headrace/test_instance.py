"""Which member of its group a worker is."""

import subprocess
import sys
from pathlib import Path

import pytest

from headrace.instance import claim, knows_named_members
from headrace.settings import ConfigError

CLAIM = "import sys; from pathlib import Path; from headrace.instance import claim; print(claim(Path(sys.argv[1])))"


def name_in_another_process(folder: Path) -> str:
    return subprocess.run([sys.executable, "-c", CLAIM, str(folder)], check=True, capture_output=True, text=True).stdout.strip()


def test_a_worker_that_is_started_again_on_its_folder_is_the_same_member(tmp_path: Path) -> None:
    name = name_in_another_process(tmp_path / "a")

    assert name_in_another_process(tmp_path / "a") == name
    assert name_in_another_process(tmp_path / "b") != name


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

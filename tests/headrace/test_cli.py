"""The command line as a person meets it: help, exit codes, one-line errors."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.broker import create_topics, free_port, running
from headrace.settings import StreamSettings
from schemas.topics import TOPICS

COMMANDS = ("demo", "broker", "worker", "serve", "simulate", "replay", "tap", "versions", "bench", "doctor", "config")


def headrace(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return subprocess.run(
        [sys.executable, "-m", "headrace", *arguments],
        capture_output=True, text=True, timeout=60, check=False, cwd=cwd, env={**clean, "COLUMNS": "200", **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running("embedded", tmp_path_factory.mktemp("broker")) as broker:
        create_topics(StreamSettings(broker=broker.address))
        yield broker.address


def test_help_is_the_map(tmp_path: Path) -> None:
    shown = headrace("--help", cwd=tmp_path)

    assert shown.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in shown.stdout


def test_a_wrong_setting_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    failed = headrace("config", cwd=tmp_path, HEADRACE_STREAM_PARTITIONS="none")

    assert failed.returncode == 2
    assert failed.stderr == (
        "headrace: setting stream.partitions = 'none': Input should be a valid integer, unable to parse string as an integer\n"
    )


@pytest.mark.slow
def test_an_absent_broker_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    port = free_port()

    failed = headrace("topics", cwd=tmp_path, HEADRACE_STREAM_BROKER=f"127.0.0.1:{port}")

    assert failed.returncode == 2
    assert failed.stderr == (
        f"headrace: no broker answers at 127.0.0.1:{port}: "
        "start one (`headrace broker`), or name yours with HEADRACE_STREAM_BROKER=HOST:PORT\n"
    )


def test_a_taken_port_is_one_line_that_names_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        failed = headrace("worker", "joiner", "--web-port", str(port), cwd=tmp_path)

    assert failed.returncode == 2
    assert failed.stderr.startswith(f"headrace: port {port} is taken")
    assert failed.stderr.count("\n") == 1


def test_other_partition_counts_are_refused_by_name(broker: str, tmp_path: Path) -> None:
    failed = headrace("topics", cwd=tmp_path, HEADRACE_STREAM_BROKER=broker, HEADRACE_STREAM_PARTITIONS="3")

    assert failed.returncode == 2
    assert "setting stream.partitions = 3: but exposures has 4" in failed.stderr


def test_tap_prints_what_was_sent_and_refuses_other_topics(broker: str, tmp_path: Path) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker, "log_level": 0})
    producer.produce("alerts", b'{"rule": "x"}', partition=1)
    producer.produce("alerts", b"not json", partition=1)
    assert producer.flush(10) == 0

    shown = headrace("tap", "alerts", "--limit", "2", cwd=tmp_path, HEADRACE_STREAM_BROKER=broker)
    assert shown.returncode == 0, shown.stderr
    good, bad = map(json.loads, shown.stdout.splitlines())
    assert good == {"partition": 1, "offset": 0, "value": {"rule": "x"}}
    assert bad["offset"] == 1
    assert "malformed" in bad["error"]

    refused = headrace("tap", "nothing", cwd=tmp_path, HEADRACE_STREAM_BROKER=broker)
    assert refused.returncode == 2
    assert refused.stderr == f"headrace: topic 'nothing': choose one of {', '.join(topic.name for topic in TOPICS)}\n"


def test_doctor_says_what_is_there(broker: str, tmp_path: Path) -> None:
    shown = headrace("doctor", cwd=tmp_path, HEADRACE_STREAM_BROKER=broker)

    assert shown.returncode == 0, shown.stdout
    assert f"broker: answers at {broker}" in shown.stdout
    assert f"topics: all {len(TOPICS)} stand" in shown.stdout


def test_doctor_fails_where_something_required_is_wrong(tmp_path: Path) -> None:
    shown = headrace("doctor", cwd=tmp_path, HEADRACE_STREAM_PARTITIONS="0")

    assert shown.returncode == 1
    assert "setting stream.partitions = '0'" in shown.stdout


def test_doctor_fails_where_the_trainer_would_learn_from_instances_that_nobody_makes(tmp_path: Path) -> None:
    shown = headrace("doctor", cwd=tmp_path, HEADRACE_TRAINER_INSTANCE="td3", HEADRACE_EXPERIENCE_INSTANCES='["td1", "mc"]')

    assert shown.returncode == 1
    assert "instances: trainer.instance = 'td3', experience.instances = td1, mc" in shown.stdout


@pytest.mark.parametrize(("emission_mode", "keep_rate", "holds"), [("fast", "1.0", True), ("eager", "1.0", False), ("fast", "0.5", False)])
def test_doctor_fails_where_early_labels_do_not_get_whole_pages_from_the_joiner(
    tmp_path: Path, emission_mode: str, keep_rate: str, holds: bool
) -> None:
    shown = headrace(
        "doctor",
        cwd=tmp_path,
        HEADRACE_EXPERIENCE_LABELS="early",
        HEADRACE_JOINER_EMISSION_MODE=emission_mode,
        HEADRACE_JOINER_NEGATIVE_KEEP_RATE=keep_rate,
    )

    assert (shown.returncode == 0) == holds
    assert f"early labels: joiner.emission_mode = {emission_mode!r}, negative_keep_rate = {keep_rate}" in shown.stdout


def test_versions_of_an_empty_store_are_none_and_unknown_ones_one_line(tmp_path: Path) -> None:
    assert headrace("versions", "list", "--json", "-", cwd=tmp_path).stdout == "[]\n"

    for command in (("promote", "fusion-000001"), ("pin", "fusion-000001"), ("rollback",)):
        failed = headrace("versions", *command, cwd=tmp_path)
        assert failed.returncode == 2
        assert failed.stderr.startswith("headrace: ")
        assert failed.stderr.count("\n") == 1


def test_a_demo_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    failed = headrace("demo", "--dir", "file/demo", cwd=tmp_path)

    assert failed.returncode == 2
    assert failed.stderr == "headrace: cannot write to file/demo: Not a directory; name another folder with --dir\n"

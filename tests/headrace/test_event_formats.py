"""MessagePack exposures and Avro feedback on a broker: the pipeline gives what it gives for JSON, and `tap` shows JSON."""

import json
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import msgspec
import pipeline
import pytest
from confluent_kafka import Producer
from test_faults import dead_letters

from experience.sessions import PartitionSessions
from experience.settings import ExperienceSettings
from headrace.broker import create_topics, running
from headrace.memory_rows import InMemory, MemoryRows
from headrace.runner import Emitted, Event, run
from headrace.settings import StreamSettings, load
from joiner.input_format import event_formats
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings
from schemas.exposure import Exposure
from schemas.topics import EXPOSURES, FEEDBACK, TRANSITIONS

PAGES = 300
SETTINGS = {
    "HEADRACE_JOINER_EXPOSURE_FORMAT": "msgpack",
    "HEADRACE_JOINER_FEEDBACK_FORMAT": "avro",
    "HEADRACE_JOINER_FEEDBACK_AVRO_SCHEMA_ID": "7",
}
UNREADABLE = {EXPOSURES: b'{"version":1}', FEEDBACK: b"\x00\x00\x00\x00\x08" + 40 * b"\x02"}


@pytest.mark.slow
def test_other_formats_give_the_transitions_of_the_same_log_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    formats = event_formats(load(JoinerSettings))
    log = pipeline.log_of(PAGES, seed=4)
    events = [(partition, event._replace(value=formats[event.topic].from_json(event.value))) for partition, event in log]
    of_json = in_process(log)
    with running("embedded", tmp_path / "broker") as broker:
        create_topics(StreamSettings(broker=broker.address))
        producer = Producer({"bootstrap.servers": broker.address, "log_level": 0})
        for topic, value in UNREADABLE.items():
            producer.produce(topic, value, partition=2)
        assert producer.flush(20) == 0
        with pipeline.workers(broker.address, tmp_path, "formats", 3.0):
            pipeline.produce(broker.address, events)
            rows = pipeline.read(broker.address, TRANSITIONS, PAGES, timeout_s=60)
            refused = dead_letters(broker.address, len(of_json.dead_letters) + len(UNREADABLE))
        tapped = tap(broker.address, EXPOSURES, PAGES + pipeline.PARTITIONS + 1)

    expected = [row for message in of_json.transitions for row in pipeline.rows_of(message.value)]
    assert pipeline.first_by_key(TRANSITIONS, rows) == pipeline.first_by_key(TRANSITIONS, expected)
    assert Counter(letter.reason for letter in refused) == Counter({"malformed": 2, "late": len(of_json.dead_letters)})
    malformed = [letter for letter in refused if letter.reason == "malformed"]
    assert {(letter.source_topic, letter.source_partition, letter.source_offset, letter.detail) for letter in malformed} == {
        (EXPOSURES, 2, 0, "Expected `object`, got `int`"),
        (FEEDBACK, 2, 0, "written with schema id 8, expected is 7"),
    }
    (broken,) = [line for line in tapped if "error" in line]
    assert (broken["partition"], broken["offset"], broken["error"]) == (2, 0, "Expected `object`, got `int`")
    shown = [msgspec.convert(line["value"], Exposure) for line in tapped if "value" in line]
    assert len(shown) == PAGES + pipeline.PARTITIONS
    assert shown[0].state == {"hour": 1.0}


def in_process(log: list[tuple[int, Event]]) -> Emitted:
    """What the log gives as JSON, without a broker."""
    join = InMemory(partial(PartitionJoin, JoinerSettings(join_window_ms=pipeline.WINDOW_MS), 0))
    sessions = PartitionSessions(ExperienceSettings(session_gap_ms=pipeline.GAP_MS), 0, MemoryRows())
    return run(join, sessions, [event for _, event in log], pipeline.START_MS + 10**9)[0]


def tap(broker: str, topic: str, lines: int) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "headrace", "tap", topic, "--limit", str(lines)]
    shown = subprocess.run(
        command, env={**os.environ, "HEADRACE_STREAM_BROKER": broker}, capture_output=True, text=True, timeout=60, check=False
    )
    assert shown.returncode == 0, shown.stderr
    return [json.loads(line) for line in shown.stdout.splitlines()]

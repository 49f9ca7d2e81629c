"""Exposures and feedback in other formats than JSON, through the joiner's step."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from join_events import NOW_MS, SETTINGS, WINDOW_MS, counts, exposure, feedback, records, rows, store

from headrace.memory_rows import InMemory
from headrace.settings import ConfigError, load
from headrace.step import Outcome, Record
from joiner.input_format import event_formats
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings
from schemas.codec import decode_exposure_key
from schemas.dead_letter import DeadLetter
from schemas.event_format import EventFormat
from schemas.topics import EXPOSURES, FEEDBACK

FORMATS = ["msgpack", "avro"]
SHIPPED = Path(__file__).parents[2] / "docs" / "schemas"


def settings_of(name: str, **others: Any) -> JoinerSettings:
    return SETTINGS.model_copy(update={"exposure_format": name, "feedback_format": name, **others})


def written(formats: Mapping[str, EventFormat], topic: str, messages: list[Record]) -> list[Record]:
    return [record._replace(value=formats[topic].from_json(record.value)) for record in messages]


LOG = [
    (EXPOSURES, records(exposure("r1", 1000, ["a", "b"]), exposure("r2", 1010), exposure("r1", 1020))),
    (FEEDBACK, records(feedback("r1", 1015, "b"), feedback("r2", 1030, kind="leave"), feedback("r3", 1040), feedback("r1", 1050, "c"))),
    (EXPOSURES, records(exposure("r3", 1035), exposure("r4", NOW_MS + 11), first_offset=3)),
    (EXPOSURES, records(exposure("end", 9000), first_offset=5)),
    (FEEDBACK, records(feedback("r1", 1060, "a"), feedback("end", 9000), first_offset=4)),
    (FEEDBACK, records(feedback("r1", 1070, "b"), first_offset=6)),
]
"""Labels, a page that was left, feedback ahead of its page, a duplicate, an item that was not shown, a future page, feedback too late."""


@pytest.mark.parametrize("name", FORMATS)
def test_the_samples_letters_counts_and_stored_rows_are_those_of_the_same_log_as_json(name: str) -> None:
    formats = event_formats(settings_of(name))
    as_json, other = InMemory(partial(PartitionJoin, SETTINGS, 3)), InMemory(partial(PartitionJoin, SETTINGS, 3, formats=formats))
    samples, reasons = [], []
    for topic, messages in LOG:
        expected = as_json.apply(topic, messages, NOW_MS)
        outcome = other.apply(topic, written(formats, topic, messages), NOW_MS)
        assert outcome == expected
        samples += rows([outcome])
        reasons += [(letter.reason, letter.source_offset) for letter in outcome.dead_letters]
    assert [row["request_id"] for row in samples] == ["r1", "r1", "r2", "r3"]
    assert [row["label_click"] for row in samples] == [1.0, 1.0, 0.0, 1.0]
    assert reasons == [("unknown_item", 3), ("future", 4), ("unknown_request", 6)]
    assert decode_exposure_key(samples[0]["exposure"]).request_id == "r1"


def test_one_topic_may_be_avro_and_the_other_json() -> None:
    settings = SETTINGS.model_copy(update={"exposure_format": "avro"})
    formats = event_formats(settings)
    assert set(formats) == {EXPOSURES}
    step = InMemory(partial(PartitionJoin, settings, 3, formats=formats))
    step.apply(EXPOSURES, written(formats, EXPOSURES, records(exposure("r1", 1000))), NOW_MS)
    assert step.apply(FEEDBACK, records(feedback("r1", 1010)), NOW_MS).dead_letters == []


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("topic", "good"),
    [(EXPOSURES, [exposure("r1", 1000), exposure("r2", 1001)]), (FEEDBACK, [feedback("r1", 1000), feedback("r2", 1001)])],
)
def test_what_cannot_be_read_is_a_dead_letter_of_its_own_bytes_and_the_others_of_the_batch_are_joined(
    name: str, topic: str, good: list[bytes]
) -> None:
    formats = event_formats(settings_of(name))
    values = [formats[topic].from_json(value) for value in good]
    truncated = values[0][:-1]
    batch = [Record(7, NOW_MS, values[0]), Record(9, NOW_MS, truncated), Record(12, NOW_MS, b""), Record(13, NOW_MS, values[1])]
    step = InMemory(partial(PartitionJoin, SETTINGS, 3, formats=formats))
    outcome = step.apply(topic, batch, NOW_MS)
    assert [(letter.reason, letter.source_topic, letter.source_partition, letter.source_offset, letter.size_bytes)
            for letter in outcome.dead_letters] == [
        ("malformed", topic, 3, 9, len(truncated)), ("malformed", topic, 3, 12, 0),
    ]  # fmt: skip
    assert counts([outcome], "in") == {topic: 4}
    assert counts([outcome], "rejected") == {"malformed": 2}
    gauges = step.gauges()
    assert gauges["open_pages" if topic == EXPOSURES else "waiting_feedback"] == 2
    assert outcome.needed_from[topic] == 7


@pytest.mark.parametrize("name", FORMATS)
def test_a_batch_of_which_nothing_can_be_read_passes_like_one_of_broken_json(name: str) -> None:
    formats = event_formats(settings_of(name))
    for topic in (EXPOSURES, FEEDBACK):
        of_json = InMemory(partial(PartitionJoin, SETTINGS, 3)).apply(topic, records(b"", b"{"), NOW_MS)
        outcome = InMemory(partial(PartitionJoin, SETTINGS, 3, formats=formats)).apply(topic, records(b"", b"\xff"), NOW_MS)
        assert [letter.reason for letter in outcome.dead_letters] == ["malformed", "malformed"]
        assert (outcome.needed_from, outcome.changes, outcome.counts) == (of_json.needed_from, of_json.changes, of_json.counts)


def test_what_a_schema_cannot_say_is_checked_in_avro_as_in_json() -> None:
    formats = event_formats(settings_of("avro"))
    empty_id = formats[FEEDBACK].from_json(feedback("r1", 1000)).replace(b"\x04r1", b"\x00", 1)
    [letter] = (
        InMemory(partial(PartitionJoin, SETTINGS, 3, formats=formats)).apply(FEEDBACK, [Record(5, NOW_MS, empty_id)], NOW_MS).dead_letters
    )
    assert letter == DeadLetter(
        stage="joiner",
        reason="malformed",
        detail=letter.detail,
        source_topic=FEEDBACK,
        source_partition=3,
        source_offset=5,
        size_bytes=letter.size_bytes,
        ts_ms=NOW_MS,
    )
    assert "length >= 1 - at `$.request_id`" in letter.detail


@pytest.mark.parametrize(
    ("numbers", "detail"), [(2000, "{event} bytes, allowed are"), (400, "{json} bytes as JSON, allowed are"), (200, None)]
)
def test_the_limit_of_size_holds_for_the_event_and_for_its_json(numbers: int, detail: str | None) -> None:
    formats = event_formats(settings_of("msgpack"))
    message = exposure("r1", 1000, action=[1.0 + 2.0**-30] * numbers)
    value = formats[EXPOSURES].from_json(message)
    letters = (
        InMemory(partial(PartitionJoin, SETTINGS, 3, formats=formats)).apply(EXPOSURES, [Record(5, NOW_MS, value)], NOW_MS).dead_letters
    )
    expected = [] if detail is None else [("too_large", f"{detail.format(event=len(value), json=len(message))} 4096", len(value))]
    assert [(letter.reason, letter.detail, letter.size_bytes) for letter in letters] == expected


@pytest.mark.parametrize("name", FORMATS)
def test_the_stored_state_is_json_and_goes_on_whatever_the_format_is_then(name: str) -> None:
    formats = event_formats(settings_of(name))
    stored: dict[bytes, bytes] = {}
    step = InMemory(partial(PartitionJoin, SETTINGS, 3, formats=formats))
    store(stored, step.apply(EXPOSURES, written(formats, EXPOSURES, records(exposure("r1", 1000))), NOW_MS))
    store(stored, step.apply(FEEDBACK, written(formats, FEEDBACK, records(feedback("r1", 1010), feedback("r2", 1010))), NOW_MS))
    again = InMemory(partial(PartitionJoin, SETTINGS, 3), sorted(stored.items()))
    assert again.gauges() == step.gauges()
    ends: list[Outcome] = []
    for topic, value in ((EXPOSURES, exposure("end", 1010 + 2 * WINDOW_MS)), (FEEDBACK, feedback("end", 1010 + 2 * WINDOW_MS))):
        ends.append(again.apply(topic, records(value, first_offset=9), NOW_MS))
    assert [row["label_click"] for row in rows(ends)] == [1.0]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"exposure_format": "xml"}, "joiner.exposure_format = 'xml': Input should be 'json', 'msgpack' or 'avro'"),
        ({"exposure_avro_schema": "x.avsc"}, "joiner.exposure_avro_schema = 'x.avsc': only where joiner.exposure_format = \"avro\""),
        ({"feedback_format": "msgpack", "feedback_avro_schema_id": 3}, "joiner.feedback_avro_schema_id = 3: only where joiner.feedback_f"),
        ({"feedback_format": "avro", "feedback_avro_schema_id": -1}, "joiner.feedback_avro_schema_id = -1: Input should be greater"),
        ({"feedback_format": "avro", "feedback_avro_schema_id": 2**31}, "feedback_avro_schema_id = 2147483648: Input should be less"),
        ({"exposure_format": "avro", "exposure_avro_schema": "no.avsc"}, "exposure_avro_schema = 'no.avsc': cannot be read: No such file"),
        (
            {"exposure_format": "avro", "exposure_avro_schema": str(SHIPPED / "feedback.avsc")},
            "does not describe the message: Exposure has no field event_id, only version, ",
        ),
    ],
)  # fmt: skip
def test_a_wrong_format_or_schema_is_one_line_that_names_it(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(JoinerSettings, **wrong)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_the_shipped_schema_files_are_the_default() -> None:
    files = {"exposure_avro_schema": SHIPPED / "exposure.avsc", "feedback_avro_schema": SHIPPED / "feedback.avsc"}
    named = event_formats(load(JoinerSettings, exposure_format="avro", feedback_format="avro", **files))
    default = event_formats(load(JoinerSettings, exposure_format="avro", feedback_format="avro"))
    for topic, value in ((EXPOSURES, exposure("r1", 1000)), (FEEDBACK, feedback("r1", 1000))):
        assert named[topic].to_json(default[topic].from_json(value)) == value
        assert msgspec.json.decode(value)

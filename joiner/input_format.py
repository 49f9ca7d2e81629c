"""MessagePack and Avro become JSON messages at the joiner's edge, once. Behind it there is one format."""

from collections.abc import Mapping, Sequence

from headrace.step import Record
from joiner.refusal import Refusals
from joiner.settings import JoinerSettings
from schemas.codec import UNREADABLE
from schemas.event_format import EventFormat, event_format
from schemas.exposure import Exposure
from schemas.feedback import Feedback
from schemas.topics import EXPOSURES, FEEDBACK


def event_formats(settings: JoinerSettings) -> Mapping[str, EventFormat]:
    """By topic how its events are read and written, where they are not JSON."""
    formats = {
        EXPOSURES: event_format(settings.exposure_format, Exposure, settings.exposure_avro_schema, settings.exposure_avro_schema_id),
        FEEDBACK: event_format(settings.feedback_format, Feedback, settings.feedback_avro_schema, settings.feedback_avro_schema_id),
    }
    return {topic: known for topic, known in formats.items() if known is not None}


def as_json(topic: str, records: Sequence[Record], event: EventFormat, max_bytes: int, refusals: Refusals) -> list[Record]:
    """The records with JSON messages as their values; what is no such event, or too large as it is or as JSON, is refused."""
    messages = []
    for record in records:
        if len(record.value) > max_bytes:
            refusals.refuse(topic, record, "too_large", f"{len(record.value)} bytes, allowed are {max_bytes}")
            continue
        try:
            message = event.to_json(record.value)
        except UNREADABLE as error:
            refusals.refuse(topic, record, "malformed", str(error))
            continue
        if len(message) > max_bytes:
            refusals.refuse(topic, record, "too_large", f"{len(message)} bytes as JSON, allowed are {max_bytes}")
            continue
        messages.append(Record(record.offset, record.arrival_ms, message))
    return messages

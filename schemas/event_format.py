"""How an event lies in its topic: JSON, MessagePack or Avro. Behind the edge there is one format, the JSON message."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from schemas.codec import encode_json

Format = Literal["json", "msgpack", "avro"]


class EventFormat(NamedTuple):
    """Both ways between a topic's bytes and the JSON message. Each raises one of `schemas.codec.UNREADABLE` where there is none."""

    to_json: Callable[[bytes], bytes]
    from_json: Callable[[bytes], bytes]


def event_format(
    name: Format, message: type[msgspec.Struct], avro_schema: Path | None = None, avro_schema_id: int | None = None
) -> EventFormat | None:
    """The format of a topic that holds `message`; None for JSON, where nothing is to be done.

    `avro_schema` is the file of the writer's schema, by default ours. Raises `schemas.avro.WrongSchemaError` where it does not fit.
    """
    match name:
        case "json":
            return None
        case "msgpack":
            return _msgpack(message)
        case "avro":
            from schemas.avro import avro_format, read_schema, shipped_schema  # noqa: PLC0415  what most topics do not need

            schema = shipped_schema(message) if avro_schema is None else read_schema(avro_schema, message)
            return avro_format(message, schema, avro_schema_id)


def _msgpack(message: type[msgspec.Struct]) -> EventFormat:
    """A map with the message's fields. It is opened whole and checked as strictly as JSON."""
    unpack, pack = msgspec.msgpack.Decoder(message).decode, msgspec.msgpack.Encoder().encode
    decode = msgspec.json.Decoder(message).decode

    def to_json(value: bytes) -> bytes:
        encoded = encode_json(unpack(value))
        if b"null" in encoded:  # how NaN and infinities are written: no message has a null, and the decoder says where this one is
            decode(encoded)
        return encoded

    return EventFormat(to_json, lambda encoded: pack(decode(encoded)))

"""Avro events without a registry: our schemas, what a schema of somebody else's must be like, reading and writing by one schema.

An Avro datum holds no names and no types: it can be read only by the schema that it was written with, which is a file (`.avsc`) here.
Producers that use Confluent's registry put five bytes in front: a zero, and the schema's id in that registry.
"""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
from fastavro import parse_schema, schemaless_reader, schemaless_writer
from fastavro.schema import SchemaParseException, UnknownType, expand_schema
from msgspec import inspect

from schemas.codec import encode_json
from schemas.event_format import EventFormat

Schema = dict[str, Any]

_PRIMITIVES: dict[type[inspect.Type], tuple[str, ...]] = {
    inspect.FloatType: ("double", "float", "long", "int"),
    inspect.StrType: ("string", "enum"),
    inspect.IntType: ("long", "int"),
    inspect.LiteralType: ("int", "long"),
}
"""The Avro types whose values are of a message's type; the first one is the one in our schemas."""
SAME_IN_JSON = ("timestamp-millis", "uuid")
"""Logical types whose plain value is what the message holds."""


class WrongSchemaError(ValueError):
    """A schema whose data are not the message. Its text is one line."""


def shipped_schema(message: type[msgspec.Struct]) -> Schema:
    """The schema that producers without one of their own may use: docs/schemas/*.avsc."""
    schema: Schema = _avro_type(inspect.type_info(message))
    return {"type": "record", "name": schema["name"], "namespace": "headrace", "fields": schema["fields"]}


def _avro_type(kind: inspect.Type) -> Any:
    avro: Any
    match kind:
        case inspect.StructType():
            avro = {"type": "record", "name": kind.cls.__name__, "fields": [_avro_field(field) for field in kind.fields]}
        case inspect.DictType():
            avro = {"type": "map", "values": _avro_type(kind.value_type)}
        case inspect.ListType():
            avro = {"type": "array", "items": _avro_type(kind.item_type)}
        case inspect.UnionType():  # without a state's objects: a type that holds itself must be a record
            avro = [_avro_type(branch) for branch in kind.types if not isinstance(branch, inspect.DictType)]
        case inspect.IntType():
            avro = "int" if kind.le is not None and kind.le < 2**31 else "long"
        case inspect.AnyType():
            avro = "any"  # for what is said of a misfit: our schemas have none
        case _:
            avro = _PRIMITIVES[type(kind)][0]
    return avro


def _avro_field(field: inspect.Field) -> Schema:
    kind = _avro_type(field.type)
    described = {"name": field.name, "type": {"type": kind, "logicalType": "timestamp-millis"} if field.name == "ts_ms" else kind}
    if field.default is not msgspec.NODEFAULT:
        described["default"] = field.default
    elif field.default_factory is not msgspec.NODEFAULT:
        described["default"] = field.default_factory()
    return described


def read_schema(path: Path, message: type[msgspec.Struct]) -> Schema:
    """The writer's schema of a file. Raises WrongSchemaError where there is none, or where its data would not be the message."""
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        expanded = expand_schema(schema)
    except OSError as error:
        raise WrongSchemaError(f"cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, SchemaParseException, UnknownType) as error:
        raise WrongSchemaError(f"no Avro schema: {type(error).__name__}: {error}") from error
    for misfit in _misfits(expanded, inspect.type_info(message), message.__name__):
        raise WrongSchemaError(f"does not describe the message: {misfit}")
    if not isinstance(schema, dict):
        raise WrongSchemaError("does not describe the message: it must be one record")
    return schema


def _misfits(avro: Any, kind: inspect.Type, place: str, may_be_null: bool = False) -> Iterator[str]:
    """Why data of this Avro type would not be what the message has at `place`. Null fits where the message may do without a value."""
    if isinstance(avro, list):
        for branch in avro:
            yield from _misfits(branch, kind, place, may_be_null)
        return
    name = avro["type"] if isinstance(avro, dict) else avro
    if isinstance(avro, dict) and avro.get("logicalType", "uuid") not in SAME_IN_JSON:
        yield f"{place} has the logical type {avro['logicalType']}, allowed are {' and '.join(SAME_IN_JSON)}"
        return
    match kind, name:
        case inspect.StructType(), "record":
            yield from _misfits_of_fields(avro["fields"], kind, place)
        case inspect.DictType(), "record":
            for field in avro["fields"]:
                yield from _misfits(field["type"], kind.value_type, f"{place}.{field['name']}", may_be_null=True)
        case inspect.DictType(), "map":
            yield from _misfits(avro["values"], kind.value_type, f"{place}.*", may_be_null=True)
        case inspect.ListType(), "array":
            yield from _misfits(avro["items"], kind.item_type, f"{place}[]")
        case inspect.AnyType(), _:
            yield from _misfits_of_any(avro, name, place)
        case inspect.UnionType(), _ if any(not any(_misfits(avro, branch, place, may_be_null)) for branch in kind.types):
            pass
        case _ if name not in _PRIMITIVES.get(type(kind), ()) and not (name == "null" and may_be_null):
            yield f"{place} is {name}, expected is {_named(_avro_type(kind))}"


def _misfits_of_any(avro: Any, name: str, place: str) -> Iterator[str]:
    """What lies in an object of a state, however deep."""
    kind = inspect.AnyType()
    match name:
        case "record":
            for field in avro["fields"]:
                yield from _misfits(field["type"], kind, f"{place}.{field['name']}", may_be_null=True)
        case "map":
            yield from _misfits(avro["values"], kind, f"{place}.*", may_be_null=True)
        case "array":
            yield from _misfits(avro["items"], kind, f"{place}[]")
        case _ if name != "null" and not any(name in names for names in _PRIMITIVES.values()):
            yield f"{place} is {name}, expected is a value of JSON"


def _named(avro: Any) -> str:
    if isinstance(avro, list):
        return " or ".join(map(_named, avro))
    return str(avro["type"] if isinstance(avro, dict) else avro)


def _misfits_of_fields(fields: list[Schema], kind: inspect.StructType, place: str) -> Iterator[str]:
    known = {field.name: field for field in kind.fields}
    for field in fields:
        if field["name"] not in known:
            yield f"{place} has no field {field['name']}, only {', '.join(known)}"
        else:
            expected = known[field["name"]]
            yield from _misfits(field["type"], expected.type, f"{place}.{expected.name}", may_be_null=not expected.required)
    for missing in [field.name for field in kind.fields if field.required and field.name not in {field["name"] for field in fields}]:
        yield f"{place} needs a field {missing}"


def avro_format(message: type[msgspec.Struct], schema: Schema, schema_id: int | None) -> EventFormat:
    """Data of `schema`; with Confluent's five bytes in front where there is a `schema_id`. Data of another id are refused, not misread."""
    parsed = parse_schema(_plain(schema))
    frame = b"" if schema_id is None else b"\0" + schema_id.to_bytes(4, "big")
    decode = msgspec.json.Decoder(message).decode

    known = {field["name"] for field in schema["fields"]}

    def written(event: msgspec.Struct) -> dict[str, Any]:
        """All but empty texts that the schema has no field for: they say nothing, and a reader fills them in again."""
        plain: dict[str, Any] = msgspec.to_builtins(event)
        return {name: value for name, value in plain.items() if name in known or value != ""}

    def to_json(value: bytes) -> bytes:
        if not value.startswith(frame):
            raise msgspec.DecodeError(_wrong_frame(value, schema_id))
        stream = BytesIO(value[len(frame) :])
        try:
            event = schemaless_reader(stream, parsed, None)
        except (EOFError, IndexError, OverflowError) as error:
            raise msgspec.DecodeError(f"Avro data are malformed: {str(error) or 'truncated'}") from error
        if stream.read(1):
            raise msgspec.DecodeError(f"Avro data are malformed: trailing characters (byte {len(frame) + stream.tell() - 1})")
        encoded = encode_json(event)
        if b"null" in encoded:  # an Avro null, which is left out; or NaN or an infinity, which no message has
            encoded = encode_json(_without_nulls(event))
            decode(encoded)
        return encoded

    def from_json(encoded: bytes) -> bytes:
        event, stream = decode(encoded), BytesIO()
        stream.write(frame)
        try:
            schemaless_writer(stream, parsed, written(event), strict_allow_default=True)
            is_kept = decode(to_json(stream.getvalue())) == event  # fastavro writes 0.5 as the int 0, and 1e300 as an infinite float
        except (ValueError, TypeError, OverflowError, msgspec.DecodeError) as error:
            raise msgspec.ValidationError(f"the topic's Avro schema has no place for it: {error}") from error
        if not is_kept:
            raise msgspec.ValidationError("the topic's Avro schema has no place for it: a number does not come back as it was")
        return stream.getvalue()

    return EventFormat(to_json, from_json)


def _plain(schema: Any) -> Any:
    """The schema without its logical types: times stay milliseconds, as in the message."""
    if isinstance(schema, dict):
        return {name: _plain(part) for name, part in schema.items() if name != "logicalType"}
    return [_plain(part) for part in schema] if isinstance(schema, list) else schema


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _wrong_frame(value: bytes, schema_id: int | None) -> str:
    if len(value) < 5 or value[0] != 0:
        return "no Confluent frame: a zero and four bytes of schema id are expected in front"
    return f"written with schema id {int.from_bytes(value[1:5], 'big')}, expected is {schema_id}"

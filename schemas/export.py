"""The schemas as files for readers and other languages: `python -m schemas.export [FOLDER]` (docs/schemas)."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
from pydantic import BaseModel

from schemas import alert, dead_letter, exposure, feedback, policy
from schemas.action import ActionSpec
from schemas.avro import shipped_schema
from schemas.features import DenseFeature, FeatureSpec, IdFeature, SequenceFeature
from schemas.pointwise_sample import pointwise_schema
from schemas.sample import sample_schema
from schemas.transition import transition_schema

DEFAULT_FOLDER = Path("docs/schemas")
DIALECT = "https://json-schema.org/draft/2020-12/schema"
EXAMPLE_KINDS = ("click", "pay")
FEATURES_EXAMPLE = FeatureSpec(
    dense=(DenseFeature(name="hour"),), ids=(IdFeature(name="city"),), sequences=(SequenceFeature(name="recent_items"),)
)
"""The specification that reads the state of the example exposure."""


class JsonMessage(NamedTuple):
    """A JSON message or specification: the class that reads it, and a valid example."""

    reader: type[msgspec.Struct] | type[BaseModel]
    example: msgspec.Struct | BaseModel


MESSAGES: dict[str, JsonMessage] = {
    "exposure": JsonMessage(exposure.Exposure, exposure.EXAMPLE),
    "feedback": JsonMessage(feedback.Feedback, feedback.EXAMPLE),
    "policy_version": JsonMessage(policy.PolicyVersion, policy.EXAMPLE),
    "candidate": JsonMessage(policy.Candidate, policy.CANDIDATE_EXAMPLE),
    "alert": JsonMessage(alert.Alert, alert.EXAMPLE),
    "dead_letter": JsonMessage(dead_letter.DeadLetter, dead_letter.EXAMPLE),
    "action_spec": JsonMessage(ActionSpec, ActionSpec()),
    "feature_spec": JsonMessage(FeatureSpec, FEATURES_EXAMPLE),
}


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a message, with its example."""
    reader, example = MESSAGES[name]
    if issubclass(reader, BaseModel):
        return {"$schema": DIALECT, **reader.model_json_schema(), "examples": [_plain(example)]}
    return {"$schema": DIALECT, **msgspec.json.schema(reader), "examples": [_plain(example)]}


def _plain(example: msgspec.Struct | BaseModel) -> Any:
    return example.model_dump(mode="json") if isinstance(example, BaseModel) else msgspec.to_builtins(example)


def arrow_tables() -> str:
    """The columns of the Arrow topics as a markdown page."""
    parts = [
        "# Columns of the Arrow topics\n",
        "Written by `python -m schemas.export`. One message is one record batch (Arrow IPC stream, LZ4). Its schema's metadata holds",
        "`headrace.schema`, `headrace.version`, `headrace.kinds` (the kinds of feedback, comma-separated) and `headrace.watermark_ms`",
        "(no later batch of the partition holds a row with an older `ts_ms`). The tables show the kinds "
        + " and ".join(f"`{kind}`" for kind in EXAMPLE_KINDS)
        + ".\n",
    ]
    schemas = {"samples": sample_schema, "pointwise-samples": pointwise_schema, "transitions": transition_schema}
    for name, make in schemas.items():
        schema = make(EXAMPLE_KINDS)
        rows = [f"| `{field.name}` | {_arrow_type(field.type)} | {'yes' if field.nullable else 'no'} |" for field in schema]
        version = schema.metadata[b"headrace.version"].decode()
        parts += [f"## {name}, version {version}\n", "| column | type | null |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


def _arrow_type(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return f"{kind.value_type} (dictionary of {kind.index_type})"
    return "float32" if pa.types.is_float32(kind) else str(kind)


def export(folder: Path) -> list[Path]:
    """Write one `<message>.schema.json` a message, `<event>.avsc` and `arrow.md`; the files that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        f"{name}.schema.json": msgspec.json.format(msgspec.json.encode(json_schema(name)), indent=2).decode() + "\n" for name in MESSAGES
    }
    texts |= {
        f"{message.__name__.lower()}.avsc": json.dumps(shipped_schema(message), indent=2) + "\n"
        for message in (exposure.Exposure, feedback.Feedback)
    }
    texts["arrow.md"] = arrow_tables()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


if __name__ == "__main__":
    for path in export(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER):
        print(path)

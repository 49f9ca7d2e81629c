"""Bytes <-> columns: the one place where messages are opened and closed."""

import msgspec
import pyarrow as pa

from schemas.exposure import ExposureKey, ServedArm, ServedState
from schemas.feedback import Feedback
from schemas.pointwise_sample import VERSION as POINTWISE_VERSION
from schemas.sample import VERSION as SAMPLE_VERSION
from schemas.transition import VERSION as TRANSITION_VERSION

WATERMARK_KEY = b"headrace.watermark_ms"
_VERSIONS = {"samples": SAMPLE_VERSION, "pointwise-samples": POINTWISE_VERSION, "transitions": TRANSITION_VERSION}

decode_exposure_key = msgspec.json.Decoder(ExposureKey).decode
decode_served_state = msgspec.json.Decoder(ServedState).decode
decode_arm = msgspec.json.Decoder(ServedArm).decode
decode_feedback = msgspec.json.Decoder(Feedback).decode
encode_json = msgspec.json.Encoder().encode

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What the JSON decoders raise for bytes that are not the message: malformed, wrong types, missing or unknown fields, too deep."""

# One message is too small to share out among threads: waking them costs more than they do.
_LZ4 = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_ONE_THREAD = pa.ipc.IpcReadOptions(use_threads=False)


class WrongBatchError(ValueError):
    """A message that is not the record batch that its topic promises."""


def encode_batch(batch: pa.RecordBatch, watermark_ms: int) -> bytes:
    """One record batch as one message (Arrow IPC stream, LZ4).

    `watermark_ms` is the producer's promise that no later batch of this partition holds a row older than it.
    """
    metadata = {**(batch.schema.metadata or {}), WATERMARK_KEY: b"%d" % watermark_ms}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema.with_metadata(metadata), options=_LZ4) as writer:
        writer.write_batch(batch)
    message: bytes = sink.getvalue().to_pybytes()
    return message


def decode_batch(message: bytes, schema_name: str) -> tuple[pa.RecordBatch, int]:
    """The record batch of a message and the watermark that came with it.

    Raises WrongBatchError where the bytes are no Arrow stream, or one of another schema or version.
    """
    try:
        with pa.ipc.open_stream(message, options=_ONE_THREAD) as reader:
            metadata = reader.schema.metadata or {}
            version = _VERSIONS[schema_name]
            if metadata.get(b"headrace.schema") != schema_name.encode() or metadata.get(b"headrace.version") != b"%d" % version:
                found = metadata.get(b"headrace.schema", b"?") + b" version " + metadata.get(b"headrace.version", b"?")
                raise WrongBatchError(f"expected a batch of {schema_name} version {version}, got {found.decode()}")
            return reader.read_next_batch(), int(metadata[WATERMARK_KEY])
    except WrongBatchError:
        raise
    except (ValueError, KeyError, StopIteration, OSError, pa.ArrowException) as error:
        raise WrongBatchError(f"not a record batch of {schema_name}: {error}") from error


def batch_kinds(schema: pa.Schema) -> tuple[str, ...]:
    """The feedback kinds that a samples or transitions schema was made with."""
    return tuple(kind for kind in schema.metadata[b"headrace.kinds"].decode().split(",") if kind)

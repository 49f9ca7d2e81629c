"""What the format of the events costs the joiner: one log as JSON, MessagePack and Avro, through the same step, in turns.

Beside each stands the least that a Python consumer pays for the same bytes: the plain decoder of the format alone, to a dict, with
nothing checked or joined (orjson, msgspec, fastavro). The samples of all formats must be the same in every round.
"""

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any, get_args

import msgspec
import orjson
from fastavro import parse_schema, schemaless_reader
from rich.console import Console
from rich.table import Table

from benchmarks.join_in_memory import WINDOW_MS, Batch, make_log
from headrace.memory_rows import InMemory
from headrace.step import Record
from joiner.input_format import event_formats
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings
from schemas.avro import shipped_schema
from schemas.codec import decode_batch
from schemas.event_format import Format
from schemas.exposure import Exposure
from schemas.feedback import Feedback
from schemas.topics import EXPOSURES, FEEDBACK

SCOPE = "one partition, records in memory -> samples in memory; no broker, no disk"
FORMATS: tuple[Format, ...] = get_args(Format)
MESSAGES: dict[str, type[msgspec.Struct]] = {EXPOSURES: Exposure, FEEDBACK: Feedback}
Sample = tuple[str, str, float]


def settings_of(name: Format) -> JoinerSettings:
    """Both topics in one format."""
    return JoinerSettings(join_window_ms=WINDOW_MS, exposure_format=name, feedback_format=name)


def in_format(batches: list[Batch], name: Format) -> list[Batch]:
    """The log as a producer of this format writes it."""
    formats = event_formats(settings_of(name))
    if not formats:
        return batches
    return [
        (topic, [Record(offset, arrival_ms, formats[topic].from_json(value)) for offset, arrival_ms, value in records], now_ms)
        for topic, records, now_ms in batches
    ]


def run_step(batches: list[Batch], name: Format) -> tuple[float, list[Sample]]:
    """Seconds that the joiner's step takes, and the labelled samples."""
    settings, sent = settings_of(name), []
    step = InMemory(partial(PartitionJoin, settings, 0, formats=event_formats(settings)))
    start_s = time.perf_counter()
    for topic, records, now_ms in batches:
        sent += step.apply(topic, records, now_ms).outputs
    step.tick(now_ms)
    sent += step.tick(now_ms + 10 * WINDOW_MS).outputs  # both topics idle: everything closes
    wall_s = time.perf_counter() - start_s
    samples: list[Sample] = []
    for output in sent:
        batch, _ = decode_batch(output.value, "samples")
        samples += zip(*(batch[column].to_pylist() for column in ("request_id", "item_id", "label_click")), strict=True)
    return wall_s, samples


def run_decoder(batches: list[Batch], name: Format) -> float:
    """Seconds that the plain decoder takes to make dicts."""
    decoders: dict[str, dict[str, Callable[[bytes], Any]]] = {
        "json": dict.fromkeys(MESSAGES, orjson.loads),
        "msgpack": dict.fromkeys(MESSAGES, msgspec.msgpack.Decoder().decode),
        "avro": {topic: _avro_decoder(message) for topic, message in MESSAGES.items()},
    }
    start_s = time.perf_counter()
    for topic, records, _ in batches:
        decode = decoders[name][topic]
        for record in records:
            decode(record.value)
    return time.perf_counter() - start_s


def _avro_decoder(message: type[msgspec.Struct]) -> Callable[[bytes], Any]:
    schema = parse_schema(shipped_schema(message))
    return lambda value: schemaless_reader(BytesIO(value), schema, None)


def _mean_bytes(batches: list[Batch], of_topic: str) -> float:
    return statistics.fmean(len(record.value) for topic, records, _ in batches if topic == of_topic for record in records)


def main(exposures: int = 100_000, rounds: int = 3) -> dict[str, Any]:
    """Medians over the rounds, in microseconds an event. Raises ValueError where a format gives other samples than JSON."""
    log = make_log(exposures, 1)
    events = log.exposures + log.feedback
    batches = {name: in_format(log.batches, name) for name in FORMATS}
    step_s: dict[str, list[float]] = {name: [] for name in FORMATS}
    decoder_s: dict[str, list[float]] = {name: [] for name in FORMATS}
    gc.collect()
    gc.freeze()  # the logs are no part of what is measured
    try:
        for _ in range(rounds):
            expected: list[Sample] = []
            for name in FORMATS:
                decoder_s[name].append(run_decoder(batches[name], name))
                wall_s, samples = run_step(batches[name], name)
                step_s[name].append(wall_s)
                expected = expected or samples
                if samples != expected or len(samples) != log.items:
                    raise ValueError(f"{name} gave {len(samples)} samples that are not the {len(expected)} of {FORMATS[0]}")
    finally:
        gc.unfreeze()
    return {
        "benchmark": "formats",
        "scope": SCOPE,
        "machine": {"python": platform.python_version(), "cpus": os.cpu_count(), "load_1min": os.getloadavg()[0]},
        "rounds": rounds,
        "exposures": log.exposures,
        "feedback": log.feedback,
        "formats": {
            name: {
                "exposure_bytes": round(_mean_bytes(batches[name], EXPOSURES)),
                "step_us_per_event": round(1e6 * statistics.median(step_s[name]) / events, 2),
                "decoder_us_per_event": round(1e6 * statistics.median(decoder_s[name]) / events, 2),
                "time_ratio_to_json": round(statistics.median(s / json for s, json in zip(step_s[name], step_s["json"], strict=True)), 2),
            }
            for name in FORMATS
        },
    }


def show(report: dict[str, Any]) -> None:
    """The report as a table on standard error."""
    table = Table("format", title=report["scope"], title_justify="left")
    for column in ("bytes an exposure", "step us/event", "of JSON's time", "plain decoder alone us/event"):
        table.add_column(column, justify="right")
    for name, figures in report["formats"].items():
        table.add_row(
            name,
            str(figures["exposure_bytes"]),
            f"{figures['step_us_per_event']:.2f}",
            f"{figures['time_ratio_to_json']:.2f}",
            f"{figures['decoder_us_per_event']:.2f}",
        )
    Console(stderr=True).print(table)

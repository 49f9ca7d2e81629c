"""The benchmark of the formats runs, and finds a format that gives other samples."""

import json

import pytest

from benchmarks import formats
from benchmarks.join_in_memory import Batch
from schemas.event_format import Format


def test_the_benchmark_reports_every_format_beside_its_plain_decoder() -> None:
    report = json.loads(json.dumps(formats.main(exposures=1000, rounds=2)))
    assert list(report["formats"]) == ["json", "msgpack", "avro"]
    for figures in report["formats"].values():
        assert 0 < figures["decoder_us_per_event"] < figures["step_us_per_event"]
    assert report["formats"]["json"]["time_ratio_to_json"] == 1.0
    sizes = [figures["exposure_bytes"] for figures in report["formats"].values()]
    assert sizes == sorted(sizes, reverse=True)


def test_a_format_that_loses_a_label_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = formats.in_format

    def lossy(batches: list[Batch], name: Format) -> list[Batch]:
        written = whole(batches, name)
        return (
            [(topic, records[:-1] if topic == "feedback" else records, now_ms) for topic, records, now_ms in written]
            if name == "avro"
            else written
        )

    monkeypatch.setattr(formats, "in_format", lossy)
    with pytest.raises(ValueError, match="avro gave 1000 samples that are not the 1000 of json"):
        formats.main(exposures=1000, rounds=1)

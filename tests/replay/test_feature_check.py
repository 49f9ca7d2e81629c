"""`headrace features`: what is said of each feature of a log, and the specification as a table."""

import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from synthetic_logs import exposure, write_ndjson
from typer.testing import CliRunner

from headrace.cli import app
from headrace.feature_check import FeatureCheck, has_faults
from headrace.feature_picture import markdown_table, show, svg
from schemas.features import FeatureSpec

SPEC = FeatureSpec.model_validate(
    {
        "dense": [
            {"name": "price"},
            {"name": "price_log", "source": "price", "normalisation": "log_zscore"},
            {"name": "absent"},
            {"name": "one"},
        ],
        "ids": [{"name": "city", "buckets": 3}],
        "sequences": [{"name": "recent", "length": 2, "buckets": 4096}],
        "binary_sequences": [{"name": "habit", "windows": ["1h", "1d"]}],
        "crosses": [{"name": "city_habit", "of": ["city", "habit"], "buckets": 64}],
        "vectors": [{"name": "text", "size": 2}],
    }
)


def states(count: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        state = {
            "price": float(np.exp(rng.normal(0, 3))),
            "one": 1.0,
            "city": f"c-{number % 8}",
            "recent": [f"i-{item}" for item in range(number % 4)],
            "habit": "01" if number % 4 else "11",
            "text": [3.0, 4.0],
            "mood": "good",
        }
        if number % 2:
            del state["habit"]
        made.append(state)
    return made


def messages(of: list[dict[str, object]]) -> list[bytes]:
    return [json.dumps({"state": state, "action": [1.0]}).encode() for state in of]


def report_on(of: list[bytes]) -> dict[str, dict[str, object]]:
    check = FeatureCheck(SPEC)
    check.add(of)
    report = check.report()
    return {feature["name"]: feature for feature in report["features"]} | {"": report}


def test_the_figures_are_those_of_the_states() -> None:
    report = report_on(messages(states(400)))
    prices = np.array([state["price"] for state in states(400)])
    price = report["price"]
    assert (price["coverage"], price["min"], price["max"]) == (1.0, prices.min(), prices.max())
    assert price["p50"] == pytest.approx(np.median(prices))
    assert price["skewness"] == pytest.approx((((prices - prices.mean()) / prices.std()) ** 3).mean())
    assert sum(price["histogram"]["counts"]) == 400
    city = report["city"]
    assert (city["distinct"], city["top_share"], city["shared_rows"]) == (8, 0.125, 1.0)  # eight cities in two rows
    assert len(city["shares_by_rank"]) == 8
    recent = report["recent"]
    assert (recent["ids_p50"], recent["cut"], recent["distinct"], recent["top"]) == (1.5, 0.25, 3, "i-0")
    assert recent["top_share"] == pytest.approx(3 / 6)
    assert (report["habit"]["coverage"], report["habit"]["distinct"], report["habit"]["codes"]) == (0.5, 2, 4)
    assert report["text"]["length_p50"] == 5.0
    assert report["city_habit"]["rows_used"] == 4  # with a habit: cities 0, 2, 4, 6, each with one of the codes
    assert report[""]["not_read"] == {"mood": 1.0}


def test_what_a_model_would_suffer_from_is_said() -> None:
    report = report_on([*messages(states(400)), *messages([{"city": 3.0}, {"recent": "i-1"}]), b"{"])
    problems = {name: " ".join(feature["problems"]) for name, feature in report.items() if name}
    assert "consider normalisation" in problems["price"]
    assert problems["price_log"] == ""
    assert problems["absent"] == "no state has it"
    assert problems["one"] == "it is always the same number"
    assert problems["city"].startswith("1 states are refused: feature city: expected a string, got 3.0")
    assert "100% of its ids share a row: consider more buckets than 3" in problems["city"]
    assert "expected a list of strings, got 'i-1'" in problems["recent"]
    assert problems["habit"] == ""
    assert report[""]["unreadable"] == 1
    assert has_faults(report[""])


def test_a_wrong_state_takes_nothing_from_the_crosses_of_the_others() -> None:
    wrong: list[dict[str, object]] = [{"city": "c-7", "habit": "01", "price": "dear"}, {"city": "c-9", "habit": 7.0}]
    report = report_on(messages([*wrong, *states(400)]))
    assert report["city_habit"]["rows_used"] == 4


def test_features_within_objects_are_measured_as_others_are() -> None:
    spec = FeatureSpec.model_validate({"ids": [{"name": "os", "source": "device.os"}, {"name": "town", "source": "place.town"}]})
    check = FeatureCheck(spec)
    check.add(messages([{"device": {"os": f"os-{number % 2}"}, "mood": "good"} for number in range(8)]))
    check.add(messages([{"device": "phone"}, {}]))
    report = check.report()
    os, town = report["features"]
    assert (os["coverage"], os["distinct"], os["wrong"], town["coverage"]) == (0.9, 2, 1, 0.0)
    assert os["problems"][0] == "1 states are refused: feature os: expected an object at 'device', got 'phone'"
    assert report["not_read"] == {"mood": 0.8}


def test_ids_with_rows_of_their_own_share_none() -> None:
    spec = FeatureSpec.model_validate({"ids": [{"name": "city", "table": "dynamic", "buckets": 3}]})
    check = FeatureCheck(spec)
    check.add(messages(states(30)))
    (city,) = check.report()["features"]
    assert (city["distinct"], city["shared_rows"], city["problems"]) == (8, 0.0, [])
    assert markdown_table(spec).splitlines()[-1] == "| `city` | ids | `city` | | | dynamic x 8 |"


def test_a_log_without_faults_has_none() -> None:
    check = FeatureCheck(FeatureSpec.model_validate({"ids": [{"name": "city"}]}))
    check.add(messages(states(30)))
    assert not has_faults(check.report())


def test_the_picture_has_a_panel_for_every_feature_that_reads_a_state() -> None:
    check = FeatureCheck(SPEC)
    check.add(messages(states(100)))
    root = ET.fromstring(svg(check.report()))
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {feature.name for feature in SPEC.read()} <= {*words}
    assert "no values" in words
    assert "8 ids" in words
    console = Console(width=200, record=True, file=io.StringIO())
    show(check.report(), console)
    assert "no feature reads: mood (100%)" in console.export_text()


def test_the_command_checks_a_log_and_tells_faults_by_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [exposure(f"r-{number}", "u-1", 1_000 * number + 1_000, state=state) for number, state in enumerate(states(40))]
    write_ndjson(tmp_path / "log.ndjson", lines)
    arguments = ["features", "check", "log.ndjson", "--format", "ndjson", "--json", "report.json", "--plot", "features.svg"]
    (tmp_path / "headrace.toml").write_text('[policy]\nfeatures = "features.toml"\n')
    for name, code in (("city", 0), ("town", 1)):
        (tmp_path / "features.toml").write_text(f'[[ids]]\nname = "{name}"\n')
        assert CliRunner().invoke(app, arguments).exit_code == code
        assert json.loads((tmp_path / "report.json").read_text())["states"] == 40
        assert (tmp_path / "features.svg").read_text().startswith("<svg")


def test_the_specification_as_a_table() -> None:
    assert markdown_table(SPEC).splitlines()[2:] == [
        "| `price` | dense | `price` | 0.0 | zscore | |",
        "| `price_log` | dense | `price` | 0.0 | log_zscore | |",
        "| `absent` | dense | `absent` | 0.0 | zscore | |",
        "| `one` | dense | `one` | 0.0 | zscore | |",
        "| `city` | ids | `city` | | | 3 x 8 |",
        "| `recent` | sequences | `recent` | | cnn, newest 2 | 4,096 x 16 |",
        "| `habit` | binary_sequences | `habit` | | 1h, 1d: 2 digits | 5 x 8 |",
        "| `city_habit` | crosses | `city x habit` | | | 64 x 8 |",
        "| `text` | vectors | `text` | | none, 2 numbers | |",
    ]

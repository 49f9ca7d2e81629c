import json
from pathlib import Path

import msgspec
import pytest
from pydantic import BaseModel

from schemas.export import MESSAGES, export, json_schema
from schemas.features import FeatureSpec, WrongStateError
from schemas.policy import Candidate
from schemas.state_reader import StateReader

COMMITTED = Path(__file__).parents[2] / "docs" / "schemas"


def read(name, encoded):
    reader = MESSAGES[name].reader
    return reader.model_validate_json(encoded) if issubclass(reader, BaseModel) else msgspec.json.decode(encoded, type=reader)


def test_the_committed_files_are_what_export_writes(tmp_path):
    written = export(tmp_path)
    assert sorted(path.name for path in COMMITTED.iterdir()) == sorted(path.name for path in written)
    stale = [path.name for path in written if path.read_text() != (COMMITTED / path.name).read_text()]
    assert stale == [], "run: python -m schemas.export"


@pytest.mark.parametrize("name", MESSAGES)
def test_the_example_in_a_file_is_valid_and_the_one_in_the_code(name):
    (example,) = json.loads((COMMITTED / f"{name}.schema.json").read_text())["examples"]
    assert read(name, json.dumps(example)) == read(name, encoded_example(name))


def encoded_example(name):
    example = MESSAGES[name].example
    return example.model_dump_json() if isinstance(example, BaseModel) else msgspec.json.encode(example)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_with_a_field_that_nobody_knows_is_refused_by_its_reader_and_by_its_schema(name):
    with pytest.raises(ValueError, match=r"unknown field|Extra inputs"):
        read(name, json.dumps(json.loads(encoded_example(name)) | {"colour": "red"}))
    schema = json_schema(name)
    described = schema["$defs"][schema["$ref"].removeprefix("#/$defs/")] if "$ref" in schema else schema
    assert described["additionalProperties"] is False
    assert set(json.loads(encoded_example(name))) <= set(described["properties"])


def test_the_candidate_that_is_described_has_the_fields_of_the_candidate_that_is_written():
    assert MESSAGES["candidate"].reader.__struct_fields__ == Candidate.__struct_fields__


def test_the_example_specification_reads_the_state_of_the_example_exposure():
    columns = StateReader(MESSAGES["feature_spec"].example).columns([MESSAGES["exposure"].example.state])
    assert columns.dense.tolist() == [[13.0]]
    assert (columns.ids > 0).all()
    assert (columns.sequences["recent_items"][0, -2:] > 0).all()
    assert (columns.sequences["recent_items"][0, :-2] == 0).all()


WRONG_STATES = [({"hour": "noon"}, "feature hour"), ({"city": 3.0}, "feature city"), ({"recent_items": "i-1"}, "feature recent_items")]


@pytest.mark.parametrize(("state", "named"), WRONG_STATES)
def test_a_state_of_the_wrong_type_names_the_feature(state, named):
    specification = MESSAGES["feature_spec"].example
    assert isinstance(specification, FeatureSpec)
    with pytest.raises(WrongStateError, match=named):
        StateReader(specification).columns([state])

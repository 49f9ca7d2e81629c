"""Train/serve equality: what serving gives the graph, and the graph the encoder, is what the trainer learns from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from serving_models import ACTION, MemoryProducer
from test_api import Api

from headrace import doctor, train_serve
from headrace.embedding_files import embedding_folder
from headrace.policy_settings import PolicySettings
from headrace.settings import ConfigError
from headrace.train_serve import TOLERANCE, asked_over_http, compare, random_states
from schemas.exposure import Exposure
from schemas.features import DenseFeature, FeatureSpec, SequenceFeature
from schemas.policy import Candidate, Lineage, Normaliser
from schemas.state_columns import StateColumns
from schemas.state_reader import StateReader
from schemas.transition import transition_schema
from serving.messages import FeaturesResponse
from serving.versions import ModelStore
from trainer.ddpg import DDPG
from trainer.embedding_deltas import EmbeddingDeltas
from trainer.embeddings import Embeddings
from trainer.export import actor_onnx
from trainer.preprocess import Preprocess
from trainer.settings import TrainerSettings

SPEC = FeatureSpec.model_validate(
    {
        "dense": [
            *({"name": f"x{number}", "default": 0.5} for number in range(5)),
            {"name": "spent", "normalisation": "log_zscore"},
            {"name": "share", "normalisation": "none"},
            {"name": "gap", "default": "nan"},
            {"name": "width", "source": "device.screen.width"},
        ],
        "ids": [
            {"name": "city", "buckets": 64},
            {"name": "os", "source": "device.os"},
            {"name": "seller", "table": "dynamic", "default": "nobody"},
            {"name": "tab", "default": "home", "buckets": 16},
        ],
        "multi_ids": [
            {"name": "tags", "pooling": "max", "length": 4, "buckets": 32},
            {"name": "tag_rows", "source": "tags", "pooling": "max", "length": 4, "table": "dynamic"},
        ],
        "sequences": [
            {"name": "recent", "length": 8, "buckets": 256},
            {"name": "recent_rows", "source": "recent", "length": 8, "table": "dynamic"},
            {"name": "bought", "length": 5, "pooling": "attention"},
        ],
        "binary_sequences": [{"name": "click_code"}, {"name": "often", "digits": 4, "windows": ["1h", "1d", "1w"]}],
        "crosses": [{"name": "city_code", "of": ["city", "click_code"]}],
        "vectors": [{"name": "query", "size": 6, "normalisation": "l2"}],
    }
)
REQUESTS = 10_000


@pytest.fixture
def policy(tmp_path: Path) -> PolicySettings:
    return PolicySettings(policy="fusion", action=ACTION, features=SPEC, model_dir=tmp_path / "models")


@pytest.fixture
def learner(policy: PolicySettings) -> DDPG:
    """A learner with statistics of its features, rows of three ids in four, and an actor that listens to them, promoted as version 1."""
    settings = TrainerSettings(embedding_admission_count=1, embedding_hot_rows=10_000)
    embeddings = Embeddings(SPEC, settings, policy.model_dir / "scratch", None)
    made = DDPG(ACTION, SPEC, settings, seed=3, tables=embeddings.tables)
    columns = train_serve.MessageReader(SPEC).read(messages_of(random_states(SPEC, 2000, np.random.default_rng(8)))).states
    made.features.update(columns.dense)
    rng = np.random.default_rng(2)
    for name, table in embeddings.tables.items():
        keys = np.unique(columns.sequences[name]).view(np.uint64)
        table.observe(np.delete(keys, np.s_[::4]), 1)
        gathered = table.gather(columns.sequences[name].ravel().view(np.uint64))
        table.scatter(gathered, rng.normal(size=gathered.weights_UD.shape).astype(np.float32))
    EmbeddingDeltas(embedding_folder(policy.model_dir, "fusion", policy.spec_hash), embeddings).write()
    with torch.no_grad():
        made.network.actor.output.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(1))
    constants = made.features.constants()
    golden = columns.take(np.array([0]))
    candidate = Candidate(
        policy="fusion",
        model_version="fusion-000001",
        created_ms=1,
        spec_hash=policy.spec_hash,
        features=SPEC.model_dump(mode="json"),
        normaliser=Normaliser(mean=constants.mean_N.tolist(), std=constants.std_N.tolist(), clip=constants.clip),
        metrics={},
        lineage=Lineage(offsets={}, seed=3, code_version="test", transitions_learned=1),
        golden_inputs={name: column.tolist() for name, column in made.inputs(golden).items()},
        golden_action=made.act(golden)[0].tolist(),
    )
    folder = policy.model_dir / "fusion" / "candidates" / "fusion-000001"
    folder.mkdir(parents=True)
    (folder / "actor.onnx").write_bytes(actor_onnx(made))
    (folder / "candidate.json").write_bytes(msgspec.json.encode(candidate))
    ModelStore(policy.model_dir, "fusion", policy.spec_hash).promote("fusion-000001", [], now_ms=1)
    return made


def messages_of(states: list[dict[str, Any]]) -> list[bytes]:
    return [msgspec.json.encode({"state": state, "action": []}) for state in states]


class Recorder:
    """The served actor, with all that it was given."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self.model_version = actor.model_version
        self.given: list[StateColumns] = []

    def act(self, columns: StateColumns) -> np.ndarray:
        self.given.append(columns)
        return self._actor.act(columns)

    def normalised(self, columns: StateColumns) -> np.ndarray:
        return self._actor.normalised(columns)


@pytest.fixture
def api(policy: PolicySettings, learner: DDPG) -> Any:
    made = Api(policy, MemoryProducer(), {}, baseline_share=0.0, explore_sigma=0.0)
    made.client.start()
    assert made.versions.settled(20.0)
    assert made.versions.served.model_version == "fusion-000001"
    yield made
    made.client.stop()


def transitions(exposures: list[bytes]) -> pa.RecordBatch:
    """A transition for each page, the last of its session."""
    schema = transition_schema(("click",))
    filled: dict[str, Any] = {
        field.name: None if field.nullable else pa.array([b"" if pa.types.is_binary(field.type) else 0]).cast(field.type)[0].as_py()
        for field in schema
        if not pa.types.is_list(field.type)
    }
    filled |= {"done": True, "ends_session": True, "feedback_offsets": []}
    rows = [{**filled, "transition_id": str(place), "source_offset": place, "exposure": message} for place, message in enumerate(exposures)]
    return pa.RecordBatch.from_pylist(rows, schema=schema)


@pytest.mark.slow
def test_ten_thousand_requests_give_the_trainer_the_tensors_that_serving_computed(
    api: Any, policy: PolicySettings, learner: DDPG, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(api.versions.served.actor)
    monkeypatch.setattr(api.versions, "_served", replace(api.versions.served, actor=recorder))
    for number, state in enumerate(random_states(SPEC, REQUESTS, np.random.default_rng(5))):
        candidates = [{"item_id": "a", "scores": {"click": 0.2, "pay": 0.1}}]
        answer = api.client.post("/v1/rank", json={"user_id": f"u-{number}", "state": state, "candidates": candidates})
        assert answer.status_code == 200, answer.text
    logged = [value for _, _, value in api.producer.sent]
    rows, _, letters = Preprocess(ACTION, SPEC, policy.spec_hash)(transitions(logged), lambda _: 0, now_ms=1)
    assert (len(rows), letters) == (REQUESTS, [])
    given = [api.versions.served.actor._actor.inputs(columns) for columns in recorder.given]
    assert given[0].keys() == {entry.name for entry in SPEC.inputs()}
    for name, learned_from in learner.inputs(rows.state).items():
        np.testing.assert_array_equal(np.concatenate([inputs[name] for inputs in given]), learned_from)
    for name in ("rows_seller", "rows_tag_rows", "rows_recent_rows"):
        assert 0.2 < np.mean([inputs[name].any() for inputs in given]) < 1.0, name
    tensors = learner.state_tensors(rows.state)
    normalised = recorder.normalised(rows.state)
    assert np.abs(normalised - tensors.dense_BN.numpy()).max() <= TOLERANCE
    assert normalised.std(axis=0).min() > 0.1
    served_actions = np.array([msgspec.json.decode(value, type=Exposure).action for value in logged])
    np.testing.assert_allclose(served_actions, learner.act(rows.state), rtol=0, atol=2e-5)
    assert served_actions.std(axis=0).min() > 0.01


def asked(api: Any) -> train_serve.Ask:
    def ask(states: Any) -> FeaturesResponse:
        answer = api.client.post("/v1/features", json={"states": states})
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=FeaturesResponse)

    return ask


def test_a_running_api_is_found_equal_and_every_tensor_was_compared(api: Any, policy: PolicySettings) -> None:
    compared = compare(policy, asked(api), 2000, seed=1)
    assert compared.holds
    assert compared.model_version == "fusion-000001"
    names = [entry.name for entry in SPEC.inputs() if not entry.name.startswith("rows_")]
    assert compared.distances == dict.fromkeys((*names, "normalised"), 0.0)


def with_default(name: str, default: float) -> tuple[DenseFeature, ...]:
    return tuple(feature.model_copy(update={"default": default}) if feature.name == name else feature for feature in SPEC.dense)


FAULTS = {
    "a default for what is missing": ({"dense": with_default("gap", 0.0)}, {"dense", "normalised"}),
    "no default": ({"dense": with_default("x0", float("nan"))}, {"dense", "normalised"}),
    "another default": ({"dense": tuple(feature.model_copy(update={"default": 0.6}) for feature in SPEC.dense)}, {"dense", "normalised"}),
    "another number of buckets": ({"ids": tuple(feature.model_copy(update={"buckets": 63}) for feature in SPEC.ids)}, {"ids"}),
    "a shorter list": ({"sequences": tuple(feature.model_copy(update={"length": 4}) for feature in SPEC.sequences)}, {"seq_recent"}),
    "no scaling": ({"vectors": tuple(feature.model_copy(update={"normalisation": "none"}) for feature in SPEC.vectors)}, {"plain"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_trainer_that_reads_states_otherwise_is_found(
    api: Any, policy: PolicySettings, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, tensors = FAULTS[fault]
    other = policy.model_copy(update={"features": SPEC.model_copy(update=changes)})
    with pytest.raises(ConfigError, match="serving has specification"):
        compare(other, asked(api), 500, seed=1)
    monkeypatch.setattr(PolicySettings, "spec_hash", policy.spec_hash)
    compared = compare(other, asked(api), 500, seed=1)
    assert not compared.holds
    assert tensors <= {name for name, distance in compared.distances.items() if distance > TOLERANCE}


def test_another_normaliser_than_the_graph_s_is_found(api: Any, policy: PolicySettings) -> None:
    path = policy.model_dir / "fusion" / "candidates" / "fusion-000001" / "candidate.json"
    candidate = msgspec.json.decode(path.read_bytes(), type=Candidate)
    assert candidate.normaliser is not None
    mean, std = candidate.normaliser.mean, candidate.normaliser.std
    shifted = Normaliser(mean=[m + 1e-3 * s for m, s in zip(mean, std, strict=True)], std=std, clip=candidate.normaliser.clip)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(candidate, normaliser=shifted)))
    compared = compare(policy, asked(api), 500, seed=1)
    assert {name for name, distance in compared.distances.items() if distance > TOLERANCE} == {"normalised"}


def test_where_no_api_answers_the_doctor_says_so_and_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SERVING_PORT", "1")
    (finding,) = doctor._serving()
    assert (finding.holds, finding.required) == (False, False)
    assert finding.detail == "serving is not compared: nothing answers at http://127.0.0.1:1"
    with pytest.raises(ConnectionError):
        asked_over_http("http://127.0.0.1:1")([])


def test_a_state_that_is_refused_is_refused_with_its_feature(api: Any) -> None:
    answer = api.client.post("/v1/features", json={"states": [{"x0": "warm"}]})
    assert (answer.status_code, answer.json()["detail"]) == (422, "feature x0: expected a finite number, got 'warm'")


def test_before_the_first_version_the_inputs_are_compared() -> None:
    answered = FeaturesResponse(spec_hash=PolicySettings().spec_hash, model_version="", inputs={}, normalised=[])
    assert compare(PolicySettings(), lambda _: answered, 1, seed=0).distances["dense"] == float("inf")
    only_x = PolicySettings(features=FeatureSpec(dense=(DenseFeature(name="x"),)))

    def ask(states: Any) -> FeaturesResponse:
        dense = [[float(np.float32(state.get("x", 0.0)))] for state in states]
        return FeaturesResponse(spec_hash=only_x.spec_hash, model_version="", inputs={"dense": dense}, normalised=[])

    assert compare(only_x, ask, 100, seed=0) == ("", 100, {"dense": 0.0})


def test_of_dynamic_tables_the_keys_are_compared_and_not_the_rows(tmp_path: Path) -> None:
    features = FeatureSpec(sequences=(SequenceFeature(name="recent", length=4, table="dynamic"),))
    policy = PolicySettings(policy="fusion", action=ACTION, features=features, model_dir=tmp_path)
    shift = 0

    def ask(states: Any) -> FeaturesResponse:
        keys = StateReader(features).columns(states).sequences["recent"] + shift
        return FeaturesResponse(spec_hash=policy.spec_hash, model_version="", inputs={"seq_recent": keys.tolist()}, normalised=[])

    assert compare(policy, ask, states=500, seed=1) == ("", 500, {"seq_recent": 0.0})
    shift = 1 << 20
    assert not compare(policy, ask, states=500, seed=1).holds

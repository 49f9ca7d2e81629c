from pathlib import Path

import numpy as np
import pytest
from serving_models import ACTION, FEATURES, GOLDEN_INPUTS, WriteVersion, graph

from headrace.policy_settings import PolicySettings
from schemas.features import FeatureSpec, IdFeature
from schemas.state_reader import StateReader
from serving.actor import ActorError, load_actor
from serving.decision import ActorFault, Decider
from serving.drift import DenseWindow
from serving.exploration import Exploration


def test_a_loaded_actor_answers_what_its_graph_computes_for_each_row(policy: PolicySettings, write_version: WriteVersion) -> None:
    actor = load_actor(write_version(1, [0.5, 1.0], state_weight=0.01), policy, 3)
    actions = actor.act(StateReader(FEATURES).columns([{"hour": 3.0}, {"hour": 50.0}]))
    assert actor.model_version == "fusion-000001"
    np.testing.assert_allclose(actions, [[0.53, 1.03], [1.0, 1.5]], rtol=1e-6)


def test_an_action_past_its_bounds_is_clipped(policy: PolicySettings, write_version: WriteVersion) -> None:
    actor = load_actor(write_version(1, [0.5, 1.0], state_weight=0.01), policy, 1)
    assert actor.act(StateReader(FEATURES).columns([{"hour": 900.0}, {"hour": -900.0}])).tolist() == [[2.0, 2.0], [0.0, 0.0]]


def test_an_input_of_size_zero_is_left_out(policy: PolicySettings, write_version: WriteVersion) -> None:
    only_ids = policy.model_copy(update={"features": FeatureSpec(ids=(IdFeature(name="city", buckets=16),))})
    folder = write_version(
        1, model=graph([1.0, 1.0], inputs=("ids",)), spec_hash=only_ids.spec_hash, golden_inputs={"ids": [[3.0]]}, golden_action=[1.0, 1.0]
    )
    assert load_actor(folder, only_ids, 1).act(StateReader(only_ids.features).columns([{}])).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        ({"spec_hash": "0123"}, "wrong_spec", "was made for specification 0123, this process has"),
        ({"spec_hash": "0123", "features": {"ids": [{"name": "town"}]}}, "wrong_spec", "ids city is new; ids town is gone"),
        ({"golden_action": [1.01, 0.9002]}, "wrong_golden", "0.0002 half ranges off"),
        ({"golden_action": [1.01]}, "wrong_golden", "inf half ranges off"),
        ({"golden_action": []}, "wrong_golden", "inf half ranges off"),
        ({"golden_inputs": {}, "golden_action": [1.01, 0.9]}, "wrong_golden", "golden inputs do not fit"),
        ({"golden_inputs": {**GOLDEN_INPUTS, "ids": [[None]]}, "golden_action": [1.01, 0.9]}, "wrong_golden", "golden inputs do not fit"),
        ({"golden_inputs": {"other": [[1.0]]}, "golden_action": [1.01, 0.9]}, "wrong_golden", "golden inputs do not fit"),
        ({"model": b"no graph", "golden_action": [1.0, 1.0]}, "unloadable", "actor.onnx"),
        (
            {"model": graph([1.0, 1.0], inputs=("dense",)), "golden_action": [1.0, 1.0]},
            "wrong_inputs",
            "input ids is none, the specification has tensor(int64) [B, 1]",
        ),
        ({"model": graph([1.0]), "golden_action": [1.0]}, "wrong_inputs", "answers in shape (1, 1)"),
    ],
)
def test_a_version_that_does_not_fit_is_refused_with_a_reason(
    policy: PolicySettings, write_version: WriteVersion, fields: dict[str, object], reason: str, message: str
) -> None:
    with pytest.raises(ActorError) as refused:
        load_actor(write_version(1, **fields), policy, 1)
    assert refused.value.reason == reason
    assert message in str(refused.value)


def test_a_version_that_is_right_on_its_golden_row_only_fails_its_warm_up(policy: PolicySettings, write_version: WriteVersion) -> None:
    folder = write_version(1, model=graph([1.0, 1.0], pole=12.0))  # the default state's inputs add up to 12
    with pytest.raises(ActorError, match="the actor gave inf") as refused:
        load_actor(folder, policy, 1)
    assert refused.value.reason == "not_finite"


def test_an_actor_that_fails_on_a_state_is_a_fault_and_not_a_crash(policy: PolicySettings, write_version: WriteVersion) -> None:
    actor = load_actor(write_version(1, model=graph([1.0, 1.0], table_rows=4)), policy, 1)
    known, unknown = StateReader(FEATURES).columns([{"city": ""}]), StateReader(FEATURES).columns([{"city": "hz"}])
    assert (known.ids[0, 0], unknown.ids[0, 0]) == (0, 14)
    assert actor.act(known).tolist() == [[1.0, 1.0]]
    with pytest.raises(ActorFault, match=r"fusion-000001: .*out of"):
        actor.act(unknown)


def test_a_missing_or_malformed_candidate_is_refused(policy: PolicySettings, write_version: WriteVersion) -> None:
    folder = write_version(1)
    (folder / "candidate.json").write_bytes(b'{"policy": 3}')
    with pytest.raises(ActorError, match="Expected `str`, got `int`"):
        load_actor(folder, policy, 1)
    with pytest.raises(ActorError, match="No such file"):
        load_actor(folder / "absent", policy, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"edges": [[0.0] * 9] * 2, "shares": [[0.1] * 11] * 2},
        {"edges": [[0.0] * 8], "shares": [[0.1] * 11]},
        {"edges": [[0.0] * 9], "shares": [[0.1] * 10 + [0.0]]},
    ],
)
def test_a_dense_reference_that_drift_cannot_be_computed_from_is_refused(
    policy: PolicySettings, write_version: WriteVersion, wrong: dict[str, list[list[float]]]
) -> None:
    with pytest.raises(ActorError, match="fusion-000001: its dense_reference is not one of 1 features"):
        load_actor(write_version(1, dense_reference={"rows": 9, **wrong}), policy, 1)


def decider(baseline_share: float = 0.0, sigma: float = 0.2) -> Decider:
    return Decider("fusion", ACTION, FEATURES, Exploration(ACTION, sigma), baseline_share, "salt", seed=7, window=DenseWindow(100, 1))


class FixedActor:
    model_version = "fusion-000009"

    def __init__(self, answer: list[float] | None) -> None:
        self._answer = answer

    def act(self, columns: object) -> np.ndarray:
        if self._answer is None:
            raise ActorFault("fusion-000009: the actor gave nan")
        return np.array([self._answer])


def test_baseline_users_get_the_baseline_action_for_certain() -> None:
    decision = decider(baseline_share=1.0).decide("r", "u", {}, FixedActor([0.5, 0.5]))
    assert decision == ("baseline", "", [1.0, 1.0], 1.0, "", "67")  # the bucket: 100 * split.position("u", salt)


def test_before_any_version_the_policy_explores_around_the_baseline() -> None:
    decision = decider().decide("r", "u", {}, None)
    assert (decision.policy, decision.model_version) == ("fusion", "")
    assert decision.action != [1.0, 1.0]
    assert decision.propensity == pytest.approx(Exploration(ACTION, 0.2).density(decision.action, [1.0, 1.0]))


def test_the_noise_of_a_request_is_a_function_of_its_id() -> None:
    first, again, other = (decider().decide(name, "u", {}, FixedActor([0.5, 0.5])) for name in ("r-1", "r-1", "r-2"))
    assert first == again != other
    assert decider(sigma=0.0).decide("r-1", "u", {}, FixedActor([0.5, 0.25])).action == [0.5, 0.25]


def test_a_request_whose_actor_fails_is_served_and_logged_as_baseline() -> None:
    decision = decider().decide("r", "u", {}, FixedActor(None))
    assert decision[:4] == ("baseline", "", [1.0, 1.0], 1.0)
    assert "gave nan" in decision.fault


def test_serving_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, serving.server, serving.controller_server, serving.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0

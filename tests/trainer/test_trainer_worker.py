import json
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from transition_log import FEATURES, action_spec, batch, batches, page, policy_settings, row, small_settings

from headrace.policy_settings import PolicySettings
from headrace.step import Count
from schemas.drift import DenseReference
from schemas.features import DenseFeature, FeatureSpec
from schemas.message_reader import MessageReader
from schemas.state_reader import StateReader
from serving.actor import load_actor
from serving.probe import probe_columns
from trainer.checkpoint import CheckpointError
from trainer.worker import Worker


def worker(folder: Path, **changes: object) -> Worker:
    return Worker(small_settings(**changes), policy_settings(folder / "models"), folder / "state", "0.1.0", seed=7)


def fed(folder: Path, count: int = 5, **changes: object) -> Worker:
    fresh = worker(folder, **changes)
    for number, rows in enumerate(batches(0, count)):
        fresh.learn(number % 2, number + 1, rows, now_ms=1000 * number)
    return fresh


def weights(made: Worker) -> dict[str, torch.Tensor]:
    return dict(made.learner.network.state_dict())


def candidate(path: Path | None) -> dict[str, object]:
    assert path is not None
    return json.loads((path / "candidate.json").read_bytes())


def test_resuming_from_a_checkpoint_is_learning_without_interruption_bit_for_bit(tmp_path: Path) -> None:
    whole = fed(tmp_path / "a", 3)
    interrupted = fed(tmp_path / "b", 3)
    interrupted.checkpoint(5000)
    resumed = worker(tmp_path / "b")
    assert resumed.offsets == whole.offsets == {0: 3, 1: 2}
    assert resumed.counts == whole.counts
    for number, rows in enumerate(batches(1, 12, start=120)):
        first = whole.learn(0, 10 + number, rows, 6000 + number)
        second = resumed.learn(0, 10 + number, rows, 6000 + number)
        assert first == second
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(whole).items())
    paths = [made.write_candidate(90_000) for made in (whole, resumed)]
    for name in ("actor.onnx", "candidate.json"):
        assert (paths[0] / name).read_bytes() == (paths[1] / name).read_bytes()  # type: ignore[operator]


def test_what_was_learned_after_the_checkpoint_is_forgotten_with_its_offsets(tmp_path: Path) -> None:
    first = fed(tmp_path, 4)
    first.checkpoint(5000)
    first.learn(0, 50, batches(9, 1, start=900)[0], 6000)
    resumed = worker(tmp_path)
    assert resumed.offsets == {0: 3, 1: 4}
    assert resumed.counts[Count("in", "transitions")] == 160


def test_every_row_is_learned_from_held_out_refused_or_a_duplicate(tmp_path: Path) -> None:
    made = worker(tmp_path)
    rows = batches(0, 3)
    made.learn(0, 1, rows[0], 0)
    made.learn(1, 1, rows[1], 0)
    again = made.learn(0, 2, rows[0], 0)
    bad = made.learn(0, 3, batch([row(500, {"state": {}, "action": [9.0, 1.0]}, None)]), 0)
    assert again.counts == {Count("in", "transitions"): 40, Count("ignored", "duplicate"): 40}
    assert bad.counts == {Count("in", "transitions"): 1, Count("rejected", "wrong_action"): 1}
    assert [letter.source_offset for letter in bad.dead_letters] == [500]
    assert made.counts[Count("in", "transitions")] == 121
    assert made.gauges()["transitions"] == 80
    assert made.replay.size + made.held_out.size == 80
    assert made.held_out.size > 0


def test_a_message_below_the_offsets_has_no_effect(tmp_path: Path) -> None:
    made = fed(tmp_path, 2)
    before, counts = made.learner.steps, made.counts
    learned = made.learn(0, 1, batches(5, 1, start=800)[0], 0)
    assert (learned.counts, learned.dead_letters, learned.metrics) == ({}, [], {})
    assert (made.learner.steps, made.counts, made.offsets) == (before, counts, {0: 1, 1: 2})


def test_a_message_that_is_no_batch_is_refused_and_passed(tmp_path: Path) -> None:
    made = worker(tmp_path)
    letter = made.refuse(2, 41, 17, "not a record batch of transitions", 99)
    assert (letter.reason, letter.source_topic, letter.source_partition, letter.source_offset) == ("malformed", "transitions", 2, 41)
    assert made.offsets == {2: 42}
    assert made.counts[Count("rejected", "malformed")] == 1


def test_gradient_steps_follow_the_new_transitions_from_the_minimum_on(tmp_path: Path) -> None:
    made = worker(tmp_path, steps_per_transition=0.1, holdout_share=0.01, min_transitions=100)
    steps = []
    for number, rows in enumerate(batches(0, 5)):
        made.learn(0, number + 1, rows, 0)
        steps.append(made.learner.steps)
    assert steps[:2] == [0, 0]
    assert steps[-1] == int(0.1 * made.replay.size)


def test_steps_owed_from_before_the_minimum_are_made_good_over_several_messages(tmp_path: Path) -> None:
    made = worker(tmp_path, steps_per_transition=0.1, holdout_share=0.01, min_transitions=400, replay_capacity=1000)
    steps, owed = [0], []
    for number, rows in enumerate(batches(0, 16)):
        made.learn(0, number + 1, rows, 0)
        steps.append(made.learner.steps)
        owed.append(0.1 * made.replay.size - made.learner.steps)
    assert steps[:10] == [0] * 10  # 360 rows and less: some 36 steps are owed when learning begins
    assert max(np.diff(steps)) == 16  # four times what 40 rows are worth
    assert owed[9:] == sorted(owed[9:], reverse=True)
    assert steps[-1] == int(0.1 * made.replay.size)


def test_a_message_of_one_row_makes_good_a_few_steps_too(tmp_path: Path) -> None:
    made = worker(tmp_path, steps_per_transition=0.1, holdout_share=0.01, min_transitions=240)
    for number, rows in enumerate(batches(0, 6)):
        made.learn(0, number + 1, rows, 0)
    before = made.learner.steps
    made.learn(0, 10, batches(1, 1, rows_each=1, start=900)[0], 0)
    assert (before, made.learner.steps) == (16, 20)


def test_a_checkpoint_is_due_after_its_interval_and_only_for_something_new(tmp_path: Path) -> None:
    made = worker(tmp_path, checkpoint_interval_s=20)
    assert not made.checkpoint_due(10**9)
    made.learn(0, 1, batches(0, 1)[0], now_ms=1000)
    assert [made.checkpoint_due(now_ms) for now_ms in (1000, 20_999, 21_000)] == [False, False, True]
    made.checkpoint(21_000)
    assert not made.checkpoint_due(90_000)


def test_a_candidate_is_due_after_its_interval_and_only_when_something_was_learned(tmp_path: Path) -> None:
    made = worker(tmp_path, candidate_interval_s=10, min_transitions=60)
    made.learn(0, 1, batches(0, 1)[0], now_ms=1000)
    assert not made.candidate_due(90_000)
    assert made.write_candidate(90_000) is None
    made.learn(0, 2, batches(1, 1, start=40)[0], now_ms=2000)
    assert [made.candidate_due(now_ms) for now_ms in (10_999, 11_000)] == [False, True]
    assert made.write_candidate(11_000) is not None
    assert not made.candidate_due(90_000)
    assert made.write_candidate(90_000) is None


def test_a_candidate_says_what_it_was_made_from(tmp_path: Path) -> None:
    made = fed(tmp_path, 5)
    written = candidate(made.write_candidate(77_000))
    learned = made.gauges()["transitions_learned"]
    lineage = written["lineage"]
    assert (written["model_version"], written["policy"], written["created_ms"]) == ("fusion-000001", "fusion", 77_000)
    assert written["spec_hash"] == made.policy.spec_hash
    assert {**lineage, "learned_from": None} == {  # type: ignore[dict-item]
        "offsets": {"0": 5, "1": 4},
        "seed": 7,
        "code_version": "0.1.0",
        "transitions_learned": learned,
        "learned_from": None,
    }
    assert sum(lineage["learned_from"].values()) == learned  # type: ignore[index]
    assert set(lineage["learned_from"]) == {"", "fusion-000001"}  # type: ignore[index]
    metrics = written["metrics"]
    assert {
        "policy_advantage_mean",
        "policy_advantage_se",
        "random_advantage_mean",
        "a_mean",
        "v_mean",
        "v_loss",
        "a_loss",
        "skipped_steps",
    } <= set(
        metrics  # type: ignore[arg-type]
    )
    assert metrics["not_finite"] == 0.0  # type: ignore[index]


def test_feedback_is_claimed_by_the_first_candidate_that_learned_from_it(tmp_path: Path) -> None:
    made = fed(tmp_path, 5)
    first = candidate(made.write_candidate(1))
    learned_first = made.gauges()["transitions_learned"]
    for number, rows in enumerate(batches(3, 2, start=200)):
        made.learn(0, 20 + number, rows, 0)
    second = candidate(made.write_candidate(2))
    bins = [{int(start): count for start, count in made_of["arrivals_ms"].items()} for made_of in (first, second)]  # type: ignore[attr-defined]
    assert sum(bins[0].values()) == learned_first  # every page of the log has one feedback
    assert sum(bins[1].values()) == made.gauges()["transitions_learned"] - learned_first
    assert not set(bins[0]) & set(bins[1])
    assert all(start % 100 == 0 for start in (*bins[0], *bins[1]))


def test_the_candidate_s_model_gives_its_golden_action(tmp_path: Path) -> None:
    path = fed(tmp_path, 5).write_candidate(1)
    written = candidate(path)
    types = {"dense": np.float32}
    inputs = {name: np.array(values, types.get(name, np.int64)) for name, values in written["golden_inputs"].items()}  # type: ignore[attr-defined]
    session = onnxruntime.InferenceSession(path / "actor.onnx", providers=["CPUExecutionProvider"])  # type: ignore[operator]
    np.testing.assert_allclose(session.run(["action"], inputs)[0], [written["golden_action"]], atol=1e-5)
    assert written["golden_action"] != [1.0, 1.0]  # the policy has left the baseline


def test_version_numbers_are_not_used_twice_after_a_crash(tmp_path: Path) -> None:
    crashed = fed(tmp_path, 3)
    crashed.checkpoint(1)
    first = crashed.write_candidate(2)  # after the checkpoint: the next life does not remember it
    resumed = worker(tmp_path)
    resumed.learn(0, 30, batches(4, 1, start=600)[0], 0)
    second = resumed.write_candidate(3)
    assert first is not None
    assert second is not None
    assert (first.name, second.name) == ("fusion-000001", "fusion-000002")


@pytest.mark.parametrize(("change", "named"), [({"hidden": (8, 8)}, "hidden"), ({"heads": 3}, "heads")])
def test_a_checkpoint_of_another_network_is_refused_in_one_line(tmp_path: Path, change: dict[str, object], named: str) -> None:
    fed(tmp_path, 2).checkpoint(1)
    with pytest.raises(CheckpointError, match=named) as caught:
        worker(tmp_path, **change)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_other_features_is_refused_by_their_names(tmp_path: Path) -> None:
    made = fed(tmp_path, 2)
    made.checkpoint(1)
    features = FEATURES.model_copy(update={"dense": (*FEATURES.dense, DenseFeature(name="z")), "ids": ()})
    other = made.policy.model_copy(update={"features": features})
    with pytest.raises(CheckpointError, match=r"spec_hash .*features: dense z is new; ids city is gone; set it back") as caught:
        Worker(made.settings, other, tmp_path / "state", "0.1.0", seed=7)
    assert "\n" not in str(caught.value)


def test_a_candidate_says_what_features_and_which_normaliser_it_was_made_with(tmp_path: Path) -> None:
    made = fed(tmp_path, 10)
    written = candidate(made.write_candidate(1))
    assert written["features"] == FEATURES.model_dump(mode="json")
    constants = made.learner.features.constants()
    assert written["normaliser"] == {"mean": constants.mean_N.tolist(), "std": constants.std_N.tolist(), "clip": constants.clip}
    assert constants.std_N.min() > 0.5 and constants.mean_N[0] == pytest.approx(50, abs=3)


def test_a_checkpoint_goes_on_with_another_learning_rate_and_replay_size(tmp_path: Path) -> None:
    fed(tmp_path, 5).checkpoint(1)
    smaller = worker(tmp_path, critic_learning_rate=1e-4, replay_capacity=64)
    assert smaller.replay.size == 64
    assert smaller.learn(0, 40, batches(4, 1, start=600)[0], 0).metrics["skipped_steps"] == 0.0


def test_rewards_of_a_size_that_overflows_are_survived(tmp_path: Path) -> None:
    made = fed(tmp_path, 3)
    rng = np.random.default_rng(0)
    made.learn(0, 30, batch([row(900 + i, page(rng), None, **{"return": 3e38}) for i in range(40)]), 0)
    assert all(bool(torch.isfinite(weight).all()) for weight in weights(made).values())
    assert made.write_candidate(1) is not None


def test_a_checkpoint_of_an_older_format_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("trainer.worker.CHECKPOINT_FORMAT", 4)
        fed(tmp_path, 2).checkpoint(1)
    with pytest.raises(CheckpointError, match=r"format 4 \(now 5\).*move the folder away"):
        worker(tmp_path)


MISSING = FeatureSpec(
    dense=(
        DenseFeature(name="plain_x", source="x", normalisation="none"),
        DenseFeature(name="x"),
        DenseFeature(name="y", default=float("nan")),
        DenseFeature(name="log_y", source="y", default=float("nan"), normalisation="log_zscore"),
    )
)


def test_a_feature_that_states_lack_is_learned_around_exported_and_loaded(tmp_path: Path) -> None:
    policy = PolicySettings(action=action_spec(2), features=MISSING, model_dir=tmp_path / "models")
    made = Worker(small_settings(holdout_share=0.4), policy, tmp_path / "state", "0.1.0", seed=7)
    rng = np.random.default_rng(0)
    pages = [page(rng) for _ in range(200)]
    for number, shown in enumerate(pages):
        if number % 3 == 0 or number == 199:
            del shown["state"]["y"]  # type: ignore[attr-defined]
    # the newest held-out row, which becomes the golden one, has no y
    made.learn(0, 1, batch([row(number, shown, None) for number, shown in enumerate(pages)]), 0)
    seen = [shown["state"]["y"] for shown in pages if "y" in shown["state"]]  # type: ignore[index,operator]
    constants = made.learner.features.constants()
    assert made.learner.features.seen_N.tolist() == [200, len(seen), len(seen)]
    assert constants.mean_N[1] == pytest.approx(np.mean(np.array(seen, np.float32), dtype=np.float64))
    while not np.isnan(made.held_out.rows(np.array([made.held_out.size - 1])).state.dense[0, 1]):
        number = made.offsets[0]
        made.learn(0, number + 1, batch([row(1000 + number, {**pages[0], "action": [1.0, 1.0]}, None)]), 0)
    path = made.write_candidate(1)
    assert path is not None
    assert candidate(path)["golden_inputs"]["dense"][0][1] is None  # type: ignore[index]
    actor = load_actor(path, policy, 1)
    assert np.isfinite(probe_columns(MISSING, actor.candidate, 20, rng).dense).all()  # the gate tries such a feature's values too
    states = [{"x": 40.0}, {"x": 40.0, "y": float(constants.mean_N[1])}, {"x": 40.0, "y": 3.0}]
    columns = StateReader(MISSING).columns(states)
    assert np.isnan(columns.dense).tolist() == [[False, True, True], [False] * 3, [False] * 3]
    np.testing.assert_allclose(actor.act(columns), made.learner.act(columns), atol=1e-6)
    opened = MessageReader(MISSING).read([json.dumps({"state": state, "action": [1.0, 1.0]}).encode() for state in states]).states
    np.testing.assert_array_equal(actor.act(opened), actor.act(columns))
    normalised = onnxruntime.InferenceSession(path / "actor.onnx", providers=["CPUExecutionProvider"]).run(
        ["normalised"], columns.inputs()
    )[0]
    np.testing.assert_array_equal(normalised, constants(columns.dense))
    assert normalised[0, 1:].tolist() == [0.0, 0.0]
    assert abs(normalised[1, 1]) < 1e-6 < normalised[2, 1]
    made.checkpoint(2)
    resumed = Worker(made.settings, policy, tmp_path / "state", "0.1.0", seed=7)
    np.testing.assert_array_equal(resumed.learner.act(columns), made.learner.act(columns))
    assert np.isnan(resumed.replay.rows(np.arange(resumed.replay.size)).state.dense[:, 1]).any()
    written = candidate(path)
    assert FeatureSpec.model_validate(written["features"]).model_dump(mode="json") == MISSING.model_dump(mode="json")
    assert np.array(written["normaliser"]["mean"]).tolist() == constants.mean_N.tolist()  # type: ignore[index]


def test_without_normalised_features_there_is_no_drift_to_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.worker.REFERENCE_ROWS", 100)
    features = FeatureSpec(dense=(DenseFeature(name="x", normalisation="none"),))
    policy = PolicySettings(action=action_spec(2), features=features, model_dir=tmp_path / "models")
    made = Worker(small_settings(), policy, tmp_path / "state", "0.1.0", seed=7)
    for number, rows in enumerate(batches(0, 4)):
        made.learn(0, number + 1, rows, 0)
    path = made.write_candidate(1)
    assert made.replay.size >= 100
    assert candidate(path)["dense_reference"] == {"rows": 100, "edges": [], "shares": []}
    assert "feature_psi_max" not in made.gauges()
    assert path is not None
    states = StateReader(features).columns([{"x": 0.5}, {}])
    np.testing.assert_allclose(load_actor(path, policy, 1).act(states), made.learner.act(states), atol=1e-6)


def test_a_version_brings_what_its_dense_features_looked_like_and_drift_is_a_gauge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.worker.REFERENCE_ROWS", 180)
    monkeypatch.setattr("trainer.worker.NEWEST_ROWS", 40)
    made = fed(tmp_path, 4)
    assert "feature_psi_max" not in made.gauges()  # too few rows to tell
    made.learn(0, 20, batches(4, 2, start=400)[0], 0)
    first = candidate(made.write_candidate(1))
    made.learn(0, 21, batches(4, 2, start=500)[1], 0)
    rows = [row(900 + number, {"state": {"x": 90.0, "y": 0.0}, "action": [1.0, 1.0]}, None) for number in range(60)]
    made.learn(0, 22, batch(rows), 0)
    second = candidate(made.write_candidate(2))
    reference = msgspec.convert(first["dense_reference"], DenseReference)
    assert 30 < reference.edges[0][0] < reference.edges[0][4] < 55  # x is drawn around 50, 10 wide
    assert reference.edges[0][8] < 70
    assert first["metrics"]["feature_psi_max"] < 0.6 < second["metrics"]["feature_psi_max"]  # type: ignore[index]
    assert made.gauges()["feature_psi_max"] == second["metrics"]["feature_psi_max"]  # type: ignore[index]


def test_other_instances_of_the_same_pages_are_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = worker(tmp_path)
    rows = [row(number, page(rng), None, instance=instance) for number, instance in enumerate(("td1", "mc", "td3", "td1"))]
    learned = made.learn(0, 1, batch(rows), 0)
    assert learned.counts == {Count("in", "transitions"): 4, Count("ignored", "other_instance"): 2}
    assert made.gauges()["transitions"] == 2


def test_an_amendment_takes_the_place_of_its_row_wherever_that_is_and_counts_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = worker(tmp_path, holdout_share=0.4)
    first = [row(number, page(rng), page(rng)) for number in range(40)]
    made.learn(0, 1, batch(first), 0)
    assert made.held_out.size > 0 < made.replay.size
    amended = [{**one, "revision": 1, "return": 7.0 + number, "done": True, "next_exposure": None} for number, one in enumerate(first)]
    learned = made.learn(0, 2, batch([*amended, row(90, page(rng), None, revision=1)]), 0)
    assert learned.counts == {Count("in", "transitions"): 41}
    assert (made.gauges()["transitions"], made.gauges()["transitions_amended"]) == (41, 40)
    rewards = np.concatenate([buffer.rows(np.arange(buffer.size)).reward for buffer in (made.replay, made.held_out)])
    assert sorted(rewards.tolist()) == [1.0, *(7.0 + number for number in range(40))]
    assert made.learn(0, 3, batch(first), 0).counts[Count("ignored", "duplicate")] == 40


def test_an_amendment_of_a_row_that_has_left_the_replay_is_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = worker(tmp_path, replay_capacity=4, holdout_capacity=2)
    rows = [row(number, page(rng), None) for number in range(30)]
    made.learn(0, 1, batch(rows), 0)
    counts = made.learn(0, 2, batch([{**one, "revision": 1} for one in rows]), 0).counts
    kept = made.replay.size + made.held_out.size
    assert counts[Count("ignored", "amendment_too_late")] == 30 - kept


def test_the_target_of_a_row_has_its_own_discount(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pages = [(page(rng), page(rng)) for _ in range(40)]
    runs = []
    for discount in (0.9, 0.81):
        made = worker(tmp_path / str(discount), steps_per_transition=1.0, min_transitions=20, normaliser_warm_up_rows=10)
        for start in range(0, 40, 10):
            made.learn(0, start + 1, batch([row(start + at, *pages[start + at], discount=discount) for at in range(10)]), 0)
        runs.append(weights(made))
    assert not all(torch.equal(weight, runs[1][name]) for name, weight in runs[0].items())

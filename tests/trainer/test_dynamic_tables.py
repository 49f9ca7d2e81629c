"""Features with dynamic tables, from the served state to the served action."""

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transition_log import action_spec, batch, page, row, small_settings

from headrace.embedding_files import embedding_folder, file_of, numbers
from headrace.policy_settings import PolicySettings
from headrace.settings import ConfigError
from schemas.features import DenseFeature, FeatureSpec, IdFeature, MultiIdFeature, SequenceFeature
from schemas.state_columns import StateColumns
from schemas.state_reader import StateReader
from serving.actor import load_actor
from serving.embeddings import ServedEmbeddings
from serving.metrics import ServingMetrics
from serving.probe import probe
from trainer import embedding_deltas
from trainer.embedding_deltas import EmbeddingDeltas
from trainer.export import actor_onnx
from trainer.worker import Worker

LIMITS = {"embedding_hot_rows": 1000, "embedding_capacity_ids": 1000, "batch_size": 32, "min_transitions": 50}


def features(pooling: str = "cnn", of_set: str = "mean") -> FeatureSpec:
    return FeatureSpec(
        dense=(DenseFeature(name="x"),),
        ids=(IdFeature(name="tab", buckets=8), IdFeature(name="city", dim=3, table="dynamic")),
        multi_ids=(MultiIdFeature(name="set", source="recent", length=4, dim=2, table="dynamic", pooling=of_set),),  # type: ignore[arg-type]
        sequences=(
            SequenceFeature(name="recent", length=5, dim=4, table="dynamic", pooling=pooling),  # type: ignore[arg-type]
            SequenceFeature(name="hashed", source="recent", length=3, dim=4, buckets=32),
        ),
    )


def worker(folder: Path, pooling: str = "cnn", of_set: str = "mean", **changes: object) -> Worker:
    policy = PolicySettings(action=action_spec(2), features=features(pooling, of_set), model_dir=folder / "models")
    return Worker(small_settings(**{**LIMITS, **changes}), policy, folder / "state", "0.1.0", seed=7)


def pages(seed: int, count: int = 40) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    return [page(rng) for _ in range(count)]


def feed(made: Worker, first: int, count: int) -> None:
    """The reward depends on the newest item alone."""
    for number in range(first, first + count):
        shown = pages(number)
        rows = []
        for place, now in enumerate(shown):
            recent = now["state"]["recent"]  # type: ignore[index]
            reward = float(recent[-1] in ("i-1", "i-2", "i-3")) if recent else 0.0
            following = None if place % 5 == 4 else shown[place + 1]
            rows.append(row(40 * number + place, now, following, **{"return": reward}))
        made.learn(0, number + 1, batch(rows), now_ms=1000 * number)


def some_states(seed: int = 99) -> StateColumns:
    states = [{**shown["state"]} for shown in pages(seed)]  # type: ignore[dict-item]
    states[0]["recent"] = ["never-seen", "i-1"]
    states[0]["city"] = "never-seen"
    states[1] = {}
    return StateReader(features()).columns(states)


def rows(made: Worker, states: StateColumns) -> dict[str, np.ndarray]:
    """The trainer's embeddings of every dynamic table, as serving names them."""
    return {f"rows_{name}": made.learner.rows(states, name) for name in ("city", "recent", "set")}


def assert_equal(ones: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> None:
    assert ones.keys() == others.keys()
    for name, values in ones.items():
        np.testing.assert_array_equal(values, others[name], name)


def served(made: Worker) -> ServedEmbeddings:
    policy = made.policy
    folder = embedding_folder(policy.model_dir, policy.policy, policy.spec_hash)
    return ServedEmbeddings(policy.features, folder, 0.01, ServingMetrics())


def deltas(made: Worker) -> EmbeddingDeltas:
    policy = made.policy
    return EmbeddingDeltas(embedding_folder(policy.model_dir, policy.policy, policy.spec_hash), made.embeddings)


@pytest.mark.parametrize("pooling", ["cnn", "attention"])
def test_rows_are_learned_and_tell_items_apart_that_matter(tmp_path: Path, pooling: str) -> None:
    made = worker(tmp_path, pooling, steps_per_transition=0.5)
    feed(made, 0, 30)
    states = [{"recent": [f"i-{item}"]} for item in range(9)]
    columns = StateReader(features()).columns(states)  # type: ignore[arg-type]
    newest = made.learner.rows(columns, "recent")[:, -4:]
    assert np.isfinite(newest).all()
    good, bad = newest[1:4].mean(0), np.concatenate([newest[:1], newest[4:]]).mean(0)
    assert np.abs(good - bad).max() > 3 * newest[1:4].std(0).max() / np.sqrt(3)
    assert made.gauges()["embedding_ids"] == 9 + 9 + 5
    assert made.gauges()["embedding_waiting_ids"] == 0


def test_a_skipped_step_changes_no_row(tmp_path: Path) -> None:
    made = worker(tmp_path)
    feed(made, 0, 5)
    before = rows(made, some_states())
    batch_of_32, _ = made.replay.sample(32, np.random.default_rng(0))
    batch_of_32.reward[3] = np.nan
    assert made.learner.learn(batch_of_32) == {"skipped_steps": 1.0}
    assert_equal(rows(made, some_states()), before)


@pytest.mark.parametrize(
    ("pooling", "kernel", "of_set"), [("cnn", 1, "mean"), ("cnn", 2, "sum"), ("cnn", 3, "max"), ("attention", 1, "mean")]
)
def test_the_exported_graph_gives_the_trainer_s_actions_from_the_rows(tmp_path: Path, pooling: str, kernel: int, of_set: str) -> None:
    made = worker(tmp_path, pooling, of_set, kernel=kernel)
    feed(made, 0, 10)
    with torch.no_grad():
        made.learner.network.actor.output.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(3))
    states = some_states()
    session = onnxruntime.InferenceSession(actor_onnx(made.learner), providers=["CPUExecutionProvider"])
    actions = session.run(["action"], made.learner.inputs(states))[0]
    np.testing.assert_allclose(actions, made.learner.act(states), rtol=0, atol=1e-5)
    for name, looked_up in rows(made, states).items():
        blind = {**made.learner.inputs(states), name: np.zeros_like(looked_up)}
        assert np.abs(session.run(["action"], blind)[0] - actions).max() > 1e-3, name  # each table matters


def test_resuming_from_a_checkpoint_is_learning_without_interruption_bit_for_bit(tmp_path: Path) -> None:
    changes = {"embedding_max_age_s": 60}  # a message is 40 s of event time
    whole, interrupted = worker(tmp_path / "a", **changes), worker(tmp_path / "b", **changes)
    for made in (whole, interrupted):
        feed(made, 0, 4)
        made.checkpoint(5000)
    feed(interrupted, 4, 1)  # is forgotten with its offsets
    interrupted.embeddings.close()
    resumed = worker(tmp_path / "b", **changes)
    for made in (whole, resumed):
        feed(made, 4, 4)
    assert_equal(rows(whole, some_states()), rows(resumed, some_states()))
    paths = [made.write_candidate(90_000) for made in (whole, resumed)]
    for name in ("actor.onnx", "candidate.json"):
        assert (paths[0] / name).read_bytes() == (paths[1] / name).read_bytes()  # type: ignore[operator]


def test_serving_acts_as_the_trainer_does_from_rows_that_it_read_from_files(tmp_path: Path) -> None:
    made = worker(tmp_path)
    feed(made, 0, 10)
    writer, reader = deltas(made), served(made)
    assert writer.write()
    reader.poll()
    states = some_states()
    for number in range(10, 14):
        assert_equal(reader.look_up(states), rows(made, states))
        feed(made, number, 1)
        assert writer.write()
        reader.poll()
    assert not writer.write()
    path = made.write_candidate(1)
    assert path is not None
    actor = load_actor(path, made.policy, 2, reader.look_up)
    np.testing.assert_allclose(actor.act(states), made.learner.act(states), rtol=0, atol=1e-5)
    assert np.isfinite(probe(actor, made.policy.features, 50, np.random.default_rng(0)).actions).all()


def test_after_a_crash_serving_has_what_the_trainer_has_again(tmp_path: Path) -> None:
    made = worker(tmp_path)
    feed(made, 0, 6)
    made.checkpoint(1)
    writer, reader = deltas(made), served(made)
    writer.write()
    feed(made, 6, 3)
    writer.write()
    reader.poll()
    made.embeddings.close()
    again = worker(tmp_path)
    deltas(again).write()
    reader.poll()
    states = some_states()
    for name, before in rows(made, states).items():
        assert not np.array_equal(rows(again, states)[name], before), name
    assert_equal(reader.look_up(states), rows(again, states))


def test_ids_that_are_forgotten_lose_their_rows_in_serving_and_their_places_are_used_again(tmp_path: Path) -> None:
    made = worker(tmp_path, embedding_max_age_s=60)
    feed(made, 0, 6)
    writer, reader = deltas(made), served(made)
    writer.write()
    reader.poll()
    assert all(found.any() for found in reader.look_up(some_states()).values())
    assert [table.forget_old(10**9) for table in made.embeddings.tables.values()] == [9, 9, 5]
    writer.write()
    reader.poll()
    assert not any(found.any() for found in reader.look_up(some_states()).values())
    feed(made, 6, 3)
    writer.write()
    reader.poll()
    assert_equal(reader.look_up(some_states()), rows(made, some_states()))
    assert reader._tables["recent"]._used == 9


def test_a_reader_that_comes_late_or_misses_files_goes_on_from_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = worker(tmp_path)
    feed(made, 0, 6)
    writer, reader = deltas(made), served(made)
    reader.poll()  # nothing is there yet
    writer.write()
    reader.poll()
    folder = embedding_folder(made.policy.model_dir, "fusion", made.policy.spec_hash)
    feed(made, 6, 1)
    writer.write()
    lost = numbers(folder)[-1]
    file_of(folder, lost).unlink()
    feed(made, 7, 1)
    writer.write()
    before = reader.look_up(some_states())
    reader.poll()
    assert_equal(reader.look_up(some_states()), before)
    monkeypatch.setattr(embedding_deltas, "ANEW_BYTES", 0)
    writer._all_bytes = 0
    writer.write()
    for follower in (reader, served(made)):
        follower.poll()
        assert_equal(follower.look_up(some_states()), rows(made, some_states()))
    writer._all_bytes, writer._delta_bytes = 0, 1
    writer.write()
    assert min(numbers(folder)) > lost  # what came before the last start but one is deleted


def test_a_damaged_file_is_counted_and_the_rows_before_it_stay(tmp_path: Path) -> None:
    made = worker(tmp_path)
    feed(made, 0, 6)
    writer, reader = deltas(made), served(made)
    writer.write()
    reader.poll()
    before = reader.look_up(some_states())
    feed(made, 6, 1)
    writer.write()
    folder = embedding_folder(made.policy.model_dir, "fusion", made.policy.spec_hash)
    path = file_of(folder, numbers(folder)[-1])
    content = path.read_bytes()
    path.write_bytes(content[:50])
    reader.poll()
    assert reader._metrics.registry.get_sample_value("headrace_serving_embedding_failures_total") == 1
    assert_equal(reader.look_up(some_states()), before)
    path.write_bytes(content)
    reader.poll()
    assert_equal(reader.look_up(some_states()), rows(made, some_states()))


def test_a_disk_that_refuses_the_rows_is_one_line(tmp_path: Path) -> None:
    made = worker(tmp_path)
    feed(made, 0, 2)
    (tmp_path / "models").mkdir(exist_ok=True)
    (tmp_path / "models" / "fusion").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*embeddings.*: .*; free space there, or set another policy\.model_dir"):
        deltas(made).write()


def test_memory_for_fewer_rows_than_a_batch_may_use_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.embedding_hot_rows = 1000: a batch of 200 transitions may use 1600 rows of set"):
        worker(tmp_path, batch_size=200)


def test_two_ids_have_two_keys_and_none_has_zero() -> None:
    reader = StateReader(features())
    keys = reader.columns([{"recent": [f"i-{item}" for item in range(5)]}, {"recent": ["", "i-0"]}]).sequences["recent"]
    assert len(set(keys[0].tolist())) == 5
    assert keys.min() == 0
    assert keys[1].tolist() == [0, 0, 0, 0, keys[0, 0]]
    assert os.environ.get("PYTHONHASHSEED") != "0" or keys[0, 0] > 1

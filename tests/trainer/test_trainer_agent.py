"""How the trainer's agent follows its group and its topic."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from transition_log import action_spec, batches, policy_settings, small_settings

from headrace.embedding_files import embedding_folder, numbers
from headrace.policy_settings import PolicySettings
from headrace.settings import ConfigError
from headrace.step import Record
from schemas.codec import encode_batch
from schemas.features import DenseFeature, FeatureSpec, SequenceFeature
from schemas.topics import TRANSITIONS
from trainer.agent import Training
from trainer.worker import Worker

TP0 = TP(TRANSITIONS, 0)


class Consumer:
    generation = 1

    def __init__(self) -> None:
        self.commits: dict[TP, int] = {}
        self.heard = 0

    def heard_s(self) -> float:
        self.heard += 1
        return self.heard

    def caught_up_at_s(self, tp: TP) -> float | None:
        return None

    def commit_at(self, tp: TP, offset: int) -> None:
        self.commits[tp] = offset


class Topics:
    topic_id = "first"

    def __call__(self, _: object) -> dict[str, str]:
        return {TRANSITIONS: self.topic_id}


def training(folder: Path, topics: Topics) -> Training:
    worker = Worker(small_settings(checkpoint_interval_s=1), policy_settings(folder / "models"), folder / "state", "0.1.0", seed=7)
    return Training(SimpleNamespace(consumer=Consumer()), worker, SimpleNamespace(), topics)  # type: ignore[arg-type]


def delivered(first: int, count: int, generation: int = 1) -> Any:
    records = [Record(first + place, 0, encode_batch(rows, 0)) for place, rows in enumerate(batches(first, count))]
    return SimpleNamespace(message=SimpleNamespace(tp=TP0, generation_id=generation), value=records)


@pytest.fixture(autouse=True)
def errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_it(error: BaseException) -> None:
        raise error

    monkeypatch.setattr("trainer.agent.stop_at_once", raise_it)


async def test_a_checkpoint_of_an_earlier_topic_is_refused(tmp_path: Path) -> None:
    topics = Topics()
    first = training(tmp_path, topics)
    await first.on_assigned({TP0: None})
    await first.on_batch(delivered(0, 2))
    first.worker.checkpoint(0)

    again = training(tmp_path, topics)
    assert await again.on_assigned({TP0: None}) == {TP0: 2}
    topics.topic_id = "second"
    with pytest.raises(ConfigError, match=r"checkpoints in .* belong to an earlier topic transitions .*: move the folder away"):
        await training(tmp_path, topics).on_assigned({TP0: None})


async def test_nothing_is_learned_of_what_was_revoked_or_delivered_before(tmp_path: Path) -> None:
    agent = training(tmp_path, Topics())
    await agent.on_assigned({TP0: None})
    await agent.on_batch(delivered(0, 1))
    await agent.on_revoked()
    await agent.on_batch(delivered(1, 1))
    assert agent.worker.offsets == {0: 1}

    assert await agent.on_assigned({TP0: None}) == {TP0: 1}
    await agent.on_batch(delivered(1, 1, generation=0))
    assert agent.worker.offsets == {0: 1}
    await agent.on_batch(delivered(1, 1))
    assert agent.worker.offsets == {0: 2}


async def test_a_revoke_waits_for_the_message_in_hand_and_not_for_the_batch(tmp_path: Path) -> None:
    agent = training(tmp_path, Topics())
    await agent.on_assigned({TP0: None})
    in_hand = asyncio.create_task(agent.on_batch(delivered(0, 50)))
    while not agent.worker.offsets:
        await asyncio.sleep(0)
    await agent.on_revoked()
    learned = agent.worker.offsets[0]
    await in_hand

    assert learned < 50
    assert agent.worker.offsets == {0: learned}


async def test_a_trainer_through_which_nothing_comes_any_more_ends(tmp_path: Path) -> None:
    agent = training(tmp_path, Topics())
    await agent.on_assigned({TP0: None})
    for place in range(6):
        await agent.on_batch(delivered(place, 1))
        await agent.on_watch()
    with pytest.raises(ConfigError, match="trainer transitions 0: the consumer stalled"):
        for _ in range(6):
            await agent.on_watch()


async def test_rows_of_dynamic_tables_are_written_when_their_interval_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = FeatureSpec(dense=(DenseFeature(name="x"),), sequences=(SequenceFeature(name="recent", length=5, dim=4, table="dynamic"),))
    policy = PolicySettings(action=action_spec(2), features=features, model_dir=tmp_path / "models")
    settings = small_settings(embedding_publish_interval_s=10.0, embedding_admission_count=1, candidate_interval_s=1e9)
    worker = Worker(settings, policy, tmp_path / "state", "0.1.0", seed=7)
    agent = Training(SimpleNamespace(consumer=Consumer()), worker, SimpleNamespace(), Topics())  # type: ignore[arg-type]
    folder = embedding_folder(policy.model_dir, policy.policy, policy.spec_hash)
    clock_s = [100.0]
    monkeypatch.setattr("trainer.agent.time", SimpleNamespace(monotonic=lambda: clock_s[0], time=lambda: 0.0))
    await agent.on_assigned({TP0: None})
    await agent.on_batch(delivered(0, 3))
    written = []
    for now_s in (100.0, 109.0, 110.0):
        clock_s[0] = now_s
        await agent.on_timer()
        worker.learn(0, int(now_s) + 1, batches(int(now_s), 1, start=40 * int(now_s))[0], 0)
        written.append(len(numbers(folder)))
    assert written == [2, 2, 3]  # all rows and the start, nothing, one delta
    worker.embeddings.close()

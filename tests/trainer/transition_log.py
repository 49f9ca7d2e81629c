"""Small logs of transitions for the tests: a contextual task whose best action is known."""

import json

import numpy as np
import pyarrow as pa

from headrace.policy_settings import PolicySettings
from schemas.action import ActionDimension, ActionSpec
from schemas.features import DenseFeature, FeatureSpec, IdFeature, SequenceFeature
from schemas.transition import transition_schema
from trainer.settings import TrainerSettings

SCHEMA = transition_schema(("click",))
FEATURES = FeatureSpec(
    dense=(DenseFeature(name="x"), DenseFeature(name="y", default=0.5)),
    ids=(IdFeature(name="city", buckets=16, dim=4),),
    sequences=(SequenceFeature(name="recent", length=5, buckets=32, dim=4),),
)
SMALL = {
    "hidden": (16, 16),
    "head_hidden": 8,
    "channels": 4,
    "batch_size": 32,
    "min_transitions": 50,
    "normaliser_warm_up_rows": 20,
    "replay_capacity": 500,
    "dedup_horizon": 1000,
    "holdout_capacity": 64,
}


def action_spec(size: int) -> ActionSpec:
    return ActionSpec(dimensions=tuple(ActionDimension(name=f"w{i}", objective=f"o{i}") for i in range(size)))


def small_settings(**changes: object) -> TrainerSettings:
    return TrainerSettings(**{**SMALL, **changes})


def policy_settings(model_dir: object, size: int = 2) -> PolicySettings:
    return PolicySettings(action=action_spec(size), features=FEATURES, model_dir=model_dir)


def page(rng: np.random.Generator, size: int = 2) -> dict[str, object]:
    """A served page: its state and action."""
    recent = [f"i-{item}" for item in rng.integers(0, 9, int(rng.integers(0, 7)))]
    state = {"x": float(rng.normal(50, 10)), "y": float(rng.normal()), "city": str(rng.integers(0, 5)), "recent": recent}
    return {"state": state, "action": rng.uniform(0, 2, size).tolist(), "propensity": 0.5}


def row(number: int, page_now: dict[str, object], page_next: dict[str, object] | None, **columns: object) -> dict[str, object]:
    return {
        "transition_id": f"r-{number}",
        "instance": "td1",
        "revision": 0,
        "request_id": f"r-{number}",
        "user_id": f"u-{number % 7}",
        "session_id": f"s-{number // 5}",
        "step": number % 5,
        "ts_ms": 1000 * number,
        "policy": "fusion" if number % 4 else "baseline",
        "model_version": "",
        "bucket": "",
        "propensity": 0.5,
        "reward": columns.get("return", 1.0),
        "reward_click": 1.0,
        "penalty_no_conversion": 0.0,
        "penalty_left": 0.0,
        "n_steps": 1,
        "return": 1.0,
        "discount": 0.9,
        "done": page_next is None,
        "ends_session": page_next is None,
        "feedback_count": 1,
        "feedback_arrival_ms": 1000 * number + 10,
        "source_partition": 3,
        "source_offset": number,
        "samples_offset": 0,
        "feedback_offsets": [10 * number],
        "exposure": json.dumps(page_now).encode(),
        "next_exposure": None if page_next is None else json.dumps(page_next).encode(),
        **columns,
    }


def batch(rows: list[dict[str, object]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def batches(seed: int, count: int, rows_each: int = 40, start: int = 0) -> list[pa.RecordBatch]:
    """Batches of random pages in sessions of five; the reward falls with the action's distance from the state's x."""
    rng = np.random.default_rng(seed)
    made = []
    for first in range(start, start + count * rows_each, rows_each):
        rows = []
        for number in range(first, first + rows_each):
            now = page(rng)
            reward = float(-abs(now["action"][0] - 1.0 - (now["state"]["x"] - 50.0) / 20.0) + rng.normal(0, 0.1))  # type: ignore[index]
            following = None if number % 5 == 4 else page(rng)
            rows.append(row(number, now, following, model_version="fusion-000001" if number % 2 else "", **{"return": reward}))
        made.append(batch(rows))
    return made

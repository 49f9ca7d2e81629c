from pathlib import Path
from typing import Any

import msgspec
import pytest
from serving_models import ACTION, FEATURES, GOLDEN_INPUTS, GOOD_METRICS, MemoryProducer, WriteVersion, golden_action, graph

from headrace.policy_settings import PolicySettings
from schemas.policy import Candidate, Lineage


@pytest.fixture
def policy(tmp_path: Path) -> PolicySettings:
    return PolicySettings(policy="fusion", action=ACTION, features=FEATURES, model_dir=tmp_path / "models")


@pytest.fixture
def write_version(policy: PolicySettings) -> WriteVersion:
    """Writes a candidate as the trainer would; keywords replace fields of its candidate.json."""

    def write(number: int, answer: list[float] | None = None, state_weight: float = 0.0, model: bytes | None = None, **fields: Any) -> Path:
        model = model if model is not None else graph(answer or [1.0 + 0.01 * number, 0.9], state_weight)
        model_version = f"fusion-{number:06d}"
        candidate = Candidate(
            **{
                "policy": "fusion",
                "model_version": model_version,
                "created_ms": 1_000 + number,
                "spec_hash": policy.spec_hash,
                "metrics": GOOD_METRICS,
                "lineage": Lineage(offsets={"0": 10 * number}, seed=7, code_version="test", transitions_learned=1000),
                "arrivals_ms": {str(100 * number): number},
                "golden_inputs": GOLDEN_INPUTS,
                "golden_action": golden_action(model) if "golden_action" not in fields else [],
                **fields,
            }
        )
        folder = policy.model_dir / "fusion" / "candidates" / model_version
        folder.mkdir(parents=True)
        (folder / "actor.onnx").write_bytes(model)
        (folder / "candidate.json").write_bytes(msgspec.json.encode(candidate))
        return folder

    return write


@pytest.fixture
def producer() -> MemoryProducer:
    return MemoryProducer()

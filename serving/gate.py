"""The gate: what a candidate must show before anybody is served by it. Pure; every refusal names the numbers.

The quality bound is the improved DDPG's own reading (Meituan, Figure 9): the advantage A(s, a) of the policy's actions, averaged
over held-out states, must lie above the same average for uniformly random actions, by `confidence_z` standard errors:

    policy_advantage_mean - z * policy_advantage_se > random_advantage_mean
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from schemas.action import ActionSpec
from schemas.policy import Candidate
from serving.actor import GOLDEN_TOLERANCE, golden_error

ADVANTAGE = "policy_advantage_mean"
ADVANTAGE_SE = "policy_advantage_se"
RANDOM_ADVANTAGE = "random_advantage_mean"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Requirements:
    """What a candidate is held against."""

    action: ActionSpec
    spec_hash: str
    min_transitions: int
    confidence_z: float


@dataclass(frozen=True)
class Standing:
    """Where the policy stands: the newest version that was ever served, and the versions that a rollback took out."""

    newest_served: str = ""
    rolled_back: Collection[str] = ()


@dataclass(frozen=True)
class Probe:
    """What the candidate's ONNX actor answered: to the golden inputs [A], and to generated states [P, A], before any clipping."""

    golden_action: Floats
    actions: Floats


@dataclass(frozen=True)
class Verdict:
    """The judgement: with `promote` the reasons speak for it, without they are all that speaks against it."""

    promote: bool
    reasons: list[str] = field(default_factory=list)


def version_number(model_version: str) -> int:
    """The number of `{policy}-{n:06d}`; -1 for the baseline (empty). Raises ValueError for any other name."""
    if not model_version:
        return -1
    number = model_version.rpartition("-")[2]
    if not number.isdecimal():
        raise ValueError(f"model version {model_version!r}: expected NAME-NUMBER")
    return int(number)


def judge_papers(candidate: Candidate, required: Requirements, standing: Standing) -> list[str]:
    """What speaks against the candidate before its actor is even loaded."""
    against = [f"metric {name} is {value}" for name, value in candidate.metrics.items() if not math.isfinite(value)]
    if candidate.spec_hash != required.spec_hash:
        against.append(f"made for specification {candidate.spec_hash}, this policy has {required.spec_hash}")
    if candidate.model_version in standing.rolled_back:
        against.append("was rolled back; a person can still promote it")
    if version_number(candidate.model_version) <= version_number(standing.newest_served):
        against.append(f"not newer than {standing.newest_served}")
    if candidate.lineage.transitions_learned < required.min_transitions:
        against.append(f"learned from {candidate.lineage.transitions_learned} transitions, {required.min_transitions} are required")
    missing = [name for name in (ADVANTAGE, ADVANTAGE_SE, RANDOM_ADVANTAGE) if name not in candidate.metrics]
    if missing:
        return [*against, f"metrics missing: {', '.join(missing)}"]
    bound = candidate.metrics[ADVANTAGE] - required.confidence_z * candidate.metrics[ADVANTAGE_SE]
    if not bound > candidate.metrics[RANDOM_ADVANTAGE]:
        against.append(f"not better than random: {_comparison(candidate, required)}")
    return against


def judge_actions(candidate: Candidate, probe: Probe, action: ActionSpec) -> list[str]:
    """What speaks against the actor's answers."""
    low, high = np.asarray(action.low), np.asarray(action.high)
    distance = golden_error(probe.golden_action, candidate.golden_action, 0.5 * (high - low))
    against = [] if distance <= GOLDEN_TOLERANCE else [f"the ONNX actor is {distance:.3g} half ranges off the trainer's golden action"]
    if not np.isfinite(probe.actions).all():
        return [*against, f"{int((~np.isfinite(probe.actions)).any(axis=1).sum())} of {len(probe.actions)} probed actions are not finite"]
    slack = GOLDEN_TOLERANCE * (high - low)  # float32 bounds are not float64 bounds
    outside = (probe.actions < low - slack) | (probe.actions > high + slack)
    for column, dimension in enumerate(action.dimensions):
        if outside[:, column].any():
            first = probe.actions[outside[:, column], column][0]
            against.append(f"action {dimension.name} leaves its bounds: {first:.6g} is not in [{dimension.low}, {dimension.high}]")
    return against


def judge(candidate: Candidate, probe: Probe, required: Requirements, standing: Standing) -> Verdict:
    """The whole judgement."""
    against = judge_papers(candidate, required, standing) + judge_actions(candidate, probe, required.action)
    if against:
        return Verdict(False, against)
    return Verdict(
        True,
        [f"better than random: {_comparison(candidate, required)}", f"learned from {candidate.lineage.transitions_learned} transitions"],
    )


def _comparison(candidate: Candidate, required: Requirements) -> str:
    mean, error, random = (candidate.metrics[name] for name in (ADVANTAGE, ADVANTAGE_SE, RANDOM_ADVANTAGE))
    return f"advantage {mean:.4g} - {required.confidence_z:g} * {error:.4g}, random {random:.4g}"

"""What `headrace versions` does: list, promote, roll back, pin, unpin. They change the model store; the controller announces.

A running controller announces the change at its next poll; where none runs, the change is announced when one starts. Every function raises
StoreError or ActorError (both ValueError, one line) where it cannot do what it was asked for.
"""

from typing import NamedTuple

from headrace.policy_settings import PolicySettings
from schemas.policy import Candidate, PolicyVersion
from serving.actor import ActorError, load_actor, read_candidate
from serving.gate import ADVANTAGE, ADVANTAGE_SE, RANDOM_ADVANTAGE
from serving.versions import ModelStore


class VersionRow(NamedTuple):
    """One line of the list; None where there is no such number.

    `status` is current, pinned, promoted, refused, rolled back, candidate (not judged yet) or unreadable.
    """

    model_version: str
    status: str
    created_ms: int | None
    transitions_learned: int | None
    advantage: float | None
    advantage_se: float | None
    random_advantage: float | None
    reasons: str


def open_store(policy: PolicySettings, keep_history: int = 1000) -> ModelStore:
    """The model store of a policy."""
    return ModelStore(policy.model_dir, policy.policy, policy.spec_hash, keep_history)


def list_versions(store: ModelStore) -> list[VersionRow]:
    """Every candidate on disk, newest first."""
    current, pinned, rolled_back = store.current(), store.pinned(), store.standing().rolled_back
    rows = []
    for model_version in reversed(store.candidates()):
        judgement = store.judgement(model_version)
        status: str = judgement.verdict if judgement else "candidate"
        if current is not None and current.model_version == model_version:
            status = "pinned" if pinned else "current"
        elif model_version in rolled_back:
            status = "rolled back"
        try:
            rows.append(
                _row(read_candidate(store.candidate_folder(model_version)), status, "; ".join(judgement.reasons) if judgement else "")
            )
        except ActorError as error:
            rows.append(VersionRow(model_version, "unreadable", None, None, None, None, None, str(error)))
    return rows


def _row(candidate: Candidate, status: str, reasons: str) -> VersionRow:
    metrics = candidate.metrics
    numbers = (metrics.get(ADVANTAGE), metrics.get(ADVANTAGE_SE), metrics.get(RANDOM_ADVANTAGE))
    return VersionRow(candidate.model_version, status, candidate.created_ms, candidate.lineage.transitions_learned, *numbers, reasons)


def promote(store: ModelStore, policy: PolicySettings, model_version: str, now_ms: int) -> PolicyVersion:
    """Promote a version by hand: the gate's quality bound does not apply, but it must load and answer like the trainer's."""
    load_actor(store.candidate_folder(model_version), policy, warm_up_requests=1)
    return store.promote(model_version, ["promoted by a person"], now_ms)


def rollback(store: ModelStore, why: str, now_ms: int) -> PolicyVersion:
    """Go back to the version before the current one, or to the baseline; the gate never promotes the one left again."""
    return store.rollback([why], now_ms)


def pin(store: ModelStore, policy: PolicySettings, model_version: str, now_ms: int) -> PolicyVersion:
    """Serve this version (empty: the baseline) until a person says otherwise."""
    if model_version:
        load_actor(store.candidate_folder(model_version), policy, warm_up_requests=1)
    return store.pin(model_version, ["pinned by a person"], now_ms)


def unpin(store: ModelStore, now_ms: int) -> PolicyVersion:
    """Let the gate promote again."""
    return store.unpin(now_ms)

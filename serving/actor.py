"""A version's actor: the ONNX graph that the trainer wrote, checked before it answers anybody."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime

from headrace.policy_settings import PolicySettings
from headrace.settings import ConfigError
from schemas.codec import UNREADABLE
from schemas.drift import BINS, EDGES
from schemas.features import FeatureSpec, differences
from schemas.policy import Candidate
from schemas.state_columns import StateColumns, rows_input
from schemas.state_reader import StateReader
from serving.decision import ActorFault

GOLDEN_TOLERANCE = 1e-4
"""How far the loaded actor may be from the trainer's action, in units of half a dimension's range: float32 noise is 1e-6."""

_GRAPH_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}
_decode_candidate = msgspec.json.Decoder(Candidate).decode

Floats = npt.NDArray[np.float64]
LookUp = Callable[[StateColumns], dict[str, npt.NDArray[Any]]]
"""States -> the graph's inputs for the features whose tables are dynamic."""


class ActorError(ConfigError):
    """A version that cannot be served. `reason` is a counter's label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Actor:
    """A loaded version: state columns [B, …] -> actions [B, A]."""

    def __init__(
        self, candidate: Candidate, session: onnxruntime.InferenceSession, policy: PolicySettings, look_up: LookUp | None = None
    ) -> None:
        """Without `look_up` no id of a dynamic table has a row."""
        self.candidate = candidate
        self._session = session
        self._look_up = look_up or partial(_no_rows, policy.features)
        self._low, self._high = np.asarray(policy.action.low), np.asarray(policy.action.high)

    @property
    def model_version(self) -> str:
        """The version that this actor is."""
        return self.candidate.model_version

    def raw(self, feeds: dict[str, npt.NDArray[Any]]) -> Floats:
        """What the graph answers [B, A], unchecked. Raises ActorFault where it cannot be run on these inputs."""
        return self._run("action", feeds)

    def _run(self, output: str, feeds: dict[str, npt.NDArray[Any]]) -> Floats:
        try:
            return np.asarray(self._session.run((output,), feeds)[0], np.float64)
        except Exception as error:  # onnxruntime raises a dozen classes of its own, all direct children of Exception
            raise ActorFault(f"{self.model_version}: {_first_line(error)}") from error

    def inputs(self, columns: StateColumns) -> dict[str, npt.NDArray[Any]]:
        """What the graph takes for these states."""
        return {**columns.inputs(), **self._look_up(columns)}

    def normalised(self, columns: StateColumns) -> Floats | None:
        """What the graph makes of the columns `dense` [B, N]; None where there are none, or the graph does not tell. Raises ActorFault."""
        if "normalised" not in {entry.name for entry in self._session.get_outputs()}:
            return None
        return self._run("normalised", self.inputs(columns))

    def act(self, columns: StateColumns) -> Floats:
        """Actions [B, A], inside the bounds. Raises ActorFault where the graph gives NaN or infinity."""
        actions = self.raw(self.inputs(columns))
        if not np.isfinite(actions).all():
            raise ActorFault(f"{self.model_version}: the actor gave {actions[~np.isfinite(actions)][0]}")
        clipped: Floats = np.clip(actions, self._low, self._high)
        return clipped


def read_candidate(folder: Path) -> Candidate:
    """`candidate.json` of a version's folder. Raises ActorError."""
    path = folder / "candidate.json"
    try:
        return _decode_candidate(path.read_bytes())
    except OSError as error:
        raise ActorError("missing", f"{path}: {error.strerror}") from error
    except UNREADABLE as error:
        raise ActorError("malformed", f"{path}: {error}") from error


def _no_rows(features: FeatureSpec, columns: StateColumns) -> dict[str, npt.NDArray[Any]]:
    return {rows_input(feature.name): np.zeros((len(columns), feature.length * feature.dim), np.float32) for feature in features.dynamic}


def load_actor(folder: Path, policy: PolicySettings, warm_up_requests: int, look_up: LookUp | None = None) -> Actor:
    """Load, check and warm up the version in `folder`. Raises ActorError; after it nothing is left to be done lazily."""
    candidate = read_candidate(folder)
    if candidate.spec_hash != policy.spec_hash:
        told = f" (features: {differences(candidate.features, policy.features)})" if candidate.features else ""
        raise ActorError(
            "wrong_spec",
            f"{candidate.model_version} was made for specification {candidate.spec_hash}, this process has {policy.spec_hash}: "
            f"give trainer and serving the same [policy] settings{told}",
        )
    actor = Actor(candidate, _session(folder / "actor.onnx"), policy, look_up)
    _check_signature(actor, policy.features)
    _check_golden(actor, policy)
    _check_reference(candidate, len(policy.features.normalised))
    dummy = StateReader(policy.features).columns([{}])
    try:
        for _ in range(warm_up_requests):
            actor.act(dummy)
    except ActorFault as fault:
        raise ActorError("not_finite", str(fault)) from fault
    return actor


def _check_reference(candidate: Candidate, size: int) -> None:
    """Drift is computed while somebody waits for /metrics: what does not fit is found now."""
    reference = candidate.dense_reference
    if reference is None:
        return
    lengths = {len(row) for row in reference.edges}, {len(row) for row in reference.shares}
    is_fitting = len(reference.edges) == len(reference.shares) == size and (size == 0 or lengths == ({EDGES}, {BINS}))
    if not is_fitting or not all(0.0 < share < 1.0 for row in reference.shares for share in row):
        raise ActorError("malformed", f"{candidate.model_version}: its dense_reference is not one of {size} features")


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # one request is microseconds of work: handing it to a pool costs more
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as in Actor.raw
        raise ActorError("unloadable", f"{path}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _check_signature(actor: Actor, features: FeatureSpec) -> None:
    """The graph must take exactly the inputs that the specification says, and give the action."""
    takes = {entry.name: (entry.type, entry.shape[-1]) for entry in actor._session.get_inputs()}
    gives = {entry.name: (_GRAPH_TYPES[entry.type], entry.width) for entry in features.inputs()}
    for name in sorted(takes.keys() | gives.keys()):
        if takes.get(name) != gives.get(name):
            theirs, ours = (f"{of[name][0]} [B, {of[name][1]}]" if name in of else "none" for of in (takes, gives))
            raise ActorError("wrong_inputs", f"{actor.model_version}: input {name} is {theirs}, the specification has {ours}")
    try:
        answer = actor.raw(actor.inputs(StateReader(features).columns([{}])))
    except ActorFault as fault:
        raise ActorError("wrong_inputs", f"the graph does not take the features of the specification: {fault}") from fault
    if answer.shape != (1, len(actor._low)):
        raise ActorError(
            "wrong_inputs",
            f"{actor.model_version} answers in shape {answer.shape}, the action specification has {len(actor._low)} dimensions",
        )


def golden_answer(actor: Actor) -> Floats:
    """What the actor answers [A] to the candidate's golden inputs. Raises ActorError where they do not fit the graph."""
    types = {entry.name: np.int64 if "int64" in entry.type else np.float32 for entry in actor._session.get_inputs()}
    try:
        feeds = {name: np.asarray(rows, types[name]) for name, rows in actor.candidate.golden_inputs.items()}
        answer: Floats = actor.raw(feeds)[0]
    except (KeyError, ValueError, TypeError, ActorFault) as error:  # an unknown name, ragged rows, a missing id, missing inputs
        raise ActorError("wrong_golden", f"{actor.model_version}: its golden inputs do not fit its graph: {error!r:.200}") from error
    return answer


def golden_error(answer: Floats, golden_action: list[float], half_range: Floats) -> float:
    """Largest distance between two actions, in units of half a dimension's range; infinite where they cannot be compared."""
    if answer.shape != (len(golden_action),) or not np.isfinite(answer).all():
        return float("inf")
    return float(np.max(np.abs(answer - np.asarray(golden_action)) / half_range))


def _check_golden(actor: Actor, policy: PolicySettings) -> None:
    half_range = 0.5 * (np.asarray(policy.action.high) - np.asarray(policy.action.low))
    distance = golden_error(golden_answer(actor), actor.candidate.golden_action, half_range)
    if not distance <= GOLDEN_TOLERANCE:
        raise ActorError("wrong_golden", f"{actor.model_version}: its action is {distance:.3g} half ranges off what the trainer computed")

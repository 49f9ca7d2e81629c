"""What a request gets: its arm, its action, and how likely that action was. No clock, no network, no global random state."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from schemas.action import ActionSpec
from schemas.exposure import BASELINE
from schemas.features import FeatureSpec
from schemas.state_columns import StateColumns
from schemas.state_path import State
from schemas.state_reader import StateReader
from serving.drift import DenseWindow
from serving.exploration import Exploration
from serving.split import bucket, is_baseline


class ActorFault(RuntimeError):
    """An actor gave a number that no action can be made of."""


class Acts(Protocol):
    """The actor of one version: state columns of B requests -> actions [B, A], finite and inside the bounds, or ActorFault."""

    @property
    def model_version(self) -> str: ...

    def act(self, columns: StateColumns) -> npt.NDArray[np.float64]: ...

    def normalised(self, columns: StateColumns) -> npt.NDArray[np.float64] | None: ...


class Decision(NamedTuple):
    """The arm and the action of one request.

    `fault` says why the actor was passed over, where it was; `bucket` is the user's hundredth of the traffic split.
    """

    policy: str
    model_version: str
    action: list[float]
    propensity: float
    fault: str = ""
    bucket: str = ""


def noise_of(seed: int, request_id: str) -> np.random.Generator:
    """The generator of one request: a function of the seed and the request, so that a retry, a replica or a replay draws the same."""
    key = blake2b(request_id.encode(), digest_size=16, key=seed.to_bytes(8, "big")).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))


class Decider:
    """Chooses the arm by user and the action by state."""

    def __init__(
        self,
        policy: str,
        action: ActionSpec,
        features: FeatureSpec,
        exploration: Exploration,
        baseline_share: float,
        split_salt: str,
        seed: int,
        window: DenseWindow,
    ) -> None:
        self._policy = policy
        self._reader = StateReader(features)
        self._exploration = exploration
        self._baseline_share = baseline_share
        self._split_salt = split_salt
        self._seed = seed
        self._window = window
        self.baseline_action = action.baseline

    def columns(self, states: Sequence[State]) -> StateColumns:
        """What the actor is given for these states. Raises WrongStateError."""
        return self._reader.columns(states)

    def decide(self, request_id: str, user_id: str, state: State, actor: Acts | None) -> Decision:
        """The decision for one request; without an actor the policy explores around the baseline action.

        The state of baseline traffic is checked too: it teaches V. Raises WrongStateError. Where the actor fails, the request
        is served, and logged, as baseline traffic: nobody must learn an action's value from a page that it did not make.
        """
        columns = self.columns([state])
        self._window.add(columns.dense[0])
        place = bucket(user_id, self._split_salt)
        if is_baseline(user_id, self._baseline_share, self._split_salt):
            return Decision(BASELINE, "", list(self.baseline_action), 1.0, bucket=place)
        model_version, mean = "", self.baseline_action
        if actor is not None:
            try:
                model_version, mean = actor.model_version, actor.act(columns)[0].tolist()
            except ActorFault as fault:
                return Decision(BASELINE, "", list(self.baseline_action), 1.0, str(fault), place)
        action, propensity = self._exploration.sample(mean, noise_of(self._seed, request_id))
        return Decision(self._policy, model_version, action, propensity, bucket=place)

"""The policy: its name, action, features and model store. Trainer, version controller and serving share it."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from headrace.feature_file import read_feature_file
from headrace.settings import Section
from schemas.action import ActionSpec, spec_hash
from schemas.exposure import BASELINE
from schemas.features import DenseFeature, FeatureSpec, IdFeature, SequenceFeature

DEFAULT_FEATURES = FeatureSpec(
    dense=(DenseFeature(name="hour", default=12.0),),
    ids=(IdFeature(name="city"),),
    sequences=(SequenceFeature(name="recent_items"),),
)


class PolicySettings(Section):
    """What a policy is. Changing `action` or `features` makes another policy: models and checkpoints of the old one are refused."""

    section = "policy"

    policy: str = Field("fusion", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="name of the policy; `baseline` is taken")
    action: ActionSpec = Field(default_factory=lambda: ActionSpec.model_validate({}), description="the numbers that the policy sets")
    features: Annotated[FeatureSpec, NoDecode] = Field(
        DEFAULT_FEATURES, description="the features of a state, as a table here or the path of a TOML file; nothing else of a state is read"
    )
    model_dir: Path = Field(Path("var/models"), description="model store: {model_dir}/{policy}/candidates/{model_version}/")

    @field_validator("features", mode="before")
    @classmethod
    def _from_a_file(cls, features: Any) -> Any:
        """A path, or JSON from the environment."""
        if isinstance(features, str) and features.lstrip().startswith("{"):
            return FeatureSpec.model_validate_json(features)
        return read_feature_file(Path(features)) if isinstance(features, str | Path) else features

    @field_validator("policy")
    @classmethod
    def _not_the_baseline(cls, policy: str) -> str:
        if policy == BASELINE:
            raise ValueError(f"{BASELINE!r} is the name of traffic that no policy touches")
        return policy

    @property
    def spec_hash(self) -> str:
        """The short name of exactly this action and these features; it travels with every model."""
        return spec_hash(self.action, self.features)

"""Settings of the experience collector: where a session ends, which instances leave, and what a page is worth."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace.settings import Section

Kind = Annotated[str, Field(pattern=r"^[^,]+$")]
"""A kind of feedback; a batch's schema lists them with commas."""
Worth = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=0.0, le=1e6, allow_inf_nan=False)]
InstanceName = Annotated[str, Field(pattern=r"^(td[1-9][0-9]{0,2}|mc)$")]


class KindReward(BaseModel):
    """What one kind of feedback earns a page: `weight` times its count, or times the logarithm of its amount (dwell), at most `cap`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: Worth
    scale: Literal["linear", "log"] = "linear"
    unit: float = Field(1.0, gt=0.0, allow_inf_nan=False)
    cap: Penalty | None = None


class RewardRule(BaseModel):
    """What a page is worth, as in the article (experience/reward.py). The article names the penalties but not their size: they are ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: dict[Kind, KindReward] = {"click": KindReward(weight=1.0), "pay": KindReward(weight=10.0)}
    conversion_kinds: tuple[Kind, ...] = Field(("click", "pay"), min_length=1)
    penalty_no_conversion: Penalty = 0.1
    penalty_left: Penalty = 0.5


class PolicyReward(BaseModel):
    """How the reward of one policy's pages differs: kinds named here replace those of the rule one by one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: dict[Kind, KindReward] = {}
    conversion_kinds: tuple[Kind, ...] | None = Field(None, min_length=1)
    penalty_no_conversion: Penalty | None = None
    penalty_left: Penalty | None = None


class RewardSettings(RewardRule):
    """The rule of all policies, and what is different for some."""

    policies: dict[str, PolicyReward] = {}

    def rule(self, policy: str) -> RewardRule:
        """What a page of this policy is worth."""
        own = self.policies.get(policy)
        if own is None:
            return self
        changed = {name: value for name in RewardRule.model_fields if name != "kinds" and (value := getattr(own, name)) is not None}
        rule = {name: getattr(self, name) for name in RewardRule.model_fields}
        return RewardRule(**{**rule, **changed, "kinds": {**self.kinds, **own.kinds}})


class ExperienceSettings(Section):
    """Sessions, instances, reward and horizons."""

    section = "experience"

    session_gap_ms: int = Field(1_800_000, ge=1, description="a session ends where the user's next page comes later than this")
    max_session_pages: int = Field(1_000, ge=1, description="longer sessions are cut (a crawler's session would never end)")
    instances: tuple[InstanceName, ...] = Field(
        ("td1",),
        min_length=1,
        description="what leaves for each page: `td1`, one step; `td<n>`, n steps; `mc`, all of its session's rest. Several may",
    )
    labels: Literal["complete", "early"] = Field(
        "complete",
        description="`complete`: a transition waits until its page's labels are final; `early`: it leaves when the next page is shown, and "
        "again, amended, when final labels make it another one. Needs joiner.emission_mode = fast and negative_keep_rate = 1",
    )
    discount: float = Field(0.9, ge=0.0, lt=1.0, description="gamma: what the next page's reward counts in the return of `td<n>` and `mc`")
    reward: RewardSettings = Field(RewardSettings(), description="what a page is worth (docs/experience.md)")
    idle_s: float = Field(30.0, gt=0.0, description="after so long without samples, event time moves on with wall time")
    dedup_horizon_ms: int = Field(
        600_000,
        ge=0,
        description="how far behind the watermark a page delivered again is known; pages older than that are refused as late",
    )

    @model_validator(mode="after")
    def _instances_differ(self) -> Self:
        if len(set(self.instances)) < len(self.instances):
            raise ValueError(f"instances names one twice: {', '.join(self.instances)}")
        return self

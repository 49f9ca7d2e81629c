"""Settings of the experience collector: where a session ends, and what a page is worth."""

import math
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from headrace.settings import Section


def _finite(weight: float) -> float:
    if not math.isfinite(weight) or abs(weight) > 1e6:
        raise ValueError("a weight must be a finite number of at most 1e6")
    return weight


class ExperienceSettings(Section):
    """Sessions, reward and horizons. The article (Meituan) names the penalties but not their size: the defaults are ours."""

    section = "experience"

    session_gap_ms: int = Field(1_800_000, ge=1, description="a session ends where the user's next page comes later than this")
    max_session_pages: int = Field(1_000, ge=1, description="longer sessions are cut (a crawler's session would never end)")
    reward_weights: dict[str, Annotated[float, AfterValidator(_finite)]] = Field(
        {"click": 1.0, "pay": 10.0}, description="reward of one unit of feedback, by kind; kinds not named earn nothing"
    )
    conversion_kinds: tuple[str, ...] = Field(("click", "pay"), min_length=1, description="kinds of feedback that make a page a success")
    penalty_no_conversion: float = Field(0.1, ge=0.0, le=1e6, description="taken from a page without conversion where the session went on")
    penalty_left: float = Field(0.5, ge=0.0, le=1e6, description="taken from a page without conversion where the user left")
    idle_s: float = Field(30.0, gt=0.0, description="after so long without samples, event time moves on with wall time")
    dedup_horizon_ms: int = Field(
        600_000,
        ge=0,
        description="how far behind the watermark a page delivered again is known; pages older than that are refused as late",
    )

    @model_validator(mode="after")
    def _kinds_have_names(self) -> Self:
        for kind in (*self.reward_weights, *self.conversion_kinds):
            if not kind or "," in kind:
                raise ValueError(f"a kind of feedback must be a name without commas, got {kind!r}")
        return self

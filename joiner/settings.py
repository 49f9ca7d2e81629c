"""Settings of the joiner."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from headrace.settings import Section
from schemas.feedback import LEAVE

Kind = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
"""A kind names columns (`label_<kind>`) and is listed with commas in a batch's schema."""


class JoinerSettings(Section):
    """How long a page waits for its feedback, which feedback becomes a label, and what is refused outright."""

    section = "joiner"

    join_window_ms: int = Field(
        1_800_000, ge=1, le=30 * 86_400_000, description="feedback counts up to this long after its exposure, in event time"
    )
    feedback_kinds: tuple[Kind, ...] = Field(
        ("click", "pay", "like", "dwell"),
        min_length=1,
        max_length=64,
        description="each becomes a label: the sum of its values; `leave` is always known",
    )
    idle_s: float = Field(30.0, gt=0, description="a topic without records for so long of wall time no longer holds the watermark back")
    max_future_ms: int = Field(300_000, ge=0, description="events further ahead of the clock than this are refused")
    max_event_bytes: int = Field(1 << 20, ge=1 << 10, description="events larger than this are refused")

    @model_validator(mode="after")
    def _kinds_are_labels_and_unique(self) -> Self:
        if LEAVE in self.feedback_kinds:
            raise ValueError(f"feedback_kinds must not name {LEAVE!r}: it marks a page, it is no label; got {self.feedback_kinds}")
        if len(set(self.feedback_kinds)) < len(self.feedback_kinds):
            raise ValueError(f"feedback_kinds names a kind twice: {self.feedback_kinds}")
        return self

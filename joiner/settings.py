"""Settings of the joiner."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from headrace.settings import Section
from schemas.event_format import Format, event_format
from schemas.exposure import Exposure
from schemas.feedback import LEAVE, Feedback

Kind = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
"""A kind names columns (`label_<kind>`) and is listed with commas in a batch's schema."""
Combine = Literal["sum", "first", "last", "max"]
"""What becomes of several values of one kind on one item; first and last in event time."""
_MESSAGES: dict[str, type[Struct]] = {"exposure": Exposure, "feedback": Feedback}
AvroSchemaId = Annotated[int | None, Field(ge=0, lt=2**31)]
DurationMs = Annotated[int, Field(ge=0, le=30 * 86_400_000)]


class KindSettings(BaseModel):
    """How one kind of feedback differs from the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    window_ms: DurationMs | None = None
    grace_ms: DurationMs | None = None
    combine: Combine = "sum"


class KindRule(NamedTuple):
    """The rule of a kind: feedback counts up to `window_ms` after its exposure, and is waited for `grace_ms` more."""

    window_ms: int
    grace_ms: int
    combine: Combine


class JoinerSettings(Section):
    """How long a page waits for its feedback, which feedback becomes a label, and what is refused outright."""

    section = "joiner"

    join_window_ms: int = Field(
        1_800_000, ge=1, le=30 * 86_400_000, description="feedback counts up to this long after its exposure, in event time"
    )
    grace_ms: DurationMs = Field(0, description="how far behind the watermark feedback may come and still count: pages leave so much later")
    feedback_kinds: tuple[Kind, ...] = Field(
        ("click", "pay", "like", "dwell"),
        min_length=1,
        max_length=64,
        description="each becomes a label: the sum of its values, unless `kinds` says otherwise; `leave` is always known",
    )
    kinds: dict[Kind, KindSettings] = Field(
        {}, description='by kind, what differs: `window_ms`, `grace_ms`, `combine` ("sum", "first", "last", "max" of its values)'
    )
    emission_mode: Literal["none", "window", "eager", "fast"] = Field(
        "none",
        description="what goes to `pointwise-samples`: nothing; rows when their window closes; positives at once and negatives then; "
        "every row at once and its positive again when it comes",
    )
    target_kind: str = Field(
        "", description="the kind of feedback that makes a row of `pointwise-samples` positive; empty: the first of `feedback_kinds`"
    )
    fast_wait_ms: DurationMs = Field(0, description="in `fast` mode a row leaves so long after its exposure, with the label it has by then")
    negative_keep_rate: float = Field(
        1.0, gt=0, le=1, description="share of the negatives that stay in `pointwise-samples`; the rows carry the log-odds correction"
    )
    idle_s: float = Field(30.0, gt=0, description="a topic without records for so long of wall time no longer holds the watermark back")
    max_future_ms: int = Field(300_000, ge=0, description="events further ahead of the clock than this are refused")
    max_event_bytes: int = Field(
        1 << 20, ge=1 << 10, le=8 << 20, description="events larger than this are refused; a sample's batch holds the whole exposure"
    )
    max_open_items: int = Field(
        10_000_000, ge=1, description="a partition with more open items than this slows its intake of exposures down; none is dropped"
    )
    max_waiting_feedback: int = Field(
        1_000_000, ge=1, description="a partition with more feedback waiting for its exposures than this pauses the feedback topic"
    )

    @property
    def target(self) -> str:
        """The kind that makes a row positive."""
        return self.target_kind or self.feedback_kinds[0]

    @property
    def hold_ms(self) -> int:
        """How far the watermark passes a page before it leaves: the longest window and grace."""
        return max(rule.window_ms + rule.grace_ms for rule in self.rules().values())

    def rules(self) -> Mapping[str, KindRule]:
        """The rule of every known kind, `leave` included."""
        own = {kind: self.kinds.get(kind, KindSettings()) for kind in (*self.feedback_kinds, LEAVE)}
        return {
            kind: KindRule(
                self.join_window_ms if rule.window_ms is None else rule.window_ms,
                self.grace_ms if rule.grace_ms is None else rule.grace_ms,
                rule.combine,
            )
            for kind, rule in own.items()
        }

    exposure_format: Format = Field("json", description="what the topic's messages are; serving writes them so, too (docs/formats.md)")
    exposure_avro_schema: Path | None = Field(None, description="the `.avsc` file of the schema they are written with, where not ours")
    exposure_avro_schema_id: AvroSchemaId = Field(None, description="its id, where Confluent's frame is in front of each message")
    feedback_format: Format = Field("json", description="as `exposure_format`")
    feedback_avro_schema: Path | None = Field(None, description="as `exposure_avro_schema`")
    feedback_avro_schema_id: AvroSchemaId = Field(None, description="as `exposure_avro_schema_id`")

    @field_validator("exposure_avro_schema", "exposure_avro_schema_id", "feedback_avro_schema", "feedback_avro_schema_id")
    @classmethod
    def _avro_is_as_described(cls, value: Path | int | None, info: ValidationInfo) -> Path | int | None:
        topic = str(info.field_name).partition("_")[0]
        if value is not None and info.data.get(f"{topic}_format") != "avro":
            raise ValueError(f'only where joiner.{topic}_format = "avro"')
        if isinstance(value, Path):
            event_format("avro", _MESSAGES[topic], value)
        return value

    @model_validator(mode="after")
    def _kinds_are_labels_and_unique(self) -> Self:
        if LEAVE in self.feedback_kinds:
            raise ValueError(f"feedback_kinds must not name {LEAVE!r}: it marks a page, it is no label; got {self.feedback_kinds}")
        if len(set(self.feedback_kinds)) < len(self.feedback_kinds):
            raise ValueError(f"feedback_kinds names a kind twice: {self.feedback_kinds}")
        unknown = sorted(self.kinds.keys() - {*self.feedback_kinds, LEAVE})
        if unknown:
            raise ValueError(f"kinds names {unknown[0]!r}, which is not in feedback_kinds: {', '.join(self.feedback_kinds)}")
        if self.target_kind and self.target_kind not in self.feedback_kinds:
            raise ValueError(f"target_kind = {self.target_kind!r} is not in feedback_kinds: {', '.join(self.feedback_kinds)}")
        window_ms = self.rules()[self.target].window_ms
        if self.emission_mode == "fast" and self.fast_wait_ms >= window_ms:
            raise ValueError(f"fast_wait_ms = {self.fast_wait_ms} must be below the target's window of {window_ms} ms")
        return self

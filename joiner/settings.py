"""Settings of the joiner."""

from pathlib import Path
from typing import Annotated, Self

from msgspec import Struct
from pydantic import Field, ValidationInfo, field_validator, model_validator

from headrace.settings import Section
from schemas.event_format import Format, event_format
from schemas.exposure import Exposure
from schemas.feedback import LEAVE, Feedback

Kind = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
"""A kind names columns (`label_<kind>`) and is listed with commas in a batch's schema."""
_MESSAGES: dict[str, type[Struct]] = {"exposure": Exposure, "feedback": Feedback}
AvroSchemaId = Annotated[int | None, Field(ge=0, lt=2**31)]


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
        return self

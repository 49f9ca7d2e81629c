"""Settings of the user state: what its worker keeps, and whether serving reads it."""

from typing import Self

from pydantic import Field, model_validator

from headrace.settings import Section
from schemas.exposure import Id

_WEEK_MS = 7 * 24 * 3_600_000


class UserStateSettings(Section):
    """The `[user_state]` table. Worker and serving need the same, and the same `stream.state_dir` where it is on a disk."""

    section = "user_state"

    kinds: tuple[Id, ...] = Field(("click",), min_length=1, description="kinds of feedback that are remembered")
    max_events: int = Field(200, ge=1, le=10_000, description="newest events kept of a user and kind: windows count no further")
    recent_items: int = Field(50, ge=1, description="items and categories of `recent_<kind>`, newest last")
    horizon_ms: int = Field(_WEEK_MS, ge=60_000, description="older events are forgotten; the topic must be kept for longer")
    max_future_ms: int = Field(300_000, ge=0, description="an event further ahead of the clock is ignored")
    serve: bool = Field(False, description="serving adds the stored features that the specification names to each request's state")
    refresh_ms: int = Field(100, ge=10, description="how often serving catches up with the worker's writes on its disk")
    redis: str = Field(
        "",
        pattern=r"^([^\s/:]+:[0-9]{1,5})?$",
        description="HOST:PORT of a server of the Redis protocol that keeps the state; empty: RocksDB, on one disk with serving",
    )
    redis_timeout_ms: int = Field(20, ge=1, le=10_000, description="a request whose read takes longer is served without stored features")

    @model_validator(mode="after")
    def _recent_items_are_kept(self) -> Self:
        if self.recent_items > self.max_events:
            raise ValueError(f"recent_items {self.recent_items} must not exceed max_events {self.max_events}")
        return self

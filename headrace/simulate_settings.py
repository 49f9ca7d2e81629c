"""Settings of the simulated users."""

from pydantic import Field

from headrace.settings import ConfigError, Section
from joiner.settings import JoinerSettings


class SimulateSettings(Section):
    """The `[simulate]` table."""

    section = "simulate"

    api: str = Field("http://127.0.0.1:8080", pattern=r"^https?://\S+$", description="address of the serving API")
    users: int = Field(48, ge=1, le=10_000, description="users at the same time; one that leaves makes room for a new one")
    session_pages: int = Field(20, ge=1, le=10_000, description="pages that a user looks at before leaving")
    page_interval_s: float = Field(0.4, ge=0.0, description="mean time between a page and the request for the next one, +- 25 %")
    candidates: int = Field(60, ge=10, le=1000, description="items that a page is chosen from")
    ranks_itself_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="users that ask for an action only (/v1/act), rank and log the page themselves; the others ask /v1/rank",
    )
    topic_share: float = Field(
        0.5, ge=0, le=1, description="users whose events go straight to the topics; the others' go through /v1/events"
    )
    late_share: float = Field(0.2, ge=0, le=1, description="feedback that is sent late, hence out of order")
    late_mean_ms: float = Field(400.0, ge=0, description="mean of the exponential delay of late feedback")
    bad_share: float = Field(
        0.002, ge=0, le=1, description="bad events a feedback sent: malformed, NaN, unknown page, from the future, too large"
    )
    duplicate_share: float = Field(0.002, ge=0, le=1, description="feedback that is sent twice")
    collect_interval_ms: int = Field(
        100, ge=1, le=60_000, description="events for /v1/events leave together so often, as a client's collector does it"
    )
    timeout_s: float = Field(5.0, gt=0, description="longest wait for an answer of the API")
    backoff_s: float = Field(0.1, gt=0, description="wait before the second attempt; it doubles up to 2 s")
    shutdown_timeout_s: float = Field(10.0, gt=0, description="how long the end waits for the last events to be taken")


def require_json(users: SimulateSettings, joiner: JoinerSettings) -> None:
    """Raises ConfigError where users would write JSON straight to a topic that holds another format."""
    for name, topic_format in (("exposure_format", joiner.exposure_format), ("feedback_format", joiner.feedback_format)):
        if users.topic_share and topic_format != "json":
            raise ConfigError(
                f"setting simulate.topic_share = {users.topic_share}: these users write JSON to the topics, but joiner.{name} is "
                f"{topic_format!r}; 0 lets all of them send through the API, which writes each topic in its format"
            )

"""Settings of the serving API."""

from pydantic import Field

from headrace.settings import Section


class ServingSettings(Section):
    """The `[serving]` table."""

    section = "serving"

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8080, ge=0, le=65535, description="0 takes a free one")
    baseline_share: float = Field(0.2, ge=0, le=1, description="share of the users that always get the baseline action")
    split_salt: str = Field("headrace", description="another salt gives another split of the users")
    explore_sigma: float = Field(
        0.1, ge=0, le=10, description="exploration noise of each dimension, relative to half its range; 0 explores nothing"
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="the noise of a request is a function of this and its request_id")
    max_body_bytes: int = Field(4 << 20, ge=1 << 10, description="a larger request body is refused with 413")
    max_candidates: int = Field(2000, ge=1, le=10_000, description="candidates of one rank request")
    max_page_size: int = Field(500, ge=1, le=10_000, description="items of one ranked page")
    max_events: int = Field(10_000, ge=1, description="events of one request to /v1/events")
    max_event_bytes: int = Field(
        1 << 20, ge=1 << 10, description="a larger event handed to /v1/events is refused; not above joiner.max_event_bytes"
    )
    drift_window_requests: int = Field(
        2_000, ge=100, description="newest requests whose dense features are compared with those that the version was trained on"
    )
    embedding_poll_interval_s: float = Field(1.0, gt=0, description="how often serving looks for new rows of dynamic tables")
    warm_up_requests: int = Field(16, ge=1, le=10_000, description="requests that a version answers before it is swapped in")
    linger_ms: int = Field(5, ge=0, le=1000, description="how long the producer waits to fill a batch")
    queue_messages: int = Field(100_000, ge=1, description="events that wait for the broker before the queue is full")
    queue_bytes: int = Field(
        256 << 20, ge=1 << 20, le=(2**31 - 1) * 1024, description="bytes that wait for the broker before the queue is full"
    )
    delivery_timeout_s: float = Field(60.0, gt=0, description="an event that the broker has not taken by then is lost, and counted")
    retry_after_s: int = Field(1, ge=1, description="what a 503 asks the client to wait")
    shutdown_timeout_s: float = Field(10.0, gt=0, description="how long a stop waits for requests, and then for the producer")

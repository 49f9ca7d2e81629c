"""Settings of the monitor."""

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from headrace.settings import Section


class MonitorSettings(Section):
    """What the monitor remembers, when it alerts, and whom it tells."""

    section = "monitor"

    webhook_url: SecretStr | None = Field(
        None, description="alerts are posted here as JSON; the address may hold a token, so it is never logged"
    )
    webhook_timeout_s: float = Field(5.0, gt=0, le=60, description="longest silence of the webhook's server in one attempt")
    webhook_attempts: int = Field(5, ge=1, le=20, description="an alert that failed so often is dropped and counted")
    webhook_backoff_s: float = Field(1.0, ge=0, le=60, description="wait before the second attempt; it doubles for each further one")
    webhook_queue: int = Field(1000, ge=1, description="alerts that wait to be posted; further ones are dropped and counted")

    rejected_share_max: float = Field(0.05, gt=0, lt=1, description="alert when a larger share of the window's events was refused")
    rejected_share_resolved: float = Field(0.025, ge=0, lt=1, description="the alert ends when the share is down to this")
    window_s: int = Field(60, ge=1, le=86_400, description="the window over which the share is taken")
    bucket_s: int = Field(5, ge=1, description="resolution of the window")
    settle_s: int = Field(2, ge=0, description="a bucket is judged this long after its end, so that what is on its way is in it")
    min_events: int = Field(100, ge=1, description="windows with fewer events are not judged")
    history_windows: int = Field(
        60, ge=2, le=1000, description="windows of history kept; together longer than the joiner's window, so that a slow start is no alert"
    )

    horizon_s: int = Field(3600, ge=0, description="pages and transitions delivered again within this (event time) count once")
    letter_horizon_s: int = Field(3600, ge=0, description="a dead letter delivered again within this time counts once")
    remembered_ids_max: int = Field(200_000, ge=1, description="ids remembered per topic and partition, about 100 B each")
    session_idle_s: int = Field(7200, ge=1, description="a session without a page for so long (event time) is taken as finished")
    open_sessions_max: int = Field(100_000, ge=1, description="open sessions kept per partition; the stalest are taken as finished")
    versions_max: int = Field(200, ge=1, description="model versions kept per partition, newest first")

    @field_validator("rejected_share_resolved")
    @classmethod
    def _resolves_below_the_alert(cls, share: float, others: ValidationInfo) -> float:
        if share > others.data.get("rejected_share_max", 1.0):
            raise ValueError(f"must not be above rejected_share_max ({others.data['rejected_share_max']})")
        return share

    @field_validator("bucket_s")
    @classmethod
    def _window_is_whole_buckets(cls, bucket_s: int, others: ValidationInfo) -> int:
        if others.data.get("window_s", bucket_s) % bucket_s:
            raise ValueError(f"window_s ({others.data['window_s']}) must be a multiple of it")
        return bucket_s

    @property
    def history_s(self) -> int:
        """How long buckets are kept."""
        return self.window_s * self.history_windows

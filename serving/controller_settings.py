"""Settings of the version controller."""

from pydantic import Field

from headrace.settings import Section


class ControllerSettings(Section):
    """The `[controller]` table."""

    section = "controller"

    poll_interval_s: float = Field(1.0, gt=0, description="how often the model store is looked at")
    metrics_host: str = Field("127.0.0.1", min_length=1)
    metrics_port: int = Field(6070, ge=0, le=65535, description="Prometheus page of the controller; 0 takes a free port")
    min_transitions: int = Field(200, ge=0, description="a candidate that learned from fewer is refused")
    confidence_z: float = Field(1.64, ge=0, description="standard errors that the policy's advantage must stay above the random bound")
    probe_rows: int = Field(64, ge=1, le=10_000, description="generated states on which a candidate's actions are looked at")
    warm_up_requests: int = Field(16, ge=1, le=10_000, description="requests that a candidate answers before it is announced")
    keep_candidates: int = Field(10, ge=1, description="newest candidates kept on disk, beside the current and the previous version")
    keep_history: int = Field(1000, ge=10, description="promotions, rollbacks and pins kept in history.json; as many verdicts are kept")
    reannounce_s: float = Field(
        60.0, gt=0, description="the current version is announced again so often: idempotent, and it heals a broker that lost it"
    )
    announce_timeout_s: float = Field(10.0, gt=0, description="how long to wait for the broker to take an announcement")

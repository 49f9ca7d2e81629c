"""An alert: a rule of the monitor that fired or was resolved."""

from typing import Literal

from msgspec import Struct


class Alert(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One change of one rule, keyed by `rule`: what was measured, and the threshold that it crossed."""

    version: Literal[1] = 1
    rule: str
    state: Literal["firing", "resolved"]
    summary: str
    measured: float
    threshold: float
    ts_ms: int


EXAMPLE = Alert(
    rule="rejected_share",
    state="firing",
    summary="12.0 % of the last minute's events were refused (allowed: 5.0 %)",
    measured=0.12,
    threshold=0.05,
    ts_ms=1_700_000_060_000,
)

"""The topic table: one row a topic. Same partition count everywhere, so that one user's life stays on one partition number."""

from dataclasses import dataclass
from typing import Literal

EXPOSURES = "exposures"
FEEDBACK = "feedback"
SAMPLES = "samples"
POINTWISE_SAMPLES = "pointwise-samples"
TRANSITIONS = "transitions"
POLICIES = "policies"
ALERTS = "alerts"
DEAD_LETTERS = "dead-letters"

MAX_EVENT_BYTES = 12 * 1024 * 1024
"""Brokers accept events up to this size so that an oversized one reaches the joiner and is refused there, with a reason."""


@dataclass(frozen=True)
class Topic:
    """One topic: `format` is `json` (one message an event) or `arrow` (one message a record batch)."""

    name: str
    key: str
    format: Literal["json", "arrow"]
    schema: str
    producer: str
    consumer: str
    compacted: bool = False


TOPICS: tuple[Topic, ...] = (
    Topic(EXPOSURES, "user_id", "json", "schemas.exposure.Exposure", "serving, your system", "joiner"),
    Topic(FEEDBACK, "user_id", "json", "schemas.feedback.Feedback", "clients", "joiner, user state"),
    Topic(SAMPLES, "user_id", "arrow", "schemas.sample.sample_schema", "joiner", "experience, monitor, sink"),
    Topic(
        POINTWISE_SAMPLES,
        "user_id",
        "arrow",
        "schemas.pointwise_sample.pointwise_schema",
        "joiner",
        "point-wise learners, sink, experience",
    ),
    Topic(TRANSITIONS, "user_id", "arrow", "schemas.transition.transition_schema", "experience", "trainer, monitor"),
    Topic(POLICIES, "policy", "json", "schemas.policy.PolicyVersion", "version controller", "serving, monitor", compacted=True),
    Topic(ALERTS, "rule", "json", "schemas.alert.Alert", "monitor", "people"),
    Topic(DEAD_LETTERS, "stage", "json", "schemas.dead_letter.DeadLetter", "every stage", "monitor, people"),
)

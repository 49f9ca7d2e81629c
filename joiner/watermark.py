"""The watermark of a partition: the event time up to which both topics are believed to be complete."""

from schemas.topics import EXPOSURES, FEEDBACK


class Watermark:
    """The smaller of the two topics' newest event times; it never goes back.

    A topic without records for `idle_ms` of wall time does not hold it back, and where both are idle it moves with the wall
    clock. Wall time is what the callers give; the first `now_ms` of a life counts as heard from both topics, so that a restart
    after a pause waits for the records that piled up meanwhile.
    """

    def __init__(self, idle_ms: float, watermark_ms: int = 0, exposures_ms: int = 0, feedback_ms: int = 0) -> None:
        self._idle_ms = idle_ms
        self._heard_ms: dict[str, int] = {}
        self.ms = watermark_ms
        self.newest_ms = {EXPOSURES: exposures_ms, FEEDBACK: feedback_ms}

    def observe(self, topic: str, newest_ms: int, now_ms: int) -> None:
        """Note that a batch of `topic` came at `now_ms`, whose newest acceptable event time is `newest_ms` (0: it had none)."""
        self._heard_ms[topic] = now_ms
        self.newest_ms[topic] = max(self.newest_ms[topic], newest_ms)

    def advance(self, now_ms: int) -> int:
        """The watermark at `now_ms`."""
        heard = {topic: self._heard_ms.setdefault(topic, now_ms) for topic in self.newest_ms}
        busy = [self.newest_ms[topic] for topic, heard_ms in heard.items() if now_ms - heard_ms < self._idle_ms]
        newest = max(self.newest_ms.values())
        if busy:
            self.ms = max(self.ms, min(busy))
        elif newest:
            self.ms = max(self.ms, newest + now_ms - max(heard.values()))
        return self.ms

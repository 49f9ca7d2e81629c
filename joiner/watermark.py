"""The watermark of a partition: the event time up to which both topics are believed to be complete."""

from collections.abc import Collection

from schemas.topics import EXPOSURES, FEEDBACK


class Watermark:
    """The smaller of the two topics' newest event times; it never goes back.

    A topic without records for `idle_ms` of wall time does not hold it back, and where both are idle it moves with the wall
    clock. Only a tick can find a topic idle, and never one with unread records: a backlog is not silence. Wall time is what the
    callers give; the first `now_ms` of a life counts as heard from both topics.
    """

    def __init__(self, idle_ms: float, watermark_ms: int = 0, exposures_ms: int = 0, feedback_ms: int = 0) -> None:
        self._idle_ms = idle_ms
        self._heard_ms: dict[str, int] = {}
        self._idle: set[str] = set()
        self.ms = watermark_ms
        self.newest_ms = {EXPOSURES: exposures_ms, FEEDBACK: feedback_ms}

    def observe(self, topic: str, newest_ms: int, now_ms: int) -> None:
        """Note that a batch of `topic` came at `now_ms`, whose newest acceptable event time is `newest_ms` (0: it had none).

        An event ahead of the clock moves it no further than to now: one wrong clock must not close everybody else's windows.
        """
        self._hear(topic, now_ms)
        self.newest_ms[topic] = max(self.newest_ms[topic], min(newest_ms, now_ms))

    def tick(self, now_ms: int, unread: Collection[str] = ()) -> None:
        """Find out which topics are idle at `now_ms`; those of `unread` are not."""
        for topic in self.newest_ms:
            if topic in unread:
                self._hear(topic, now_ms)
            elif now_ms - self._heard_ms.setdefault(topic, now_ms) >= self._idle_ms:
                self._idle.add(topic)

    def advance(self, now_ms: int) -> int:
        """The watermark at `now_ms`."""
        heard_ms = [self._heard_ms.setdefault(topic, now_ms) for topic in self.newest_ms]
        busy = [newest_ms for topic, newest_ms in self.newest_ms.items() if topic not in self._idle]
        newest = max(self.newest_ms.values())
        if busy:
            self.ms = max(self.ms, min(busy))
        elif newest:
            self.ms = max(self.ms, newest + now_ms - max(heard_ms))
        return self.ms

    def feedback_ms(self) -> int:
        """The event time up to which feedback has been seen: past the watermark where feedback is read ahead of exposures."""
        return max(self.ms, self.newest_ms[FEEDBACK])

    def is_idle(self, topic: str) -> bool:
        """Whether the topic was silent for so long that it does not hold the watermark back."""
        return topic in self._idle

    def both_ms(self) -> int:
        """What the watermark would be were silence no reason to move on: the smaller of the newest event times."""
        return min(self.newest_ms.values())

    def _hear(self, topic: str, now_ms: int) -> None:
        self._heard_ms[topic] = now_ms
        self._idle.discard(topic)

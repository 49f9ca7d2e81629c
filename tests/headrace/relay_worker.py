"""A worker of the tests: relays exposures to samples, remembering each; `HOLD` newest records are still needed.

It fails over a record that RELAY_POISON names, and wants no more of a partition after a record that RELAY_SATED names, for 3 s.
"""

import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from headrace.app import add_stage, create_app
from headrace.settings import StreamSettings
from headrace.step import Count, Outcome, Output, Record
from headrace.worker import run
from schemas.topics import EXPOSURES, SAMPLES

HOLD = 50
POISON = os.environ.get("RELAY_POISON", "none").encode()
SATED = os.environ.get("RELAY_SATED", "none").encode()


class Relay:
    """Sends each record on, numbered by how many came before it in the partition."""

    def __init__(self, stored: Iterable[tuple[bytes, bytes]]) -> None:
        self.relayed = sum(1 for _ in stored)
        self._sated_until_ms = 0
        self._paused = False

    def apply(self, topic: str, records: Sequence[Record], now_ms: int) -> Outcome:
        outcome = Outcome(needed_from={topic: max(0, records[-1].offset + 1 - HOLD)})
        assert not self._paused, "paused topics are not applied"
        for record in records:
            if record.value == POISON:
                raise ValueError(f"offset {record.offset} is too much")
            if record.value == SATED and not self._sated_until_ms:
                self._sated_until_ms, self._paused = now_ms + 3_000, True
            outcome.outputs.append(Output(SAMPLES, b"%d %s" % (self.relayed, record.value)))
            outcome.changes.append((b"r%012d" % record.offset, record.value))
            self.relayed += 1
        outcome.counts[Count("in", topic)] += len(records)
        return outcome

    def tick(self, now_ms: int, unread: Collection[str] = ()) -> Outcome:
        self._paused = self._paused and now_ms < self._sated_until_ms
        return Outcome()

    def paused(self) -> Collection[str]:
        return (EXPOSURES,) if self._paused else ()

    def gauges(self) -> Mapping[str, float]:
        return {"relayed": float(self.relayed), "paused": float(self._paused)}


def main(broker: str, state_dir: str, group: str, web_port: str) -> None:
    settings = StreamSettings(broker=broker, state_dir=Path(state_dir), group_prefix=group)
    app = create_app("relay", settings, int(web_port))
    add_stage(app, "relay", settings, lambda partition, stored: Relay(stored), [EXPOSURES])
    run(app, "INFO")


if __name__ == "__main__":
    main(*sys.argv[1:])

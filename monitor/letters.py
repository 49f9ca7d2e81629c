"""What the monitor keeps of dead letters: how many, by stage and reason."""

from collections import Counter
from collections.abc import Iterable

import msgspec

from monitor.seen import Changes, Seen
from monitor.settings import MonitorSettings
from schemas.dead_letter import DeadLetter

PREFIX = b"d"
_REFUSED = b"dr"
_SEEN = b"ds"

Refusal = tuple[str, str]
"""A stage and a reason."""


class LetterTally:
    """One partition's dead letters. Stored: one row a (stage, reason), one a letter with its id."""

    def __init__(self, settings: MonitorSettings, stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.refused: Counter[Refusal] = Counter()
        ids = []
        for key, row in stored:
            if key.startswith(_REFUSED):
                self.refused[msgspec.msgpack.decode(key[2:], type=Refusal)] = int.from_bytes(row, "big")
            else:
                ids.append((key, row))
        self.seen = Seen(_SEEN, settings.letter_horizon_s * 1000, settings.remembered_ids_max, ids)

    def count(self, offset: int, arrival_ms: int, letter: DeadLetter, changes: Changes) -> bool:
        """Count a letter; False where it was delivered before. It is known by what was refused, where and why, not by when."""
        identity = repr((letter.stage, letter.reason, letter.detail, letter.source_topic, letter.source_partition, letter.source_offset))
        if not self.seen.fresh(offset, [identity], arrival_ms, changes)[0]:
            return False
        refusal = (letter.stage, letter.reason)
        self.refused[refusal] += 1
        changes.append((_REFUSED + msgspec.msgpack.encode(refusal), self.refused[refusal].to_bytes(8, "big")))
        self.seen.forget(arrival_ms, changes)
        return True

"""The model store on the filesystem, and the only place that changes which version is current.

    {model_dir}/{policy}/candidates/{model_version}/   written by the trainer, in one rename
                         history.json                  every promotion, rollback and pin; **its replacement is the commit**
                         current.json                  the announcement of the history's last entry
                         verdicts/{model_version}.json what the gate, or a person, said of a candidate
                         .lock                         held while any of these change

Everything but the history follows from it, so that a process killed between two writes leaves nothing undecided: `recover` writes
what is missing. Files are replaced by a rename of a synced temporary one.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from headrace.settings import ConfigError
from schemas.codec import UNREADABLE
from schemas.policy import Candidate, Lineage, PolicyVersion
from serving.actor import ActorError, read_candidate
from serving.gate import Standing, version_number

Reason = Literal["promoted", "rolled_back", "pinned"]


class StoreError(ConfigError):
    """The model store cannot do what it was asked for; one line that says why."""


class Change(Struct, frozen=True, kw_only=True):
    """One entry of the history: from `announced_ms` on `model_version` is current (empty: the baseline).

    `rejected` is the version that a rollback left.
    """

    model_version: str
    reason: Reason
    announced_ms: int
    why: list[str] = []
    rejected: str = ""


class Judgement(Struct, frozen=True, kw_only=True):
    """A verdict file. A refused version's `arrivals_ms` go to the next promoted one: it is the first to serve what both learned."""

    model_version: str
    verdict: Literal["promoted", "refused"]
    reasons: list[str]
    judged_ms: int
    arrivals_ms: dict[str, int] = {}


_NO_LINEAGE = Lineage(offsets={}, seed=0, code_version="", transitions_learned=0)

Write = Callable[[Path, bytes], None]


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at once, and have it on disk when this returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror}; free space, or set policy.model_dir to a folder of your own") from error


class ModelStore:
    """The versions of one policy. Safe to use from several processes at once."""

    def __init__(self, model_dir: Path, policy: str, spec_hash: str, keep_history: int = 1000, write: Write = write_atomically) -> None:
        self.policy = policy
        self.folder = model_dir / policy
        self._spec_hash = spec_hash
        self._keep_history = keep_history
        self._write = write

    def open(self) -> None:
        """Make the folders. Raises StoreError where that is not allowed."""
        try:
            for name in ("candidates", "verdicts"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot use {self.folder}: {error.strerror}; set policy.model_dir to a folder of your own") from error

    def candidate_folder(self, model_version: str) -> Path:
        """Where the files of a version are."""
        return self.folder / "candidates" / model_version

    def candidates(self) -> list[str]:
        """Complete candidates, oldest first; what the trainer is still writing is not among them."""
        folders = (self.folder / "candidates").glob(f"{self.policy}-*/candidate.json")
        names = [path.parent.name for path in folders]
        return sorted((name for name in names if name.rpartition("-")[2].isdecimal()), key=version_number)

    def judgement(self, model_version: str) -> Judgement | None:
        """The verdict on a candidate; None before it is judged."""
        judgement: Judgement | None = self._read(self.folder / "verdicts" / f"{model_version}.json", Judgement)
        return judgement

    def judgements(self) -> list[Judgement]:
        """All verdicts, oldest version first."""
        paths = sorted((self.folder / "verdicts").glob(f"{self.policy}-*.json"), key=lambda path: version_number(path.stem))
        return [judgement for path in paths if (judgement := self._read(path, Judgement)) is not None]

    def history(self) -> list[Change]:
        """Every change of the current version, oldest first."""
        return self._read(self.folder / "history.json", list[Change]) or []

    def current(self) -> PolicyVersion | None:
        """The announcement of what is to be served; None before the first promotion."""
        version: PolicyVersion | None = self._read(self.folder / "current.json", PolicyVersion)
        return version

    def standing(self) -> Standing:
        """What the gate must know of the history."""
        served = [change.model_version for change in self.history()]
        return Standing(max(served, key=version_number, default=""), _rolled_back(self.history()))

    def pinned(self) -> bool:
        """Whether a person holds the current version."""
        history = self.history()
        return bool(history) and history[-1].reason == "pinned"

    def refuse(self, model_version: str, reasons: list[str], now_ms: int) -> None:
        """Write down why a candidate is not promoted."""
        arrivals_ms = self._arrivals_of(model_version)
        self._write_verdict(
            Judgement(model_version=model_version, verdict="refused", reasons=reasons, judged_ms=now_ms, arrivals_ms=arrivals_ms)
        )

    def promote(self, model_version: str, why: list[str], now_ms: int) -> PolicyVersion:
        """Make a candidate the current version. Also ends a pin, and clears a version that was rolled back."""
        self._require(model_version)
        with self._locked():
            return self._commit(model_version, "promoted", why, now_ms)

    def pin(self, model_version: str, why: list[str], now_ms: int) -> PolicyVersion:
        """Make a version (empty: the baseline) current and keep it so: the gate promotes nothing until `unpin`, `promote` or `rollback`."""
        self._require(model_version)
        with self._locked():
            return self._commit(model_version, "pinned", why, now_ms)

    def unpin(self, now_ms: int) -> PolicyVersion:
        """Let the gate promote again; the current version stays until then. Raises StoreError where nothing is pinned."""
        with self._locked():
            history = self.history()
            if not self.pinned():
                raise StoreError(f"policy {self.policy}: no version is pinned")
            return self._commit(history[-1].model_version, "promoted", ["unpinned"], now_ms)

    def rollback(self, why: list[str], now_ms: int) -> PolicyVersion:
        """Go back to the version that was current before, or to the baseline; the gate never promotes the one left again."""
        with self._locked():
            history = self.history()
            bad = history[-1].model_version if history else ""
            if not bad:
                raise StoreError(f"policy {self.policy} serves the baseline already: there is nothing to roll back to")
            return self._commit(previous_good(history, self._loadable), "rolled_back", why, now_ms, rejected=bad)

    def recover(self) -> PolicyVersion | None:
        """Write whatever follows from the history and is not there: after it, all files agree."""
        with self._locked():
            return self._publish(self.history())

    def prune(self, keep_newest: int, now_ms: int) -> list[str]:
        """Delete all but the newest candidates, the current version and the one that a rollback would go to. Returns the deleted."""
        with self._locked():
            history = self.history()
            current = history[-1].model_version if history else ""
            kept = {*self.candidates()[-keep_newest:], current, previous_good(history, self._loadable)}
            doomed = [name for name in self.candidates() if name not in kept]
            for name in doomed:
                if self.judgement(name) is None:
                    self.refuse(name, ["deleted unjudged: newer candidates came"], now_ms)
                shutil.rmtree(self.candidate_folder(name), ignore_errors=True)
            for judgement in self.judgements()[: -self._keep_history]:
                (self.folder / "verdicts" / f"{judgement.model_version}.json").unlink(missing_ok=True)
            return doomed

    def _commit(self, model_version: str, reason: Reason, why: list[str], now_ms: int, rejected: str = "") -> PolicyVersion:
        history = self.history()
        # serving ignores what is not newer than what it has: a clock that was set back must not stop a rollback
        announced_ms = max(now_ms, history[-1].announced_ms + 1) if history else now_ms
        change = Change(model_version=model_version, reason=reason, announced_ms=announced_ms, why=why, rejected=rejected)
        history = [*history, change][-self._keep_history :]
        self._write(self.folder / "history.json", msgspec.json.encode(history))
        version = self._publish(history)
        assert version is not None
        return version

    def _publish(self, history: list[Change]) -> PolicyVersion | None:
        if not history:
            return None
        last = history[-1]
        if last.model_version and last.reason == "promoted":
            self._settle(last.model_version, "promoted", last)
        if last.rejected:
            self._settle(last.rejected, "refused", last)
        current = self.current()
        if current is None or (current.model_version, current.announced_ms) != (last.model_version, last.announced_ms):
            current = self._announcement(last, history)
            self._write(self.folder / "current.json", msgspec.json.encode(current))
        return current

    def _settle(self, model_version: str, verdict: Literal["promoted", "refused"], change: Change) -> None:
        judgement = self.judgement(model_version)
        if judgement is None or judgement.verdict != verdict:
            reasons = change.why if verdict == "promoted" else [f"rolled back: {'; '.join(change.why) or 'no reason given'}"]
            self._write_verdict(Judgement(model_version=model_version, verdict=verdict, reasons=reasons, judged_ms=change.announced_ms))

    def _announcement(self, change: Change, history: list[Change]) -> PolicyVersion:
        common: dict[str, Any] = {
            "policy": self.policy,
            "spec_hash": self._spec_hash,
            "reason": change.reason,
            "announced_ms": change.announced_ms,
        }
        candidate = self._require(change.model_version)
        if candidate is None:
            return PolicyVersion(model_version="", uri="", metrics={}, lineage=_NO_LINEAGE, **common)
        earlier = max((version_number(entry.model_version) for entry in history[:-1]), default=-1)
        number = version_number(change.model_version)
        arrivals_ms = dict(candidate.arrivals_ms) if number > earlier else {}
        for judgement in self.judgements():
            if judgement.verdict == "refused" and earlier < version_number(judgement.model_version) < number:
                for bin_ms, count in judgement.arrivals_ms.items():
                    arrivals_ms[bin_ms] = arrivals_ms.get(bin_ms, 0) + count
        return PolicyVersion(
            model_version=change.model_version,
            uri=self.candidate_folder(change.model_version).absolute().as_uri(),
            metrics=candidate.metrics,
            lineage=candidate.lineage,
            arrivals_ms=arrivals_ms,
            **common,
        )

    def _require(self, model_version: str) -> Candidate | None:
        if not model_version:
            return None
        try:
            return read_candidate(self.candidate_folder(model_version))
        except ActorError as error:
            known = ", ".join(self.candidates()[-5:]) or "none"
            raise StoreError(f"version {model_version}: {error}; the newest that can be had: {known}") from error

    def _loadable(self, model_version: str) -> bool:
        return (self.candidate_folder(model_version) / "candidate.json").exists()

    def _arrivals_of(self, model_version: str) -> dict[str, int]:
        try:
            return read_candidate(self.candidate_folder(model_version)).arrivals_ms
        except ActorError:
            return {}

    def _write_verdict(self, judgement: Judgement) -> None:
        self._write(self.folder / "verdicts" / f"{judgement.model_version}.json", msgspec.json.encode(judgement))

    def _read(self, path: Path, kind: Any) -> Any:
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except (OSError, *UNREADABLE) as error:
            raise StoreError(f"{path}: {error}; restore it, or delete it and promote a version again") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.open()
        try:
            lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise StoreError(f"cannot lock {self.folder}: {error.strerror}; set policy.model_dir to a folder of your own") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def previous_good(history: list[Change], loadable: Callable[[str], bool]) -> str:
    """What a rollback goes to: the newest version served before, not rolled back itself and still there; else the baseline."""
    if not history:
        return ""
    passed_over = {history[-1].model_version, *_rolled_back(history)}
    earlier = (change.model_version for change in reversed(history[:-1]))
    return next((name for name in earlier if name and name not in passed_over and loadable(name)), "")


def _rolled_back(history: list[Change]) -> frozenset[str]:
    """Versions that a rollback left and that nobody promoted or pinned since."""
    rejected: set[str] = set()
    for change in history:
        rejected.discard(change.model_version)
        if change.rejected:
            rejected.add(change.rejected)
    return frozenset(rejected)

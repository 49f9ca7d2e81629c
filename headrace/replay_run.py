"""One replay: the chain of steps, the learner behind it, the files, and the account of every row."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experience.sessions import PartitionSessions
from experience.settings import ExperienceSettings
from headrace import __version__, replay_folder
from headrace.logs.recorded_log import RecordedLog
from headrace.memory_rows import InMemory, MemoryRows
from headrace.policy_settings import PolicySettings
from headrace.replay_report import FeatureCoverage, RowLedger, Tally
from headrace.runner import CHUNK_EVENTS, Emitted, Event, InProcess, chunks
from headrace.settings import ConfigError
from headrace.step import Count
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings
from schemas.codec import decode_batch
from schemas.dead_letter import DeadLetter
from schemas.exposure import BASELINE
from schemas.policy import Lineage
from schemas.topics import EXPOSURES, FEEDBACK, SAMPLES, TRANSITIONS
from trainer.export import CANDIDATE_FILE
from trainer.settings import TrainerSettings
from trainer.worker import Worker

WORK = "work"
"""Folder inside the policy's where the trainer keeps its store; what it made is moved out and the folder removed."""


class Judged(msgspec.Struct):
    """What the report takes from `candidate.json`."""

    metrics: dict[str, float]
    lineage: Lineage


_decode_judged = msgspec.json.Decoder(Judged).decode


@dataclass(frozen=True)
class ReplaySettings:
    """The effective settings of the steps."""

    joiner: JoinerSettings
    experience: ExperienceSettings
    trainer: TrainerSettings
    policy: PolicySettings

    def shown(self) -> dict[str, Any]:
        """What the results depend on, for the report: all of it but where the model store lies."""
        sections: dict[str, Any] = {name: section.model_dump(mode="json") for name, section in vars(self).items()}
        del sections["policy"]["model_dir"]
        return sections


class ReplayRun:
    """One replay under way. The clock stands at the log's newest event."""

    def __init__(self, log: RecordedLog, settings: ReplaySettings, folder: Path, seed: int) -> None:
        self._log, self._settings, self._folder, self._seed, self._now_ms = log, settings, folder, seed, log.newest_ms
        self._ledger = RowLedger(log)
        self._tally = Tally()
        self._coverage = FeatureCoverage(settings.policy.features)
        join = InMemory(partial(PartitionJoin, settings.joiner, 0))
        self._chain = InProcess(join, PartitionSessions(settings.experience, 0, MemoryRows()), self._now_ms)
        self._worker = Worker(settings.trainer, settings.policy, settings.policy.model_dir, __version__, seed)
        self._trainer_counts: Counter[Count] = Counter()
        # By topic, the row of the log at each offset.
        self._rows: dict[str, list[int]] = {EXPOSURES: [], FEEDBACK: []}
        # Pages that are samples but no transitions yet: offset of the samples message by offset of the exposure.
        self._open_pages: dict[int, int] = {}
        self._samples_letters: dict[int, DeadLetter] = {}

    def run(self, format_name: str, console: Console) -> dict[str, Any]:
        """All of the log, to the last file. Gives the report."""
        samples = replay_folder.BatchParts(self._folder / replay_folder.SAMPLES)
        transitions = replay_folder.BatchParts(self._folder / replay_folder.TRANSITIONS)
        for emitted in self._emitted(console):
            self._take(emitted, samples, transitions)
        samples.close()
        transitions.close()
        self._refuse_lost_pages()
        if not self._ledger.rows_used:
            raise ConfigError(self._ledger.all_rejected())
        candidate = self._write_policy()
        report = self._report(format_name, candidate)
        replay_folder.write_lines(self._folder / replay_folder.REJECTED, self._ledger.lines())
        replay_folder.write_json(self._folder / replay_folder.REPORT, report)
        return report

    def _emitted(self, console: Console) -> Iterator[Emitted]:
        """What the steps give, chunk by chunk, while the bar moves; at last what the end of the log closes."""
        columns = (TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TextColumn("events"), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("replay", total=self._log.event_count)
            for chunk in chunks(self._events(), CHUNK_EVENTS):
                yield self._chain.feed(chunk)
                progress.advance(task, len(chunk))
            yield self._chain.close()

    def _events(self) -> Iterator[Event]:
        for ts_ms, topic, row, value in self._log.events():
            self._rows[topic].append(row)
            yield Event(ts_ms, topic, value)

    def _take(self, emitted: Emitted, samples: replay_folder.BatchParts, transitions: replay_folder.BatchParts) -> None:
        """Keep what the chain gave, learn from its transitions, and note every refusal."""
        for message in emitted.samples:
            batch, _ = decode_batch(message.value, SAMPLES)
            samples.write(batch)
            self._tally.on_samples(batch)
            self._open_pages.update(dict.fromkeys(batch.column("source_offset").to_pylist(), message.offset))
        self._refuse(emitted.dead_letters)
        for message in emitted.transitions:
            batch, _ = decode_batch(message.value, TRANSITIONS)
            transitions.write(batch)
            if batch["instance"][0].as_py() == self._settings.experience.instances[0]:  # a page counts once
                self._tally.on_transitions(batch)
            for offset in batch.column("source_offset").to_pylist():
                self._open_pages.pop(offset, None)
            learned = self._worker.learn(0, message.offset + 1, batch, self._now_ms)
            self._trainer_counts.update(learned.counts)
            self._refuse(learned.dead_letters)
            self._coverage.on_transitions(batch)

    def _refuse(self, letters: Iterable[DeadLetter]) -> None:
        """Map dead letters back to rows of the log."""
        for letter in letters:
            if letter.source_topic == SAMPLES:
                self._samples_letters.setdefault(letter.source_offset, letter)
            else:
                row = self._rows[letter.source_topic][letter.source_offset]
                self._ledger.refuse(row, letter.reason, letter.detail)

    def _refuse_lost_pages(self) -> None:
        """Pages of a samples message with a dead letter that never became transitions are the ones it was about."""
        for offset, message_offset in self._open_pages.items():
            letter = self._samples_letters[message_offset]
            self._ledger.refuse(self._rows[EXPOSURES][offset], letter.reason, letter.detail)

    def _write_policy(self) -> Judged | None:
        """The policy's files: the actor and its candidate.json, unless too little was learned, and the checkpoint."""
        policy = self._folder / replay_folder.POLICY
        candidate_folder = self._worker.write_candidate(self._now_ms)
        checkpoint_folder = self._worker.checkpoint(self._now_ms)
        checkpoint_folder.rename(policy / "checkpoint")
        if candidate_folder is not None:
            for file in candidate_folder.iterdir():
                file.rename(policy / file.name)
        replay_folder.remove_folder(policy / WORK)
        return _decode_judged((policy / CANDIDATE_FILE).read_bytes()) if candidate_folder else None

    def _report(self, format_name: str, candidate: Judged | None) -> dict[str, Any]:
        metrics = candidate.metrics if candidate else {}
        figures = self._tally.figures()
        return {
            "format": format_name,
            "files": [{"name": file.name, "rows": file.rows} for file in self._log.files],
            "rows_in": self._log.rows_in,
            "rows_used": self._ledger.rows_used,
            "rejected": self._ledger.rejected(),
            "stages": self._stages(),
            "ignored": self._ignored(),
            **figures,
            "v_mean": metrics.get("v_mean"),
            "a_mean": metrics.get("policy_advantage_mean"),
            "policy": {
                "trained": candidate is not None,
                "policy": self._settings.policy.policy,
                "spec_hash": self._settings.policy.spec_hash,
                "seed": self._seed,
                "transitions_learned": candidate.lineage.transitions_learned if candidate else 0,
                "metrics": dict(sorted(metrics.items())),
            },
            "feature_coverage": self._coverage.shares(),
            "notes": self._notes(candidate),
            "settings": self._settings.shown(),
        }

    def _stages(self) -> dict[str, dict[str, int]]:
        counts = {**self._chain.counts, "trainer": self._trainer_counts}
        stages = {
            stage: {side: sum(n for count, n in of.items() if count.name == side) for side in ("in", "out")} for stage, of in counts.items()
        }
        refused = sum(n for count, n in self._trainer_counts.items() if count.name in ("rejected", "ignored"))
        stages["trainer"]["out"] = stages["trainer"]["in"] - refused
        return stages

    def _ignored(self) -> dict[str, int]:
        ignored: Counter[str] = Counter()
        for counts in (*self._chain.counts.values(), self._trainer_counts):
            for count, n in counts.items():
                if count.name == "ignored":
                    ignored[count.label] += n
        return dict(sorted(ignored.items()))

    def _notes(self, candidate: Judged | None) -> list[str]:
        """What a reader of the figures must know."""
        notes = []
        if candidate is None:
            least = self._settings.trainer.min_transitions
            notes.append(
                f"no policy: {self._tally.transitions} transitions are too few (trainer.min_transitions = {least}, some are held out)"
            )
        if set(self._tally.policies) == {BASELINE}:
            notes.append(
                "all traffic is baseline, no action was ever varied: V and the encoder are learned, A is not; a_mean says nothing yet and "
                "the actor stays at the baseline action"
            )
        absent = [name for name, share in self._coverage.shares().items() if not share]
        if absent:
            notes.append(f"no state has the features {', '.join(absent)}: name the log's own in [policy.features]")
        return notes

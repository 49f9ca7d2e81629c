"""The trainer's worker: one learner over all partitions of `transitions`, with its replay, checkpoints and candidates. No Faust here.

Whoever drives it reads each partition from `offsets`, calls `learn` for every batch, and `checkpoint` and `write_candidate` when
they are due. Only offsets of a written checkpoint may be committed: what came after it is learned again after a crash.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from headrace.policy_settings import PolicySettings
from headrace.step import Count
from schemas.dead_letter import DeadLetter
from schemas.drift import DenseReference, dense_reference, stability_index
from schemas.features import differences
from schemas.policy import ARRIVAL_BIN_MS, Candidate, Lineage, Normaliser
from schemas.topics import TRANSITIONS
from trainer.checkpoint import Checkpoint, CheckpointError, checkpoint_folder, read_newest, write_checkpoint
from trainer.ddpg import DDPG, DDPGState
from trainer.embeddings import Embeddings
from trainer.export import actor_onnx, write_candidate
from trainer.gate_metrics import gate_metrics
from trainer.preprocess import STAGE, Preprocess
from trainer.replay import ReplayBuffer, SeenIds, Transitions
from trainer.settings import TrainerSettings

CATCH_UP = 4.0
"""How many times the gradient steps that its rows are worth a message may cause: so fast are steps made good that were owed while there
were too few rows to learn from. All at once they would hold up the newest rows for seconds."""
CATCH_UP_STEPS = 4
"""What a message of a few rows may cause all the same."""
CHECKPOINT_FORMAT = 5
"""Of what a checkpoint holds; 1 held torch's optimisers, 2 one weight for all features of a normaliser and no features that pass as they
are, 3 still had one of these two faults, the one or the other, 4 no discount of each row."""
REFERENCE_ROWS, NEWEST_ROWS = 4096, 1024
"""Of the replay buffer: what a version's dense features are described by, and what is compared with it. Without drift their PSI is 0.01."""
SCRATCH = "work"
"""Folder beside the checkpoints: rows of dynamic tables that are not in memory."""
SHAPING_SETTINGS = ("hidden", "head_hidden", "channels", "kernel", "heads")
"""Settings that shape the network: a checkpoint is of exactly these."""


@dataclass
class Learned:
    """What became of a batch: `counts` and `dead_letters` as in a PartitionStep, `metrics` of its last gradient step (if any)."""

    dead_letters: list[DeadLetter] = field(default_factory=list)
    counts: Counter[Count] = field(default_factory=Counter)
    metrics: dict[str, float] = field(default_factory=dict)


class _Progress(msgspec.Struct):
    """The small part of a worker's memory; it goes into checkpoints as JSON."""

    offsets: dict[int, int] = {}
    topic_id: str = ""
    """Which log of the topic they count."""
    transitions: int = 0
    learned: int = 0
    amended: int = 0
    step_debt: float = 0.0
    candidates: int = 0
    learned_at_candidate: int = 0
    event_s: int = 0
    """Newest event time of a transition: by it ids are old."""
    versions: list[str] = []
    learned_from: dict[str, int] = {}
    arrivals_ms: dict[int, int] = {}
    counts: list[tuple[str, str, int]] = []


class Worker:
    """Learns from transition batches. Deterministic: the same seed, batches and times give the same bits, across checkpoints too."""

    def __init__(self, settings: TrainerSettings, policy: PolicySettings, state_dir: Path, code_version: str, seed: int) -> None:
        torch.set_num_threads(settings.torch_threads)
        self.settings, self.policy, self.code_version, self.seed = settings, policy, code_version, seed
        self._folder = state_dir / "trainer" / policy.policy
        newest = read_newest(self._folder)
        if newest is not None:
            self._require_shape(newest[1])
        copy = checkpoint_folder(self._folder, newest[0]) if newest else None
        self.embeddings = Embeddings(policy.features, settings, self._folder / SCRATCH, copy)
        self.learner = DDPG(policy.action, policy.features, settings, seed, self.embeddings.tables)
        self.replay = ReplayBuffer(policy.features, policy.action.size, settings.replay_capacity)
        self.held_out = ReplayBuffer(policy.features, policy.action.size, settings.holdout_capacity)
        self.metrics: dict[str, float] = {}
        self._drift: dict[str, float] = {}
        self._preprocess = Preprocess(policy.action, policy.features, policy.spec_hash)
        self._seen = SeenIds(settings.dedup_horizon)
        self._rng = np.random.default_rng(seed)
        self._progress = _Progress()
        self._candidates = policy.model_dir / policy.policy / "candidates"
        self._checkpoint_number = 0
        self._checkpoint_ms: int | None = None
        self._candidate_ms: int | None = None
        self._is_dirty = False
        self._counts: Counter[Count] = Counter()
        if newest is not None:
            self._load(*newest)

    @property
    def offsets(self) -> dict[int, int]:
        """Next offset of each partition: everything below it was learned from or refused."""
        return dict(self._progress.offsets)

    def belongs_to(self, topic_id: str) -> None:
        """Remember which log the offsets count. Raises CheckpointError where they count an earlier one."""
        progress = self._progress
        if progress.offsets and progress.topic_id not in ("", topic_id):
            raise CheckpointError(
                f"the checkpoints in {self._folder} belong to an earlier topic {TRANSITIONS} (it was created anew, or its broker lost it): "
                f"move the folder away to begin with the topic as it is"
            )
        progress.topic_id = topic_id

    @property
    def counts(self) -> Counter[Count]:
        """What became of everything below `offsets`; it goes on after a restart. Never changed, only replaced: other threads read it."""
        return self._counts

    def refuse(self, partition: int, offset: int, size_bytes: int, why: str, now_ms: int) -> DeadLetter:
        """A message that is no batch of transitions: count it and move on."""
        self._start_clocks(now_ms)
        self._end_message(partition, offset + 1, Counter({Count("in", TRANSITIONS): 1, Count("rejected", "malformed"): 1}))
        return DeadLetter(
            stage=STAGE,
            reason="malformed",
            detail=why[:200],
            source_topic=TRANSITIONS,
            source_partition=partition,
            source_offset=offset,
            size_bytes=size_bytes,
            ts_ms=now_ms,
        )

    def gauges(self) -> dict[str, float]:
        """What the worker looks like now, for /metrics."""
        held = {"replay_rows": self.replay.size, "gradient_steps": self.learner.steps, "skipped_steps": self.learner.skipped_steps}
        return {**held, **self._taken(), **self.metrics, **self._drift, **self.embeddings.gauges()}

    def _taken(self) -> dict[str, float]:
        progress = self._progress
        return {"transitions": progress.transitions, "transitions_learned": progress.learned, "transitions_amended": progress.amended}

    def learn(self, partition: int, next_offset: int, batch: pa.RecordBatch, now_ms: int) -> Learned:
        """Take one message: refuse, recognise, remember, and make the gradient steps that its transitions are worth.

        A message below `offsets` was taken before and has no effect.
        """
        self._start_clocks(now_ms)
        learned = Learned()
        if next_offset <= self._progress.offsets.get(partition, 0):
            return learned
        learned.counts[Count("in", TRANSITIONS)] = batch.num_rows
        is_mine = pc.equal(batch.column("instance"), self.settings.instance)
        if others := batch.num_rows - (pc.sum(is_mine).as_py() or 0):
            learned.counts[Count("ignored", "other_instance")] = others
            batch = batch.filter(is_mine)
        opened = self._preprocess(batch, self._version_number, now_ms)
        learned.dead_letters = opened.dead_letters
        learned.counts.update(Count("rejected", letter.reason) for letter in opened.dead_letters)
        is_first = self._seen.first_seen(opened.rows.id_hash)
        is_amendment = ~is_first & (opened.revision > 0)
        learned.counts[Count("ignored", "duplicate")] += int((~is_first & ~is_amendment).sum())
        if batch.num_rows:
            self._progress.event_s = max(self._progress.event_s, pc.max(batch.column("ts_ms")).as_py() // 1000)
        worth_steps = self._remember(opened.rows.take(is_first))
        if is_amendment.any():
            learned.counts[Count("ignored", "amendment_too_late")] += self._amend(opened.rows.take(is_amendment))
        learned.metrics = self._gradient_steps(max(CATCH_UP_STEPS, math.ceil(CATCH_UP * worth_steps)))
        learned.counts = +learned.counts
        self._end_message(partition, next_offset, learned.counts)
        return learned

    def checkpoint_due(self, now_ms: int) -> bool:
        """Whether something was taken in since the last checkpoint, and the interval is over."""
        return self._is_dirty and _is_over(self._checkpoint_ms, self.settings.checkpoint_interval_s, now_ms)

    def checkpoint(self, now_ms: int) -> Path:
        """Write everything remembered. Once it returns, `offsets` may be committed. Raises CheckpointError."""
        self.embeddings.forget_old(self._progress.event_s)
        path = write_checkpoint(self._folder, self._checkpoint_number + 1, self._checkpoint(), self.embeddings.copy_into)
        self._checkpoint_number += 1
        self._checkpoint_ms = now_ms
        self._is_dirty = False
        return path

    def candidate_due(self, now_ms: int) -> bool:
        """Whether there is something new to offer, and the interval is over."""
        return self._has_news() and _is_over(self._candidate_ms, self.settings.candidate_interval_s, now_ms)

    def write_candidate(self, now_ms: int) -> Path | None:
        """Write the policy as it is as a candidate; None where nothing was learned since the last one. Raises CheckpointError."""
        if not self._has_news() or self.held_out.size < 2:
            return None
        progress, number = self._progress, self._next_version()
        held_out = self.held_out.rows(np.arange(self.held_out.size))
        measured = gate_metrics(self.learner, held_out, np.random.default_rng([self.seed, number]))
        reference = self._dense_reference()
        golden = held_out.take(np.array([len(held_out) - 1])).state
        candidate = Candidate(
            policy=self.policy.policy,
            model_version=f"{self.policy.policy}-{number:06d}",
            created_ms=now_ms,
            spec_hash=self.policy.spec_hash,
            features=self.policy.features.model_dump(mode="json"),
            normaliser=_normaliser(self.learner),
            metrics=_finite({**self.metrics, **measured, **self._drift}),
            lineage=Lineage(
                offsets={str(partition): offset for partition, offset in sorted(progress.offsets.items())},
                seed=self.seed,
                code_version=self.code_version,
                transitions_learned=progress.learned,
                learned_from=dict(sorted(progress.learned_from.items())),
            ),
            arrivals_ms={str(start): count for start, count in sorted(progress.arrivals_ms.items())},
            golden_inputs={name: values.tolist() for name, values in self.learner.inputs(golden).items()},
            golden_action=self.learner.act(golden)[0].tolist(),
            dense_reference=reference,
        )
        path = write_candidate(self._candidates, candidate, actor_onnx(self.learner))
        progress.candidates, progress.learned_at_candidate, progress.arrivals_ms = number, progress.learned, {}
        self._candidate_ms = now_ms
        self._is_dirty = True
        return path

    def _start_clocks(self, now_ms: int) -> None:
        self._checkpoint_ms = now_ms if self._checkpoint_ms is None else self._checkpoint_ms
        self._candidate_ms = now_ms if self._candidate_ms is None else self._candidate_ms

    def _end_message(self, partition: int, next_offset: int, counts: Counter[Count]) -> None:
        self._progress.offsets[partition] = next_offset
        self._counts = self._counts + counts
        self._is_dirty = True

    def _version_number(self, model_version: str) -> int:
        versions = self._progress.versions
        if model_version not in versions:
            versions.append(model_version)
        return versions.index(model_version)

    def _remember(self, rows: Transitions) -> float:
        """Take in new rows. Gives how many gradient steps they are worth."""
        # the hash's low half decides who is held out, its high bits which heads use a row: the two are independent
        is_held_out = (rows.id_hash & np.uint64(0xFFFFFFFF)) < np.uint64(int(self.settings.holdout_share * 2**32))
        self.learner.observe(rows, self._progress.event_s)
        self.held_out.add(rows.take(is_held_out))
        kept = rows.take(~is_held_out)
        self.replay.add(kept)
        self._progress.transitions += len(rows)
        worth_steps = len(kept) * self.settings.steps_per_transition
        self._progress.step_debt += worth_steps
        return worth_steps

    def _amend(self, rows: Transitions) -> int:
        """Correct rows that came before. Gives how many are in no buffer any more."""
        is_there = self.replay.amend(rows) | self.held_out.amend(rows)
        self._progress.amended += int(is_there.sum())
        return int((~is_there).sum())

    def _gradient_steps(self, most: int) -> dict[str, float]:
        """Make the steps that are owed, at most `most`. As that is more than new rows add, the debt only falls once learning began."""
        progress, metrics = self._progress, {}
        if progress.transitions < self.settings.min_transitions or not self.replay.size:
            return {}
        for _ in range(min(most, int(progress.step_debt))):
            progress.step_debt -= 1.0
            skipped = self.learner.skipped_steps
            batch, fresh = self.replay.sample(self.settings.batch_size, self._rng)
            metrics = self.learner.learn(batch)
            self.replay.mark_learned(fresh)
            if self.learner.skipped_steps == skipped:
                self._count_learned(batch, fresh)
        self.metrics = metrics or self.metrics
        return metrics

    def _count_learned(self, batch: Transitions, fresh: int) -> None:
        progress = self._progress
        progress.learned += fresh
        arrivals, counts = batch.arrival_ms[:fresh], batch.feedback_count[:fresh]
        for version in batch.version[:fresh].tolist():
            name = progress.versions[version]
            progress.learned_from[name] = progress.learned_from.get(name, 0) + 1
        for arrival_ms, count in zip(arrivals[counts > 0].tolist(), counts[counts > 0].tolist(), strict=True):
            start = arrival_ms // ARRIVAL_BIN_MS * ARRIVAL_BIN_MS
            progress.arrivals_ms[start] = progress.arrivals_ms.get(start, 0) + count

    def _dense_reference(self) -> DenseReference:
        """What the normalised features in the replay buffer look like; notes how far the newest of them are from it."""
        size = self.replay.size
        spread = np.linspace(0, size - 1, min(size, REFERENCE_ROWS)).astype(np.int64)
        reference = dense_reference(self.replay.rows(spread).state.dense)
        if size >= REFERENCE_ROWS and self.policy.features.normalised:
            newest = self.replay.rows(np.arange(size - NEWEST_ROWS, size)).state.dense
            self._drift = {"feature_psi_max": float(stability_index(reference, newest).max())}
        return reference

    def _has_news(self) -> bool:
        progress = self._progress
        return progress.transitions >= self.settings.min_transitions and progress.learned > progress.learned_at_candidate

    def _next_version(self) -> int:
        """Above every number in the store: after a crash an earlier life's candidate may be newer than the checkpoint."""
        prefix = f"{self.policy.policy}-"
        taken = [path.name.removeprefix(prefix) for path in self._candidates.glob(f"{prefix}*")]
        return 1 + max([self._progress.candidates, *(int(number) for number in taken if number.isdecimal())])

    def _shape(self) -> dict[str, Any]:
        settings = {name: getattr(self.settings, name) for name in SHAPING_SETTINGS}
        return {
            "format": CHECKPOINT_FORMAT,
            "spec_hash": self.policy.spec_hash,
            "seed": self.seed,
            **settings,
            "hidden": list(self.settings.hidden),
        }

    def _checkpoint(self) -> Checkpoint:
        columns = {f"replay.{name}": column for name, column in self.replay.state_dict().items()}
        columns |= {f"held_out.{name}": column for name, column in self.held_out.state_dict().items()}
        self._progress.counts = [(count.name, count.label, number) for count, number in sorted(self._counts.items())]
        progress = {
            "progress": msgspec.to_builtins(self._progress, str_keys=True),
            "rng": self._rng.bit_generator.state,
            "shape": self._shape(),
            "features": self.policy.features.model_dump(mode="json"),
        }
        return Checkpoint(progress, dict(self.learner.state_dict()), {**columns, "seen": self._seen.state_dict()})

    def _require_shape(self, checkpoint: Checkpoint) -> None:
        made, now = checkpoint.progress["shape"], self._shape()
        changed = sorted(name for name in now if made.get(name) != now[name])
        if changed:
            was = ", ".join(f"{name} {made.get(name)!r} (now {now[name]!r})" for name in changed)
            if "spec_hash" in changed and "features" in checkpoint.progress:
                was += f", features: {differences(checkpoint.progress['features'], self.policy.features)}"
            raise CheckpointError(f"checkpoints in {self._folder} were made with {was}; set it back, or move the folder away to start anew")

    def _load(self, number: int, checkpoint: Checkpoint) -> None:
        self._checkpoint_number = number
        self._progress = msgspec.convert(checkpoint.progress["progress"], _Progress, str_keys=True)
        self._counts = Counter({Count(name, label): number for name, label, number in self._progress.counts})
        self._rng.bit_generator.state = checkpoint.progress["rng"]
        self.learner.load_state_dict(cast(DDPGState, checkpoint.learner))
        self.replay.load_state_dict(_under("replay.", checkpoint.columns))
        self.held_out.load_state_dict(_under("held_out.", checkpoint.columns))
        self._seen.load_state_dict(checkpoint.columns["seen"])


def _under(prefix: str, columns: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {name.removeprefix(prefix): column for name, column in columns.items() if name.startswith(prefix)}


def _normaliser(learner: DDPG) -> Normaliser:
    constants = learner.features.constants()
    return Normaliser(mean=constants.mean_N.tolist(), std=constants.std_N.tolist(), clip=constants.clip)


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    """JSON has no NaN: metrics that are not finite are left out, and `not_finite` counts them."""
    finite = {name: value for name, value in metrics.items() if np.isfinite(value)}
    return {**finite, "not_finite": float(len(metrics) - len(finite))}


def _is_over(since_ms: int | None, interval_s: float, now_ms: int) -> bool:
    return since_ms is not None and now_ms - since_ms >= interval_s * 1000

"""Dynamic embeddings against a dict that does the same one id at a time, through admission, age, capacity, cold rows and crashes."""

import copy
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trainer.embedding_store import EmbeddingStore
from trainer.embedding_table import SLACK, EmbeddingTable, TableLimits

DIM, RATE = 3, 0.5
LIMITS = TableLimits(admission_count=2, max_age_s=50, capacity_ids=16, hot_rows=4)
LAST = 24
"""Of the ids of the model-based test: more than are known at once, of which more have rows than are hot."""
IDS = st.lists(st.integers(2, LAST), min_size=1, max_size=LIMITS.hot_rows)


def made(folder: Path, copied: Path | None = None, limits: TableLimits = LIMITS, dim: int = DIM) -> tuple[EmbeddingTable, EmbeddingStore]:
    store = EmbeddingStore(folder / "store", copied)
    table = EmbeddingTable(dim, limits, RATE, store)
    for known in store.scan():
        table.know(*known)
    return table, store


def keys(*ids: int) -> np.ndarray:
    return np.array(ids, np.uint64)


def admitted(folder: Path, *ids: int, limits: TableLimits = LIMITS) -> tuple[EmbeddingTable, EmbeddingStore]:
    table, store = made(folder, limits=limits)
    for key in ids:
        for _ in range(2):
            table.observe(keys(key), 100)
    return table, store


def step(table: EmbeddingTable, gradients: dict[int, float]) -> None:
    """One step with the same gradient in all columns of an id's row."""
    gathered = table.gather(keys(*gradients))
    gradient = np.zeros_like(gathered.weights_UD)
    gradient[gathered.inverse_B] = np.array(list(gradients.values()), np.float32)[:, None]
    table.scatter(gathered, gradient)


@dataclass
class Model:
    """What the table's docstrings say, id by id."""

    now_s: int = 1000
    seen: dict[int, int] = field(default_factory=dict)
    times: dict[int, int] = field(default_factory=dict)
    rows: dict[int, np.ndarray] = field(default_factory=dict)

    def observe(self, ids: list[int]) -> None:
        new = set(ids) - self.seen.keys()
        excess = len(self.seen) + len(new) - LIMITS.capacity_ids
        if excess > 0:
            others = sorted(self.seen.keys() - set(ids), key=lambda key: (self.seen[key], key))
            self.forget(others[: excess + LIMITS.capacity_ids // SLACK])
        for key in ids:
            self.seen[key] = self.now_s
            self.times[key] = self.times.get(key, 0) + 1
            if self.times[key] >= LIMITS.admission_count and key not in self.rows:
                self.rows[key] = np.zeros(DIM + 1, np.float32)

    def learn(self, ids: list[int], gradient: np.ndarray) -> None:
        for key in set(ids) & self.rows.keys():
            row, g = self.rows[key], gradient[key]
            row[-1] += np.square(g).mean(dtype=np.float32)
            row[:-1] -= np.float32(RATE) * g / (np.sqrt(row[-1]) + np.float32(1e-8))

    def forget(self, ids: list[int]) -> None:
        for key in ids:
            for column in (self.seen, self.times, self.rows):
                column.pop(key, None)

    def forget_old(self) -> None:
        self.forget([key for key, seen in self.seen.items() if seen < self.now_s - LIMITS.max_age_s])


class Embeddings(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.table, self.store = made(self.folder)
        self.model = Model()
        self.follower: dict[int, np.ndarray] = {}
        self.since: list[tuple[Any, ...]] = []
        self.checkpointed: Path | None = None
        self.then = copy.deepcopy(self.model)
        self.number = 0

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def do(self, name: str, *arguments: Any) -> None:
        """What comes from Kafka: it comes again after a crash."""
        self.since.append((name, *arguments))
        getattr(self, f"do_{name}")(*arguments)

    def do_observe(self, ids: list[int], pause_s: int) -> None:
        self.model.now_s += pause_s
        self.model.observe(ids)
        self.table.observe(keys(*ids), self.model.now_s)

    def do_learn(self, ids: list[int], seed: int) -> None:
        gradient = np.random.default_rng(seed).normal(size=(LAST + 1, DIM)).astype(np.float32)
        gathered = self.table.gather(keys(0, *ids))
        expected = [self.model.rows.get(key, np.zeros(DIM + 1))[:-1] for key in [0, *ids]]
        np.testing.assert_allclose(gathered.weights_UD[gathered.inverse_B], expected, rtol=1e-5, atol=1e-6)
        self.model.learn(ids, gradient)
        self.table.scatter(gathered, gradient[np.unique([0, *ids])])

    def do_forget_old(self) -> None:
        self.model.forget_old()
        self.table.forget_old(self.model.now_s)

    @rule(ids=IDS, pause_s=st.sampled_from([0, 0, 1, 30]), times=st.integers(1, 2))
    def observe(self, ids: list[int], pause_s: int, times: int) -> None:
        self.do("observe", times * ids, pause_s)

    @rule(ids=st.lists(st.integers(2, LAST), min_size=1, max_size=LIMITS.hot_rows - 1), seed=st.integers(0, 1 << 30))
    def learn(self, ids: list[int], seed: int) -> None:
        self.do("learn", ids, seed)

    @rule()
    def forget_old(self) -> None:
        self.do("forget_old")

    @rule()
    def send(self) -> None:
        gone, sent, weights = self.table.unsent()
        for key in gone.tolist():
            self.follower.pop(key, None)
        self.follower |= dict(zip(sent.tolist(), weights, strict=True))
        for key in range(2, LAST + 1):
            np.testing.assert_array_equal(self.follower.get(key, np.zeros(DIM, np.float32)), self.table.weights(keys(key))[0])

    @rule()
    def checkpoint(self) -> None:
        self.send()
        self.number += 1
        self.table.flush()
        self.checkpointed = self.folder / f"copy-{self.number}"
        self.store.snapshot(self.checkpointed)
        self.then, self.since = copy.deepcopy(self.model), []

    @precondition(lambda self: self.checkpointed is not None)
    @rule()
    def crash(self) -> None:
        """All since the checkpoint is lost, comes again, and gives the same."""
        self.store.close()
        self.table, self.store = made(self.folder, self.checkpointed)
        self.model, again, self.since = copy.deepcopy(self.then), self.since, []
        self.is_what_the_model_is()
        for name, *arguments in again:
            self.do(name, *arguments)
        self.send()

    @invariant()
    def is_what_the_model_is(self) -> None:
        ids = keys(*range(2, LAST + 1))
        slots = self.table.index.find(ids)
        known = ids[slots >= 0].tolist()
        assert known == sorted(self.model.seen)
        assert self.table.index.seen[slots[slots >= 0]].tolist() == [self.model.seen[key] for key in known]
        expected = np.array([self.model.rows.get(key, np.zeros(DIM + 1))[:-1] for key in ids.tolist()])
        np.testing.assert_allclose(self.table.weights(ids), expected, rtol=1e-5, atol=1e-6)
        gauges = self.table.gauges()
        assert (gauges["ids"], gauges["waiting_ids"]) == (len(known), len(known) - len(self.model.rows))


TestEmbeddings = Embeddings.TestCase
TestEmbeddings.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def test_an_id_gets_its_row_when_it_has_come_often_enough_and_begins_at_the_default(tmp_path: Path) -> None:
    table, _ = made(tmp_path)
    table.observe(keys(7, 9), 100)
    step(table, {7: 1.0, 9: 1.0})
    assert table.weights(keys(7, 9)).tolist() == [[0.0] * DIM] * 2  # nothing is learned of ids that wait
    table.observe(keys(7), 101)
    assert table.weights(keys(7)).tolist() == [[0.0] * DIM]
    step(table, {7: 2.0, 9: 1.0})
    assert table.weights(keys(7, 9, 0)).tolist() == [[-0.5] * DIM, [0.0] * DIM, [0.0] * DIM]  # 0.5 * 2 / sqrt(2^2)


def test_adagrad_divides_by_the_root_of_all_squares_by_hand(tmp_path: Path) -> None:
    table, _ = admitted(tmp_path, 7)
    step(table, {7: 3.0})
    step(table, {7: 4.0})
    assert table.weights(keys(7))[0].tolist() == pytest.approx([-0.5 * (3.0 / 3.0 + 4.0 / 5.0)] * DIM)


def test_what_is_only_learned_from_again_makes_no_id_frequent_or_young(tmp_path: Path) -> None:
    table, _ = made(tmp_path)
    table.observe(keys(7), 100)
    for _ in range(5):
        step(table, {7: 1.0})
    assert table.gauges()["waiting_ids"] == 1
    assert table.forget_old(151) == 1


def test_ids_of_one_batch_count_each_time_that_they_come(tmp_path: Path) -> None:
    table, _ = made(tmp_path)
    table.observe(keys(7, 7, 9, 0, 0), 100)
    assert (table.gauges()["ids"], table.gauges()["waiting_ids"]) == (2, 1)


def test_a_forgotten_id_begins_anew(tmp_path: Path) -> None:
    table, _ = admitted(tmp_path, 7)
    step(table, {7: 1.0})
    assert table.forget_old(150) == 0
    assert table.forget_old(151) == 1
    assert table.unsent()[0].tolist() == [7]
    table.observe(keys(7), 160)
    table.observe(keys(7), 160)
    gone, sent, _ = table.unsent()
    assert (gone.tolist(), sent.tolist()) == ([], [])
    assert table.weights(keys(7)).tolist() == [[0.0] * DIM]


def test_more_ids_than_rows_in_memory_are_refused_by_number(tmp_path: Path) -> None:
    table, _ = admitted(tmp_path, *range(2, 7))
    with pytest.raises(ValueError, match="a batch of 5 ids does not fit 4 rows in memory: raise hot_rows"):
        table.gather(keys(*range(2, 7)))


def test_a_row_is_not_written_back_after_the_next_batch_has_moved_rows(tmp_path: Path) -> None:
    table, _ = admitted(tmp_path, 7, 8)
    first = table.gather(keys(7))
    table.gather(keys(8))
    with pytest.raises(AssertionError, match="rows move"):
        table.scatter(first, np.ones_like(first.weights_UD))


def test_what_was_learned_of_an_id_before_it_was_forgotten_is_not_sent_after_it_came_back(tmp_path: Path) -> None:
    table, _ = admitted(tmp_path, 7, 8, 9, 10)
    step(table, {7: 1.0})
    for key in (11, 11):
        table.observe(keys(8, 9, 10, key), 140)  # a fifth row: that of 7, unsent, goes to the store
    table.forget_old(151)
    for _ in range(2):
        table.observe(keys(7), 160)
    gone, sent, weights = table.unsent()
    assert gone.tolist() == [7]
    assert weights[sent == 7].tolist() in ([], [[0.0] * DIM])


def test_rows_of_the_batch_itself_are_never_put_out_of_memory_for_others(tmp_path: Path) -> None:
    limits = TableLimits(admission_count=2, max_age_s=50, capacity_ids=100, hot_rows=2 * SLACK)
    ids = list(range(2, limits.hot_rows + 3))
    table, _ = admitted(tmp_path, *ids, limits=limits)  # one more than fit: two went, to have room for the next
    hot = [key for key in ids if table.index.places[table.index.find(keys(key))[0]] >= 0]
    cold = [key for key in ids if key not in hot]
    table.gather(keys(*hot, cold[0]))
    step(table, dict.fromkeys([*hot[1:], *cold], 1.0))
    assert table.weights(keys(*ids))[:, 0].tolist() == [0.0 if key == hot[0] else -0.5 for key in ids]

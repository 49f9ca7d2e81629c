"""Dynamic embeddings: rows gathered and written back by the optimiser, from memory and from RocksDB, beside torch.nn.Embedding.

torch's table has as many rows as there are ids, all in memory, and ids that are row numbers already: it looks nothing up. It is sparse:
only the rows of a batch have gradients, and torch.optim.Adagrad keeps one accumulator a weight, ours one a row.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter, process_time, sleep, thread_time
from typing import Any

import numpy as np
import torch

from headrace.id_index import FIRST_KEY, Keys, Slots
from trainer.embedding_store import EmbeddingStore
from trainer.embedding_table import EmbeddingTable, TableLimits

DIM = 16
BATCH_IDS = 16_384
HOT_IDS = 1_000_000
COLD_BATCH_IDS = 20_000
LEARNED_CHOICES = 6
"""Of some eight batches: about as many rows as are in memory. RocksDB works in fits and starts."""
RATE = 0.05
CALLS = 20
FOREVER_S = 1 << 30


def _table(folder: Path, ids: int, hot_rows: int) -> tuple[EmbeddingTable, EmbeddingStore]:
    store = EmbeddingStore(folder)
    limits = TableLimits(admission_count=1, max_age_s=FOREVER_S, capacity_ids=ids, hot_rows=hot_rows)
    return EmbeddingTable(DIM, limits, RATE, store), store


def _keys(numbers: Slots) -> Keys:
    """The ids of numbers: distinct, and spread over all 64-bit numbers as hashes are."""
    return (numbers.astype(np.uint64) + np.uint64(FIRST_KEY)) * np.uint64(0xD6E8FEB86659FD93)  # odd: a permutation


def _settle(store: EmbeddingStore) -> None:
    """Wait until RocksDB has nothing to do in the background."""
    busy = [f"rocksdb.{name}" for name in ("compaction-pending", "num-running-compactions", "num-running-flushes")]
    while any(store._db.property_int_value(name) for name in busy):
        sleep(0.05)


def measure(rounds: int, cold_ids: int) -> dict[str, Any]:
    """Rows a second of CPU time, and the memory of a process that holds `cold_ids`."""
    with tempfile.TemporaryDirectory() as folder:
        hot = _hot(Path(folder), rounds)
    command = [sys.executable, "-m", "benchmarks.state_embeddings", str(cold_ids), str(rounds)]
    cold: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {**hot, **cold}


def _hot(folder: Path, rounds: int) -> dict[str, Any]:
    """Everything in memory. A batch holds uniformly random ids: nearly all are distinct, none is in the processor's cache."""
    torch.set_num_threads(1)
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]  # as by default: saying so spares its warning
    table, store = _table(folder / "store", HOT_IDS, HOT_IDS)
    keys, rng = _keys(np.arange(HOT_IDS)), np.random.default_rng(0)
    for start in range(0, HOT_IDS, BATCH_IDS):
        table.observe(keys[start : start + BATCH_IDS], 1)
    peer = torch.nn.Embedding(HOT_IDS, DIM, sparse=True)
    optimiser = torch.optim.Adagrad(peer.parameters(), lr=RATE)
    gradient = torch.randn(BATCH_IDS, DIM)

    def gather(rows: Slots) -> None:
        table.gather(keys[rows])

    def learn(rows: Slots) -> None:
        gathered = table.gather(keys[rows])
        table.scatter(gathered, gradient.numpy()[: len(gathered.rows_U)])

    def torch_gather(rows: Slots) -> None:
        with torch.no_grad():
            peer(torch.from_numpy(rows))

    def torch_learn(rows: Slots) -> None:
        optimiser.zero_grad()
        peer(torch.from_numpy(rows)).backward(gradient)
        optimiser.step()

    contestants: dict[str, Callable[[Slots], None]] = {
        "gather": gather,
        "gather_scatter": learn,
        "torch_gather": torch_gather,
        "torch_gather_scatter": torch_learn,
    }
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        batches = [rng.integers(0, HOT_IDS, BATCH_IDS) for _ in range(CALLS)]
        for name, call in contestants.items():
            call(batches[0])
            start_s = process_time()
            for rows in batches:
                call(rows)
            spent[name].append((process_time() - start_s) / CALLS / BATCH_IDS)
    store.close()
    of_torch = [theirs / ours for ours, theirs in zip(spent["gather_scatter"], spent["torch_gather_scatter"], strict=True)]
    return {
        **{f"{name}_rows_per_s": round(1 / statistics.median(times)) for name, times in spent.items()},
        "gather_scatter_speed_ratio_to_torch": round(statistics.median(of_torch), 2),
    }


def _some_cold(table: EmbeddingTable, ids: int, batch: int, rng: np.random.Generator) -> Keys:
    """Some eight batches of ids whose rows are in the store, in random order."""
    keys = _keys(np.unique(rng.integers(0, ids, 10 * batch)))
    cold = keys[table.index.places[table.index.find(keys)] < 0]
    rng.shuffle(cold)
    return cold


def _gathering(table: EmbeddingTable, keys: Keys, batch: int) -> float:
    """Seconds a row to bring these into memory, batch by batch."""
    start_s = process_time()
    for part in np.array_split(keys, -(-len(keys) // batch)):
        table.gather(part)
    return (process_time() - start_s) / len(keys)


def _learning(table: EmbeddingTable, store: EmbeddingStore, choose: Callable[[], Keys], batch: int) -> float:
    """The same where each row changes while it is in memory, and another changed one goes to RocksDB for it.

    RocksDB's threads work whenever they like: all that they do counts, to the end of the last compaction. Of our own thread choosing
    ids, the optimiser's step and what serving is told do not.
    """
    _settle(store)
    start_s, apart_s, rows = process_time(), 0.0, 0
    for _ in range(LEARNED_CHOICES):
        own_s = thread_time()
        keys = choose()
        apart_s += thread_time() - own_s
        for part in np.array_split(keys, -(-len(keys) // batch)):
            gathered = table.gather(part)
            own_s = thread_time()
            table.scatter(gathered, np.ones_like(gathered.weights_UD))
            apart_s += thread_time() - own_s
        rows += len(keys)
        own_s = thread_time()
        table.unsent()  # as a trainer does each second
        apart_s += thread_time() - own_s
    _settle(store)
    return (process_time() - start_s - apart_s) / rows


def _cold(folder: Path, ids: int, rounds: int) -> dict[str, Any]:
    """A tenth of the rows in memory; each gathered id lies in RocksDB. Rows put out for them are unchanged, then all have changed.

    What RocksDB has to do for the building is waited for, what it has to do for the rows that go there counts. Beside it stands
    rocksdict's bare multi-get of other such ids: nothing is found in an index, put out, or made a matrix.
    """
    table, store = _table(folder / "store", ids, ids // 10)
    rng = np.random.default_rng(1)
    batch = min(COLD_BATCH_IDS, ids // 20)
    started_s = perf_counter()
    for start in range(0, ids, batch):
        table.observe(_keys(np.arange(start, min(start + batch, ids))), 1)
    built_s = perf_counter() - started_s
    _settle(store)
    table.flush()
    spent: dict[str, list[float]] = {"read": [], "bare": []}
    for _ in range(rounds):
        cold = _some_cold(table, ids, batch, rng)
        spent["read"].append(_gathering(table, cold[: 5 * batch], batch))
        names: list[Any] = [key.to_bytes(8, "big") for key in np.sort(cold[5 * batch :]).tolist()]
        start_s = process_time()
        store._db.get(names)
        spent["bare"].append((process_time() - start_s) / len(names))
    choose = partial(_some_cold, table, ids, batch, rng)
    _learning(table, store, choose, batch)  # until every row in memory has changed
    spent["learn"] = [_learning(table, store, choose, batch) for _ in range(rounds)]
    start_s = perf_counter()
    table.flush()
    store.snapshot(folder / "copy")
    snapshot_s = perf_counter() - start_s
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    store.close()
    del table
    start_s = perf_counter()
    again, store = _table(folder / "again", ids, ids // 10)
    store.close()
    store = EmbeddingStore(folder / "again", folder / "copy")
    for known in store.scan():
        again.know(*known)
    restart_s = perf_counter() - start_s
    assert len(again.index) == ids, (len(again.index), ids)
    store.close()
    return {
        "cold_rows_per_s": round(1 / statistics.median(spent["read"])),
        "cold_bare_get_rows_per_s": round(1 / statistics.median(spent["bare"])),
        "cold_learned_rows_per_s": round(1 / statistics.median(spent["learn"])),
        "cold_ids": ids,
        "cold_index_mb": round(again.index.nbytes / 2**20),
        "cold_build_s": round(built_s, 1),
        "cold_flush_and_copy_s": round(snapshot_s, 2),
        "cold_restart_s": round(restart_s, 1),
        "cold_disk_mb": round(sum(file.stat().st_size for file in (folder / "copy").iterdir()) / 2**20),
        "peak_rss_mb": round(peak_mb),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(_cold(Path(place), int(sys.argv[1]), int(sys.argv[2]))))

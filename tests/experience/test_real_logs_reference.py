"""The collector against the brute-force reference over recorded logs, joined by the joiner as `headrace replay` does it."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from reference import Seen, expected

from experience.sessions import PartitionSessions
from experience.settings import ExperienceSettings
from headrace.logs import kuairand, taobao
from headrace.logs.recorded_log import LogFormat, find_files
from headrace.memory_rows import InMemory, MemoryRows
from headrace.runner import Event, run
from headrace.settings import load
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings
from schemas.codec import batch_kinds, decode_batch

LOGS = [
    (kuairand.FORMAT, "kuairand_pure", 700),
    (taobao.FORMAT, "taobao_userbehavior", 20_000),
    (taobao.FORMAT, "taobao_userbehavior_burst", 20_000),
]
COMPARED = ("user_id", "policy", "session_id", "step", "reward", "return", "discount", "n_steps", "done", "ends_session")


def pages_of(batch: pa.RecordBatch) -> list[Seen]:
    """The pages of a samples message, row by row."""
    pages: dict[int, Seen] = {}
    kinds = batch_kinds(batch.schema)
    for row in batch.drop_columns(["exposure", "item_id", "model_version"]).to_pylist():
        page = pages.setdefault(
            row["source_offset"],
            Seen(row["request_id"], row["user_id"], row["ts_ms"], row["policy"], {kind: [] for kind in kinds}, row["left"]),
        )
        for kind in kinds:
            page.labels[kind].append(row[f"label_{kind}"])  # type: ignore[attr-defined]
    return list(pages.values())


def compared(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in row if name in COMPARED or name.startswith(("reward_", "penalty_"))}


@pytest.mark.logs
@pytest.mark.parametrize(("log_format", "folder", "chunk_events"), LOGS, ids=[folder for _, folder, _ in LOGS])
@pytest.mark.slow
def test_every_transition_of_a_recorded_log_is_the_reference_s(log_format: LogFormat, folder: str, chunk_events: int) -> None:
    root = os.environ.get("HEADRACE_LOGS")
    if root is None or not (Path(root) / folder).is_dir():
        pytest.skip(f"HEADRACE_LOGS is not set: name a folder with {folder}/ (docs/replay.md says where the logs are had)")
    try:
        files = find_files(Path(root) / folder, log_format.file_patterns)
    except ValueError as error:
        pytest.skip(str(error))
    joiner = load(JoinerSettings, **log_format.defaults["joiner"])
    log = log_format.read(files, joiner.join_window_ms)
    of = load(ExperienceSettings, **log_format.defaults["experience"], instances=("td1", "td3", "mc"), session_gap_ms=1_800_000)
    events = (Event(ts_ms, topic, value) for ts_ms, topic, _, value in log.events())
    emitted, _ = run(
        InMemory(partial(PartitionJoin, joiner, 0)), PartitionSessions(of, 0, MemoryRows()), events, log.newest_ms, chunk_events
    )
    pages = [page for message in emitted.samples for page in pages_of(decode_batch(message.value, "samples")[0])]
    should = expected(pages, of)
    batches = [decode_batch(message.value, "transitions")[0].drop_columns(["exposure", "next_exposure"]) for message in emitted.transitions]
    rows = {row["transition_id"]: row for batch in batches for row in batch.to_pylist()}
    assert len(rows) == len(should) == 3 * len(pages) > 1000
    assert rows.keys() == should.keys()
    differing = [name for name, row in rows.items() if compared(row) != {key: should[name][key] for key in should[name] if key != "next"}]
    assert differing == []

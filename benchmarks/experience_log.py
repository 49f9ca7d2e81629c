"""The experience benchmark's log: pages of several items by many users, as the joiner's messages of `samples`."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.codec import encode_batch
from schemas.sample import sample_schema

Ints = npt.NDArray[np.int64]
KINDS = ("click", "pay", "like", "dwell")
START_MS = 1_700_000_000_000
ITEMS_A_PAGE = 10
PAGES_A_MESSAGE = 400
"""About one mebibyte of messages and ids: a block of the joiner."""
PAGES_A_SESSION = 8
PAGE_GAP_MS = 20_000
EXPOSURE_BYTES = 1000
MESSAGE_MS = 2_000
"""Event time from one message to the next: 200 pages/s."""


class Message(NamedTuple):
    """One message of `samples`, and how many rows it has."""

    value: bytes
    rows: int


def messages(pages: int, seed: int = 0, pages_a_session: int = PAGES_A_SESSION, message_ms: int = MESSAGE_MS) -> Iterator[Message]:
    """Sessions of about eight pages, twenty seconds apart, that begin all the time; one in four ends with a `leave`."""
    rng = np.random.default_rng(seed)
    session_P, step_P, ts_P, left_P = _sessions(pages, pages_a_session, message_ms, rng)
    for first in range(0, pages, PAGES_A_MESSAGE):
        rows = slice(first, min(pages, first + PAGES_A_MESSAGE))
        watermark_ms = int(ts_P[rows.stop]) if rows.stop < pages else int(ts_P[-1])
        batch = _batch(session_P[rows], step_P[rows], ts_P[rows], left_P[rows], first, rng)
        yield Message(encode_batch(batch, watermark_ms), batch.num_rows)


def _sessions(
    pages: int, pages_a_session: int, message_ms: int, rng: np.random.Generator
) -> tuple[Ints, Ints, Ints, npt.NDArray[np.bool_]]:
    sizes = rng.poisson(pages_a_session - 1, 10 + 2 * pages // pages_a_session) + 1
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), pages)) + 1]
    session_P = np.repeat(np.arange(len(sizes)), sizes)
    step_P = np.arange(len(session_P)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    span_ms = pages * message_ms // PAGES_A_MESSAGE
    ts_P = START_MS + rng.integers(0, span_ms, len(sizes))[session_P] + step_P * PAGE_GAP_MS
    left_P = (step_P + 1 == sizes[session_P]) & (session_P % 4 == 0) & (pages_a_session > 1)
    order = np.argsort(ts_P, kind="stable")[:pages]
    return session_P[order], step_P[order], ts_P[order], left_P[order]


def _batch(
    session_P: Ints, step_P: Ints, ts_P: Ints, left_P: npt.NDArray[np.bool_], first: int, rng: np.random.Generator
) -> pa.RecordBatch:
    count = len(session_P)
    rows = count * ITEMS_A_PAGE
    page_R = np.repeat(np.arange(count), ITEMS_A_PAGE)
    users = [f"user-{session % 1_000_003:07d}" for session in session_P.tolist()]
    requests = [f"request-{session:08d}-{step:03d}" for session, step in zip(session_P.tolist(), step_P.tolist(), strict=True)]
    exposures = [_exposure(request, rng) for request in requests]
    clicked_R = rng.random(rows) < 0.1
    clicked = first * ITEMS_A_PAGE + np.flatnonzero(clicked_R)
    amounts = {"click": clicked_R, "pay": clicked_R & (rng.random(rows) < 0.1), "like": clicked_R & (rng.random(rows) < 0.2)}
    columns = {
        "request_id": pa.array(requests).take(pa.array(page_R)),
        "user_id": pa.array(users).take(pa.array(page_R)),
        "item_id": pa.array([f"item-{item:06d}" for item in rng.integers(0, 1_000_000, rows).tolist()]),
        "position": pa.array(np.tile(np.arange(ITEMS_A_PAGE, dtype=np.int32), count)),
        "page_size": pa.array(np.full(rows, ITEMS_A_PAGE, np.int32)),
        "ts_ms": pa.array(ts_P[page_R]),
        "policy": pa.array(np.where(session_P[page_R] % 5 == 0, "baseline", "fusion").tolist()),
        "model_version": pa.array(np.where(session_P[page_R] % 5 == 0, "", "fusion-000012").tolist()),
        **{f"label_{kind}": pa.array(amount.astype(np.float32)) for kind, amount in amounts.items()},
        "label_dwell": pa.array(np.where(clicked_R, rng.integers(100, 60_000, rows), 0).astype(np.float32)),
        "label_delay_ms": pa.array(np.full(rows, 900), mask=~clicked_R),
        "feedback_arrival_ms": pa.array(ts_P[page_R] + 1000, mask=~clicked_R),
        "left": pa.array(left_P[page_R]),
        "closed_by": pa.repeat(pa.scalar("window"), rows),
        "source_partition": pa.array(np.zeros(rows, np.int32)),
        "source_offset": pa.array(first + page_R),
        "feedback_offsets": pa.ListArray.from_arrays(pa.array(np.append(0, clicked_R.cumsum()), pa.int32()), pa.array(clicked)),
        "exposure": pa.DictionaryArray.from_arrays(pa.array(page_R.astype(np.int32)), pa.array(exposures, pa.binary())),
    }
    schema = sample_schema(KINDS)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _exposure(request_id: str, rng: np.random.Generator) -> bytes:
    head = f'{{"request_id":"{request_id}","propensity":0.5,"bucket":"7","action":[1.0],"state":{{"x":['.encode()
    numbers = ",".join(f"{value:.5f}" for value in rng.random(1 + (EXPOSURE_BYTES - len(head) - 3) // 8).tolist())
    return head + numbers.encode() + b"]}}"

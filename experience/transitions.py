"""Instances -> the transition batches that leave the experience collector."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from experience.columns import EXPOSURE, REQUEST_ID, USER_ID, Columns, Unpacked, take
from experience.episodes import Leaving, Links, returns
from experience.reward import Floats, penalties, total
from experience.settings import ExperienceSettings
from schemas.transition import transition_schema

BATCH_BYTES = 4 << 20
"""A batch is cut where its exposures exceed this: an idle topic can end all sessions at once, and a message must stay below 12 MiB."""

_CARRIED = (
    "ts_ms",
    "policy",
    "model_version",
    "bucket",
    "propensity",
    "feedback_count",
    "feedback_arrival_ms",
    "source_partition",
    "source_offset",
    "offset",
)
"""Columns of a page that its transitions have, too."""


def transition_batches(pages: Columns, links: Links, leaving: Sequence[Leaving], settings: ExperienceSettings) -> Iterator[pa.RecordBatch]:
    """One batch or more for each combination of kinds, by instance and in the order of `pages`."""
    if not any(len(of_kind.page) for of_kind in leaving):
        return
    # Earned columns that are not a page's kinds' are zero, and change no sum.
    rewards = _Rewards(pages["earned"], *penalties(pages["converted"], links.went_on, pages["policy"], settings.reward))
    for kinds in dict.fromkeys(pages["kinds"].tolist()):
        names = tuple(kind for kind in kinds.split(",") if kind)
        is_of_kinds = pages["kinds"] == kinds
        for of_kind in leaving:
            chosen = is_of_kinds[of_kind.page]
            part = Leaving(of_kind.instance, of_kind.page[chosen], of_kind.last[chosen])
            for cut in _cuts(part, links, pages["sizes"][:, EXPOSURE]):
                yield _batch(pages, links, cut, rewards, names, settings)


class _Rewards:
    """The rewards of S pages, and their parts."""

    def __init__(self, earned_SK: Floats, no_conversion_S: Floats, left_S: Floats) -> None:
        self.earned_SK, self.no_conversion_S, self.left_S = earned_SK, no_conversion_S, left_S
        self.total_S = total(earned_SK, no_conversion_S, left_S)


def _cuts(leaving: Leaving, links: Links, exposure_bytes: npt.NDArray[np.int32]) -> Iterator[Leaving]:
    """Parts whose messages are about BATCH_BYTES at most."""
    if not len(leaving.page):
        return
    sizes = exposure_bytes[leaving.page].astype(np.int64)
    following = np.flatnonzero(~links.done[leaving.last])
    sizes[following] += exposure_bytes[leaving.last[following] + 1]
    number = (np.cumsum(sizes) - 1) // BATCH_BYTES
    for places in np.split(np.arange(len(number)), np.flatnonzero(np.diff(number)) + 1):
        yield Leaving(leaving.instance, leaving.page[places], leaving.last[places])


def _batch(
    pages: Columns, links: Links, leaving: Leaving, rewards: _Rewards, kinds: tuple[str, ...], settings: ExperienceSettings
) -> pa.RecordBatch:
    page, last, count = leaving.page, leaving.last, len(leaving.page)
    done, n_steps = links.done[last], last - page + 1
    following = np.where(done, page, last + 1)
    opened = np.union1d(page, following)
    unpacked, place = Unpacked(pages, opened), np.searchsorted(opened, page)
    mine = take({name: pages[name] for name in _CARRIED}, page)
    exponents, of_exponent = np.unique(n_steps, return_inverse=True)
    discounts = np.array([settings.discount**steps for steps in exponents.tolist()], np.float32)
    suffix = "" if leaving.instance == "td1" else f"/{leaving.instance}"
    request_ids = unpacked.texts(REQUEST_ID, place)
    arrival_ms = mine["feedback_arrival_ms"]
    columns: dict[str, Any] = {
        "transition_id": pc.binary_join_element_wise(request_ids, suffix, "") if suffix else request_ids,
        "instance": pa.repeat(leaving.instance, count),
        "revision": np.zeros(count, np.int32),
        "request_id": request_ids,
        "user_id": unpacked.texts(USER_ID, place),
        "session_id": links.session_id[page].tolist(),
        "step": links.step[page].astype(np.int32),
        "policy": mine["policy"].tolist(),
        "model_version": mine["model_version"].tolist(),
        "bucket": mine["bucket"].tolist(),
        "reward": rewards.total_S[page],
        **{f"reward_{kind}": rewards.earned_SK[page, column] for column, kind in enumerate(kinds)},
        "penalty_no_conversion": rewards.no_conversion_S[page],
        "penalty_left": rewards.left_S[page],
        "n_steps": n_steps.astype(np.int32),
        "return": returns(rewards.total_S, leaving, settings.discount),
        "discount": discounts[of_exponent],
        "done": done,
        "ends_session": links.done[page],
        "feedback_arrival_ms": pa.array(arrival_ms, mask=arrival_ms < 0),
        "samples_offset": mine["offset"],
        "feedback_offsets": unpacked.offsets(place),
        "exposure": unpacked.take(EXPOSURE, place),
        "next_exposure": unpacked.take(EXPOSURE, np.searchsorted(opened, following), done),
    }
    schema = transition_schema(kinds)
    arrays = [_array(columns[name] if (name := field.name) in columns else mine[name], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(column: Any, kind: pa.DataType) -> pa.Array:
    return column if isinstance(column, pa.Array) else pa.array(column, kind)

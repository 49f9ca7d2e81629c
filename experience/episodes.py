"""Pages in order -> sessions -> instances: what is settled, and which <s, a, r, s', done, gamma> follow from it. Pure columns.

A session is a user's pages in the order of (ts_ms, request_id), each at most `session_gap_ms` after the one before. It ends with a
page that the user left from, with the gap, or after `max_session_pages`. A page is settled when no page that may still come (with
ts_ms >= watermark) can change what follows it.

Shape legend: S pages of some users, one user after the other, each user's in order: settled ones first. E instances that leave.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from experience.columns import REQUEST_ID, Columns, ids, objects, take
from experience.reward import Bools, Floats, Ints, Objects

TO_THE_END = 1 << 40
"""Steps of an `mc` instance."""


class Links(NamedTuple):
    """What is known of each page, [S]. Of pages that are not settled, the first of each user has the `step` that it would have now."""

    is_new: Bools
    """Settled now."""
    is_settled: Bools
    went_on: Bools
    """Whether the user asked for another page within the gap: a session that is cut for its length is `done` all the same."""
    done: Bools
    step: Ints
    session_id: Objects
    first_offset: Ints
    """Where the session's first page lies: whoever rebuilds the session must read from there to number it alike."""
    decided_ms: Ints
    """The page is settled when the watermark is past this."""


def steps_of(instance: str) -> int:
    """How many pages' rewards an instance adds up, at most."""
    return TO_THE_END if instance == "mc" else int(instance.removeprefix("td"))


def link(pages: Columns, user_S: Ints, watermark_ms: int, gap_ms: int, max_pages: int) -> Links:
    """Settle what the watermark allows. `pages` have the columns of open pages (open_pages.py), `user_S` numbers their users."""
    was_settled, ts_ms, left = pages["settled"], pages["ts_ms"], pages["left"]
    next_ms = np.append(ts_ms[1:], 0)
    follows = np.append(user_S[1:] == user_S[:-1], False)
    went_on = np.where(was_settled, pages["went_on"], follows & ~left & (next_ms - ts_ms <= gap_ms))
    decided_ms = np.where(went_on, next_ms, np.where(left, ts_ms, ts_ms + gap_ms))
    # Strictly: a page of the very millisecond of the watermark may still come, and its request id may put it in between.
    is_new = ~was_settled & (decided_ms < watermark_ms)
    step, session_id, first_offset = pages["step"].astype(np.int64), pages["session_id"].copy(), pages["first_offset"].copy()
    waiting = np.flatnonzero(~was_settled)
    if len(waiting):
        needed = ("step", "session_id", "first_offset", "offset", "packed", "sizes")
        numbered = _numbered(take({name: pages[name] for name in needed}, waiting), user_S[waiting], went_on[waiting], max_pages)
        step[waiting], session_id[waiting], first_offset[waiting] = numbered
    done = ~went_on | (step + 1 >= max_pages)
    return Links(is_new, was_settled | is_new, went_on, done, step, session_id, first_offset, decided_ms)


def _numbered(pages: Columns, user_W: Ints, went_on_W: Bools, max_pages: int) -> tuple[Ints, Objects, Ints]:
    """Step, session and first offset of W pages that wait. A page with a `step` carries on a session whose earlier pages have left."""
    count = len(user_W)
    place = np.arange(count)
    is_first_of_user = np.append(True, user_W[1:] != user_W[:-1])
    begins = is_first_of_user | np.append(True, ~went_on_W[:-1])
    run = np.cumsum(begins) - 1
    start_W = np.flatnonzero(begins)[run]
    user = np.cumsum(is_first_of_user) - 1
    carrier_of_user = np.full(user[-1] + 1, -1)
    carriers = np.flatnonzero(pages["step"])
    carrier_of_user[user[carriers]] = carriers
    carrier_W = np.where(is_first_of_user[start_W], carrier_of_user[user], -1)
    carried_W = np.where(carrier_W >= 0, pages["step"][carrier_W], 0)
    step_W = (place - start_W + carried_W) % max_pages
    session_start_W = place - step_W
    is_carried = session_start_W < start_W
    of_session_W = np.where(is_carried, carrier_W, session_start_W)
    starts, of_start = np.unique(of_session_W[~is_carried], return_inverse=True)
    session_id_W = pages["session_id"][of_session_W]
    session_id_W[~is_carried] = request_ids({name: pages[name][starts] for name in ("packed", "sizes")})[of_start]
    first_offset_W = np.where(is_carried, pages["first_offset"][of_session_W], pages["offset"][of_session_W])
    return step_W, session_id_W, first_offset_W


def request_ids(pages: Columns) -> Objects:
    """The pages' request ids: that of the first page names a session."""
    return objects([request_id.decode() for request_id in ids(pages, REQUEST_ID)])


class Leaving(NamedTuple):
    """Instances of one kind that leave: the page that each is of, and the last page whose reward is in its return, [E]."""

    instance: str
    page: Ints
    last: Ints


def leaving(links: Links, user_S: Ints, instances: Sequence[str]) -> tuple[list[Leaving], Bools]:
    """What leaves now, and which pages [S] nothing needs any more."""
    count = len(user_S)
    place = np.arange(count)
    ends = links.is_settled & links.done
    end_S = np.minimum.accumulate(np.where(ends, place, count)[::-1])[::-1]
    first_of_user = np.flatnonzero(np.append(True, user_S[1:] != user_S[:-1]))
    sizes = np.diff(np.append(first_of_user, count))
    settled_S = np.repeat(first_of_user + np.add.reduceat(links.is_settled, first_of_user, dtype=np.int64) - 1, sizes)
    by_kind = []
    needed = np.ones(count, np.bool_)
    longest = max(map(steps_of, instances))
    for instance in instances:
        steps = steps_of(instance)
        last_S = np.minimum(place + steps - 1, end_S)
        is_ready = links.is_settled & (last_S <= settled_S)
        page = np.flatnonzero(is_ready & links.is_new[np.minimum(last_S, count - 1)])
        by_kind.append(Leaving(instance, page, last_S[page]))
        if steps == longest:
            needed = ~is_ready
    return by_kind, ~needed


def returns(reward_S: Floats, leaving: Leaving, discount: float) -> Floats:
    """sum_k discount^k r_k from each page to its last one, added up in float64 from left to right: [E]."""
    total_E = np.zeros(len(leaving.page), np.float64)
    steps_E = leaving.last - leaving.page + 1
    for k in range(int(steps_E.max(initial=0))):
        longer = np.flatnonzero(steps_E > k)
        total_E[longer] += discount**k * reward_S[leaving.page[longer] + k].astype(np.float64)
    return total_E.astype(np.float32)


def in_order(pages: Columns, user_S: Ints) -> npt.NDArray[Any]:
    """The places of pages by user; of each user settled pages by their step, then those that wait by (ts_ms, request_id)."""
    settled, ts_ms = pages["settled"], pages["ts_ms"]
    order = np.lexsort((ts_ms, np.where(settled, pages["step"], 0), ~settled, user_S))
    users, times = user_S[order], ts_ms[order]
    is_tie = np.append(False, (users[1:] == users[:-1]) & (times[1:] == times[:-1]) & ~settled[order][:-1])
    if not is_tie.any():
        return order
    run = np.cumsum(~is_tie)
    for tied in np.unique(run[is_tie]).tolist():  # few: one user's pages of one millisecond
        places = np.flatnonzero(run == tied)
        of_places = ids({name: pages[name][order[places]] for name in ("packed", "sizes")}, REQUEST_ID)
        order[places] = order[places][sorted(range(len(places)), key=of_places.__getitem__)]
    return order

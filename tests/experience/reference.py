"""What every page of a log must become, from the whole log at once and one page at a time: the collector's brute-force reference."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experience.settings import ExperienceSettings, RewardRule


class Seen(NamedTuple):
    """A page as the reference wants it: `labels` by kind and item."""

    request_id: str
    user_id: str
    ts_ms: int
    policy: str
    labels: dict[str, Sequence[float]]
    left: bool


Row = dict[str, Any]


def earned(page: Seen, kind: str, rule: RewardRule) -> np.float32:
    reward = rule.kinds.get(kind)
    if reward is None:
        return np.float32(0)
    amounts = [label / reward.unit for label in page.labels[kind]]
    if reward.scale == "log":
        amounts = [float(np.log1p(max(0.0, amount))) for amount in amounts]
    worth = reward.weight * sum(amounts)
    return np.float32(worth if reward.cap is None else max(-reward.cap, min(reward.cap, worth)))


def sessions(log: Iterable[Seen], settings: ExperienceSettings) -> Iterable[list[tuple[Seen, bool]]]:
    """Each session's pages in order, each with whether the user went on."""
    of_user: dict[str, list[Seen]] = {}
    for page in log:
        of_user.setdefault(page.user_id, []).append(page)
    for pages in of_user.values():
        pages.sort(key=lambda page: (page.ts_ms, page.request_id))
        session: list[tuple[Seen, bool]] = []
        for page, following in zip(pages, [*pages[1:], None], strict=True):
            went_on = following is not None and not page.left and following.ts_ms - page.ts_ms <= settings.session_gap_ms
            session.append((page, went_on))
            if not went_on or len(session) == settings.max_session_pages:
                yield session
                session = []


def expected(log: Iterable[Seen], settings: ExperienceSettings) -> dict[str, Row]:
    """The transitions by id."""
    rows: dict[str, Row] = {}
    for session in sessions(log, settings):
        rewards, parts = [], []
        for page, went_on in session:
            rule = settings.reward.rule(page.policy)
            failed = not any(sum(page.labels.get(kind, [])) > 0 for kind in rule.conversion_kinds)
            of_page = {f"reward_{kind}": earned(page, kind, rule) for kind in page.labels}
            of_page["penalty_no_conversion"] = np.float32(-rule.penalty_no_conversion if failed and went_on else 0)
            of_page["penalty_left"] = np.float32(-rule.penalty_left if failed and not went_on else 0)
            parts.append(of_page)
            rewards.append(sum(of_page.values(), start=np.float32(0)))
        for step, (page, _) in enumerate(session):
            for instance in settings.instances:
                steps = len(session) if instance == "mc" else int(instance[2:])
                summed = rewards[step : step + steps]
                following = step + len(summed) if step + steps < len(session) else None
                rows[page.request_id if instance == "td1" else f"{page.request_id}/{instance}"] = {
                    **parts[step],
                    "user_id": page.user_id,
                    "policy": page.policy,
                    "session_id": session[0][0].request_id,
                    "step": step,
                    "reward": rewards[step],
                    "return": np.float32(sum(settings.discount**k * float(reward) for k, reward in enumerate(summed))),
                    "discount": np.float32(settings.discount ** len(summed)),
                    "n_steps": len(summed),
                    "done": following is None,
                    "ends_session": step + 1 == len(session),
                    "next": None if following is None else session[following][0].request_id,
                }
    return rows

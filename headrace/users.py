"""One simulated user: the Gymnasium environment of `sardine-rec`, seen from the outside as a recommender sees a person.

The environment (SARDINE, Deffayet et al. 2024, ACM TORS; SlateTopK-Bored as registered, shorter sessions) has 1000 items with ten
topic weights each. A user likes three to five topics, clicks by relevance and position, and loses all interest for five pages once five
recent clicks were on one topic. Nobody tells the recommender: `state` holds only what a log of shown and clicked items gives.

Everything is drawn from generators seeded by (seed, index): the same pages get the same clicks.
"""

from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt
import sardine  # noqa: F401 - importing it registers its environments with Gymnasium

from schemas.exposure import ExposedItem, FeatureValue

ENVIRONMENT = "sardine/SlateTopK-Bored-v0"
TOPICS = 10
PAGE_ITEMS = 10
RECENT_ITEMS = 10
PRIOR_CLICKED = 0.5
PRIOR_SHOWN = 2.0
"""A topic that was never shown has the click rate PRIOR_CLICKED / PRIOR_SHOWN: well above a disliked topic's, so that it is tried."""

OBJECTIVES = tuple(f"topic_{topic}" for topic in range(TOPICS))
"""The ranker's scores of an item: how much it is about each topic. The action weighs them."""

Observation = dict[str, npt.NDArray[np.float32]]


class Page(NamedTuple):
    """What a page is asked for with: the state as logged so far, and the items that it may show."""

    state: dict[str, FeatureValue]
    candidates: list[int]


def item_id(item: int) -> str:
    """The name under which an item of the environment travels."""
    return f"i-{item}"


def item_index(name: str) -> int:
    """The item that an `item_id` names."""
    return int(name.removeprefix("i-"))


@cache
def item_topics() -> npt.NDArray[np.float64]:
    """Topic weights of all items [1000, 10], rounded to four decimals as they travel."""
    environment = gymnasium.make(ENVIRONMENT, disable_env_checker=True)
    embeddings = environment.unwrapped.item_embedd  # type: ignore[attr-defined]
    topics: npt.NDArray[np.float64] = np.asarray(embeddings, np.float64).round(4)
    return topics


@cache
def item_scores(item: int) -> dict[str, float]:
    """The ranker's scores of an item, by objective."""
    return dict(zip(OBJECTIVES, item_topics()[item].tolist(), strict=True))


def rank(candidates: Sequence[int], action: Sequence[float]) -> list[int]:
    """The page of candidates with the largest weighted sums of scores, best first; equal ones keep the order of the candidates."""
    scores = (item_topics()[list(candidates)] * np.asarray(action)).sum(axis=1)
    return [candidates[place] for place in np.argsort(-scores, kind="stable")[:PAGE_ITEMS]]


def exposed_items(items: Sequence[int]) -> list[ExposedItem]:
    """A page of items as it is logged."""
    return [ExposedItem(item_id(item), position, item_scores(item)) for position, item in enumerate(items)]


class SimulatedUser:
    """One user in one session of `session_pages` pages; `candidates` distinct items are drawn for each.

    Before the first served page the user has seen ten random items, as the environment has it.
    """

    def __init__(self, seed: int, index: int, session_pages: int = 20, candidates: int = 60) -> None:
        self.user_id = f"u-{seed}-{index}"
        self.pages = 0
        self.done = False
        self._environment = gymnasium.make(ENVIRONMENT, episode_length=session_pages, disable_env_checker=True)
        self._candidates = candidates
        environment_seed, candidate_seed = np.random.SeedSequence([seed, index]).generate_state(2).tolist()
        self._random = np.random.default_rng(candidate_seed)
        self._clicked_topics = np.full(TOPICS, PRIOR_CLICKED)
        self._shown_topics = np.full(TOPICS, PRIOR_SHOWN)
        self._recent_items: deque[str] = deque(maxlen=RECENT_ITEMS)
        self._quiet_pages = 0
        observation, _ = self._environment.reset(seed=environment_seed)
        self._observe(observation)

    def state(self) -> dict[str, FeatureValue]:
        """What the log of this session says, as features.

        `taste_K`: smoothed click rate of topic K. `recent_K`: clicks of the last five pages whose main topic is K, in units of the
        five that bore. `pages`: pages so far. `last_clicks`: clicks on the page before. `quiet_pages`: pages since the last click.
        `recent_items`: newest clicked items, newest last.
        """
        taste = self._clicked_topics / self._shown_topics
        state: dict[str, FeatureValue] = {f"taste_{topic}": round(value, 4) for topic, value in enumerate(taste.tolist())}
        state |= {f"recent_{topic}": round(value, 4) for topic, value in enumerate(self._recent_topics.tolist())}
        state |= {"pages": float(self.pages), "last_clicks": float(self._last_clicks), "quiet_pages": float(self._quiet_pages)}
        state["recent_items"] = list(self._recent_items)
        return state

    def next_page(self) -> Page:
        """The state now, and freshly drawn candidates."""
        drawn = self._random.choice(len(item_topics()), self._candidates, replace=False)
        return Page(self.state(), drawn.tolist())

    def react(self, items: Sequence[int]) -> list[bool]:
        """Which items of a served page are clicked, by position. After its last page the session is `done`."""
        if self.done:
            raise ValueError(f"user {self.user_id} has left")
        if len(items) != PAGE_ITEMS:
            raise ValueError(f"user {self.user_id} looks at pages of {PAGE_ITEMS} items, got {len(items)}")
        observation, _, terminated, truncated, _ = self._environment.step(np.asarray(items))
        self.pages += 1
        self.done = bool(terminated or truncated)
        return self._observe(observation)

    def _observe(self, observation: Observation) -> list[bool]:
        slate, clicks = observation["slate"], observation["clicks"].astype(bool)
        self._shown_topics += item_topics()[slate].sum(axis=0)
        self._clicked_topics += item_topics()[slate[clicks]].sum(axis=0)
        self._recent_items.extend(item_id(item) for item in slate[clicks].tolist())
        self._recent_topics = observation["hist"].astype(np.float64)
        self._last_clicks = int(clicks.sum())
        self._quiet_pages = 0 if self._last_clicks else self._quiet_pages + 1
        return clicks.tolist()  # type: ignore[no-any-return]

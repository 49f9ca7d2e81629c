"""One simulated user: the Gymnasium environment of `sardine-rec`, seen from the outside as a recommender sees a person.

The environment (Deffayet et al., SARDINE, RecSys 2024; slates of a TopK ranker) has 1000 items with ten topic weights each. A user likes three to
five topics, clicks by relevance and position, and gets bored for five pages after five recent clicks on one topic. Nobody tells
the recommender any of this: `state` holds only what a log of shown and clicked items gives.

Everything is drawn from generators seeded by (seed, index): the same pages get the same clicks.
"""

from collections import deque
from collections.abc import Sequence
from functools import cache

import gymnasium
import msgspec
import numpy as np
import numpy.typing as npt
import sardine  # noqa: F401  (registers its environments with Gymnasium)

from schemas.exposure import ExposedItem, FeatureValue

ENVIRONMENT = "sardine/SlateTopK-Bored-v0"
TOPICS = 10
RECENT_ITEMS = 10
PRIOR_CLICKED = 0.5
PRIOR_SHOWN = 2.0
"""A topic never shown has the click rate PRIOR_CLICKED / PRIOR_SHOWN: between the rates of liked and of disliked topics."""

OBJECTIVES = tuple(f"topic_{topic}" for topic in range(TOPICS))
"""The ranker's scores of an item: how much it is about each topic. The action weighs them."""

FloatArray = npt.NDArray[np.float64]


class Page(msgspec.Struct, frozen=True):
    """What the next page can be made of: the state as logged so far, and the candidate items, best known to nobody yet."""

    state: dict[str, FeatureValue]
    candidates: list[int]


def item_id(item: int) -> str:
    """The name under which an item of the environment travels."""
    return f"i-{item}"


def item_index(name: str) -> int:
    """The item that an `item_id` names."""
    return int(name.removeprefix("i-"))


@cache
def item_topics(environment: str = ENVIRONMENT) -> FloatArray:
    """Topic weights of all items [1000, 10], rounded to four decimals: what the ranker scores, and what travels."""
    embeddings = gymnasium.make(environment, disable_env_checker=True).unwrapped.item_embedd  # type: ignore[attr-defined]
    return np.round(np.asarray(embeddings, np.float64), 4)


@cache
def item_scores(item: int, environment: str = ENVIRONMENT) -> dict[str, float]:
    """The ranker's scores of an item, by objective."""
    return dict(zip(OBJECTIVES, item_topics(environment)[item].tolist(), strict=True))


def rank(candidates: Sequence[int], action: Sequence[float], page_size: int, environment: str = ENVIRONMENT) -> list[int]:
    """The `page_size` candidates with the largest weighted sum of scores, best first; ties keep the candidates' order."""
    scores = item_topics(environment)[np.asarray(candidates)] @ np.asarray(action, np.float64)
    return [candidates[place] for place in np.argsort(-scores, kind="stable")[:page_size]]


def exposed_items(items: Sequence[int], environment: str = ENVIRONMENT) -> list[ExposedItem]:
    """A page of items as it is logged."""
    return [ExposedItem(item_id(item), position, item_scores(item, environment)) for position, item in enumerate(items)]


class SimulatedUser:
    """One user in one session of `session_pages` pages.

    `page_size` items are clicked or not by the environment's position model; before the first served page the user has seen ten
    random items, as the environment has it.
    """

    def __init__(self, seed: int, index: int, session_pages: int = 20, candidates: int = 60, environment: str = ENVIRONMENT) -> None:
        self.user_id = f"u-{seed}-{index}"
        self.pages = 0
        self.done = False
        self._environment = gymnasium.make(environment, episode_length=session_pages, disable_env_checker=True)
        self._topics = item_topics(environment)
        self._candidates = candidates
        seeds = np.random.SeedSequence([seed, index])
        environment_seed, candidate_seed = (int(word) for word in seeds.generate_state(2))
        self._random = np.random.default_rng(candidate_seed)
        self._clicked = np.full(TOPICS, PRIOR_CLICKED)
        self._shown = np.full(TOPICS, PRIOR_SHOWN)
        self._recent: deque[int] = deque(maxlen=RECENT_ITEMS)
        observation, _ = self._environment.reset(seed=environment_seed)
        self._observe(observation)

    def state(self) -> dict[str, FeatureValue]:
        """What the log of this session says, as features.

        `taste_K` is the smoothed click rate of topic K, `recent_K` its share of a boredom's worth of recent clicks (0 to 1),
        `pages` the pages so far, `last_clicks` the clicks on the page before, `quiet_pages` the pages since the last click.
        """
        taste = self._clicked / self._shown
        state: dict[str, FeatureValue] = {f"taste_{topic}": round(float(taste[topic]), 4) for topic in range(TOPICS)}
        state |= {f"recent_{topic}": round(float(self._hist[topic]), 4) for topic in range(TOPICS)}
        state |= {"pages": float(self.pages), "last_clicks": float(self._last_clicks), "quiet_pages": float(self._quiet_pages)}
        state["recent_items"] = [item_id(item) for item in self._recent]
        return state

    def next_page(self) -> Page:
        """The state now, and freshly drawn distinct candidates for the next page."""
        drawn = self._random.choice(len(self._topics), self._candidates, replace=False)
        return Page(self.state(), drawn.tolist())

    def react(self, items: Sequence[int]) -> list[bool]:
        """The clicks on a served page of ten items, by position. Ends the session after its last page."""
        if self.done:
            raise ValueError(f"user {self.user_id} has left")
        observation, _, terminated, truncated, _ = self._environment.step(np.asarray(items))
        self.pages += 1
        self.done = bool(terminated or truncated)
        return self._observe(observation)

    def _observe(self, observation: dict[str, npt.NDArray[np.int64]]) -> list[bool]:
        slate, clicks = observation["slate"], observation["clicks"].astype(bool)
        self._shown += self._topics[slate].sum(axis=0)
        self._clicked += self._topics[slate[clicks]].sum(axis=0)
        self._recent.extend(int(item) for item in slate[clicks])
        self._hist = observation["hist"]
        self._last_clicks = int(clicks.sum())
        self._quiet_pages = 0 if self._last_clicks or not self.pages else self._quiet_pages + 1
        return [bool(click) for click in clicks]

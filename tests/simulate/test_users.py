import numpy as np
import pytest

from headrace.policy_settings import PolicySettings
from headrace.users import OBJECTIVES, PAGE_ITEMS, SimulatedUser, exposed_items, item_id, item_index, item_topics, rank
from serving.fusion import rank as served_rank


def session(seed: int, index: int, weights: str) -> list[list[bool]]:
    """Clicks of one session that is ranked by the plain sum of topics, or by the click rates in the state."""
    user, clicks = SimulatedUser(seed, index), []
    while not user.done:
        page = user.next_page()
        action = [1.0] * 10 if weights == "sum" else [float(page.state[f"taste_{topic}"]) for topic in range(10)]
        clicks.append(user.react(rank(page.candidates, action)))
    return clicks


def test_the_same_seed_and_index_make_the_same_session() -> None:
    first = session(7, 3, "sum")
    assert session(7, 3, "sum") == first
    assert session(7, 4, "sum") != first
    assert session(8, 3, "sum") != first


def test_a_session_ends_after_its_last_page_and_not_before() -> None:
    user = SimulatedUser(1, 1, session_pages=3)
    for page in range(3):
        assert (user.pages, user.done) == (page, False)
        user.react(user.next_page().candidates[:PAGE_ITEMS])
    assert (user.pages, user.done) == (3, True)
    with pytest.raises(ValueError, match="user u-1-1 has left"):
        user.react(list(range(PAGE_ITEMS)))


def test_a_page_of_another_size_is_refused_with_the_size() -> None:
    with pytest.raises(ValueError, match="pages of 10 items, got 9"):
        SimulatedUser(1, 1).react(list(range(9)))


def test_candidates_are_distinct_items_of_the_environment() -> None:
    drawn = SimulatedUser(1, 1, candidates=60).next_page().candidates
    assert len(drawn) == len(set(drawn)) == 60
    assert set(drawn) <= set(range(len(item_topics())))


def test_the_state_is_what_the_log_of_shown_and_clicked_items_gives() -> None:
    user = SimulatedUser(5, 11)
    before = user.state()
    assert (before["pages"], before["recent_items"]) == (0.0, [])  # this user clicked nothing of the ten items seen first
    assert (before["last_clicks"], before["quiet_pages"]) == (0.0, 1.0)
    shown, clicked, quiet = np.zeros(10), np.zeros(10), 1.0
    recent: list[str] = []
    for _ in range(20):
        page = user.next_page()
        items = rank(page.candidates, [float(page.state[f"taste_{topic}"]) for topic in range(10)])
        clicks = user.react(items)
        shown += item_topics()[items].sum(axis=0)
        clicked += item_topics()[[item for item, click in zip(items, clicks, strict=True) if click]].sum(axis=0)
        recent += [item_id(item) for item, click in zip(items, clicks, strict=True) if click]
        quiet = 0.0 if any(clicks) else quiet + 1
        state = user.state()
        assert (state["last_clicks"], state["quiet_pages"]) == (float(sum(clicks)), quiet)
    assert len(recent) > 3
    state = user.state()
    assert state["pages"] == 20.0
    assert state["recent_items"] == recent[-10:]
    # the ten items seen first are in the click rates, too; what they hide is solved from the first state: rate = 0.5 / (2 + first)
    first = 0.5 / np.array([before[f"taste_{topic}"] for topic in range(10)], float) - 2.0
    expected = (0.5 + clicked) / (2.0 + first + shown)
    assert [state[f"taste_{topic}"] for topic in range(10)] == pytest.approx(expected, abs=2e-4)


def test_a_page_is_the_largest_weighted_sums_in_order_and_ties_keep_the_order_of_the_candidates() -> None:
    weights = [0.0] * 10
    weights[4] = 2.0
    candidates = list(range(100))
    page = rank(candidates, weights)
    share = item_topics()[:, 4]
    assert [share[item] for item in page] == sorted(share[:100], reverse=True)[:PAGE_ITEMS]
    assert rank(candidates, [0.0] * 10) == candidates[:PAGE_ITEMS]


def test_users_rank_as_the_api_does(demo_policy: PolicySettings) -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        candidates = random.choice(1000, 60, replace=False).tolist()
        action = random.uniform(0.0, 2.0, 10).tolist()
        scores = [item.scores for item in exposed_items(candidates)]
        served = served_rank([item_id(item) for item in candidates], scores, action, demo_policy.action, PAGE_ITEMS)
        assert [candidates[place] for place, _ in served] == rank(candidates, action)


def test_logged_items_carry_positions_and_all_objectives() -> None:
    items = exposed_items([17, 3])
    assert [(item.item_id, item.position) for item in items] == [("i-17", 0), ("i-3", 1)]
    assert tuple(items[0].scores) == OBJECTIVES
    assert list(items[0].scores.values()) == item_topics()[17].tolist()
    assert item_index("i-17") == 17


def test_ranking_by_the_logged_taste_earns_far_more_than_the_sum_of_topics() -> None:
    by_sum, by_taste = (np.mean([sum(page) for user in range(40) for page in session(2, user, weights)]) for weights in ("sum", "taste"))
    assert by_sum > 0.3
    assert by_taste > 1.5 * by_sum

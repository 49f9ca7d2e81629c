import math
import random
import statistics

import pytest

from monitor.ratio import Z95, Moments


def moments(sessions: list[tuple[int, float]]) -> Moments:
    total = Moments()
    for pages, reward in sessions:
        total.add(pages, reward)
    return total


def test_mean_and_error_by_hand() -> None:
    # r = 8 / 4 = 2; residuals R - r n: 1 - 2 = -1, 3 - 4 = -1, 4 - 2 = 2; their squares sum to 6
    total = moments([(1, 1.0), (2, 3.0), (1, 4.0)])
    assert total.mean == 2.0
    assert total.standard_error == pytest.approx(math.sqrt(3 / 2 * 6) / 4)
    assert total.ci95 == pytest.approx((2 - Z95 * 0.75, 2 + Z95 * 0.75))


def test_sessions_of_one_page_give_the_textbook_error_of_a_mean() -> None:
    rewards = [1.0, 4.0, 2.5, 0.0, 7.0]
    assert moments([(1, reward) for reward in rewards]).standard_error == pytest.approx(statistics.stdev(rewards) / math.sqrt(5))


@pytest.mark.parametrize("sessions", [[], [(3, 2.0)]])
def test_fewer_than_two_sessions_have_no_interval(sessions: list[tuple[int, float]]) -> None:
    assert moments(sessions).standard_error is None
    assert moments(sessions).ci95 is None


def test_without_pages_there_is_no_mean() -> None:
    assert Moments().mean is None


def test_equal_sessions_have_an_error_of_zero_and_never_of_nan() -> None:
    assert moments([(3, 0.3)] * 7).standard_error == pytest.approx(0.0, abs=1e-9)


def test_moments_add_up_over_partitions() -> None:
    assert moments([(1, 1.0), (2, 3.0)]) + moments([(1, 4.0)]) == moments([(1, 1.0), (2, 3.0), (1, 4.0)])


def test_intervals_of_correlated_pages_cover_the_truth_as_often_as_they_say() -> None:
    """400 simulated experiments of 60 sessions whose users differ: page-wise intervals would cover about 60 %."""
    chance = random.Random(5)
    covered = covered_by_page = 0
    for _ in range(400):
        sessions, pages = [], []
        for _ in range(60):
            liking = chance.gauss(1.0, 1.0)
            rewards = [chance.gauss(liking, 0.5) for _ in range(chance.randrange(2, 12))]
            sessions.append((len(rewards), sum(rewards)))
            pages += rewards
        low, high = moments(sessions).ci95 or (0.0, 0.0)
        covered += low <= 1.0 <= high
        low, high = moments([(1, reward) for reward in pages]).ci95 or (0.0, 0.0)
        covered_by_page += low <= 1.0 <= high
    assert 0.91 <= covered / 400 <= 0.98
    assert covered_by_page / 400 < 0.75

import numpy as np
import pytest

from experience.reward import conversions, earned_parts, page_sums, penalties, total
from experience.settings import ExperienceSettings
from headrace.settings import ConfigError, load

KINDS = ("click", "pay", "like")


def floats(*values):
    return np.array(values, np.float32)


def test_feedback_is_summed_over_the_rows_of_each_page():
    clicks, pays = floats(1, 0, 0, 2, 3), floats(0, 0, 0, 0, 1)
    assert page_sums([clicks, pays], np.array([0, 2, 3])).tolist() == [[1, 0], [0, 0], [5, 1]]


def test_each_kind_earns_its_weight_and_a_kind_without_a_weight_earns_nothing():
    parts = earned_parts(np.array([[3, 1, 7], [0, 0, np.inf]], np.float32), KINDS, {"click": 1.0, "pay": 10.0})
    assert parts.tolist() == [[3, 10, 0], [0, 0, 0]]


def test_only_feedback_of_a_converting_kind_is_a_conversion():
    sums = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], np.float32)
    assert conversions(sums, KINDS, ("click", "pay")).tolist() == [True, True, False, False]
    assert conversions(sums, KINDS, ("refund",)).tolist() == [False] * 4


# converted, went on -> penalty for no conversion, penalty for leaving
PENALTIES = [(True, True, 0, 0), (True, False, 0, 0), (False, True, -0.25, 0), (False, False, 0, -1)]


@pytest.mark.parametrize(("converted", "went_on", "no_conversion", "left"), PENALTIES)
def test_a_page_without_conversion_pays_one_penalty_and_one_with_it_none(converted, went_on, no_conversion, left):
    parts = penalties(np.array([converted]), np.array([went_on]), 0.25, 1.0)
    assert [part.tolist() for part in parts] == [[no_conversion], [left]]
    assert not any(np.signbit(part[part == 0]).any() for part in parts)


def test_the_reward_is_bit_for_bit_the_sum_of_its_columns_from_left_to_right():
    rng = np.random.default_rng(7)
    parts = [rng.normal(0, scale, 1000).astype(np.float32) for scale in (1e-3, 1.0, 1e4, 0.1)]
    reward = total(parts)
    assert reward.dtype == np.float32
    assert reward.tolist() == (((parts[0] + parts[1]) + parts[2]) + parts[3]).tolist()
    assert reward.tolist() != np.sum(parts, axis=0, dtype=np.float64).tolist()


WRONG = [
    ({"session_gap_ms": 0}, "experience.session_gap_ms = 0: Input should be greater than or equal to 1"),
    ({"reward_weights": {"click": float("nan")}}, "experience.reward_weights.click = nan: a weight must be a finite number of at most 1e6"),
    ({"reward_weights": {"a,b": 1.0}}, "a kind of feedback must be a name without commas, got 'a,b'"),
    ({"conversion_kinds": []}, "experience.conversion_kinds = []: Tuple should have at least 1 item"),
    ({"penalty_left": -1}, "experience.penalty_left = -1: Input should be greater than or equal to 0"),
    ({"idle_s": 0}, "experience.idle_s = 0: Input should be greater than 0"),
    ({"gap_ms": 1}, "known settings: session_gap_ms, max_session_pages, reward_weights"),
]


@pytest.mark.parametrize(("values", "line"), WRONG)
def test_a_wrong_setting_is_one_line_that_says_what_is_allowed(values, line):
    with pytest.raises(ConfigError) as error:
        load(ExperienceSettings, **values)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("HEADRACE_EXPERIENCE_REWARD_WEIGHTS", '{"click": 2}')
    monkeypatch.setenv("HEADRACE_EXPERIENCE_CONVERSION_KINDS", '["click"]')
    settings = load(ExperienceSettings)
    assert (settings.reward_weights, settings.conversion_kinds) == ({"click": 2.0}, ("click",))

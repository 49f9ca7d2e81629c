import numpy as np
import pytest

from experience.columns import objects
from experience.reward import conversions, earned_parts, penalties, shaped, total
from experience.settings import ExperienceSettings, KindReward, PolicyReward, RewardRule, RewardSettings
from headrace.settings import ConfigError, load

KINDS = ("click", "pay", "like")
RULE = RewardRule(kinds={"click": KindReward(weight=1.0), "pay": KindReward(weight=10.0)})


def floats(*values):
    return np.array(values, np.float32)


def test_feedback_is_summed_over_the_rows_of_each_page_and_a_kind_without_a_weight_earns_nothing():
    labels = [floats(1, 0, 0, 2, 3), floats(0, 0, 0, 0, 1), floats(np.inf, 1, 1, 1, 1)]
    assert earned_parts(labels, KINDS, RULE, np.array([0, 2, 3])).tolist() == [[1, 0, 0], [0, 0, 0], [5, 10, 0]]


# amounts of a page's items, the kind's reward -> what it earns
SHAPES = [
    ((3, 4), KindReward(weight=2.0), 14.0),
    ((3000, 4000), KindReward(weight=2.0, unit=1000.0), 14.0),
    ((3, 4), KindReward(weight=2.0, cap=5.0), 5.0),
    ((3, 4), KindReward(weight=-2.0, cap=5.0), -5.0),
    ((np.e - 1, 0), KindReward(weight=2.0, scale="log"), 2.0),
    ((np.e - 1, np.e - 1), KindReward(weight=1.0, scale="log"), 2.0),
    ((1000 * (np.e**2 - 1),), KindReward(weight=1.0, scale="log", unit=1000.0), 2.0),
    ((-5, 0), KindReward(weight=1.0, scale="log"), 0.0),
    ((1e30,), KindReward(weight=1.0, scale="log", cap=3.0), 3.0),
]


@pytest.mark.parametrize(("amounts", "reward", "earned"), SHAPES)
def test_amounts_are_scaled_by_item_summed_and_capped_by_page(amounts, reward, earned):
    assert shaped(floats(*amounts), reward, np.array([0])).tolist() == pytest.approx([earned], rel=1e-6)


def test_only_feedback_of_a_converting_kind_is_a_conversion():
    labels = [floats(1, 0, 0, 0), floats(0, 1, 0, 0), floats(0, 0, 1, 0)]
    starts = np.arange(4)
    assert conversions(labels, KINDS, RULE, starts).tolist() == [True, True, False, False]
    assert conversions(labels, KINDS, RULE.model_copy(update={"conversion_kinds": ("refund",)}), starts).tolist() == [False] * 4


# converted, went on -> penalty for no conversion, penalty for leaving
PENALTIES = [(True, True, 0, 0), (True, False, 0, 0), (False, True, -0.25, 0), (False, False, 0, -1)]


@pytest.mark.parametrize(("converted", "went_on", "no_conversion", "left"), PENALTIES)
def test_a_page_without_conversion_pays_one_penalty_and_one_with_it_none(converted, went_on, no_conversion, left):
    rewards = RewardSettings(penalty_no_conversion=0.25, penalty_left=1.0)
    parts = penalties(np.array([converted]), np.array([went_on]), objects(["fusion"]), rewards)
    assert [part.tolist() for part in parts] == [[no_conversion], [left]]
    assert not any(np.signbit(part[part == 0]).any() for part in parts)


def test_a_policy_differs_from_the_rule_in_what_it_names():
    rewards = RewardSettings(
        kinds={"click": KindReward(weight=1.0), "pay": KindReward(weight=10.0)},
        penalty_left=1.0,
        penalty_no_conversion=0.25,
        policies={"bold": PolicyReward(kinds={"click": KindReward(weight=3.0)}, penalty_left=0.0)},
    )
    bold = rewards.rule("bold")
    assert (bold.kinds["click"].weight, bold.kinds["pay"].weight, bold.penalty_left, bold.penalty_no_conversion) == (3.0, 10.0, 0.0, 0.25)
    assert rewards.rule("fusion") is rewards
    no = np.zeros(3, np.bool_)
    no_conversion, left = penalties(no, np.array([False, False, True]), objects(["bold", "fusion", "bold"]), rewards)
    assert (no_conversion.tolist(), left.tolist()) == ([0, 0, -0.25], [0, -1, 0])


def test_the_reward_is_bit_for_bit_the_sum_of_its_columns_from_left_to_right():
    rng = np.random.default_rng(7)
    parts = [rng.normal(0, scale, 1000).astype(np.float32) for scale in (1e-3, 1.0, 1e4, 0.1)]
    reward = total(np.stack(parts[:2], axis=1), *parts[2:])
    assert reward.dtype == np.float32
    assert reward.tolist() == (((parts[0] + parts[1]) + parts[2]) + parts[3]).tolist()
    assert reward.tolist() != np.sum(parts, axis=0, dtype=np.float64).tolist()


WRONG = [
    ({"session_gap_ms": 0}, "experience.session_gap_ms = 0: Input should be greater than or equal to 1"),
    ({"reward": {"kinds": {"click": {"weight": float("nan")}}}}, "experience.reward.kinds.click.weight = nan: Input should be"),
    ({"reward": {"kinds": {"a,b": {"weight": 1.0}}}}, "experience.reward.kinds.a,b.[key] = 'a,b': String should match pattern"),
    ({"reward": {"kinds": {"click": {"weight": 1.0, "scale": "root"}}}}, "scale = 'root': Input should be 'linear' or 'log'"),
    ({"reward": {"conversion_kinds": []}}, "experience.reward.conversion_kinds = []: Tuple should have at least 1 item"),
    ({"reward": {"penalty_left": -1}}, "experience.reward.penalty_left = -1: Input should be greater than or equal to 0"),
    ({"reward": {"policies": {"bold": {"penalty": 1}}}}, "experience.reward.policies.bold.penalty: Extra inputs are not permitted"),
    ({"instances": ["td0"]}, "experience.instances.0 = 'td0': String should match pattern"),
    ({"instances": ["mc", "mc"]}, "instances names one twice: mc, mc"),
    ({"idle_s": 0}, "experience.idle_s = 0: Input should be greater than 0"),
    ({"gap_ms": 1}, "known settings: session_gap_ms, max_session_pages, instances"),
]


@pytest.mark.parametrize(("values", "line"), WRONG)
def test_a_wrong_setting_is_one_line_that_says_what_is_allowed(values, line):
    with pytest.raises(ConfigError) as error:
        load(ExperienceSettings, **values)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("HEADRACE_EXPERIENCE_REWARD", '{"kinds": {"click": {"weight": 2}}, "conversion_kinds": ["click"]}')
    monkeypatch.setenv("HEADRACE_EXPERIENCE_REWARD__PENALTY_LEFT", "7")
    reward = load(ExperienceSettings).reward
    assert (reward.kinds["click"].weight, reward.conversion_kinds, reward.penalty_left) == (2.0, ("click",), 7.0)

from experience.settings import ExperienceSettings
from headrace.config import effective
from headrace.policy_settings import PolicySettings
from headrace.settings import load
from headrace.simulate_settings import SimulateSettings
from headrace.users import OBJECTIVES, SimulatedUser
from joiner.settings import JoinerSettings
from serving.user_state.features import StoredFeatures
from serving.user_state.settings import UserStateSettings


def test_every_setting_of_the_demo_is_known_and_allowed(demo_settings: None) -> None:
    from_file = [setting.name for setting in effective() if setting.source.startswith("file ")]
    assert {"policy.action", "policy.features", "joiner.feedback_kinds", "simulate.users"} <= set(from_file)


def test_the_policy_sees_what_the_users_log_and_of_their_items_what_the_user_state_remembers(demo_policy: PolicySettings) -> None:
    remembered = load(UserStateSettings)
    assert remembered.serve
    stored = StoredFeatures(demo_policy.features, remembered.kinds, remembered.recent_items, remembered.horizon_ms).keys
    assert stored == {"click_gap_s", "recent_click", "click_code"}
    logged = [*SimulatedUser(0, 0).state()]
    assert [feature.key for feature in demo_policy.features.read() if feature.key not in stored] == logged[:-1]
    assert logged[-1] == "recent_items"


def test_the_action_weighs_the_scores_of_the_items_and_its_baseline_is_their_plain_sum(demo_policy: PolicySettings) -> None:
    action = demo_policy.action
    assert action.fusion == "weighted_sum"
    assert tuple(dimension.objective for dimension in action.dimensions) == OBJECTIVES
    assert action.baseline == [1.0] * 10


def test_the_demo_joins_nearly_all_of_the_late_feedback(demo_settings: None) -> None:
    users, joiner = load(SimulateSettings), load(JoinerSettings)
    assert joiner.feedback_kinds == ("click",)
    assert set(load(ExperienceSettings).reward.kinds) == {"click"}
    # exponential delays: exp(-4) = 2 % of the late ones come after four means
    assert joiner.join_window_ms >= 4 * users.late_mean_ms + 1000 * users.page_interval_s / 2

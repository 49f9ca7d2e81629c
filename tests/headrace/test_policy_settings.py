import pytest

from headrace.policy_settings import PolicySettings
from headrace.settings import ConfigError, load


def test_the_defaults_are_one_fusion_exponent_around_one() -> None:
    settings = PolicySettings()
    assert (settings.policy, settings.action.baseline, settings.action.size) == ("fusion", [1.0], 1)


def test_the_hash_follows_action_and_features_and_nothing_else() -> None:
    first = PolicySettings()
    assert PolicySettings(policy="other", model_dir="elsewhere").spec_hash == first.spec_hash
    assert PolicySettings(action={"beta": 2.0}).spec_hash != first.spec_hash
    assert PolicySettings(features={"dense": [{"name": "hour"}]}).spec_hash != first.spec_hash


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"policy": "baseline"}, "policy.policy = 'baseline'"),
        ({"policy": "../up"}, "policy.policy = '../up'"),
        ({"features": {}}, "at least one feature"),
        ({"action": {"dimensions": []}}, "policy.action.dimensions"),
    ],
)
def test_a_wrong_policy_is_one_line_that_names_the_setting(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        load(PolicySettings, **wrong)
    assert "\n" not in str(caught.value)


def test_the_action_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_POLICY_ACTION", '{"dimensions": [{"name": "w", "objective": "click", "high": 3.0}]}')
    assert PolicySettings().action.high == [3.0]

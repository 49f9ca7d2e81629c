from pathlib import Path

import pytest

from headrace import users
from headrace.policy_settings import PolicySettings
from headrace.settings import CONFIG_VARIABLE, load

DEMO_TOML = Path(users.__file__).with_name("demo.toml")


@pytest.fixture
def demo_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's settings file is the one in use."""
    monkeypatch.setenv(CONFIG_VARIABLE, str(DEMO_TOML))


@pytest.fixture
def demo_policy(demo_settings: None) -> PolicySettings:
    return load(PolicySettings)

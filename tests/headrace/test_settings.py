"""Where settings come from, and what a wrong one says."""

from pathlib import Path

import pytest

from headrace import config
from headrace.settings import ConfigError, StreamSettings, load


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_CONFIG", raising=False)


def write_toml(text: str) -> None:
    Path("headrace.toml").write_text(text)


def test_the_environment_is_stronger_than_the_file_and_the_file_than_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    write_toml('[stream]\npartitions = 7\ngroup_prefix = "file"')
    monkeypatch.setenv("HEADRACE_STREAM_GROUP_PREFIX", "environment")

    settings = load(StreamSettings)

    assert (settings.group_prefix, settings.partitions, settings.replication_factor) == ("environment", 7, 1)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[stream]\npartitions = 0", r"setting stream\.partitions = 0: Input should be greater than or equal to 1"),
        ('[stream]\npartitions = "x"', r"setting stream\.partitions = 'x': Input should be a valid integer"),
        ("[stream]\npartitons = 3", r"setting stream\.partitons: Extra inputs are not permitted; known settings: broker, "),
        ('[stream]\nbroker = "nowhere"', r"setting stream\.broker = 'nowhere': String should match pattern"),
        ("stream = 3", r"\[stream\] must be a table, got 3"),
        ("[stream", r"headrace\.toml: not a TOML file"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it_and_what_is_allowed(toml: str, message: str) -> None:
    write_toml(toml)

    with pytest.raises(ConfigError, match=message) as raised:
        load(StreamSettings)

    assert "\n" not in str(raised.value)


def test_a_config_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CONFIG", "missing.toml")

    with pytest.raises(ConfigError, match=r"HEADRACE_CONFIG=missing\.toml: No such file"):
        load(StreamSettings)


def test_effective_settings_name_their_sources_and_mask_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    write_toml("[stream]\npartitions = 7")
    monkeypatch.setenv("HEADRACE_MONITOR_WEBHOOK_URL", "https://hooks.example/secret-token")

    settings = {setting.name: setting for setting in config.effective()}

    assert settings["stream.partitions"] == ("stream.partitions", "7", "file headrace.toml")
    assert settings["stream.group_prefix"].source == "default"
    assert settings["monitor.webhook_url"].source == "environment HEADRACE_MONITOR_WEBHOOK_URL"
    assert settings["monitor.webhook_url"].value == '"**********"'


def test_the_reference_lists_every_setting_with_its_variable() -> None:
    page = config.reference()

    for section in config.SECTIONS:
        for name in section.model_fields:
            assert f"| `{name}` | `{config.environment_variable(section, name)}` |" in page

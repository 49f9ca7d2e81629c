"""Simulated users write JSON: they do not start where that would put two formats into one topic."""

import pytest

from headrace.settings import ConfigError, load
from headrace.simulate_settings import SimulateSettings, require_json
from joiner.settings import JoinerSettings


@pytest.mark.parametrize(("name", "value"), [("exposure_format", "avro"), ("feedback_format", "msgpack")])
def test_users_who_write_to_a_topic_of_another_format_are_refused_in_one_line(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as error:
        require_json(load(SimulateSettings, topic_share=0.5), load(JoinerSettings, **{name: value}))
    assert str(error.value).startswith("setting simulate.topic_share = 0.5: these users write JSON to the topics, but")
    assert f"joiner.{name} is '{value}'" in str(error.value)
    assert "\n" not in str(error.value)


def test_users_may_write_json_and_may_send_other_formats_through_the_api() -> None:
    require_json(load(SimulateSettings, topic_share=0.5), load(JoinerSettings))
    require_json(load(SimulateSettings, topic_share=0), load(JoinerSettings, exposure_format="avro", feedback_format="avro"))

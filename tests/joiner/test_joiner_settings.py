"""Settings of the joiner, and what its rows hold."""

import pytest

from headrace.settings import ConfigError, load
from headrace.step import Record
from joiner.rows import pack_records, unpack_records
from joiner.settings import JoinerSettings


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"join_window_ms": 0}, "joiner.join_window_ms = 0"),
        ({"feedback_kinds": ()}, "joiner.feedback_kinds = ()"),
        ({"feedback_kinds": ("click", "leave")}, "must not name 'leave'"),
        ({"feedback_kinds": ("click", "click")}, "names a kind twice"),
        ({"feedback_kinds": ("a,b",)}, "joiner.feedback_kinds.0 = 'a,b'"),
        ({"idle_s": 0}, "joiner.idle_s = 0"),
        ({"max_event_bytes": 10}, "joiner.max_event_bytes = 10"),
        ({"window": 1}, "known settings: join_window_ms, "),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(JoinerSettings, **wrong)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", [[b""], [b"", b"x", b""], [b"a" * 70_000, b"\x00\xff"]])
def test_packed_records_come_back_as_they_were(values: list[bytes]) -> None:
    packed = [Record(2**40 + 3 * place, 2**41 - place, value) for place, value in enumerate(values)]
    assert unpack_records(pack_records(packed)) == packed

"""What a worker writes into its log."""

import logging

import pytest

from headrace.worker import OncePerKind


@pytest.mark.parametrize(
    ("name", "line", "at_s", "written"),
    [("aiokafka", 1, 1029.9, False), ("aiokafka", 1, 1030.0, True), ("aiokafka", 2, 1000.1, True), ("headrace.stage", 1, 1000.1, True)],
)
def test_what_aiokafka_repeats_is_written_once_in_half_a_minute(name: str, line: int, at_s: float, written: bool) -> None:
    once = OncePerKind()

    def passes(name: str, line: int, at_s: float) -> bool:
        record = logging.LogRecord(name, logging.ERROR, "client.py", line, "no broker", None, None)
        record.created = at_s
        return once.filter(record)

    assert passes("aiokafka", 1, 1000.0)
    assert passes(name, line, at_s) == written

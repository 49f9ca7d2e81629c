"""Goes on trying what a store refused for a while."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from headrace.settings import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_WAIT_S = 30.0
QUIET_S = 60.0
"""An outage is logged when it begins, and once in so many seconds."""


class Abandoned(Exception):
    """The partition is another worker's now: what was being done for it has no purpose any more."""


def waits_s() -> Iterator[float]:
    """How long to wait before the second, third, ... attempt."""
    wait_s = 0.5
    while True:
        yield wait_s
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def persist(
    operation: Callable[[], T],
    explain: Callable[[Exception], ConfigError | None],
    patience_s: float,
    abandoned: threading.Event,
    on_failure: Callable[[], None] = lambda: None,
) -> T:
    """The operation's result, however often that takes.

    `explain` gives the line for a person where trying again has no use. Raises it, Abandoned, or what came last after `patience_s`.
    A missing file is an answer, no failure.
    """
    start_s = quiet_until_s = time.monotonic()
    for wait_s in waits_s():
        try:
            return operation()
        except FileNotFoundError:
            raise
        except (OSError, RuntimeError) as error:  # what pyarrow's file systems raise, and fsspec for what a name node refuses
            if (explained := explain(error)) is not None:
                raise explained from error
            now_s = time.monotonic()
            if now_s + wait_s - start_s > patience_s:
                raise
            on_failure()
            if now_s >= quiet_until_s:
                quiet_until_s = now_s + QUIET_S
                log.warning("the sink's target fails, trying again: %s", one_line(error))
        if abandoned.wait(wait_s):
            raise Abandoned
    raise AssertionError  # waits never end


def one_line(error: BaseException) -> str:
    """An error's text without line breaks, not endless."""
    return " ".join(str(error).split())[:300]

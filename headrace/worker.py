"""Runs a service's Faust application as this process: signals, logging, exit code."""

import gc
import logging
import logging.config
import time

import faust

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
GC_THRESHOLDS = 100_000, 50, 100
"""Batches of thousands of records make objects by the hundred thousand that no cycle holds: with Python's own thresholds of
(700, 10, 10) the collector took a third of the joiner's CPU, walking what lives as long as the process."""
REPEAT_S = 30.0
"""aiokafka says 70 lines a second while a broker is away: of each kind, one in so many seconds is written."""


class OncePerKind(logging.Filter):
    """Lets a message of aiokafka through unless one from the same place in its code came less than `REPEAT_S` ago."""

    def __init__(self) -> None:
        super().__init__()
        self._written_s: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place = record.pathname, record.lineno
        if not record.name.startswith("aiokafka") or record.created - self._written_s.get(place, 0.0) >= REPEAT_S:
            self._written_s[place] = record.created
            return True
        return False


def configure_logging(level: str) -> None:
    """One line an event on standard error, in UTC. Faust's own chatter starts at WARNING unless `level` is DEBUG."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(level=level, format=LOG_FORMAT, force=True)
    for handler in logging.root.handlers:
        handler.addFilter(OncePerKind())
    if level != "DEBUG":
        # The last two are Faust's, under our names.
        for name in ("faust", "mode", "aiokafka", "aiohttp.access", "headrace.transport", "headrace.group_member"):
            logging.getLogger(name).setLevel(logging.WARNING)


def run(app: faust.App, log_level: str) -> None:
    """Run until SIGTERM or SIGINT, then stop gracefully. Does not return: it exits with the worker's code."""
    configure_logging(log_level)
    app.conf.datadir.mkdir(parents=True, exist_ok=True)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    worker = app.Worker(loglevel=log_level, redirect_stdouts=False, override_logging=False, quiet=True)
    worker.spinner = None  # it would write cursor codes into the log
    worker.execute_from_commandline()

"""Runs a service's Faust application as this process: signals, logging, exit code."""

import logging
import logging.config
import time

import faust

from headrace.settings import ConfigError

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(level: str) -> None:
    """One line an event on standard error, in UTC. Faust's own chatter starts at WARNING unless `level` is DEBUG."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(level=level, format=LOG_FORMAT, force=True)
    if level != "DEBUG":
        for name in ("faust", "mode", "aiokafka", "aiohttp.access"):
            logging.getLogger(name).setLevel(logging.WARNING)


def run(app: faust.App, log_level: str) -> None:
    """Run until SIGTERM or SIGINT, then stop gracefully. Does not return: it exits with the worker's code."""
    configure_logging(log_level)
    try:
        app.conf.datadir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write state in {app.conf.datadir}: {error.strerror}; set stream.state_dir to a folder of your own"
        ) from error
    worker = app.Worker(loglevel=log_level, redirect_stdouts=False, override_logging=False, quiet=True)
    worker.execute_from_commandline()

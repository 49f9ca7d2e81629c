"""`headrace simulate`: a crowd of simulated users for some minutes, with a metrics page, and what it counted at the end."""

import asyncio
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server

from headrace.crowd import Crowd
from headrace.settings import ConfigError
from headrace.simulate_settings import SimulateSettings
from headrace.user_counts import UserCounts

PROGRESS_INTERVAL_S = 5.0


def simulate(
    settings: SimulateSettings, *, broker: str, minutes: float, seed: int, metrics_port: int | None, max_event_bytes: int
) -> dict[str, Any]:
    """Let users live for `minutes` (0: without end), or until SIGINT or SIGTERM, and return what they counted.

    `max_event_bytes` is what the joiner takes: some bad events are larger on purpose. Raises ConfigError where the port is taken.
    """
    start_s, start_cpu_s = time.monotonic(), _cpu_s()
    with asyncio.Runner() as runner:
        counts = runner.run(live(settings, broker, minutes, seed, metrics_port, max_event_bytes))
    return counts.summary(time.monotonic() - start_s, _cpu_s() - start_cpu_s)


async def live(
    settings: SimulateSettings, broker: str, minutes: float, seed: int, metrics_port: int | None, max_event_bytes: int
) -> UserCounts:
    """The run itself, on the running event loop of the main thread."""
    run_id = f"{time.time_ns() // 1_000_000:x}"
    crowd = Crowd(settings, seed, run_id, broker, max_event_bytes)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, crowd.stop.set)
    if minutes:
        loop.call_later(60 * minutes, crowd.stop.set)
    with _metrics_page(crowd.counts, metrics_port):
        progress = asyncio.create_task(_show_progress(crowd.counts))
        try:
            await crowd.run()
        finally:
            progress.cancel()
    return crowd.counts


@contextmanager
def _metrics_page(counts: UserCounts, port: int | None) -> Iterator[None]:
    """Serve /metrics of the counts; not at all where no port is given."""
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(counts)
    try:
        server, thread = start_http_server(port, "127.0.0.1", registry)
    except OSError as error:
        raise ConfigError(f"--metrics-port {port}: {error.strerror}; name another one") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def _show_progress(counts: UserCounts) -> None:
    """A line on standard error now and then."""
    start_s, before = time.monotonic(), 0
    while True:
        await asyncio.sleep(PROGRESS_INTERVAL_S)
        pages = counts.pages.total()
        arms = "  ".join(f"{name} {reward.mean:.2f}" for name, reward in sorted(counts.rewards.items()))
        print(
            f"{time.monotonic() - start_s:6.0f} s  {counts.at_work} users  {pages:,} pages ({(pages - before) / PROGRESS_INTERVAL_S:.0f}/s)"
            f"  {counts.feedback.total():,} feedback  {counts.errors.total():,} errors  clicks a page: {arms or 'none yet'}",
            file=sys.stderr,
            flush=True,
        )
        before = pages


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

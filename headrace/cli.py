"""The command line. Each command imports what it needs when it runs: `headrace --help` stays quick."""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from headrace.feature_commands import app as features_app
from headrace.json_file import write_json
from headrace.settings import ConfigError, StreamSettings, load

if TYPE_CHECKING:
    from headrace.policy_settings import PolicySettings
    from serving.versions import ModelStore

BrokerKind = Annotated[
    str, typer.Option("--broker", help="embedded, kafka (the distribution in KAFKA_HOME), or HOST:PORT of one that runs")
]
BenchBroker = Annotated[
    Literal["embedded", "kafka"] | None,
    typer.Option("--broker", help="by default kafka where KAFKA_HOME names a distribution, else embedded"),
]
JsonFile = Annotated[str | None, typer.Option("--json", metavar="FILE", help="write the report as JSON; - for standard output")]
Service = Literal["joiner", "experience", "trainer", "monitor", "controller", "sink", "user-state"]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], typer.Option("--log-level")]

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST)
"""What a folder or a disk answers that is full, or not ours to write to. (A reader of our output that went is Typer's: exit code 1.)"""

app = typer.Typer(
    name="headrace",
    help="A streaming online-learning pipeline for recommendation: exposures and feedback in, a policy that is always fresh out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
versions_app = typer.Typer(help="List, promote, pin and roll back the versions of the policy.", no_args_is_help=True)
app.add_typer(versions_app, name="versions")
app.add_typer(features_app, name="features")
bench_app = typer.Typer(help="Speed, measured beside a peer in the same run.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")


@app.command()
def demo(
    minutes: Annotated[float, typer.Option(min=0.5, max=1440, help="how long the simulated users stay")] = 3.0,
    broker: BrokerKind = "embedded",
    seed: Annotated[int, typer.Option(min=0, help="of users, exploration and learner")] = 0,
    json_file: JsonFile = None,
    folder: Annotated[Path, typer.Option("--dir", help="where the run's logs, state and models go")] = Path("var/demo"),
) -> None:
    """Run the whole loop on this machine: broker, workers, controller, serving, simulated users; a live view, then a report."""
    from headrace.demo import run_demo

    raise typer.Exit(run_demo(minutes, broker, seed, json_file, folder))


@app.command(name="broker")
def broker_command(
    kind: Annotated[Literal["embedded", "kafka"], typer.Option(help="embedded (memory only), or kafka from KAFKA_HOME")] = "embedded",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 9092,
    folder: Annotated[Path, typer.Option("--dir", help="where its log (and Kafka's data) go")] = Path("var/broker"),
) -> None:
    """Run a broker in the foreground and create the topics; Ctrl-C ends it."""
    from headrace import broker as brokers

    brokers.require_free_port(port, "--port")
    with brokers.running(kind, folder, port) as running:
        created = brokers.create_topics(load(StreamSettings, broker=running.address))
        typer.echo(f"{kind} broker at {running.address}, topics {', '.join(created)}, log {running.log_file}", err=True)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: stop.set())
        while not stop.wait(0.5):
            if not running.alive():
                raise ConfigError(f"the broker ended by itself: see {running.log_file}")


@app.command()
def topics() -> None:
    """Create the topics that are missing on the broker."""
    from headrace import broker as brokers

    settings = load(StreamSettings)
    brokers.require(settings.broker)
    created = brokers.create_topics(settings)
    typer.echo(f"created {', '.join(created)}" if created else "all topics stand already")


@app.command()
def worker(
    service: Annotated[Service, typer.Argument(help="which service")],
    web_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="port of /metrics; by default 6066 to 6072, in the order above")
    ] = None,
    log_level: LogLevel = "INFO",
) -> None:
    """Run one worker of a service until it is told to stop. Start as many as there are partitions, each with its own state folder."""
    from headrace.services import run_service

    run_service(service, web_port, log_level)


@app.command()
def serve(log_level: LogLevel = "INFO") -> None:
    """Run the serving API: /v1/act, /v1/rank, /v1/events, /healthz, /readyz, /metrics."""
    from headrace.services import run_serving

    run_serving(log_level)


@app.command()
def simulate(
    minutes: Annotated[float, typer.Option(min=0, help="how long they stay; 0: until Ctrl-C")] = 3.0,
    seed: Annotated[int, typer.Option(min=0, help="of users and their choices")] = 0,
    api: Annotated[str | None, typer.Option(help="address of the serving API; by default simulate.api")] = None,
    metrics_port: Annotated[int | None, typer.Option(min=1, max=65535, help="port of a /metrics page; none by default")] = None,
    json_file: JsonFile = None,
) -> None:
    """Send simulated users to a running system: they ask the API for pages, click, and send exposures and feedback."""
    from headrace import broker as brokers
    from headrace.simulate import simulate as run_users
    from headrace.simulate_settings import SimulateSettings, require_json
    from joiner.settings import JoinerSettings

    settings = load(SimulateSettings, **({} if api is None else {"api": api}))
    joiner = load(JoinerSettings)
    require_json(settings, joiner)
    limit = joiner.max_event_bytes
    broker = load(StreamSettings).broker
    brokers.require(broker)
    counts = run_users(settings, broker=broker, minutes=minutes, seed=seed, metrics_port=metrics_port, max_event_bytes=limit)
    write_json(json_file, counts)
    raise typer.Exit(0 if counts["pages"] else 1)


@app.command()
def replay(
    path: Annotated[Path, typer.Argument(help="the recorded log: a file, or a folder of them")],
    log_format: Annotated[
        Literal["kuairand", "taobao", "ndjson"], typer.Option("--format", help="how the log is written (docs/replay.md)")
    ],
    out: Annotated[Path, typer.Option(help="folder for samples, transitions, the policy and report.json")],
    seed: Annotated[int, typer.Option(min=0, help="of the learner")] = 0,
    force: Annotated[bool, typer.Option(help="replace what --out holds")] = False,
    json_file: JsonFile = None,
) -> None:
    """Put a recorded log through the same steps in one process, in event-time order: samples, transitions, a trained policy, a report."""
    from headrace.replay import replay_command

    write_json(json_file, replay_command(path, log_format, out, seed=seed, force=force))


@app.command()
def transitions(
    uri: Annotated[str, typer.Argument(help="the samples that the sink wrote: a folder, s3://, webhdfs:// (as sink.uri)")],
    out: Annotated[Path, typer.Option(help="folder for the transitions, as Parquet files")],
    json_file: JsonFile = None,
) -> None:
    """Build transitions from the Parquet samples of months, by the live collector's code: for pre-training and back-tests."""
    from rich.console import Console

    from experience.settings import ExperienceSettings
    from headrace.transitions import transitions_command
    from joiner.sink.settings import SinkSettings

    counts = transitions_command(uri, out, load(ExperienceSettings), load(SinkSettings).storage, Console(stderr=True))
    typer.echo(", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())))
    write_json(json_file, counts)


@app.command()
def tap(
    topic: Annotated[str, typer.Argument(help="exposures, feedback, samples, transitions, policies, alerts or dead-letters")],
    follow: Annotated[bool, typer.Option("--follow/--from-start", help="only what comes from now on, or everything that is there")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="stop after so many lines")] = None,
    idle_s: Annotated[
        float | None, typer.Option(min=0.1, help="stop when nothing came for so long; never with --follow, unless given")
    ] = None,
) -> None:
    """Print a topic as JSON lines, whatever its format: record batches row by row, unopened messages opened."""
    from headrace import broker as brokers
    from headrace.tap import tap as tapped
    from joiner.input_format import event_formats
    from joiner.settings import JoinerSettings

    settings, formats = load(StreamSettings), event_formats(load(JoinerSettings))
    brokers.require(settings.broker)
    for line in tapped(settings, formats, topic, not follow, limit, idle_s if idle_s is not None or follow else 3.0):
        typer.echo(line)


@app.command()
def state(
    service: Annotated[Literal["joiner", "experience", "monitor", "user-state"], typer.Argument(help="whose state")],
    json_file: JsonFile = None,
) -> None:
    """Show what a service's state on this disk holds: sizes, offsets, counts; of the joiner its watermark and what is open.

    It only reads, beside a running worker or without one; where a broker answers, it shows the lag, too.
    """
    from headrace.state import read_state
    from headrace.state_table import show

    report = read_state(service, load(StreamSettings))
    write_json(json_file, report)
    if json_file != "-":
        show(report)


@app.command()
def config(reference: Annotated[bool, typer.Option(help="the reference of all settings, as Markdown")] = False) -> None:
    """Print the effective settings and where each comes from; secrets are masked."""
    from rich.console import Console
    from rich.table import Table

    from headrace import config as configuration

    if reference:
        typer.echo(configuration.reference())
        return
    settings = list(configuration.effective())
    if not sys.stdout.isatty():
        for setting in settings:
            typer.echo(f"{setting.name} = {setting.value}  # {setting.source}")
        return
    table = Table("setting", "value", "source", box=None)
    for setting in settings:
        table.add_row(setting.name, setting.value, setting.source)
    Console().print(table)


@app.command()
def doctor() -> None:
    """Check this machine, the settings and the broker; say what is missing and what to do."""
    from headrace.doctor import examine

    failed = 0
    for finding in examine():
        failed += finding.required and not finding.holds
        mark, colour = (
            ("ok", typer.colors.GREEN) if finding.holds else ("missing", typer.colors.RED if finding.required else typer.colors.YELLOW)
        )
        typer.echo(f"{typer.style(mark, fg=colour):>7}  {finding.check}: {finding.detail}")
    raise typer.Exit(1 if failed else 0)


@app.command()
def schemas(folder: Annotated[Path, typer.Argument(help="where the files go")] = Path("docs/schemas")) -> None:
    """Write the JSON Schema of every message, and the columns of the record batches."""
    from schemas.export import export

    for path in export(folder):
        typer.echo(str(path))


@versions_app.command(name="list")
def versions_list(json_file: JsonFile = None) -> None:
    """Every version in the model store, newest first: what it is, what it learned from, what the gate made of it."""
    from rich.console import Console
    from rich.table import Table

    from serving.commands import list_versions

    rows = list_versions(_model_store()[0])
    write_json(json_file, [row._asdict() for row in rows])
    if json_file == "-":
        return
    table = Table("status", box=None)
    table.add_column("version", no_wrap=True)
    for name in ("learned from", "advantage", "of random actions", "reasons"):
        table.add_column(name, justify="left" if name == "reasons" else "right")
    for row in rows:
        advantage = "" if row.advantage is None else f"{row.advantage:.3f} ± {row.advantage_se or 0:.3f}"
        random = "" if row.random_advantage is None else f"{row.random_advantage:.3f}"
        learned = "" if row.transitions_learned is None else f"{row.transitions_learned:,}"
        table.add_row(row.status, row.model_version, learned, advantage, random, row.reasons)
    Console().print(table if rows else "no versions yet")


@versions_app.command(name="promote")
def versions_promote(model_version: Annotated[str, typer.Argument(help="a version of `headrace versions list`")]) -> None:
    """Serve a version that the gate has not promoted; it must load and answer as its trainer says."""
    from serving.commands import promote

    store, policy = _model_store()
    typer.echo(f"promoted {promote(store, policy, model_version, _now_ms()).model_version}")


@versions_app.command(name="rollback")
def versions_rollback(why: Annotated[str, typer.Option(help="kept in the history")] = "rolled back by a person") -> None:
    """Serve the version before the current one, or the baseline; the gate never promotes the one left again."""
    from serving.commands import rollback

    typer.echo(f"now served: {rollback(_model_store()[0], why, _now_ms()).model_version or 'the baseline'}")


@versions_app.command(name="pin")
def versions_pin(model_version: Annotated[str, typer.Argument(help="a version; empty for the baseline")]) -> None:
    """Serve this version until `unpin`, whatever the gate says."""
    from serving.commands import pin

    store, policy = _model_store()
    typer.echo(f"pinned {pin(store, policy, model_version, _now_ms()).model_version or 'the baseline'}")


@versions_app.command(name="unpin")
def versions_unpin() -> None:
    """Let the gate promote again."""
    from serving.commands import unpin

    typer.echo(f"unpinned; now served: {unpin(_model_store()[0], _now_ms()).model_version or 'the baseline'}")


def _model_store() -> tuple["ModelStore", "PolicySettings"]:
    from headrace.policy_settings import PolicySettings
    from serving.commands import open_store

    policy = load(PolicySettings)
    return open_store(policy), policy


def _now_ms() -> int:
    return int(time.time() * 1000)


@bench_app.command(name="joiner")
def bench_joiner(
    events: Annotated[int, typer.Option(min=1000, help="exposed items")] = 300_000,
    rounds: Annotated[int, typer.Option(min=1, help="alternating rounds; medians are reported")] = 3,
    broker: BenchBroker = None,
    json_file: JsonFile = None,
) -> None:
    """The joiner broker to broker, beside a bare confluent-kafka + orjson + dict loop and Bytewax. Exits with 1 where a label is wrong."""
    from benchmarks.joiner import broker_kind, has_faults, main
    from benchmarks.joiner_table import show

    report = main(events, rounds, broker_kind(broker))
    show(report)
    write_json(json_file, report)
    if has_faults(report):
        raise typer.Exit(1)


@bench_app.command(name="joiner-state")
def bench_joiner_state(
    items: Annotated[int, typer.Option(min=1000, help="open items")] = 5_000_000,
    broker: BenchBroker = None,
    json_file: JsonFile = None,
) -> None:
    """The joiner with millions of open items: memory, and restarts to the first output. Exits with 1 where a sample is wrong."""
    from benchmarks.joiner import broker_kind, has_faults
    from benchmarks.joiner_state import main, show

    report = main(items, broker_kind(broker))
    show(report)
    write_json(json_file, report)
    if has_faults(report):
        raise typer.Exit(1)


@bench_app.command(name="open-items")
def bench_open_items(
    levels: Annotated[list[int] | None, typer.Option("--level", min=1000, help="open items; by default 1e5, 1e6, 5e6, 1e7")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="write an SVG picture")] = None,
    json_file: JsonFile = None,
) -> None:
    """What an event costs the joiner's step and store by the number of open items."""
    from benchmarks.open_items import LEVELS, main, show
    from benchmarks.open_items_plot import svg

    report = main(sorted(levels or LEVELS))
    show(report)
    write_json(json_file, report)
    if plot is not None:
        plot.write_text(svg(report["levels"], "the joiner's step and store: CPU us an event, as many items close as open"))


@bench_app.command(name="experience")
def bench_experience(
    samples: Annotated[int, typer.Option(min=10_000, help="in pages of ten items")] = 1_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="alternating rounds; medians are reported")] = 3,
    sessions: Annotated[int, typer.Option(min=10_000, help="open sessions of which memory is measured")] = 200_000,
    json_file: JsonFile = None,
) -> None:
    """The experience collector with durable state, beside a polars group-by of the same log. Exits with 1 where they differ."""
    from rich.console import Console

    from benchmarks.experience import main, show
    from headrace.transitions import build

    try:
        report = main(samples, rounds, sessions, lambda data, settings, out: build(data, settings, out, Console(quiet=True)))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    show(report)
    write_json(json_file, report)
    if report["mismatches"]:
        raise typer.Exit(1)


@bench_app.command(name="experience-latency")
def bench_experience_latency(
    users: Annotated[int, typer.Option(min=10, help="with one session each")] = 1_000,
    minutes: Annotated[int, typer.Option(min=1, help="in which the sessions begin")] = 30,
    json_file: JsonFile = None,
) -> None:
    """How long after its page a transition leaves, `complete` and `early`. Exits with 1 where the two do not end up alike."""
    from benchmarks.experience_latency import main, show

    report = main(users, minutes)
    show(report)
    write_json(json_file, report)
    if report["mismatches"]:
        raise typer.Exit(1)


@bench_app.command(name="join")
def bench_join(
    events: Annotated[int, typer.Option(min=1000, help="exposures")] = 300_000,
    rounds: Annotated[int, typer.Option(min=1, help="alternating rounds; medians are reported")] = 3,
    json_file: JsonFile = None,
) -> None:
    """The joiner's pure step in memory, beside a bare orjson + dict loop: quick to run, and to profile."""
    from benchmarks.join_in_memory import main as bench
    from benchmarks.join_in_memory import show

    report = bench(events=events, rounds=rounds)
    show(report)
    write_json(json_file, report)


@bench_app.command(name="formats")
def bench_formats(
    events: Annotated[int, typer.Option(min=1000, help="exposures")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, help="alternating rounds; medians are reported")] = 3,
    json_file: JsonFile = None,
) -> None:
    """The join of JSON, MessagePack and Avro events in memory, beside the plain decoder of each."""
    from benchmarks.formats import main as bench
    from benchmarks.formats import show

    report = bench(exposures=events, rounds=rounds)
    show(report)
    write_json(json_file, report)


@bench_app.command(name="sink")
def bench_sink(
    rows: Annotated[int, typer.Option(min=1000, help="of pages with one item; then as many of pages with ten")] = 1_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="alternating rounds; medians are reported")] = 3,
    json_file: JsonFile = None,
) -> None:
    """Samples from a broker into local Parquet files, beside a bare confluent-kafka + ParquetWriter loop."""
    from benchmarks.sink import main as bench
    from benchmarks.sink import show
    from headrace.broker import free_port

    report = bench(rows=rows, rounds=rounds, start_broker=_broker_with_topics, web_port=free_port())
    show(report)
    write_json(json_file, report)


@bench_app.command(name="state")
def bench_state(
    rounds: Annotated[int, typer.Option(min=1, help="alternating rounds; medians are reported")] = 5,
    ids: Annotated[int, typer.Option(min=10_000, help="of the table with a cold tail on disk")] = 10_000_000,
    json_file: JsonFile = None,
) -> None:
    """States, from payload to code, normaliser and dynamic embeddings, each beside a peer. Exits with 1 where a way gives other tensors."""
    from benchmarks.state import main as bench
    from benchmarks.state import show

    report = bench(rounds, ids)
    show(report)
    write_json(json_file, report)
    if report["faults"]:
        raise typer.Exit(1)


@contextmanager
def _broker_with_topics(folder: Path, partitions: int) -> Iterator[str]:
    from headrace import broker as brokers

    with brokers.running("embedded", folder) as running:
        brokers.create_topics(load(StreamSettings, broker=running.address, partitions=partitions))
        yield running.address


@bench_app.command(name="delay")
def bench_delay(
    logs: Annotated[Path, typer.Option("--logs", help="a KuaiRand log, as `headrace replay` reads it")],
    seeds: Annotated[int, typer.Option(min=1, help="of the model, the order of its rows, and drawn delays")] = 3,
    delays: Annotated[Literal["all", "real", "stretched", "drawn"], typer.Option(help="the log's own, or one of the variants")] = "all",
    exposures: Annotated[int | None, typer.Option(min=1000, help="only the first so many")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="write an SVG picture")] = None,
    json_file: JsonFile = None,
) -> None:
    """The emission modes and the losses for delayed feedback, side by side: one model, taught online by what the joiner sends."""
    from benchmarks.delay_plot import svg
    from benchmarks.delayed_feedback import VARIANTS, show
    from benchmarks.delayed_feedback import main as bench

    report = bench(logs, seeds, [*VARIANTS] if delays == "all" else [delays], exposures)
    show(report)
    write_json(json_file, report)
    if plot is not None:
        plot.write_text(svg(report))


def main() -> None:
    """Run the command line: a wrong setting, and a disk or folder that refuses, is one line and exit code 2."""
    try:
        app()
    except ConfigError as error:
        typer.secho(f"headrace: {error}", err=True, fg=typer.colors.RED)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        place = "standard output" if error.filename is None else error.filename
        typer.secho(
            f"headrace: cannot write to {place}: {error.strerror}; free space there, or name another place", err=True, fg=typer.colors.RED
        )
        os._exit(2)  # without the flush at exit, which would fail once more

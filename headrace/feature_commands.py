"""`headrace features`: the specification as a table, and beside a log."""

from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import typer

from headrace.json_file import write_json
from headrace.settings import ConfigError, load

app = typer.Typer(help="The feature specification: as a table, and beside a real log.", no_args_is_help=True)


@app.command()
def table() -> None:
    """Print the specification in use as a Markdown table."""
    from headrace.feature_picture import markdown_table
    from headrace.policy_settings import PolicySettings

    typer.echo(markdown_table(load(PolicySettings).features))


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="the recorded log: a file, or a folder of them")],
    log_format: Annotated[
        Literal["kuairand", "taobao", "ndjson"], typer.Option("--format", help="how the log is written (docs/replay.md)")
    ],
    pages: Annotated[int | None, typer.Option(min=1, help="look at the first so many only")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="write an SVG picture, a panel a feature")] = None,
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE", help="write the report as JSON; - for standard output")] = None,
) -> None:
    """Measure each feature on a log: coverage, range, cardinality, skew. Exits with 1 where one is refused, or there nowhere."""
    from rich.console import Console

    from headrace.feature_check import FeatureCheck, has_faults
    from headrace.feature_picture import show, svg
    from headrace.logs.recorded_log import find_files
    from headrace.replay import FORMATS, replay_settings
    from schemas.topics import EXPOSURES

    chosen = FORMATS[log_format]
    files = find_files(path, chosen.file_patterns)
    settings = replay_settings(chosen, Path())
    console = Console(stderr=json_file == "-")
    with console.status(f"reading {path}"):
        log = chosen.read(files, settings.joiner.join_window_ms)
        measured = FeatureCheck(settings.policy.features)
        measured.add(islice((event.value for event in log.events() if event.topic == EXPOSURES), pages))
    report = measured.report()
    if not report["states"]:
        raise ConfigError(f"{path} holds no exposure that can be read")
    show(report, console)
    write_json(json_file, report)
    if plot is not None:
        plot.write_text(svg(report))
    raise typer.Exit(1 if has_faults(report) else 0)

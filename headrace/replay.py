"""`headrace replay`: a recorded log through the production steps in one process, in event-time order; a policy and a report.

What lies in the folder afterwards depends on the log, the settings and the seed alone: the clock of the steps is the log's newest
event, and how long things took is told to the terminal only.
"""

import time
from pathlib import Path
from typing import Any, TypeVar

from pydantic_settings import EnvSettingsSource
from rich.console import Console

from experience.settings import ExperienceSettings
from headrace import replay_folder
from headrace.logs import kuairand, ndjson, taobao
from headrace.logs.recorded_log import LogFormat, find_files
from headrace.policy_settings import PolicySettings
from headrace.replay_report import show_report
from headrace.replay_run import WORK, ReplayRun, ReplaySettings
from headrace.settings import ConfigError, Section, load, toml_section
from joiner.settings import JoinerSettings
from trainer.settings import TrainerSettings

FORMATS: dict[str, LogFormat] = {log_format.name: log_format for log_format in (kuairand.FORMAT, taobao.FORMAT, ndjson.FORMAT)}
TRAINER_DEFAULTS: dict[str, Any] = {
    # A live trainer waits for 1,000 pages before its first version; a log is whole, and may be small.
    "min_transitions": 100,
    # 0.02 steps of 256 pages: each page is seen about five times. Live, 0.1 buys freshness; here it would only cost minutes.
    "steps_per_transition": 0.02,
}

S = TypeVar("S", bound=Section)


def replay_command(
    path: Path, log_format: str, out: Path, *, seed: int = 0, force: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Replay a log into `out`, show its progress and the report, and give the report. Raises ConfigError with one line."""
    console = console or Console(stderr=True)
    began_s = time.monotonic()
    if log_format not in FORMATS:
        raise ConfigError(f"--format {log_format!r}: expected one of {', '.join(FORMATS)}")
    chosen = FORMATS[log_format]
    replay_folder.check_is_free(out, force)
    if path.exists() and out.exists() and path.samefile(out):
        raise ConfigError(f"--out {out} is the log's own folder: name another one")
    files = find_files(path, chosen.file_patterns)
    settings = replay_settings(chosen, out)
    with console.status(f"reading {path}"):
        log = chosen.read(files, settings.joiner.join_window_ms)
    if not log.rows_in:
        raise ConfigError(f"empty log: {path}")
    with replay_folder.replay_folder(out) as folder:
        report = ReplayRun(log, settings, folder, seed).run(chosen.name, console)
    show_report(report, console, time.monotonic() - began_s)
    return report


def replay_settings(log_format: LogFormat, out: Path) -> ReplaySettings:
    """The effective settings: environment, else TOML file, else what fits the format, else the sections' own defaults."""
    fitting = log_format.defaults
    settings = ReplaySettings(
        joiner=with_defaults(JoinerSettings, fitting.get("joiner", {})),
        experience=with_defaults(ExperienceSettings, fitting.get("experience", {})),
        trainer=with_defaults(TrainerSettings, {**TRAINER_DEFAULTS, **fitting.get("trainer", {})}),
        policy=with_defaults(PolicySettings, fitting.get("policy", {}), model_dir=out / replay_folder.POLICY / WORK),
    )
    learned_from, instances = settings.trainer.instance, settings.experience.instances
    if learned_from not in instances:
        raise ConfigError(f"setting trainer.instance = {learned_from!r}: none of experience.instances, {', '.join(instances)}")
    return settings


def with_defaults(section: type[S], defaults: dict[str, Any], **overrides: Any) -> S:
    """A section's settings where `defaults` stand in for the section's own: environment and TOML file win over them."""
    given = {*EnvSettingsSource(section)(), *toml_section(section.section)}
    return load(section, **{**{name: value for name, value in defaults.items() if name not in given}, **overrides})

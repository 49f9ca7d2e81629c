"""Where `--json FILE` goes."""

import json
import sys
from pathlib import Path

from headrace.settings import ConfigError


def write_json(target: str | None, report: object) -> None:
    """Write a report to a file, or to standard output for `-`; None writes nothing."""
    if target is None:
        return
    text = json.dumps(report, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).write_text(text)
    except OSError as error:
        raise ConfigError(f"--json {target}: {error.strerror}") from error

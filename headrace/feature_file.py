"""A feature specification in a file of its own: TOML, one table a feature. What is wrong in it is said with its line."""

import tomllib
from pathlib import Path

from pydantic import ValidationError

from headrace.settings import ConfigError
from headrace.toml_line import toml_line
from schemas.features import FeatureSpec


def read_feature_file(path: Path) -> FeatureSpec:
    """The specification. Raises ConfigError: one line with the place of the first fault, and what is allowed."""
    try:
        text = path.read_text(encoding="utf-8")
        return FeatureSpec.model_validate(tomllib.loads(text))
    except OSError as error:
        raise ConfigError(f"feature file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"feature file {path}: not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        line = toml_line(text, first["loc"])
        name = ".".join(map(str, first["loc"]))
        value = f" = {first['input']!r:.80}" if not isinstance(first["input"], dict) else ""
        place = f"{path} line {line}: {name}{value}" if line else f"{path}"
        known = (
            f"; known are {', '.join(FeatureSpec.model_fields)}" if first["type"] == "extra_forbidden" and len(first["loc"]) == 1 else ""
        )
        raise ConfigError(f"{place}: {first['msg'].removeprefix('Value error, ')}{known}") from error

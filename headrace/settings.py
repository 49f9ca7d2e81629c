"""Settings: defaults < TOML file < environment. One class a section; a wrong value is one line that says what is allowed."""

import os
import tomllib
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from headrace.toml_line import toml_line

CONFIG_VARIABLE = "HEADRACE_CONFIG"
DEFAULT_CONFIG = "headrace.toml"


class ConfigError(ValueError):
    """Something that a person must put right. Its text is one line: what is wrong, and what is allowed or to be done."""


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{CONFIG_VARIABLE}={path}: {error.strerror}; name a readable TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error


def config_file() -> Path | None:
    """The TOML file in use: the one HEADRACE_CONFIG names, else ./headrace.toml where there is one."""
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named)
    return Path(DEFAULT_CONFIG) if Path(DEFAULT_CONFIG).exists() else None


def toml_section(section: str) -> dict[str, Any]:
    """One table of the TOML file; empty where there is no file or no such table."""
    path = config_file()
    table = _read_toml(path).get(section, {}) if path else {}
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: [{section}] must be a table, got {table!r}")
    return table


class _TomlSource(PydanticBaseSettingsSource):
    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # __call__ gives all fields at once

    def __call__(self) -> dict[str, Any]:
        section = self.settings_cls.section  # type: ignore[attr-defined]
        return toml_section(section)


class Section(BaseSettings):
    """One table of the settings. `section` is its TOML table; environment variables are HEADRACE_<SECTION>_<NAME>."""

    section: ClassVar[str]

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_nested_delimiter="__")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.model_config["env_prefix"] = f"HEADRACE_{cls.section.upper()}_"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Later sources are weaker: arguments, environment, TOML file, defaults."""
        return init_settings, env_settings, _TomlSource(settings_cls)


S = TypeVar("S", bound=Section)


def load(section: type[S], **overrides: Any) -> S:
    """The effective settings of a section. Raises ConfigError with one line for the first wrong value."""
    try:
        return section(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or section.section
        message = first["msg"].removeprefix("Value error, ")
        is_secret = "Secret" in str(section.model_fields[name].annotation) if name in section.model_fields else False
        value = f" = {first['input']!r:.80}" if first["type"] != "extra_forbidden" and not is_secret else ""
        known = f"; known settings: {', '.join(section.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise ConfigError(f"setting {section.section}.{name}{value}: {message}{known}{_place(section.section, first)}") from error
    except SettingsError as error:
        raise ConfigError(f"setting {section.section}: {error}: {error.__cause__}") from error


def _place(section: str, error: Any) -> str:
    """The line of the TOML file that a wrong value is on, where it comes from there."""
    path = config_file()
    if path is None:
        return ""
    place = (section, *error["loc"])
    found: Any = _read_toml(path)
    for part in place if error["type"] != "missing" else place[:-1]:
        found = found.get(part) if isinstance(found, dict) else found[part] if isinstance(found, list) else None
    line = toml_line(path.read_text(), place) if found == error["input"] else None
    return "" if line is None else f" ({path} line {line})"


class StreamSettings(Section):
    """What every stream worker needs: the broker, the group, and where state lives."""

    section = "stream"

    broker: str = Field(
        "127.0.0.1:9092", pattern=r"^[^\s/,]+:\d+(,[^\s/,]+:\d+)*$", description="Kafka bootstrap servers, HOST:PORT[,HOST:PORT]"
    )
    group_prefix: str = Field("headrace", min_length=1, description="consumer groups are <prefix>-<stage>")
    partitions: int = Field(4, ge=1, le=1024, description="partitions of every topic; cannot change while data is in flight")
    replication_factor: int = Field(1, ge=1, le=7)
    state_dir: Path = Field(Path("var/state"), description="local state, one folder a stage")
    session_timeout_s: float = Field(
        6.0, gt=1, description="a worker that is silent for so long loses its partitions; Kafka's default limits allow 6 s to 30 min"
    )
    heartbeat_interval_s: float = Field(1.0, gt=0)
    stall_timeout_s: float = Field(
        120.0,
        gt=5,
        description="a worker ends, to be started again, when it makes no progress on a partition, or hears nothing of it, for so long",
    )
    fetch_max_bytes: int = Field(1 << 20, ge=1 << 12, description="largest fetch of one partition")
    web_host: str = Field("127.0.0.1", min_length=1, description="address that a worker's pages (/metrics and Faust's own) listen on")

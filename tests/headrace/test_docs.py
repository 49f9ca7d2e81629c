"""The documentation says what is so: settings, links, commands, dependencies; and nothing of the repository points out of it."""

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import typer

from headrace import config
from headrace.cli import app
from headrace.settings import CONFIG_VARIABLE

ROOT = Path(str(files("headrace"))).parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
OUTSIDE = ("../" + "shared", "/wo" + "rk/")
"""Paths of the machine on which this was written (in two parts, so that this file does not hold them)."""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_leads_to_a_file_or_heading_that_is_there(page: Path) -> None:
    for link in LINK.findall(without_code(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{named(page)}: {link}"
        assert target.is_relative_to(ROOT), f"{named(page)}: {link} leaves the repository"
        if heading:
            assert heading in headings(target), f"{named(page)}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    folders = "schemas|joiner|experience|trainer|serving|monitor|headrace|benchmarks|tests|docs|deploy|examples"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), f"{named(page)}: {name}"


def without_code(markdown: str) -> str:
    return FENCE.sub("", markdown)


def headings(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_settings_page_is_what_the_command_prints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)

    assert (ROOT / "docs" / "settings.md").read_text() == config.reference() + "\n", "run `make docs`"


def commands() -> Iterator[tuple[Path, str]]:
    """Every `headrace ...` line of a fenced block, continued ones joined, without its pipe, comment and settings in front."""
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text()):
            if language in ("", "sh", "bash", "console"):
                for line in block.replace("\\\n", " ").splitlines():
                    if command := re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?(headrace .+)", line):
                        yield page, command[1]


COMMANDS = sorted(set(commands()))


def test_the_documentation_names_most_commands() -> None:
    assert {shlex.split(line)[1] for _, line in COMMANDS} >= {"broker", "demo", "worker", "serve", "replay", "tap", "versions", "config"}


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{named(page)}: {line}" for page, line in COMMANDS])
def test_every_command_in_the_documentation_parses(page: Path, line: str) -> None:
    words = shlex.split(line.partition(" | ")[0], comments=True)[1:]
    if "[" in line or "PATH" in words:
        words = completed(words)
    parse(typer.main.get_command(app), words)


def completed(synopsis: list[str]) -> list[str]:
    """A synopsis as a command that could be given: brackets off, of a|b the first, placeholders by a value."""
    values = {"N": "1", "PATH": "log", "DIR": "out", "FILE": "-"}
    return [values.get(word, word) for word in (word.strip("[]").partition("|")[0] for word in synopsis)]


def parse(command: object, words: list[str]) -> None:
    """Parse without running. Raises a usage error for an unknown command, option or value."""
    name = "headrace"
    while hasattr(command, "commands"):
        assert words, f"{name}: a command is missing"
        name, words = words[0], words[1:]
        assert name in command.commands, f"{name} is none of {', '.join(command.commands)}"
        command = command.commands[name]
    command.make_context(name, list(words), resilient_parsing=False)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "line", ["headrace demmo", "headrace demo --minuts 1", "headrace demo --minutes one", "headrace worker nobody", "headrace tap"]
)
def test_a_command_that_does_not_parse_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"is none of|[Nn]o such option|valid number|is not one of|[Mm]issing"):
        parse(typer.main.get_command(app), shlex.split(line)[1:])


def settings_files() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text()):
            if language == "toml" and not FILE_NAME.match(block):
                yield page, block


FILE_NAME = re.compile(r"# (\w+\.toml)\n")
"""What a block begins with that is a file which the page's settings name."""


def named_files(page: Path) -> Iterator[tuple[str, str]]:
    for language, block in FENCE.findall(page.read_text()):
        if language == "toml" and (name := FILE_NAME.match(block)):
            yield name[1], block


@pytest.mark.parametrize(("page", "block"), list(settings_files()), ids=[named(page) for page, _ in settings_files()])
def test_every_settings_file_in_the_documentation_is_valid(page: Path, block: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in named_files(page):
        (tmp_path / name).write_text(content)
    path = tmp_path / "headrace.toml"
    path.write_text(block)
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))

    tables = set(tomllib.loads(block))
    assert tables <= {section.section for section in config.SECTIONS}
    assert {setting.name.partition(".")[0] for setting in config.effective() if setting.source.startswith("file")} == tables


def test_every_direct_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[\[<>=!~ ]", requirement)[0] for requirement in direct}
    explained = set(re.findall(r"`([a-z0-9-]+)`", (ROOT / "docs" / "dependencies.md").read_text()))
    assert names - explained == set()


def test_every_module_of_headrace_has_its_place_in_the_import_contracts() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    placed = {name for layer in layers for name in re.findall(r"headrace\.(\w+)", layer)}
    modules = {path.stem for path in (ROOT / "headrace").glob("*.py")} | {
        path.parent.name for path in (ROOT / "headrace").glob("*/__init__.py")
    }
    assert placed == modules - {"__init__"}


def test_no_file_of_the_repository_points_out_of_it() -> None:
    paths = [path for path in repository_files() if named(path) != ".ci/run"]
    assert ROOT / "README.md" in paths
    assert [named(path) for path in paths if any(outside in path.read_bytes().decode(errors="replace") for outside in OUTSIDE)] == []


def repository_files() -> list[Path]:
    """What is tracked, or would be; without git (an unpacked archive) all but what the commands of the Makefile make."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        paths = [ROOT / name for name in names if name]
    else:
        made = re.compile(r"\.[^/]+_cache|\.venv|\.lock-venv|\.hypothesis|__pycache__|var|build|dist|.*\.egg-info")
        paths = [path for path in ROOT.rglob("*") if not any(made.fullmatch(part) for part in path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file()]

"""Whose a partition's journal is, and its versions on the target: claim, read, write. The protocol is in journal.py."""

import secrets
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from headrace.settings import ConfigError
from joiner.sink.journal import Journal, Version, decode_journal, encode_journal, journal_folder, last_owner, newest
from joiner.sink.target import TEMPORARY, Target

T = TypeVar("T")


class Do(Protocol):
    """Carries out one operation on the target, again where it failed for a while."""

    def __call__(self, operation: Callable[[], T], /) -> T: ...


class TakenOver(Exception):
    """Another worker has claimed the partition since."""


class OwnedJournal:
    """A partition's journal in the hands of one owner."""

    def __init__(self, target: Target, partition: int, do: Do) -> None:
        self.folder = journal_folder(partition)
        self.version = Version(0, "", 0)
        self._target = target
        self._do = do

    @property
    def owner(self) -> str:
        """As it stands in the names of data files."""
        return f"{self.version.epoch:08d}{self.version.token}"

    def claim(self) -> Journal | None:
        """Become the owner. Gives the last owner's newest journal; None where there was none."""
        epoch, _ = last_owner(self._names())
        self.version = Version(epoch + 1, secrets.token_hex(2), 0)
        self._write(b"{}")
        names = self._require_owner()
        predecessor = newest(names)
        return predecessor and self._do(lambda: read_journal(self._target, self.folder, predecessor))

    def write(self, journal: Journal) -> None:
        """Make this the version that counts. Raises TakenOver where somebody else has claimed the partition: then it may not count."""
        self.version = self.version._replace(number=self.version.number + 1)
        self._write(encode_journal(journal))
        for name in self._require_owner():
            version = Version.of(name)
            if name.endswith(TEMPORARY) or (version and version < self.version):
                self._do(partial(self._target.delete, f"{self.folder}/{name}"))

    def _write(self, content: bytes) -> None:
        path = f"{self.folder}/{self.version.name}"
        self._do(lambda: self._target.write(path, content, self.folder))

    def _require_owner(self) -> list[str]:
        names = self._names()
        if last_owner(names) != self.version.owner:
            raise TakenOver
        return names

    def _names(self) -> list[str]:
        return self._do(lambda: journal_names(self._target, self.folder))


def journal_names(target: Target, folder: str) -> list[str]:
    """The names in a partition's journal folder."""
    return [path.rpartition("/")[2] for path, _ in target.files(folder)]


def read_journal(target: Target, folder: str, version: Version) -> Journal:
    """One version. Raises ConfigError where it cannot be understood, FileNotFoundError where it is gone."""
    try:
        return decode_journal(target.read(f"{folder}/{version.name}"))
    except ValueError as error:
        raise ConfigError(f"sink.uri = {target.uri}: the journal {folder}/{version.name} is not readable: {error}") from error

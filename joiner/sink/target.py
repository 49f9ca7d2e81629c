"""Where the sink writes: a local folder, an S3 store or HDFS as one small set of operations, each atomic; and errors in plain words."""

import errno
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import pyarrow as pa
import requests
from fsspec.implementations.webhdfs import WebHDFS
from pyarrow import fs as pafs
from requests.adapters import HTTPAdapter

from headrace.settings import ConfigError
from joiner.sink.journal import FOLDER
from joiner.sink.retry import one_line, persist
from joiner.sink.settings import StorageOptions

SCHEMES = "a folder, file:///FOLDER, s3://BUCKET/PREFIX, webhdfs://HOST:PORT/PATH or hdfs://HOST:PORT/PATH"
TEMPORARY = ".tmp"
HDFS_BLOCK_BYTES = 1 << 30
"""fsspec appends what is longer than this; a file of ours is created in one request."""


class Target:
    """Files below one root. Paths are relative to it; `write` makes a file whole or not at all.

    The methods that begin with `_` are the single steps that a crash can fall between.
    """

    def __init__(self, uri: str, fs: pafs.FileSystem, root: str) -> None:
        self.uri = uri
        self.fs = fs
        self.root = root.rstrip("/")
        self._is_object_store = isinstance(fs, pafs.S3FileSystem)
        self._is_local = isinstance(fs, pafs.LocalFileSystem)

    def absolute(self, path: str) -> str:
        """As the file system names it."""
        return f"{self.root}/{path}"

    def write(self, path: str, content: bytes, scratch: str = FOLDER) -> None:
        """Make a file with a name that was never used before. Doing it again is harmless. A crash may leave a file in `scratch`."""
        if self._is_object_store:
            self._put(path, content)  # an object appears when its upload is complete
        else:
            temporary = f"{scratch}/{path.rpartition('/')[2]}{TEMPORARY}"
            self._make_folder(scratch)
            self._make_folder(path.rpartition("/")[0])
            self._put(temporary, content)
            self._move(temporary, path)
        if not self._is_local and (size := self.fs.get_file_info(self.absolute(path)).size) != len(content):
            raise OSError(f"{path} has {size} bytes, {len(content)} were written")

    def read(self, path: str) -> bytes:
        """A file's content. Raises FileNotFoundError."""
        with self.fs.open_input_file(self.absolute(path)) as file:
            content: bytes = file.read()
            return content

    def files(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """(path, bytes) of every file below a folder; none where it does not exist."""
        selector = pafs.FileSelector(self.absolute(folder).rstrip("/"), recursive=True, allow_not_found=True)
        for info in self.fs.get_file_info(selector):
            if info.type == pafs.FileType.File:
                yield info.path.removeprefix(f"{self.root}/"), info.size

    def delete(self, path: str) -> None:
        """Remove a file. One that is not there is removed already."""
        try:
            self._remove(path)
        except FileNotFoundError:
            return
        except OSError:
            if self.fs.get_file_info(self.absolute(path)).type != pafs.FileType.NotFound:
                raise

    def check(self) -> None:
        """Write a file and remove it."""
        probe = f"{FOLDER}/probe-{secrets.token_hex(4)}"
        self.write(probe, b"headrace")
        self.delete(probe)

    def _make_folder(self, folder: str) -> None:
        self.fs.create_dir(self.absolute(folder), recursive=True)

    def _put(self, path: str, content: bytes) -> None:
        if self._is_local:
            with open(self.absolute(path), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            return
        # One write of it all: a stream that is closed in the middle would complete the upload of a torn object.
        with self.fs.open_output_stream(self.absolute(path)) as stream:
            stream.write(content)

    def _move(self, source: str, path: str) -> None:
        self.fs.move(self.absolute(source), self.absolute(path))
        if self._is_local:
            for folder in Path(path).parents:  # new names are on the disk when their folders are
                descriptor = os.open(self.absolute(str(folder)), os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)

    def _remove(self, path: str) -> None:
        self.fs.delete_file(self.absolute(path))

    def explain(self, error: Exception) -> ConfigError | None:
        """The line for a person; None where trying again may help."""
        text = one_line(error)
        number = getattr(error, "errno", None)
        if isinstance(error, PermissionError) or number in (errno.EROFS, errno.EPERM) or "ACCESS_DENIED" in text:
            return ConfigError(f"sink.uri = {self.uri}: no permission to write there: grant it, or name a place of your own ({text[:150]})")
        if number in (errno.ENOSPC, errno.EDQUOT) or "quota of" in text:
            return ConfigError(f"sink.uri = {self.uri}: no space left there: free some, or name another place")
        if "NO_SUCH_BUCKET" in text:
            return ConfigError(f"sink.uri = {self.uri}: there is no such bucket: create it, or correct sink.uri")
        if any(
            sign in text
            for sign in (
                "INVALID_ACCESS_KEY_ID",
                "InvalidAccessKeyId",
                "SIGNATURE",
                "Signature",
                "EXPIRED_TOKEN",
                "ExpiredToken",
                "InvalidToken",
            )
        ):
            return ConfigError(
                f"sink.uri = {self.uri}: the store refuses the credentials: correct sink.s3_access_key and sink.s3_secret_key"
            )
        if isinstance(error, NotADirectoryError) or number == errno.ENOTDIR:
            return ConfigError(f"sink.uri = {self.uri} is, or lies below, a file: name a folder")
        return None


class _TimedAdapter(HTTPAdapter):
    """fsspec's WebHDFS sets no time-outs: without them a silent name node would hold the worker for ever."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__()
        self._timeout_s = timeout_s

    def send(self, request: requests.PreparedRequest, *args: object, **kwargs: object) -> requests.Response:
        return super().send(request, **{**kwargs, "timeout": self._timeout_s})  # type: ignore[arg-type]


def open_target(uri: str, options: StorageOptions) -> Target:
    """The file system of a uri; nothing is asked of it yet. Raises ConfigError for a uri that is none of ours."""
    if "://" not in uri:
        return Target(uri, pafs.LocalFileSystem(), str(Path(uri).absolute()))
    parts = urlsplit(uri)
    match parts.scheme:
        case "file":
            if parts.netloc or not parts.path.strip("/"):
                raise ConfigError(f"setting sink.uri = {uri!r}: a file uri has three slashes and a folder: file:///var/samples")
            return Target(uri, pafs.LocalFileSystem(), parts.path)
        case "s3":
            if not parts.netloc:
                raise ConfigError(f"setting sink.uri = {uri!r}: name a bucket: s3://BUCKET/PREFIX")
            return Target(uri, _s3(uri, options), f"{parts.netloc}{parts.path}")
        case "webhdfs":
            return Target(uri, _webhdfs(uri, parts, options), parts.path)
        case "hdfs":
            return Target(uri, _hdfs(uri, parts, options), parts.path)
    raise ConfigError(f"setting sink.uri = {uri!r}: scheme {parts.scheme!r} is not known; allowed: {SCHEMES}")


def _s3(uri: str, options: StorageOptions) -> pafs.FileSystem:
    endpoint = urlsplit(options.s3_endpoint or "")
    try:
        return pafs.S3FileSystem(
            access_key=options.s3_access_key,
            secret_key=options.s3_secret_key,
            session_token=options.s3_session_token,
            region=options.s3_region,
            scheme=endpoint.scheme or "https",
            endpoint_override=endpoint.netloc or None,
            connect_timeout=options.timeout_s,
            request_timeout=options.timeout_s,
            allow_delayed_open=True,  # one request for a file, where it is not large
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"setting sink.uri = {uri!r}: {error}") from error


def _webhdfs(uri: str, parts: SplitResult, options: StorageOptions) -> pafs.FileSystem:
    host, port = _host_and_port(uri, parts)
    files = WebHDFS(host, port, user=options.hdfs_user, skip_instance_cache=True)
    files.blocksize = HDFS_BLOCK_BYTES
    for scheme in ("http://", "https://"):
        files.session.mount(scheme, _TimedAdapter(options.timeout_s))
    return pafs.PyFileSystem(pafs.FSSpecHandler(files))


def _hdfs(uri: str, parts: SplitResult, options: StorageOptions) -> pafs.FileSystem:
    host, port = _host_and_port(uri, parts)
    try:
        return pafs.HadoopFileSystem(host, port, user=options.hdfs_user)
    except (OSError, ImportError, pa.ArrowException) as error:
        raise ConfigError(
            f"setting sink.uri = {uri!r}: hdfs:// needs a native libhdfs (ARROW_LIBHDFS_DIR, CLASSPATH); "
            f"webhdfs://HOST:PORT/PATH needs nothing ({' '.join(str(error).split())[:100]})"
        ) from error


def _host_and_port(uri: str, parts: SplitResult) -> tuple[str, int]:
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port or not parts.path.strip("/"):
        raise ConfigError(f"setting sink.uri = {uri!r}: name host, port and path: {parts.scheme}://HOST:PORT/PATH")
    return host, port


def require(target: Target, patience_s: float) -> None:
    """Raise ConfigError where the target cannot be written to, or does not answer within `patience_s`."""
    try:
        persist(target.check, target.explain, patience_s, threading.Event())
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"sink.uri = {target.uri} does not answer: start it, or correct sink.uri ({one_line(error)})") from error

"""The sink on a local disk, on S3 (moto's server) and on a real HDFS: the same rows, crashes included, and errors in plain words."""

import errno
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import boto3
import pytest
from moto.server import ThreadedMotoServer
from sink_samples import Crash, WatchedTarget, crash_at, read, run, settings
from test_sink_crash import MESSAGES, ROWS

from headrace.broker import free_port
from headrace.settings import ConfigError
from joiner.sink.dataset import open_samples
from joiner.sink.retry import Abandoned, persist, waits_s
from joiner.sink.settings import SinkSettings, StorageOptions
from joiner.sink.target import Target, open_target, require

BUCKET = "samples"


class Place(NamedTuple):
    uri: str
    options: StorageOptions

    def below(self, name: str) -> "Place":
        return Place(f"{self.uri}/{name}", self.options)

    def target(self) -> WatchedTarget:
        return WatchedTarget(open_target(self.uri, self.options))


@pytest.fixture(scope="module")
def s3() -> Iterator[Place]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    yield Place(f"s3://{BUCKET}/home/samples", StorageOptions(endpoint, "us-east-1", "key", "secret", timeout_s=5.0))
    server.stop()


@pytest.fixture(scope="module")
def hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A name node and a data node of the jars in HADOOP_HOME, on ports of their own."""
    home = Path(os.environ.get("HADOOP_HOME", "nowhere"))
    if not (home / "libs").is_dir() or shutil.which("java") is None:
        pytest.skip("no HDFS here: set HADOOP_HOME to a folder whose libs/ holds Hadoop's jars (and install java 17)")
    folder = tmp_path_factory.mktemp("hdfs")
    web_port = free_port()
    configure_hdfs(folder, web_port)
    options = ["--add-opens", "java.base/java.lang=ALL-UNNAMED", "-Xmx256m", "-cp", f"{folder}:{home}/conf:{home}/libs/*"]
    node = ["java", *options, "org.apache.hadoop.hdfs.server"]
    name_node, data_node = f"{node[-1]}.namenode.NameNode", f"{node[-1]}.datanode.DataNode"
    with (folder / "hdfs.log").open("wb") as log:
        subprocess.run([*node[:-1], name_node, "-format", "-nonInteractive"], stdout=log, stderr=log, check=True, timeout=60)
        daemons = [subprocess.Popen([*node[:-1], name], stdout=log, stderr=log) for name in (name_node, data_node)]
    place = Place(f"webhdfs://127.0.0.1:{web_port}/home/samples", StorageOptions(hdfs_user="headrace", timeout_s=10.0))
    try:
        require(place.target(), patience_s=60.0)
        yield place
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait()


def configure_hdfs(folder: Path, web_port: int) -> None:
    rpc_port = free_port()
    core = {"fs.defaultFS": f"hdfs://127.0.0.1:{rpc_port}", "hadoop.tmp.dir": str(folder / "data")}
    ports = {f"dfs.datanode.{name}address": f"127.0.0.1:{free_port()}" for name in ("", "http.", "ipc.")}
    site = {
        **ports,
        "dfs.namenode.http-address": f"127.0.0.1:{web_port}",
        "dfs.namenode.rpc-bind-host": "127.0.0.1",
        "dfs.namenode.datanode.registration.ip-hostname-check": "false",
        "dfs.namenode.safemode.threshold-pct": "0",
        "dfs.datanode.hostname": "127.0.0.1",
        "dfs.client.use.datanode.hostname": "true",
        "dfs.replication": "1",
        "dfs.permissions.enabled": "false",
    }
    for name, properties in (("core-site.xml", core), ("hdfs-site.xml", site)):
        lines = "".join(f"<property><name>{key}</name><value>{value}</value></property>" for key, value in properties.items())
        (folder / name).write_text(f"<configuration>{lines}</configuration>")


def check_place(place: Place, every: int) -> None:
    """Over a network not every step is crashed at: test_sink_crash.py does that on a disk."""
    target = place.below("whole").target()
    run(target, MESSAGES, settings())
    assert read(*place.below("whole")) == ROWS
    assert len(open_samples(*place.below("whole")).files) == 2

    for step in range(0, target.steps, every):
        for when in ("before", "after"):
            there = place.below(f"{when}-{step}")
            dying = there.target()
            setattr(dying, when, crash_at(step))
            with pytest.raises(Crash):
                run(dying, MESSAGES, settings())
            run(there.target(), MESSAGES, settings())
            assert read(*there) == ROWS, (when, step)


@pytest.mark.slow
def test_s3_holds_each_row_once_after_crashes(s3: Place) -> None:
    check_place(s3, every=7)


@pytest.mark.hdfs
@pytest.mark.slow
def test_hdfs_holds_each_row_once_after_crashes(hdfs: Place) -> None:
    check_place(hdfs, every=41)


def check_operations(target: Target) -> None:
    path = "date=2026-01-31/hour=07/file.parquet"
    large = os.urandom(1 << 20) * 12  # more than a part of an upload, and more than fsspec's buffer
    assert list(target.files()) == [] and list(target.files("date=2026-01-31")) == []
    target.write(path, large)
    target.write(path.replace("07", "08"), b"small")
    assert dict(target.files("date=2026-01-31/hour=07")) == {path: len(large)}
    assert dict(target.files()) == {path: len(large), path.replace("07", "08"): 5}
    assert target.read(path) == large
    target.delete(path)
    target.delete(path)
    with pytest.raises(FileNotFoundError):
        target.read(path)
    require(target, patience_s=0.0)
    assert list(target.files()) == [(path.replace("07", "08"), 5)]


def test_a_file_on_a_disk_is_whole_or_not_there(tmp_path: Path) -> None:
    check_operations(open_target(f"file://{tmp_path}/deep/er", StorageOptions()))


def test_an_object_on_s3_is_whole_or_not_there(s3: Place) -> None:
    check_operations(open_target(*s3.below("operations")))


@pytest.mark.hdfs
def test_a_file_on_hdfs_is_whole_or_not_there(hdfs: Place) -> None:
    target = open_target(*hdfs.below("operations"))
    check_operations(target)

    target.write("moved", b"whole")
    with pytest.raises(OSError, match="5 bytes, 7 were written"):  # a move onto a file does nothing there, and says nothing
        target.write("moved", b"another")


def refusal(uri: str, options: StorageOptions | None = None, patience_s: float = 0.0) -> str:
    with pytest.raises(ConfigError) as caught:
        require(open_target(uri, options or StorageOptions(timeout_s=1.0)), patience_s)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("gopher://host/x", r"scheme 'gopher' is not known; allowed: a folder, file://"),
        ("file://host/x", "three slashes"),
        ("s3:///x", "name a bucket"),
        ("webhdfs://host/x", "name host, port and path: webhdfs://HOST:PORT/PATH"),
        ("webhdfs://host:port/x", "name host, port and path"),
        ("webhdfs://host:9870", "name host, port and path"),
        ("hdfs://host:9000/x", "hdfs:// needs a native libhdfs"),
        ("webhdfs://127.0.0.1:1/x", "does not answer: start it, or correct sink.uri"),
    ],
)
def test_a_uri_that_cannot_be_used_is_one_line(uri: str, says: str) -> None:
    assert says in refusal(uri)


def test_a_file_where_a_folder_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert "is, or lies below, a file: name a folder" in refusal(str(tmp_path / "file"))
    assert "is, or lies below, a file: name a folder" in refusal(str(tmp_path / "file" / "below"))


def test_a_bucket_that_is_missing_and_a_store_that_is_away_are_one_line(s3: Place) -> None:
    assert "there is no such bucket: create it, or correct sink.uri" in refusal("s3://another/x", s3.options)
    away = StorageOptions("http://127.0.0.1:1", "us-east-1", "key", "secret", timeout_s=1.0)
    assert "does not answer: start it, or correct sink.uri" in refusal(s3.uri, away)


def test_wrong_credentials_are_one_line(s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)  # from now on moto looks at the keys

    assert "refuses the credentials: correct sink.s3_access_key and sink.s3_secret_key" in refusal(*s3)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "no permission to write there"),
        (OSError(errno.EROFS, "Read-only file system"), "no permission to write there"),
        (OSError("AWS Error ACCESS_DENIED during PutObject operation: Access Denied"), "no permission to write there"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left there: free some"),
        (RuntimeError("The DiskSpace quota of /home is exceeded: quota = 1 B"), "no space left there: free some"),
        (OSError("AWS Error INVALID_ACCESS_KEY_ID during PutObject operation: no such key"), "refuses the credentials"),
        (OSError("AWS Error SIGNATURE_DOES_NOT_MATCH during PutObject operation"), "refuses the credentials"),
        (OSError("AWS Error UNKNOWN (HTTP status 400) during PutObject operation: ExpiredToken"), "refuses the credentials"),
        (OSError("AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 7"), ""),
        (OSError("AWS Error SLOW_DOWN during PutObject operation"), ""),
        (RuntimeError("Cannot create file. Name node is in safe mode."), ""),
    ],
)
def test_errors_that_a_person_must_put_right_are_told_from_those_that_pass(tmp_path: Path, error: Exception, says: str) -> None:
    explained = open_target(str(tmp_path), StorageOptions()).explain(error)

    assert (explained is None) == (not says)
    assert says in str(explained)


def test_the_start_waits_for_a_target_for_a_while_only(tmp_path: Path) -> None:
    target = WatchedTarget(open_target(str(tmp_path), StorageOptions()))

    def away(_: int) -> None:
        raise OSError("connection reset by peer")

    target.before = away
    begun_s = time.monotonic()
    with pytest.raises(ConfigError, match="does not answer"):
        require(target, patience_s=0.8)
    assert target.steps == 2 and 0.4 < time.monotonic() - begun_s < 5.0


def test_waits_grow_up_to_half_a_minute() -> None:
    waits = waits_s()

    assert [next(waits) for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_missing_file_is_an_answer_and_waiting_ends_when_the_partition_is_given_away() -> None:
    given_away = threading.Event()

    def missing() -> None:
        raise FileNotFoundError

    def away() -> None:
        given_away.set()
        raise OSError("connection reset by peer")

    with pytest.raises(FileNotFoundError):
        persist(missing, lambda _: None, float("inf"), given_away)
    with pytest.raises(Abandoned):
        persist(away, lambda _: None, float("inf"), given_away)


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SINK_S3_ACCESS_KEY", "open")
    monkeypatch.setenv("HEADRACE_SINK_S3_SECRET_KEY", "sesame")
    chosen = SinkSettings()

    assert chosen.storage.s3_secret_key == "sesame"
    assert "sesame" not in repr(chosen) + repr(chosen.storage) + str(chosen.model_dump(mode="json"))

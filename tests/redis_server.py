"""A server of the Redis protocol of a test's own: nothing on disk but its log of writes."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from redis import Redis, RedisError

from headrace.broker import free_port

BINARIES = ("redis-server", "valkey-server")


class RedisServer:
    """Started at once; `stop` and `start` again keep what was written, as its log of writes is synced each time."""

    def __init__(self, folder: Path) -> None:
        binary = next((found for name in BINARIES if (found := shutil.which(name))), None)
        if binary is None:
            pytest.skip(f"no server of the Redis protocol here: install {' or '.join(BINARIES)} (Debian: apt-get install redis-server)")
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        settings = {"port": port, "bind": "127.0.0.1", "dir": folder, "appendonly": "yes", "appendfsync": "always", "save": ""}
        self._command = [binary, *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]
        self._client = Redis(port=port)
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline_s = time.monotonic() + 20
        while not self._answers():
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < deadline_s, "the server does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop_answering(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def forget_everything(self) -> None:
        self._client.flushall()

    def _answers(self) -> bool:
        try:
            return bool(self._client.ping())
        except RedisError:
            return False

    def close(self) -> None:
        self._client.close()
        self.kill()

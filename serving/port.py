"""The listening socket, and who has the port where it cannot be had (Linux: from /proc)."""

import errno
import os
import socket
from pathlib import Path

from headrace.settings import ConfigError

_LISTEN = "0A"


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises ConfigError with one line that says what to do."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ConfigError(f"setting serving.host = {host!r}: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()  # two can bind, only one can listen: uvicorn would find out too late
    except OSError as error:
        listener.close()
        raise ConfigError(explain(error, host, port, "serving.port", "serving.host")) from error
    return listener


def explain(error: OSError, host: str, port: int, port_setting: str, host_setting: str) -> str:
    """One line for an address that cannot be listened on: what is wrong, and which setting or process to change."""
    if error.errno == errno.EADDRINUSE:
        owner = owner_of(port)
        return f"port {port} is taken: set {port_setting} or stop {f'PID {owner[0]} ({owner[1]})' if owner else 'what listens there'}"
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges: set {port_setting} to 1024 or more"
    return f"cannot listen on {host}:{port}: {error.strerror}; set {host_setting} to an address of this machine"


def owner_of(port: int) -> tuple[int, str] | None:
    """(PID, command) of the process that listens on a TCP port; None where the system does not tell us."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening_inodes(Path("/proc/net") / table, port)}
    if not inodes:
        return None
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(descriptor) in inodes for descriptor in (process / "fd").iterdir()):
                return int(process.name), (process / "comm").read_text().strip()
        except OSError:  # it ended meanwhile, or is not ours to look into
            continue
    return None


def _listening_inodes(table: Path, port: int) -> list[str]:
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [f"socket:[{row[9]}]" for row in rows if row[3] == _LISTEN and int(row[1].rsplit(":", 1)[1], 16) == port]

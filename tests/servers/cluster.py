"""A cluster of Redis or Valkey: three masters, each with a replica."""

from __future__ import annotations

import os
import random
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis

from tests.servers.process import Watchdog

_SLOTS: Final = 16384


@dataclass(frozen=True)
class TcpServer:
    """A server that listens on a port of this machine."""

    port: int
    pid: int

    def client(self) -> redis.Redis:
        """Return a client that does not wait for long. It is to be closed."""
        return redis.Redis(port=self.port, socket_timeout=5, decode_responses=True)

    def kill(self) -> None:
        """Kill it, as a crash would."""
        os.kill(self.pid, signal.SIGKILL)

    def pause(self) -> None:
        """Let it hang."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)


@contextmanager
def tcp_server(
    binary: Path, watchdog: Watchdog, *options: str, port: int | None = None, folder: str | None = None
) -> Iterator[TcpServer]:
    """Run a server on a port, without persistence unless the options say otherwise."""
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="mk") as scratch:
        home = folder or scratch
        listening = ["--port", str(port), "--bind", "127.0.0.1", "--protected-mode", "no"]
        command = [str(binary), *listening, "--save", "", "--dir", home, *options]
        with watchdog.server(command, Path(home, f"log-{port}"), lambda: answers(port)) as pid:
            server = TcpServer(port, pid)
            try:
                yield server
            finally:
                with suppress(ProcessLookupError):
                    server.resume()  # or it would not be stopped


@contextmanager
def redis_cluster_of_six(binary: Path, watchdog: Watchdog) -> Iterator[list[TcpServer]]:
    """Run a cluster, and give its servers: the masters first, then their replicas in the same order."""
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"]
    with ExitStack() as stack:
        servers = [stack.enter_context(tcp_server(binary, watchdog, *options)) for _ in range(6)]
        _form(servers)
        yield servers


def _form(servers: list[TcpServer]) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for server in servers]
        for n, client in enumerate(clients):
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", n + 1)
        for n, client in enumerate(clients[:3]):
            slots = range(n * _SLOTS // 3, (n + 1) * _SLOTS // 3)
            client.execute_command("CLUSTER", "ADDSLOTS", *slots)
        for server in servers[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)
        wait_until(lambda: all(_info(client)["cluster_known_nodes"] == "6" for client in clients))
        ids = [client.execute_command("CLUSTER", "MYID") for client in clients]
        for master, replica in zip(ids[:3], clients[3:], strict=True):
            wait_until(lambda master=master, replica=replica: _replicates(replica, master))
        wait_until(lambda: all(_info(client)["cluster_state"] == "ok" for client in clients))
        # Each range with its master and its replica, linked: only then a failover is possible.
        wait_until(lambda: all(len(shard) == 4 for shard in _shards(clients[0])) and len(_shards(clients[0])) == 3)
        wait_until(lambda: all(client.info()["master_link_status"] == "up" for client in clients[3:]))


def _replicates(replica: redis.Redis, master: str) -> bool:
    with suppress(redis.ResponseError):  # it does not know the master yet
        replica.execute_command("CLUSTER", "REPLICATE", master)
        return True
    return False


def _info(client: redis.Redis) -> dict[str, str]:
    found = client.execute_command("CLUSTER INFO")
    if isinstance(found, dict):
        return found
    return dict(line.split(":") for line in found.split())


def _shards(client: redis.Redis) -> list[list[object]]:
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command("CLUSTER", "SLOTS")
        return connection.read_response()
    finally:
        client.connection_pool.release(connection)


def wait_until(is_so: Callable[[], bool], time_limit: float = 30.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + time_limit
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {time_limit:g} s")
        time.sleep(0.02)


def free_port() -> int:
    """Return a port that is free, and that of the cluster's bus, 10000 higher, too."""
    while True:
        port = random.randint(20_000, 30_000)
        with suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port


def answers(port: int) -> bool:
    """Tell whether a server answers on a port, be it that it wants a password or is not ready."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith((b"+PONG", b"-NOAUTH", b"-LOADING"))
    return False

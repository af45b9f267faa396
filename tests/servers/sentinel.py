"""A master, two replicas, and three Sentinels that watch over them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.servers.cluster import TcpServer, answers, free_port, tcp_server, wait_until
from tests.servers.process import Watchdog

SERVICE: Final = "mymaster"


@dataclass(frozen=True)
class SentinelTrio:
    """The servers, the master first, and the Sentinels."""

    servers: list[TcpServer]
    sentinels: list[TcpServer]

    @property
    def url(self) -> str:
        """The URL of the service."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"


@contextmanager
def sentinel_trio(binary: Path, watchdog: Watchdog) -> Iterator[SentinelTrio]:
    """Run them all, and give them once a failover would work."""
    with ExitStack() as stack:
        quick = ["--repl-diskless-sync-delay", "0"]
        master = stack.enter_context(tcp_server(binary, watchdog, *quick))
        replicas = [
            stack.enter_context(tcp_server(binary, watchdog, *quick, "--replicaof", "127.0.0.1", str(master.port)))
            for _ in range(2)
        ]
        # Linked before the Sentinels ask, or they would see it ten seconds later.
        for replica in replicas:
            with replica.client() as client:
                wait_until(lambda client=client: client.info()["master_link_status"] == "up")
        sentinels = [stack.enter_context(_sentinel(binary, watchdog, master.port)) for _ in range(3)]
        for sentinel in sentinels:
            with sentinel.client() as client:
                wait_until(lambda client=client: _is_ready(client.sentinel_masters()[SERVICE]))
        yield SentinelTrio([master, *replicas], sentinels)


def _is_ready(state: dict[str, int]) -> bool:
    return state["num-slaves"] == 2 and state["num-other-sentinels"] == 2


@contextmanager
def _sentinel(binary: Path, watchdog: Watchdog, master: int) -> Iterator[TcpServer]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="mk") as folder:
        settings = Path(folder, "sentinel.conf")
        settings.write_text(
            f"port {port}\nbind 127.0.0.1\nprotected-mode no\ndir {folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {master} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} 500\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )
        command = [str(binary), str(settings), "--sentinel"]
        with watchdog.server(command, Path(folder, "log"), lambda: answers(port)) as pid:
            yield TcpServer(port, pid)

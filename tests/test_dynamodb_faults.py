"""DynamoDB when something is wrong: throttles, errors of the service, lost replies, cut connections, conflicts."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from itertools import cycle
from typing import Any

import pytest
from anyio import create_task_group, fail_after
from botocore.exceptions import ClientError

from memkit.driver import Appended, Driver, Log, Record
from memkit.drivers.dynamodb import DynamoDbDriver, connect
from memkit.drivers.dynamodb.drafts import aside, draft, draft_one, pack
from memkit.drivers.dynamodb.errors import explained
from memkit.drivers.dynamodb.items import inflated
from memkit.errors import ConflictError, DriverError, FormatError, MemkitError, UnsupportedError
from memkit.run import new_id
from tests.dynamodb_proxy import MIX, FaultProxy, Kind
from tests.redis_writers import Writers
from tests.servers.dynamodb import DynamoDB

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

HEALTHY = 20.0
"""Seconds within which a test with retries is over."""

KEYS = {"pk": "S", "sk": "S"}


@pytest.fixture
async def proxy(dynamodb: DynamoDB) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(dynamodb.url).run() as proxy:
        yield proxy


@pytest.fixture(params=["sort key", pytest.param("partition key only", marks=pytest.mark.long)])
def layout(request: pytest.FixtureRequest, dynamodb: DynamoDB) -> dict[str, Any]:
    """The name of a table of each layout, and how to connect to it."""
    if request.param == "sort key":
        return {"table_name": dynamodb.table(KEYS)}
    return {"table_name": dynamodb.table({"pk": "S"}), "sort_key": None}


@pytest.fixture
def key() -> str:
    return f"key-{new_id()}"


def one(body: bytes = b"body") -> list[Record]:
    return [Record(new_id(), body)]


async def error_of(call: Awaitable[object]) -> MemkitError:
    with fail_after(HEALTHY), pytest.raises(MemkitError) as caught:
        await call
    return caught.value


async def test_the_sdk_repeats_what_a_lost_reply_has_done(dynamodb: DynamoDB, proxy: FaultProxy, key: str) -> None:
    name = dynamodb.table({"pk": "S"})
    async with dynamodb.async_session.resource("dynamodb", endpoint_url=proxy.url) as resource:
        table: Any = await resource.Table(name)
        proxy.add_fault("lost", "UpdateItem")
        await table.update_item(
            Key={"pk": key}, UpdateExpression="ADD n :one", ExpressionAttributeValues={":one": 1}
        )
        counted = (await table.get_item(Key={"pk": key}, ConsistentRead=True))["Item"]["n"]
    assert counted == 2
    assert proxy.traffic["UpdateItem"].requests == 2


async def test_an_append_that_the_sdk_repeats_is_stored_once(
    dynamodb: DynamoDB, proxy: FaultProxy, key: str
) -> None:
    async with dynamodb.async_session.resource("dynamodb", endpoint_url=proxy.url) as resource:
        driver = DynamoDbDriver(await resource.Table(dynamodb.table(KEYS)))
        first = await driver.append(key, one(b"first"))
        proxy.add_fault("lost", "TransactWriteItems")
        second = await driver.append(key, one(b"second"), since=1)
        assert proxy.traffic["TransactWriteItems"].requests == 3
        assert (first.position, second.position, second.end) == (0, 1, 2)
        assert (await driver.load(key, 0)).bodies == [b"first", b"second"]


@pytest.mark.parametrize("kind", [*MIX, "late", "garbled"])
async def test_each_fault_by_itself(layout: dict[str, Any], proxy: FaultProxy, key: str, kind: Kind) -> None:
    def again() -> None:
        """Let the next two requests suffer, whatever they are."""
        proxy.add_fault(kind, times=2)

    async with connect(**layout, endpoint_url=proxy.url) as driver:
        for n in range(4):
            again()
            appended = await driver.append(key, [Record(f"{key}-{n}-{i}", b"%d-%d" % (n, i)) for i in range(2)])
            assert (appended.position, appended.end) == (2 * n, 2 * n + 2)
        again()
        log = await driver.load(key, 0)
        assert log.bodies == [b"%d-%d" % (n, i) for n in range(4) for i in range(2)]
        again()
        revision = await driver.commit(key, b"head", revision=log.revision)
        again()
        assert await driver.trim(key, 3) == 3
        again()
        await driver.redact(key, {4: b"redacted"}, epoch=log.epoch)
        again()
        assert await driver.expire(key, 1000)
        again()
        log = await driver.load(key)
        assert (log.head, log.revision, log.base) == (b"head", revision, 3)
        assert log.bodies[:2] == [b"1-1", b"redacted"]
        again()
        assert await driver.delete(key)
        assert (await driver.load(key)).epoch == ""


# --- many writers ---


class Turns:
    """Sends each append through the next of several drivers, as if it were redelivered by another process."""

    def __init__(self, drivers: Sequence[Driver]) -> None:
        self._drivers = cycle(drivers)

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        return await next(self._drivers).load(key, start, stop)

    async def append(self, key: str, records: Sequence[Record], /, **what: Any) -> Appended:
        return await next(self._drivers).append(key, records, **what)

    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        raise NotImplementedError

    async def delete(self, key: str, /) -> bool:
        raise NotImplementedError


async def _write_through_faults(
    layout: dict[str, Any], proxy: FaultProxy, key: str, seconds: float, conversations: int
) -> tuple[Writers, str]:
    async with AsyncExitStack() as stack:
        drivers = [
            await stack.enter_async_context(connect(**layout, endpoint_url=proxy.url, retry_for=3))
            for _ in range(4)
        ]
        proxy.rate = 0.2
        writers = Writers(Turns(drivers), key, conversations=conversations)
        await writers.run(seconds)
        proxy.rate = 0
        return writers, await writers.check()


async def test_sixteen_writers_and_all_faults(layout: dict[str, Any], proxy: FaultProxy, key: str) -> None:
    writers, figures = await _write_through_faults(layout, proxy, key, 4, conversations=2)
    assert set(proxy.suffered) >= set(MIX) - {"unprocessed"}, proxy.suffered
    assert len(writers.acknowledged) > 16, figures


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("conversations", [1, 4])
async def test_sixteen_writers_for_a_minute(
    layout: dict[str, Any], proxy: FaultProxy, key: str, conversations: int, record_property: Any
) -> None:
    _, figures = await _write_through_faults(layout, proxy, key, 60, conversations)
    record_property("figures", figures)
    print(f"{conversations} conversations: {figures}; faults: {dict(proxy.suffered)}")


# --- what does not pass ---


@pytest.mark.parametrize("kind", ["throttled", "failed", "conflict", "cut", "in progress"])
async def test_what_does_not_stop_is_told(dynamodb: DynamoDB, proxy: FaultProxy, key: str, kind: Kind) -> None:
    name = dynamodb.table(KEYS)
    async with connect(name, endpoint_url=proxy.url, retry_for=0.5) as driver:
        await driver.append(key, one())
        proxy.add_fault(kind, "TransactWriteItems", times=10_000)
        error = await error_of(driver.append(key, one(), since=1))
        assert isinstance(error, DriverError)
        assert error.retryable
        assert key in str(error)
        assert name in str(error)
        proxy.faults.clear()
        assert (await driver.append(key, one(), since=1)).position == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "AccessDeniedException",
            "allow dynamodb:PutItem, UpdateItem and ConditionCheckItem on the table in the IAM policy",
        ),
        ("ExpiredTokenException", "renew the credentials"),
        ("UnrecognizedClientException", "renew the credentials"),
        ("InvalidSignatureException", "check secret key and session token"),
        ("ResourceNotFoundException", "there is no such table"),
        ("ItemCollectionSizeLimitExceededException", "trim the conversation"),
    ],
)
async def test_what_is_refused_is_tried_once(
    dynamodb: DynamoDB, proxy: FaultProxy, key: str, code: str, message: str
) -> None:
    name = dynamodb.table(KEYS)
    async with connect(name, endpoint_url=proxy.url) as driver:
        await driver.append(key, one())
        before = proxy.traffic["TransactWriteItems"].requests
        proxy.add_fault("refused", "TransactWriteItems", times=10_000, code=code)
        error = await error_of(driver.append(key, one(), since=1))
        assert message in str(error)
        assert key in str(error)
        assert name in str(error)
        assert not getattr(error, "retryable", False)
        assert proxy.traffic["TransactWriteItems"].requests == before + 1


async def test_a_service_that_is_not_there(dynamodb: DynamoDB, key: str) -> None:
    name = dynamodb.table(KEYS)
    async with connect(name, endpoint_url="http://127.0.0.1:1", retry_for=0.3) as driver:
        for call in (driver.append(key, one()), driver.load(key), driver.delete(key)):
            error = await error_of(call)
            assert isinstance(error, DriverError)
            assert error.retryable
            assert "the endpoint cannot be reached" in str(error)


async def test_a_table_that_is_not_there(dynamodb: DynamoDB, key: str) -> None:
    async with connect("memkit-none", endpoint_url=dynamodb.url) as driver:
        for call in (driver.append(key, one()), driver.load(key), driver.delete(key)):
            error = await error_of(call)
            assert isinstance(error, DriverError)
            assert not error.retryable
            assert f"{key!r} in table 'memkit-none'" in str(error)
            assert "create_table()" in str(error)


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({"pk": "S"}, {}),
        ({"pk": "S", "sk": "S"}, {"sort_key": None}),
        ({"pk": "S", "sk": "N"}, {}),
        ({"pk": "N", "sk": "S"}, {}),
        ({"pk": "B"}, {"sort_key": None}),
        ({"user": "S", "at": "S"}, {}),
        ({"pk": "S", "at": "S"}, {}),
    ],
    ids=str,
)
async def test_a_table_with_other_keys(
    dynamodb: DynamoDB, key: str, keys: dict[str, str], options: dict[str, Any]
) -> None:
    async with connect(dynamodb.table(keys), endpoint_url=dynamodb.url, **options) as driver:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: driver.append(key, one()),
            lambda: driver.load(key),
            lambda: driver.commit(key, b"head", revision=""),
            lambda: driver.delete(key),
            lambda: driver.trim(key, 1),
            lambda: driver.expire(key, 1),
        ]
        for call in calls:
            error = await error_of(call())
            assert isinstance(error, FormatError)
            assert "the table has other keys; expected were 'pk'" in str(error)


# --- what the service is asked for ---

RIGHTS = {
    "BatchGetItem",
    "BatchWriteItem",
    "ConditionCheckItem",
    "DeleteItem",
    "GetItem",
    "PutItem",
    "Query",
    "Scan",
    "UpdateItem",
}
"""What the policy in docs/drivers.md allows."""

_RIGHT_OF = {
    "Put": "PutItem",
    "Update": "UpdateItem",
    "ConditionCheck": "ConditionCheckItem",
    "Delete": "DeleteItem",
}


async def test_the_rights_that_are_named_are_enough(layout: dict[str, Any], proxy: FaultProxy, key: str) -> None:
    proxy.keeps = True
    large = base64.b64encode(random.Random(7).randbytes(700_000))
    async with connect(**layout, endpoint_url=proxy.url, ttl=1000) as driver:
        assert (await driver.append(key, [Record(f"{n}", b"%d" % n) for n in range(120)])).end == 120
        epoch = (await driver.append(key, [Record("large", large)], since=120)).epoch
        log = await driver.load(key)
        revision = await driver.commit(key, b"head", revision=log.revision)
        await driver.commit(key, large, revision=revision)
        assert (await driver.load(key, 100, 110)).bodies == [b"%d" % n for n in range(100, 110)]
        await driver.redact(key, {3: b"redacted"}, epoch=epoch)
        assert await driver.trim(key, 2) == 2
        assert await driver.expire(key, 1000)
        assert [name async for name in driver.list_keys(key)] == [key]
        assert await driver.delete(key)
    used: set[str] = set()
    for operation, body in proxy.bodies:
        actions = body["TransactItems"] if operation == "TransactWriteItems" else []
        used |= {_RIGHT_OF[kind] for action in actions for kind in action} or {operation}
    assert used <= RIGHTS
    assert RIGHTS - used <= ({"Query"} if layout.get("sort_key", "sk") is None else set())


# --- a process that dies ---

WRITER = """
import asyncio, sys
from memkit.driver import Record
from memkit.drivers.dynamodb import connect

async def main(name, url, key):
    body = sys.stdin.buffer.read()
    async with connect(name, endpoint_url=url) as driver:
        await driver.append(key, [Record(f"large-{n}", body) for n in range(3)], since=1)
    print("done")

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_process_that_is_killed_within_a_long_append(
    dynamodb: DynamoDB, proxy: FaultProxy, key: str
) -> None:
    name = dynamodb.table(KEYS)
    body = base64.b64encode(random.Random(7).randbytes(700_000))
    async with connect(name, endpoint_url=dynamodb.url) as driver:
        await driver.append(key, one(b"before"))
        proxy.delay = 60
        last = proxy.add_fault("late", "TransactWriteItems")
        command = [sys.executable, "-c", WRITER, name, proxy.url, key]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
            assert writer.stdin is not None
            assert writer.stdout is not None
            await asyncio.to_thread(writer.stdin.write, body)
            writer.stdin.close()
            with fail_after(HEALTHY):
                await last.reached.wait()
            assert proxy.total.sent > 2_000_000  # the parts are there
            os.kill(writer.pid, signal.SIGKILL)
            assert await asyncio.to_thread(writer.stdout.read) == b""
        log = await driver.load(key, 0)
        assert (log.bodies, log.end) == ([b"before"], 1)
        records = [Record(f"large-{n}", body) for n in range(3)]
        assert (await driver.append(key, records, since=1)).position == 1
        assert (await driver.load(key, 0, 2)).bodies == [b"before", body]


# --- several at a time ---


class Table:
    """A table with a sort key, seen and changed by a client of its own."""

    def __init__(self, dynamodb: DynamoDB) -> None:
        self.name = dynamodb.table(KEYS)
        self.table = dynamodb.resource.Table(self.name)

    def items(self, key: str) -> dict[str, dict[str, Any]]:
        """Return the items of a key by their sort keys."""
        found = self.table.query(
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": f"memkit:{key}"},
            ConsistentRead=True,
        )
        return {item["sk"]: item for item in found["Items"]}

    def bodies_expire(self, key: str) -> set[Any]:
        """Return when the items expire that hold text."""
        return {item.get("expires") for item in self.items(key).values() if "body" in item or "head" in item}


@pytest.fixture
def table(dynamodb: DynamoDB) -> Table:
    return Table(dynamodb)


async def test_an_entry_that_has_expired_is_not_redacted(dynamodb: DynamoDB, table: Table, key: str) -> None:
    async with connect(table.name, endpoint_url=dynamodb.url, ttl=600) as driver:
        appended = await driver.append(key, [*one(), *one()])
        entry = table.items(key)[f"memkit#{appended.epoch}#{0:016d}"]
        table.table.put_item(Item=entry | {"expires": int(time.time()) - 1})
        error = await error_of(driver.redact(key, {0: b"redacted"}, epoch=appended.epoch))
        assert isinstance(error, ConflictError)
        assert f"{key!r} in table {table.name!r} at position 0 has expired" in str(error)
        assert await driver.trim(key, 1) == 1


async def test_a_redaction_ends_where_parts_are_missing(dynamodb: DynamoDB, table: Table, key: str) -> None:
    async with connect(table.name, endpoint_url=dynamodb.url, retry_for=0.3) as driver:
        appended = await driver.append(key, one(random.Random(7).randbytes(400_000)))
        for end, item in table.items(key).items():
            if "!" in end and "body" in item:
                table.table.delete_item(Key={"pk": item["pk"], "sk": item["sk"]})
        error = await error_of(driver.redact(key, {0: b"redacted"}, epoch=appended.epoch))
        assert isinstance(error, DriverError)
        assert error.retryable
        assert f"{key!r} in table {table.name!r}" in str(error)


@pytest.mark.parametrize("what", ["append", "commit"])
async def test_parts_that_someone_has_dropped_are_staged_anew(
    dynamodb: DynamoDB, proxy: FaultProxy, table: Table, key: str, what: str
) -> None:
    body = random.Random(7).randbytes(400_000)
    async with (
        connect(table.name, endpoint_url=proxy.url) as slow,
        connect(table.name, endpoint_url=dynamodb.url) as driver,
    ):

        async def write() -> object:
            return await (slow.append(key, one(body)) if what == "append" else slow.commit(key, body, revision=""))

        async with create_task_group() as tasks:
            proxy.delay = 0.5
            late = proxy.add_fault("late", "TransactWriteItems")
            tasks.start_soon(write)
            await late.reached.wait()
            assert not await driver.delete(key)
        assert proxy.traffic["TransactWriteItems"].requests == 2
        log = await driver.load(key)
        assert [*log.bodies, log.head] == ([body, None] if what == "append" else [body])
        assert sum("body" in item for item in table.items(key).values()) == 2


async def test_a_deletion_leaves_no_text_of_an_append_that_has_failed(
    dynamodb: DynamoDB, proxy: FaultProxy, table: Table, key: str
) -> None:
    async with connect(table.name, endpoint_url=proxy.url, retry_for=0.3) as driver:
        proxy.add_fault("throttled", "TransactWriteItems", times=10_000)
        await error_of(driver.append(key, one(random.Random(7).randbytes(400_000))))
        assert any("body" in item for item in table.items(key).values())
        assert not await driver.delete(key)
        assert table.items(key) == {}


async def test_a_redaction_leaves_no_text_of_an_append_that_has_failed(
    dynamodb: DynamoDB, proxy: FaultProxy, table: Table, key: str
) -> None:
    async with connect(table.name, endpoint_url=proxy.url, retry_for=0.3) as driver:
        appended = await driver.append(key, one())
        proxy.add_fault("throttled", "TransactWriteItems", times=10_000)
        await error_of(driver.append(key, one(random.Random(7).randbytes(400_000)), since=1))
        proxy.faults.clear()
        await driver.redact(key, {0: b"redacted"}, epoch=appended.epoch)
        assert not any("!" in end and "body" in item for end, item in table.items(key).items())


async def test_a_long_head_expires_with_its_conversation(dynamodb: DynamoDB, table: Table, key: str) -> None:
    head = bytes(6_000)
    async with connect(table.name, endpoint_url=dynamodb.url, ttl=600) as driver:
        revision = await driver.commit(key, head, revision="")
        assert [end for end, item in table.items(key).items() if item.get("expires") is None] == []
        assert await driver.expire(key, None)
        revision = await driver.commit(key, head, revision=revision)
        assert table.bodies_expire(key) == {None}
        assert await driver.expire(key, 1_000)
        await driver.commit(key, head, revision=revision)
        assert table.bodies_expire(key) == {table.items(key)["memkit~"]["expires"]}
        assert (await driver.load(key)).head == head


async def test_of_two_calls_of_expire_the_last_one_counts(
    dynamodb: DynamoDB, proxy: FaultProxy, table: Table, key: str
) -> None:
    async with (
        connect(table.name, endpoint_url=proxy.url) as slow,
        connect(table.name, endpoint_url=dynamodb.url) as driver,
    ):
        await driver.append(key, [*one(), *one()])
        async with create_task_group() as tasks:
            proxy.delay = 0.5
            late = proxy.add_fault("late", "Query")
            tasks.start_soon(slow.expire, key, 1_000)
            await late.reached.wait()
            assert await driver.expire(key, None)
        assert table.bodies_expire(key) == {None}


async def test_a_redaction_keeps_to_an_expiry_set_meanwhile(
    dynamodb: DynamoDB, proxy: FaultProxy, table: Table, key: str
) -> None:
    body = random.Random(7).randbytes(400_000)
    async with (
        connect(table.name, endpoint_url=proxy.url) as slow,
        connect(table.name, endpoint_url=dynamodb.url) as driver,
    ):
        epoch = (await driver.append(key, one())).epoch
        async with create_task_group() as tasks:
            proxy.delay = 0.5
            late = proxy.add_fault("late", "TransactWriteItems")
            tasks.start_soon(lambda: slow.redact(key, {0: body}, epoch=epoch))
            await late.reached.wait()
            assert await driver.expire(key, 1_000)
        assert table.bodies_expire(key) == {table.items(key)["memkit~"]["expires"]}
        assert (await driver.load(key)).bodies == [body]


# --- what is forged, or too much ---


@pytest.mark.parametrize("forged", [{1, 2}, ["a"], "text", {b"a"}, {"nonsense"}], ids=str)
async def test_a_forged_list_of_parts_is_damage(
    dynamodb: DynamoDB, table: Table, key: str, forged: object
) -> None:
    loose = {"pk": f"memkit:{key}", "sk": "memkit!", "garbage": forged}
    async with connect(table.name, endpoint_url=dynamodb.url) as driver:
        for version, said in ((1, "damaged"), (2, "newer memkit"), ("x", "another program")):
            table.table.put_item(Item=loose | {"memkit": version})
            error = await error_of(driver.delete(key))
            assert isinstance(error, FormatError)
            assert said in str(error)
            assert f"the list of parts of {key!r} in table {table.name!r}" in str(error)
        error = await error_of(driver.commit(key, random.Random(7).randbytes(5_000), revision=""))
        assert isinstance(error, FormatError)
        assert table.items(key) == {"memkit!": loose | {"memkit": "x"}}


async def test_a_forged_time_is_damage_among_keys(dynamodb: DynamoDB, table: Table, key: str) -> None:
    async with connect(table.name, endpoint_url=dynamodb.url) as driver:
        await driver.commit(key, b"head", revision="")
        head = table.items(key)["memkit~"]
        for change in ({"until": "soon"}, {"memkit": 2}):
            table.table.put_item(Item=head | change)
            with pytest.raises(FormatError, match=f"{key}' in table '{table.name}'"):
                assert [name async for name in driver.list_keys(key)]


async def test_nothing_is_inflated_beyond_what_was_said() -> None:
    body = b"line\n" * 200_000
    small = draft_one(Record("id", body))
    assert small.record is not None
    assert small.packed == len(body)
    assert inflated(small.record.body, small.packed, "it") == body
    assert pack([Record("", body)]).packed > len(body)
    bomb = zlib.compress(bytes(10_000_000))
    for data, size in ((bomb, 1_000_000), (bomb, 10_000_001), (bomb, 10**18), (bomb + b"more", 10_000_000)):
        with pytest.raises(FormatError, match="it is damaged"):
            inflated(data, size, "it")


async def test_what_is_large_is_made_ready_in_a_thread() -> None:
    assert await aside(100, threading.get_ident) == threading.get_ident()
    assert await aside(1_000_000, threading.get_ident) != threading.get_ident()


async def test_an_append_that_no_item_can_list_is_refused() -> None:
    body = bytes(256 * 1024)
    with pytest.raises(UnsupportedError, match="append fewer records"):
        draft([Record("id", body)] * 5_001, 98, 600 * 1024)


async def test_an_index_on_an_attribute_of_ours_is_named() -> None:
    said = "One or more parameter values were invalid: Type mismatch for Index Key end Expected: S Actual: N"
    error = ClientError({"Error": {"Code": "ValidationException", "Message": said}}, "PutItem")
    known = explained(error, "chats", "user-1", "append to")
    assert isinstance(known, FormatError)
    assert 'attributes={"end": "memkit_end"}' in str(known)

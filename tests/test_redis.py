"""Redis and Valkey: the contract on each version, what leaves together, and what is particular to this driver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest
from anyio import CancelScope, create_task_group, sleep, to_thread
from anyio.lowlevel import checkpoint
from redis.asyncio import BlockingConnectionPool, Redis, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostError

from memkit.driver import Appended, Expire, ListKeys, Log, Record, Redact, Trim, capability
from memkit.drivers.redis import RedisDriver, connect, scripts
from memkit.drivers.redis.scripts import MAX_ENTRIES
from memkit.errors import ClosedError, ConflictError, FormatError, UnsupportedError
from memkit.run import new_id
from memkit.testing import Check, driver_checks
from tests.chaos_proxy import ChaosProxy, to_socket

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])
pytestmark = pytest.mark.anyio


def one(body: bytes = b"body") -> list[Record]:
    return [Record(new_id(), body)]


def many(count: int) -> list[Record]:
    return [Record(new_id(), b"%d" % n) for n in range(count)]


@pytest.fixture
async def client(redis_socket: str) -> AsyncIterator[Redis]:
    """A client that others might have: it decodes, and it retries."""
    async with Redis(unix_socket_path=redis_socket, decode_responses=True) as client:
        yield client


@pytest.fixture
def key() -> str:
    return f"key-{new_id()}"


# --- the contract ---


@asyncio_only
@pytest.mark.parametrize("check", driver_checks(), ids=str)
async def test_conformance(check: Check, redis_socket: str) -> None:
    await check(partial(connect, f"unix://{redis_socket}"))


@asyncio_only
@pytest.mark.parametrize("check", driver_checks(), ids=str)
async def test_conformance_of_a_borrowed_client(check: Check, client: Redis) -> None:
    await check(partial(RedisDriver, client, prefix=f"{new_id()}:", ttl=600, refresh_on_read=True))


@asyncio_only
async def test_capabilities(client: Redis) -> None:
    driver = RedisDriver(client)
    for kind in (Trim, Redact, Expire, ListKeys):
        assert capability(driver, kind) is driver


# --- a lost reply ---


@asyncio_only
async def test_a_lost_reply_doubles_a_bare_rpush_and_does_not_double_a_run(redis_socket: str, key: str) -> None:
    async with ChaosProxy(to_socket(redis_socket)).run() as proxy:
        once = Retry(NoBackoff(), 0)
        async with Redis(port=proxy.port, retry=once) as careful, Redis(port=proxy.port) as default:
            await careful.ping()
            proxy.swallow = 1
            with pytest.raises(LostError):
                await careful.rpush(f"{key}-careful", "message")
            assert await default.llen(f"{key}-careful") == 1

            proxy.swallow = 1
            assert await default.rpush(f"{key}-default", "message") == 2  # and this is called a success
            assert await default.llen(f"{key}-default") == 2

            driver = RedisDriver(default)
            await driver.load(key)
            proxy.swallow = 1
            appended = await driver.append(key, one())
            assert proxy.swallowed == 3
            assert (appended.position, appended.end) == (0, 1)
            assert (await driver.load(key)).bodies == [b"body"]


@asyncio_only
async def test_every_operation_may_lose_its_reply(redis_socket: str, key: str) -> None:
    async with (
        ChaosProxy(to_socket(redis_socket)).run() as proxy,
        connect(f"redis://127.0.0.1:{proxy.port}") as driver,
    ):
        await driver.append(key, many(4))

        def lose() -> None:
            proxy.swallow = 1

        lose()
        log = await driver.load(key)
        assert log.end == 4
        lose()
        revision = await driver.commit(key, b"head", revision=log.revision)
        lose()
        assert await driver.trim(key, 1) == 1
        lose()
        await driver.redact(key, {2: b"gone"}, epoch=log.epoch)
        lose()
        assert await driver.expire(key, 60)
        assert await driver.load(key) == Log(log.epoch, 1, 1, 4, [b"1", b"gone", b"3"], b"head", revision)
        lose()
        assert [name async for name in driver.list_keys(key)] == [key]
        await driver.load(key, 0, 0)  # of the two commands of delete, the second is to lose its reply
        delete = driver.delete(key)
        lose()
        assert await delete
        assert await driver.load(key) == Log()
        assert proxy.swallowed == 7


@asyncio_only
async def test_a_deletion_that_is_repeated_does_not_hit_what_came_after_it(client: Redis, key: str) -> None:
    driver = RedisDriver(client)
    old = (await driver.append(key, one())).epoch
    await driver.delete(key)
    await driver.append(key, one(b"new"))
    await driver._call(scripts.DELETE, key, [old.encode()], list)
    assert (await driver.load(key)).bodies == [b"new"]


# --- what leaves together ---


@asyncio_only
async def test_every_operation_is_one_round_trip(redis_socket: str, key: str) -> None:
    async with (
        ChaosProxy(to_socket(redis_socket)).run() as proxy,
        connect(f"redis://127.0.0.1:{proxy.port}", ttl=60, refresh_on_read=True) as driver,
    ):
        epoch = (await driver.append(key, many(300))).epoch
        log = await driver.load(key)
        for operation, trips in (
            (driver.append(key, one()), 1),
            (driver.append(key, many(100)), 1),
            (driver.load(key), 1),
            (driver.commit(key, b"head", revision=log.revision), 1),
            (driver.redact(key, {250: b"x"}, epoch=epoch), 1),
            (driver.trim(key, 200), 1),
            (driver.expire(key, 60), 1),
            (driver.delete(key), 2),
        ):
            before = proxy.round_trips
            await operation
            assert proxy.round_trips - before == trips, operation


@asyncio_only
async def test_appends_and_loads_that_wait_leave_as_pipelines_of_128(redis_socket: str, key: str) -> None:
    async with (
        ChaosProxy(to_socket(redis_socket)).run() as proxy,
        connect(f"redis://127.0.0.1:{proxy.port}") as driver,
    ):
        await driver.append(key, one())
        before = proxy.round_trips
        async with create_task_group() as tasks:
            for n in range(1000):
                tasks.start_soon(driver.append, f"{key}-{n}", one())
        assert proxy.round_trips - before <= 1 + 8 + 1  # at once, 999 in pipelines, and slack for what TCP parts
        before = proxy.round_trips
        async with create_task_group() as tasks:
            for n in range(1000):
                tasks.start_soon(driver.load, f"{key}-{n}", -50)
        assert proxy.round_trips - before <= 1 + 8 + 1


@asyncio_only
async def test_a_thousand_conversations_at_once_are_one_connection(
    client: Redis, redis_socket: str, key: str
) -> None:
    async with connect(f"unix://{redis_socket}") as driver:
        await driver.load(key)
        connections = (await client.info("clients"))["connected_clients"]
        ends: list[int] = []

        async def converse(n: int) -> None:
            for turn in range(5):
                appended = await driver.append(f"{key}-{n}", one(), since=turn)
                assert appended.position == turn
            ends.append((await driver.load(f"{key}-{n}")).end)

        async with create_task_group() as tasks:
            for n in range(1000):
                tasks.start_soon(converse, n)
        assert ends == [5] * 1000
        assert (await client.info("clients"))["connected_clients"] <= connections


@asyncio_only
async def test_each_caller_gets_its_own_error(client: Redis, key: str) -> None:
    driver = RedisDriver(client)
    await client.set(f"memkit:{key}-text", "text")
    outcomes: dict[int, object] = {}

    async def append(n: int) -> None:
        name, expect = {0: (f"{key}-{n}", 0), 1: (f"{key}-text", None), 2: (f"{key}-{n}", 7)}[n % 3]
        try:
            outcomes[n] = await driver.append(name, one(), expect=expect)
        except (FormatError, ConflictError) as error:
            outcomes[n] = type(error)

    async with create_task_group() as tasks:
        for n in range(99):
            tasks.start_soon(append, n)
    assert all(isinstance(outcomes[n], Appended) for n in range(0, 99, 3))
    assert {outcomes[n] for n in range(1, 99, 3)} == {FormatError}
    assert {outcomes[n] for n in range(2, 99, 3)} == {ConflictError}


@asyncio_only
async def test_a_cancelled_append_stays_in_its_pipeline(client: Redis, key: str) -> None:
    driver = RedisDriver(client)
    done: list[int] = []

    async def append(n: int) -> None:
        with CancelScope() as scope:
            if n % 7 == 0:
                scope.cancel()
            await driver.append(key, [Record(f"{key}-{n}", b"%d" % n)])
        if not scope.cancelled_caught:
            done.append(n)

    async with create_task_group() as tasks:
        for n in range(400):
            tasks.start_soon(append, n)
    stored = [int(body) for body in (await driver.load(key, 0)).bodies]
    assert set(done) <= set(stored)
    assert len(set(stored)) == len(stored)
    assert set(done) == {n for n in range(400) if n % 7}


@asyncio_only
async def test_a_cancelled_load_leaves_at_once_and_no_task_stays_behind(redis_socket: str, key: str) -> None:
    async with (
        ChaosProxy(to_socket(redis_socket)).run() as proxy,
        connect(f"redis://127.0.0.1:{proxy.port}", timeout=0.5, retry_for=60) as driver,
    ):
        await driver.append(key, one())
        before = asyncio.all_tasks()
        proxy.hangs = True
        async with create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(driver.load, key)
            await sleep(0.05)
            tasks.cancel_scope.cancel()
        async with asyncio.timeout(10):  # nobody waits, so the connection is given up after one try
            while [task for task in asyncio.all_tasks() - before if task.get_name() == "memkit redis"]:
                await sleep(0.01)
        proxy.hangs = False
        assert (await driver.load(key)).end == 1


# --- scripts ---


@asyncio_only
async def test_scripts_are_loaded_again_after_a_flush(client: Redis, key: str) -> None:
    driver = RedisDriver(client)
    await driver.append(key, one(b"0"))
    ends: list[int] = []

    async def append(n: int) -> None:
        ends.append((await driver.append(key, [Record(f"{key}-{n}", b"%d" % n)])).end)

    async with create_task_group() as tasks:
        for n in range(1, 301):
            tasks.start_soon(append, n)
            if n % 60 == 0:
                await client.script_flush()
    assert sorted(ends) == list(range(2, 302))
    assert sorted(int(body) for body in (await driver.load(key, 0)).bodies) == list(range(301))


# --- the layout ---


@asyncio_only
async def test_a_conversation_is_one_hash(client: Redis, key: str) -> None:
    driver = RedisDriver(client, prefix="app:")
    await driver.append(key, [Record("an id", b"a body")])
    revision = await driver.commit(key, b"head", revision=(await driver.load(key)).revision)
    stored = await client.hgetall(f"app:{key}")
    epoch = stored.pop("e")
    assert stored == {"v": "1", "n": "1", "r": revision, "h": "head", "0": "5:an ida body", "ian id": "0"}
    assert epoch == (await driver.load(key)).epoch


@asyncio_only
async def test_positions_up_to_two_to_the_53(client: Redis, key: str) -> None:
    driver = RedisDriver(client)
    await driver.append(key, one(b"first"))
    end = 2**53 - 10
    await client.hset(f"memkit:{key}", mapping={"b": end, "n": end})
    appended = await driver.append(key, many(3))
    assert (appended.position, appended.end) == (end, end + 3)
    appended = await driver.append(key, one(b"last"))
    assert (appended.position, appended.end) == (end + 3, end + 4)
    log = await driver.load(key, -2)
    assert (log.base, log.start, log.end, log.bodies) == (end, end + 2, end + 4, [b"2", b"last"])
    await driver.redact(key, {end + 1: b"x"}, epoch=log.epoch)
    assert (await driver.load(key, end, end + 2)).bodies == [b"0", b"x"]
    assert await driver.trim(key, end + 2) == end + 2
    assert (await driver.load(key, 0)).bodies == [b"2", b"last"]


@asyncio_only
async def test_a_load_returns_so_many_entries_and_no_more(client: Redis, key: str) -> None:
    driver = RedisDriver(client)
    for _ in range(3):
        await driver.append(key, many(2500))
    log = await driver.load(key, 0)
    assert (log.start, len(log.bodies), log.end) == (7500 - MAX_ENTRIES, MAX_ENTRIES, 7500)
    assert len((await driver.load(key, 0, log.start)).bodies) == 2500


@asyncio_only
async def test_a_batch_of_many_thousands(client: Redis, key: str) -> None:
    driver = RedisDriver(client)
    batch = many(9000)
    first = await driver.append(key, batch)
    assert (first.position, first.end) == (0, 9000)
    assert await driver.append(key, batch) == first
    with pytest.raises(ConflictError, match="only a part"):
        await driver.append(key, [*batch, *one()])
    await driver.redact(key, dict.fromkeys(range(8999), b"x"), epoch=first.epoch)
    assert (await driver.load(key, -2)).bodies == [b"x", b"8999"]


@asyncio_only
async def test_a_trim_leaves_nothing_behind(client: Redis, key: str) -> None:
    driver = RedisDriver(client)
    batch = many(2000)
    await driver.append(key, batch)
    assert await driver.trim(key, 1990) == 1990
    assert await client.hlen(f"memkit:{key}") == 2 * 10 + len("venb")
    await driver.append(key, batch[:1], since=1990)  # forgotten with its record, so it is a new one
    assert (await driver.load(key, -1)).bodies == [b"0"]


@asyncio_only
async def test_a_trim_that_was_interrupted_is_ended_by_the_next(client: Redis, key: str) -> None:
    driver = RedisDriver(client)
    batch = many(2000)
    await driver.append(key, batch)
    await driver._call(scripts.TRIM, key, [b"1500", b""], list)  # the first slice only
    again = await driver.append(key, batch[1400:1401])  # below the base, and not swept yet
    assert again.position == 2000
    assert await driver.trim(key, 0) == 1500
    assert await client.hlen(f"memkit:{key}") == 2 * 501 + len("venb")
    assert await driver.append(key, batch[1400:1401]) == again


# --- time to live ---


@asyncio_only
async def test_writes_prolong_a_life(client: Redis, key: str) -> None:
    driver, name = RedisDriver(client, ttl=100), f"memkit:{key}"
    await driver.append(key, one())
    assert 99_000 < await client.pttl(name) <= 100_000
    for write in (
        partial(driver.append, key, many(1)),
        partial(driver.append, key, many(3)),
        partial(driver.commit, key, b"head", revision=(await driver.load(key)).revision),
    ):
        await client.pexpire(name, 1000)
        await driver.load(key)
        assert await client.pttl(name) <= 1000
        await write()
        assert await client.pttl(name) > 99_000


@asyncio_only
async def test_loads_prolong_a_life_if_asked_for(client: Redis, key: str) -> None:
    driver, name = RedisDriver(client, ttl=100, refresh_on_read=True), f"memkit:{key}"
    await driver.append(key, one())
    await client.pexpire(name, 1000)
    await driver.load(key)
    assert await client.pttl(name) > 99_000


@asyncio_only
@pytest.mark.parametrize("count", [1, 2])
async def test_expire_has_the_last_word(client: Redis, key: str, count: int) -> None:
    driver, name = RedisDriver(client, ttl=100, refresh_on_read=True), f"memkit:{key}"
    await driver.append(key, one())
    await driver.expire(key, 1000)
    await driver.append(key, many(count))
    await driver.load(key)
    assert 999_000 < await client.pttl(name) <= 1_000_000
    await driver.expire(key, None)
    await driver.append(key, many(count))
    assert await client.pttl(name) == -1


@asyncio_only
@pytest.mark.parametrize("ttl", [0, -1, float("nan")])
async def test_a_time_to_live_that_is_none(client: Redis, key: str, ttl: float) -> None:
    with pytest.raises(FormatError, match="would delete a conversation"):
        RedisDriver(client, ttl=ttl)
    with pytest.raises(FormatError, match="NaN"):
        await RedisDriver(client).expire(key, float("nan"))


@asyncio_only
async def test_without_a_time_to_live_nothing_expires(client: Redis, key: str) -> None:
    driver = RedisDriver(client)
    await driver.append(key, one())
    assert await client.pttl(f"memkit:{key}") == -1


# --- keys ---


@asyncio_only
async def test_prefixes_keep_applications_apart(client: Redis, key: str) -> None:
    marks = [f"{key}*", f"{key}?", f"{key}"]
    drivers = [RedisDriver(client, prefix=mark) for mark in marks]
    for n, driver in enumerate(drivers):
        await driver.append(f":{n}", one())
        await client.set(f"{marks[n]}-text", "no hash")
    found = [[name async for name in driver.list_keys(":")] for driver in drivers]
    assert found == [[":0"], [":1"], [":2"]]


@asyncio_only
async def test_thousands_of_keys_are_listed_once_each(client: Redis, key: str) -> None:
    driver = RedisDriver(client, prefix=f"{key}:")
    async with create_task_group() as tasks:
        for n in range(3000):
            tasks.start_soon(driver.append, f"{n}", one())
    found = [name async for name in driver.list_keys()]
    assert sorted(map(int, found)) == list(range(3000))


# --- connect ---


@asyncio_only
async def test_a_driver_is_closed_with_its_context(redis_socket: str, key: str) -> None:
    async with connect(f"unix://{redis_socket}") as driver:
        await driver.append(key, one())
    with pytest.raises(ClosedError, match="async with connect"):
        await driver.load(key)


@asyncio_only
async def test_a_driver_that_is_closed_gives_its_connection_back(redis_socket: str, key: str) -> None:
    pool = BlockingConnectionPool(
        connection_class=UnixDomainSocketConnection, path=redis_socket, max_connections=1, timeout=1
    )
    driver = RedisDriver(Redis.from_pool(pool))

    async def use() -> None:
        await driver.append(key, one())
        await driver.close()

    # The one connection of the pool serves each event loop in turn.
    await to_thread.run_sync(lambda: [asyncio.run(use()) for _ in range(3)])
    async with Redis.from_pool(pool) as client:
        assert (await RedisDriver(client).load(key)).end == 3


@asyncio_only
async def test_what_is_under_way_is_finished_before_closing(redis_socket: str, key: str) -> None:
    async with create_task_group() as tasks, connect(f"unix://{redis_socket}") as driver:
        for n in range(300):
            tasks.start_soon(driver.append, key, [Record(f"{key}-{n}", b"x")])
        await checkpoint()
        await checkpoint()
    async with connect(f"unix://{redis_socket}") as driver:
        assert (await driver.load(key)).end == 300


@asyncio_only
@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost",
        "redis://localhost:port",
        "redis+sentinel://localhost:26379",
        "redis+sentinel:///service/0",
        "redis+cluster://",
        "redis+cluster://a:secret@:7000,:7001",
    ],
)
async def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(FormatError, match="no URL that connect knows") as caught:
        async with connect(url):
            pass
    assert "secret" not in str(caught.value)


@asyncio_only
@pytest.mark.parametrize(
    "url",
    [
        "redis://user:secret@localhost:6379/3",
        "rediss://:secret@localhost",
        "unix://user:secret@/tmp/redis.sock?db=2",
        "redis+sentinel://user:secret@one:26379,two/service/2",
        "rediss+sentinel://user:secret@one:26379,two/service/2?ssl_cert_reqs=none",
        "redis+cluster://user:secret@one:7000,two:7001",
        "rediss+cluster://user:secret@one:7000",
    ],
)
async def test_urls_are_opened_without_a_word_to_a_server(url: str) -> None:
    async with connect(url) as driver:
        assert "secret" not in repr(driver)


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_is_told_where_to_go() -> None:
    with pytest.raises(UnsupportedError, match="redis-py runs on asyncio; use"):
        async with connect("redis://localhost"):
            pass
    with pytest.raises(UnsupportedError, match="redis-py runs on asyncio; use"):
        await RedisDriver(Redis()).load("key")


def test_one_driver_on_several_event_loops(redis_socket: str, key: str) -> None:
    client = Redis(unix_socket_path=redis_socket)
    driver = RedisDriver(client)

    async def append() -> int:
        ends = [(await driver.append(key, one())).end for _ in range(2)]
        await client.aclose()
        return ends[-1]

    assert [asyncio.run(append()) for _ in range(3)] == [2, 4, 6]

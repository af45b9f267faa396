"""Redis and Valkey when something is wrong: with the network, with the server, with what lies under a key."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

import pytest
import trustme
from anyio import CancelScope, create_task_group, current_time, sleep
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from memkit.driver import Driver, Record
from memkit.drivers.redis import RedisDriver, connect
from memkit.drivers.redis.replies import explained, given_up
from memkit.errors import ConflictError, DriverError, FormatError, MemkitError, UnsupportedError
from memkit.run import new_id
from tests.chaos_proxy import ChaosProxy, to_port, to_socket
from tests.redis_writers import Writers
from tests.servers.cluster import TcpServer, free_port, tcp_server, wait_until
from tests.servers.process import Watchdog
from tests.servers.valkey import BINARIES, redis_server

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

HEALTHY = 20.0
"""Seconds within which a test with retries is over."""


def one(body: bytes = b"body") -> list[Record]:
    return [Record(new_id(), body)]


@pytest.fixture
def key() -> str:
    return f"key-{new_id()}"


@pytest.fixture
async def client(redis_socket: str) -> AsyncIterator[Redis]:
    async with Redis(unix_socket_path=redis_socket) as client:
        yield client


@pytest.fixture
async def proxy(redis_socket: str) -> AsyncIterator[ChaosProxy]:
    async with ChaosProxy(to_socket(redis_socket)).run() as proxy:
        yield proxy


@pytest.fixture(params=list(BINARIES))
def binary(request: pytest.FixtureRequest) -> Path:
    """The binary of each server, to be started with options of one's own."""
    return BINARIES[request.param]()


@pytest.fixture(scope="module", params=list(BINARIES))
def pair(request: pytest.FixtureRequest, watchdog: Watchdog) -> Iterator[tuple[TcpServer, TcpServer]]:
    """A master and its replica."""
    binary = BINARIES[request.param]()
    with tcp_server(binary, watchdog, "--repl-diskless-sync-delay", "0") as master:
        to_master = ["--replicaof", "127.0.0.1", str(master.port)]
        with tcp_server(binary, watchdog, *to_master) as replica:
            wait_until(lambda: _info(replica)["master_link_status"] == "up")
            yield master, replica


async def error_of(driver: Driver, key: str) -> MemkitError:
    with pytest.raises(MemkitError) as caught:
        await driver.append(key, one())
    return caught.value


# --- what lies under a key ---


@pytest.mark.parametrize("count", [1, 2])
async def test_another_type_under_the_key(client: Redis, key: str, count: int) -> None:
    driver = RedisDriver(client)
    await client.rpush(f"memkit:{key}", "a message")
    batch = [Record(new_id(), b"body") for _ in range(count)]
    for operation in (
        driver.append(key, batch),
        driver.load(key),
        driver.commit(key, b"head", revision=""),
        driver.delete(key),
        driver.trim(key, 1),
        driver.redact(key, {0: b""}, epoch=""),
        driver.expire(key, 1),
    ):
        with pytest.raises(FormatError, match="lies something that is no hash; use another prefix") as caught:
            await operation
        assert key in str(caught.value)
    assert await client.lrange(f"memkit:{key}", 0, -1) == [b"a message"]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"name": "Ada"}, "lies a hash that is not one of memkit"),
        ({"e": "epoch", "n": "3"}, "lies a hash that is not one of memkit"),
        ({"v": "1"}, "lies a hash that is not one of memkit"),
        ({"v": "2", "e": "epoch", "n": "3"}, "written by a newer memkit: its layout is version 2"),
    ],
)
async def test_a_hash_that_is_not_ours(client: Redis, key: str, stored: dict[str, str], message: str) -> None:
    driver = RedisDriver(client)
    await client.hset(f"memkit:{key}", mapping=stored)
    for operation in (
        driver.append(key, one()),
        driver.append(key, [*one(), *one()]),
        driver.load(key),
        driver.commit(key, b"head", revision=""),
        driver.delete(key),
        driver.trim(key, 1),
        driver.redact(key, {0: b""}, epoch=""),
        driver.expire(key, 1),
    ):
        with pytest.raises(FormatError, match=message):
            await operation
    assert await client.hgetall(f"memkit:{key}") == {k.encode(): v.encode() for k, v in stored.items()}


@pytest.mark.parametrize(
    "damage",
    [
        {"n": "many"},
        {"b": "x"},
        {"0": "none"},
        {"0": "99:x"},
        {"0": ":"},
        {"e": b"\xff"},
        {"n": "9"},
        {"0": "-1:ab"},
    ],
)
async def test_a_damaged_conversation_is_an_error_and_no_guess(
    client: Redis, key: str, damage: dict[str, str]
) -> None:
    driver = RedisDriver(client)
    await driver.append(key, [Record("one", b"1"), Record("two", b"2")])
    await client.hset(f"memkit:{key}", mapping=damage)
    before = await client.hgetall(f"memkit:{key}")
    with pytest.raises(FormatError, match=key):
        await driver.load(key, 0)
    with suppress(FormatError, ConflictError):
        await driver.redact(key, {0: b"", 1: b""}, epoch="epoch")
    assert await client.hgetall(f"memkit:{key}") == before


# --- what the server refuses ---


async def test_out_of_memory(binary: Path, watchdog: Watchdog) -> None:
    with redis_server(binary, watchdog, "--maxmemory", "6mb", "--maxmemory-policy", "noeviction") as path:
        async with connect(f"unix://{path}") as driver:
            stored, batch, error = 0, list[Record](), None
            while error is None:
                fresh = [*one(b"x" * 10_000), *one(b"y")]
                try:
                    await driver.append("key", fresh)
                    batch, stored = fresh, stored + 1
                except DriverError as caught:
                    error = caught
            assert "out of memory: raise maxmemory" in str(error)
            assert "nothing was stored" in str(error)
            assert error.retryable
            assert (await driver.append("key", batch)).position == 2 * stored - 2  # a repeated one needs no room
            assert (await driver.load("key", 0, 0)).end == 2 * stored
            assert (await driver.load("key", -1)).bodies == [b"y"]


async def test_a_replica_that_takes_no_writes(pair: tuple[TcpServer, TcpServer], key: str) -> None:
    master, replica = pair
    async with (
        connect(f"redis://127.0.0.1:{master.port}", wait_replicas=1, wait_timeout=4) as writer,
        connect(f"redis://127.0.0.1:{replica.port}", retry_for=0.3) as reader,
    ):
        await writer.append(key, one())
        assert (await reader.load(key)).bodies == [b"body"]
        assert [name async for name in reader.list_keys(key)] == [key]
        error = await error_of(reader, key)
        assert "a replica that takes no writes: connect to the master" in str(error)
        assert isinstance(error, DriverError)
        assert error.retryable


def _version(binary: Path) -> int:
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r" v=(\d+)", told)
    assert found
    return int(found[1])


def _info(server: TcpServer) -> dict[str, str]:
    with server.client() as client:
        return client.info()


async def test_a_server_that_cannot_save(binary: Path, watchdog: Watchdog) -> None:
    with tempfile.TemporaryDirectory(prefix="mk", ignore_cleanup_errors=True) as folder:
        server = tcp_server(binary, watchdog, folder=folder)
        with server as running:
            url = f"redis://127.0.0.1:{running.port}"
            async with Redis(port=running.port) as client, connect(url, retry_for=0.5) as driver:
                await _cannot_save(client, driver, folder)


async def _cannot_save(client: Redis, driver: RedisDriver, folder: str) -> None:
    await driver.append("key", one())
    shutil.rmtree(folder)
    await client.config_set("save", "1 1")
    with suppress(ResponseError):
        await client.bgsave()
    while (await client.info("persistence"))["rdb_last_bgsave_status"] != "err":
        await sleep(0.01)
    error = await error_of(driver, "key")
    assert "cannot save to its disk" in str(error)
    assert isinstance(error, DriverError)
    assert error.retryable
    await client.config_set("stop-writes-on-bgsave-error", "no")
    assert (await driver.append("key", one())).position == 1
    await client.config_set("save", "")  # or it would refuse to end


async def test_a_server_that_wants_a_password(binary: Path, watchdog: Watchdog) -> None:
    with tcp_server(binary, watchdog, "--requirepass", "open sesame") as server:
        place = f"127.0.0.1:{server.port}"
        for login in ("", ":wr0ng-secret@", "nobody:wr0ng-secret@"):
            async with connect(f"redis://{login}{place}") as driver:
                started = current_time()
                error = await error_of(driver, "key")
                assert current_time() < started + 5, "it was tried again"
                assert isinstance(error, DriverError)
                assert not error.retryable
                assert "check user and password" in str(error)
                for shown in (str(error), repr(error), repr(error.__cause__), repr(driver)):
                    assert "wr0ng-secret" not in shown
        async with connect(f"redis://:open%20sesame@{place}") as driver:
            assert (await driver.append("key", one())).position == 0


async def test_a_user_who_may_not_write(binary: Path, watchdog: Watchdog) -> None:
    with tcp_server(binary, watchdog) as server:
        place = f"127.0.0.1:{server.port}"
        async with Redis(port=server.port) as admin, connect(f"redis://reader:pw@{place}") as driver:
            for keys, commands in (("~memkit:*", "-evalsha"), ("~others:*", "+@all"), ("~memkit:*", "-hset")):
                await admin.execute_command(
                    "ACL", "SETUSER", "reader", "reset", "on", ">pw", "+@all", keys, commands
                )
                await RedisDriver(admin).append("key", one())
                error = await error_of(driver, "key")
                assert isinstance(error, DriverError), error
                assert not error.retryable
            await admin.execute_command("ACL", "SETUSER", "reader", "+hset")
            assert (await driver.append("key", one())).position == 3


async def test_the_rights_that_are_named_are_enough(binary: Path, watchdog: Watchdog) -> None:
    with tcp_server(binary, watchdog) as server:
        rights = ["~memkit:*", "-@all", "+@hash", "+@keyspace", "+@scripting", "+@connection", "+wait"]
        async with Redis(port=server.port) as admin:
            await admin.execute_command("ACL", "SETUSER", "bot", "on", ">pw", *rights)
        async with connect(f"redis://bot:pw@127.0.0.1:{server.port}", ttl=60) as driver:
            epoch = (await driver.append("key", one())).epoch
            await driver.commit("key", b"head", revision=(await driver.load("key")).revision)
            await driver.redact("key", {0: b"x"}, epoch=epoch)
            await driver.expire("key", 5)
            await driver.trim("key", 1)
            assert [name async for name in driver.list_keys()] == ["key"]
            assert await driver.delete("key")


async def test_a_server_busy_with_a_script_of_someone_else(client: Redis, redis_socket: str, key: str) -> None:
    limit = (await client.config_get("lua-time-limit"))["lua-time-limit"]
    await client.config_set("lua-time-limit", 5)
    async with connect(f"unix://{redis_socket}") as driver, create_task_group() as tasks:
        await driver.append(key, one())

        async def hog() -> None:
            # Without retries, or a time-out would start the script once more, and nobody would kill that.
            async with Redis(unix_socket_path=redis_socket, retry=Retry(NoBackoff(), 0)) as other:
                with suppress(RedisError):
                    await other.eval("while true do end", 0)

        tasks.start_soon(hog)
        while True:
            try:
                await client.ping()
            except ResponseError:
                break
        async with connect(f"unix://{redis_socket}", retry_for=0.2) as impatient:
            error = await error_of(impatient, key)
        assert "keeps it busy" in str(error)
        tasks.start_soon(_kill_script, client)
        assert (await driver.append(key, one())).position == 1  # it has waited
    await client.config_set("lua-time-limit", limit)


async def _kill_script(client: Redis) -> None:
    await sleep(0.1)
    await client.script_kill()


async def test_a_server_that_is_still_loading(binary: Path, watchdog: Watchdog) -> None:
    with tempfile.TemporaryDirectory(prefix="mk") as folder:
        port = free_port()
        with tcp_server(binary, watchdog, "--appendonly", "yes", port=port, folder=folder):
            async with connect(f"redis://127.0.0.1:{port}") as driver:
                for n in range(50):
                    await driver.append("key", [Record(f"{n}", b"x" * 1000)])
        slowly = ["--appendonly", "yes", "--key-load-delay", "20000"]
        if _version(binary) >= 7:
            slowly += ["--loading-process-events-interval-bytes", "1024"]
        async with connect(f"redis://127.0.0.1:{port}", retry_for=30) as driver:
            with tcp_server(binary, watchdog, *slowly, port=port, folder=folder):
                assert (await driver.append("key", one())).position == 50


async def test_an_old_server_is_refused(binary: Path, watchdog: Watchdog) -> None:
    with tcp_server(binary, watchdog) as server:
        version = _info(server)["redis_version"].encode()
        older = b"6.0" + version[3:]
        async with ChaosProxy(to_port(server.port)).run() as proxy:
            proxy.replace = (b"redis_version:" + version, b"redis_version:" + older)
            async with connect(f"redis://127.0.0.1:{proxy.port}") as driver:
                with pytest.raises(UnsupportedError, match=r"the server is Redis 6\.0; 6\.2 or later"):
                    await driver.append("key", one())
                proxy.replace = None
                assert (await driver.append("key", one())).position == 0


async def test_min_replicas_to_write(binary: Path, watchdog: Watchdog) -> None:
    with tcp_server(binary, watchdog, "--min-replicas-to-write", "1") as server:
        async with connect(f"redis://127.0.0.1:{server.port}", retry_for=0.2) as driver:
            error = await error_of(driver, "key")
            assert isinstance(error, DriverError)
            assert error.retryable
            assert "too few replicas" in str(error)
            assert (await driver.load("key")).end == 0


# --- replicas that are waited for ---


async def test_an_append_waits_for_its_replicas(pair: tuple[TcpServer, TcpServer], key: str) -> None:
    master, replica = pair
    url = f"redis://127.0.0.1:{master.port}"
    async with connect(url, wait_replicas=1, wait_timeout=0.2) as driver:
        await driver.append(key, one())
        late = one(b"late")
        replica.pause()
        async with connect(url, wait_replicas=1, wait_timeout=0.2) as other:
            for who in (driver, driver, other):  # a repeated one is stored already, but not on the replica
                with pytest.raises(DriverError, match="fewer than 1 replicas have confirmed") as caught:
                    await who.append(key, late)
                assert caught.value.retryable
        assert (await driver.load(key)).end == 2  # loads do not wait
        replica.resume()
        assert (await driver.append(key, late)).position == 1


async def test_a_deletion_waits_for_its_replicas_when_it_is_repeated_too(
    pair: tuple[TcpServer, TcpServer], key: str
) -> None:
    master, replica = pair
    url = f"redis://127.0.0.1:{master.port}"
    async with connect(url, wait_replicas=1, wait_timeout=0.2) as driver:
        await driver.append(key, one())
        replica.pause()
        async with connect(url, wait_replicas=1, wait_timeout=0.2) as other:
            for who in (driver, driver, other):
                with pytest.raises(DriverError, match="fewer than 1 replicas have confirmed"):
                    await who.delete(key)
            assert (await other.load(key)).epoch == ""
            replica.resume()
            assert await other.delete(key) is False
        with replica.client() as client:
            assert client.exists(f"memkit:{key}") == 0


# --- the network ---


async def test_tls(redis_socket: str, key: str, tmp_path: Path) -> None:
    authority, contexts = trustme.CA(), SSLContext(PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(contexts)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with ChaosProxy(to_socket(redis_socket)).run(contexts) as proxy:
        url = f"rediss://localhost:{proxy.port}"
        async with connect(f"{url}?ssl_ca_certs={tmp_path / 'ca.pem'}") as driver, create_task_group() as tasks:
            await driver.append(key, one(b"x" * 1_000_000))
            proxy.cut()
            for _ in range(300):
                tasks.start_soon(driver.append, key, one())
        async with connect(f"{url}?ssl_ca_certs={tmp_path / 'ca.pem'}") as driver:
            assert (await driver.load(key)).end == 301
        async with connect(url, retry_for=0.1) as driver:
            with pytest.raises(DriverError, match="certificate verify failed"):
                await driver.append(key, one())


async def test_a_cancellation_while_it_is_closed_leaves_no_connection(client: Redis, redis_socket: str) -> None:
    name = f"closed-{new_id()}"

    async def use(closing: asyncio.Event) -> None:
        async with connect(f"unix://{redis_socket}?client_name={name}") as driver:
            await driver.append("closed", one())
            closing.set()

    for turns in range(12):
        closing = asyncio.Event()
        task = asyncio.create_task(use(closing))
        await closing.wait()
        for _ in range(turns):
            await sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        while any(
            entry["name"] == name for entry in await client.client_list()
        ):  # the server sees it a little later
            await sleep(0.001)


async def test_cut_connections(proxy: ChaosProxy, key: str) -> None:
    async with connect(f"redis://127.0.0.1:{proxy.port}") as driver, create_task_group() as tasks:
        await driver.append(key, one())
        stored: list[int] = []

        async def write(writer: int) -> None:
            for n in range(20):
                appended = await driver.append(key, [Record(f"{writer}-{n}", b"%d" % n)])
                stored.append(appended.position)

        async def cut() -> None:
            while len(stored) < 16 * 20:
                proxy.cut()
                await sleep(0.01)

        tasks.start_soon(cut)
        for writer in range(16):
            tasks.start_soon(write, writer)
    assert sorted(stored) == list(range(1, 321))


async def test_a_server_that_is_away_and_comes_back(proxy: ChaosProxy, key: str) -> None:
    async with connect(f"redis://127.0.0.1:{proxy.port}") as driver, create_task_group() as tasks:
        await driver.append(key, one())
        proxy.refuses = True
        proxy.cut()
        for _ in range(200):
            tasks.start_soon(driver.append, key, one())
        await sleep(0.3)
        proxy.refuses = False
    async with connect(f"redis://127.0.0.1:{proxy.port}") as driver:
        assert (await driver.load(key, 0)).end == 201


async def test_a_server_that_stays_away(key: str) -> None:
    async with connect(f"redis://127.0.0.1:{free_port()}", retry_for=0.3) as driver:
        errors: list[DriverError] = []

        async def append() -> None:
            with pytest.raises(DriverError) as caught:
                await driver.append(key, one())
            errors.append(caught.value)

        async with create_task_group() as tasks:
            for _ in range(300):
                tasks.start_soon(append)
        assert {error.retryable for error in errors} == {True}
        assert all("nothing was stored" in str(error) for error in errors)


async def test_a_server_that_hangs(proxy: ChaosProxy, key: str) -> None:
    async with connect(f"redis://127.0.0.1:{proxy.port}", timeout=0.2, retry_for=0.5) as driver:
        await driver.append(key, one())
        proxy.hangs = True
        late = one(b"late")
        started = current_time()
        with pytest.raises(DriverError, match="outcome is unknown; repeat it with the same record") as caught:
            await driver.append(key, late)
        assert caught.value.retryable
        assert current_time() - started < HEALTHY
        proxy.hangs = False
        assert (await driver.append(key, late)).position == 1


async def test_a_write_that_is_cancelled_while_the_server_hangs_ends_before_the_cancellation(
    proxy: ChaosProxy, key: str
) -> None:
    async with connect(f"redis://127.0.0.1:{proxy.port}", timeout=0.3) as driver:
        await driver.append(key, one())
        for native in (False, True):
            proxy.hangs = True
            ended: list[int] = []

            async def append(ended: list[int] = ended) -> None:
                try:
                    await driver.append(key, one())
                finally:
                    proxy_was_open = not proxy.hangs
                    ended.append(proxy_was_open)

            async def mend() -> None:
                await sleep(0.1)
                proxy.hangs = False

            if native:
                task = asyncio.create_task(append())
                await sleep(0.02)
                task.cancel()
                await sleep(0.02)
                task.cancel()
                await mend()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                async with create_task_group() as tasks:
                    scope = CancelScope()

                    async def scoped(scope: CancelScope = scope, append: object = append) -> None:
                        with scope:
                            await append()  # type: ignore[operator]

                    tasks.start_soon(scoped)
                    await sleep(0.02)
                    scope.cancel()
                    tasks.start_soon(mend)
                assert scope.cancelled_caught
            assert ended == [True]
        assert (await driver.load(key)).end == 3


async def test_killed_clients(client: Redis, redis_socket: str, key: str) -> None:
    async with connect(f"unix://{redis_socket}") as driver:
        acknowledged: list[tuple[int, int]] = []

        async def write(writer: int) -> None:
            for n in range(150):
                await driver.append(f"{key}-{writer % 4}", [Record(f"{writer}-{n}", b"%d-%d" % (writer, n))])
                acknowledged.append((writer, n))

        async def kill() -> None:
            while len(acknowledged) < 16 * 150:
                await client.client_kill_filter(_type="normal", skipme=True)
                await sleep(0.02)

        async with create_task_group() as tasks:
            tasks.start_soon(kill)
            for writer in range(16):
                tasks.start_soon(write, writer)
        stored = Counter[bytes]()
        for n in range(4):
            stored.update((await driver.load(f"{key}-{n}", 0)).bodies)
        assert stored == Counter(b"%d-%d" % pair for pair in acknowledged)


async def test_a_restarted_server_knows_no_scripts(binary: Path, watchdog: Watchdog) -> None:
    durable = ["--appendonly", "yes", "--appendfsync", "always"]
    with tempfile.TemporaryDirectory(prefix="mk") as folder:
        port = free_port()
        async with connect(f"redis://127.0.0.1:{port}") as driver, create_task_group() as tasks:
            with tcp_server(binary, watchdog, *durable, port=port, folder=folder) as server:
                await driver.append("key", one())
                server.kill()
            for n in range(300):
                tasks.start_soon(driver.append, "key", [Record(f"{n}", b"%d" % n)])
            await sleep(0.05)
            with tcp_server(binary, watchdog, *durable, port=port, folder=folder):
                while (await driver.load("key", 0, 0)).end < 301:
                    await sleep(0.01)
                assert sorted(map(int, (await driver.load("key", 1)).bodies)) == list(range(300))


# --- a minute of it all ---


@pytest.mark.long
@pytest.mark.timeout(200)
async def test_a_minute_of_a_bad_network(redis_socket: str, key: str) -> None:
    rng = random.Random(5)
    async with ChaosProxy(to_socket(redis_socket)).run() as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        async with connect(url, timeout=0.5) as driver:
            writers = Writers(driver, key)
            over = False

            async def disturb() -> None:
                while not over:
                    await sleep(rng.uniform(0.01, 0.2))
                    match rng.randrange(5):
                        case 0 | 1:
                            proxy.swallow += 1
                        case 2:
                            proxy.cut()
                        case 3:
                            proxy.delay = rng.choice((0.0, 0.001, 0.02))
                        case _:
                            proxy.hangs = True
                            await sleep(rng.uniform(0, 0.8))
                            proxy.hangs = False

            async with create_task_group() as tasks:
                tasks.start_soon(disturb)
                await writers.run(60)
                over = True
            proxy.delay = proxy.swallow = 0
            print(await writers.check(), f"replies swallowed {proxy.swallowed}")
            assert len(writers.acknowledged) > 1000
            assert proxy.swallowed > 20


@pytest.mark.long
@pytest.mark.timeout(200)
async def test_a_server_killed_and_restarted_for_a_minute(binary: Path, watchdog: Watchdog, key: str) -> None:
    durable = ["--appendonly", "yes", "--appendfsync", "always"]
    with tempfile.TemporaryDirectory(prefix="mk") as folder:
        port, restarts, over = free_port(), 0, False

        async def kill_and_restart() -> None:
            nonlocal restarts
            while not over:
                with tcp_server(binary, watchdog, *durable, port=port, folder=folder) as server:
                    await sleep(2)
                    server.kill()
                restarts += 1

        async with connect(f"redis://127.0.0.1:{port}", timeout=1) as driver:
            writers = Writers(driver, key)
            async with create_task_group() as tasks:
                tasks.start_soon(kill_and_restart)
                await writers.run(60)
                over = True
            with tcp_server(binary, watchdog, *durable, port=port, folder=folder):
                print(await writers.check(), f"restarts {restarts}")
            assert restarts > 10


async def test_a_loop_that_ends_with_an_append_under_way_does_not_hang(redis_socket: str) -> None:
    program = """
import asyncio
from redis.asyncio import Redis
from memkit.drivers.redis import RedisDriver
from memkit.driver import Record
async def main():
    driver = RedisDriver(Redis(unix_socket_path={path!r}), wait_replicas=1, wait_timeout=0.1, retry_for=0.5)
    asyncio.create_task(driver.append("k", [Record("a", b"x")]))
asyncio.run(main())
"""
    command = [sys.executable, "-W", "ignore", "-c", program.format(path=redis_socket)]
    done = subprocess.run(command, timeout=30, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


async def test_an_error_tells_no_arguments_of_a_command() -> None:
    said = ResponseError("unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' 's3cret'")
    for error in (explained(said, "k", is_open=False), given_up(said, "k", 1, is_open=False)):
        assert "s3cret" not in str(error)
        assert "HELLO" in str(error)


async def test_an_unknown_option_of_a_url_is_refused_at_once() -> None:
    with pytest.raises(FormatError, match="no URL that connect knows"):
        async with connect("redis://localhost?foo=1"):
            pass


@pytest.mark.parametrize("wait_timeout", [0, 0.0001, 5, 6])
async def test_a_wait_that_could_not_end_in_time_is_refused(wait_timeout: float) -> None:
    with pytest.raises(FormatError, match="wait_timeout"):
        RedisDriver(Redis(), wait_replicas=1, wait_timeout=wait_timeout, timeout=5)

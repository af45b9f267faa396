"""Redis and Valkey as a cluster and with Sentinel: the contract, slots that move, masters that die."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest
from anyio import create_task_group, sleep
from redis import Redis
from redis.asyncio import RedisCluster
from redis.crc import key_slot
from redis.exceptions import MovedError

from memkit.driver import Record
from memkit.drivers.redis import RedisDriver, connect
from memkit.errors import DriverError, FormatError
from memkit.run import new_id
from memkit.testing import Check, driver_checks
from tests.redis_writers import Writers
from tests.servers.cluster import TcpServer, redis_cluster_of_six
from tests.servers.process import Watchdog
from tests.servers.sentinel import SentinelTrio, sentinel_trio
from tests.servers.valkey import BINARIES

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


EACH = [pytest.param(name, marks=() if name == "valkey9" else pytest.mark.long) for name in BINARIES]
"""Each server, those that are older in the long runs only."""


def one(body: bytes = b"body") -> list[Record]:
    return [Record(new_id(), body)]


def url_of(servers: list[TcpServer]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)


@pytest.fixture(scope="module", params=EACH)
def cluster(request: pytest.FixtureRequest, watchdog: Watchdog) -> Iterator[list[TcpServer]]:
    """A cluster of each server, in which nobody may break anything."""
    with redis_cluster_of_six(BINARIES[request.param](), watchdog) as servers:
        yield servers


@pytest.fixture(scope="module", params=EACH)
def trio(request: pytest.FixtureRequest, watchdog: Watchdog) -> Iterator[SentinelTrio]:
    """A master with replicas and Sentinels, in which nobody may break anything."""
    with sentinel_trio(BINARIES[request.param](), watchdog) as trio:
        yield trio


@pytest.fixture
def key() -> str:
    return f"key-{new_id()}"


# --- the contract ---


@pytest.mark.parametrize("check", driver_checks(), ids=str)
async def test_conformance_of_a_cluster(check: Check, cluster: list[TcpServer]) -> None:
    await check(partial(connect, url_of(cluster)))


@pytest.mark.parametrize("check", driver_checks(), ids=str)
async def test_conformance_through_sentinel(check: Check, trio: SentinelTrio) -> None:
    await check(partial(connect, trio.url))


# --- a cluster ---


async def test_a_borrowed_client_of_a_cluster(cluster: list[TcpServer], key: str) -> None:
    async with RedisCluster(host="127.0.0.1", port=cluster[0].port, decode_responses=True) as client:
        driver = RedisDriver(client)
        assert (await driver.append(key, one())).position == 0
        assert (await driver.load(key)).bodies == [b"body"]
    async with connect(f"redis://127.0.0.1:{cluster[1].port}", cluster=True) as driver:
        assert (await driver.load(key)).bodies == [b"body"]


async def test_a_node_that_hangs_is_passed_over(cluster: list[TcpServer], key: str) -> None:
    hanging = await asyncio.start_server(_hang, "127.0.0.1")
    async with hanging:
        port = hanging.sockets[0].getsockname()[1]
        nodes = f"127.0.0.1:{port},127.0.0.1:{cluster[0].port}"
        async with connect(f"redis+cluster://{nodes}", timeout=1, retry_for=3) as driver:
            assert (await driver.append(key, one())).position == 0


async def _hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def test_keys_of_all_nodes_are_listed_once(cluster: list[TcpServer], key: str) -> None:
    async with connect(url_of(cluster)) as driver:
        async with create_task_group() as tasks:
            for n in range(500):
                tasks.start_soon(driver.append, f"{key}-{n}", one())
        found = [name async for name in driver.list_keys(key)]
        assert sorted(found) == sorted(f"{key}-{n}" for n in range(500))


async def test_what_waits_leaves_over_one_connection_to_each_node(cluster: list[TcpServer], key: str) -> None:
    async with connect(url_of(cluster)) as driver:
        await driver.load(key)
        before = [_connections(server) for server in cluster[:3]]
        async with create_task_group() as tasks:
            for n in range(900):
                tasks.start_soon(driver.append, f"{key}-{n}", one())
        # And one more is that of who asks.
        assert all(_connections(server) <= count + 2 for server, count in zip(cluster, before, strict=False))


def _connections(server: TcpServer) -> int:
    with server.client() as client:
        return client.info("stats")["total_connections_received"]


async def test_a_slot_that_moves(cluster: list[TcpServer]) -> None:
    with cluster[0].client() as source, cluster[1].client() as target, cluster[2].client() as other:
        key = next(key for key in iter(lambda: f"key-{new_id()}", "") if _is_first_in_its_slot(source, key))
        slot = key_slot(f"memkit:{key}".encode())
        source_id, target_id = (client.execute_command("CLUSTER", "MYID") for client in (source, target))
        async with connect(url_of(cluster)) as driver:
            await driver.load(key)
            target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
            source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
            for n in range(3):  # what is not there is asked of the other, every time anew
                assert (await driver.append(key, one(b"%d" % n))).position == n
            for client in (target, source, other):
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)
            async with create_task_group() as tasks:  # what is asked of the old node is sent on
                for n in range(3, 50):
                    tasks.start_soon(driver.append, key, one(b"%d" % n))
            assert sorted(int(body) for body in (await driver.load(key)).bodies) == list(range(50))


def _is_first_in_its_slot(server: Redis, key: str) -> bool:
    slot = key_slot(f"memkit:{key}".encode())
    if server.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot):
        return False
    with suppress(MovedError):
        return not server.exists(f"memkit:{key}")
    return False


async def test_a_server_that_is_no_cluster(trio: SentinelTrio, key: str) -> None:
    async with connect(url_of(trio.servers[:1]), retry_for=0.2) as driver:
        with pytest.raises(DriverError, match=r"[Cc]luster") as caught:
            await driver.append(key, one())
        assert "nothing was stored" in str(caught.value)


async def test_sentinels_that_do_not_know_the_service(trio: SentinelTrio, key: str) -> None:
    async with connect(trio.url.replace("mymaster", "yours"), retry_for=0.2) as driver:
        with pytest.raises(DriverError, match="No master found for 'yours'"):
            await driver.append(key, one())


async def test_cluster_and_databases_do_not_go_together() -> None:
    with pytest.raises(FormatError, match="no URL that connect knows"):
        async with connect("redis+cluster://127.0.0.1:7000/3"):
            pass


# --- failover ---


@pytest.fixture(params=EACH)
def breakable_cluster(request: pytest.FixtureRequest, watchdog: Watchdog) -> Iterator[list[TcpServer]]:
    with redis_cluster_of_six(BINARIES[request.param](), watchdog) as servers:
        yield servers


@pytest.fixture(params=EACH)
def breakable_trio(request: pytest.FixtureRequest, watchdog: Watchdog) -> Iterator[SentinelTrio]:
    with sentinel_trio(BINARIES[request.param](), watchdog) as trio:
        yield trio


async def _break(server: TcpServer, *, by_killing: bool) -> None:
    await sleep(0.5)
    if by_killing:
        server.kill()
    else:
        server.pause()
        await sleep(3.5)
        server.resume()  # as a master that is none any more


@pytest.mark.parametrize("by_killing", [True, False], ids=["killed", "hanging"])
async def test_a_master_of_a_cluster_dies(breakable_cluster: list[TcpServer], key: str, by_killing: bool) -> None:
    async with connect(url_of(breakable_cluster[1:]), timeout=1, wait_replicas=1, wait_timeout=0.5) as driver:
        # The writers' conversations are spread over the masters; the first of these dies. Its only replica takes
        # over and has none itself, so what is written there then is never confirmed.
        writers = Writers(driver, key, conversations=12, repeats=not by_killing)
        async with create_task_group() as tasks:
            tasks.start_soon(partial(_break, breakable_cluster[0], by_killing=by_killing))
            tasks.start_soon(writers.run, 6)
        await _without_waiting(writers, url_of(breakable_cluster[1:]))


@pytest.mark.parametrize("by_killing", [True, False], ids=["killed", "hanging"])
async def test_the_master_that_sentinel_names_dies(
    breakable_trio: SentinelTrio, key: str, by_killing: bool
) -> None:
    async with connect(breakable_trio.url, timeout=1, wait_replicas=1, wait_timeout=0.5) as driver:
        writers = Writers(driver, key)
        async with create_task_group() as tasks:
            tasks.start_soon(partial(_break, breakable_trio.servers[0], by_killing=by_killing))
            tasks.start_soon(writers.run, 6)
        await _without_waiting(writers, breakable_trio.url)


async def _without_waiting(writers: Writers, url: str) -> None:
    async with connect(url) as reader:
        writers.driver = reader
        print(await writers.check())
        assert len(writers.acknowledged) > 100


@pytest.mark.long
@pytest.mark.timeout(200)
async def test_masters_of_a_cluster_die_for_a_minute(breakable_cluster: list[TcpServer], key: str) -> None:
    async with connect(url_of(breakable_cluster[3:]), timeout=1, wait_replicas=1, wait_timeout=0.5) as driver:
        writers = Writers(driver, key, conversations=12)
        async with create_task_group() as tasks:
            tasks.start_soon(writers.run, 60)
            for server in breakable_cluster[:3]:
                await sleep(random.Random(5).uniform(5, 10))
                server.pause()
                await sleep(6)
                server.resume()  # as a replica of the one that has taken over
                await sleep(3)
        await _without_waiting(writers, url_of(breakable_cluster))


@pytest.mark.long
@pytest.mark.timeout(200)
async def test_failovers_of_sentinel_for_a_minute(breakable_trio: SentinelTrio, key: str) -> None:
    async with connect(breakable_trio.url, timeout=1, wait_replicas=1, wait_timeout=0.5) as driver:
        writers = Writers(driver, key)
        async with create_task_group() as tasks:
            tasks.start_soon(writers.run, 60)
            for _ in range(4):
                await sleep(5)
                with breakable_trio.sentinels[0].client() as client:
                    port = client.sentinel_masters()["mymaster"]["port"]
                master = next(server for server in breakable_trio.servers if server.port == port)
                master.pause()
                await sleep(5)
                master.resume()
                await sleep(3)
        await _without_waiting(writers, breakable_trio.url)

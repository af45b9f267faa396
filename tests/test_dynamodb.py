"""DynamoDB: the contract on both layouts of a table, and what is particular to this driver."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aioboto3
import pytest
from aiobotocore.config import AioConfig
from anyio import create_task_group, fail_after

from memkit.driver import Appended, Expire, ListKeys, Log, Record, Redact, Trim, capability
from memkit.drivers.dynamodb import DynamoDbDriver, drafts, lanes
from memkit.drivers.dynamodb.layout import Layout, aliases, beginnings
from memkit.drivers.dynamodb.requests import IN_FLIGHT
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ConflictError, DriverError, FormatError, UnsupportedError
from memkit.run import new_id
from memkit.testing import Check, driver_checks
from tests.dynamodb_proxy import FaultProxy
from tests.servers.dynamodb import DynamoDB

pytestmark = pytest.mark.anyio
asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])

LAYOUTS = {"sort key": "sk", "partition key only": None}
HEALTHY = 20.0
"""Seconds within which what may be tried for ever is over."""

CONFIG = AioConfig(retries={"mode": "standard", "total_max_attempts": 2}, parameter_validation=False)


@asynccontextmanager
async def opened(name: str, **options: Any) -> AsyncGenerator[DynamoDbDriver]:
    """Open a driver with a client of its own; a process that is spawned can do that, too."""
    async with aioboto3.Session().resource("dynamodb", config=CONFIG) as resource:
        yield DynamoDbDriver(await resource.Table(name), **options)


@pytest.fixture(params=LAYOUTS.values(), ids=list(LAYOUTS))
def sort_key(request: pytest.FixtureRequest) -> str | None:
    """Give both layouts: a table with a sort key, and one without."""
    return request.param


@pytest.fixture
def open_driver(sort_key: str | None, dynamodb: DynamoDB) -> Any:
    """Give what opens drivers of one table."""
    keys = {"pk": "S"} | ({sort_key: "S"} if sort_key else {})
    return partial(opened, dynamodb.table(keys), sort_key=sort_key)


@pytest.fixture
def key() -> str:
    return f"key-{new_id()}"


def many(count: int) -> list[Record]:
    return [Record(new_id(), b"%d" % n) for n in range(count)]


class FakeTable:
    """What a driver borrows, before anything is asked of it."""

    name = "table"
    meta: Any = type("Meta", (), {"client": None})


class Store:
    """What lies in the table, seen by a client of its own."""

    def __init__(self, dynamodb: DynamoDB, sort_key: str | None) -> None:
        self.sort_key = sort_key
        self.table = dynamodb.resource.Table(dynamodb.table({"pk": "S"} | ({sort_key: "S"} if sort_key else {})))

    def items(self, key: str) -> list[dict[str, Any]]:
        """Return all items that belong to a key."""
        found: list[dict[str, Any]] = []
        asked: dict[str, Any] = {}
        while True:
            page = self.table.scan(ConsistentRead=True, **asked)
            found += [item for item in page["Items"] if item["pk"].startswith(f"memkit:{key}")]
            if "LastEvaluatedKey" not in page:
                return found
            asked = {"ExclusiveStartKey": page["LastEvaluatedKey"]}

    def item(self, key: str, end: str) -> dict[str, Any]:
        """Return the item of a key that has this end."""
        ((found),) = [item for item in self.items(key) if item[self.sort_key or "pk"].endswith(end)]
        return found

    def parts_that_nothing_refers_to(self, key: str) -> set[str]:
        items = self.items(key)
        groups = [group for item in items for group in json.loads(item.get("groups", "[]"))]
        referred = {
            f"!{name}!{n:016d}" for _, name, first, count, _ in groups for n in range(first, first + count)
        }
        return {end[-46:] for item in items if (end := item[self.sort_key or "pk"])[-46:-45] == "!"} - referred

    def positions(self, key: str) -> set[int]:
        ends = [item[self.sort_key or "pk"] for item in self.items(key)]
        return {int(end[-16:]) for end in ends if end[-46:-45] == "#"}

    def first_entry(self, key: str, base: int) -> int:
        """Return where the entry begins that has the entry `base`."""
        return max((at for at in self.positions(key) if at <= base), default=base)


@pytest.fixture
def store(dynamodb: DynamoDB, sort_key: str | None) -> Store:
    """Give the table that the drivers of a test use."""
    return Store(dynamodb, sort_key)


# --- the contract ---


CONTRACT = [
    pytest.param(check, key, id=f"{layout}-{check}", marks=pytest.mark.long if key is None and is_slow else ())
    for layout, key in LAYOUTS.items()
    for check in driver_checks()
    for is_slow in [check.group in {"cancellation", "concurrency", "expire", "large", "retries", "slices"}]
]
"""All of it on both layouts, some of the second in the long runs."""


@asyncio_only
@pytest.mark.parametrize(("check", "sort_key"), CONTRACT)
async def test_conformance(check: Check, sort_key: str | None, dynamodb: DynamoDB) -> None:
    partition_key = "large" if check.group == "large" else "entry"  # list_keys reads the whole table
    keys = {partition_key: "S"} | ({"body": "S"} if sort_key else {})
    names = {"entry": "id", "body": "content"}  # since the keys of this table are called like attributes of ours
    options = {"partition_key": partition_key, "sort_key": "body" if sort_key else None, "attributes": names}
    await check(partial(opened, dynamodb.table(keys), **options))


@asyncio_only
async def test_capabilities(open_driver: Any) -> None:
    async with open_driver() as driver:
        for kind in (Trim, Redact, Expire, ListKeys):
            assert capability(driver, kind) is driver


async def test_trio_is_refused(anyio_backend: str, open_driver: Any) -> None:
    if anyio_backend == "trio":
        driver = DynamoDbDriver(FakeTable())
        with pytest.raises(UnsupportedError, match="asyncio"):
            await driver.load("key")


# --- any size, in any order, beside the simplest driver ---


@asyncio_only
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
async def test_two_drivers_and_a_model_agree(seed: int, open_driver: Any, store: Store, key: str) -> None:
    chance = random.Random(seed)
    model = InMemoryDriver()
    async with open_driver() as one, open_driver() as other:
        for _ in range(35):
            driver = chance.choice((one, other))
            await STEPS[chance.choice(CHOICES)](chance, driver, model, key)
            await compare(chance, chance.choice((one, other)), model, key)
        log = await model.load(key, 0)
        for low in range(log.base, log.end, 40):
            found = await one.load(key, low, low + 40)
            assert list(found.bodies) == list((await model.load(key, found.start, low + 40)).bodies)
        assert store.parts_that_nothing_refers_to(key) == set()
        assert store.positions(key) <= set(range(store.first_entry(key, log.base), log.end))
        await one.delete(key)
        assert store.items(key) == []


async def append(chance: random.Random, driver: Any, model: InMemoryDriver, key: str) -> None:
    size = chance.choice((0, 10, 10, 10, 2_000, 400_000))
    count = 1 if size > 2_000 else chance.choice((1, 1, 2, 5))
    await both_append(chance, driver, model, key, [chance.randbytes(size) for _ in range(count)])


async def append_many(chance: random.Random, driver: Any, model: InMemoryDriver, key: str) -> None:
    size = chance.choice((10, 10_000))
    await both_append(
        chance, driver, model, key, [b"%d" % n + b"x" * size for n in range(chance.randint(99, 200))]
    )


async def both_append(
    chance: random.Random, driver: Any, model: InMemoryDriver, key: str, bodies: list[bytes]
) -> None:
    before = await model.load(key, 0)
    batch = [Record(new_id(), body) for body in bodies]
    since = chance.choice((before.end, before.end, chance.randint(0, before.end)))
    expected = await model.append(key, batch)
    for _ in range(chance.choice((1, 1, 2))):
        appended = await driver.append(key, batch, since=since)
        assert (appended.position, appended.end) == (expected.position, expected.end)


async def trim(chance: random.Random, driver: Any, model: InMemoryDriver, key: str) -> None:
    log = await model.load(key, 0)
    base = chance.randint(log.base, log.base + (log.end - log.base) // 2)
    assert await driver.trim(key, base) == await model.trim(key, base)


async def redact(chance: random.Random, driver: Any, model: InMemoryDriver, key: str) -> None:
    mine, log = await driver.load(key, -1), await model.load(key, 0)
    if log.base < log.end:
        some = {chance.randrange(log.base, log.end) for _ in range(chance.choice((1, 4)))}
        bodies = {at: chance.randbytes(chance.choice((0, 20, 500_000))) for at in some}
        await driver.redact(key, bodies, epoch=mine.epoch)
        await model.redact(key, bodies, epoch=log.epoch)


async def commit(chance: random.Random, driver: Any, model: InMemoryDriver, key: str) -> None:
    head = chance.randbytes(chance.choice((0, 100, 5_000, 900_000)))
    mine, log = await driver.load(key, -1), await model.load(key, 0)
    await driver.commit(key, head, revision=mine.revision)
    await model.commit(key, head, revision=log.revision)


async def delete(chance: random.Random, driver: Any, model: InMemoryDriver, key: str) -> None:
    assert await driver.delete(key) == await model.delete(key)


STEPS = {"append": append, "many": append_many, "trim": trim, "redact": redact, "commit": commit, "delete": delete}
CHOICES = [*["append"] * 8, *["many"] * 3, *["redact"] * 3, *["trim"] * 2, *["commit"] * 3, "delete"]


async def compare(chance: random.Random, driver: Any, model: InMemoryDriver, key: str) -> None:
    whole = await model.load(key, 0)
    start = chance.choice((-200, -1, -chance.randint(1, 300), chance.randint(0, whole.end)))
    stop = chance.choice((None, chance.randint(0, whole.end), -3))
    mine, log = await driver.load(key, start, stop), await model.load(key, start, stop)
    assert (mine.base, mine.end, mine.head) == (log.base, log.end, log.head)
    assert (mine.epoch == "") == (log.epoch == "")
    assert mine.start + len(mine.bodies) == log.start + len(log.bodies)
    assert list(mine.bodies) == list(log.bodies)[mine.start - log.start :]
    assert len(mine.bodies) > 0 or len(log.bodies) == 0


# --- what is stored, and where ---


@pytest.mark.parametrize("sort", ["sk", None])
def test_no_item_is_taken_for_that_of_another_key(sort: str | None) -> None:
    layout = Layout("pk", sort, "memkit:", {})
    epoch, parts = new_id(), new_id()
    keys = [
        "a",
        "a~",
        "a!",
        "a#",
        f"a#{epoch}",
        f"a#{epoch}#{0:016d}",
        f"a!{parts}!{0:016d}",
        f"a#{epoch}#{0:016d}~",
    ]
    keys += [f"{key}{end}" for key in keys for end in ("~", "!", f"#{epoch}#{1:016d}", f"!{parts}!{1:016d}")]
    makers = (
        layout.head,
        layout.loose,
        lambda key: layout.entry(key, epoch, 1),
        lambda key: layout.part(key, parts, 1),
    )
    made = [tuple(make(key).items()) for key in set(keys) for make in makers]
    assert len(set(made)) == len(made)


def test_each_position_of_an_entry_leads_to_it() -> None:
    chance = random.Random(1)
    for _ in range(300):
        start, count = chance.randrange(5_000), chance.randrange(1, 700)
        places = {start, *aliases(start, count)}
        assert len(places) <= 2 * count.bit_length()
        for position in range(start, start + count):
            assert places & set(beginnings(position)), (start, count, position)
        assert all(start <= place < start + count for place in places)


def test_names_that_collide_are_refused() -> None:
    with pytest.raises(FormatError, match="attributes="):
        DynamoDbDriver(FakeTable(), partition_key="id", sort_key="entry")
    with pytest.raises(FormatError, match="bodies"):
        DynamoDbDriver(FakeTable(), attributes={"bodies": "b"})
    with pytest.raises(FormatError, match="prefix"):
        DynamoDbDriver(FakeTable(), prefix="p" * 513)
    with pytest.raises(FormatError, match="ttl"):
        DynamoDbDriver(FakeTable(), ttl=0)
    for retry_for in (0, -1, 541, float("nan"), float("inf")):
        with pytest.raises(FormatError, match="retry_for"):
            DynamoDbDriver(FakeTable(), retry_for=retry_for)


@asyncio_only
@pytest.mark.parametrize(
    ("change", "said"), [({"memkit": 2}, "newer memkit"), ({"memkit": None}, "another program")]
)
async def test_what_is_not_ours_is_left_alone(
    change: dict[str, Any], said: str, open_driver: Any, store: Store, key: str
) -> None:
    async with open_driver() as driver:
        log = await driver.append(key, many(2))
        head = store.item(key, "~")
        foreign = {name: value for name, value in (head | change).items() if value is not None}
        store.table.put_item(Item=foreign)
        async with open_driver() as other:
            for each in (driver, other):
                for call in (
                    each.load(key),
                    each.append(key, many(1), since=2),
                    each.commit(key, b"head", revision=log.epoch),
                    each.trim(key, 1),
                    each.expire(key, 60),
                    each.delete(key),
                ):
                    with pytest.raises(FormatError, match=said) as caught:
                        await call
                    assert key in str(caught.value)
        assert store.item(key, "~") == foreign
        assert len(store.items(key)) == 3


@asyncio_only
async def test_an_append_of_any_size_is_one_for_readers(open_driver: Any, store: Store, key: str) -> None:
    chance = random.Random(2)
    bodies = [chance.randbytes(20_000) for _ in range(300)]
    async with open_driver() as driver, open_driver() as other:
        assert (await driver.append(key, many(3))).end == 3
        batch = [Record(new_id(), body) for body in bodies]
        appended = await driver.append(key, batch, since=3)
        assert (appended.position, appended.end) == (3, 303)
        await driver.append(key, many(1), since=303)
        for low, high in ((3, 4), (1, 5), (150, 160), (302, 304), (100, 303)):
            log = await other.load(key, low, high)
            expected = [b"0", b"1", b"2", *bodies, b"0"][low:high]
            assert (log.start, list(log.bodies)) == (low, expected)
        assert await other.append(key, batch, since=3) == Appended(3, 304, appended.epoch)
        with pytest.raises(ConflictError, match="a part"):
            await other.append(key, batch[100:150] + many(1))
        assert store.parts_that_nothing_refers_to(key) == set()


@asyncio_only
async def test_ids_are_any_text_and_bodies_may_be_empty(open_driver: Any, key: str) -> None:
    batch = [Record(name, b"") for name in ("\U0001f511", "e\u0301", "\x00", "~", "i" * 400_000)]
    async with open_driver() as driver, open_driver() as other:
        for at, record in enumerate(batch):
            assert (await driver.append(key, [record], since=at)).position == at
        for at, record in enumerate(batch):
            assert (await other.append(key, [record])).position == at
        assert list((await other.load(key)).bodies) == [b""] * 5


# --- what it costs ---


@pytest.fixture
async def proxy(dynamodb: DynamoDB) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(dynamodb.url).run() as proxy:
        yield proxy


@asynccontextmanager
async def through(proxy: FaultProxy, store: Store, **options: Any) -> AsyncGenerator[DynamoDbDriver]:
    async with aioboto3.Session().resource("dynamodb", config=CONFIG, endpoint_url=proxy.url) as resource:
        yield DynamoDbDriver(await resource.Table(store.table.name), sort_key=store.sort_key, **options)


def requests(proxy: FaultProxy) -> dict[str, int]:
    found = {operation: traffic.requests for operation, traffic in proxy.traffic.items()}
    proxy.reset()
    return found


@asyncio_only
async def test_cost_does_not_depend_on_the_history(proxy: FaultProxy, store: Store, key: str) -> None:
    load = {"Query": 1} if store.sort_key else {"GetItem": 1, "BatchGetItem": 1}
    received: list[int] = []
    async with through(proxy, store) as driver:
        end = 0
        for size in (60, 300, 1_500):
            while end < size:
                end = (await driver.append(key, [Record(new_id(), b"x" * 500) for _ in range(60)], since=end)).end
            proxy.reset()
            await driver.load(key, -50)
            received.append(proxy.total.received)
            assert requests(proxy) == load
            end = (await driver.append(key, many(1), since=end)).end
            assert requests(proxy) == {"TransactWriteItems": 1}
            async with through(proxy, store) as fresh:
                end = (await fresh.append(key, many(1), since=end)).end
                assert requests(proxy) == {"GetItem": 1, "TransactWriteItems": 1}
    assert max(received) < 1.1 * min(received)


@asyncio_only
async def test_what_waits_leaves_together(proxy: FaultProxy, store: Store, key: str) -> None:
    async with through(proxy, store) as driver:
        epoch = (await driver.append(key, many(1))).epoch
        proxy.reset()
        positions: list[int] = []
        refused: list[ConflictError] = []

        async def append(n: int) -> None:
            batch = [Record(new_id(), b"%d" % n)]
            try:
                positions.append(
                    (await driver.append(key, batch, since=1, epoch="other" if n == 7 else epoch)).position
                )
            except ConflictError as error:
                refused.append(error)

        async with create_task_group() as tasks:
            for n in range(60):
                tasks.start_soon(append, n)
        assert sorted(positions) == list(range(1, 60))
        assert len(refused) == 1
        assert proxy.traffic["TransactWriteItems"].requests <= 4
        assert proxy.most_at_once <= IN_FLIGHT


@asyncio_only
async def test_loads_may_be_cheaper_than_consistent(proxy: FaultProxy, store: Store, key: str) -> None:
    proxy.keeps = True
    async with through(proxy, store, consistent=False) as driver:
        await driver.append(key, many(3))
        proxy.reset()
        assert len((await driver.load(key)).bodies) == 3
        assert all("true" not in json.dumps(body).lower() for _, body in proxy.bodies)


# --- deletions and expiry ---


@asyncio_only
async def test_a_deletion_that_was_broken_off_is_finished_by_the_next(
    proxy: FaultProxy, store: Store, key: str
) -> None:
    async with through(proxy, store, retry_for=0.2) as driver:
        old = await driver.append(key, many(30))
        for _ in range(2):
            proxy.add_fault("throttled", "BatchWriteItem", times=100)
            with pytest.raises(DriverError) as caught:
                await driver.delete(key)
            assert caught.value.retryable
            proxy.faults.clear()
            assert await driver.load(key) == Log()
            assert len(store.items(key)) == 31
        new = await driver.append(key, many(1))
        assert (new.position, new.end) == (0, 1)
        assert new.epoch != old.epoch
        assert len(store.items(key)) == 2


@asyncio_only
async def test_an_append_beside_a_deletion_is_in_the_next_epoch(open_driver: Any, store: Store, key: str) -> None:
    async with open_driver() as one, open_driver() as other:
        for _ in range(10):
            end = (await one.append(key, many(2))).end
            async with create_task_group() as tasks:
                tasks.start_soon(other.delete, key)
                for _ in range(3):
                    tasks.start_soon(one.append, key, many(1))
            log = await other.load(key)
            assert len(log.bodies) == log.end <= end + 3
            await other.delete(key)
            assert store.items(key) == []


@asyncio_only
async def test_runs_expire_one_by_one_and_raise_the_base(open_driver: Any, store: Store, key: str) -> None:
    async with open_driver(ttl=600) as driver:
        await driver.append(key, many(5))
        now = int(time.time())
        items = [item for item in store.items(key) if "entry" in item]
        assert all(590 < int(item["expires"]) - now <= 601 for item in store.items(key))
        for item in sorted(items, key=lambda item: int(item["body"].value))[:2]:
            store.table.put_item(Item=item | {"expires": now - 1})
        log = await driver.load(key)
        assert (log.base, log.start, log.end, log.bodies) == (2, 2, 5, [b"2", b"3", b"4"])
        assert (await driver.append(key, many(1), since=5)).position == 5
        for item in items[:2]:
            store.table.delete_item(Key={name: item[name] for name in ("pk", store.sort_key) if name})


@asyncio_only
async def test_expire_reaches_all_items_and_has_the_last_word(open_driver: Any, store: Store, key: str) -> None:
    async with open_driver(ttl=600) as driver, open_driver() as other:
        await driver.append(key, many(150))
        await driver.append(key, many(2), since=150)
        assert await other.expire(key, 6_000)
        await driver.append(key, many(1), since=152)
        assert len({item["expires"] for item in store.items(key) if "garbage" not in item and "body" in item}) == 1
        assert int(store.item(key, "~")["expires"]) > time.time() + 5_000
        assert await other.expire(key, None)
        await driver.append(key, many(101), since=153)
        assert not any("expires" in item for item in store.items(key))


@asyncio_only
async def test_parts_that_someone_has_left_behind_are_deleted(open_driver: Any, store: Store, key: str) -> None:
    async with open_driver() as driver:
        await driver.append(key, many(150))
        loose = next(item for item in store.items(key) if item[store.sort_key or "pk"].endswith("!"))
        part = next(item for item in store.items(key) if item[store.sort_key or "pk"][-46:-45] == "!")
        name, old = store.sort_key or "pk", f"{0:028x}"
        store.table.put_item(Item=part | {name: f"{part[name][:-46]}!{old}!{0:016d}"})
        store.table.put_item(Item=loose | {"staged": {f"{old}:0:1"}})
        assert len(store.parts_that_nothing_refers_to(key)) == 1
        await driver.append(key, many(150), since=150)
        assert store.parts_that_nothing_refers_to(key) == set()


@asyncio_only
async def test_what_someone_has_forged_is_damage_and_nothing_worse(
    open_driver: Any, store: Store, key: str
) -> None:
    async with open_driver() as driver:
        await driver.append(key, many(2))
        entry, head = store.item(key, f"#{1:016d}"), store.item(key, "~")
        forged = [
            entry | {"groups": '[[1,"x",0,1000000000000,false]]'},
            entry | {"groups": '[[5,"x",0,1,false]]'},
            entry | {"groups": "[" * 100_000},
            entry | {"groups": '[[1,"x",0,1,true]]'},
            entry | {"body": "text"},
            entry | {"packed": 1},
            head | {"end": 10**12},
            head | {"base": 2, "end": 1},
            head | {"epoch": 7},
            head | {"revision": {"set"}},
        ]
        for item in forged:
            store.table.put_item(Item=item)
            async with open_driver() as other:
                with pytest.raises(FormatError) as caught:
                    pytest.fail(f"{item} gave {await other.load(key, 0)}")
                assert f"{key!r} in table {store.table.name!r}" in str(caught.value)
            store.table.put_item(Item=entry)
            store.table.put_item(Item=head)
        assert len((await driver.load(key)).bodies) == 2


# --- what happens meanwhile, and who pays for it ---


@asyncio_only
async def test_an_append_is_found_again_of_which_a_part_is_trimmed(open_driver: Any, key: str) -> None:
    chance = random.Random(3)
    batch = [Record(new_id(), chance.randbytes(6_000)) for _ in range(150)]
    async with open_driver() as driver, open_driver() as other:
        await driver.append(key, batch)
        assert await driver.trim(key, 100) == 100
        for each in (driver, other):
            with fail_after(HEALTHY), pytest.raises(ConflictError, match="a part"):
                await each.append(key, batch)
        async with open_driver() as fresh:
            with fail_after(HEALTHY):
                assert (await fresh.append(key, many(1))).position == 150


@asyncio_only
async def test_an_append_looks_again_when_another_process_has_trimmed(open_driver: Any, key: str) -> None:
    async with open_driver() as driver, open_driver() as other:
        await other.append(key, many(5))
        await driver.load(key)
        await other.trim(key, 3)
        assert (await driver.append(key, many(1))).position == 5


@asyncio_only
async def test_what_cannot_be_read_for_a_moment_is_not_stored_again(
    proxy: FaultProxy, store: Store, key: str
) -> None:
    record = Record(new_id(), random.Random(4).randbytes(1_000_000))
    async with through(proxy, store) as driver:
        first = await driver.append(key, [record])
        parts = [item for item in store.items(key) if item[store.sort_key or "pk"][-46:-45] == "!"]
        keys = [{name: part[name] for name in ("pk", store.sort_key) if name} for part in parts]
        for part_key in keys:
            store.table.delete_item(Key=part_key)
        looks = [proxy.add_fault("late", "BatchGetItem", times) for times in (6, 1)]
        async with create_task_group() as tasks:

            async def put_back() -> None:
                await looks[1].reached.wait()
                for part in parts:
                    store.table.put_item(Item=part)

            tasks.start_soon(put_back)
            with fail_after(HEALTHY):
                assert await driver.append(key, [record]) == first


@asyncio_only
async def test_what_was_written_before_a_hole_that_expiry_has_left_is_hidden(
    proxy: FaultProxy, store: Store, key: str
) -> None:
    async with through(proxy, store) as mortal_not, through(proxy, store, ttl=600) as driver:
        await mortal_not.append(key, many(3))
        for end in (3, 4, 5):
            epoch = (await driver.append(key, many(1), since=end)).epoch
        item_key = Layout("pk", store.sort_key, "memkit:", {}).entry(key, epoch, 3)
        store.table.delete_item(Key=item_key)
        proxy.reset()
        log = await driver.load(key)
        assert (log.base, log.start, log.end, len(log.bodies)) == (4, 4, 6, 2)
        if store.sort_key:
            assert requests(proxy) == {"Query": 2}


@asyncio_only
async def test_parts_that_cannot_be_written_are_the_failure_of_one_append(
    proxy: FaultProxy, store: Store, key: str
) -> None:
    async with through(proxy, store) as driver:
        await driver.append(key, many(1))
        proxy.delay = 0.3
        proxy.add_fault("late", "TransactWriteItems")
        proxy.add_fault("refused", "PutItem", code="AccessDeniedException")
        large = [Record(new_id(), random.Random(5).randbytes(1_000_000))]
        found = await asyncio.gather(
            *(driver.append(key, records, since=1) for records in (many(1), many(1), large)),
            return_exceptions=True,
        )
        assert [each.position for each in found if isinstance(each, Appended)] == [1, 2]
        assert isinstance(found[2], DriverError)
        assert "AccessDenied" in str(found[2])
        assert (await driver.append(key, large, since=1)).position == 3


@asyncio_only
async def test_parts_that_someone_has_dropped_are_written_anew(
    proxy: FaultProxy, store: Store, open_driver: Any, key: str
) -> None:
    large = Record(new_id(), random.Random(7).randbytes(1_000_000))
    async with through(proxy, store) as driver, open_driver() as other:
        epoch = (await driver.append(key, many(1))).epoch
        proxy.delay = 0.5
        late = proxy.add_fault("late", "TransactWriteItems")

        async def redact() -> None:
            await late.reached.wait()
            await other.redact(key, {0: b"redacted"}, epoch=epoch)

        async with create_task_group() as tasks:
            tasks.start_soon(redact)
            with fail_after(HEALTHY):
                assert (await driver.append(key, [large], since=1)).position == 1
        assert (await other.load(key, 0)).bodies == [b"redacted", large.body]
        assert store.parts_that_nothing_refers_to(key) == set()


@asyncio_only
async def test_who_waits_together_fails_together(proxy: FaultProxy, store: Store, key: str) -> None:
    async with through(proxy, store, retry_for=0.5) as driver:
        proxy.add_fault("throttled", times=10**6)
        with fail_after(HEALTHY):
            found = await asyncio.gather(*(driver.append(key, many(1)) for _ in range(60)), return_exceptions=True)
        assert {type(each) for each in found} == {DriverError}


@asyncio_only
async def test_who_waits_does_not_fail_of_what_another_one_asks_for(
    open_driver: Any, store: Store, key: str
) -> None:
    async with open_driver() as driver, open_driver() as other:
        epoch = (await driver.append(key, many(3))).epoch
        store.table.delete_item(Key=Layout("pk", store.sort_key, "memkit:", {}).entry(key, epoch, 0))
        found = await asyncio.gather(
            *(other.append(key, many(1), since=since) for since in (3, 3, 0, 3)), return_exceptions=True
        )
        assert [type(each) for each in found] == [Appended, Appended, FormatError, Appended]


@asyncio_only
async def test_what_is_not_loaded_is_not_inflated(open_driver: Any, store: Store, key: str) -> None:
    body = bytes(5 * 1024 * 1024)
    async with open_driver() as driver:
        await driver.append(key, [Record(new_id(), body) for _ in range(3)])
        first = store.item(key, f"#{0:016d}")
        store.table.put_item(Item=first | {"body": b"no zlib"})
        log = await driver.load(key, 0)
        assert (log.start, log.bodies) == (2, [body])
        with pytest.raises(FormatError, match="damaged"):
            await driver.load(key, 0, 1)


@asyncio_only
async def test_an_append_of_more_groups_than_an_item_lists_is_refused(
    monkeypatch: pytest.MonkeyPatch, open_driver: Any, store: Store, key: str
) -> None:
    monkeypatch.setattr(drafts, "_MOST_GROUPS", 2)
    async with open_driver() as driver:
        with pytest.raises(UnsupportedError, match="fewer records"):
            await driver.append(key, [Record(new_id(), bytes(6_000)) for _ in range(150)])
        assert store.items(key) == []


@asyncio_only
@pytest.mark.parametrize("sort_key", [None])
async def test_batches_of_large_entries_are_small(proxy: FaultProxy, store: Store, key: str) -> None:
    chance = random.Random(6)
    proxy.keeps = True
    async with through(proxy, store) as driver:
        for end in range(0, 120, 8):
            await driver.append(key, [Record(new_id(), chance.randbytes(60_000)) for _ in range(8)], since=end)
        proxy.reset()
        assert len((await driver.load(key, 0)).bodies) == 120
    asked = [body["RequestItems"] for operation, body in proxy.bodies if operation == "BatchGetItem"]
    assert [len(each["Keys"]) for tables in asked for each in tables.values()] == [100, 17, 3]


@asyncio_only
async def test_what_is_repeated_after_a_deletion_is_not_written_again(
    proxy: FaultProxy, store: Store, open_driver: Any, key: str
) -> None:
    async with through(proxy, store) as driver, open_driver() as other:
        proxy.delay = 0.5
        proxy.add_fault("failed after", "TransactWriteItems")
        repeated = proxy.add_fault("late", "TransactWriteItems")

        async def delete() -> None:
            await repeated.reached.wait()
            assert await other.delete(key)

        async with create_task_group() as tasks:
            tasks.start_soon(delete)
            with fail_after(HEALTHY):
                await driver.commit(key, b"head", revision="")
        assert await driver.load(key) == Log()


@asyncio_only
async def test_lanes_behind_a_busy_one_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_MAX_LANES", 2)
    known = lanes.Lanes()
    busy, idle = known.of("busy"), known.of("idle")
    async with busy.lock:
        known.tidy(known.of("last"))
        assert known.of("busy") is busy
        assert known.of("idle") is not idle


def test_a_driver_belongs_to_one_event_loop(open_driver: Any, key: str) -> None:
    kept: list[DynamoDbDriver] = []

    async def first() -> None:
        async with open_driver() as driver:
            await driver.load(key)
            kept.append(driver)

    async def second() -> None:
        with pytest.raises(UnsupportedError, match="another event loop"):
            await kept[0].append(key, many(1))

    asyncio.run(first())
    asyncio.run(second())

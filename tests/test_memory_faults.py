"""Outcomes that stay unknown: a run that is appended again is stored exactly once, as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from anyio import CancelScope, create_task_group, move_on_after
from anyio.lowlevel import checkpoint

from memkit.driver import Driver
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ConflictError, DriverError
from memkit.memory import Memory
from memkit.run import Extend, Retract, Run, new_run
from memkit.strategies import everything, last_runs
from memkit.testing import Fault, FlakyDriver, SlowDriver
from tests.memories import Words, ids, run, store, stored

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "file"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path)


@pytest.fixture(params=["before", "after"])
def fault(request: pytest.FixtureRequest) -> Fault:
    return request.param


def failing(driver: Driver, *schedule: Fault | None) -> FlakyDriver:
    return FlakyDriver(driver, schedule, calls=["append"])


async def others_add(driver: Driver, number: int) -> None:
    async with Memory(driver, "k") as memory:
        for n in range(number):
            await memory.add(f"other {n}", "yes")


# --- the same handle ---


@pytest.mark.parametrize("others", [0, 3, 150])
async def test_appended_again_by_the_same_handle(driver: Driver, fault: Fault, others: int) -> None:
    await store(driver, "k", map(run, range(5)))
    entry = new_run("mine", "yes")
    async with Memory(failing(driver, fault, fault, None), "k", counter=Words()) as memory:
        for _ in range(2):
            with pytest.raises(DriverError):
                await memory.append(entry)
        await others_add(driver, others)
        position = await memory.append(entry)
        assert position == (5 if fault == "after" else 5 + others)
        assert await memory.append(entry) == position
    entries = await stored(driver, "k")
    assert len(entries) == 6 + others
    assert [n for n, stored in enumerate(entries) if stored.id == entry.id] == [position]


@pytest.mark.parametrize("way", ["refresh", "add", "update_meta", "read all"])
async def test_appended_again_after_the_handle_has_seen_it(driver: Driver, way: str) -> None:
    entry = new_run("mine", "yes")
    async with Memory(failing(driver, "after"), "k", counter=Words()) as memory:
        with pytest.raises(DriverError):
            await memory.append(entry)
        await others_add(driver, 150)
        if way == "refresh":
            await memory.refresh()
        elif way == "add":
            await memory.add("another", "yes")
        elif way == "update_meta":
            await memory.update_meta({"a": 1})
        else:
            assert len([run async for run in memory.history()]) == 0
        assert await memory.append(entry) == 0
    assert ids(await stored(driver, "k")).count(entry.id) == 1


async def test_a_batch_appended_again(driver: Driver, fault: Fault) -> None:
    batch = [new_run(f"mine {n}", "yes") for n in range(3)]
    async with Memory(failing(driver, fault), "k") as memory:
        with pytest.raises(DriverError):
            await memory.append(*batch)
        await others_add(driver, 2)
        await memory.append(*batch)
        await memory.refresh()
        assert len(memory.view().runs) == 5
    assert len(await stored(driver, "k")) == 5


async def test_a_batch_grown_since_is_refused(driver: Driver) -> None:
    one, two = new_run("one", "yes"), new_run("two", "yes")
    async with Memory(failing(driver, "after"), "k") as memory:
        with pytest.raises(DriverError):
            await memory.append(one)
        with pytest.raises(ConflictError, match="only a part"):
            await memory.append(one, two)
        assert await memory.append(one) == 0
        assert await memory.append(two) == 1
    assert await stored(driver, "k") == [one, two]


async def test_other_runs_may_come_between(driver: Driver, fault: Fault) -> None:
    one, two, three = (new_run(str(n), "yes") for n in range(3))
    async with Memory(failing(driver, fault, fault, None), "k", strategy=everything) as memory:
        for entry in (one, two):
            with pytest.raises(DriverError):
                await memory.append(entry)
        await memory.append(three)
        await memory.append(two)
        await memory.append(one)
        assert sorted(ids(memory.view().runs)) == sorted(ids([one, two, three]))
    entries = await stored(driver, "k")
    assert ids(entries) == ids([one, two, three] if fault == "after" else [three, two, one])


async def test_after_a_clear_nothing_is_looked_for_where_it_was(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    await store(driver, "k", map(run, range(5)))
    entry = new_run("mine", "yes")
    async with Memory(failing(driver, "after", "after"), "k") as memory:
        with pytest.raises(DriverError):
            await memory.append(entry)
        await memory.clear()
        with pytest.raises(DriverError):
            await memory.append(entry)
        assert await memory.append(entry) == 0
    assert await stored(driver, "k") == [entry]


async def test_after_a_clear_by_others_too(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    await store(driver, "k", map(run, range(5)))
    entry = new_run("mine", "yes")
    async with Memory(failing(driver, "after", "after"), "k") as memory:
        with pytest.raises(DriverError):
            await memory.append(entry)
        await driver.delete("k")
        await store(driver, "k", [run(0)])
        await memory.refresh()
        with pytest.raises(DriverError):
            await memory.append(entry)
        assert await memory.append(entry) == 1
    assert await stored(driver, "k") == [run(0), entry]


async def test_found_in_what_came_after_a_deletion(driver: Driver) -> None:
    entry = new_run("mine", "yes")
    async with Memory(driver, "k") as memory:
        await memory.append(run(0))
        await driver.delete("k")
        await store(driver, "k", [run(1), entry])
        assert await memory.append(entry) == 1
        assert ids(memory.view().runs) == ["r1", entry.id]


async def test_changes_appended_again(driver: Driver, fault: Fault) -> None:
    extend = Extend("x", "r0", 0, output="extended")
    await store(driver, "k", [run(0)])
    async with Memory(failing(driver, fault), "k", counter=Words()) as memory:
        with pytest.raises(DriverError):
            await memory.append(extend)
        await others_add(driver, 2)
        await memory.append(extend)
        await memory.refresh()
        assert memory.view().runs[0].output == "extended"
    assert ids(await stored(driver, "k")).count("x") == 1


# --- a new handle ---


async def test_appended_again_by_a_new_handle_that_sees_it(driver: Driver, fault: Fault) -> None:
    entry = new_run("mine", "yes")
    async with Memory(failing(driver, fault), "k", counter=Words()) as memory:
        with pytest.raises(DriverError):
            await memory.append(entry)
    await others_add(driver, 50)
    async with Memory(driver, "k", counter=Words()) as memory:
        position = await memory.append(entry)
        assert position == (0 if fault == "after" else 50)
        assert len(memory.view().runs) == 51


async def test_appended_again_by_a_new_handle_with_since(driver: Driver, fault: Fault) -> None:
    await store(driver, "k", map(run, range(5)))
    entry = new_run("mine", "yes")
    async with Memory(failing(driver, fault), "k", counter=Words()) as memory:
        since = memory.conversation.end
        with pytest.raises(DriverError):
            await memory.append(entry, since=since)
    await others_add(driver, 300)
    async with Memory(driver, "k", counter=Words(), strategy=last_runs(3)) as memory:
        position = await memory.append(entry, since=since)
        assert position == (5 if fault == "after" else 305)
        assert (entry.id in ids(memory.view().runs)) is (fault == "before")
    assert len(await stored(driver, "k")) == 306


# --- cancelled ---

Cancelled: TypeAlias = Callable[[Callable[[], Awaitable[object]], int], Awaitable[None]]


async def by_scope(call: Callable[[], Awaitable[object]], turns: int) -> None:
    async def cancel() -> None:
        for _ in range(turns):
            await checkpoint()
        scope.cancel()

    async with create_task_group() as tasks:
        with CancelScope() as scope:
            tasks.start_soon(cancel)
            await call()


async def by_task(call: Callable[[], Awaitable[object]], turns: int) -> None:
    task = asyncio.ensure_future(call())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def by_timeout(call: Callable[[], Awaitable[object]], turns: int) -> None:
    try:
        async with asyncio.timeout(turns / 10_000):
            await call()
    except TimeoutError:
        pass


@pytest.fixture(params=[by_scope, by_task, by_timeout], ids=lambda way: way.__name__)
def cancelled(request: pytest.FixtureRequest, anyio_backend: str) -> Cancelled:
    if anyio_backend == "trio" and request.param is not by_scope:
        pytest.skip("only asyncio can cancel like that")
    return request.param


async def test_appended_again_after_a_cancellation(driver: Driver, cancelled: Cancelled) -> None:
    expected: list[str] = []
    async with Memory(driver, "k", counter=Words()) as memory, Memory(driver, "k") as other:
        for turns in range(40):
            entry = new_run(f"mine {turns}", "yes")
            await cancelled(lambda entry=entry: memory.append(entry), turns)
            await other.add(f"other {turns}", "yes")
            position = await memory.append(entry)
            assert await memory.append(entry) == position
            expected.append(entry.id)
    entries = ids(await stored(driver, "k"))
    assert len(entries) == 80
    assert set(expected) <= set(entries)


async def test_an_add_that_was_cancelled_left_a_whole_run_or_nothing(driver: Driver, cancelled: Cancelled) -> None:
    async with Memory(driver, "k", strategy=everything) as memory:
        for turns in range(40):
            await cancelled(lambda turns=turns: memory.add(f"mine {turns}", "yes"), turns)
        await memory.refresh()
        assert ids(memory.view().runs) == ids(await stored(driver, "k"))
        await memory.add("last", "yes")
        assert memory.view().runs[-1].input == "last"


async def test_a_turn_cancelled_on_its_way_out(driver: Driver, cancelled: Cancelled) -> None:
    async def turn(memory: Memory, n: int) -> None:
        async with memory.turn(f"turn {n}") as turn:
            turn.write("Done.")

    async with Memory(driver, "k") as memory:
        for turns in range(1, 40):
            await cancelled(lambda turns=turns: turn(memory, turns), turns)
    inputs = [entry.input for entry in await stored(driver, "k") if isinstance(entry, Run)]
    assert inputs == [f"turn {n}" for n in range(1, 40)]


async def test_a_slow_store_does_not_lose_what_is_on_its_way() -> None:
    driver = InMemoryDriver()
    entry = new_run("mine", "yes")
    async with Memory(SlowDriver(driver, 0.01), "k") as memory:
        with move_on_after(0.001):
            await memory.append(entry)
        await memory.append(entry)
    assert await stored(driver, "k") == [entry]


# --- what follows an append ---


async def test_what_was_stored_before_the_gap_could_not_be_read_can_be_appended_again(driver: Driver) -> None:
    await store(driver, "k", map(run, range(5)))
    flaky = FlakyDriver(driver, [None, "before"], calls=["load"])
    entry = new_run("mine", "yes")
    async with Memory(flaky, "k", retain=4) as memory:
        await others_add(driver, 3)
        with pytest.raises(DriverError):
            await memory.append(entry)
        await memory.append(entry)
        assert memory.view().runs[-1].id == entry.id
    assert ids(await stored(driver, "k")).count(entry.id) == 1


async def test_a_trim_that_fails_is_no_failure_of_the_append_before_it(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    await store(driver, "k", map(run, range(5)))
    flaky = FlakyDriver(driver, ["before"], calls=["trim"])
    async with Memory(flaky, "k", retain=4) as memory:
        await memory.add("mine", "yes")
        assert "could not be trimmed to 4 runs" in caplog.text
        assert len(await stored(driver, "k")) == 6
        await memory.add("another", "yes")
    assert len(await stored(driver, "k")) == 4


async def test_a_window_that_could_not_be_read_back_is_read_back_by_the_next_append(driver: Driver) -> None:
    await store(driver, "k", map(run, range(300)))
    flaky = FlakyDriver(driver, [None, None, "before"], calls=["load"])
    async with Memory(flaky, "k", strategy=last_runs(90)) as memory:
        await store(driver, "k", (Retract(f"x{n}", f"r{n}", n) for n in range(220, 300)))
        with pytest.raises(DriverError):
            await memory.append(run(300))
        await memory.append(run(301))
        assert ids(memory.view().runs) == [f"r{n}" for n in (*range(132, 220), 300, 301)]

"""Dropping old runs from the store: by hand, and by `retain`."""

from __future__ import annotations

from pathlib import Path

import pytest

from memkit.content import ToolResult
from memkit.driver import Driver
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import UnsupportedError
from memkit.memory import Memory
from memkit.run import Extend, Retract
from memkit.strategies import everything, last_runs
from memkit.testing import CountingDriver
from tests.memories import Spy, ids, run, store, stored, summarize

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "file"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path)


def names(start: int, stop: int) -> list[str]:
    return [f"r{n}" for n in range(start, stop)]


# --- trim ---


async def test_trim_keeps_the_newest_runs(driver: Driver) -> None:
    await store(driver, "k", map(run, range(300)))
    async with Memory(driver, "k", strategy=last_runs(5)) as memory:
        assert await memory.trim(150) == 150
        assert [item.id async for item in memory.history()] == names(150, 300)
        assert await memory.trim(150) == 0
        assert await memory.trim(1000) == 0
        assert ids(memory.view().runs) == names(295, 300)
        assert await memory.append(run(300)) == 300
    async with Memory(driver, "k", strategy=everything) as memory:
        assert ids(memory.view().runs) == names(150, 301)
        assert (memory.conversation.base, memory.conversation.end) == (150, 301)


async def test_trim_counts_runs_not_entries(driver: Driver) -> None:
    await store(driver, "k", map(run, range(50)))
    await store(driver, "k", (Retract(f"x{n}", f"r{n}", n) for n in range(30, 50)))
    await store(driver, "k", (Extend(f"y{n}", "r29", 29, output=f"version {n}") for n in range(200)))
    async with Memory(driver, "k") as memory:
        assert await memory.trim(5) == 25
        assert ids(memory.view().runs) == names(25, 30)
        assert memory.view().runs[-1].output == "version 199"
    async with Memory(driver, "k", strategy=everything) as memory:
        assert ids(memory.view().runs) == names(25, 30)


async def test_trim_to_nothing(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        assert await memory.trim(0) == 0
        await memory.update_meta({"a": 1})
        assert await memory.trim(0) == 0
        for n in range(3):
            await memory.append(run(n))
        assert await memory.trim(0) == 3
        assert (memory.view().runs, memory.meta) == ((), {"a": 1})
        assert await memory.append(run(3)) == 3
    async with Memory(driver, "k") as memory:
        assert ids(memory.view().runs) == ["r3"]


async def test_trim_by_a_handle_that_has_seen_nothing_yet(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        await store(driver, "k", map(run, range(3)))
        assert await memory.trim(0) == 0
        await memory.refresh()
        assert await memory.trim(0) == 3


async def test_a_summary_outlives_the_runs_that_it_covers(driver: Driver) -> None:
    await store(driver, "k", map(run, range(100)))
    summary = await summarize(driver, "k", upto=80, seen=90)
    async with Memory(driver, "k") as memory:
        await memory.trim(15)
        assert (memory.view().summary, ids(memory.view().runs)) == (summary, names(85, 100))
    async with Memory(driver, "k") as memory:
        assert (memory.view().summary, ids(memory.view().runs)) == (summary, names(85, 100))
        assert memory.messages()[0]["role"] == "system"


# --- retain ---


@pytest.mark.parametrize("retain", [1, 2, 5, 8, 40, 150])
async def test_at_least_so_many_runs_stay_and_at_most_a_quarter_more(retain: int) -> None:
    driver = InMemoryDriver()
    async with Memory(driver, "k", retain=retain, strategy=last_runs(3)) as memory:
        for n in range(3 * retain + 20):
            await memory.append(run(n))
            runs = len(await stored(driver, "k"))
            assert min(retain, n + 1) <= runs <= retain + retain // 4
            assert ids(memory.view().runs) == names(max(0, n - min(retain, 3) + 1), n + 1)


async def test_retain_holds_with_a_handle_for_each_request(driver: Driver) -> None:
    for n in range(60):
        async with Memory(driver, "k", retain=20, strategy=last_runs(3)) as memory:
            await memory.append(run(n))
        assert min(20, n + 1) <= len(await stored(driver, "k")) <= 25


async def test_retain_counts_runs_however_many_entries_they_take() -> None:
    driver = InMemoryDriver()
    for n in range(60):
        async with (
            Memory(driver, "k", retain=20) as memory,
            memory.turn(f"question {n}", early=True) as turn,
        ):
            for _ in range(n % 9):
                turn.step(ToolResult(id="1", content="x"))
                await turn.save()
            turn.answer("yes")
        async with Memory(driver, "k", strategy=everything) as memory:
            runs = memory.view().runs
        assert min(20, n + 1) <= len(runs) <= 25
        assert [run.input for run in runs] == [f"question {m}" for m in range(n + 1 - len(runs), n + 1)]
        assert all(run.output == "yes" for run in runs)


async def test_what_is_retained_is_not_read_by_every_handle() -> None:
    inner = InMemoryDriver()
    await store(inner, "k", map(run, range(1000)))
    spy = Spy(inner)
    for n in range(1000, 1500):
        async with Memory(spy, "k", retain=1000, strategy=last_runs(5)) as memory:
            await memory.append(run(n))
    assert spy.calls["trim"] == 2
    assert spy.bodies["load"] / 500 < 110


async def test_retain_leaves_a_summary_valid(driver: Driver) -> None:
    await store(driver, "k", map(run, range(20)))
    summary = await summarize(driver, "k", upto=12, seen=18)
    async with Memory(driver, "k", retain=16, strategy=everything) as memory:
        for n in range(20, 30):
            await memory.append(run(n))
            assert memory.view().summary == summary
            assert ids(memory.view().runs)[-5:] == names(n - 4, n + 1)


async def test_retain_drops_nothing_that_others_have_just_added() -> None:
    driver = InMemoryDriver()
    async with (
        Memory(driver, "k", retain=8, strategy=last_runs(4)) as one,
        Memory(driver, "k", retain=8, strategy=last_runs(4)) as other,
    ):
        for n in range(100):
            await (one if n % 3 else other).append(run(n))
            newest = [entry.id for entry in await stored(driver, "k")][-8:]
            assert newest == names(max(0, n - 7), n + 1)


def test_retain_needs_a_driver_that_trims() -> None:
    class Plain(CountingDriver):
        def capability(self, kind: type[object], /) -> None:
            del kind

    with pytest.raises(UnsupportedError, match="Plain cannot trim"):
        Memory(Plain(InMemoryDriver()), "k", retain=5)

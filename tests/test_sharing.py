"""Several handles and tasks on one conversation: nothing is lost or doubled, and each reads only what is new."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from anyio import Event, create_task_group, wait_all_tasks_blocked

from memkit.driver import Driver, Log
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ConflictError
from memkit.memory import Memory
from memkit.strategies import everything, last_runs
from memkit.testing import CountingDriver
from tests.memories import Spy, Stingy, Words, ids, inputs, run, store, stored, summarize

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "file"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path)


async def test_after_its_own_append_a_handle_reads_just_the_gap(driver: Driver) -> None:
    await store(driver, "k", map(run, range(300)))
    spy = Spy(driver)
    async with Memory(spy, "k") as memory, Memory(driver, "k") as other:
        await memory.append(run(300))
        spy.forget()
        for n in range(301, 331):
            await other.append(run(n))
        assert await memory.append(run(331)) == 331
        assert spy.slices == [(301, 331)]
        assert ids(memory.view().runs) == [f"r{n}" for n in range(232, 332)]
        await memory.append(run(332))
        assert len(spy.slices) == 1


async def test_a_gap_shows_meta_and_changes_of_others(driver: Driver) -> None:
    async with Memory(driver, "k") as memory, Memory(driver, "k") as other:
        await memory.append(run(0))
        await memory.append(run(1))
        await other.refresh()
        await other.retract("r0")
        await other.update_meta({"by": "other"})
        await memory.append(run(2))
        assert ids(memory.view().runs) == ["r1", "r2"]
        assert memory.meta == {"by": "other"}


@pytest.mark.parametrize("most", [1, 7, 40])
async def test_a_driver_that_gives_less_than_was_asked_for(most: int) -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(300)))
    async with (
        Memory(Stingy(driver, most), "k", strategy=last_runs(60)) as memory,
        Memory(driver, "k") as other,
    ):
        assert ids(memory.view().runs) == [f"r{n}" for n in range(240, 300)]
        for n in range(300, 350):
            await other.append(run(n))
        await memory.append(run(350))
        assert ids(memory.view().runs) == [f"r{n}" for n in range(291, 351)]
        for n in range(351, 400):
            await other.append(run(n))
        await memory.refresh()
        assert ids(memory.view().runs) == [f"r{n}" for n in range(340, 400)]
        await memory.retract("r2")
        await memory.extend("r3", output="found")
        assert [run.id async for run in memory.history()] == [f"r{n}" for n in range(400) if n != 2]
        async with await memory.fork("l") as copy:
            assert ids(copy.view().runs) == ids(memory.view().runs)
        assert await memory.trim(80) == 320
        assert ids(memory.view().runs) == [f"r{n}" for n in range(340, 400)]


async def test_refresh_reads_only_what_is_new(driver: Driver) -> None:
    await store(driver, "k", map(run, range(300)))
    spy = Spy(driver)
    async with Memory(spy, "k") as memory:
        await store(driver, "k", map(run, range(300, 310)))
        spy.forget()
        await memory.refresh()
        assert spy.slices == [(300, None)]
        assert spy.bodies["load"] == 10
        assert ids(memory.view().runs) == [f"r{n}" for n in range(210, 310)]


async def test_two_handles_in_two_tasks_lose_and_double_nothing(driver: Driver) -> None:
    async def work(name: str) -> None:
        async with Memory(driver, "k", strategy=everything) as memory:
            for n in range(50):
                await memory.add(f"{name} {n}", "yes")
                assert inputs(memory)[-1] == f"{name} {n}"
            mine = [said for said in inputs(memory) if said.startswith(name)]
            assert mine == [f"{name} {n}" for n in range(50)]

    async with create_task_group() as tasks:
        tasks.start_soon(work, "one")
        tasks.start_soon(work, "two")
    assert len(await stored(driver, "k")) == 100


async def test_many_tasks_on_one_handle(driver: Driver) -> None:
    async def act(n: int) -> None:
        added = await memory.add(f"add {n}", "yes")
        if n % 3 == 1:
            await memory.retract(added)
        if n % 3 == 2:
            await memory.extend(added, output="extended")

    async with Memory(driver, "k", strategy=everything, counter=Words()) as memory:
        async with create_task_group() as tasks:
            for n in range(60):
                tasks.start_soon(act, n)
        entries = await stored(driver, "k")
        assert len(entries) == 100
        assert list(memory.conversation.entries) == entries
        shown = memory.view().runs
        assert len(shown) == 40
    async with Memory(driver, "k", strategy=everything, counter=Words()) as again:
        assert again.view().runs == shown


class Held(CountingDriver):
    """A driver whose answers to loads arrive when they are let go."""

    def __init__(self, inner: Driver, /) -> None:
        super().__init__(inner)
        self.held: list[Event] | None = None

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        log = await super().load(key, start, stop)
        if self.held is not None:
            self.held.append(Event())
            await self.held[-1].wait()
        return log


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
async def test_reads_that_overtake_each_other(order: tuple[int, ...]) -> None:
    driver = InMemoryDriver()
    held = Held(driver)
    await store(driver, "k", map(run, range(5)))
    async with Memory(held, "k") as memory:
        held.held = []
        async with create_task_group() as tasks:
            for n in range(3):
                await store(driver, "k", map(run, range(5 + 2 * n, 7 + 2 * n)))
                tasks.start_soon(memory.refresh)
                await wait_all_tasks_blocked()
            for n in order:
                held.held[n].set()
                await wait_all_tasks_blocked()
                runs = memory.view().runs
                assert ids(runs) == [f"r{n}" for n in range(len(runs))]
        assert len(memory.view().runs) == 11


async def test_the_same_run_from_many_tasks_is_stored_once(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        async with create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(memory.append, run(0))
        assert ids(memory.view().runs) == ["r0"]
    assert await stored(driver, "k") == [run(0)]


@pytest.mark.parametrize(
    "act",
    [
        lambda memory: memory.append(run(500)),
        lambda memory: memory.refresh(),
        lambda memory: memory.update_meta({"a": 1}),
        lambda memory: memory.extend("r199", output="x"),
    ],
    ids=["append", "refresh", "update_meta", "extend"],
)
async def test_other_handles_survive_a_trim(driver: Driver, act: Callable[[Memory], Awaitable[object]]) -> None:
    await store(driver, "k", map(run, range(200)))
    async with Memory(driver, "k", strategy=last_runs(150)) as memory, Memory(driver, "k") as other:
        await store(driver, "k", map(run, range(200, 400)))
        await other.refresh()
        await other.trim(5)
        await act(memory)
        await memory.refresh()
        expected = ids(map(run, range(395, 400)))
        assert ids(memory.view().runs)[:5] == expected
        assert [item.id async for item in memory.history()] == ids(memory.view().runs)


async def test_looking_further_back_than_others_have_left() -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(400)))
    async with Memory(driver, "k", strategy=last_runs(10)) as memory, Memory(driver, "k") as other:
        await other.trim(50)
        with anyio.fail_after(5):
            with pytest.raises(ConflictError, match="never stored, or it was trimmed"):
                await memory.retract("r2")
            assert [run.id async for run in memory.history()] == [f"r{n}" for n in range(350, 400)]


@pytest.mark.parametrize(
    "act",
    [lambda memory: memory.update_meta({"a": 1}), lambda memory: memory.fork("l")],
    ids=["update_meta", "fork"],
)
async def test_a_summary_that_another_handle_removed_lets_its_runs_be_read(
    act: Callable[[Memory], Awaitable[object]],
) -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(600)))
    await summarize(driver, "k", upto=500, seen=550)
    async with Memory(driver, "k", strategy=last_runs(400)) as memory, Memory(driver, "k") as other:
        assert len(memory.view().runs) == 100
        await other.retract("r3")
        await act(memory)
        assert memory.view().summary is None
        assert len(memory.view().runs) == 400

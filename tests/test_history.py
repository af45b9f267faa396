"""All runs of a conversation, however long its log: iterated over, looked up, copied."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from anyio.lowlevel import checkpoint
from hypothesis import given

from memkit.codec import JsonCodec
from memkit.content import text_of
from memkit.conversation import resolve
from memkit.driver import Driver
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ConflictError
from memkit.history import History
from memkit.memory import Memory
from memkit.run import Retract, Run
from memkit.strategies import everything, last_runs
from memkit.testing import CountingDriver
from tests.histories import CHARACTERS, examples, histories
from tests.histories import History as Logged
from tests.memories import Spy, Stingy, Words, ids, inputs, run, store, stored, summarize

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "file"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path)


async def all_runs(memory: Memory) -> list[Run]:
    return [run async for run in memory.history()]


# --- history ---


async def test_history_is_all_runs_after_all_changes(driver: Driver) -> None:
    await store(driver, "k", map(run, range(1000)))
    async with Memory(driver, "k", strategy=last_runs(5)) as memory:
        await memory.retract("r1")
        await memory.amend(run(2, "amended"))
        await memory.extend("r199", output="extended")
        await memory.retract("r999")
        changed = {2: "amended", 199: "extended"}
        expected = [run(n, changed.get(n, "yes")) for n in range(1000) if n not in {1, 999}]
        assert await all_runs(memory) == expected
        assert memory.conversation.start > 800


async def test_history_of_nothing(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        assert await all_runs(memory) == []
        await memory.add("a", "b")
        await memory.retract(memory.view().runs[0])
        assert await all_runs(memory) == []


async def test_history_is_read_in_pages() -> None:
    spy = Spy(InMemoryDriver())
    await store(spy, "k", map(run, range(1000)))
    async with Memory(spy, "k") as memory:
        spy.forget()
        assert len(await all_runs(memory)) == 1000
        assert spy.slices == [(at, at + 200) for at in range(0, 1000, 200)] * 2


async def test_history_can_be_left_early(driver: Driver) -> None:
    await store(driver, "k", map(run, range(500)))
    async with Memory(driver, "k") as memory:
        async for first in memory.history():
            assert first.id == "r0"
            break
        gc.collect()
        await checkpoint()


async def test_history_ends_where_the_handle_has_read_to(driver: Driver) -> None:
    await store(driver, "k", map(run, range(5)))
    async with Memory(driver, "k") as memory:
        await store(driver, "k", [run(5), Retract("x", "r0", 0)])
        assert ids(await all_runs(memory)) == ["r0", "r1", "r2", "r3", "r4"]
        await memory.refresh()
        assert ids(await all_runs(memory)) == ["r1", "r2", "r3", "r4", "r5"]


async def test_history_while_others_trim() -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(1000)))
    async with Memory(driver, "k") as memory, Memory(driver, "k") as other:
        seen: list[str] = []
        async for item in memory.history():
            seen.append(item.id)
            if len(seen) == 100:
                await other.trim(300)
        assert seen == [f"r{n}" for n in (*range(200), *range(700, 1000))]


async def test_history_of_a_conversation_that_was_deleted() -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(1000)))
    async with Memory(driver, "k") as memory:
        await driver.delete("k")
        await store(driver, "k", map(run, range(1000)))
        with pytest.raises(ConflictError, match="deleted"):
            await all_runs(memory)


@given(histories())
@examples(60)
def test_history_and_view_are_what_the_whole_log_says(history: Logged) -> None:
    async def check() -> None:
        inner = InMemoryDriver()
        codec = JsonCodec()
        filler = [Run(f"filler {n}", "x") for n in range(history.base)]
        await store(inner, "k", [*filler, *history.entries])
        await inner.trim("k", history.base)
        assert [codec.decode(body) for body in (await inner.load("k", 0)).bodies] == list(history.entries)
        _, expected = resolve(history.entries, history.base)
        async with Memory(Stingy(inner, 30), "k", strategy=everything, counter=CHARACTERS) as memory:
            assert tuple(map(uncounted, await all_runs(memory))) == tuple(map(uncounted, expected))
            assert tuple(map(uncounted, memory.view().runs)) == tuple(map(uncounted, expected))

    with start_blocking_portal() as portal:
        portal.call(check)


def uncounted(run: Run) -> Run:
    return run.replace()


# --- fork ---


async def test_fork_copies_what_there_is(driver: Driver) -> None:
    await store(driver, "k", map(run, range(400)))
    async with Memory(driver, "k", strategy=last_runs(5), counter=Words()) as memory:
        await memory.update_meta({"title": "T"})
        await memory.retract("r0")
        await memory.retract("r250")
        await memory.amend(run(3, "amended"))
        await memory.extend("r399", output="extended")
        async with await memory.fork("l") as copy:
            assert copy.key == "l"
            assert copy.meta == {"title": "T"}
            assert copy.view().runs == memory.view().runs
            entries = await stored(driver, "l")
            assert entries == await all_runs(copy)
            assert list(map(uncounted, await all_runs(copy))) == list(map(uncounted, await all_runs(memory)))
            assert all(isinstance(entry, Run) and entry.counts for entry in entries)


async def test_a_fork_goes_its_own_way(driver: Driver) -> None:
    await store(driver, "k", map(run, range(5)))
    async with Memory(driver, "k") as memory, await memory.fork("l") as copy:
        await copy.add("in the copy", "yes")
        await copy.retract("r0")
        await copy.update_meta({"copy": True})
        await memory.add("in the original", "yes")
        await memory.clear()
        assert memory.meta == {}
        await copy.refresh()
        assert inputs(copy) == [*(f"question {n}" for n in range(1, 5)), "in the copy"]
        assert copy.meta == {"copy": True}


async def test_fork_moves_the_marks_of_the_summary(driver: Driver) -> None:
    await store(driver, "k", map(run, range(400)))
    await store(driver, "k", (Retract(f"x{n}", f"r{n}", n) for n in range(0, 200, 2)))
    await summarize(driver, "k", upto=100, seen=500)
    await store(driver, "k", map(run, range(400, 420)))
    async with Memory(driver, "k", strategy=everything) as memory:
        before = memory.view()
        assert before.summary is not None
        async with await memory.fork("l") as copy:
            after = copy.view()
            assert after.runs == before.runs
            assert after.summary is not None
            assert (after.summary.content, after.summary.upto, after.summary.upto_id) == ("in short", 50, "r99")
            assert after.summary.seen == 300
            await copy.retract("r1")
            assert copy.view().summary is None


async def test_fork_leaves_a_stale_summary_behind(driver: Driver) -> None:
    await store(driver, "k", map(run, range(20)))
    await summarize(driver, "k", upto=10, seen=20)
    await store(driver, "k", [Retract("x", "r5", 5)])
    async with Memory(driver, "k") as memory, await memory.fork("l") as copy:
        assert copy.conversation.head.summary is None


async def test_fork_of_a_window_that_does_not_reach_back_to_the_summary(driver: Driver) -> None:
    await store(driver, "k", map(run, range(1000)))
    async with Memory(driver, "k", strategy=last_runs(5)) as memory:
        await summarize(driver, "k", upto=100, seen=200)
        async with await memory.fork("l") as copy:
            assert copy.view().summary is not None
            assert ids(copy.view().runs) == ids(memory.view().runs)
        assert memory.view().summary is not None


async def test_fork_needs_a_key_that_is_free(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        await memory.add("a", "b")
        await store(driver, "taken", [run(0)])
        for key in ("taken", "k"):
            with pytest.raises(ConflictError, match="there is a conversation"):
                await memory.fork(key)
        assert await stored(driver, "taken") == [run(0)]
        async with await memory.fork("free"):
            with pytest.raises(ConflictError, match="there is a conversation"):
                await memory.fork("free")


async def test_fork_of_nothing_and_of_meta_alone(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        async with await memory.fork("l") as copy:
            assert (copy.view().runs, copy.meta) == ((), {})
        await memory.update_meta({"a": 1})
        async with await memory.fork("m") as copy:
            assert (copy.view().runs, copy.meta) == ((), {"a": 1})
            await copy.add("x", "y")


async def test_fork_after_a_trim(driver: Driver) -> None:
    await store(driver, "k", map(run, range(100)))
    await summarize(driver, "k", upto=40, seen=100)
    async with Memory(driver, "k") as memory:
        await memory.trim(30)
        async with await memory.fork("l") as copy:
            assert ids(copy.view().runs) == [f"r{n}" for n in range(70, 100)]
            assert [text_of(run.input) for run in await all_runs(copy)] == inputs(copy)


async def test_a_counting_driver_sees_one_append_for_a_fork() -> None:
    driver = CountingDriver(InMemoryDriver())
    await store(driver, "k", map(run, range(500)))
    async with Memory(driver, "k") as memory:
        driver.calls.clear()
        await memory.fork("l")
        assert driver.calls["append"] == 1
        assert driver.calls["commit"] == 0
        assert isinstance(memory.history(), History)

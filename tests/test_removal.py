"""Runs that are amended or taken back are gone: from views, from summaries and, if asked for, from the store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest

from memkit.content import Text, ToolResult
from memkit.driver import Driver
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ConflictError, DriverError, UnsupportedError
from memkit.memory import Memory
from memkit.run import Amend, Extend, Retract, Run
from memkit.strategies import everything, last_runs
from memkit.testing import CountingDriver, FlakyDriver
from tests.memories import Words, ids, run, store, stored, summarize

pytestmark = pytest.mark.anyio

SECRET = "hunter2"

Remove: TypeAlias = Callable[[Memory, bool], Awaitable[None]]


@pytest.fixture(params=["memory", "file"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path)


@pytest.fixture(params=["amend", "retract"])
def remove(request: pytest.FixtureRequest) -> Remove:
    async def retract(memory: Memory, erase: bool) -> None:
        await memory.retract("r3", erase=erase)

    async def amend(memory: Memory, erase: bool) -> None:
        await memory.amend(run(3, "harmless"), erase=erase)

    return amend if request.param == "amend" else retract


def texts_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def fill(driver: Driver, number: int = 20) -> None:
    """Store runs of which number 3 and what changes it hold a secret."""
    secret = Run("r3", f"a {SECRET}", output=f"b {SECRET}", created_at=3.0, meta={"c": f"c {SECRET}"})
    await store(driver, "k", [run(0), run(1), run(2), secret, *map(run, range(4, number))])
    part = ToolResult(id="1", content=f"d {SECRET}")
    changes = [
        Extend("x1", "r3", 3, steps=(part,), output=f"e {SECRET}"),
        Amend("x2", 3, Run("r3", f"f {SECRET}", steps=(Text(text=f"g {SECRET}"),), created_at=3.0)),
        Extend("x3", "r3", 3, drop=1, output=f"h {SECRET}"),
    ]
    await store(driver, "k", changes)


async def test_a_covering_summary_is_removed(driver: Driver, remove: Remove) -> None:
    await fill(driver)
    async with Memory(driver, "k") as memory:
        await memory.update_meta({"title": "T"})
        await summarize(driver, "k", upto=10, seen=23, content=f"they said {SECRET}")
        await memory.refresh()
        assert memory.view().summary is not None
        await remove(memory, False)
        assert memory.view().summary is None
        assert (memory.meta, memory.conversation.head.summary) == ({"title": "T"}, None)
    async with Memory(driver, "k") as memory:
        assert memory.conversation.head.summary is None
        assert memory.meta == {"title": "T"}
        assert SECRET not in str(memory.messages())


async def test_a_summary_of_earlier_runs_stays(driver: Driver, remove: Remove) -> None:
    await fill(driver)
    summary = await summarize(driver, "k", upto=3, seen=23)
    async with Memory(driver, "k") as memory:
        await remove(memory, True)
        assert memory.view().summary == summary
    async with Memory(driver, "k") as memory:
        assert memory.view().summary == summary


async def test_a_summary_made_since_this_handle_read_the_head_is_removed(driver: Driver, remove: Remove) -> None:
    await fill(driver)
    async with Memory(driver, "k") as memory:
        await summarize(driver, "k", upto=10, seen=23)
        await remove(memory, False)
    log = await driver.load("k")
    assert log.head == b'{"v":1,"kind":"head"}'


async def test_erase_leaves_no_text_in_the_file(tmp_path: Path, remove: Remove) -> None:
    driver = FileDriver(tmp_path)
    await fill(driver)
    await summarize(driver, "k", upto=10, seen=23, content=f"they said {SECRET}")
    async with Memory(driver, "k", strategy=everything) as memory:
        assert SECRET.encode() in texts_in(tmp_path)
        await remove(memory, True)
        assert SECRET.encode() not in texts_in(tmp_path)
        after = memory.view().runs
        assert SECRET not in str(after)
    async with Memory(driver, "k", strategy=everything) as memory:
        assert memory.view().runs == after
        assert ids(after) == [f"r{n}" for n in range(20) if n != 3 or "harmless" in str(after)]
        assert [run async for run in memory.history()] == list(after)


async def test_without_erase_the_summary_is_gone_from_the_file(tmp_path: Path, remove: Remove) -> None:
    driver = FileDriver(tmp_path)
    await store(driver, "k", map(run, range(20)))
    await summarize(driver, "k", upto=10, seen=20, content=f"they said {SECRET}")
    async with Memory(driver, "k") as memory:
        await remove(memory, False)
    assert SECRET.encode() not in texts_in(tmp_path)


async def test_erase_far_before_the_window(tmp_path: Path, remove: Remove) -> None:
    driver = FileDriver(tmp_path)
    await fill(driver, 1000)
    async with Memory(driver, "k", strategy=last_runs(10)) as memory:
        await remove(memory, True)
        assert ids(memory.view().runs) == [f"r{n}" for n in range(990, 1000)]
    assert SECRET.encode() not in texts_in(tmp_path)
    async with Memory(driver, "k") as memory:
        assert len([run async for run in memory.history()]) in {999, 1000}


async def test_erase_knows_what_other_handles_have_added(tmp_path: Path, remove: Remove) -> None:
    driver = FileDriver(tmp_path)
    await store(driver, "k", map(run, range(10)))
    async with Memory(driver, "k") as memory, Memory(driver, "k") as other:
        await other.extend("r3", output=f"late {SECRET}")
        await remove(memory, True)
    assert SECRET.encode() not in texts_in(tmp_path)


async def test_erase_that_the_driver_cannot_do_changes_nothing(driver: Driver, remove: Remove) -> None:
    class Plain(CountingDriver):
        def capability(self, kind: type[object], /) -> None:
            del kind

    await fill(driver)
    plain = Plain(driver)
    async with Memory(plain, "k") as memory:
        before = await driver.load("k")
        with pytest.raises(UnsupportedError, match="Plain cannot erase"):
            await remove(memory, True)
        assert await driver.load("k") == before
        assert plain.calls.keys() == {"load"}
        with pytest.raises(UnsupportedError, match="Plain cannot trim"):
            await memory.trim(1)


@pytest.mark.parametrize("call", ["append", "commit", "redact", "load"])
@pytest.mark.parametrize("fault", ["before", "after"])
async def test_an_erasure_that_failed_can_be_repeated(
    tmp_path: Path, remove: Remove, call: str, fault: str
) -> None:
    driver = FileDriver(tmp_path)
    await fill(driver)
    await summarize(driver, "k", upto=10, seen=23, content=f"they said {SECRET}")
    schedule = [None, fault] if call == "load" else [fault]
    async with Memory(FlakyDriver(driver, schedule, calls=[call]), "k") as memory:
        with pytest.raises(DriverError):
            await remove(memory, True)
        await remove(memory, True)
        assert SECRET not in str(memory.view())
    assert SECRET.encode() not in texts_in(tmp_path)


async def test_what_is_taken_back_can_still_be_erased(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    await fill(driver, 300)
    async with Memory(driver, "k") as memory:
        await memory.retract("r3")
        await memory.retract("r3")
        assert SECRET.encode() in texts_in(tmp_path)
        assert sum(isinstance(entry, Retract) for entry in await stored(driver, "k")) == 1
        await memory.retract("r3", erase=True)
    assert SECRET.encode() not in texts_in(tmp_path)
    async with Memory(driver, "k") as memory:
        await memory.retract("r3", erase=True)
        assert len([run async for run in memory.history()]) == 299


async def test_an_amend_is_counted_anew(driver: Driver) -> None:
    async with Memory(driver, "k", counter=Words()) as memory:
        added = await memory.add("one two three", "four five")
        # With the counts that the run had before.
        await memory.amend(msgspec.structs.replace(memory.view().runs[0], input="one"))
        (run,) = memory.view().runs
        assert run.id == added.id
        assert run.counts is not None
        assert (run.counts.input, run.counts.output) == (1, 2)


async def test_a_stale_handle_removes_nothing_from_what_came_after(driver: Driver, remove: Remove) -> None:
    await fill(driver)
    async with Memory(driver, "k") as memory, Memory(driver, "k") as other:
        await other.clear()
        await store(driver, "k", map(run, range(20)))
        with pytest.raises(ConflictError, match="deleted"):
            await remove(memory, True)
    assert await stored(driver, "k") == [run(n) for n in range(20)]

"""Every run is counted once, off the event loop if it is long, and never again under that name."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from memkit.content import Text, ToolCall, ToolResult
from memkit.driver import Driver
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import BudgetError
from memkit.memory import Memory
from memkit.run import Counts, Run, new_run
from memkit.strategies import everything, prune
from memkit.testing import FlakyDriver
from memkit.tokens import INLINE_CHARS, count_run
from tests.memories import Words, inputs, run, store, stored

pytestmark = pytest.mark.anyio

LONG = "word " * (INLINE_CHARS // 5 + 1)


@pytest.fixture(params=["memory", "file"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path)


async def test_counts_are_stored_with_the_run(driver: Driver) -> None:
    counter = Words(per_message=4)
    async with Memory(driver, "k", counter=counter) as memory:
        await memory.add("one two", "three", steps=[ToolCall(id="1", name="f"), ToolResult(id="1", content="x y")])
        assert len(counter.counted) == 3
        memory.messages()
        await memory.add("four", "five")
        memory.messages()
        assert len(counter.counted) == 5
    first, second = await stored(driver, "k")
    assert isinstance(first, Run)
    assert isinstance(second, Run)
    assert first.counts == count_run(first, Words()) != Counts("words")
    assert second.counts == Counts("words", 1, 0, 1, 2)


async def test_what_is_counted_is_not_counted_again_by_another_handle(driver: Driver) -> None:
    async with Memory(driver, "k", counter=Words()) as memory:
        for n in range(250):
            await memory.append(run(n))
    counter = Words()
    async with Memory(driver, "k", strategy=prune(500, counter=counter)) as memory:
        assert len(memory.view().runs) == 166
        memory.messages(reserve=100)
        await memory.refresh()
        await memory.retract("r249")
        assert [item.counts for item in memory.view().runs] == [Counts("words", 2, 0, 1, 2)] * 166
    assert not counter.counted


async def test_counts_of_another_name_are_filled_when_runs_are_loaded(driver: Driver) -> None:
    async with Memory(driver, "k", counter=Words("other")) as memory:
        for n in range(250):
            await memory.append(run(n))
    counter = Words()
    async with Memory(driver, "k", strategy=everything, counter=counter) as memory:
        assert len(counter.counted) == 500
        for _ in range(3):
            memory.messages()
            memory.explain()
            await memory.add("more", "yes")
        assert len(counter.counted) == 506
        assert all(item.counts and item.counts.name == "words" for item in memory.view().runs)


async def test_what_others_have_added_is_counted_when_it_is_read(driver: Driver) -> None:
    counter = Words()
    async with Memory(driver, "k", counter=counter) as memory:
        await memory.append(run(0))
        await store(driver, "k", [run(1)])
        await memory.append(run(2))
        assert len(counter.counted) == 6
        memory.messages()
        assert len(counter.counted) == 6


async def test_extends_add_up_and_amends_are_counted(driver: Driver) -> None:
    counter = Words()
    async with Memory(driver, "k", counter=counter) as memory:
        await memory.append(Run("r", "one two", output="three"))
        await memory.extend("r", steps=Text(text="four five"))
        await memory.extend("r", steps=ToolCall(id="1", name="f"), output="six seven eight")
        assert memory.view().runs[0].counts == Counts("words", 2, 2 + 1, 3, 3)
        await memory.amend(Run("r", "one", output="two three", counts=Counts("words", 99, 99, 99, 99)))
        assert memory.view().runs[0].counts == Counts("words", 1, 0, 2, 2)
        counted = len(counter.counted)
        memory.messages()
        assert len(counter.counted) == counted
    async with Memory(driver, "k", counter=counter) as memory:
        assert memory.view().runs[0].counts == Counts("words", 1, 0, 2, 2)
        assert len(counter.counted) == counted


async def test_a_run_with_dropped_steps_is_not_counted_by_view(driver: Driver) -> None:
    """Its counts are lost with the steps: it is counted when something changes, and not on the event loop."""
    counter = Words()
    async with Memory(driver, "k", counter=counter) as memory:
        await memory.append(Run("r", LONG, steps=(Text(text=LONG), Text(text=LONG))))
        await memory.extend("r", drop=1)
        for n in range(3):
            await memory.append(run(n))
            counter.counted.clear()
            memory.messages()
            assert not counter.counted
            counter.threads.clear()
            await memory.update_meta({"n": n})
            assert threading.get_ident() not in counter.threads
            counter.counted.clear()
            memory.view()
            assert not counter.counted


async def test_long_texts_are_counted_in_another_thread(driver: Driver) -> None:
    here = threading.get_ident()
    counter = Words()
    async with Memory(driver, "k", counter=counter) as memory:
        await memory.add("short", "too")
        assert counter.threads == {here}
        counter.threads.clear()
        added = await memory.add(LONG, "short")
        await memory.amend(added)
        await memory.extend(added, output=LONG)
        await memory.count("short", LONG)
        assert here not in counter.threads
    async with Memory(driver, "k", counter=(other := Words("other"))) as memory:
        memory.messages()
        assert here not in other.threads
        await memory.count("short")
        assert here in other.threads


async def test_a_long_input_is_counted_by_hand(driver: Driver) -> None:
    counter = Words(per_message=4)
    async with Memory(driver, "k", strategy=prune(4000, counter=counter)) as memory:
        await memory.add("a", "b")
        for arguments in ((LONG, None), (None, LONG), (LONG[:-20], "x" * 30)):
            with pytest.raises(BudgetError, match=r"tokens=await memory\.count"):
                memory.messages(arguments[0], system=arguments[1])
        tokens = await memory.count("system", LONG)
        assert tokens == 1 + 3201 + 8
        assert len(memory.messages(LONG, system="system", tokens=tokens)) == 4
        assert len(memory.messages(LONG, system="system", tokens=tokens, reserve=4000 - tokens - 9)) == 2
        assert len(memory.messages(LONG, system="system", tokens=tokens, reserve=4000 - tokens - 10)) == 4
        assert memory.explain(LONG, tokens=tokens).reserved == tokens
    async with Memory(driver, "k") as memory:
        assert memory.messages(LONG)[-1] == {"role": "user", "content": LONG}


async def test_a_repeated_append_has_the_same_counts_in_the_same_bytes(driver: Driver) -> None:
    counter = Words()
    entry = new_run("one two", "three")
    async with Memory(FlakyDriver(driver, ["after"], calls=["append"]), "k", counter=counter) as memory:
        with pytest.raises(Exception, match="connection was lost"):
            await memory.append(entry)
        assert await memory.append(entry) == 0
    async with Memory(driver, "k", counter=counter) as memory:
        assert await memory.append(entry) == 0
        assert await memory.append(*memory.view().runs) == 0
        assert inputs(memory) == ["one two"]


async def test_the_price_of_what_is_reserved(driver: Driver) -> None:
    async with Memory(driver, "k", strategy=prune(20, counter=Words(per_message=1))) as memory:
        for n in range(10):
            await memory.append(run(n))
        assert [len(memory.messages(reserve=n)) // 2 for n in (0, 5, 10, 15, 16, 20, 21)] == [4, 3, 2, 1, 0, 0, 0]
        assert len(memory.messages("one two three", system="four")) == 2 + 2 * 2
        assert len(memory.view(reserve=10).runs) == 2

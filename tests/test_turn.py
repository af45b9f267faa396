"""A turn is stored as one run, whatever happens while it lasts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from anyio import (
    create_task_group,
)

from memkit.content import Part, Text, ToolCall
from memkit.driver import Driver
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ClosedError
from memkit.memory import Memory
from memkit.run import Extend, Run
from memkit.testing import CountingDriver
from memkit.tokens import count_run
from memkit.turn import Turn
from tests.memories import CODEC, Words, inputs, stored, the_run, tool_call

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "file"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path)


# --- a turn that ends well ---


async def test_a_streamed_answer_is_one_record(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        async with memory.turn("Hi", meta={"m": 1}) as turn:
            for piece in ("Hel", "lo", "!"):
                turn.write(piece)
                assert await stored(driver, "k") == []
        assert await stored(driver, "k") == [turn.run]
        assert memory.view().runs == (turn.run,)
    assert (turn.run.input, turn.run.output, turn.run.status) == ("Hi", "Hello!", "complete")
    assert turn.run.meta == {"m": 1}


async def test_tools_and_answers(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        async with memory.turn("Hi") as turn:
            turn.step("Let me see.", *tool_call(1))
            turn.write("half an ans")
            turn.answer("The answer.")
            turn.step(*tool_call(2))
        assert turn.run.steps == (Text(text="Let me see."), *tool_call(1), *tool_call(2))
        assert turn.run.output == "The answer."
        async with memory.turn("And?") as turn:
            turn.answer("no")
            turn.write("a new ")
            turn.write("one")
        assert turn.run.output == "a new one"
        async with memory.turn("And?") as turn:
            turn.answer("")
        assert turn.run.output == ""
        async with memory.turn("And?") as turn:
            turn.write("x")
            turn.answer(None)
        assert turn.run.output == ()
    assert len(await stored(driver, "k")) == 4


@pytest.mark.parametrize(
    "use", [lambda turn: turn.write("x"), lambda turn: turn.step("x"), lambda turn: turn.answer("x")]
)
async def test_a_turn_is_used_inside_its_context(use: Callable[[Turn], None]) -> None:
    async with Memory(InMemoryDriver(), "k") as memory:
        turn = memory.turn("Hi")
        with pytest.raises(ClosedError, match="not running"):
            use(turn)
        async with turn:
            use(turn)
        with pytest.raises(ClosedError, match="not running"):
            use(turn)
        with pytest.raises(ClosedError, match="not running"):
            await turn.save()


# --- stored as it comes ---


async def test_early_stores_the_input_at_once_and_one_extend_for_each_save(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        async with memory.turn("Hi", early=True) as turn:
            assert (await the_run(driver)).status == "partial"
            for n in range(3):
                turn.step(*tool_call(n))
                await turn.save()
                await turn.save()
                assert (await the_run(driver)).steps == turn.run.steps
            turn.write("Done.")
        assert turn.run.status == "complete"
        assert memory.view().runs == (turn.run,)
    assert await the_run(driver) == turn.run
    assert [type(entry) for entry in await stored(driver, "k")] == [Run, Extend, Extend, Extend, Extend]


async def test_save_without_early_begins_the_run(driver: Driver) -> None:
    async with Memory(driver, "k") as memory, memory.turn("Hi") as turn:
        turn.step(*tool_call(0))
        await turn.save()
        assert (await the_run(driver)).steps == tool_call(0)
        turn.answer("Done.")
    assert await the_run(driver) == turn.run


async def test_twenty_tool_calls_write_about_their_own_bytes() -> None:
    driver = CountingDriver(InMemoryDriver())
    parts: list[Part] = []
    async with Memory(driver, "k", counter=Words()) as memory, memory.turn("Hi", early=True) as turn:
        for n in range(20):
            turn.step(*tool_call(n, 1000))
            parts += tool_call(n, 1000)
            await turn.save()
        turn.answer("Done.")
    own = len(CODEC.encode(Run("r", "", steps=tuple(parts)))) - len(CODEC.encode(Run("r", "")))
    assert driver.calls["append"] == 22
    assert driver.bytes["append"] <= 1.5 * own, driver.bytes["append"] / own


async def test_tools_that_run_side_by_side_may_each_save(driver: Driver) -> None:
    async def use_tool(n: int) -> None:
        turn.step(*tool_call(n))
        await turn.save()

    async with Memory(driver, "k") as memory, memory.turn("Hi", early=True) as turn:
        async with create_task_group() as tasks:
            for n in range(10):
                tasks.start_soon(use_tool, n)
        turn.answer("Done.")
    assert await the_run(driver) == turn.run
    assert {part.id for part in turn.run.steps if isinstance(part, ToolCall)} == {f"call-{n}" for n in range(10)}


async def test_counts_of_the_pieces_add_up_to_those_of_the_whole(driver: Driver) -> None:
    counter = Words()
    async with Memory(driver, "k", counter=counter) as memory:
        async with memory.turn("one two", early=True) as turn:
            for n in range(3):
                turn.step("step by step", *tool_call(n))
                await turn.save()
            turn.answer("three four five")
        (run,) = memory.view().runs
    counter.counted.clear()
    async with Memory(driver, "k", counter=counter) as memory:
        memory.messages()
        assert memory.view().runs == (run,)
    assert not counter.counted
    assert run.counts == count_run(turn.run, Words())


async def test_others_may_write_while_a_turn_lasts(driver: Driver) -> None:
    async with Memory(driver, "k") as memory, Memory(driver, "k") as other:
        async with memory.turn("first", early=True) as turn:
            await other.add("second", "yes")
            turn.step(*tool_call(0))
            await turn.save()
            await other.add("third", "yes")
            turn.answer("Done.")
        assert inputs(memory) == ["first", "second", "third"]
        assert memory.view().runs[0] == turn.run


async def test_a_turn_that_was_trimmed_while_it_went_on_is_stored_anew() -> None:
    driver = InMemoryDriver()
    async with Memory(driver, "k", retain=2) as memory:
        async with memory.turn("long", early=True) as turn:
            turn.step("one")
            await turn.save()
            for number in range(6):
                await memory.add(f"other {number}", "yes")
            turn.step("two")
            turn.write("answer")
        last = memory.view().runs[-1]
        assert (last.input, last.output, last.status, len(last.steps)) == ("long", "answer", "complete", 2)
        assert turn.run.id == last.id
    async with Memory(driver, "k") as memory:
        assert memory.view().runs[-1].output == "answer"

"""When a run is made: of a structure as a whole, or of each of its tasks."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from anyio import CancelScope, Event, create_task_group
from anyio.lowlevel import checkpoint

from memkit.content import Blob, Json, Text, ToolCall, ToolResult
from memkit.driver import Driver
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import BudgetError, ClosedError, DriverError, FormatError
from memkit.memory import Memory
from memkit.recorder import Recorder, Recording, Structure
from memkit.run import Run
from memkit.strategies import prune
from memkit.testing import FlakyDriver
from tests.memories import Words, inputs, stored, tool_call

pytestmark = pytest.mark.anyio

BOTH: list[Recording] = ["per_structure", "per_task"]


@pytest.fixture(params=["memory", "file"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path)


async def said(driver: Driver, key: str = "k") -> list[tuple[Any, Any]]:
    """Return inputs and outputs of all runs in the store."""
    return [(run.input, run.output) for run in await stored(driver, key) if isinstance(run, Run)]


async def ask(structure: Structure, input: str, **options: Any) -> str:
    """Run a task whose model answers with its last message and how many came before."""
    async with structure.task(input, **options) as task:
        *before, last = task.messages()
        task.answer(f"{last['content']}/{len(before)}")
        return str(task.output)


def model(is_up: bool) -> None:
    """Answer, or fail."""
    if not is_up:
        raise ConnectionError("no model")


# --- per structure ---


async def test_a_pipeline_is_one_run_of_its_first_input_and_last_output(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        recorder = Recorder(memory)
        for question in ("one", "two"):
            async with recorder.structure() as structure:
                answer = await ask(structure, question)
                answer = await ask(structure, f"improve {answer}")
                async with structure.task(f"as a pirate: {answer}") as task:
                    task.step("Let me see.", *tool_call(1))
                    task.answer(f"Arrr, {answer}")
            assert structure.run is not None
            assert task.run is None
        assert memory.view().runs[-1] == structure.run
    assert await said(driver) == [
        ("one", "Arrr, improve one/0/0"),
        ("two", "Arrr, improve two/2/2"),
    ]
    assert structure.run.steps == ()
    assert structure.run.status == "complete"


async def test_what_lies_between_can_be_kept_as_steps(driver: Driver) -> None:
    async with Memory(driver, "k") as memory, Recorder(memory, keep_steps=True).structure() as structure:
        async with structure.task("one") as task:
            task.step("Let me see.", *tool_call(1))
            task.answer("first")
        async with structure.task("two") as task:
            task.answer([Text("second"), Blob("image/png", b"\x00")])
        async with structure.task("silent"):
            pass
        async with structure.task("empty") as task:
            task.answer("")
        async with structure.task("three") as task:
            task.step(*tool_call(2))
            task.answer("last")
    (run,) = await stored(driver, "k")
    assert isinstance(run, Run)
    assert (run.input, run.output) == ("one", "last")
    assert run.steps == (
        Text("Let me see."),
        *tool_call(1),
        Text("first"),
        Text("second"),
        Blob("image/png", b"\x00"),
        *tool_call(2),
    )


async def test_tasks_side_by_side_are_kept_in_the_order_in_which_they_finish(driver: Driver) -> None:
    turns = [Event() for _ in range(3)]

    async def work(structure: Structure, number: int) -> None:
        async with structure.task(f"part {number}") as task:
            await turns[number].wait()
            task.step(ToolCall("same", "find"), ToolResult("same", f"found {number}"))
            task.answer(f"result {number}")
        if number:
            turns[number - 1].set()

    async with Memory(driver, "k") as memory:
        async with Recorder(memory, keep_steps=True).structure() as structure:
            await ask(structure, "question")
            async with create_task_group() as tasks:
                for number in range(3):
                    tasks.start_soon(work, structure, number)
                turns[2].set()
            async with structure.task("join them") as task:
                task.answer("joined")
        messages = memory.messages()
    (run,) = await stored(driver, "k")
    assert isinstance(run, Run)
    assert (run.input, run.output) == ("question", "joined")
    results = [part.content for part in run.steps if isinstance(part, ToolResult)]
    assert results == ["found 2", "found 1", "found 0"]
    texts = [part.text for part in run.steps if isinstance(part, Text)]
    assert texts == ["question/0", "result 2", "result 1", "result 0"]
    assert [message["content"] for message in messages if message["role"] == "tool"] == results


async def test_the_task_that_finishes_last_answers_even_if_it_was_the_first_to_start(driver: Driver) -> None:
    async with (
        Memory(driver, "k") as memory,
        Recorder(memory).structure() as structure,
        structure.task("question") as chief,
    ):
        chief.answer(f"my helper says {await ask(structure, 'part of it')}")
    assert await said(driver) == [("question", "my helper says part of it/0")]


async def test_the_structure_can_answer_for_tasks_that_nothing_joins(driver: Driver) -> None:
    async with Memory(driver, "k") as memory, Recorder(memory, keep_steps=True).structure() as structure:
        first, second = await ask(structure, "a"), await ask(structure, "b")
        structure.answer(f"{first} and {second}")
    (run,) = await stored(driver, "k")
    assert isinstance(run, Run)
    assert (run.input, run.output) == ("a", "a/0 and b/0")
    assert run.steps == (Text("a/0"), Text("b/0"))


async def test_input_and_output_may_be_content_of_several_parts(driver: Driver) -> None:
    async with (
        Memory(driver, "k") as memory,
        Recorder(memory).structure() as structure,
        structure.task(["look", Json([1])]) as task,
    ):
        assert [item["type"] for item in task.messages()[-1]["content"]] == ["text", "text"]
        task.answer([Text("a"), Json({"b": 1})])
    assert await said(driver) == [((Text("look"), Json([1])), (Text("a"), Json({"b": 1})))]


@pytest.mark.parametrize("input", [None, "", []])
async def test_no_input_is_an_empty_text(driver: Driver, input: Any) -> None:
    async with (
        Memory(driver, "k") as memory,
        Recorder(memory).structure() as structure,
        structure.task(input) as task,
    ):
        task.answer("")
    assert await said(driver) == [("", "")]


async def test_a_structure_whose_last_task_has_no_output_is_not_stored(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        async with Recorder(memory).structure() as structure:
            await ask(structure, "one")
            async with structure.task("two") as task:
                task.answer("something")
                task.answer(None)
        async with Recorder(memory).structure():
            pass
        async with Recorder(memory).structure() as unasked:
            unasked.answer("an answer to nothing")
    assert structure.run is None
    assert await stored(driver, "k") == []


# --- per task ---


async def test_each_task_is_a_run_that_the_next_one_reads(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        async with Recorder(memory, "per_task").structure() as structure:
            await ask(structure, "one")
            async with structure.task("improve it") as task:
                assert [message["content"] for message in task.messages()] == ["one", "one/0", "improve it"]
                task.step(*tool_call(1))
                task.answer("better")
            assert task.run is not None
            assert task.run == memory.view().runs[-1]
            async with structure.task("say nothing"):
                pass
        assert structure.run is None
    assert await said(driver) == [("one", "one/0"), ("improve it", "better")]
    assert (await stored(driver, "k"))[-1] == task.run
    assert task.run.steps == tool_call(1)


async def test_tasks_side_by_side_are_stored_as_they_finish(driver: Driver) -> None:
    turns = [Event() for _ in range(5)]

    async def work(structure: Structure, number: int) -> None:
        async with structure.task(f"part {number}") as task:
            await turns[number].wait()
            task.answer(f"result {number}")
        if number:
            turns[number - 1].set()

    async with (
        Memory(driver, "k") as memory,
        Recorder(memory, "per_task").structure() as structure,
        create_task_group() as tasks,
    ):
        for number in range(5):
            tasks.start_soon(work, structure, number)
        turns[4].set()
    assert await said(driver) == [(f"part {number}", f"result {number}") for number in (4, 3, 2, 1, 0)]


async def test_many_tasks_at_once_lose_and_double_nothing(driver: Driver) -> None:
    async with Memory(driver, "k") as memory, Recorder(memory, "per_task").structure() as structure:
        async with create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(ask, structure, f"part {number}")
        assert sorted(inputs(memory)) == sorted(f"part {number}" for number in range(30))
    assert len(await said(driver)) == 30


# --- the memory of a task ---


@pytest.mark.parametrize("strategy", BOTH)
async def test_a_task_without_memory_neither_reads_nor_writes(driver: Driver, strategy: Recording) -> None:
    async with Memory(driver, "k") as memory:
        await memory.add("before", "yes")
        async with Recorder(memory, strategy).structure() as structure:
            assert await ask(structure, "first", memory=None) == "first/0"
            async with structure.task("second", memory=None) as task:
                assert task.messages(system="Be brief.", reserve=5, tokens=7) == [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "second"},
                ]
                task.answer("done")
    assert (await said(driver))[1:] == ([("first", "done")] if strategy == "per_structure" else [])


@pytest.mark.parametrize("strategy", BOTH)
async def test_a_memory_of_its_own_is_read_and_written_only_per_task(driver: Driver, strategy: Recording) -> None:
    async with Memory(driver, "k") as memory, Memory(driver, "own") as own:
        await own.add("own before", "yes")
        async with Recorder(memory, strategy).structure() as structure:
            assert await ask(structure, "one", memory=own) == "one/2"
            assert await ask(structure, "two") == "two/0"
    mine = [("own before", "yes"), ("one", "one/2")]
    assert await said(driver, "own") == (mine if strategy == "per_task" else mine[:1])
    assert await said(driver) == [("one" if strategy == "per_structure" else "two", "two/0")]


@pytest.mark.parametrize("strategy", BOTH)
async def test_without_a_memory_everything_runs_and_nothing_is_stored(driver: Driver, strategy: Recording) -> None:
    async with Memory(driver, "own") as own, Recorder(None, strategy).structure() as structure:
        assert await ask(structure, "one") == "one/0"
        assert await ask(structure, "two", memory=own) == "two/0"
        assert await ask(structure, "three") == "three/0"
    assert structure.run is None
    assert await said(driver, "own") == ([("two", "two/0")] if strategy == "per_task" else [])


async def test_a_prompt_takes_what_the_prompt_of_a_memory_takes() -> None:
    strategy = prune(14, counter=Words())
    async with Memory(InMemoryDriver(), "k", strategy=strategy) as memory:
        await memory.add("one two three", "four five six")
        async with Recorder(memory).structure() as structure, structure.task("new one") as task:
            assert len(task.messages(system="be kind")) == 4
            for room in ({"reserve": 8}, {"tokens": 12}):
                assert len(task.messages(system="be kind", **room)) == 2  # type: ignore[arg-type]
        async with Recorder(memory).structure() as structure, structure.task("long " * 10_000) as task:
            with pytest.raises(BudgetError, match="block the event loop"):
                task.messages()


# --- failures ---


@pytest.mark.parametrize("strategy", BOTH)
async def test_a_task_that_fails_fails_the_structure(driver: Driver, strategy: Recording) -> None:
    async with Memory(driver, "k") as memory:
        structure = Recorder(memory, strategy).structure()
        with pytest.raises(ConnectionError):  # noqa: PT012
            async with structure:
                await ask(structure, "one")
                async with structure.task("two") as task:
                    task.answer("half an ans")
                    model(False)
        assert (structure.run, task.run) == (None, None)
    assert await said(driver) == ([("one", "one/0")] if strategy == "per_task" else [])


@pytest.mark.parametrize("strategy", BOTH)
async def test_a_structure_that_is_cancelled_stores_no_more(driver: Driver, strategy: Recording) -> None:
    async with Memory(driver, "k") as memory:
        with CancelScope() as scope:
            async with Recorder(memory, strategy).structure() as structure:
                await ask(structure, "one")
                async with structure.task("two") as task:
                    task.answer("an answer")
                    scope.cancel()
                    await checkpoint()
        assert scope.cancelled_caught
    assert await said(driver) == ([("one", "one/0")] if strategy == "per_task" else [])


@pytest.mark.parametrize("strategy", BOTH)
async def test_a_failure_that_the_program_survives_is_as_if_the_task_had_not_finished(
    driver: Driver, strategy: Recording
) -> None:
    async with Memory(driver, "k") as memory, Recorder(memory, strategy, keep_steps=True).structure() as structure:
        for is_up in (False, True):
            with suppress(ConnectionError):
                async with structure.task("question") as task:
                    task.step("trying")
                    task.answer("whole" if is_up else "half")
                    model(is_up)
        with suppress(ConnectionError):
            async with structure.task("polish") as task:
                task.answer("polished")
                model(False)
    assert await said(driver) == [("question", "whole")]


@pytest.mark.parametrize("strategy", BOTH)
async def test_what_the_store_could_not_take_can_be_stored_again(strategy: Recording) -> None:
    driver = FlakyDriver(InMemoryDriver(), ["after"], calls=["append"])
    async with Memory(driver, "k") as memory:
        with pytest.raises(DriverError):
            async with Recorder(memory, strategy).structure() as structure, structure.task("one") as task:
                task.answer("yes")
        run = task.run or structure.run
        assert run is not None
        await memory.append(run)
        assert memory.view().runs == (run,)
    assert await stored(driver, "k") == [run]


# --- misuse ---


@pytest.mark.parametrize("strategy", ["per_run", "", None, ["per_task"]])
async def test_an_unknown_strategy_names_those_that_there_are(strategy: Any) -> None:
    with pytest.raises(FormatError, match='"per_structure" or "per_task", not '):
        Recorder(None, strategy)


@pytest.mark.parametrize("memory", ["per_task", InMemoryDriver(), Memory, False])
async def test_what_is_no_memory_is_refused_where_it_is_given(memory: Any) -> None:
    complaint = f"takes a Memory or None, not a {type(memory).__name__}"
    with pytest.raises(FormatError, match=complaint):
        Recorder(memory)
    async with Recorder(None).structure() as structure:
        with pytest.raises(FormatError, match=complaint):
            structure.task("one", memory=memory)


async def test_what_cannot_be_stored_is_refused_before_a_model_is_asked() -> None:
    bad: Any = Json(float("nan"))
    async with Recorder(None).structure() as structure:
        with pytest.raises(FormatError, match="input"):
            structure.task(bad)
        with pytest.raises(FormatError, match="output"):
            structure.answer(bad)
        async with structure.task("fine") as task:
            with pytest.raises(FormatError, match="output"):
                task.answer(bad)
            with pytest.raises(FormatError, match="steps"):
                task.step("one", bad)
            assert (task.output, task.steps) == ((), ())


async def test_a_closed_memory_is_refused_before_a_model_is_asked() -> None:
    memory = Memory(InMemoryDriver(), "k")
    with pytest.raises(ClosedError, match="'k' is closed"):
        async with Recorder(memory).structure():
            pytest.fail("it was entered")
    async with Recorder(None).structure() as structure:
        with pytest.raises(ClosedError, match="'k' is closed"):
            async with structure.task("one", memory=memory):
                pytest.fail("it was entered")


async def test_tasks_and_structures_are_used_once_and_inside_their_contexts() -> None:
    structure = Recorder(None).structure()
    with pytest.raises(ClosedError, match="this structure is not running"):
        structure.task("one")
    async with structure:
        task, late = structure.task("one"), structure.task("two")
        with pytest.raises(ClosedError, match="this task is not running"):
            task.answer("yes")
        async with task:
            pass
        with pytest.raises(ClosedError, match="this task is not running"):
            task.step("more")
        with pytest.raises(ClosedError, match="used already"):
            await task.__aenter__()
        left = await structure.task("three").__aenter__()
    with pytest.raises(ClosedError, match="used already"):
        await structure.__aenter__()
    for use in (structure.answer, structure.task):
        with pytest.raises(ClosedError, match="this structure is not running"):
            use("yes")
    for leave in (late.__aenter__(), left.__aexit__(None, None, None)):
        with pytest.raises(ClosedError, match="this structure is not running"):
            await leave

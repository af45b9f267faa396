"""Real griptape programs, with a stand-in for the model, on the driver that keeps their runs in memkit's."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from memkit.adapters.griptape.sources import export
from memkit.content import Ref, Text, ToolCall, ToolResult, text_of
from memkit.driver import Driver
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ConflictError, DriverError, FormatError, MemkitError
from memkit.memory import Memory
from memkit.run import Extend, Retract, Run, new_run
from memkit.testing import FlakyDriver
from memkit.testing.faults import Fault
from tests.griptape_agents import (
    agent_on,
    as_dicts,
    griptape_modules,
    griptape_run,
    memory_on,
    meta_of,
    runs_of,
    said,
    texts,
)
from tests.memories import Spy, run, store, stored, summarize


@pytest.fixture(scope="session")
def gt() -> SimpleNamespace:
    """Give griptape, which takes seconds to import."""
    return griptape_modules()


@pytest.fixture(params=["memory", "file"])
def driver(gt: SimpleNamespace, request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path / "store")


def assert_same_everywhere(memory: Any, driver: Driver) -> None:
    """The memory of a program, what memkit reads, and what another program loads are the same runs."""
    runs = runs_of(driver)
    assert [run.id for run in runs] == [run.id for run in memory.runs]
    assert said(runs) == texts(memory.runs)
    assert all(run.status == "complete" and run.created_at > 0 for run in runs)
    again = memory_on(driver)
    assert as_dicts(again.runs) == as_dicts(memory.runs)
    assert again.meta == memory.meta


# --- programs ---


def test_an_agent_remembers_and_its_next_process_too(driver: Driver) -> None:
    memory = memory_on(driver)
    agent = agent_on(memory)
    agent.run("I am Ada.")
    agent.run("Who am I?")
    assert texts(memory.runs) == [("I am Ada.", "you said: I am Ada."), ("Who am I?", "you said: Who am I?")]
    assert_same_everywhere(memory, driver)
    next_memory = memory_on(driver)
    next_agent = agent_on(next_memory)
    next_agent.run("And now?")
    assert next_agent.prompt_driver.prompts == [
        [
            ("user", "I am Ada."),
            ("assistant", "you said: I am Ada."),
            ("user", "Who am I?"),
            ("assistant", "you said: Who am I?"),
            ("user", "And now?"),
        ]
    ]
    assert_same_everywhere(next_memory, driver)


def test_a_model_that_fails_is_stored_as_griptape_has_it(gt: SimpleNamespace, driver: Driver) -> None:
    def fail(_: object) -> str:
        raise ValueError("overloaded")

    memory = memory_on(driver)
    agent_on(memory, fail).run("I am Ada.")
    assert_same_everywhere(memory, driver)
    (loaded,) = memory_on(driver).runs
    assert isinstance(loaded.output, gt.artifacts.ErrorArtifact)


def pipeline(gt: SimpleNamespace, memory: Any, strategy: str, **second: Any) -> Any:
    model = gt.StandIn()
    tasks = [
        gt.PromptTask("first of {{ args[0] }}", prompt_driver=model),
        gt.PromptTask("second of {{ parent_output }}", prompt_driver=model, **second),
        gt.PromptTask("third of {{ parent_output }}", prompt_driver=model),
    ]
    return gt.Pipeline(tasks=tasks, conversation_memory=memory, conversation_memory_strategy=strategy)


STEPS = [
    ("first of x", "you said: first of x"),
    ("second of you said: first of x", "you said: second of you said: first of x"),
    (
        "third of you said: second of you said: first of x",
        "you said: third of you said: second of you said: first of x",
    ),
]


def test_a_pipeline_is_one_run_per_structure(gt: SimpleNamespace, driver: Driver) -> None:
    memory = memory_on(driver)
    pipeline(gt, memory, "per_structure").run("x")
    assert said(runs_of(driver)) == [(STEPS[0][0], STEPS[2][1])]
    assert_same_everywhere(memory, driver)


def test_a_pipeline_is_a_run_per_task(gt: SimpleNamespace, driver: Driver) -> None:
    memory = memory_on(driver)
    pipeline(gt, memory, "per_task").run("x")
    assert said(runs_of(driver)) == STEPS
    assert_same_everywhere(memory, driver)


def test_a_task_that_opts_out_is_not_stored(gt: SimpleNamespace, driver: Driver) -> None:
    memory = memory_on(driver)
    made = pipeline(gt, memory, "per_task", conversation_memory=None)
    made.run("x")
    assert said(runs_of(driver)) == [STEPS[0], STEPS[2]]
    assert made.tasks[1].prompt_driver.prompts[1] == [("user", STEPS[1][0])]  # nor did it read
    assert_same_everywhere(memory, driver)


def test_a_task_with_a_memory_of_its_own_is_stored_there(gt: SimpleNamespace, driver: Driver) -> None:
    memory, own = memory_on(driver), memory_on(driver, "own")
    pipeline(gt, memory, "per_task", conversation_memory=own).run("x")
    assert said(runs_of(driver)) == [STEPS[0], STEPS[2]]
    assert said(runs_of(driver, "own")) == [STEPS[1]]


def test_a_workflow_stores_from_the_threads_of_its_tasks(gt: SimpleNamespace, driver: Driver) -> None:
    together = threading.Barrier(4)

    def answer(messages: list[tuple[str, str]]) -> str:
        together.wait(30)
        return messages[-1][1].upper()

    memory = memory_on(driver)
    tasks = [gt.PromptTask(f"part {n}", prompt_driver=gt.StandIn(answer)) for n in range(4)]
    joined = gt.PromptTask("joined", prompt_driver=gt.StandIn(), parent_ids=[task.id for task in tasks])
    flow = gt.Workflow(tasks=[*tasks, joined], conversation_memory=memory, conversation_memory_strategy="per_task")
    flow.run()
    expected = [(f"part {n}", f"PART {n}") for n in range(4)]
    assert sorted(said(runs_of(driver))[:4]) == expected
    assert said(runs_of(driver))[4:] == [("joined", "you said: joined")]
    assert sorted(as_dicts(memory_on(driver).runs), key=str) == sorted(as_dicts(memory.runs), key=str)


def test_a_summary_memory_keeps_the_summary_that_it_was_given(gt: SimpleNamespace, driver: Driver) -> None:
    def summary_memory(**more: Any) -> Any:
        return gt.SummaryConversationMemory(
            conversation_memory_driver=gt.Memkit(driver=driver, key="k"),
            prompt_driver=gt.StandIn(lambda _: "They went on."),
            offset=1,
            **more,
        )

    memory = summary_memory(summary="They met.", summary_index=0, meta={"lang": "en"})
    memory.add_run(griptape_run("r1", "a", "b"))
    again = summary_memory()
    assert (again.summary, again.summary_index) == ("They met.", 0)
    for n in (2, 3):
        again.add_run(griptape_run(f"r{n}", "a", "b"))
    assert (again.summary, again.summary_index) == ("They went on.", 2)
    again.meta |= {"summary": again.summary, "summary_index": again.summary_index}  # which it does not do itself
    again.add_run(griptape_run("r4", "a", "b"))
    third = summary_memory()
    assert (third.summary, third.summary_index) == ("They went on.", 2)
    assert [run.id for run in third.unsummarized_runs()] == ["r3", "r4"]
    assert third.meta == {"lang": "en", "summary": "They went on.", "summary_index": 2}
    assert_same_everywhere(third, driver)
    assert meta_of(driver) == {"lang": "en"}


# --- what griptape does with its list ---


def test_a_run_is_stored_once_and_each_store_sends_what_is_new(driver: Driver) -> None:
    spy = Spy(driver)
    memory = memory_on(spy)
    for n in range(5):
        memory.add_run(griptape_run(f"r{n}", "a", "b"))
    assert (spy.calls["append"], spy.bodies["append"], spy.calls["commit"]) == (5, 5, 0)
    spy.forget()
    memory.conversation_memory_driver.store(memory.runs, memory.meta)
    assert not spy.calls


@pytest.mark.parametrize("most", [1, 2, 3])
def test_max_runs_holds_in_the_store_too(most: int, driver: Driver) -> None:
    memory = memory_on(driver, max_runs=most)
    for n in range(5):
        memory.add_run(griptape_run(f"r{n}", "a", "b"))
    assert [run.id for run in runs_of(driver)] == [f"r{n}" for n in range(5 - most, 5)]
    assert_same_everywhere(memory, driver)


def test_max_runs_of_a_program_that_has_loaded_more(driver: Driver) -> None:
    memory = memory_on(driver)
    for n in range(5):
        memory.add_run(griptape_run(f"r{n}", "a", "b"))
    fewer = memory_on(driver, max_runs=3)
    fewer.add_run(griptape_run("r5", "a", "b"))
    assert [run.id for run in runs_of(driver)] == ["r3", "r4", "r5"]
    assert_same_everywhere(fewer, driver)


def test_a_list_that_is_cleared_is_cleared_in_the_store(driver: Driver) -> None:
    memory = memory_on(driver)
    for n in range(3):
        memory.add_run(griptape_run(f"r{n}", "a", "b"))
    memory.runs.clear()
    memory.add_run(griptape_run("new", "a", "b"))
    assert [run.id for run in runs_of(driver)] == ["new"]


def test_a_list_of_nothing_known_is_another_memorys_and_drops_nothing(driver: Driver) -> None:
    memory = memory_on(driver)
    memory.add_run(griptape_run("r1", "a", "b"))
    again = memory_on(driver, max_runs=1)
    for n in (2, 3):
        again.add_run(griptape_run(f"r{n}", "a", "b"))
    assert [run.id for run in runs_of(driver)] == ["r1", "r3"]
    memory.runs = [griptape_run("r4", "a", "b")]
    memory.add_run(griptape_run("r5", "a", "b"))
    assert [run.id for run in runs_of(driver)] == ["r1", "r3", "r4", "r5"]
    last = memory_on(driver, max_runs=2)
    last.add_run(griptape_run("r6", "a", "b"))
    assert [run.id for run in runs_of(driver)] == ["r5", "r6"]


def test_autoload_off_adds_to_what_is_stored(driver: Driver) -> None:
    memory_on(driver).add_run(griptape_run("r1", "a", "b"))
    memory = memory_on(driver, autoload=False, max_runs=1)
    for n in (2, 3):
        memory.add_run(griptape_run(f"r{n}", "a", "b"))
    assert [run.id for run in memory.runs] == ["r3"]
    assert [run.id for run in runs_of(driver)] == ["r1", "r3"]


def test_load_runs_twice_stores_nothing_twice(driver: Driver) -> None:
    memory_on(driver).add_run(griptape_run("r1", "a", "b"))
    memory = memory_on(driver)
    memory.load_runs()
    memory.add_run(griptape_run("r2", "a", "b"))
    assert [run.id for run in memory.runs] == ["r1", "r1", "r2"]  # that is griptape's own
    assert [run.id for run in runs_of(driver)] == ["r1", "r2"]
    assert [run.id for run in memory_on(driver).runs] == ["r1", "r2"]


def test_load_runs_again_knows_what_is_to_go(driver: Driver) -> None:
    memory = memory_on(driver)
    memory.add_run(griptape_run("r1", "a", "b"))
    memory_on(driver).add_run(griptape_run("r2", "a", "b"))
    memory.runs.clear()
    memory.load_runs()
    del memory.runs[1]
    memory.add_run(griptape_run("r3", "a", "b"))
    assert [run.id for run in runs_of(driver)] == ["r1", "r3"]


def test_the_same_run_twice_is_stored_once(driver: Driver) -> None:
    memory = memory_on(driver)
    one = griptape_run("r1", "a", "b")
    memory.add_run(one)
    memory.add_run(one)
    memory.add_run(griptape_run("r2", "a", "b"))
    assert [run.id for run in runs_of(driver)] == ["r1", "r2"]


def test_an_edit_of_a_run_is_stored(gt: SimpleNamespace, driver: Driver) -> None:
    text = gt.artifacts.TextArtifact
    memory = memory_on(driver)
    for n in range(3):
        memory.add_run(griptape_run(f"r{n}", "a", "b"))
    memory.runs[0].output = text("corrected")
    memory.runs[1].meta = {"rating": {"stars": 5}}
    memory.runs[2].input.value = "asked otherwise"
    memory.add_run(griptape_run("r3", "a", "b"))
    assert said(runs_of(driver)) == [("a", "corrected"), ("a", "b"), ("asked otherwise", "b"), ("a", "b")]
    assert_same_everywhere(memory, driver)
    again = memory_on(driver)
    again.runs[1].meta["rating"]["stars"] = 1
    again.conversation_memory_driver.store(again.runs, again.meta)
    assert runs_of(driver)[1].meta == {"rating": {"stars": 1}}


def test_a_run_that_is_taken_out_is_taken_back(driver: Driver) -> None:
    memory = memory_on(driver)
    for n in range(4):
        memory.add_run(griptape_run(f"r{n}", "a", "b"))
    again = memory_on(driver)
    del again.runs[1:3]
    again.conversation_memory_driver.store(again.runs, again.meta)
    assert [run.id for run in runs_of(driver)] == ["r0", "r3"]
    assert_same_everywhere(again, driver)


def test_steps_and_times_of_a_run_survive_an_edit_by_griptape(gt: SimpleNamespace, driver: Driver) -> None:
    call = ToolCall(id="c", name="search", arguments="{}")
    before = new_run("a", "b", steps=(call, ToolResult(id="c", content="found")), meta={"cost": 1})
    anyio.run(store, driver, "k", [before])
    memory = memory_on(driver)
    (shown,) = memory.runs
    assert (shown.id, shown.meta) == (before.id, {"cost": 1})
    shown.output = gt.artifacts.TextArtifact("c")
    memory.conversation_memory_driver.store(memory.runs, memory.meta)
    (after,) = runs_of(driver)
    assert after.replace(output="b").steps == before.steps
    assert (after.output, after.created_at, after.meta) == ("c", before.created_at, {"cost": 1})


def test_what_griptape_has_no_word_for_survives_an_edit_beside_it(gt: SimpleNamespace, driver: Driver) -> None:
    said_more = (Text("see"), Ref("https://example.org/a.pdf", "application/pdf"))
    before = Run("r1", said_more, output="b", meta={"memkit": "a word of the user's"})
    anyio.run(store, driver, "k", [before])
    memory = memory_on(driver)
    memory.runs[0].output = gt.artifacts.TextArtifact("c")
    memory.conversation_memory_driver.store(memory.runs, memory.meta)
    (after,) = runs_of(driver)
    assert (after.input, after.output, after.meta) == (said_more, "c", before.meta)
    memory.runs[0].input = gt.artifacts.TextArtifact("a")
    memory.runs[0].meta = {"cost": 1}
    memory.conversation_memory_driver.store(memory.runs, memory.meta)
    (after,) = runs_of(driver)
    assert (after.input, after.output, after.meta) == ("a", "c", {"cost": 1})


def test_griptape_sees_runs_as_they_are_after_all_changes(driver: Driver) -> None:
    entries = [run(1), run(2), Run("r3", "half", status="partial")]
    changes = [Extend("e", "r3", 2, 0, (Text("thought"),), "whole", "complete"), Retract("t", "r1", 0)]
    anyio.run(store, driver, "k", [*entries, *changes])
    memory = memory_on(driver)
    assert texts(memory.runs) == [("question 2", "yes"), ("half", "whole")]


# --- several programs ---


def test_two_processes_on_one_key_lose_nothing(driver: Driver) -> None:
    one, two = memory_on(driver), memory_on(driver)
    for n in range(3):
        one.add_run(griptape_run(f"a{n}", "a", "b"))
        two.add_run(griptape_run(f"b{n}", "a", "b"))
    assert sorted(run.id for run in runs_of(driver)) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    one.meta["of"] = "one"
    two.meta["by"] = "two"
    for memory in (one, two):
        memory.conversation_memory_driver.store(memory.runs, memory.meta)
    assert meta_of(driver) == {"of": "one", "by": "two"}


@pytest.mark.parametrize("autoload", [True, False])
def test_two_memories_on_one_driver_object_lose_nothing(
    autoload: bool, gt: SimpleNamespace, driver: Driver
) -> None:
    memory_on(driver).add_run(griptape_run("r0", "a", "b"))
    shared = gt.Memkit(driver=driver, key="k")
    one, two = (
        gt.ConversationMemory(conversation_memory_driver=shared, autoload=flag) for flag in (True, autoload)
    )
    for n in range(2):
        one.add_run(griptape_run(f"a{n}", "a", "b"))
        two.add_run(griptape_run(f"b{n}", "a", "b"))
    assert [run.id for run in runs_of(driver)] == ["r0", "a0", "b0", "a1", "b1"]


def test_each_of_two_memories_on_one_driver_object_drops_its_own(gt: SimpleNamespace, driver: Driver) -> None:
    shared = gt.Memkit(driver=driver, key="k")
    one, two = (gt.ConversationMemory(conversation_memory_driver=shared, max_runs=2) for _ in range(2))
    for n in range(4):
        one.add_run(griptape_run(f"a{n}", "a", "b"))
        two.add_run(griptape_run(f"b{n}", "a", "b"))
    assert [run.id for run in runs_of(driver)] == ["a2", "b2", "a3", "b3"]


def test_an_edit_is_not_undone_by_another_memory_on_the_driver(gt: SimpleNamespace, driver: Driver) -> None:
    memory_on(driver).add_run(griptape_run("r0", "a", "b"))
    shared = gt.Memkit(driver=driver, key="k")
    one, two = (gt.ConversationMemory(conversation_memory_driver=shared) for _ in range(2))
    one.runs[0].output = gt.artifacts.TextArtifact("corrected")
    one.meta["lang"] = "en"
    one.add_run(griptape_run("r1", "a", "b"))
    two.add_run(griptape_run("r2", "a", "b"))
    assert said(runs_of(driver))[0] == ("a", "corrected")
    assert meta_of(driver) == {"lang": "en"}


def test_threads_with_a_memory_each_lose_nothing(driver: Driver) -> None:
    together = threading.Barrier(4)

    def work(name: str) -> None:
        memory = memory_on(driver)
        together.wait(30)
        for n in range(5):
            memory.add_run(griptape_run(f"{name}{n}", "a", "b"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, "abcd"))
    assert sorted(run.id for run in runs_of(driver)) == sorted(f"{name}{n}" for name in "abcd" for n in range(5))


def test_threads_with_one_memory_lose_nothing(driver: Driver) -> None:
    memory = memory_on(driver)
    together = threading.Barrier(4)

    def work(name: str) -> None:
        together.wait(30)
        for n in range(5):
            memory.add_run(griptape_run(f"{name}{n}", "a", "b"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, "abcd"))
    assert sorted(run.id for run in runs_of(driver)) == sorted(run.id for run in memory.runs)
    assert len(memory.runs) == 20


@pytest.mark.anyio
async def test_inside_a_running_event_loop(driver: Driver) -> None:
    memory = memory_on(driver)
    agent_on(memory).run("I am Ada.")
    async with Memory(driver, "k") as handle:
        await handle.add("from here", "yes")
    again = memory_on(driver)
    assert texts(again.runs) == [("I am Ada.", "you said: I am Ada."), ("from here", "yes")]
    await anyio.to_thread.run_sync(agent_on(again).run, "in a thread")
    async with Memory(driver, "k") as handle:
        assert [text_of(run.input) for run in handle.view().runs] == ["I am Ada.", "from here", "in a thread"]


# --- the driver that is opened here ---


class Opened:
    """Opens a driver, and notes on which event loops."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.loops: list[tuple[str, object]] = []

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Driver]:
        self.loops.append(("entered", asyncio.get_running_loop()))
        try:
            yield self.driver
        finally:
            self.loops.append(("left", asyncio.get_running_loop()))


def test_a_function_opens_the_driver_at_the_first_use_and_close_closes_it(
    gt: SimpleNamespace, driver: Driver
) -> None:
    opened = Opened(driver)
    made = gt.Memkit(driver=opened, key="k")
    assert opened.loops == []
    memory = gt.ConversationMemory(conversation_memory_driver=made)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(memory.add_run, griptape_run("r1", "a", "b")).result(30)
    memory.add_run(griptape_run("r2", "a", "b"))
    assert [what for what, _ in opened.loops] == ["entered"]
    made.close()
    made.close()
    assert [what for what, _ in opened.loops] == ["entered", "left"]
    memory.add_run(griptape_run("r3", "a", "b"))
    assert [what for what, _ in opened.loops] == ["entered", "left", "entered"]
    made.close()
    assert len({id(loop) for _, loop in opened.loops}) == 1
    assert [run.id for run in runs_of(driver)] == ["r1", "r2", "r3"]


def test_what_was_dropped_before_closing_stays_dropped(gt: SimpleNamespace, driver: Driver) -> None:
    memory = memory_on(driver)
    for n in range(3):
        memory.add_run(griptape_run(f"r{n}", "a", "b"))
    other = memory_on(driver)
    del other.runs[0]
    other.add_run(griptape_run("r3", "a", "b"))
    memory.conversation_memory_driver.close()
    memory.add_run(griptape_run("r4", "a", "b"))
    assert [run.id for run in runs_of(driver)] == ["r1", "r2", "r3", "r4"]


def test_a_driver_that_cannot_be_opened_says_so_and_is_opened_later(gt: SimpleNamespace, driver: Driver) -> None:
    faults = [DriverError("no route to host", retryable=True)]

    @asynccontextmanager
    async def opened() -> AsyncIterator[Driver]:
        if faults:
            raise faults.pop()
        yield driver

    made = gt.Memkit(driver=opened, key="k")
    with pytest.raises(DriverError, match="no route"):
        made.load()
    assert made.load() == ([], {})


def test_a_key_is_needed_and_must_be_one(gt: SimpleNamespace, driver: Driver) -> None:
    with pytest.raises(TypeError, match="key"):
        gt.Memkit(driver=driver)
    with pytest.raises(FormatError, match="key"):
        gt.Memkit(driver=driver, key="").load()


# --- errors ---


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_store_that_failed_is_made_good_by_the_next(fault: Fault, driver: Driver) -> None:
    memory = memory_on(FlakyDriver(driver, [None, fault], calls=["append"]))
    memory.add_run(griptape_run("r1", "a", "b"))
    with pytest.raises(DriverError, match="append"):
        memory.add_run(griptape_run("r2", "a", "b"))
    memory.add_run(griptape_run("r3", "a", "b"))
    assert [run.id for run in runs_of(driver)] == ["r1", "r2", "r3"]
    assert_same_everywhere(memory, driver)


@pytest.mark.parametrize("fault", ["before", "after"])
def test_the_very_same_store_can_be_repeated(fault: Fault, driver: Driver) -> None:
    memory = memory_on(FlakyDriver(driver, [fault], calls=["append"]))
    with pytest.raises(DriverError):
        memory.add_run(griptape_run("r1", "a", "b"))
    memory.conversation_memory_driver.store(memory.runs, memory.meta)
    assert [entry.id for entry in anyio.run(stored, driver, "k")] == ["r1"]
    assert_same_everywhere(memory, driver)


@pytest.mark.parametrize("call", ["load", "commit", "trim"])
@pytest.mark.parametrize("fault", ["before", "after"])
def test_other_calls_that_fail_can_be_repeated(call: str, fault: Fault, driver: Driver) -> None:
    anyio.run(store, driver, "k", [run(1), run(2)])
    faults: list[Fault] = []

    def armed() -> Iterator[Fault | None]:
        while True:
            yield faults.pop() if faults else None

    memory = memory_on(FlakyDriver(driver, armed(), calls=[call]), max_runs=2)
    memory.meta["lang"] = "en"
    faults.append(fault)
    with pytest.raises(DriverError, match=call):
        memory.add_run(griptape_run("r3", "a", "b"))
    memory.add_run(griptape_run("r4", "a", "b"))
    assert [run.id for run in runs_of(driver)] == ["r3", "r4"]
    assert meta_of(driver) == {"lang": "en"}


def test_a_load_that_failed_shows_nothing_and_takes_nothing(driver: Driver) -> None:
    anyio.run(store, driver, "k", [run(1)])
    flaky = FlakyDriver(driver, ["before"])
    with pytest.raises(DriverError):
        memory_on(flaky)
    memory_on(flaky, autoload=False).add_run(griptape_run("r2", "a", "b"))
    assert [run.id for run in runs_of(driver)] == ["r1", "r2"]


def test_a_conversation_that_was_cleared_is_an_error_once(driver: Driver) -> None:
    memory = memory_on(driver)
    memory.add_run(griptape_run("r1", "a", "b"))
    anyio.run(driver.delete, "k")
    with pytest.raises(ConflictError, match="'k'"):
        memory.add_run(griptape_run("r2", "a", "b"))
    memory.add_run(griptape_run("r3", "a", "b"))
    assert [run.id for run in runs_of(driver)] == ["r2", "r3"]  # what was cleared does not come back


def test_bytes_that_are_no_runs_are_a_typed_error_and_stay(tmp_path: Path, gt: SimpleNamespace) -> None:
    driver = FileDriver(tmp_path)
    memory_on(driver).add_run(griptape_run("r1", "a", "b"))
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file() and b'"r1"' in path.read_bytes())
    broken = path.read_bytes().replace(b'"r1"', b'"r1', 1)
    path.write_bytes(broken)
    made = gt.Memkit(driver=FileDriver(tmp_path), key="k")
    with pytest.raises(MemkitError):
        made.load()
    with pytest.raises(MemkitError):
        made.store([griptape_run("r2", "a", "b")], {})
    assert path.read_bytes() == broken


# --- as griptape writes its objects ---


def test_driver_memory_and_agent_can_be_written(gt: SimpleNamespace, driver: Driver) -> None:
    memory = memory_on(driver)
    agent = agent_on(memory)
    agent.run("I am Ada.")
    made = memory.conversation_memory_driver
    assert made.to_dict() == {"type": "MemkitConversationMemoryDriver", "key": "k"}
    assert json.loads(made.to_json()) == made.to_dict() == json.loads(str(made))
    assert memory.to_dict()["runs"] == as_dicts(memory.runs)
    assert agent.to_dict()["conversation_memory"] == json.loads(memory.to_json())
    again = gt.ConversationMemory.from_dict(memory.to_dict())
    assert as_dicts(again.runs) == as_dicts(memory.runs)


def test_the_export_is_what_the_driver_shows(gt: SimpleNamespace, driver: Driver, tmp_path: Path) -> None:
    memory = memory_on(driver, meta={"lang": "en"})
    agent_on(memory).run("I am Ada.")

    async def exported() -> str:
        async with Memory(driver, "k") as handle:
            return await export(handle)

    path = tmp_path / "exported.json"
    path.write_text(anyio.run(exported))
    runs, meta = gt.Local(persist_file=str(path)).load()
    assert [run.input.to_dict() for run in runs] == [run.input.to_dict() for run in memory.runs]
    assert meta == {"lang": "en"}


def test_a_summary_of_memkit_is_metadata_for_griptape(gt: SimpleNamespace, driver: Driver) -> None:
    anyio.run(store, driver, "k", [run(1), run(2), run(3)])
    anyio.run(lambda: summarize(driver, "k", upto=2, seen=3))
    memory = gt.SummaryConversationMemory(
        conversation_memory_driver=gt.Memkit(driver=driver, key="k"), prompt_driver=gt.StandIn()
    )
    assert (memory.summary, memory.summary_index) == ("in short", 2)
    assert [run.id for run in memory.unsummarized_runs()] == ["r3"]
    assert gt.Conversation(memory).lines()[-1] == "Summary: in short"


# --- the thread ---

EXIT = """
import sys
from tests.griptape_agents import griptape_run, memory_on
from memkit.drivers.file import FileDriver

memory = memory_on(FileDriver(sys.argv[1]))
memory.add_run(griptape_run("r1", "a", "b"))
print("stored")
"""

FORK = """
import os, sys
from contextlib import asynccontextmanager
from tests.griptape_agents import griptape_modules, griptape_run
from memkit.drivers.file import FileDriver

@asynccontextmanager
async def opened():
    print("opened", flush=True)
    yield FileDriver(sys.argv[1])

gt = griptape_modules()
for driver in (FileDriver(sys.argv[1]), opened):
    memory = gt.ConversationMemory(conversation_memory_driver=gt.Memkit(driver=driver, key="k"))
    memory.add_run(griptape_run(f"r{len(memory.runs)}", "a", "b"))
    child = os.fork()
    if not child:
        memory.add_run(griptape_run(f"r{len(memory.runs)}", "a", "b"))
        print("stored", flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    memory.add_run(griptape_run(f"p{len(memory.runs)}", "a", "b"))
"""


def run_script(script: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_the_end_of_a_program_does_not_wait(tmp_path: Path) -> None:
    assert run_script(EXIT, str(tmp_path)) == ["stored"]
    assert [run.id for run in runs_of(FileDriver(tmp_path))] == ["r1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_stores_and_so_does_its_parent(tmp_path: Path) -> None:
    assert run_script(FORK, str(tmp_path)) == ["stored", "opened", "opened", "stored"]
    assert [run.id for run in runs_of(FileDriver(tmp_path))] == ["r0", "r1", "p1", "r3", "r4", "p4"]

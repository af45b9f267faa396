"""LangChain agents that remember: real agents of `create_agent` and LangGraph, with a scripted model."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from memkit import (
    BudgetError,
    DriverError,
    FileDriver,
    FormatError,
    InMemoryDriver,
    Memory,
    Run,
    SummaryPolicy,
    Text,
    ToolCall,
    ToolResult,
    compose,
    everything,
    forget_steps,
    last_runs,
    new_run,
    prune,
)
from memkit.adapters.langchain import to_messages
from memkit.testing import Fault, FlakyDriver
from memkit.tokens import TextCounter, approximate

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRetryMiddleware
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command, interrupt

from memkit.adapters.langchain.agents import MemoryMiddleware, StrategyMiddleware
from memkit.adapters.langchain.bounded import Bounded

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[1]


@pytest.fixture
def anyio_backend() -> str:
    """LangChain runs on asyncio only."""
    return "asyncio"


class Scripted(BaseChatModel):
    """A model that looks up the weather with a tool, and knows the name that it was told if it sees it."""

    prompts: Any = None
    fails: Any = None
    asks: int = 0

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if self.prompts is not None:
            self.prompts.append(messages)
        if self.fails:
            raise self.fails.pop()
        if self.asks and isinstance(messages[-1], ToolMessage):
            self.asks -= 1
            return ChatResult(generations=[ChatGeneration(message=answer([HumanMessage("weather")]))])
        return ChatResult(generations=[ChatGeneration(message=answer(messages))])


def answer(messages: Sequence[BaseMessage]) -> AIMessage:
    last = messages[-1]
    if isinstance(last, ToolMessage):
        return AIMessage(f"I looked: {last.text}")
    if "weather" in last.text:
        return AIMessage("", tool_calls=[{"name": "weather", "args": {"city": "Oslo"}, "id": f"c{len(messages)}"}])
    names = [name for message in messages for name in re.findall(r"[Mm]y name is (\w+)", message.text)]
    return AIMessage(f"You are {names[-1]}" if names and "name?" in last.text else "I see")


@tool
def weather(city: str) -> str:
    """Look up the weather."""
    return f"rain in {city} " + "and wind " * 40


def thread(name: str) -> Any:
    return {"configurable": {"thread_id": name}}


def said(text: str) -> Any:
    return {"messages": [HumanMessage(text)]}


def agent_over(driver: Any, model: Scripted | None = None, *more: Any, **options: Any) -> Any:
    middleware = [MemoryMiddleware(driver, **options), *more]
    return create_agent(model or Scripted(), [weather], system_prompt="Be kind.", middleware=middleware)


async def history(driver: Any, key: str) -> list[Run]:
    async with Memory(driver, key) as memory:
        return [run async for run in memory.history()]


def texts(messages: Sequence[BaseMessage]) -> list[str]:
    return [message.text[:22] for message in messages]


# --- a memory that lasts ---


async def test_an_agent_remembers_without_a_checkpointer() -> None:
    driver, model = InMemoryDriver(), Scripted(prompts=[])

    first = await agent_over(driver).ainvoke(said("My name is Collin"), thread("a"))
    second = await agent_over(driver, model).ainvoke(said("What is my name?"), thread("a"))
    other = await agent_over(driver).ainvoke(said("What is my name?"), thread("b"))

    assert texts(first["messages"]) == ["My name is Collin", "I see"]
    assert texts(second["messages"]) == ["What is my name?", "You are Collin"]
    assert other["messages"][-1].text == "I see"
    assert texts(model.prompts[0]) == ["Be kind.", "My name is Collin", "I see", "What is my name?"]
    assert [type(message) for message in model.prompts[0][:2]] == [SystemMessage, HumanMessage]


async def test_what_is_stored_is_what_was_said_with_its_tool_traffic() -> None:
    driver = InMemoryDriver()

    result = await agent_over(driver).ainvoke(said("How is the weather?"), thread("a"))

    (run,) = await history(driver, "a")
    assert run.status == "complete"
    assert [type(part) for part in run.steps] == [ToolCall, ToolResult]
    assert to_messages([run]) == result["messages"]


def test_it_works_without_an_event_loop_too() -> None:
    driver = InMemoryDriver()

    agent_over(driver).invoke(said("My name is Collin"), thread("a"))
    weathered = agent_over(driver).invoke(said("How is the weather?"), thread("a"))
    result = agent_over(driver).invoke(said("What is my name?"), thread("a"))

    assert weathered["messages"][-1].text.startswith("I looked: rain in Oslo")
    assert result["messages"][-1].text == "You are Collin"


TURN = """
import sys
import anyio
from memkit import FileDriver
from tests.test_langchain_agents import Scripted, agent_over, said, thread

async def turn():
    result = await agent_over(FileDriver(sys.argv[1])).ainvoke(said(sys.argv[2]), thread("user-id-123"))
    print(result["messages"][-1].text, flush=True)
    sys.stdin.read()  # until it is killed

anyio.run(turn)
"""


def turn_then_kill(folder: Path, text: str) -> str:
    """Run a turn in a process of its own, and kill that once it has answered."""
    process = subprocess.Popen(
        [sys.executable, "-c", TURN, str(folder), text],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    return line.strip()


async def test_a_killed_process_remembers(tmp_path: Path) -> None:
    looked = turn_then_kill(tmp_path / "log", "How is the weather? By the way, my name is Collin")
    assert looked.startswith("I looked: rain in Oslo")

    bounded = compose(forget_steps(keep=1), prune(200, counter=approximate()))
    for strategy, traffic in ((None, ["ai", "tool"]), (bounded, [])):
        folder = tmp_path / str(strategy is None)
        shutil.copytree(tmp_path / "log", folder)
        driver, model = FileDriver(folder), Scripted(prompts=[])
        asked = await agent_over(driver, model, strategy=strategy).ainvoke(
            said("What is my name?"), thread("user-id-123")
        )

        assert asked["messages"][-1].text == "You are Collin"
        assert [message.type for message in model.prompts[-1]] == ["system", "human", *traffic, "ai", "human"]
        runs = await history(driver, "user-id-123")
        assert [(run.status, len(run.steps)) for run in runs] == [("complete", 2), ("complete", 0)]


async def test_a_budget_bounds_the_prompt_and_keeps_pairs_whole() -> None:
    driver, model = InMemoryDriver(), Scripted(prompts=[])
    strategy = compose(forget_steps(keep=1), prune(260, counter=approximate()))
    agent = agent_over(driver, model, strategy=strategy)

    for number in range(5):
        await agent.ainvoke(said(f"How is the weather, {number}?"), thread("a"))

    for prompt in model.prompts:
        assert prompt[0].text == "Be kind."
        assert [message.text for message in prompt if isinstance(message, HumanMessage)][-1].startswith("How is")
        called = [
            call["id"] for message in prompt if isinstance(message, AIMessage) for call in message.tool_calls
        ]
        assert called == [message.tool_call_id for message in prompt if isinstance(message, ToolMessage)]
        assert sum(len(message.text) for message in prompt) // 4 < 260
    # Of the turn before, all but its steps.
    assert [type(message) for message in model.prompts[-1][1:]] == [
        *(HumanMessage, AIMessage),
        *(HumanMessage, AIMessage, ToolMessage),
    ]
    assert len(await history(driver, "a")) == 5


async def test_no_step_tokenises_what_was_counted_before() -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return len(text)

    counter = TextCounter("test", lambda: count)
    agent = agent_over(InMemoryDriver(), strategy=prune(10_000, counter=counter))

    for number in range(3):
        await agent.ainvoke(said(f"How is the weather, {number}?"), thread("a"))

    said_by_users = [text for text in counted if text.startswith("How is")]
    assert said_by_users == [f"How is the weather, {number}?" for number in range(3)]
    assert sum(text.startswith("rain") for text in counted) == 3
    assert counted.count("Be kind.") == 1


async def test_a_summary_stands_for_what_it_covers() -> None:
    async def sum_up(runs: Sequence[Run], *, previous: str | None) -> str:
        return "Collin."

    driver, model = InMemoryDriver(), Scripted(prompts=[])
    options: Any = {"summarizer": sum_up, "policy": SummaryPolicy(keep=1, every=1)}
    agent = agent_over(driver, model, **options)
    for text in ("My name is Collin, and I like cats " * 9, "I like dogs", "Hi"):
        await agent.ainvoke(said(text), thread("a"))
    async with Memory(driver, "a", **options) as memory:
        assert await memory.summarize()

    await agent.ainvoke(said("What now?"), thread("a"))

    _, summary, *others = model.prompts[-1]
    assert isinstance(summary, SystemMessage)
    assert "Collin." in summary.text
    assert texts(others) == ["Hi", "I see", "What now?"]


async def test_turns_of_many_threads_and_of_one_lose_nothing() -> None:
    driver = InMemoryDriver()
    agent = agent_over(driver)

    async with anyio.create_task_group() as group:
        for number in range(12):
            text = f"How is the weather, {number}?"
            group.start_soon(agent.ainvoke, said(text), thread(f"t{number % 2}"))

    found = [await history(driver, f"t{number}") for number in range(2)]
    assert sorted(str(to_messages([run])[0].text) for runs in found for run in runs) == sorted(
        f"How is the weather, {number}?" for number in range(12)
    )
    assert all(len(run.steps) == 2 and run.status == "complete" for runs in found for run in runs)


async def test_what_others_say_meanwhile_does_not_change_the_beginning_of_the_prompt() -> None:
    driver, model = InMemoryDriver(), Scripted(prompts=[])

    @tool
    async def weather(city: str) -> str:
        """Look up the weather while somebody else writes."""
        async with Memory(driver, "a") as memory:
            await memory.add("Boo", "Hoo")
        return "rain"

    agent = create_agent(model, [weather], middleware=[MemoryMiddleware(driver)])
    await agent.ainvoke(said("How is the weather?"), thread("a"))

    assert [len(prompt) for prompt in model.prompts] == [1, 3]
    assert [run.input[0].text if run.steps else run.input for run in await history(driver, "a")] == [
        "How is the weather?",
        "Boo",
    ]


async def test_a_turn_that_fails_is_kept_as_far_as_it_came() -> None:
    driver = InMemoryDriver()
    model = Scripted(prompts=[], fails=[RuntimeError("overloaded")])

    with pytest.raises(RuntimeError, match="overloaded"):
        await agent_over(driver, model).ainvoke(said("My name is Collin"), thread("a"))
    result = await agent_over(driver, model).ainvoke(said("Hi"), thread("a"))

    lost, found = await history(driver, "a")
    assert (lost.status, to_messages([lost])[0].text) == ("partial", "My name is Collin")
    assert found.status == "complete"
    assert texts(model.prompts[-1]) == ["Be kind.", "Hi"]
    assert len(result["messages"]) == 2


@tool("weather")
def no_weather(city: str) -> str:
    """Look up the weather, and fail."""
    raise RuntimeError("no network")


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("with_checkpointer", [True, False])
async def test_what_the_model_asked_for_is_kept_though_it_failed(with_checkpointer: bool, waits: bool) -> None:
    driver, saver = InMemoryDriver(), InMemorySaver() if with_checkpointer else None
    agent = create_agent(Scripted(), [no_weather], middleware=[MemoryMiddleware(driver)], checkpointer=saver)

    async def ask() -> None:
        if waits:
            await agent.ainvoke(said("How is the weather?"), thread("a"))
        else:
            agent.invoke(said("How is the weather?"), thread("a"))

    with pytest.raises(RuntimeError, match="no network"):
        await ask()
    before = await history(driver, "a")
    await agent.ainvoke(said("Hi"), thread("a"))

    lost, found = await history(driver, "a")
    assert before == [lost]
    assert (lost.status, [type(step) for step in lost.steps]) == ("partial", [ToolCall])
    assert texts(to_messages([found])) == ["Hi", "I see"]


async def test_a_run_that_could_not_be_stored_to_its_end_is_completed_by_the_next_turn() -> None:
    inner, saver = InMemoryDriver(), InMemorySaver()
    driver = FlakyDriver(inner, [None, "before"], calls=["append"])  # the end of the first turn is not stored
    agent = create_agent(Scripted(), [weather], middleware=[MemoryMiddleware(driver)], checkpointer=saver)

    with pytest.raises(DriverError):
        await agent.ainvoke(said("My name is Collin"), thread("a"))
    before = await history(inner, "a")
    await agent.ainvoke(said("What is my name?"), thread("a"))

    assert [(run.status, run.output) for run in before] == [("partial", ())]
    after = await history(inner, "a")
    assert [texts(to_messages([run])) for run in after] == [
        ["My name is Collin", "I see"],
        ["What is my name?", "You are Collin"],
    ]
    assert {run.status for run in after} == {"complete"}


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_no_tool_runs_before_its_call_is_stored(fault: Fault) -> None:
    inner, looked = InMemoryDriver(), list[str]()

    @tool
    def weather(city: str) -> str:
        """Look up the weather."""
        looked.append(city)
        return "rain"

    driver = FlakyDriver(inner, [None, fault], calls=["append"])
    agent = create_agent(
        Scripted(), [weather], middleware=[MemoryMiddleware(driver)], checkpointer=InMemorySaver()
    )
    with pytest.raises(DriverError):
        await agent.ainvoke(said("How is the weather?"), thread("a"))
    assert not looked

    result = await agent.ainvoke(None, thread("a"))  # goes on where it was

    assert looked == ["Oslo"]
    assert [to_messages([run]) for run in await history(inner, "a")] == [result["messages"]]


async def test_a_cancelled_turn_is_kept_as_far_as_it_came() -> None:
    driver = InMemoryDriver()
    scope = anyio.CancelScope()

    @tool
    async def weather(city: str) -> str:
        """Never come back."""
        scope.cancel()
        await anyio.sleep_forever()
        return ""

    agent = create_agent(Scripted(), [weather], middleware=[MemoryMiddleware(driver)])
    with scope:
        await agent.ainvoke(said("How is the weather?"), thread("a"))

    (run,) = await history(driver, "a")
    assert run.status == "partial"
    assert to_messages([run])[0].text == "How is the weather?"
    assert [type(step) for step in run.steps] == [ToolCall]


async def test_a_store_that_fails_says_so_before_the_model_is_asked() -> None:
    model = Scripted(prompts=[])

    with pytest.raises(DriverError):
        await agent_over(FlakyDriver(InMemoryDriver(), ["before"]), model).ainvoke(said("Hi"), thread("a"))

    assert model.prompts == []


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("call", [0, 2])
async def test_a_model_call_that_is_tried_again_stores_nothing_twice(fault: Fault, call: int) -> None:
    inner = InMemoryDriver()
    driver = FlakyDriver(inner, [None] * call + [fault], calls=["append"])
    middleware = [ModelRetryMiddleware(max_retries=1, initial_delay=0, jitter=False), MemoryMiddleware(driver)]
    agent = create_agent(Scripted(), [weather], middleware=middleware)

    result = await agent.ainvoke(said("How is the weather?"), thread("a"))

    assert [to_messages([run]) for run in await history(inner, "a")] == [result["messages"]]
    assert (await inner.load("a", 0)).end == 4


async def test_all_exchanges_that_are_given_are_new() -> None:
    driver = InMemoryDriver()
    given = [
        SystemMessage("Be brief."),
        HumanMessage("Hi"),
        AIMessage("Hello"),
        HumanMessage("Me"),
        HumanMessage("?"),
    ]
    model = Scripted(prompts=[])

    await agent_over(driver, model).ainvoke({"messages": given}, thread("a"))

    stored = await history(driver, "a")
    assert [texts(to_messages([run])) for run in stored] == [["Hi", "Hello"], ["Me"], ["?", "I see"]]
    assert texts(model.prompts[0]) == ["Be kind.", "Be brief.", "Hi", "Hello", "Me", "?"]


@pytest.mark.parametrize("waits", [True, False])
async def test_what_an_earlier_call_has_returned_may_be_given_again(waits: bool) -> None:
    driver, model = InMemoryDriver(), Scripted(prompts=[])
    agent = create_agent(model, [weather], middleware=[MemoryMiddleware(driver)])
    messages: list[Any] = [HumanMessage("Never stored?"), AIMessage("No.")]

    for text in ("How is the weather?", "My name is Collin", "What is my name?"):
        given: Any = {"messages": [*messages, HumanMessage(text)]}
        result = await agent.ainvoke(given, thread("a")) if waits else agent.invoke(given, thread("a"))
        messages = result["messages"]

    assert [texts(to_messages([run]))[0] for run in await history(driver, "a")] == [
        "Never stored?",
        "How is the weather?",
        "My name is Collin",
        "What is my name?",
    ]
    assert model.prompts[-1] == messages[:-1]


async def test_what_is_given_again_may_be_older_than_the_window() -> None:
    driver = InMemoryDriver()
    agent = create_agent(Scripted(), [weather], middleware=[MemoryMiddleware(driver, strategy=last_runs(1))])
    first = await agent.ainvoke(said("How is the weather?"), thread("a"))
    async with Memory(driver, "a") as memory:
        await memory.append(*(new_run(f"question {number}", "answer") for number in range(110)))

    await agent.ainvoke({"messages": [*first["messages"], HumanMessage("Hi")]}, thread("a"))

    assert [bool(run.steps) for run in await history(driver, "a")] == [True, *[False] * 111]


async def test_a_turn_may_end_without_an_answer() -> None:
    driver = InMemoryDriver()

    @tool(return_direct=True)
    def weather(city: str) -> str:
        """Look up the weather, and say so."""
        return "rain"

    agent = create_agent(Scripted(), [weather], middleware=[MemoryMiddleware(driver)])
    result = await agent.ainvoke(said("How is the weather?"), thread("a"))

    (run,) = await history(driver, "a")
    assert (run.status, run.output) == ("complete", ())
    assert to_messages([run]) == result["messages"]
    assert isinstance(result["messages"][-1], ToolMessage)


@pytest.mark.parametrize("with_checkpointer", [True, False])
async def test_the_model_may_have_the_first_word(with_checkpointer: bool) -> None:
    driver, model = InMemoryDriver(), Scripted(prompts=[])
    saver = InMemorySaver() if with_checkpointer else None
    agent = create_agent(model, [weather], middleware=[MemoryMiddleware(driver)], checkpointer=saver)

    await agent.ainvoke({"messages": [SystemMessage("Say hello.")]}, thread("a"))
    await agent.ainvoke(said("My name is Collin"), thread("a"))

    assert [texts(to_messages([run])) for run in await history(driver, "a")] == [
        ["I see"],
        ["My name is Collin", "I see"],
    ]
    assert texts(model.prompts[-1])[-2:] == ["I see", "My name is Collin"]


async def test_what_is_streamed_is_stored() -> None:
    driver = InMemoryDriver()

    pieces = [piece async for piece in agent_over(driver).astream(said("Hi"), thread("a"), stream_mode="messages")]

    assert pieces
    (run,) = await history(driver, "a")
    assert texts(to_messages([run])) == ["Hi", "I see"]


# --- beside a checkpointer ---


async def test_with_a_checkpointer_nothing_is_stored_or_shown_twice() -> None:
    driver, model, saver = InMemoryDriver(), Scripted(prompts=[]), InMemorySaver()
    agent = create_agent(model, [weather], middleware=[MemoryMiddleware(driver)], checkpointer=saver)

    for text in ("My name is Collin", "How is the weather?", "What is my name?"):
        result = await agent.ainvoke(said(text), thread("a"))

    assert [to_messages([run])[0].text for run in await history(driver, "a")] == [
        "My name is Collin",
        "How is the weather?",
        "What is my name?",
    ]
    assert model.prompts[-1] == result["messages"][:-1]


async def test_an_interrupted_turn_goes_on_where_it_was() -> None:
    driver, saver = InMemoryDriver(), InMemorySaver()

    @tool
    def weather(city: str) -> str:
        """Ask somebody."""
        return str(interrupt("how is it?"))

    def agent() -> Any:
        return create_agent(Scripted(), [weather], middleware=[MemoryMiddleware(driver)], checkpointer=saver)

    await agent().ainvoke(said("How is the weather?"), thread("a"))
    before = await history(driver, "a")
    result = await agent().ainvoke(Command(resume="fine"), thread("a"))

    assert [run.status for run in before] == ["partial"]
    (run,) = await history(driver, "a")
    assert run.status == "complete"
    assert to_messages([run]) == result["messages"]
    assert result["messages"][-1].text == "I looked: fine"


async def test_after_a_turn_that_failed_the_checkpointer_and_the_memory_agree() -> None:
    driver, saver = InMemoryDriver(), InMemorySaver()
    model = Scripted(prompts=[], fails=[RuntimeError("overloaded")])
    agent = create_agent(model, [weather], middleware=[MemoryMiddleware(driver)], checkpointer=saver)

    with pytest.raises(RuntimeError, match="overloaded"):
        await agent.ainvoke(said("My name is Collin"), thread("a"))
    result = await agent.ainvoke(said("What is my name?"), thread("a"))

    assert result["messages"][-1].text == "You are Collin"
    assert [texts(to_messages([run])) for run in await history(driver, "a")] == [
        ["My name is Collin"],
        ["What is my name?", "You are Collin"],
    ]


class Redacting(AgentMiddleware[Any, Any, Any]):
    """Takes a secret out of the state, as LangChain's own does with what is personal."""

    def before_model(self, state: Any, runtime: Any) -> dict[str, Any]:
        return {
            "messages": [
                message.model_copy(update={"content": message.text.replace("secret", "***")})
                for message in state["messages"]
                if "secret" in message.text
            ]
        }


async def test_what_was_taken_out_before_the_model_is_never_stored() -> None:
    driver = InMemoryDriver()

    await agent_over(driver, None, Redacting()).ainvoke(said("My secret is out"), thread("a"))

    assert "secret" not in repr(await driver.load("a", 0))


class Rewriting(AgentMiddleware[Any, Any, Any]):
    """Changes what was said earlier in a turn, and in the end all of it."""

    def __init__(self, change: Callable[[list[BaseMessage]], list[BaseMessage]]) -> None:
        super().__init__()
        self.change = change

    def before_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        if not isinstance(state["messages"][-1], ToolMessage):
            return None
        return {"messages": self.change(state["messages"])}


async def test_a_turn_that_is_rewritten_is_stored_as_it_is_then() -> None:
    driver = InMemoryDriver()

    def change(messages: list[BaseMessage]) -> list[BaseMessage]:
        asked, _, result = messages
        return [asked.model_copy(update={"content": "What?"}), result.model_copy(update={"content": "snow"})]

    result = await agent_over(driver, None, Rewriting(change)).ainvoke(said("How is the weather?"), thread("a"))

    (run,) = await history(driver, "a")
    assert to_messages([run]) == result["messages"]
    assert texts(result["messages"]) == ["What?", "", "snow", "I looked: snow"]


async def test_a_turn_whose_input_is_taken_out_of_the_state_keeps_it() -> None:
    driver = InMemoryDriver()

    def change(messages: list[BaseMessage]) -> list[BaseMessage]:
        return [RemoveMessage(id=str(messages[0].id))]

    result = await agent_over(driver, None, Rewriting(change)).ainvoke(said("How is the weather?"), thread("a"))

    (run,) = await history(driver, "a")
    assert texts(to_messages([run])) == ["How is the weather?", *texts(result["messages"])]
    assert run.status == "complete"


async def test_only_this_turn_is_stored_again_when_its_input_is_taken_out() -> None:
    driver, saver = InMemoryDriver(), InMemorySaver()

    def change(messages: list[BaseMessage]) -> list[BaseMessage]:
        return [RemoveMessage(id=str(message.id)) for message in messages if message.text.startswith("How")]

    middleware = [MemoryMiddleware(driver), Rewriting(change)]
    agent = create_agent(Scripted(), [weather], middleware=middleware, checkpointer=saver)
    await agent.ainvoke(said("My name is Collin"), thread("a"))
    await agent.ainvoke(said("How is the weather?"), thread("a"))
    await agent.ainvoke(said("What is my name?"), thread("a"))

    assert [[message.type for message in to_messages([run])] for run in await history(driver, "a")] == [
        ["human", "ai"],
        ["human", "ai", "tool", "ai"],
        ["human", "ai"],
    ]


async def test_what_was_stored_last_may_be_taken_out_of_the_state() -> None:
    driver, saver = InMemoryDriver(), InMemorySaver()
    agent = create_agent(Scripted(), [weather], middleware=[MemoryMiddleware(driver)], checkpointer=saver)
    await agent.ainvoke(said("My name is Collin"), thread("a"))
    result = await agent.ainvoke(said("Hi"), thread("a"))

    await agent.aupdate_state(thread("a"), {"messages": [RemoveMessage(id=result["messages"][-1].id)]})
    await agent.ainvoke(said("What is my name?"), thread("a"))

    assert [to_messages([run])[0].text for run in await history(driver, "a")] == [
        "My name is Collin",
        "Hi",
        "What is my name?",
    ]


@pytest.mark.parametrize("is_first", [True, False])
async def test_what_a_summary_takes_out_of_the_state_stays_stored(is_first: bool) -> None:
    driver = InMemoryDriver()

    def change(messages: list[BaseMessage]) -> list[BaseMessage]:
        newest = messages[-2:]
        return [RemoveMessage(id=REMOVE_ALL_MESSAGES), HumanMessage("In short: the weather"), *newest]

    memory, rewriting = MemoryMiddleware(driver), Rewriting(change)
    middleware = [memory, rewriting] if is_first else [rewriting, memory]
    model = Scripted(prompts=[], asks=2)
    result = await create_agent(model, [weather], middleware=middleware).ainvoke(
        said("How is the weather?"), thread("a")
    )

    assert texts(result["messages"])[0] == "In short: the weather"
    (run,) = await history(driver, "a")
    assert [message.type for message in to_messages([run])] == ["human", *["ai", "tool"] * 3, "ai"]
    assert run.status == "complete"


async def test_a_message_put_in_on_the_way_belongs_to_the_turn() -> None:
    driver = InMemoryDriver()

    def change(messages: list[BaseMessage]) -> list[BaseMessage]:
        return [HumanMessage("Go on")]

    result = await agent_over(driver, None, Rewriting(change)).ainvoke(said("How is the weather?"), thread("a"))

    (run,) = await history(driver, "a")
    assert to_messages([run]) == result["messages"]
    assert len(result["messages"]) == 5


async def test_a_turn_longer_than_the_window_is_one_run() -> None:
    driver = InMemoryDriver()
    async with Memory(driver, "a") as memory:
        for number in range(110):
            await memory.add(f"question {number}", "answer")

    @tool
    async def weather(city: str) -> str:
        """Look up the weather while others write a lot."""
        async with Memory(driver, "a") as memory:
            for number in range(110):
                await memory.add(f"later {number}", "answer")
        return "rain"

    agent = create_agent(Scripted(), [weather], middleware=[MemoryMiddleware(driver, strategy=last_runs(3))])
    result = await agent.ainvoke(said("How is the weather?"), thread("a"))

    found = [run for run in await history(driver, "a") if run.steps]
    assert [to_messages([run]) for run in found] == [result["messages"]]


# --- which conversation ---


async def test_a_call_without_a_thread_is_refused_before_the_model_is_asked() -> None:
    model = Scripted(prompts=[])

    with pytest.raises(FormatError, match="which conversation"):
        await agent_over(InMemoryDriver(), model).ainvoke(said("Hi"))

    assert model.prompts == []


async def test_a_function_may_name_the_conversation() -> None:
    driver = InMemoryDriver()

    await agent_over(driver, key=lambda runtime: f"user {runtime.context}").ainvoke(said("Hi"), context="7")

    assert len(await history(driver, "user 7")) == 1


async def test_an_artifact_that_is_no_json_is_an_error_that_names_it() -> None:
    @tool(response_format="content_and_artifact")
    def weather(city: str) -> Any:
        """Return an object."""
        return "rain", object()

    agent = create_agent(Scripted(), [weather], middleware=[MemoryMiddleware(InMemoryDriver())])

    with pytest.raises(FormatError, match=r"message 2\.artifact is a object"):
        await agent.ainvoke(said("How is the weather?"), thread("a"))


@pytest.mark.parametrize(
    "make", [StrategyMiddleware, lambda *a, **k: MemoryMiddleware(InMemoryDriver(), **k), Bounded]
)
def test_a_negative_reserve_is_refused(make: Any) -> None:
    with pytest.raises(BudgetError, match="reserve"):
        make(everything, reserve=-1)


def test_options_that_memory_does_not_have_are_refused() -> None:
    with pytest.raises(TypeError, match="no option colour"):
        MemoryMiddleware(InMemoryDriver(), colour="red")  # type: ignore[call-arg]


# --- the part of a state that the model sees ---

CALL = {"name": "weather", "args": {"city": "Oslo"}, "id": "1"}


def exchange(number: int, *, with_tool: bool = False) -> list[BaseMessage]:
    asked, answered = HumanMessage(f"question {number}"), AIMessage(f"answer {number}")
    traffic = [AIMessage("", tool_calls=[CALL]), ToolMessage("rain " * 50, tool_call_id="1")] if with_tool else []
    return [asked, *traffic, answered]


def state(count: int, *, with_tool: bool = False) -> list[BaseMessage]:
    older = [message for number in range(count) for message in exchange(number, with_tool=with_tool)]
    return [SystemMessage("Be kind."), *older, HumanMessage("And now?")]


def test_a_strategy_chooses_among_whole_exchanges_and_the_newest_always_is_there() -> None:
    messages = state(5, with_tool=True)
    before = [message.model_copy(deep=True) for message in messages]

    shown = Bounded(last_runs(2))(messages)

    assert shown == [messages[0], *messages[-9:]]
    assert all(any(message is own for own in messages) for message in shown)
    assert messages == before


def test_steps_are_forgotten_and_what_is_left_is_as_it_was() -> None:
    messages = [*state(3, with_tool=True), AIMessage("", tool_calls=[CALL]), ToolMessage("rain", tool_call_id="1")]

    shown = Bounded(forget_steps(keep=0))(messages)

    kept = [message for message in messages[:-2] if not isinstance(message, ToolMessage) and message.text]
    assert shown == [*kept, *messages[-2:]]
    assert all(any(message is own for own in messages) for message in shown)


def test_a_budget_counts_the_system_message_the_newest_exchange_and_what_is_reserved() -> None:
    counter = approximate(bytes_per_token=1, per_message=0)
    messages = state(9)  # 8 + 8 tokens are always there, and 18 an exchange

    shown = [
        Bounded(prune(size, counter=counter), reserve=10)(messages) for size in (25, 26 + 17, 26 + 18, 26 + 40)
    ]

    assert [len(each) - 2 for each in shown] == [0, 0, 2, 4]


def test_no_message_is_counted_twice_and_none_that_is_not_looked_at() -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return len(text)

    bounded = Bounded(prune(400, counter=TextCounter("test", lambda: count, per_message=0)))
    messages = state(500)

    bounded(messages)
    first = len(counted)
    bounded([*messages, AIMessage("", tool_calls=[CALL]), ToolMessage("rain", tool_call_id="1")])

    assert first == 2 * 32 + 2  # not those of 500 exchanges
    assert counted[first:] == ["weather", '{"city":"Oslo"}', "rain"]


def test_more_is_looked_at_where_the_strategy_wants_it() -> None:
    messages = state(450)

    assert Bounded(everything)(messages) == messages
    assert Bounded(last_runs(300))(messages) == [messages[0], *messages[-601:]]


def test_several_inputs_that_wait_are_all_there() -> None:
    messages = [*exchange(1), HumanMessage("My name is"), HumanMessage("Collin")]

    assert Bounded(last_runs(0))(messages) == messages[2:]
    assert Bounded(last_runs(0))(messages[2:]) == messages[2:]


def test_a_broken_exchange_is_mended_for_the_model() -> None:
    messages = [HumanMessage("Hi"), AIMessage("", tool_calls=[CALL]), HumanMessage("Well?")]

    _, call, result, asked = Bounded(everything)(messages)

    assert isinstance(result, ToolMessage)
    assert (call.tool_calls, result.tool_call_id, asked) == (messages[1].tool_calls, "1", messages[2])


def test_a_strategy_may_say_something_else_in_the_place_of_a_run() -> None:
    def shorten(view: Any) -> Any:
        return view.changed(tuple(run.replace(output="...") for run in view.runs))

    messages = [HumanMessage("Hi", id="1"), AIMessage("Hello", id="2"), HumanMessage("Well?")]

    assert Bounded(shorten)(messages) == [messages[0], AIMessage("..."), messages[2]]


def test_a_strategy_may_put_in_a_run_of_its_own() -> None:
    def note(view: Any) -> Any:
        return view.changed((new_run("Note this."),))

    assert Bounded(note)([HumanMessage("Hi"), AIMessage("Hello"), HumanMessage("?")]) == [
        HumanMessage("Note this."),
        HumanMessage("?"),
    ]


def test_a_message_that_is_changed_in_place_is_looked_at_again() -> None:
    counter = approximate(bytes_per_token=1, per_message=0)
    bounded, messages = Bounded(prune(40, counter=counter)), state(1)
    before = bounded(messages)
    messages[1].content = "x" * 100

    assert (len(before), len(bounded(messages))) == (4, 2)


def test_calls_that_are_added_to_a_message_in_place_are_seen() -> None:
    bounded = Bounded(everything)
    messages: list[BaseMessage] = [HumanMessage("Hi"), AIMessage(""), HumanMessage("Well?")]
    bounded(messages)
    messages[1].tool_calls.append(CALL)  # type: ignore[attr-defined]

    assert [message.type for message in bounded(messages)] == ["human", "ai", "tool", "human"]


def test_what_json_cannot_hold_is_no_obstacle_for_a_view() -> None:
    messages = [
        HumanMessage("Hi"),
        AIMessage("", tool_calls=[CALL]),
        ToolMessage("rain", tool_call_id="1", artifact=object()),
        HumanMessage("Well?"),
    ]

    assert Bounded(everything)(messages) == messages


def test_nothing_is_nothing() -> None:
    assert Bounded(last_runs(3))([]) == []
    assert Bounded(last_runs(3))([SystemMessage("Be kind.")]) == [SystemMessage("Be kind.")]


def test_notes_live_as_long_as_the_messages() -> None:
    bounded = Bounded(prune(400, counter=approximate()))
    messages = state(20)
    bounded(messages)
    assert bounded._notes._tokens

    del messages

    assert not bounded._notes._tokens
    assert not bounded._notes._runs


@pytest.mark.parametrize("waits", [True, False])
async def test_middleware_bounds_the_call_and_leaves_the_state_alone(waits: bool) -> None:
    model = Scripted(prompts=[])
    middleware = StrategyMiddleware(compose(forget_steps(keep=1), prune(600, counter=approximate())))
    agent = create_agent(
        model, [weather], system_prompt="Be kind.", middleware=[middleware], checkpointer=InMemorySaver()
    )

    for number in range(5):
        given = said(f"How is the weather, {number}?")
        result = await agent.ainvoke(given, thread("a")) if waits else agent.invoke(given, thread("a"))

    assert len(result["messages"]) == 20
    for prompt in model.prompts:
        assert prompt[0].text == "Be kind."
        assert sum(len(message.text) for message in prompt) // 4 < 600
        called = [
            call["id"] for message in prompt if isinstance(message, AIMessage) for call in message.tool_calls
        ]
        assert called == [message.tool_call_id for message in prompt if isinstance(message, ToolMessage)]
    assert [sum(isinstance(message, ToolMessage) for message in prompt) for prompt in model.prompts[-2:]] == [1, 2]
    assert len(model.prompts[-1]) == 12


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:AgentState(WithStructuredResponse)?(Pydantic)? (is|has)")
def test_it_is_a_pre_model_hook_for_the_older_agent() -> None:
    from langgraph.prebuilt import create_react_agent

    model, shown = Scripted(prompts=[]), Bounded(last_runs(1))
    agent = create_react_agent(
        model,
        [weather],
        pre_model_hook=lambda state: {"llm_input_messages": shown(state["messages"])},
        checkpointer=InMemorySaver(),
    )

    for number in range(3):
        result = agent.invoke(said(f"How is the weather, {number}?"), thread("a"))

    assert len(result["messages"]) == 12
    assert [len(prompt) for prompt in model.prompts] == [1, 3, 5, 7, 5, 7]


# --- runs that others have written ---


async def test_an_agent_remembers_what_was_added_to_the_memory_by_hand() -> None:
    driver = InMemoryDriver()
    async with Memory(driver, "a") as memory:
        await memory.add("My name is Collin", "Hello!", steps=[Text("hm"), ToolCall("1", "look", "{}")])

    result = await agent_over(driver).ainvoke(said("What is my name?"), thread("a"))

    assert result["messages"][-1].text == "You are Collin"
    async with Memory(driver, "a") as memory:
        assert json.dumps(memory.messages("Who?"))
        assert [message["role"] for message in memory.messages()][-2:] == ["user", "assistant"]


# --- the example ---


def test_the_example_remembers_from_one_call_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = str(ROOT / "examples" / "langchain_agent.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # of this process there is more than the example

    def run(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", [program, *args])
        runpy.run_path(program, run_name="__main__")
        return capsys.readouterr().out

    assert run("My name is Collin. How is the weather in Oslo?", "me") == "It rains in Oslo.\n"
    assert run("What is my name?", "me") == "Your name is Collin.\n"
    assert run("What is my name?", "you") == "I do not know your name yet.\n"

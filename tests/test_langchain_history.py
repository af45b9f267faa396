"""A chat message history of LangChain: synchronous and not, in a chain, over any driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkit import (
    FileDriver,
    FormatError,
    InMemoryDriver,
    JsonCodec,
    Memory,
    UnsupportedError,
    everything,
    last_runs,
)
from memkit.adapters import portal
from memkit.adapters.portal import wait_for
from memkit.driver import Record
from memkit.steps import INTERRUPTED
from tests.histories import examples

pytest.importorskip("langchain_core")

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory

from memkit.adapters.langchain.history import MemkitChatMessageHistory

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated"),
]

ROOT = Path(__file__).parents[1]
CALL = {"name": "look", "args": {"at": 1}, "id": "1"}
TURN = [
    HumanMessage("Who is there?", id="1"),
    AIMessage("", tool_calls=[CALL], id="2"),
    ToolMessage("a cat", tool_call_id="1", id="3"),
    AIMessage("A cat.", id="4"),
]


@pytest.fixture
def anyio_backend() -> str:
    """LangChain runs on asyncio only."""
    return "asyncio"


def open_history(driver: Any, key: str = "a", **options: Any) -> MemkitChatMessageHistory:
    return MemkitChatMessageHistory(driver, key, **options)


async def runs_of(driver: Any, key: str = "a") -> list[Any]:
    async with Memory(driver, key) as memory:
        return [run async for run in memory.history()]


async def test_messages_come_back_equal() -> None:
    driver = InMemoryDriver()

    await open_history(driver).aadd_messages(TURN)

    assert await open_history(driver).aget_messages() == TURN
    (run,) = await runs_of(driver)
    assert len(run.steps) == 2


def test_messages_come_back_equal_without_an_event_loop() -> None:
    history = open_history(InMemoryDriver())

    history.add_user_message("Hi")
    history.add_ai_message("Hello")
    history.add_messages(TURN)

    assert history.messages == [HumanMessage("Hi"), AIMessage("Hello"), *TURN]
    assert str(history).startswith("Human: Hi\nAI: Hello\n")
    history.clear()
    assert history.messages == []


async def test_synchronous_methods_work_inside_a_running_loop(tmp_path: Path) -> None:
    history = open_history(FileDriver(tmp_path))

    history.add_messages(TURN)

    assert history.messages == TURN
    assert await open_history(FileDriver(tmp_path)).aget_messages() == TURN


async def test_messages_that_come_one_by_one_make_one_run() -> None:
    driver = InMemoryDriver()

    for message in [*TURN, *TURN]:
        await open_history(driver).aadd_messages([message])

    assert await open_history(driver).aget_messages() == [*TURN, *TURN]
    assert [(len(run.steps), run.status) for run in await runs_of(driver)] == [(2, "complete")] * 2


PIECES = st.sampled_from(
    [
        HumanMessage("Hi"),
        HumanMessage("Hi", id="1"),
        AIMessage("Hello"),
        AIMessage("", tool_calls=[CALL]),
        AIMessage("Let me look", tool_calls=[CALL]),
        ToolMessage("a cat", tool_call_id="1"),
        SystemMessage("Paid."),
    ]
)


@given(st.lists(st.lists(PIECES, max_size=4), max_size=5))
@examples(30)
def test_order_is_kept_however_messages_are_cut_up(pieces: list[list[BaseMessage]]) -> None:
    async def stored() -> list[Any]:
        driver = InMemoryDriver()
        for piece in pieces:
            await open_history(driver).aadd_messages(piece)
        from memkit.adapters.langchain import to_messages

        return to_messages(await runs_of(driver))

    assert anyio.run(stored) == [message for piece in pieces for message in piece]


async def test_concurrent_turns_lose_nothing(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)

    async with anyio.create_task_group() as group:
        for number in range(20):
            turn = [HumanMessage(f"question {number}"), AIMessage(f"answer {number}")]
            group.start_soon(open_history(driver).aadd_messages, turn)

    messages = await open_history(driver).aget_messages()
    assert sorted(message.text for message in messages[::2]) == sorted(
        f"question {number}" for number in range(20)
    )
    assert [text.text.split()[1] for text in messages[::2]] == [text.text.split()[1] for text in messages[1::2]]


async def test_a_strategy_bounds_what_is_handed_out_and_calls_have_results() -> None:
    driver = InMemoryDriver()
    await open_history(driver).aadd_messages([*TURN, HumanMessage("And now?"), AIMessage("", tool_calls=[CALL])])

    messages = await open_history(driver, strategy=last_runs(1)).aget_messages()

    assert [message.text for message in messages] == ["And now?", "", INTERRUPTED]


async def test_what_was_handed_out_stays_the_same_until_something_is_added() -> None:
    driver = InMemoryDriver()
    history = open_history(driver)
    before = await history.aget_messages()
    await open_history(driver).aadd_messages(TURN)
    before.append(HumanMessage("mine"))

    assert await history.aget_messages() == []
    await history.aadd_messages([HumanMessage("Hi")])
    assert await history.aget_messages() == [*TURN, HumanMessage("Hi")]


async def test_messages_that_were_handed_out_are_nobody_elses_to_change() -> None:
    history = open_history(InMemoryDriver())
    await history.aadd_messages(TURN)

    (await history.aget_messages())[1].tool_calls.clear()  # type: ignore[attr-defined]

    assert await history.aget_messages() == TURN


async def test_what_nobody_can_read_can_be_cleared() -> None:
    driver = InMemoryDriver()
    await driver.append("a", [Record("x", b"junk")])
    history = open_history(driver)
    with pytest.raises(FormatError):
        await history.aget_messages()

    await history.aclear()

    assert await history.aget_messages() == []


async def test_a_synchronous_method_on_the_event_loop_of_such_methods_is_refused() -> None:
    history = open_history(InMemoryDriver())

    async def add() -> None:
        history.add_messages(TURN)

    with pytest.raises(UnsupportedError, match="await the asynchronous method"):
        wait_for(add)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_has_an_event_loop_of_its_own() -> None:
    def in_child() -> bool:
        return wait_for(open_history(InMemoryDriver()).aget_messages) == []

    wait_for(open_history(InMemoryDriver()).aget_messages)
    with portal._shared.starting:  # as if another thread had just been starting it
        child = os.fork()
        if not child:
            signal.alarm(30)
            os._exit(0 if in_child() else 1)

    assert os.waitpid(child, 0)[1] == 0


async def test_clear_forgets_for_everybody_and_leaves_the_history_usable() -> None:
    driver = InMemoryDriver()
    history = open_history(driver)
    await history.aadd_messages(TURN)

    await history.aclear()

    assert await history.aget_messages() == []
    await history.aadd_messages([HumanMessage("Hi")])
    assert await open_history(driver).aget_messages() == [HumanMessage("Hi")]


async def test_nothing_is_added_of_a_list_with_something_that_cannot_be() -> None:
    driver = InMemoryDriver()

    with pytest.raises(FormatError, match=r"message 1\.artifact is a object"):
        await open_history(driver).aadd_messages([TURN[0], ToolMessage("", tool_call_id="1", artifact=object())])
    await open_history(driver).aadd_messages([])

    assert await runs_of(driver) == []


def test_a_key_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(FormatError):
        open_history(InMemoryDriver(), "")
    with pytest.raises(TypeError, match="no option"):
        open_history(InMemoryDriver(), colour="red")


# --- in a chain ---


def echo(messages: Any) -> str:
    """Tell what was in the prompt."""
    return " | ".join(message.text for message in messages)


def chain_over(driver: Any, runnable: Runnable[Any, Any] | None = None, **options: Any) -> Any:
    return RunnableWithMessageHistory(
        runnable or RunnableLambda(echo), lambda session_id: open_history(driver, session_id, **options)
    )


def session(name: str) -> Any:
    return {"configurable": {"session_id": name}}


async def test_a_chain_remembers_each_session() -> None:
    driver = InMemoryDriver()

    await chain_over(driver).ainvoke([HumanMessage("I am Collin")], session("a"))
    there = await chain_over(driver).ainvoke([HumanMessage("Who am I?")], session("a"))
    elsewhere = await chain_over(driver).ainvoke([HumanMessage("Who am I?")], session("b"))

    assert there == "I am Collin | I am Collin | Who am I?"
    assert elsewhere == "Who am I?"


@pytest.mark.parametrize("waits", [True, False])
async def test_a_bounded_history_costs_no_input(waits: bool) -> None:
    driver = InMemoryDriver()
    chain = chain_over(driver, RunnableLambda(lambda _: "yes"), strategy=last_runs(1))

    for number in range(4):
        asked = [HumanMessage(f"question {number}")]
        if waits:
            await chain.ainvoke(asked, session("a"))
        else:
            chain.invoke(asked, session("a"))

    stored = [(run.input, run.output) for run in await runs_of(driver)]
    assert stored == [(f"question {number}", "yes") for number in range(4)]


async def test_a_history_that_grows_meanwhile_costs_no_input() -> None:
    driver = InMemoryDriver()

    async def interfere(messages: Any) -> str:
        await open_history(driver).aadd_messages(TURN)
        return "yes"

    await chain_over(driver, RunnableLambda(interfere)).ainvoke([HumanMessage("Hi")], session("a"))

    assert await open_history(driver).aget_messages() == [*TURN, HumanMessage("Hi"), AIMessage("yes")]


async def test_calls_of_a_session_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    chain = chain_over(driver, RunnableLambda(lambda _: "yes"), strategy=everything)

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(chain.ainvoke, [HumanMessage(f"question {number}")], session("a"))

    stored = await runs_of(driver)
    assert sorted((run.input, run.output) for run in stored) == [
        (f"question {number}", "yes") for number in range(10)
    ]


async def test_a_chat_model_streams_into_it() -> None:
    driver = InMemoryDriver()
    model = GenericFakeChatModel(messages=iter([AIMessage("Hello there")]))

    pieces = [piece async for piece in chain_over(driver, model).astream([HumanMessage("Hi")], session("a"))]

    assert len(pieces) > 1
    human, answer = await open_history(driver).aget_messages()
    assert (human, answer.text) == (HumanMessage("Hi"), "Hello there")


ADD = """
import sys
from langchain_core.messages import AIMessage, HumanMessage
from memkit import FileDriver
from memkit.adapters.langchain.history import MemkitChatMessageHistory
history = MemkitChatMessageHistory(FileDriver(sys.argv[1]), "a")
history.add_messages([HumanMessage("I am Collin"), AIMessage("I see")])
print("stored", flush=True)
sys.stdin.read()  # until it is killed
"""


def test_a_killed_process_remembers(tmp_path: Path) -> None:
    given = [sys.executable, "-W", "ignore", "-c", ADD, str(tmp_path)]
    with subprocess.Popen(given, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stored\n"
        os.kill(process.pid, signal.SIGKILL)

    answer = chain_over(FileDriver(tmp_path)).invoke([HumanMessage("Who am I?")], session("a"))

    assert answer == "I am Collin | I see | Who am I?"


async def test_what_others_have_stored_is_a_history(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    async with Memory(driver, "a", codec=JsonCodec()) as memory:
        await memory.add("Hi", "Hello")
        async with memory.turn("Lost") as turn:
            turn.write("")

    assert (await open_history(driver).aget_messages())[:2] == [HumanMessage("Hi"), AIMessage("Hello")]

"""The session for the OpenAI Agents SDK, with the real runner and models that follow a script."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest
from agents import (
    Agent,
    Model,
    ModelResponse,
    RunConfig,
    Runner,
    SessionSettings,
    SQLiteSession,
    Usage,
    function_tool,
    handoff,
)
from agents.memory import OpenAIResponsesCompactionSession, Session, is_openai_responses_compaction_aware_session
from agents.run_internal.session_persistence import rewind_session_items
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
)

from memkit import (
    BudgetError,
    DriverError,
    FileDriver,
    FormatError,
    InMemoryDriver,
    Memory,
    Record,
    Run,
    ToolCall,
    ToolResult,
    Trim,
    UnsupportedError,
    capability,
    compose,
    forget_steps,
    last_runs,
    new_run,
    prune,
)
from memkit.adapters.griptape import GriptapeCodec
from memkit.adapters.openai_agents import MemkitSession
from memkit.adapters.responses import Item
from memkit.drivers.sqlite import SqliteDriver
from memkit.errors import ConflictError
from memkit.steps import INTERRUPTED
from memkit.summaries import SummaryPolicy
from memkit.testing import CountingDriver, FlakyDriver
from memkit.testing.histories import CHARACTERS
from tests.histories import examples
from tests.test_examples import run as run_example
from tests.test_responses_adapter import BLOCKS, KINDS, as_items, violations

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[1]
QUIET = RunConfig(tracing_disabled=True)


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The SDK runs on asyncio only."""
    return request.param


# --- models that follow a script ---

Reply = list[Any] | Exception


class Scripted(Model):
    """Answers by a script, and remembers what it was asked."""

    def __init__(self, *script: Reply | Callable[[list[Item]], Reply]) -> None:
        self.script = list(script)
        self.asked: list[list[Item]] = []

    async def get_response(self, system_instructions: Any, input: Any, *rest: Any, **more: Any) -> ModelResponse:
        self.asked.append(json.loads(json.dumps(input)))
        reply = self.script.pop(0)
        if callable(reply):
            reply = reply(input)
        if isinstance(reply, Exception):
            raise reply
        return ModelResponse(output=reply, usage=Usage(), response_id=None)

    async def stream_response(self, *args: Any, **more: Any) -> AsyncIterator[Any]:
        reply = await self.get_response(*args, **more)
        whole = Response(
            id="resp",
            created_at=0,
            model="scripted",
            object="response",
            output=reply.output,
            parallel_tool_calls=True,
            tool_choice="auto",
            tools=[],
        )
        yield ResponseCompletedEvent(type="response.completed", response=whole, sequence_number=0)


def says(text: str, name: str = "msg_1") -> ResponseOutputMessage:
    content = ResponseOutputText(type="output_text", text=text, annotations=[], logprobs=[])
    return ResponseOutputMessage(id=name, type="message", role="assistant", status="completed", content=[content])


def calls(name: str, call_id: str, /, **arguments: Any) -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(
        id=f"fc_{call_id}", type="function_call", call_id=call_id, name=name, arguments=json.dumps(arguments)
    )


def thinks(name: str) -> ResponseReasoningItem:
    return ResponseReasoningItem(id=name, type="reasoning", summary=[], encrypted_content="c2VjcmV0")


@function_tool
def weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


def a_turn(number: int) -> list[Reply]:
    """A turn with a tool call: what the model says."""
    return [
        [thinks(f"rs_{number}"), calls("weather", f"call_{number}", city=f"town {number}")],
        [thinks(f"rs_{number}b"), says(f"It is sunny, {number}.", f"msg_{number}")],
    ]


def an_agent(model: Model, **more: Any) -> Agent[Any]:
    return Agent("forecaster", instructions="Be kind.", model=model, tools=[weather], **more)


def texts(items: Sequence[Any]) -> list[str]:
    """What was said, without what lies between."""
    return [item["content"] if isinstance(item["content"], str) else item["content"][0]["text"]
            for item in items if "role" in item]  # fmt: skip


async def runs_of(driver: Any, key: str) -> list[Run]:
    async with Memory(driver, key) as memory:
        return [run async for run in memory.history()]


# --- the protocol ---


async def test_it_is_a_session_and_does_nothing_when_made() -> None:
    driver = CountingDriver(InMemoryDriver())

    session = MemkitSession("user-1", driver, session_settings=SessionSettings(limit=3))

    assert isinstance(session, Session)
    assert not is_openai_responses_compaction_aware_session(session)
    assert session.session_id == "user-1"
    assert session.session_settings == SessionSettings(limit=3)
    assert not driver.calls


async def test_their_compaction_goes_around_it() -> None:
    inside = MemkitSession("user-1", InMemoryDriver())
    outside = OpenAIResponsesCompactionSession("user-1", inside)

    await outside.add_items([{"role": "user", "content": "q"}])

    assert is_openai_responses_compaction_aware_session(outside)
    assert await outside.get_items() == await inside.get_items() == [{"role": "user", "content": "q"}]
    assert await outside.pop_item() == {"role": "user", "content": "q"}


async def test_without_the_package_it_works_all_the_same() -> None:
    program = """
import sys, anyio
sys.modules["agents"] = sys.modules["openai"] = None
from memkit import InMemoryDriver
from memkit.adapters.griptape import GriptapeCodec
from memkit.adapters.openai_agents import MemkitSession
async def main():
    session = MemkitSession("user-1", InMemoryDriver())
    await session.add_items([{"role": "user", "content": "q"}])
    print(await session.get_items())
anyio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "[{'role': 'user', 'content': 'q'}]\n"


Operation = tuple[str, Any]
OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    BLOCKS.map(lambda items: ("add_items", items)),
    BLOCKS.map(lambda items: ("add_items", items)),
    st.lists(BLOCKS, max_size=3).map(lambda blocks: ("add_items", [item for block in blocks for item in block])),
    st.just(("pop_item", None)),
    st.just(("pop_item", None)),
    st.sampled_from([("get_items", limit) for limit in (None, 0, 1, 2, 7, -1)]),
    st.sampled_from([("clear_session", None), ("other handle", None), ("settings", 2), ("settings", None)]),
)


@given(st.lists(OPERATIONS, max_size=14))
@examples(75)
def test_it_does_whatever_their_own_session_does(operations: list[Operation]) -> None:
    async def play() -> None:
        theirs, driver = SQLiteSession("same"), InMemoryDriver()
        ours = MemkitSession("same", driver)
        for name, given_ in operations:
            if name == "other handle":
                ours = MemkitSession("same", driver)
            elif name == "settings":
                theirs.session_settings = ours.session_settings = SessionSettings(limit=given_)
            else:
                args = [] if name in {"pop_item", "clear_session"} else [given_]
                assert await getattr(ours, name)(*args) == await getattr(theirs, name)(*args)
        theirs.session_settings = ours.session_settings = None
        assert await ours.get_items() == await theirs.get_items()
        theirs.close()

    anyio.run(play)


async def test_items_of_unknown_kinds_keep_the_order_of_their_keys() -> None:
    session = MemkitSession("user-1", InMemoryDriver())
    item: Any = {"zeta": 1, "type": "new", "alpha": {"b": [1.0, None], "a": "é"}}

    await session.add_items([item])

    assert json.dumps(await session.get_items()) == json.dumps([item])


async def test_what_a_caller_does_to_items_does_not_change_what_is_stored() -> None:
    session = MemkitSession("user-1", InMemoryDriver())
    given_: list[Any] = [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "x": {"a": [1]}}]
    before = json.dumps(given_)
    await session.add_items(given_)
    given_[0]["x"]["a"].append(2)
    got: list[Any] = await session.get_items()
    got[0]["x"]["a"].append(3)
    got[0]["content"][0]["refusal"] = "yes"

    assert json.loads(before) == await session.get_items() == await session.get_items(1)


# --- runs ---


async def test_a_turn_that_comes_in_pieces_is_one_run() -> None:
    driver = InMemoryDriver()
    session = MemkitSession("user-1", driver)
    model = Scripted(*a_turn(1))

    await Runner.run(an_agent(model), "What is it like?", session=session, run_config=QUIET)

    (run,) = await runs_of(driver, "user-1")
    assert run.input == "What is it like?"
    assert [part for part in run.steps if isinstance(part, ToolCall | ToolResult)][1] == ToolResult(
        "call_1", "sunny in town 1"
    )
    async with Memory(driver, "user-1") as memory:
        assert memory.messages()[-1] == {"role": "assistant", "content": "It is sunny, 1."}
    assert run.status == "complete"


async def test_an_input_that_nobody_has_answered_yet_is_partial() -> None:
    driver = InMemoryDriver()
    session = MemkitSession("user-1", driver)
    await session.add_items([{"role": "user", "content": "q"}])
    (asked,) = await runs_of(driver, "user-1")
    await session.add_items([{"role": "assistant", "content": "a"}])
    (answered,) = await runs_of(driver, "user-1")
    await session.pop_item()
    (again,) = await runs_of(driver, "user-1")

    assert [asked.status, answered.status, again.status] == ["partial", "complete", "partial"]


async def test_a_system_message_in_the_middle_is_never_left_out() -> None:
    driver = InMemoryDriver()
    session = MemkitSession("user-1", driver, strategy=last_runs(9))
    items: list[Any] = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "b"},
    ]
    for item in items:
        await session.add_items([item])

    assert await session.get_items() == items
    async with Memory(driver, "user-1") as memory:
        assert memory.messages() == items


async def test_an_answer_knows_its_reasoning_that_was_stored_before_it() -> None:
    driver = InMemoryDriver()
    session = MemkitSession("user-1", driver, strategy=forget_steps(keep=1))
    items: list[Any] = [item.model_dump(exclude_unset=True) for item in (thinks("rs_1"), says("a"))]
    for item in [*items, {"role": "user", "content": "q"}]:
        await session.add_items([item])

    answer = {key: value for key, value in items[1].items() if key != "id"}
    assert await session.get_items() == [answer, {"role": "user", "content": "q"}]
    assert (await session.get_items(9))[:2] == items


async def test_what_others_have_added_is_popped_first() -> None:
    driver = InMemoryDriver()
    session = MemkitSession("user-1", driver)
    assert await session.pop_item() is None
    await MemkitSession("user-1", driver).add_items([{"role": "user", "content": "q"}])

    assert await session.pop_item() == {"role": "user", "content": "q"}


async def test_runs_of_a_plain_memory_can_be_read_and_continued() -> None:
    driver = InMemoryDriver()
    async with Memory(driver, "user-1") as memory:
        await memory.add("q", ["a", "b"], steps=[ToolCall("1", "look", "{}"), ToolResult("1", "a cat")])
    session = MemkitSession("user-1", driver)
    before = await session.get_items()

    await session.add_items([{"role": "assistant", "content": "c"}])

    assert before == [
        {"role": "user", "content": "q"},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "a cat"},
        {"role": "assistant", "content": "a\nb"},
    ]
    assert await session.get_items() == [*before, {"role": "assistant", "content": "c"}]
    assert len(await runs_of(driver, "user-1")) == 1


async def test_each_call_writes_only_what_is_new() -> None:
    driver = CountingDriver(InMemoryDriver())
    session = MemkitSession("user-1", driver)
    rounds: list[list[Any]] = [
        [
            calls("weather", f"call_{number}", city="x" * 500).model_dump(exclude_unset=True),
            {"type": "function_call_output", "call_id": f"call_{number}", "output": "y" * 500},
        ]
        for number in range(20)
    ]
    turn = [[{"role": "user", "content": "q"}], *rounds, [says("done").model_dump(exclude_unset=True)]]

    written: list[int] = []
    for items in turn:
        await session.add_items(items)
        written.append(driver.bytes["append"] - sum(written))

    assert driver.calls == {"load": 1, "append": 22}
    (run,) = await runs_of(driver, "user-1")
    size = len(json.dumps([item for items in turn for item in items], separators=(",", ":")))
    assert sum(written) <= 1.5 * size
    assert max(written[2:21]) - min(written[2:21]) <= 4  # the numbers in it
    assert len(run.steps) == 40
    before = driver.bytes["append"]
    for _ in range(5):
        await session.pop_item()
    assert driver.bytes["append"] - before <= 5 * 200


# --- tails and windows ---


async def test_a_limit_counts_items_however_far_back_they_are() -> None:
    driver = InMemoryDriver()
    session = MemkitSession("user-1", driver)
    items: list[Any] = []
    for number in range(300):
        batch = (
            [{"role": "user", "content": f"{number}"}]
            if number % 50 == 0
            else KINDS[number % 40 : number % 40 + 1]
        )
        await session.add_items(batch)
        items += batch

    for handle in (
        session,
        MemkitSession("user-1", driver),
        MemkitSession("user-1", driver, strategy=last_runs(0)),
    ):
        for limit in (1, 49, 60, 299, 1_000):
            assert await handle.get_items(limit) == items[-limit:]
        assert await handle.pop_item() == items.pop()


async def test_a_strategy_bounds_what_is_read_without_a_limit_and_leaves_the_newest_run_whole() -> None:
    driver = InMemoryDriver()
    session = MemkitSession("user-1", driver, strategy=compose(forget_steps(keep=0), last_runs(2)))
    for number in range(4):
        model = Scripted(*a_turn(number))
        await Runner.run(an_agent(model), f"q{number}", session=session, run_config=QUIET)

    items: list[Any] = await session.get_items()

    kinds = [item.get("type", item.get("role")) for item in items]
    newest = ["user", "reasoning", "function_call", "function_call_output", "reasoning", "message"]
    assert kinds == ["user", "message", *newest]
    assert texts(items) == ["q2", "It is sunny, 2.", "q3", "It is sunny, 3."]
    assert "id" not in items[1]  # its reasoning is gone
    assert items[-1]["id"] == "msg_3"
    assert len(await session.get_items(1_000)) == 24


async def test_a_budget_holds_for_all_but_the_newest_run() -> None:
    driver = InMemoryDriver()
    strategy = compose(forget_steps(keep=1), prune(40, counter=CHARACTERS))
    session = MemkitSession("user-1", driver, strategy=strategy)
    asked: list[list[Item]] = []
    for number in range(5):
        model = Scripted(*a_turn(number))
        await Runner.run(an_agent(model), f"q{number}", session=session, run_config=QUIET)
        asked += model.asked
    await session.add_items([{"role": "user", "content": "x" * 100}])

    for items in asked:
        assert violations(items) == []
    assert max(map(len, asked)) <= 15
    assert texts(await session.get_items())[-1] == "x" * 100
    assert len(await session.get_items(1_000)) == 31


async def test_calls_that_stay_open_in_older_runs_are_repaired_in_the_view_and_nowhere_else() -> None:
    driver = InMemoryDriver()
    session = MemkitSession("user-1", driver, strategy=last_runs(10))
    call: Item = calls("weather", "1").model_dump(exclude_unset=True)
    items: list[Any] = [{"role": "user", "content": "a"}, call, {"role": "user", "content": "b"}]

    await session.add_items(items)
    view = await session.get_items()
    await session.add_items([call | {"call_id": "2"}])

    stand_in = {"type": "function_call_output", "call_id": "1", "output": INTERRUPTED}
    assert view == [*items[:2], stand_in, items[2]]
    assert await session.get_items() == [*items[:2], stand_in, items[2], call | {"call_id": "2"}]
    assert await session.get_items(10) == [*items, call | {"call_id": "2"}]


async def test_a_summary_stands_before_what_is_left() -> None:
    async def summarize(runs: Sequence[Run], /, *, previous: str | None) -> str:
        return f"They asked {runs[0].input}."

    driver = InMemoryDriver()
    options: dict[str, Any] = {"summarizer": summarize, "policy": SummaryPolicy(keep=1, every=1)}
    session = MemkitSession("user-1", driver, summary_as="developer", **options)
    for number in range(2):
        model = Scripted(*a_turn(number))
        await Runner.run(an_agent(model), f"q{number}", session=session, run_config=QUIET)
    async with Memory(driver, "user-1", **options) as memory:
        assert await memory.summarize()

    items: list[Any] = await session.get_items()

    assert items[0]["role"] == "developer"
    assert "They asked q0." in items[0]["content"]
    assert texts(items[1:]) == ["q1", "It is sunny, 1."]


async def test_a_limit_reads_no_more_than_it_needs_and_all_is_read_once() -> None:
    inside = InMemoryDriver()
    async with Memory(inside, "user-1") as memory:
        await memory.append(*(new_run(f"q{number}", "a") for number in range(1_000)))

    async def read(limit: int | None, **options: Any) -> int:
        driver = CountingDriver(inside)
        items = await MemkitSession("user-1", driver, **options).get_items(limit)
        assert len(items) == (2_000 if limit is None else limit)
        assert texts(items)[-2:] == ["q999", "a"]
        return driver.bodies["load"]

    assert await read(200) == 100
    assert await read(250) == await read(250, strategy=last_runs(10)) == 200
    assert await read(None) == 1_000


async def test_a_budget_leaves_room_for_what_is_reserved() -> None:
    driver, strategy = InMemoryDriver(), prune(120, counter=CHARACTERS)
    items: list[Any] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "12345678"}] * 4
    await MemkitSession("user-1", driver).add_items(items)

    counts = [
        len(await MemkitSession("user-1", driver, strategy=strategy, reserve=reserve).get_items())
        for reserve in (0, 80, 120)
    ]

    assert counts[0] > counts[1] > counts[2] == 2
    with pytest.raises(BudgetError, match="-1"):
        MemkitSession("user-1", driver, reserve=-1)


async def test_a_question_without_an_answer_is_shown_as_long_as_it_is_the_newest_run() -> None:
    session = MemkitSession("user-1", InMemoryDriver(), strategy=last_runs(9))
    said: list[Any] = [{"role": "user", "content": "q"}, {"role": "user", "content": "r"}]
    views: list[Any] = []
    for item in said:
        await session.add_items([item])
        views.append(await session.get_items())

    assert views == [said[:1], said[1:]]
    assert await session.get_items(9) == said


async def test_what_is_retained_is_bounded() -> None:
    driver = InMemoryDriver()
    session = MemkitSession("user-1", driver, retain=8)
    for number in range(40):
        await session.add_items([{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a"}])

    items = await session.get_items()

    assert capability(driver, Trim)
    assert 16 <= len(items) <= 20
    assert texts(items)[-2:] == ["q39", "a"]


# --- several at once ---


@pytest.fixture(params=["in memory", "file", "sqlite"])
async def driver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    if request.param == "sqlite":
        async with SqliteDriver(tmp_path / "memory.db") as found:
            yield found
    else:
        yield FileDriver(tmp_path) if request.param == "file" else InMemoryDriver()


async def test_sessions_in_many_tasks_lose_nothing(driver: Any) -> None:
    shared_session = MemkitSession("user-1", driver)

    async def add(session: MemkitSession, name: str) -> None:
        for number in range(10):
            role = "user" if number % 3 == 0 else "assistant"
            await session.add_items([{"role": role, "content": f"{name} {number}"}])

    async with anyio.create_task_group() as tasks:
        for name in ("a", "b"):
            tasks.start_soon(add, shared_session, name)
            tasks.start_soon(add, MemkitSession("user-1", driver), f"other {name}")

    said = texts(await shared_session.get_items())
    assert len(said) == len(set(said)) == 40
    for name in ("a", "b", "other a", "other b"):
        assert [text for text in said if text.startswith(f"{name} ")] == [
            f"{name} {number}" for number in range(10)
        ]


async def test_no_item_is_popped_twice(driver: Any) -> None:
    await MemkitSession("user-1", driver).add_items([{"role": "assistant", "content": f"{n}"} for n in range(12)])
    popped: list[Any] = []

    async def pop(session: MemkitSession) -> None:
        popped.extend([await session.pop_item() for _ in range(4)])

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(pop, MemkitSession("user-1", driver))

    found = [item["content"] for item in popped if item is not None]
    assert sorted(found, key=int) == [str(number) for number in range(12)]
    assert popped.count(None) == 4


WRITER = """
import sys, anyio
from memkit import FileDriver
from memkit.adapters.griptape import GriptapeCodec
from memkit.adapters.openai_agents import MemkitSession
async def main(folder, name):
    session = MemkitSession("shared", FileDriver(folder))
    for number in range(20):
        role = "user" if number % 4 == 0 else "assistant"
        await session.add_items([{"role": role, "content": f"{name} {number}"}])
anyio.run(main, *sys.argv[1:])
"""


async def test_sessions_in_several_processes_lose_nothing(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name]) for name in "abc"]
    assert [await anyio.to_thread.run_sync(writer.wait) for writer in writers] == [0, 0, 0]

    said = texts(await MemkitSession("shared", FileDriver(tmp_path)).get_items())
    assert len(said) == 60
    for name in "abc":
        assert [text for text in said if text[0] == name] == [f"{name} {number}" for number in range(20)]


@pytest.mark.parametrize("method", ["add_items", "pop_item"])
async def test_a_write_that_was_cancelled_late_is_stored_and_the_next_one_follows_it(method: str) -> None:
    class Late(CountingDriver):
        """Does not answer an append, once it is stored, as long as nobody cancels it."""

        async def append(self, *args: Any, **options: Any) -> Any:
            answer = await super().append(*args, **options)
            if stored.statistics().tasks_waiting:
                stored.set()
                await anyio.sleep_forever()
            return answer

    stored = anyio.Event()
    items: list[Any] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    session = MemkitSession("user-1", Late(InMemoryDriver()))
    await session.add_items(items)

    async def write() -> None:
        await (session.pop_item() if method == "pop_item" else session.add_items(items[1:]))

    async def cancel() -> None:
        await stored.wait()
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(write)
    await session.add_items([{"role": "assistant", "content": "b"}])

    said = texts(await session.get_items())
    assert said == (["q", "b"] if method == "pop_item" else ["q", "a", "a", "b"])


def test_a_session_works_in_one_event_loop_after_another(tmp_path: Path) -> None:
    session = MemkitSession("user-1", FileDriver(tmp_path))
    for number in range(3):
        asyncio.run(session.add_items([{"role": "user", "content": f"{number}"}]))

    assert texts(asyncio.run(session.get_items())) == ["0", "1", "2"]


async def test_a_session_goes_on_in_the_conversation_that_comes_after_a_deleted_one() -> None:
    driver = InMemoryDriver()
    one, other = MemkitSession("user-1", driver), MemkitSession("user-1", driver)
    await one.add_items([{"role": "user", "content": "old"}])
    await other.clear_session()

    await one.add_items([{"role": "assistant", "content": "new"}])

    assert await one.get_items() == await other.get_items() == [{"role": "assistant", "content": "new"}]
    await one.clear_session()
    assert await one.get_items() == await one.get_items(3) == []
    assert await one.pop_item() is None


async def test_many_users_share_a_driver_and_nothing_else() -> None:
    driver = InMemoryDriver()
    for user in ("a", "b"):
        await MemkitSession(user, driver).add_items([{"role": "user", "content": f"I am {user}."}])

    assert texts(await MemkitSession("a", driver).get_items()) == ["I am a."]
    with pytest.raises(FormatError, match="key"):
        MemkitSession("", driver)


@pytest.mark.parametrize("earlier", [0, 1])
@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("meanwhile", ["nothing", "read", "failed again", "others wrote"])
async def test_items_added_again_after_a_failure_are_stored_once(fault: Any, meanwhile: str, earlier: int) -> None:
    inside, faults = InMemoryDriver(), [None] * earlier + [fault, "after" if meanwhile == "failed again" else None]
    session = MemkitSession("user-1", FlakyDriver(inside, faults, calls=["append"]))
    first: list[Any] = [{"role": "user", "content": "q"}] * earlier
    await session.add_items(first)
    items: list[Any] = [{"role": "user", "content": "r"}, {"role": "assistant", "content": "a"}]
    others: list[Any] = []

    with pytest.raises(DriverError):
        await session.add_items(items)
    if meanwhile == "read":
        await session.get_items()
    elif meanwhile == "failed again":
        with pytest.raises(DriverError):
            await session.add_items(items)
    elif meanwhile == "others wrote":
        others = [{"role": "assistant", "content": "b"}]
        await MemkitSession("user-1", inside).add_items(others)
    await session.add_items([])
    await session.add_items(items)

    expected = [*items, *others] if fault == "after" else [*others, *items]
    assert await session.get_items() == await MemkitSession("user-1", inside).get_items() == [*first, *expected]
    await session.add_items(items)  # this time they are meant
    assert len(await session.get_items()) == len([*first, *expected, *items])


@pytest.mark.parametrize("undo", ["pop_item", "clear_session", "clear_session by others"])
async def test_what_was_taken_back_after_a_failure_can_be_added_again(undo: str) -> None:
    inside = InMemoryDriver()
    session = MemkitSession("user-1", FlakyDriver(inside, [None, "after"], calls=["append"]))
    await session.add_items([{"role": "user", "content": "q"}])
    items: list[Any] = [{"role": "assistant", "content": "a"}]
    with pytest.raises(DriverError):
        await session.add_items(items)

    if undo == "clear_session by others":
        other = MemkitSession("user-1", inside)
        await other.clear_session()
        await other.add_items([{"role": "user", "content": "other"}])
        await session.get_items()
    else:
        await getattr(session, undo)()
    await session.add_items(items)

    assert texts(await session.get_items())[-1] == "a"


# --- the runner ---


async def test_two_agents_of_one_turn_share_a_session() -> None:
    driver = InMemoryDriver()
    session = MemkitSession("user-1", driver)
    second = an_agent(Scripted(*a_turn(1)))
    first = Agent(
        "greeter",
        model=Scripted([says("One moment.", "msg_0"), calls("transfer_to_forecaster", "t")]),
        handoffs=[handoff(second)],
    )

    await Runner.run(first, "What is it like?", session=session, run_config=QUIET)

    (run,) = await runs_of(driver, "user-1")
    assert [part.name for part in run.steps if isinstance(part, ToolCall)] == ["transfer_to_forecaster", "weather"]
    assert texts(await session.get_items()) == ["What is it like?", "One moment.", "It is sunny, 1."]


async def test_a_streamed_turn_is_stored_like_any_other() -> None:
    ours, theirs = MemkitSession("user-1", InMemoryDriver()), SQLiteSession("user-1")
    for session in (ours, theirs):
        streamed = Runner.run_streamed(an_agent(Scripted(*a_turn(1))), "q", session=session, run_config=QUIET)
        async for _ in streamed.stream_events():
            pass

    assert await ours.get_items() == await theirs.get_items()
    theirs.close()


async def test_a_model_that_fails_in_the_middle_leaves_what_was_done() -> None:
    ours, theirs = MemkitSession("user-1", InMemoryDriver()), SQLiteSession("user-1")
    asked: list[list[list[Item]]] = []
    for session in (ours, theirs):
        first, second = Scripted(a_turn(1)[0], RuntimeError("overloaded")), Scripted(*a_turn(2))
        with pytest.raises(RuntimeError, match="overloaded"):
            await Runner.run(an_agent(first), "q", session=session, run_config=QUIET)
        await Runner.run(an_agent(second), "Again, please.", session=session, run_config=QUIET)
        asked.append(second.asked)

    assert asked[0] == asked[1]
    assert violations(asked[0][-1]) == []
    assert await ours.get_items() == await theirs.get_items()
    theirs.close()


async def test_their_runner_can_rewind_what_it_has_stored() -> None:
    session = MemkitSession("user-1", InMemoryDriver())
    old: list[Any] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    await session.add_items(old)
    retried: list[Any] = [
        {"role": "user", "content": "q2"},
        *(item.model_dump(exclude_unset=True) for reply in a_turn(1) for item in reply),  # type: ignore[union-attr]
    ]
    for item in retried:
        await session.add_items([item])

    await rewind_session_items(session, retried)

    assert await session.get_items() == old


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_turn_that_waited_for_approval_is_stored_once_though_the_store_failed(fault: Any) -> None:
    faults: list[Any] = []
    schedule = (faults.pop() if faults else None for _ in count())
    session = MemkitSession("user-1", FlakyDriver(InMemoryDriver(), schedule, calls=["append"]))
    done: list[str] = []

    @function_tool(needs_approval=True)
    def launch(name: str) -> str:
        """Launch something."""
        done.append(name)
        return f"launched {name}"

    agent = Agent("pilot", model=Scripted([calls("launch", "1", name="it")], [says("Done.")]), tools=[launch])
    waiting = await Runner.run(agent, "Go!", session=session, run_config=QUIET)
    state = waiting.to_state()
    state.approve(waiting.interruptions[0])
    faults.append(fault)
    with pytest.raises(DriverError):
        await Runner.run(agent, state, session=session, run_config=QUIET)

    await Runner.run(agent, state, session=session, run_config=QUIET)

    items: list[Any] = await session.get_items()
    kinds = [item.get("type", item.get("role")) for item in items]
    assert kinds == ["user", "function_call", "function_call_output", "message"]
    assert done == ["it"]


TALK = """
import sys, anyio
from tests.test_openai_agents import talk
print(anyio.run(talk, *sys.argv[1:]), flush=True)
sys.stdin.read()
"""
"""One turn in a process of its own, which waits to be killed after it."""


async def talk(folder: str, said: str, budget: int = 0) -> str:
    strategy = compose(forget_steps(keep=1), prune(budget, counter=CHARACTERS)) if budget else None
    session = MemkitSession("user-1", FileDriver(folder), strategy=strategy)

    def answer(items: list[Item]) -> Reply:
        asked = [item["content"] for item in items if item.get("role") == "user"]
        tools = [item["output"] for item in items if item.get("type") == "function_call_output"]
        return [says(f"{asked[0]} And it is {tools[0]}.")]

    model = Scripted([calls("weather", "1", city="Paris")] if said.startswith("My") else answer, answer)
    result = await Runner.run(an_agent(model), said, session=session, run_config=QUIET)
    return str(result.final_output)


async def test_an_agent_that_is_killed_between_two_turns_remembers(tmp_path: Path) -> None:
    killed, answer = tmp_path / "killed", "My name is Ada. And it is sunny in Paris."
    command = [sys.executable, "-c", TALK, str(killed), "My name is Ada."]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert await anyio.to_thread.run_sync(process.stdout.readline) == f"{answer}\n"
        process.send_signal(signal.SIGKILL)

    for budget in (0, 200):
        folder = tmp_path / f"{budget}"
        shutil.copytree(killed, folder)
        assert await talk(str(folder), "What do you know?", budget) == answer

        strategy = compose(forget_steps(keep=1), prune(200, counter=CHARACTERS))
        items = await MemkitSession("user-1", FileDriver(folder), strategy=strategy).get_items()
        assert [item.get("type", item.get("role")) for item in items] == ["user", "message", "user", "message"]
        assert len(await MemkitSession("user-1", FileDriver(folder)).get_items()) == 6


# --- bad input ---


def test_a_codec_that_cannot_hold_a_turn_in_pieces_is_refused_at_once() -> None:
    with pytest.raises(UnsupportedError, match="Extend"):
        MemkitSession("user-1", InMemoryDriver(), codec=GriptapeCodec())


async def test_an_item_that_cannot_be_stored_is_refused_and_nothing_of_its_batch_is_stored() -> None:
    session = MemkitSession("user-1", InMemoryDriver())

    with pytest.raises(FormatError, match=r"item 1\.x"):
        await session.add_items([{"role": "user", "content": "q"}, {"type": "new", "x": float("nan")}])  # type: ignore[list-item, misc, typeddict-item]

    assert await session.get_items() == []


async def test_what_cannot_be_read_is_neither_guessed_nor_overwritten() -> None:
    driver = InMemoryDriver()
    await MemkitSession("user-1", driver).add_items([{"role": "user", "content": "q"}])
    await driver.append("user-1", [Record("x", b'{"v":1,"kind":"run","id":7}')])
    session = MemkitSession("user-1", driver)

    for operation in (
        session.get_items,
        session.pop_item,
        lambda: session.add_items([{"role": "user", "content": ""}]),
    ):
        with pytest.raises(FormatError, match="entry 1"):
            await operation()
    assert (await driver.load("user-1")).end == 2


@pytest.mark.parametrize("was_open", [True, False])
async def test_what_cannot_be_read_can_be_deleted(was_open: bool) -> None:
    driver = InMemoryDriver()
    session = MemkitSession("user-1", driver)
    if was_open:
        await session.get_items()
    await driver.append("user-1", [Record("x", b"junk")])
    with pytest.raises(FormatError):
        await session.get_items()

    await session.clear_session()

    assert await session.get_items() == []
    await session.add_items([{"role": "user", "content": "q"}])
    assert texts(await session.get_items()) == ["q"]


async def test_a_conflict_that_nothing_explains_is_raised() -> None:
    class Stubborn(CountingDriver):
        async def append(self, key: str, *args: Any, **options: Any) -> Any:
            raise ConflictError("no", expected=0, actual=0)

    with pytest.raises(ConflictError):
        await MemkitSession("user-1", Stubborn(InMemoryDriver())).add_items([{"role": "user", "content": "q"}])


async def test_a_store_that_failed_once_can_be_asked_again() -> None:
    driver = FlakyDriver(InMemoryDriver(), ["before", None, "before"])
    session = MemkitSession("user-1", driver)
    attempts: list[Callable[[], Awaitable[Any]]] = [
        lambda: session.add_items([{"role": "user", "content": "q"}])
    ] * 2
    for attempt in attempts:
        with pytest.raises(DriverError):
            await attempt()

    await session.add_items([{"role": "user", "content": "q"}])

    assert await session.get_items() == [{"role": "user", "content": "q"}]


# --- real conversations ---


async def test_real_conversations_come_back_item_by_item(shared: Path, tmp_path: Path) -> None:
    real = json.loads((shared / "data" / "tau_bench_gpt-4o-airline.json").read_text())
    for number, conversation in enumerate(real[::10]):
        items = as_items(conversation["traj"])
        session = MemkitSession(f"conversation {number}", FileDriver(tmp_path))
        for item in items:
            await session.add_items([item])  # type: ignore[list-item]

        assert await MemkitSession(f"conversation {number}", FileDriver(tmp_path)).get_items() == items


# --- the example ---


# The package is imported once, for two processes: the first has ended when the second one begins.
FORK = """
import os, agents
if os.fork():
    os.wait()
else:
    sys.argv[2] = "Hello, my name is Collin."
"""


def test_the_example_remembers_the_second_time(tmp_path: Path) -> None:
    done = run_example(tmp_path, "agents_session.py", "What is my name?", "user-id-123", before=FORK)

    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert "Hello Collin!" in first
    assert "Your name is Collin." in second

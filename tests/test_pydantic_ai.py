"""pydantic-ai: histories come back equal, agents remember through a kill, and under a budget no pair is parted."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults
from pydantic_ai.capabilities import ProcessHistory
from pydantic_ai.exceptions import CallDeferred
from pydantic_ai.messages import (
    AudioUrl,
    BinaryContent,
    CachePoint,
    CompactionPart,
    DocumentUrl,
    FilePart,
    ImageUrl,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    NativeToolCallPart,
    NativeToolReturnPart,
    RetryFeedbackPart,
    RetryInfo,
    StructuredContent,
    SystemPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UploadedFile,
    UserPromptPart,
    VideoUrl,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

import memkit
from memkit import (
    Blob,
    FileDriver,
    FormatError,
    InMemoryDriver,
    Json,
    JsonCodec,
    Memory,
    Opaque,
    Ref,
    Run,
    Text,
    ToolCall,
    ToolResult,
    UnsupportedError,
    View,
    approximate,
    compose,
    forget_steps,
    last_runs,
    new_run,
    prune,
)
from memkit.adapters import anthropic, openai
from memkit.adapters.pydantic_ai import (
    DriverConversationStore,
    history,
    model_messages,
    processor,
    remember,
    to_messages,
    to_run,
    to_runs,
)
from memkit.conversation import Summary
from memkit.rawjson import MAX_DEPTH
from memkit.steps import repaired
from memkit.tokens import cost_of
from tests.histories import examples
from tests.histories import runs as some_runs
from tests.pydantic_ai_turn import main as turn
from tests.pydantic_ai_turn import shape

ROOT = Path(__file__).parents[1]
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def anyio_backend() -> str:
    """pydantic-ai runs on asyncio only."""
    return "asyncio"


def stored(runs: tuple[Run, ...]) -> list[Run]:
    """Runs after a way through the stored format."""
    codec = JsonCodec()
    return [codec.decode(codec.encode(run)) for run in runs]  # type: ignore[misc]


def restored(messages: Any) -> list[dict[str, Any]]:
    return to_messages(stored(to_runs(messages)))


# --- histories of every shape ---

PICTURE = BinaryContent(b"\x89PNG\xfb\xff", media_type="image/png", vendor_metadata={"detail": "high"})
SAID: list[Any] = [
    "Look:",
    PICTURE,
    BinaryContent(b"a,b", media_type="text/csv", identifier="my table"),
    ImageUrl("https://example.org/cat.png"),
    ImageUrl("https://example.org/cat", force_download=True),
    AudioUrl("https://example.org/cat.mp3"),
    VideoUrl("https://example.org/cat.mp4"),
    DocumentUrl("https://example.org/cat.pdf", vendor_metadata={"x": 1}),
    TextContent("as text", metadata={"from": "mail"}),
    StructuredContent({"z": 1, "a": [True]}, tag="state"),
    UploadedFile("file-1", "anthropic"),
    CachePoint(ttl="1h"),
]
RETURNED: list[Any] = [
    "a cat",
    "",
    None,
    {"z": 1, "a": [1.5, None]},
    [],
    ["a", "b"],
    [1, PICTURE, "beside"],
    [PICTURE],
    PICTURE,
    ImageUrl("https://example.org/cat.png"),
    {"nested": PICTURE},
    7,
]
THOUGHT = ThinkingPart("Hm, né?", id="th_1", signature="EqQBCgIYAhIM1gbcDa9GJw==", provider_name="anthropic")
ABOUT: dict[str, Any] = {
    "usage": RequestUsage(input_tokens=7, output_tokens=2, details={"reasoning": 1}),
    "model_name": "m",
    "timestamp": WHEN,
    "provider_name": "p",
    "provider_details": {"finish_reason": "stop"},
    "provider_response_id": "r-1",
    "finish_reason": "stop",
    "run_id": "run-1",
    "conversation_id": "c-1",
    "metadata": {"z": 1, "a": 2},
}
WHOLE: list[ModelMessage] = [
    ModelRequest(
        parts=[SystemPromptPart("Be kind.", dynamic_ref="d"), UserPromptPart(SAID)],
        instructions="Be brief.",
        timestamp=WHEN,
        run_id="run-1",
        metadata={"n": 1},
    ),
    ModelResponse(
        parts=[
            THOUGHT,
            NativeToolCallPart("web_search", {"query": "cats"}, "native"),
            NativeToolReturnPart("web_search", {"found": ["https://example.org"]}, "native"),
            TextPart("Let me look.", id="t_1", provider_name="openai", provider_details={"phase": "x"}),
            *(ToolCallPart("look", {"z": n, "a": [n]}, f"call-{n}") for n in range(len(RETURNED))),
            ToolCallPart("look", "{broken", "text"),
            ToolCallPart("look", None, "none"),
        ],
        **ABOUT,
    ),
    ModelRequest(
        parts=[
            *(ToolReturnPart("look", item, f"call-{n}", metadata={"n": n}) for n, item in enumerate(RETURNED)),
            ToolReturnPart("look", "no such thing", "text", outcome="retried"),
            ToolReturnPart("look", "no", "none", outcome="denied"),
            UserPromptPart("Hurry up!"),
        ],
        run_id="run-1",
    ),
    ModelResponse(parts=[TextPart("{}")], **ABOUT),
    ModelRequest(parts=[RetryFeedbackPart("Return text.", retry=RetryInfo(cause="no_output"))], run_id="run-1"),
    ModelResponse(parts=[THOUGHT, TextPart("A cat."), FilePart(PICTURE)], **ABOUT),
    ModelRequest(parts=[CompactionPart("Collin saw a cat."), UserPromptPart("")], run_id="run-2"),
    ModelResponse(parts=[], state="interrupted", run_id="run-2"),
    ModelRequest(parts=[], state="interrupted", run_id="run-2"),
    ModelResponse(parts=[TextPart("one")]),
    ModelResponse(parts=[TextPart("two")]),
    ModelRequest.user_text_prompt("And now?"),
]
WRITTEN: bytes = ModelMessagesTypeAdapter.dump_json(WHOLE)


def test_the_json_of_a_history_comes_back_byte_for_byte() -> None:
    runs = stored(to_runs(WRITTEN))

    assert to_messages(runs) == json.loads(WRITTEN)
    assert ModelMessagesTypeAdapter.dump_json(model_messages(runs)) == WRITTEN


BLOCKS: list[Any] = [part for message in json.loads(WRITTEN) for part in message["parts"][:12]] + [
    {"part_kind": "text", "content": "short"},
    {"part_kind": "text"},
    {"part_kind": "text", "content": "", "kind": "text", "role": "user", "pydantic_ai": {"whole": True}},
    {"part_kind": "tool-call", "tool_name": "look", "tool_call_id": "x", "args": [1]},
    {"part_kind": "tool-call", "tool_name": "look", "tool_call_id": "x", "args": {}},
    {"part_kind": "tool-return", "tool_name": "", "tool_call_id": "x", "content": "?"},
    {"part_kind": "tool-return", "tool_name": "look", "tool_call_id": "x", "content": [{"kind": "binary"}]},
    {
        "part_kind": "tool-return",
        "tool_name": "look",
        "tool_call_id": "x",
        "content": {"kind": "image-url", "url": 1},
    },
    {"part_kind": "user-prompt", "content": "Hi"},
    {"part_kind": "user-prompt", "content": []},
    {"part_kind": "user-prompt", "content": 7},
    {
        "part_kind": "user-prompt",
        "content": [{"kind": "binary", "media_type": "image/png", "data": "+/8="}, 7, None],
    },
    {"part_kind": "user-prompt", "content": [{"kind": "text", "text": "of a newer release"}]},
    {"part_kind": "user-prompt", "content": ["Hi"], "priority": 1},
    {"part_kind": "file", "content": {"kind": "binary", "media_type": "image/png", "data": "no base64"}},
    {"part_kind": "hologram", "number": 1.5, "null": None},
    {"part_kind": 3},
    {},
    "a bare string",
    7,
]
MORE: list[dict[str, Any]] = [
    {},
    {},
    {"run_id": "a"},
    {"run_id": "b", "timestamp": "2026-01-02T03:04:05Z", "state": "complete", "usage": {"input_tokens": 1}},
    {"metadata": {"z": 1}, "pydantic_ai": {}, "role": "user", "model_name": None},
]
MESSAGES = st.builds(
    lambda kind, parts, more: {**more, "kind": kind, "parts": parts},
    st.sampled_from(["request", "response"]),
    st.lists(st.sampled_from(BLOCKS), max_size=4),
    st.sampled_from(MORE),
)


@given(st.lists(MESSAGES, max_size=7))
@examples(300)
def test_every_history_comes_back_equal(messages: list[dict[str, Any]]) -> None:
    assert restored(messages) == messages
    assert not messages or to_messages([to_run(messages)]) == messages


@given(st.lists(some_runs, max_size=3))
@examples(60)
def test_whatever_runs_are_stored_become_messages_of_pydantic_ai(runs: list[Run]) -> None:
    for message in history(View(runs=tuple(runs))):
        assert isinstance(message, ModelRequest | ModelResponse)


@pytest.mark.parametrize(
    "mark",
    [
        {"block": 7},
        {"block": 7, "whole": True},
        {"block": {"part_kind": "text", "content": 1}, "side": "user"},
        {"message": {"order": [0, 0]}, "before": 7, "after": {}},
        {"message": 7, "set": 7, "unset": 7, "side": 7, "item": 7, "prompt": 7, "parsed": 7, "str": 7},
        {"message": {"set": {"kind": "x", "parts": 7}}},
    ],
)
def test_a_mark_that_is_damaged_breaks_no_prompt(mark: Any) -> None:
    opaque = Opaque(json.dumps({"pydantic_ai": mark}).encode())
    text = Text("Hello", extra={"pydantic_ai": mark})
    call = ToolCall("1", "look", "[", extra={"pydantic_ai": mark})
    run = new_run([text, opaque], [text, opaque], steps=[text, call, ToolResult("1", (opaque,)), opaque])

    assert to_messages([run])
    with suppress(UnsupportedError):
        history(View(runs=(run,)))


# --- what the runs are ---


def test_inputs_steps_and_outputs_are_where_one_would_look_for_them() -> None:
    first, second, third = to_runs(WRITTEN)

    assert [type(part) for part in first.input[:4]] == [Text, Blob, Blob, Ref]
    assert [type(part) for part in first.steps[:4]] == [Opaque, Opaque, Opaque, Text]
    calls = [part for part in first.steps if isinstance(part, ToolCall)]
    results = [part for part in first.steps if isinstance(part, ToolResult)]
    assert [call.id for call in calls] == [result.id for result in results]
    assert (calls[0].name, calls[0].arguments) == ("look", '{"z":0,"a":[0]}')
    assert (results[0].content, results[3].content) == ("a cat", (Json({"z": 1, "a": [1.5, None]}),))
    assert [result.error for result in results[-3:]] == [False, True, True]
    assert [type(part) for part in first.output] == [Text, Blob]
    assert memkit.text_of(first.output).startswith("A cat.")
    assert memkit.text_of(second.output) == "two"
    assert memkit.text_of(third.input) == "And now?"


def test_pairs_stay_whole_in_every_other_format() -> None:
    runs = to_runs(WRITTEN)

    assert all(len(repaired(run.steps)) == len(run.steps) for run in runs)
    chat = openai.to_messages(runs)
    assert sum(message["role"] == "tool" for message in chat) == len(RETURNED) + 2
    claude = anthropic.prompt(View(runs=runs))["messages"]
    used = [block for message in claude for block in message["content"] if isinstance(block, dict)]
    assert sum(block["type"] == "tool_use" for block in used) == len(RETURNED) + 2
    assert THOUGHT.content not in json.dumps([chat, claude], ensure_ascii=False)


BESIDE: list[ModelMessage] = [
    ModelRequest.user_text_prompt("Who is there?"),
    ModelResponse(parts=[ToolCallPart("look", {"at": 1}, "1")]),
    ModelRequest(
        parts=[ToolReturnPart("look", "a cat", "1"), UserPromptPart(["Hurry up!", PICTURE, CachePoint()])]
    ),
    ModelResponse(parts=[TextPart("A cat.")]),
]


def test_what_a_user_says_beside_results_is_said_in_every_other_format() -> None:
    runs = stored(to_runs(ModelMessagesTypeAdapter.dump_json(BESIDE)))

    assert to_messages(runs) == json.loads(ModelMessagesTypeAdapter.dump_json(BESIDE))
    told = openai.to_messages(runs)[3]
    assert told["role"] == "user"
    assert told.keys() == {"role", "content"}
    assert [item["type"] for item in told["content"]] == ["text", "image_url"]
    claude = anthropic.to_messages(runs)[2]["content"]
    assert [block["type"] for block in claude] == ["tool_result", "text", "image"]
    assert claude[1]["text"] == "Hurry up!"


def test_media_beside_results_are_stored_once() -> None:
    data = BinaryContent(b"as good as a picture", media_type="image/png")
    messages = [*BESIDE[:2], ModelRequest(parts=[ToolReturnPart("look", "a cat", "1"), UserPromptPart([data])])]

    (run,) = to_runs(ModelMessagesTypeAdapter.dump_json(messages))

    assert JsonCodec().encode(run).count(data.base64.encode()) == 1


@pytest.mark.parametrize("role", ["user", "system"])
def test_what_other_formats_keep_of_others_among_the_steps_is_said_by_them(role: str) -> None:
    told = Text("Hurry up!", extra={"chat": {"set": {"role": role}}})
    steps = [ToolCall("1", "look"), ToolResult("1", "a cat"), told]

    run = new_run("?", "A cat.", steps=steps)

    assert to_messages([run])[2]["parts"][-1] == {"content": "Hurry up!", "part_kind": f"{role}-prompt"}
    found = [message for message in anthropic.to_messages([run]) if "Hurry up!" in json.dumps(message)]
    assert [message["role"] for message in found] == [role]


def test_a_tool_that_was_asked_to_try_again_has_answered() -> None:
    retry = {"part_kind": "retry-prompt", "tool_name": "look", "tool_call_id": "1", "content": "no such place"}
    written = json.loads(ModelMessagesTypeAdapter.dump_json(BESIDE))
    written[2]["parts"] = [retry]

    runs = stored(to_runs(written))

    assert to_messages(runs) == written
    result = openai.to_messages(runs)[2]
    assert (result["tool_call_id"], result["content"]) == ("1", "no such place")


def test_media_are_media_and_counted_as_such() -> None:
    counter = approximate(media=1_000)
    message = ModelRequest(parts=[UserPromptPart([PICTURE, ImageUrl("https://example.org/cat.png")])])

    (run,) = to_runs(ModelMessagesTypeAdapter.dump_json([message]))

    assert cost_of(run, counter) == 2_000 + counter.per_message


def test_a_part_of_a_newer_release_is_kept_and_named_when_it_is_asked_for() -> None:
    messages = [{"kind": "response", "parts": [{"part_kind": "hologram", "beam": [1.5, None]}]}]
    runs = stored(to_runs(messages))

    assert to_messages(runs) == messages
    with pytest.raises(UnsupportedError, match=r"pydantic-ai 2.*upgrade it"):
        model_messages(runs)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        (b"{broken", "not the JSON of messages"),
        (b"{}", "not as a dict"),
        ("Hello", "not as a str"),
        (7, "not as a int"),
        (["Hello"], "message 0 is a str"),
        ([{"parts": []}], "message 0 is of the kind None"),
        (
            [{"kind": "request", "parts": []}, {"kind": "telegram", "parts": []}],
            "message 1 is of the kind 'telegram'",
        ),
        ([{"kind": "request"}], "message 0 has no list of parts"),
        ([{"kind": "request", "parts": [{1}]}], r"message 0\.parts\[0\] is a set"),
    ],
)
def test_what_are_no_messages_is_refused(messages: Any, complaint: str) -> None:
    with pytest.raises(FormatError, match=complaint):
        to_runs(messages)


def test_no_messages_are_no_run() -> None:
    with pytest.raises(FormatError, match="no messages"):
        to_run([])


def nested(levels: int) -> list[dict[str, Any]]:
    value: Any = "deep"
    for _ in range(levels):
        value = [value]
    call = {"part_kind": "tool-call", "tool_name": "look", "tool_call_id": "1", "args": {"x": value}, "x": value}
    result = {"part_kind": "tool-return", "tool_name": "look", "tool_call_id": "1", "content": value, "x": value}
    item = {"kind": "binary", "media_type": "image/png", "data": "AAAA", "vendor_metadata": value}
    prompt = {"part_kind": "user-prompt", "content": [item, value], "x": value}
    return [
        {"kind": "request", "parts": [value, prompt], "metadata": value},
        {"kind": "response", "parts": [call, value], "metadata": value},
        {"kind": "request", "parts": [result, result | {"content": item}, result | {"content": [item, value]}]},
        {"kind": "response", "parts": [], "metadata": value},
    ]


def test_what_is_accepted_can_be_stored_however_deep() -> None:
    deepest = next(level for level in reversed(range(MAX_DEPTH)) if is_accepted(nested(level)))

    assert deepest > MAX_DEPTH - 25
    for levels in range(deepest - 20, deepest + 1):
        assert restored(nested(levels)) == nested(levels)


def is_accepted(messages: list[dict[str, Any]]) -> bool:
    try:
        to_runs(messages)
    except FormatError:
        return False
    return True


def test_translating_needs_no_package_and_all_else_says_which() -> None:
    program = """
import sys
sys.modules["pydantic_ai"] = None
from memkit.adapters import pydantic_ai
assert pydantic_ai.to_messages(pydantic_ai.to_runs([{"kind": "request", "parts": []}]))
for name in ("history", "DriverConversationStore"):
    try:
        getattr(pydantic_ai, name)
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.count("memkit[pydantic-ai]") == 2


# --- what other programs have stored ---


def test_runs_of_other_programs_become_messages_with_the_time_of_the_run() -> None:
    run = new_run(
        ["Look:", Blob("image/png", b"\x89PNG"), Ref("https://example.org/a.pdf", "application/pdf"), Json([1])],
        "A cat.",
        steps=["Let me look.", ToolCall("1", "look", '{"at": 1}'), ToolResult("1", "a cat")],
    )

    request, asked, answered, said = history(View(runs=(run,)))

    (prompt,) = request.parts
    assert isinstance(prompt, UserPromptPart)
    assert [type(item).__name__ for item in prompt.content] == ["str", "BinaryImage", "DocumentUrl", "str"]
    assert [part.part_kind for part in asked.parts] == ["text", "tool-call"]
    (result,) = answered.parts
    assert isinstance(result, ToolReturnPart)
    assert (result.tool_name, result.content) == ("look", "a cat")
    assert said == ModelResponse(parts=[TextPart("A cat.")], timestamp=prompt.timestamp)
    assert prompt.timestamp == datetime.fromtimestamp(run.created_at, UTC)


def test_system_messages_of_a_chat_stay_system_messages() -> None:
    runs = openai.to_runs(
        [
            {"role": "user", "content": "Hi"},
            {"role": "system", "content": "The user has paid."},
            {"role": "assistant", "content": "Hello"},
        ]
    ).runs

    assert [part.part_kind for message in history(View(runs=runs)) for part in message.parts] == [
        "user-prompt",
        "system-prompt",
        "text",
    ]


# --- agents ---


def look(at: int) -> str:
    """Look."""
    return f"a cat at {at}, " + "seen by many, " * 20


def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    """Call the tool twice in every run, one after the other, then answer."""
    calls = [part for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
    number = calls[-1].tool_call_id.rpartition(" ")[2] if calls else "0"
    if number == "2":
        return ModelResponse(parts=[THOUGHT, TextPart(f"Cats, and {len(messages)} messages.")])
    call = ToolCallPart("look", {"at": len(messages)}, f"call {len(messages)} {int(number) + 1}")
    return ModelResponse(parts=[THOUGHT, TextPart("Let me look."), call])


def cat_agent(*capabilities: Any, model: Any = answer, **options: Any) -> Agent[None, str]:
    agent: Agent[None, str] = Agent(FunctionModel(model), capabilities=capabilities, **options)
    agent.tool_plain(look)
    return agent


def parted(messages: list[ModelMessage]) -> set[str]:
    """Ids of calls without a result, and of results without a call."""
    calls = {part.tool_call_id for message in messages for part in message.parts if isinstance(part, ToolCallPart)}
    results = {
        part.tool_call_id for message in messages for part in message.parts if isinstance(part, ToolReturnPart)
    }
    return calls ^ results


@pytest.mark.anyio
async def test_an_agent_is_given_exactly_what_it_said(tmp_path: Path) -> None:
    agent, driver = cat_agent(system_prompt="Be kind.", instructions="Be brief."), FileDriver(tmp_path)
    said = b"[]"
    for prompt in ("Who is there?", ["And", PICTURE, "who is that?"], "And now?"):
        async with Memory(driver, "me") as memory:
            assert ModelMessagesTypeAdapter.dump_json(history(memory.view())) == said
            result = await agent.run(prompt, message_history=history(memory.view()))
            run = await remember(memory, result)
            assert [part.name for part in run.steps if isinstance(part, ToolCall)] == ["look", "look"]
        said = result.all_messages_json()

    async with Memory(driver, "me") as memory:
        runs = [run async for run in memory.history()]
    assert len(runs) == 3
    assert ModelMessagesTypeAdapter.dump_json(model_messages(runs)) == said


@pytest.mark.anyio
async def test_a_budget_forgets_tool_traffic_and_parts_no_pair() -> None:
    counter = approximate()
    strategy = compose(forget_steps(keep=1), prune(500, counter=counter))
    agent, driver = cat_agent(), InMemoryDriver()
    for number in range(16):
        async with Memory(driver, "me", strategy=strategy) as memory:
            view = memory.view(reserve=50)
            given = history(view)
            assert sum(cost_of(run, counter) for run in view.runs) <= 450
            assert parted(given) == set()
            await remember(memory, await agent.run(f"Question {number}?", message_history=given))

    assert 1 < len(view.runs) < 15
    assert [bool(run.steps) for run in view.runs] == [False] * (len(view.runs) - 1) + [True]


@pytest.mark.anyio
async def test_concurrent_runs_of_one_conversation_lose_nothing(tmp_path: Path) -> None:
    agent = cat_agent()

    async def turn(number: int) -> None:
        async with Memory(FileDriver(tmp_path), "me") as memory:
            await remember(memory, await agent.run(f"Question {number}?", message_history=history(memory.view())))

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(turn, number)

    async with Memory(FileDriver(tmp_path), "me") as memory:
        assert sorted(memkit.text_of(run.input) for run in memory.view().runs) == [
            f"Question {n}?" for n in range(10)
        ]
        assert parted(history(memory.view())) == set()


@pytest.mark.anyio
async def test_the_results_of_deferred_calls_go_on_with_the_run_that_made_them() -> None:
    def ask(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        last = messages[-1].parts[-1]
        if isinstance(last, ToolReturnPart):
            return ModelResponse(parts=[TextPart(f"It is {last.content}.")])
        return ModelResponse(parts=[ToolCallPart("clock", {}, "call-1")])

    agent: Agent[None, str | DeferredToolRequests] = Agent(
        FunctionModel(ask), output_type=[str, DeferredToolRequests]
    )

    @agent.tool_plain
    def clock() -> str:
        """Tell the time, later."""
        raise CallDeferred

    driver = InMemoryDriver()
    async with Memory(driver, "me") as memory:
        paused = await agent.run("What time is it?")
        await remember(memory, paused)
    async with Memory(driver, "me") as memory:
        results = DeferredToolResults(calls={"call-1": "noon"})
        done = await agent.run(message_history=history(memory.view()), deferred_tool_results=results)
        await remember(memory, done.new_messages())
    async with Memory(driver, "me") as memory:
        (run,) = memory.view().runs
        assert memkit.text_of(run.output) == "It is noon."
        assert ModelMessagesTypeAdapter.dump_json(history(memory.view())) == done.all_messages_json()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "returned", [{"kind": ["a", "b"]}, {"kind": {"x": 1}}, {"kind": "binary"}, {"kind": "image-url", "url": 5}]
)
async def test_whatever_a_tool_returns_is_remembered(returned: Any) -> None:
    async with Memory(InMemoryDriver(), "me") as memory:
        result = await returning(returned).run("Look!")
        await remember(memory, result)

        assert history(memory.view()) == result.new_messages()


def returning(value: Any) -> Agent[None, str]:
    """An agent with a tool that returns this."""
    agent: Agent[None, str] = Agent(FunctionModel(answer))

    @agent.tool_plain(name="look")
    def tell(at: int) -> Any:
        """Look."""
        return value

    return agent


@pytest.mark.anyio
async def test_text_of_a_tool_that_is_not_valid_unicode_is_replaced() -> None:
    async with Memory(InMemoryDriver(), "me") as memory:
        run = await remember(memory, [ModelRequest(parts=[ToolReturnPart("look", {"half": "a \ud83d"}, "1")])])

    assert [memkit.text_of(part.content) for part in run.steps if isinstance(part, ToolResult)] == [
        '{"half":"a \ufffd"}'
    ]


@pytest.mark.anyio
async def test_what_json_cannot_hold_is_refused() -> None:
    messages = [ModelRequest(parts=[ToolReturnPart("look", object(), "1")])]
    async with Memory(InMemoryDriver(), "me") as memory:
        with pytest.raises(FormatError, match="cannot be stored"):
            await remember(memory, messages)

        assert memory.conversation.end == 0


@pytest.mark.anyio
async def test_a_run_that_is_taken_back_while_it_goes_on_is_no_error() -> None:
    class Meanwhile(InMemoryDriver):
        """Lets another process take the run back as soon as it was extended."""

        is_extended = False

        async def append(self, key: str, records: Any, /, **options: Any) -> Any:
            done = await super().append(key, records, **options)
            if self.is_extended:
                self.is_extended = False
                async with Memory(self, key) as other:
                    await other.retract(next(reversed(other.conversation.runs)))
            return done

    driver = Meanwhile()
    async with Memory(driver, "me") as memory:
        await remember(memory, BESIDE[:2])
        driver.is_extended = True
        run = await remember(memory, BESIDE[2:])

        assert memkit.text_of(run.output) == "A cat."


@pytest.mark.anyio
async def test_the_summary_reaches_the_model_as_a_summary() -> None:
    seen: list[ModelMessage] = []

    def note(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        seen[:] = messages
        return ModelResponse(parts=[TextPart("Tea.")])

    summary = Summary(content="Collin likes tea.", upto=1, upto_id="", seen=1)
    view = View(runs=(new_run("Hi", "Hello"),), summary=summary)

    await Agent(FunctionModel(note)).run("What do I like?", message_history=history(view))

    assert [part.part_kind for message in seen for part in message.parts][:2] == ["compaction", "user-prompt"]
    assert isinstance(part := seen[0].parts[0], CompactionPart)
    assert part.content == "Collin likes tea."


@pytest.mark.anyio
async def test_an_agent_that_is_killed_after_a_turn_remembers_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = killed_turn(tmp_path, "My name is Collin.")
    store = DriverConversationStore(FileDriver(tmp_path))
    saved = await store.load("My name is Collin.")
    await turn(str(tmp_path), "What is my name?")
    await turn(str(tmp_path), "And now?", "forget")

    now = "asks user-prompt, says text+tool-call, asks tool-return"
    forgotten = "asks user-prompt, says text"
    assert first == f"seen: {now}\n"
    assert saved is not None
    assert [*map(shape, saved.messages)] == [*now.split(", "), "says text"]
    assert capsys.readouterr().out.splitlines() == [
        f"seen: {now}, says text, {now}",
        f"seen: {forgotten}, {now}",
    ]


def killed_turn(folder: Path, said: str) -> str:
    """Run a turn in a process of its own, and kill that as soon as the turn is acknowledged."""
    command = [sys.executable, "-m", "tests.pydantic_ai_turn", str(folder), said]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = process.stdout.readline()
        process.kill()
    return acknowledged


# --- while an agent runs ---


@pytest.mark.anyio
async def test_a_processor_cuts_what_an_agent_sends_and_parts_no_pair() -> None:
    counter = approximate()
    strategy = compose(forget_steps(keep=1), prune(700, counter=counter))
    sent: list[int] = []

    def ask(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        assert parted(messages) == set()
        assert isinstance(messages[0].parts[0], SystemPromptPart)
        sent.append(sum(cost_of(run, counter) for run in to_runs(ModelMessagesTypeAdapter.dump_json(messages))))
        return answer(messages, info)

    agent = cat_agent(ProcessHistory(processor(strategy)), model=ask, system_prompt="Be kind.")
    said: list[ModelMessage] = []
    for number in range(8):
        result = await agent.run(f"Question {number}?", message_history=said)
        said = result.all_messages()
        assert len(result.new_messages()) == 6

    prompts = [part for message in said for part in message.parts if isinstance(part, UserPromptPart)]
    assert 1 < len(prompts) < 8
    assert 500 < max(sent) <= 700


def test_a_processor_leaves_the_run_under_way_and_copies_nothing_that_stays() -> None:
    messages: list[ModelMessage] = [
        ModelRequest.user_text_prompt("one"),
        ModelResponse(parts=[TextPart("1")]),
        ModelRequest.user_text_prompt("two"),
        ModelResponse(parts=[ToolCallPart("look", {}, "1")]),
        ModelRequest(parts=[ToolReturnPart("look", "a long story, " * 100, "1")]),
    ]

    nothing = processor(prune(10, counter=approximate()))(messages)
    all_of_it = processor(last_runs(9))(messages)
    priced = processor(prune(10_000), counter=approximate())(messages)

    assert list(map(id, nothing)) == list(map(id, messages[2:]))
    assert list(map(id, all_of_it)) == list(map(id, priced)) == list(map(id, messages))


def test_a_processor_counts_what_is_under_way() -> None:
    counter = approximate()
    old = [ModelRequest.user_text_prompt("one"), ModelResponse(parts=[TextPart("1")])]
    now = [ModelRequest.user_text_prompt("two " * 10)]
    price = [cost_of(to_run(ModelMessagesTypeAdapter.dump_json(messages)), counter) for messages in (old, now)]

    fits = processor(prune(sum(price), counter=counter))
    too_small = processor(prune(sum(price) - 1, counter=counter))

    assert fits([*old, *now]) == [*old, *now]
    assert too_small([*old, *now]) == now
    assert too_small([]) == []


# --- real conversations ---


def real_conversations(shared: Path) -> list[list[ModelMessage]]:
    """The real conversations as pydantic-ai has them: the system text first, results with the names of tools."""
    path = shared / "data" / "tau_bench_gpt-4o-airline.json"
    return [list(map(as_pydantic_ai, item["traj"])) for item in json.loads(path.read_bytes())]


def as_pydantic_ai(message: dict[str, Any]) -> ModelMessage:
    text: str = message["content"]
    match message["role"]:
        case "system":
            return ModelRequest(parts=[SystemPromptPart(text, timestamp=WHEN)])
        case "user":
            return ModelRequest(parts=[UserPromptPart(text, timestamp=WHEN)], instructions="Be brief.")
        case "tool":
            part = ToolReturnPart(message["name"], text, message["tool_call_id"], timestamp=WHEN)
            return ModelRequest(parts=[part])
        case _:
            calls = message.get("tool_calls") or ()
            asked = [ToolCallPart(c["function"]["name"], c["function"]["arguments"], c["id"]) for c in calls]
            said = [] if text is None else [TextPart(text)]
            return ModelResponse(parts=[*said, *asked], model_name="gpt-4o", timestamp=WHEN)


def test_real_conversations_come_back_as_they_were(shared: Path) -> None:
    codec = JsonCodec()
    for messages in real_conversations(shared):
        runs = to_runs(ModelMessagesTypeAdapter.dump_json(messages))
        assert model_messages([cast("Run", codec.decode(codec.encode(run))) for run in runs]) == messages


@pytest.mark.anyio
async def test_real_conversations_come_back_from_files_as_they_were(shared: Path, tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    for number, messages in enumerate(real_conversations(shared)[:5]):
        async with Memory(driver, f"task {number}") as memory:
            await memory.append(*to_runs(ModelMessagesTypeAdapter.dump_json(messages)))
        async with Memory(driver, f"task {number}") as memory:
            assert history(memory.view()) == messages


def test_a_processor_bounds_real_conversations(shared: Path) -> None:
    counter = approximate()
    process = processor(compose(forget_steps(keep=2), prune(3_000, counter=counter)))
    for messages in real_conversations(shared)[:50]:
        after = process(messages)
        runs = to_runs(ModelMessagesTypeAdapter.dump_json(after[1:]))
        system = messages[0].parts[0]
        assert isinstance(system, SystemPromptPart)
        assert after[0].parts[0] is system
        assert parted(after) == set()
        cost = sum(cost_of(run, counter) for run in runs) + counter.count(system.content) + counter.per_message
        assert len(runs) == 1 or cost <= 3_000


# --- the example ---


EXAMPLE = str(ROOT / "examples" / "pydantic_ai_agent.py")


def test_the_example_remembers_from_one_process_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PYDANTIC_AI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", [EXAMPLE, "My name is Collin. What time is it?"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # of this process there is more than the example
    runpy.run_path(EXAMPLE, run_name="__main__")
    first = capsys.readouterr().out
    second = run_example(tmp_path, "What is my name?")

    assert "stand-in" in first
    assert "It is noon, Collin." in first
    assert "Your name is Collin." in second


def run_example(folder: Path, said: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLE, said],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout

"""LangChain messages: whatever goes in comes out equal, and says the same to every other reader."""

from __future__ import annotations

import base64
import importlib
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkit import (
    Blob,
    FormatError,
    Json,
    JsonCodec,
    Opaque,
    Ref,
    Run,
    Summary,
    Text,
    ToolCall,
    ToolResult,
    View,
    new_run,
)
from memkit.adapters import openai
from memkit.adapters.langchain import Imported, to_dicts, to_messages, to_runs, view_messages
from memkit.messages import run_messages
from memkit.rawjson import MAX_DEPTH
from memkit.steps import INTERRUPTED
from memkit.tokens import approximate
from tests.histories import examples, json_values, objects, parts, runs, texts

pytest.importorskip("langchain_core")

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    ChatMessageChunk,
    FunctionMessage,
    FunctionMessageChunk,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
    ToolMessageChunk,
    convert_to_messages,
    messages_from_dict,
    messages_to_dict,
)

PIXEL = base64.b64encode(b"\x89PNG, as good as").decode()


class Mood(HumanMessage):
    """A class of somebody's own."""

    mood: str = "calm"


class Odd(BaseMessage):
    """A class of a type that LangChain does not have."""

    type: Literal["odd"] = "odd"
    extent: int = 0


OWN = (Mood, Odd)


def stored(imported: Imported) -> list[Run]:
    """The runs, after a way through the stored format."""
    codec = JsonCodec()
    found = [codec.decode(codec.encode(run)) for run in imported.runs]
    assert all(isinstance(run, Run) for run in found)
    return found


def restored(imported: Imported) -> list[Any]:
    return [*imported.system, *to_messages(stored(imported), OWN)]


# --- messages of every shape ---

BLOCKS: list[Any] = [
    {"type": "text", "text": "seen"},
    {"type": "text", "text": "seen", "id": "b1", "annotations": [], "index": 0},
    {"type": "text", "text": "seen", "role": "system"},
    {"type": "text", "text": "cached", "cache_control": {"type": "ephemeral"}},
    {"type": "text"},
    {"type": "text", "text": None},
    {"type": "reasoning", "reasoning": "first, then", "extras": {"signature": "x"}},
    {"type": "thinking", "thinking": "hm", "signature": "abc"},
    {"type": "image", "base64": PIXEL, "mime_type": "image/png"},
    {"type": "image", "base64": PIXEL, "mime_type": "image/png", "id": "i", "extras": {"detail": "low"}},
    {"type": "image", "base64": "AAF=", "mime_type": "image/png"},
    {"type": "image", "base64": PIXEL},
    {"type": "image", "url": "https://example.org/cat.png"},
    {"type": "image", "url": "https://example.org/cat.png", "mime_type": "image/png"},
    {"type": "image", "file_id": "f1"},
    {"type": "audio", "base64": PIXEL, "mime_type": "audio/wav"},
    {"type": "video", "url": "https://example.org/cat.mp4"},
    {"type": "file", "base64": PIXEL, "mime_type": "application/pdf", "filename": "a.pdf"},
    {"type": "image", "source_type": "base64", "data": PIXEL, "mime_type": "image/png"},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
    {"type": "image_url", "image_url": {"url": "https://example.org/cat.png", "detail": "low"}},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    {"type": "image_url", "image_url": "https://example.org/cat.png"},
    {"type": "input_audio", "input_audio": {"data": PIXEL, "format": "wav"}},
    {"type": "tool_use", "id": "t", "name": "look", "input": {"at": 1}},
    {"type": "tool_call", "id": "a", "name": "look", "args": {"at": 1}},
    {"type": "non_standard", "value": {"kind": "text"}},
    {"type": "new", "kind": "json", "value": 1},
    {"no type": True},
    {"type": 3},
    {},
    "a bare string",
    "",
]
CONTENTS = st.one_of(st.text("abc ü", max_size=8), texts, st.lists(st.sampled_from(BLOCKS), max_size=4))
IDS = st.sampled_from([None, None, "1", "lc_run--7"])
COMMON: dict[str, Any] = {
    "content": CONTENTS,
    "id": IDS,
    "name": st.sampled_from([None, None, "bob", ""]),
    "additional_kwargs": st.just({}) | objects,
    "response_metadata": st.just({}) | st.just({"model_provider": "openai", "output_version": "v1"}) | objects,
}
CALLS = st.lists(
    st.fixed_dictionaries({"name": texts, "args": objects, "id": st.sampled_from(["a", "b", None, ""])}),
    max_size=3,
)
INVALID = st.lists(
    st.fixed_dictionaries(
        {
            "name": texts | st.none(),
            "args": st.sampled_from(["{broken", "{}", "", None, "[1]"]),
            "id": st.sampled_from(["a", None]),
            "error": st.none() | texts,
        }
    ),
    max_size=1,
)
USAGE = st.sampled_from(
    [
        None,
        {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3, "input_token_details": {"cache_read": 1}},
    ]
)


def made(kind: type[BaseMessage], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[BaseMessage]:
    return st.fixed_dictionaries({**COMMON, **fields}).map(lambda given: kind(**given))


AI = {"tool_calls": CALLS, "invalid_tool_calls": INVALID, "usage_metadata": USAGE}
RESULT = {
    "tool_call_id": st.sampled_from(["a", "b", ""]),
    "artifact": st.none() | json_values,
    "status": st.sampled_from(["success", "success", "error"]),
}
ROLES = st.sampled_from(["critic", "user", "assistant", "tool", "system", ""])
CHUNK = st.fixed_dictionaries(
    {
        "name": texts | st.none(),
        "args": st.sampled_from(['{"a": 1', "", None]),
        "id": st.sampled_from(["a", None]),
        "index": st.none() | st.integers(0, 2),
    }
)
MESSAGES = st.one_of(
    made(HumanMessage),
    made(HumanMessage, content=st.text("abc", max_size=5), additional_kwargs=st.just({}), id=st.none()),
    made(AIMessage, **AI),
    made(AIMessage, **AI),
    made(AIMessage),
    made(ToolMessage, **RESULT),
    made(SystemMessage),
    made(FunctionMessage, name=texts),
    made(ChatMessage, role=ROLES),
    made(AIMessageChunk, tool_call_chunks=st.lists(CHUNK, max_size=2)),
    made(HumanMessageChunk),
    made(SystemMessageChunk),
    made(ToolMessageChunk, **RESULT),
    made(FunctionMessageChunk, name=texts),
    made(ChatMessageChunk, role=ROLES),
    made(Mood, mood=texts),
    made(Odd, extent=st.integers(0, 9)),
    st.just(RemoveMessage(id="1")),
    made(HumanMessage, later=json_values, content_blocks=st.none()),
)
HISTORIES = st.lists(MESSAGES, max_size=8)


@given(HISTORIES)
@examples(120)
def test_every_history_comes_back_equal(messages: list[BaseMessage]) -> None:
    after = restored(to_runs(messages))

    assert after == messages
    assert [type(message) for message in after] == [type(message) for message in messages]


@given(HISTORIES)
@examples(50)
def test_dicts_come_back_equal_and_are_those_of_langchain(messages: list[BaseMessage]) -> None:
    plain = [message for message in messages if type(message) not in OWN]
    given = messages_to_dict(plain)

    imported = to_runs(given)

    after = [*imported.system, *to_dicts(stored(imported))]
    assert after == given
    assert after == [*map(as_dict, to_runs(plain).system), *to_dicts(to_runs(plain).runs)]


def as_dict(message: Any) -> Any:
    return messages_to_dict([message])[0]


@given(HISTORIES)
@examples(50)
def test_chat_models_of_any_kind_can_read_what_langchain_has_said(messages: list[BaseMessage]) -> None:
    for run in to_runs(messages).runs:
        for message in run_messages(run):
            json.dumps(message, ensure_ascii=False).encode()
            assert isinstance(message["role"], str)
            assert message.keys() <= {"role", "content", "name", "tool_calls", "tool_call_id"}


@given(st.lists(runs, max_size=3))
@examples(80)
def test_what_anyone_has_stored_reads_as_messages(stored: list[Run]) -> None:
    whole = [run for run in stored if run.input != () or run.steps or run.output != ()]

    after = to_messages(whole)

    assert all(isinstance(message, BaseMessage) for message in after)
    shown = view_messages(View(runs=tuple(whole), positions=range(len(whole))))
    assert all(isinstance(message, BaseMessage) for message in shown)


def test_an_extra_that_somebody_has_put_there_is_an_error_that_names_the_type() -> None:
    said = Text("hi", extra={"langchain": {"message": {"set": {"content": 7}}}})

    with pytest.raises(FormatError, match=r"makes no HumanMessage of a stored message of type 'human'"):
        to_messages([new_run(said)])


@pytest.mark.parametrize(
    "own", [7, {"message": 7}, {"message": {"set": [], "unset": {}}}, {"block": 3}, {"call": "x"}]
)
def test_what_is_nothing_of_ours_is_left_alone(own: Any) -> None:
    run = new_run(Text("hi", extra={"langchain": own}), steps=[ToolCall("1", "f", "{}", extra={"langchain": own})])

    assert [message.text for message in to_messages([run])] == ["hi", ""]


FIELDS = [
    "content",
    "type",
    "id",
    "name",
    "tool_calls",
    "tool_call_id",
    "additional_kwargs",
    "status",
    "self",
    "kind",
]
DIFFERENCES = st.fixed_dictionaries(
    {},
    optional={
        "set": st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3),
        "unset": st.lists(st.sampled_from(FIELDS), max_size=2),
    },
)


@given(DIFFERENCES, DIFFERENCES)
@examples(100)
def test_a_store_that_somebody_has_tampered_with_is_read_or_refused(message: Any, call: Any) -> None:
    extra = {"langchain": {"message": message, "call": call}}
    step, result = ToolCall("1", "f", "{}", extra=extra), ToolResult("1", "ok", extra=extra)

    for run in (new_run(Text("hi", extra=extra)), new_run("hi", steps=[step]), new_run("hi", steps=[result])):
        with suppress(FormatError):
            assert all(isinstance(each, BaseMessage) for each in to_messages([run]))


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        (b'{"langchain": 3}', []),
        (b'{"langchain": {"type": "human", "data": 3}}', []),
        (b'{"langchain": {"type": "human", "data": {"content": "x"}}}', [HumanMessage("x")]),
        (b'{"kind": "responses", "item": {"type": "reasoning"}}', []),
        (b'{"role": "user", "content": {"a": 1}}', [HumanMessage('{"a":1}')]),
        (b'{"role": "user", "content": "x", "later": {"part_kind": "user-prompt"}}', [HumanMessage("x")]),
        (b'{"role": "narrator", "content": "x"}', [ChatMessage("x", role="narrator")]),
    ],
)
def test_an_opaque_that_others_have_made_is_read_or_left_out(raw: bytes, read: list[BaseMessage]) -> None:
    assert to_messages([new_run((), steps=[Opaque(raw)])]) == read


def test_what_only_another_api_understands_parts_no_call_from_its_result() -> None:
    hosted = Opaque(b'{"kind": "responses", "item": {"type": "web_search_call"}}')
    run = new_run("Weather?", "Sunny.", steps=[hosted, ToolCall("1", "f", "{}"), hosted, ToolResult("1", "sun")])
    expected = [
        HumanMessage("Weather?"),
        AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}]),
        ToolMessage("sun", tool_call_id="1"),
        AIMessage("Sunny."),
    ]

    assert to_messages([run]) == expected
    assert view_messages(View(runs=(run,), positions=range(1))) == expected


@pytest.mark.parametrize("chat", [{"unset": ["role"]}, {"set": {"role": []}}, {"set": {"role": 7}}])
def test_a_role_that_somebody_has_tampered_with_is_that_of_the_place(chat: Any) -> None:
    run = new_run(Text("Hi", extra={"chat": chat}), steps=[Text("hm", extra={"chat": chat})])

    assert to_messages([run]) == [HumanMessage("Hi"), AIMessage("hm")]


def test_an_opaque_of_no_message_is_refused() -> None:
    with pytest.raises(FormatError, match="of type 5"):
        to_messages([new_run((), steps=[Opaque(b'{"langchain": {"type": 5, "data": {"content": "x"}}}')])])


# --- the real conversations ---


@pytest.fixture(scope="module")
def conversations(shared: Path) -> list[list[BaseMessage]]:
    data = json.loads((shared / "data" / "tau_bench_gpt-4o-airline.json").read_text())
    return [convert_to_messages(item["traj"]) for item in data]


def test_real_conversations_come_back_equal(conversations: list[list[BaseMessage]]) -> None:
    assert len(conversations) == 200
    for messages in conversations:
        assert restored(to_runs(messages)) == messages


def test_real_conversations_say_in_parts_what_the_chat_adapter_says(
    conversations: list[list[BaseMessage]], shared: Path
) -> None:
    data = json.loads((shared / "data" / "tau_bench_gpt-4o-airline.json").read_text())
    for messages, item in zip(conversations, data, strict=True):
        mine, theirs = to_runs(messages).runs, openai.to_runs(item["traj"]).runs
        assert [run.input for run in mine] == [run.input for run in theirs]
        assert [run.output for run in mine] == [run.output for run in theirs]
        calls = [[part.id for part in run.steps if isinstance(part, ToolCall)] for run in mine]
        assert calls == [[part.id for part in run.steps if isinstance(part, ToolCall)] for run in theirs]


# --- what the runs are ---


def test_inputs_steps_and_outputs_are_where_one_would_look_for_them() -> None:
    call = {"name": "look", "args": {"at": 1}, "id": "1"}
    imported = to_runs(
        [
            SystemMessage("Be kind."),
            HumanMessage("Who is there?"),
            AIMessage("Let me look."),
            AIMessage("", tool_calls=[call]),
            ToolMessage("a cat", tool_call_id="1", name="look"),
            AIMessage("A cat."),
            HumanMessage("Sure?"),
        ]
    )

    first, second = imported.runs
    assert imported.system == (SystemMessage("Be kind."),)
    assert (first.input, first.output) == ("Who is there?", "A cat.")
    assert first.steps == (
        Text("Let me look."),
        Text(""),
        ToolCall("1", "look", '{"at":1}'),
        ToolResult("1", "a cat", "look"),
    )
    assert (second.input, second.output) == ("Sure?", ())


def test_ids_and_metadata_leave_text_the_text_that_it_is() -> None:
    (run,) = to_runs([HumanMessage("Hi", id="1"), AIMessage("Hello", id="2", response_metadata={"x": 1})]).runs

    assert [part.text for part in (*run.input, *run.output) if isinstance(part, Text)] == ["Hi", "Hello"]
    assert run_messages(run) == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_an_error_of_a_tool_is_one_for_everybody() -> None:
    (run,) = to_runs([ToolMessage("no", tool_call_id="1", status="error")]).runs

    assert run.steps == (ToolResult("1", "no", error=True),)


def test_media_are_media_and_read_by_every_chat_model() -> None:
    content = [
        {"type": "text", "text": "Look", "index": 0},
        {"type": "image", "base64": PIXEL, "mime_type": "image/png"},
        {"type": "image", "url": "https://example.org/cat.png"},
    ]
    (run,) = to_runs([HumanMessage(content, id="1")]).runs

    assert [type(part) for part in run.input] == [Text, Blob, Ref]
    (message,) = run_messages(run)
    assert message["content"] == [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
    ]


def test_reasoning_is_kept_for_langchain_and_not_sent_to_others() -> None:
    content = [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "Yes."}]
    (run,) = to_runs([HumanMessage("?"), AIMessage(content)]).runs

    assert run_messages(run)[-1] == {"role": "assistant", "content": "Yes."}
    assert to_messages([run])[-1] == AIMessage(content)


def test_roles_in_the_middle_stay_roles_for_chat_models() -> None:
    developer = SystemMessage("Be brief.", additional_kwargs={"__openai_role__": "developer"})
    imported = to_runs([HumanMessage("Hi"), developer, ChatMessage("no", role="critic"), AIMessage("Hello")])

    (run,) = imported.runs
    assert [message["role"] for message in run_messages(run)] == ["user", "developer", "critic", "assistant"]


def test_runs_of_the_chat_adapter_are_messages() -> None:
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "bob"},
        {"role": "system", "content": "Paid."},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "ok"},
        {"role": "assistant", "content": None, "refusal": "I cannot."},
    ]

    after = to_messages(openai.to_runs(chat).runs)

    assert after == [
        HumanMessage([{"type": "text", "text": "Hi"}], name="bob"),
        SystemMessage("Paid."),
        AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}]),
        ToolMessage("ok", tool_call_id="1"),
        AIMessage("", additional_kwargs={"refusal": "I cannot."}),
    ]


def test_plain_runs_are_plain_messages() -> None:
    steps = [
        ToolCall("1", "f", '{"x": 1}'),
        ToolResult("1", "ok", "f"),
        ToolCall("2", "g", "{broken"),
        Json({"a": 1}),
    ]
    run = new_run("Hi", "Hello", steps=steps)

    human, call, result, broken, spoken, answer = to_messages([run])

    assert (human, answer) == (HumanMessage("Hi"), AIMessage("Hello"))
    assert call == AIMessage("", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "1"}])
    assert result == ToolMessage("ok", tool_call_id="1", name="f")
    assert broken == AIMessage("", invalid_tool_calls=[{"name": "g", "args": "{broken", "id": "2", "error": None}])
    assert spoken == AIMessage('{"a":1}')


def test_a_broken_history_comes_back_broken_and_is_mended_in_a_prompt() -> None:
    messages = [
        HumanMessage("Hi"),
        ToolMessage("?", tool_call_id="nobody"),
        AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}], id="7"),
        HumanMessage("Well?"),
    ]
    runs = to_runs(messages).runs

    assert to_messages(runs) == messages
    _, call, result, _ = view_messages(View(runs=runs, positions=range(2)))
    assert call == messages[2]
    assert (result.text, result.tool_call_id, result.status) == (INTERRUPTED, "1", "error")


def test_a_view_begins_with_its_summary_and_leaves_out_what_nobody_answered() -> None:
    summary = Summary(content="Bob is here.", upto=1, upto_id="x", seen=1)
    asked = Run("1", "Lost", status="partial")
    view = View(runs=(asked, new_run("Hi", "Hello")), positions=(1, 2), summary=summary)

    first, *others = view_messages(view)

    assert isinstance(first, SystemMessage)
    assert "Bob is here." in first.text
    assert others == [HumanMessage("Hi"), AIMessage("Hello")]
    assert isinstance(view_messages(view, "user")[0], HumanMessage)


# --- classes ---


def test_calls_that_somebody_took_out_of_a_message_do_not_come_back() -> None:
    raw = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    message = AIMessage("", additional_kwargs={"tool_calls": raw})
    message.tool_calls = []

    (after,) = to_messages(to_runs([message]).runs)

    assert after == message
    assert after.tool_calls == []


def test_a_class_of_somebodys_own_is_never_imported() -> None:
    imported = to_runs([Mood("Hi", mood="glad"), Odd("?", extent=3)])

    plain, odd = to_messages(imported.runs)

    assert (type(plain), plain.mood) == (HumanMessage, "glad")
    assert (type(odd), odd.type, odd.extent) == (BaseMessage, "odd", 3)
    assert [given.get("class") for given in to_dicts(imported.runs)] == ["Mood", "Odd"]


def test_messages_are_nobody_elses_to_change() -> None:
    imported = to_runs([HumanMessage("Hi", additional_kwargs={"a": {"b": 1}})])

    to_messages(imported.runs)[0].additional_kwargs["a"]["b"] = 2

    assert to_messages(imported.runs)[0].additional_kwargs == {"a": {"b": 1}}


# --- what is given ---


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        (HumanMessage("Hi"), "not as a HumanMessage"),
        ("Hi", "not as a str"),
        ({"type": "human"}, "not as a dict"),
        (7, "not as a int"),
        ([HumanMessage("Hi"), "Hi"], "message 1 is a str"),
        ([("user", "Hi")], "message 0 is a tuple"),
        ([{"role": "user", "content": "Hi"}], "message 0 is a dict without type and data"),
        ([{"type": "human", "data": 7}], "message 0 is a dict without type and data"),
        ([{"type": "human", "data": {"content": 7}}], "message 0 has a int as content"),
        ([{"type": "human", "data": {}}], "message 0 has a NoneType as content"),
        ([HumanMessage.model_construct()], "message 0 has a NoneType as content"),
        (
            [HumanMessage("Hi"), ToolMessage("x", tool_call_id="1", artifact=object())],
            r"message 1\.artifact is a object",
        ),
        (
            [ToolMessage("x", tool_call_id="1", artifact={"a": [HumanMessage("Hi")]})],
            r"0\.artifact\.a\[0\] is a Human",
        ),
        ([AIMessage("x", response_metadata={"at": {1}})], r"message 0\.response_metadata\.at is a set"),
        ([AIMessage("x", additional_kwargs={1: 2})], r"message 0\.additional_kwargs has the key 1"),
        ([AIMessage("", tool_calls=[{"name": "f", "args": {"x": float("nan")}, "id": "1"}])], r"args\.x is nan"),
    ],
)
def test_what_is_no_message_or_not_json_is_an_error_that_names_it(messages: Any, complaint: str) -> None:
    with pytest.raises(FormatError, match=complaint):
        to_runs(messages)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("where", ["artifact", "args", "block", "metadata"])
def test_what_is_taken_can_be_stored_however_deep_it_is(where: str) -> None:
    refused = 0
    for depth in range(MAX_DEPTH - 25, MAX_DEPTH + 1):
        deep = nested(depth)
        message: BaseMessage = AIMessage("", response_metadata={"deep": deep})
        if where == "artifact":
            message = ToolMessage("x", tool_call_id="1", artifact=deep)
        elif where == "args":
            message = AIMessage("", tool_calls=[{"name": "f", "args": {"deep": deep}, "id": None}])
        elif where == "block":
            message = ToolMessage([{"type": "text", "text": "x", "deep": deep}], tool_call_id="1")
        imported = None
        with suppress(FormatError):
            imported = to_runs([HumanMessage("Hi"), message])
        refused += imported is None
        assert imported is None or restored(imported)[1] == message
    assert 0 < refused < 20


def test_tokens_are_counted_for_text_calls_results_and_media() -> None:
    counter = approximate(media=1_000)
    content = [{"type": "image", "base64": PIXEL, "mime_type": "image/png", "id": "x"}]
    (run,) = to_runs([HumanMessage(content, id="1"), AIMessage("abcdefgh", id="2")]).runs

    assert counter.count(run.input) == 1_000
    assert counter.count(run.output) == 2


def test_nothing_is_an_opaque_that_can_be_said() -> None:
    messages = [SystemMessage("a", id="0"), HumanMessage("b", id="1"), SystemMessage("c"), AIMessage("d", id="2")]
    imported = to_runs([*messages, FunctionMessage("e", name="f"), RemoveMessage(id="9")])

    said = [part for run in imported.runs for part in (*run.steps, *run.output)]
    assert [type(part) for part in said if isinstance(part, Opaque)] == [Opaque]


def test_the_conversion_needs_no_langchain() -> None:
    program = """
import sys
sys.modules["langchain_core"] = None
from memkit.adapters.langchain import to_dicts, to_messages, to_runs
given = [{"type": "human", "data": {"content": "Hi", "id": "1"}}]
assert to_dicts(to_runs(given).runs) == [{"type": "human", "data": {"content": "Hi", "id": "1", "type": "human"}}]
for load in (lambda: to_messages(to_runs(given).runs), lambda: __import__("memkit.adapters.langchain.history"),
             lambda: __import__("memkit.adapters.langchain.agents")):
    try:
        load()
    except ImportError as error:
        assert "or later: pip install 'memkit[langchain]'" in str(error), error
    else:
        raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("package", "old", "module", "needs"),
    [
        ("langchain_core", "0.3.86", "build", "langchain-core 1.0 or later"),
        ("langchain", "1.0.8", "agents", "langchain 1.1 or later"),
        ("langchain", "1.0rc1", "agents", "langchain 1.1 or later"),
    ],
)
def test_an_old_langchain_is_refused(
    package: str, old: str, module: str, needs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"memkit.adapters.langchain.{module}"
    monkeypatch.setattr(f"{package}.__version__", old)
    monkeypatch.delitem(sys.modules, name, raising=False)

    with pytest.raises(ImportError, match=f"{needs}: pip install .*; this is {old}"):
        importlib.import_module(name)


def test_langchain_reads_the_dicts() -> None:
    messages = [HumanMessage("Hi", id="1"), AIMessage("Hello")]

    assert messages_from_dict(to_dicts(to_runs(messages).runs)) == messages


@given(parts)
@examples(100)
def test_any_part_among_steps_is_a_message(part: Any) -> None:
    is_readable = not isinstance(part, Opaque)
    assert len(to_messages([new_run("Hi", steps=[part])])) == 1 + is_readable

"""The adapter for Anthropic messages: whatever history goes in comes out equal, or reported as repaired."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message as Answer
from anthropic.types import MessageParam
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ConfigDict, TypeAdapter

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
    View,
    approximate,
    compose,
    forget_steps,
    new_run,
    prune,
)
from memkit.adapters import openai
from memkit.adapters.anthropic import FIRST, Imported, Message, prompt, to_messages, to_runs
from memkit.conversation import Summary
from memkit.rawjson import MAX_DEPTH
from memkit.steps import INTERRUPTED
from memkit.tokens import cost_of
from tests.histories import examples
from tests.histories import runs as some_runs
from tests.llm_server import Reply, llm_server

EXAMPLE = Path(__file__).parents[1] / "examples" / "anthropic_messages.py"
PIXEL = base64.b64encode(b"\x89PNG, as good as").decode()
PARAMS = TypeAdapter(list[MessageParam], config=ConfigDict(extra="forbid"))


def restored(imported: Imported) -> list[Message]:
    """All messages again, after a way through the stored format."""
    codec = JsonCodec()
    return to_messages([codec.decode(codec.encode(run)) for run in imported.runs])  # type: ignore[misc]


def blocks_of(message: Message) -> list[Any]:
    content = message["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def violations(messages: Iterable[Message]) -> list[int]:
    """Where the service refuses a history: results of no call that is open, and calls that stay open."""
    found: list[int] = []
    is_open: list[str] = []
    index, before = -1, ""
    for index, message in enumerate(messages):
        blocks = [block for block in blocks_of(message) if isinstance(block, dict)]
        calls = [block["id"] for block in blocks if block.get("type") == "tool_use"]
        results = [block["tool_use_id"] for block in blocks if block.get("type") == "tool_result"]
        if message["role"] == "user" and results:
            for name in results:
                if name in is_open:
                    is_open.remove(name)
                else:
                    found.append(index)
        elif message["role"] == before == "assistant" and len(calls) == len(blocks) > 0:
            is_open += calls  # the service joins the two
        else:
            if is_open:
                found.append(index)
            is_open = calls
        before = message["role"]
    return [*found, index + 1] if is_open else found


# --- histories of every shape ---

CACHED = {"cache_control": {"type": "ephemeral"}}
TEXT = {"type": "text", "text": "seen"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
LINKED = {"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}}
PAPER = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="}}
FOUND = {
    "type": "search_result",
    "source": "https://example.org",
    "title": "a",
    "content": [TEXT],
    "citations": {"enabled": True},
}
TOLD: list[Any] = [
    TEXT,
    TEXT | CACHED,
    IMAGE,
    IMAGE | CACHED,
    LINKED,
    {"type": "image", "source": {"type": "file", "file_id": "file-1"}},
    PAPER,
    PAPER | {"title": "a.pdf", "context": "mail", "citations": {"enabled": True}},
    {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}},
    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "as text"}},
    {"type": "document", "source": {"type": "content", "content": [TEXT, IMAGE]}},
    FOUND,
]
"""Blocks that a user may send."""
WEB = {"type": "web_search_result", "title": "a", "url": "https://example.org", "encrypted_content": "Eo8=="}
CITED = {
    "type": "web_search_result_location",
    "cited_text": "a cat",
    "url": "https://example.org",
    "title": "a",
    "encrypted_index": "Ep==",
}
SAID: list[Any] = [
    TEXT,
    TEXT | CACHED,
    TEXT | {"citations": None},
    TEXT | {"citations": [CITED]},
    {"type": "thinking", "thinking": "Hm, né?", "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pk=="},
    {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyIwxtE3rAFBa8cr3qpP"},
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "cats"}},
    {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [WEB]},
    {"type": "server_tool_use", "id": "srvtoolu_2", "name": "code_execution", "input": {"code": "1 + 1"}},
    {
        "type": "code_execution_tool_result",
        "tool_use_id": "srvtoolu_2",
        "content": {
            "type": "code_execution_result",
            "stdout": "2",
            "stderr": "",
            "return_code": 0,
            "content": [{"type": "code_execution_output", "file_id": "file-2"}],
        },
    },
]
"""Blocks that the assistant may say."""
ODD: list[Any] = [
    {"type": "text"},
    {"type": "text", "text": None},
    TEXT | {"kind": "text"},
    TEXT | {"role": "user", "content": "not a message"},
    TEXT | {"anthropic": {"block": 1, "whole": True}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAF="}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "no base64"}},
    {"type": "image", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="}},
    {"type": "image", "source": "https://example.org/cat.png"},
    {"type": "never heard of", "number": 1.5, "null": None},
    {"no type": True},
    {"kind": "json", "value": 1},
    {"type": 3},
    "a bare string",
    7,
    None,
]
"""Blocks that no service has sent."""
MORE: list[dict[str, Any]] = [{}, {}, {}, {}, {"name": "bob"}, {"kind": "json", "content": 1}, {"anthropic": {}}]


def messages_by(role: str, blocks: list[Any], more: list[dict[str, Any]]) -> st.SearchStrategy[Message]:
    contents = st.text("abc ü", max_size=6) | st.lists(st.sampled_from(blocks), max_size=4)
    return st.builds(
        lambda content, extra: {**extra, "role": role, "content": content}, contents, st.sampled_from(more)
    )


@st.composite
def tool_rounds(draw: st.DrawFn, told: list[Any], said: list[Any], more: list[dict[str, Any]]) -> list[Message]:
    names = draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3, unique=True))
    inputs = st.sampled_from([{}, {"z": 1, "a": [1.5, None]}])
    calls = [{"type": "tool_use", "id": name, "name": "look", "input": draw(inputs)} for name in names]
    calls[0].update(draw(st.sampled_from([{}, CACHED, {"caller": {"type": "direct"}}])))
    contents = st.sampled_from(
        [{}, {"content": ""}, {"content": "a cat"}, {"content": [TEXT, IMAGE]}, {"content": []}, {"content": told}]
    )
    flags = st.sampled_from([{}, {"is_error": True}, {"is_error": False}, CACHED])
    results = [
        {"type": "tool_result", "tool_use_id": name, **draw(contents), **draw(flags)}
        for name in draw(st.permutations(names))
    ]
    asked = draw(st.permutations([*calls, *draw(st.lists(st.sampled_from(said), max_size=3))]))
    answered = [*results, *draw(st.lists(st.sampled_from(told), max_size=2))]
    return [
        {**draw(st.sampled_from(more)), "role": "assistant", "content": asked},
        {**draw(st.sampled_from(more)), "role": "user", "content": answered},
    ]


def histories(told: list[Any], said: list[Any], more: list[dict[str, Any]]) -> st.SearchStrategy[list[Message]]:
    system = [{"role": "system", "content": "The user has paid."}]
    rounds = st.one_of(
        messages_by("user", told, more).map(lambda message: [message]),
        messages_by("assistant", said, more).map(lambda message: [message]),
        tool_rounds(told, said, more),
        st.just(system),
    )
    return st.lists(rounds, max_size=8).map(lambda found: [message for each in found for message in each])


GOOD = histories(TOLD, SAID, [{}])
ANY = histories([*TOLD, *ODD], [*SAID, *ODD], MORE)


@given(GOOD | ANY)
@examples(200)
def test_every_history_comes_back_equal(messages: list[Message]) -> None:
    assert not violations(messages)

    imported = to_runs(messages)

    assert imported.repairs == ()
    assert restored(imported) == messages


@given(GOOD, st.data())
@examples(150)
def test_a_broken_history_is_repaired_where_it_is_broken_and_says_so(
    whole: list[Message], data: st.DataObject
) -> None:
    messages = data.draw(st.lists(st.sampled_from(whole), max_size=10)) if whole else []

    imported = to_runs(messages)
    after = restored(imported)

    assert violations(after) == []
    assert bool(imported.repairs) == bool(violations(messages))
    if not imported.repairs:
        assert after == messages


@given(GOOD, st.data())
@examples(150)
def test_a_prompt_is_valid_and_takes_turns_whatever_was_stored(whole: list[Message], data: st.DataObject) -> None:
    messages = data.draw(st.lists(st.sampled_from(whole), max_size=10)) if whole else []
    runs = to_runs(messages).runs

    sent = prompt(View(runs=runs), input="And now?")["messages"]

    roles = [message["role"] for message in sent]
    assert roles[0] in {"user", "system"}
    assert all(one != other for one, other in itertools.pairwise(roles))
    assert violations(sent) == []
    PARAMS.validate_python(sent)


@given(st.lists(some_runs, max_size=3))
@examples(60)
def test_whatever_runs_are_stored_become_messages_that_json_can_hold(runs: list[Run]) -> None:
    sent = prompt(View(runs=tuple(runs)), input="And now?")

    json.dumps(sent, ensure_ascii=False, allow_nan=False).encode()
    assert violations(sent["messages"]) == []


# --- what the runs are ---

LOOK = {"type": "tool_use", "id": "1", "name": "look", "input": {"at": 1}}
CAT = {"type": "tool_result", "tool_use_id": "1", "content": "a cat"}
THOUGHT = SAID[4]


def test_inputs_steps_and_outputs_are_where_one_would_look_for_them() -> None:
    imported = to_runs(
        [
            {"role": "user", "content": "Who is there?"},
            {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "Let me look."}, LOOK]},
            {"role": "user", "content": [CAT]},
            {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "A cat."}]},
        ]
    )

    (run,) = imported.runs
    assert run.input == "Who is there?"
    assert [type(part) for part in run.steps] == [Opaque, Text, ToolCall, ToolResult, Opaque]
    assert run.steps[2] == ToolCall("1", "look", '{"at":1}')
    assert run.steps[3] == ToolResult("1", "a cat")
    assert run.output == (Text("A cat."),)
    assert run.status == "complete"


def test_plain_messages_become_plain_text() -> None:
    (run,) = to_runs([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]).runs

    assert (run.input, run.steps, run.output) == (
        "Hi",
        (),
        (Text("Hello", extra={"anthropic": {"message": {"str": True}}}),),
    )


def test_what_a_user_says_beside_results_stays_with_the_call() -> None:
    messages: list[Message] = [
        {"role": "user", "content": "Who is there?"},
        {"role": "assistant", "content": [LOOK]},
        {"role": "user", "content": [CAT, {"type": "text", "text": "Hurry up!"}]},
        {"role": "assistant", "content": "A cat."},
    ]

    (run,) = to_runs(messages).runs

    chat = openai.to_messages([run])
    assert [message["role"] for message in chat] == ["user", "assistant", "tool", "user", "assistant"]
    assert chat[3]["content"] == [{"type": "text", "text": "Hurry up!"}]


def test_calls_and_results_stay_pairs_in_chat_messages_too() -> None:
    other = LOOK | {"id": "2"}
    messages: list[Message] = [
        {"role": "assistant", "content": [LOOK, THOUGHT, other]},
        {"role": "user", "content": [TEXT, CAT, CAT | {"tool_use_id": "2"}]},
    ]

    imported = to_runs(messages)

    assert restored(imported) == messages
    results = [message for message in openai.to_messages(imported.runs) if message["role"] == "tool"]
    assert [result["content"] for result in results] == ["a cat", "a cat"]


def test_media_are_media_and_counted_as_such() -> None:
    counter = approximate(media=1_000)

    (run,) = to_runs([{"role": "user", "content": [IMAGE, LINKED, PAPER | CACHED]}]).runs

    assert [type(part) for part in run.input] == [Blob, Ref, Blob]
    assert cost_of(run, counter) == 3_000 + counter.per_message


def test_signatures_are_stored_as_they_are() -> None:
    (run,) = to_runs([{"role": "assistant", "content": [THOUGHT, TEXT]}]).runs

    assert THOUGHT["signature"].encode() in JsonCodec().encode(run)


# --- what other programs have stored ---


def test_runs_of_other_programs_become_messages() -> None:
    run = new_run(
        ["Look:", Blob("image/png", b"\x89PNG"), Ref("https://example.org/a.pdf", "application/pdf"), Json([1])],
        "A cat.",
        steps=[
            "Let me look.",
            ToolCall("1", "look", '{"at": 1}'),
            ToolCall("2", "look", "{broken"),
            ToolResult("1"),
        ],
    )

    sent = to_messages([run])

    assert [message["role"] for message in sent] == ["user", "assistant", "user", "assistant"]
    assert [block["type"] for block in sent[0]["content"]] == ["text", "image", "document", "text"]
    assert [block.get("input") for block in sent[1]["content"]] == [None, {"at": 1}, {"arguments": "{broken"}]
    assert [block.get("content") for block in sent[2]["content"]] == [None, INTERRUPTED]
    assert sent[3] == {"role": "assistant", "content": "A cat."}
    PARAMS.validate_python(sent)


def test_chat_messages_become_messages() -> None:
    asked = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    runs = openai.to_runs(
        [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}],
            },
            {"role": "developer", "content": "The user has paid."},
            {"role": "assistant", "content": None, "tool_calls": [asked]},
            {"role": "tool", "tool_call_id": "1", "content": "a cat"},
            {"role": "assistant", "content": "A cat."},
        ]
    ).runs

    assert to_messages(runs) == [
        {"role": "user", "content": [IMAGE]},
        {"role": "system", "content": "The user has paid."},
        {"role": "assistant", "content": [LOOK]},
        {"role": "user", "content": [CAT]},
        {"role": "assistant", "content": "A cat."},
    ]


def test_what_only_another_format_can_tell_parts_no_pair() -> None:
    reasoning = Opaque(b'{"type":"reasoning","encrypted_content":"gAAA"}')
    calls = [ToolCall("1", "look", "{}"), reasoning, ToolCall("2", "look", "{}")]
    run = new_run("?", "A cat.", steps=[reasoning, *calls, ToolResult("1", "a cat"), ToolResult("2", "a dog")])

    sent = to_messages([run])

    assert [len(message["content"]) for message in sent[1:3]] == [2, 2]
    assert [block["content"] for block in sent[2]["content"]] == ["a cat", "a dog"]


def test_arguments_nested_too_deep_are_sent_as_text() -> None:
    deep = '{"a":' * 500 + "1" + "}" * 500

    sent = to_messages([new_run("?", steps=[ToolCall("1", "look", deep)])])

    assert sent[1]["content"][0]["input"] == {"arguments": deep}


@pytest.mark.parametrize(
    "mark",
    [
        {"block": 7},
        {"block": 7, "whole": True},
        {"message": {"order": [0, 0], "str": True}},
        {"message": {"set": {"role": None, "content": 7}}},
        {"message": {"unset": ["role", "content"]}},
        {"message": 7, "set": 7, "unset": 7, "side": 7},
    ],
)
def test_a_mark_that_is_damaged_breaks_no_prompt(mark: Any) -> None:
    opaque = Opaque(json.dumps({"type": "thinking", "anthropic": mark}).encode())
    text = Text("Hello", extra={"anthropic": mark})
    runs = (new_run([text, opaque], [text, opaque], steps=[text, opaque]), new_run([opaque], [opaque]))

    sent = prompt(View(runs=runs), input="And now?")

    assert sent["messages"][-1]["role"] == "user"


# --- prompts ---


def test_a_prompt_has_the_summary_in_its_system_text() -> None:
    summary = Summary(content="Collin likes tea.", upto=1, upto_id="", seen=1)
    view = View(runs=(new_run("Hi", "Hello"),), summary=summary)

    plain = prompt(view, input="What do I like?", system="Be kind.")
    blocks = prompt(view, system=[{"type": "text", "text": "Be kind.", **CACHED}])
    alone = prompt(view)

    assert plain["system"][0] == {"type": "text", "text": "Be kind."}
    assert "<summary>\nCollin likes tea.\n</summary>" in plain["system"][1]["text"]
    assert blocks["system"][0]["cache_control"] == CACHED["cache_control"]
    assert [block["type"] for block in alone["system"]] == ["text"]
    assert plain["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "What do I like?"},
    ]


def test_without_a_summary_the_system_text_is_as_given() -> None:
    assert prompt(View(), input="Hi", system="Be kind.") == {
        "system": "Be kind.",
        "messages": [{"role": "user", "content": "Hi"}],
    }
    assert prompt(View(), input="Hi") == {"messages": [{"role": "user", "content": "Hi"}]}


def test_turns_are_taken_and_a_user_begins() -> None:
    view = View(runs=(new_run(None, "Welcome!"), new_run("Hello?"), new_run("Anyone?")))

    assert prompt(view, input="Well?")["messages"] == [
        {"role": "user", "content": FIRST},
        {"role": "assistant", "content": "Welcome!"},
        {"role": "user", "content": [{"type": "text", "text": text} for text in ("Hello?", "Anyone?", "Well?")]},
    ]


def test_what_says_nothing_is_left_out_of_a_prompt_since_the_service_refuses_it() -> None:
    view = View(
        runs=(new_run("Hi", ""), new_run("", "Hello", steps=["", ToolCall("1", "look"), ToolResult("1", "")]))
    )

    sent = prompt(view)["messages"]

    assert [message["role"] for message in sent] == ["user", "assistant", "user", "assistant"]
    assert [len(message["content"]) for message in sent[1:3]] == [1, 1]


def test_all_that_is_sent_is_valid_unicode() -> None:
    view = View(runs=(new_run("half a \ud83d", steps=[ToolCall("1", "look", '{"a": "\\ud83d"}')]),))

    sent = prompt(view, input="half a \ud83d", system="half a \ud83d")

    json.dumps(sent, ensure_ascii=False).encode()


# --- repairs ---


@pytest.mark.parametrize(
    ("messages", "report", "roles"),
    [
        ([{"role": "user", "content": [CAT]}], "message 0: the result of '1'", []),
        (
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": [LOOK]}],
            "message 1: the call '1' has no result",
            ["user", "assistant", "user"],
        ),
        (
            [
                {"role": "assistant", "content": [LOOK]},
                {"role": "user", "content": "Well?"},
                {"role": "user", "content": [CAT]},
            ],
            "message 2: the result of '1'",
            ["assistant", "user", "user"],
        ),
    ],
)
def test_repairs_name_the_message_and_nothing_stored_is_lost(
    messages: list[Message], report: str, roles: list[str]
) -> None:
    imported = to_runs(messages)

    assert any(line.startswith(report) for line in imported.repairs)
    assert [message["role"] for message in restored(imported)] == roles
    stored = [part for run in imported.runs for part in run.steps if isinstance(part, ToolCall | ToolResult)]
    assert len(stored) == sum(block in (LOOK, CAT) for message in messages for block in blocks_of(message))


def test_what_is_not_unicode_is_replaced_and_reported() -> None:
    imported = to_runs([{"role": "user", "content": [{"type": "text", "text": "half a \ud83d"}]}])

    assert restored(imported) == [{"role": "user", "content": [{"type": "text", "text": "half a \ufffd"}]}]
    assert [report[:10] for report in imported.repairs] == ["message 0:"]


# --- what is given ---


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ({"role": "user"}, "not as a dict"),
        ("Hello", "not as a str"),
        (7, "not as a int"),
        ([{"role": "user", "content": "Hi"}, "Hello"], "message 1 is a str"),
        ([None], "message 0 is a NoneType"),
        ([{"content": "Hello"}], "message 0 has the role None"),
        ([{"role": "tool", "content": "Hi"}], "message 0 has the role 'tool'"),
        ([{"role": "user"}], "message 0 has a NoneType as content"),
        ([{"role": "user", "content": {"text": "Hi"}}], "message 0 has a dict as content"),
        ([{"role": "user", "content": "Hi", "x": [{1}]}], r"message 0\.x\[0\] is a set"),
        ([{"role": "user", "content": "Hi", "x": float("nan")}], r"message 0\.x is nan"),
    ],
)
def test_what_are_no_messages_is_refused_by_its_index(messages: Any, complaint: str) -> None:
    with pytest.raises(FormatError, match=complaint):
        to_runs(messages)


def nested(levels: int) -> list[Message]:
    value: Any = "deep"
    for _ in range(levels):
        value = [value]
    content = [TEXT | {"x": value}, value, CAT | {"content": [TEXT | {"x": value}, value]}]
    return [
        {"role": "user", "content": [TEXT | {"x": value}, value], "x": value},
        {"role": "assistant", "content": [LOOK | {"input": {"x": value}}, value], "x": value},
        {"role": "user", "content": content, "x": value},
        {"role": "system", "content": "Hi", "x": value},
    ]


def test_what_is_accepted_can_be_stored_however_deep() -> None:
    deepest = next(level for level in reversed(range(MAX_DEPTH)) if is_accepted(nested(level)))

    assert deepest > MAX_DEPTH - 25
    for levels in range(deepest - 20, deepest + 1):
        assert restored(to_runs(nested(levels))) == nested(levels)


@pytest.mark.parametrize("levels", [1_000, 100_000])
def test_what_is_nested_too_deep_is_refused(levels: int) -> None:
    assert not is_accepted(nested(levels))


def is_accepted(messages: list[Message]) -> bool:
    try:
        to_runs(messages)
    except FormatError:
        return False
    return True


ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [THOUGHT, {"type": "text", "text": "A cat.", "citations": None}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


def test_models_of_the_anthropic_package_come_back_as_it_would_send_them() -> None:
    answer = Answer.model_validate(ANSWER)
    expected = {"role": "assistant", "content": ANSWER["content"]}

    assert restored(to_runs([answer])) == [expected]
    assert restored(to_runs([{"role": "assistant", "content": answer.content}])) == [expected]


def test_the_anthropic_package_is_not_needed() -> None:
    program = "import sys, memkit.adapters.anthropic; sys.exit('anthropic' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- through a store ---

LONG: list[Message] = [
    {"role": "user", "content": [*TOLD, *ODD]},
    *({"role": "assistant", "content": [block, *SAID]} for block in [*SAID, *ODD]),
    {"role": "assistant", "content": [LOOK | {"id": str(number)} for number in range(len(TOLD))]},
    {
        "role": "user",
        "content": [CAT | {"tool_use_id": str(number), "content": [block]} for number, block in enumerate(TOLD)],
    },
    {"role": "assistant", "content": SAID},
]


@pytest.mark.anyio
async def test_a_history_of_all_shapes_goes_through_memory_and_back() -> None:
    driver = InMemoryDriver()
    async with Memory(driver, "all shapes", counter=approximate()) as memory:
        await memory.append(*to_runs(LONG).runs)

    async with Memory(driver, "all shapes") as memory:
        assert to_messages(memory.view().runs) == LONG


def test_real_conversations_come_back_as_they_were(shared: Path) -> None:
    codec = JsonCodec()
    for messages in real_conversations(shared):
        runs = [cast("Run", codec.decode(codec.encode(run))) for run in to_runs(messages).runs]
        assert to_messages(runs) == messages


@pytest.mark.anyio
async def test_real_conversations_come_back_from_files_as_they_were(shared: Path, tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    for number, messages in enumerate(real_conversations(shared)[:5]):
        async with Memory(driver, f"task {number}") as memory:
            await memory.append(*to_runs(messages).runs)
        async with Memory(driver, f"task {number}") as memory:
            assert to_messages([run async for run in memory.history()]) == messages
            PARAMS.validate_python(prompt(memory.view())["messages"])


@pytest.mark.anyio
async def test_a_budget_forgets_tool_traffic_of_real_conversations_and_parts_no_pair(shared: Path) -> None:
    counter = approximate()
    strategy = compose(forget_steps(keep=2), prune(1_500, counter=counter))
    for messages in real_conversations(shared)[:50]:
        runs = to_runs(messages).runs
        async with Memory(InMemoryDriver(), "budget", strategy=strategy) as memory:
            await memory.append(*runs)
            view = memory.view(reserve=100)
            sent = prompt(view, input="And now?")["messages"]

        assert sum(cost_of(run, counter) for run in view.runs) <= 1_400
        assert violations(sent) == []
        calls = [block for message in sent for block in blocks_of(message) if block["type"] == "tool_use"]
        assert len(calls) <= sum(isinstance(part, ToolCall) for run in runs[-2:] for part in run.steps)
        PARAMS.validate_python(sent)


def real_conversations(shared: Path) -> list[list[Message]]:
    """The real conversations as Anthropic messages, without their system texts."""
    path = shared / "data" / "tau_bench_gpt-4o-airline.json"
    return [[as_anthropic(message) for message in item["traj"][1:]] for item in json.loads(path.read_bytes())]


def as_anthropic(message: Message) -> Message:
    content: Any = message["content"]
    if message["role"] == "tool":
        block = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": content}
        return {"role": "user", "content": [block]}
    calls = [
        {
            "type": "tool_use",
            "id": call["id"],
            "name": call["function"]["name"],
            "input": json.loads(call["function"]["arguments"]),
        }
        for call in message.get("tool_calls") or ()
    ]
    if calls:
        content = [*([{"type": "text", "text": content}] if content else []), *calls]
    return {"role": message["role"], "content": content}


# --- with the real client ---


@pytest.mark.anyio
async def test_the_real_client_sends_a_prompt_and_its_answer_is_remembered(tmp_path: Path) -> None:
    call = ANSWER | {"content": [THOUGHT, LOOK], "stop_reason": "tool_use"}
    strategy = prune(2_000, counter=approximate())
    with llm_server() as server:
        server.script = [Reply(body=json.dumps(body).encode()) for body in (call, ANSWER, ANSWER)]
        async with AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
            for said in ("Who is there?", "Who was it?"):
                async with Memory(FileDriver(tmp_path), "me", strategy=strategy) as memory:
                    about = {"model": "claude", "max_tokens": 100, **prompt(memory.view(), input=said)}
                    answer = await client.messages.create(**about)
                    said_since: list[Any] = [{"role": "user", "content": said}, answer]
                    if answer.stop_reason == "tool_use":
                        said_since.append({"role": "user", "content": [CAT]})
                        about["messages"] = [*about["messages"][:-1], *to_messages(to_runs(said_since).runs)]
                        said_since.append(await client.messages.create(**about))
                    await memory.append(*to_runs(said_since).runs)

    assert server.requests[2].body["messages"] == [
        {"role": "user", "content": "Who is there?"},
        {"role": "assistant", "content": [THOUGHT, LOOK]},
        {"role": "user", "content": [CAT]},
        {"role": "assistant", "content": ANSWER["content"]},
        {"role": "user", "content": "Who was it?"},
    ]


# --- the example ---


def test_the_example_remembers_from_one_process_to_the_next(tmp_path: Path) -> None:
    first = run_example(tmp_path, "My name is Collin. What time is it?")
    second = run_example(tmp_path, "What is my name?")

    assert "stand-in" in first.stdout
    assert "It is noon, Collin." in first.stdout
    assert "Your name is Collin." in second.stdout


def run_example(folder: Path, said: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), said],
        cwd=folder,
        env={"PYTHONPATH": str(EXAMPLE.parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )

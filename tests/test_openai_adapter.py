"""The chat-completions adapter: whatever history goes in comes out equal, or reported as repaired and valid."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkit import (
    Blob,
    FileDriver,
    FormatError,
    InMemoryDriver,
    JsonCodec,
    Memory,
    Ref,
    Text,
    ToolCall,
    ToolResult,
)
from memkit.adapters.openai import Imported, to_messages, to_runs
from memkit.content import Opaque
from memkit.items import part_of
from memkit.messages import ChatMessage
from memkit.rawjson import MAX_DEPTH, parse_json
from memkit.steps import INTERRUPTED
from memkit.tokens import approximate, cost_of
from tests.histories import examples

PIXEL = base64.b64encode(b"\x89PNG, as good as").decode()


def restored(imported: Imported) -> list[ChatMessage]:
    """All messages again, after a way through the stored format."""
    codec = JsonCodec()
    runs = [codec.decode(codec.encode(run)) for run in imported.runs]
    return [*imported.system, *to_messages(runs)]


def violations(messages: list[ChatMessage]) -> list[int]:
    """Where a provider refuses a history: results of no call that is open, and calls that stay open."""
    found: list[int] = []
    open_calls: Counter[str] = Counter()
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            name = message.get("tool_call_id", "")
            if open_calls[name]:
                open_calls[name] -= 1
            else:
                found.append(index)
            continue
        if open_calls.total():
            found.append(index)
        open_calls = Counter(call.get("id", "") for call in message.get("tool_calls") or ())
    return [*found, len(messages)] if open_calls.total() else found


# --- histories of every shape ---

CONTENTS = st.one_of(
    st.text("abc ü", max_size=8).map(lambda text: {"content": text}),
    st.sampled_from([{}, {"content": None}, {"content": ""}, {"content": []}]),
)
TEXT = {"type": "text", "text": "seen"}
PARTS: list[Any] = [
    TEXT,
    TEXT | {"cache_control": {"type": "ephemeral"}},
    TEXT | {"kind": "text"},
    {"type": "new", "kind": "json", "value": 1},
    {"type": "text"},
    {"type": "text", "text": None},
    {"type": "text", "role": "system", "content": "not a message"},
    {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
    {"type": "image_url", "image_url": {"url": "https://example.org/cat.png", "detail": "low"}},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "high"}},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAF="}},  # not what an encoder writes
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,no base64"}},
    {"type": "image_url", "image_url": {"url": "data:text/plain;base64,aGk="}},
    {"type": "image_url", "image_url": "https://example.org/cat.png"},
    {"type": "input_audio", "input_audio": {"data": PIXEL, "format": "wav"}},
    {"type": "input_audio", "input_audio": {"data": PIXEL, "format": "mp3"}},
    {"type": "input_audio", "input_audio": {"data": PIXEL, "format": "flac"}},
    {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERg==", "filename": "a.pdf"}},
    {"type": "file", "file": {"file_id": "file-1"}},
    {"type": "refusal", "refusal": "I cannot help with that."},
    {"type": "never heard of", "number": 1.5, "null": None},
    {"no type": True},
    {"type": 3},
    "a bare string",
    7,
]
UNNATURAL = [part for part in PARTS if not isinstance(part, dict) or not isinstance(part.get("type"), str)]
UNNATURAL += [{"type": "new", "kind": "json", "value": 1}]
"""What no part can render: the message keeps all of its content as it was."""
LISTS = st.lists(st.sampled_from(PARTS), max_size=4).map(lambda parts: {"content": parts})
SAID = st.one_of(CONTENTS, CONTENTS, LISTS)
MORE: list[dict[str, Any]] = [
    {},
    {},
    {},
    {"name": "bob"},
    {"name": ""},
    {"kind": "json", "value": 1},
    {"kind": None, "name": None},
    {"vendor": {"nested": [1, {"deep": None}]}},
]
ANSWERED: list[dict[str, Any]] = [
    *MORE,
    {"refusal": None},
    {"refusal": "I cannot help with that."},
    {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None},
    {"tool_calls": []},
    {"audio": {"id": "audio_1"}},
    {"annotations": [{"type": "url_citation", "url_citation": {"url": "https://example.org", "title": "a"}}]},
    {"reasoning_content": "first, then"},
]


def said_by(*roles: str, more: list[dict[str, Any]] = MORE) -> st.SearchStrategy[list[ChatMessage]]:
    return st.builds(
        lambda role, content, extra: [{"role": role, **content, **extra}],
        st.sampled_from(roles),
        SAID,
        st.sampled_from(more),
    )


def call(name: str, shape: int) -> dict[str, Any]:
    plain = {"id": name, "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    shapes: list[dict[str, Any]] = [
        plain,
        plain,
        plain | {"index": 0},
        {"id": name, "function": {"name": "look", "arguments": {"at": 1}}},
        {"id": name, "type": "function", "function": {"name": "look"}},
        {"id": name, "type": "function", "function": {"name": "l", "arguments": "{broken", "strict": True}},
        {"id": name, "type": "custom", "custom": {"name": "run", "input": "print(1)"}},
        {"id": name, "type": "function", "function": None},
    ]
    return shapes[shape]


@st.composite
def tool_rounds(draw: st.DrawFn) -> list[ChatMessage]:
    names = draw(st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=3))
    calls = [call(name, draw(st.integers(0, 7))) for name in names]
    extra = {key: value for key, value in draw(st.sampled_from(ANSWERED)).items() if key != "tool_calls"}
    asked = {"role": "assistant", **draw(SAID), **extra, "tool_calls": calls}
    results = [
        {"role": "tool", "tool_call_id": name, **draw(SAID), **draw(st.sampled_from(MORE))}
        for name in draw(st.permutations(names))
    ]
    return [asked, *results]


LEGACY: list[ChatMessage] = [
    {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}},
    {"role": "function", "name": "look", "content": "nothing"},
]
BLOCKS = st.one_of(
    said_by("user"),
    said_by("assistant", more=ANSWERED),
    said_by("system", "developer"),
    tool_rounds(),
    st.just(LEGACY),
)
HISTORIES = st.lists(BLOCKS, max_size=8).map(lambda blocks: [message for block in blocks for message in block])


@given(HISTORIES)
@examples(400)
def test_every_history_comes_back_equal(messages: list[ChatMessage]) -> None:
    assert not violations(messages)

    imported = to_runs(messages)

    assert imported.repairs == ()
    assert restored(imported) == messages


@given(HISTORIES, st.data())
@examples(400)
def test_a_broken_history_is_repaired_where_it_is_broken_and_says_so(
    whole: list[ChatMessage], data: st.DataObject
) -> None:
    messages = data.draw(st.lists(st.sampled_from(whole), max_size=10)) if whole else []

    imported = to_runs(messages)
    after = restored(imported)

    assert violations(after) == []
    assert bool(imported.repairs) == bool(violations(messages))
    assert [m for m in after if m["role"] != "tool"] == [m for m in messages if m["role"] != "tool"]
    results = [message for message in after if message["role"] == "tool" and message.get("content") != INTERRUPTED]
    assert all(result in messages for result in results)
    if not imported.repairs:
        assert after == messages


# --- what the runs are ---


def test_inputs_steps_and_outputs_are_where_one_would_look_for_them() -> None:
    look = call("1", 0)
    imported = to_runs(
        [
            {"role": "system", "content": "Be kind."},
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Who is there?"},
            {"role": "assistant", "content": "Let me look."},
            {"role": "assistant", "content": None, "tool_calls": [look]},
            {"role": "tool", "tool_call_id": "1", "name": "look", "content": "a cat"},
            {"role": "assistant", "content": "A cat."},
        ]
    )

    (run,) = imported.runs
    assert [message["content"] for message in imported.system] == ["Be kind.", "Be brief."]
    assert run.input == "Who is there?"
    assert [type(part) for part in run.steps] == [Text, Text, ToolCall, ToolResult]
    assert run.steps[3] == ToolResult("1", "a cat", "look")
    assert run.output == "A cat."
    assert run.status == "complete"


def test_each_user_message_begins_a_run_of_its_own() -> None:
    imported = to_runs([{"role": "user", "content": "Hello?"}, {"role": "user", "content": ""}])

    assert [(run.input, run.output) for run in imported.runs] == [("Hello?", ()), ("", ())]


def test_a_history_may_begin_with_an_answer() -> None:
    (run,) = to_runs([{"role": "assistant", "content": "Hi, how can I help?"}]).runs

    assert (run.input, run.output) == ((), "Hi, how can I help?")


def test_a_system_message_in_the_middle_leaves_answers_answers() -> None:
    system = {"role": "system", "content": "The user has paid."}
    question, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}

    after_an_answer = to_runs([question, answer, system, answer])
    before_an_answer = to_runs([question, system, answer])

    assert [run.output for run in after_an_answer.runs] == ["Hello", "Hello"]
    assert [run.output for run in before_an_answer.runs] == ["Hello"]


def test_plain_messages_become_plain_text_without_extras() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call("1", 0)]},
        {"role": "tool", "tool_call_id": "1", "name": "look", "content": "a cat"},
        {"role": "assistant", "content": "A cat."},
    ]

    (run,) = to_runs(messages).runs

    assert (run.input, run.output) == ("Hi", "A cat.")
    assert all(not part.extra for part in run.steps)


def test_media_are_media_and_counted_as_such() -> None:
    counter = approximate(media=1_000)
    image = {"url": f"data:image/png;base64,{PIXEL}", "detail": "high"}
    linked = {"url": "https://example.org/cat.png", "detail": "low"}
    paper = {"file_data": "data:application/pdf;base64,JVBERg==", "filename": "a.pdf"}
    content = [
        {"type": "image_url", "image_url": image},
        {"type": "image_url", "image_url": linked},
        {"type": "file", "file": paper},
    ]

    (run,) = to_runs([{"role": "user", "content": content}]).runs

    assert [type(part) for part in run.input] == [Blob, Ref, Blob]
    assert cost_of(run, counter) == 3_000 + counter.per_message


@pytest.mark.parametrize("part", [part for part in PARTS if part not in UNNATURAL])
def test_what_is_in_a_list_is_stored_once(part: dict[str, Any]) -> None:
    (run,) = to_runs([{"role": "user", "content": [TEXT, part]}]).runs

    assert isinstance(run.input[0], Text)
    assert "chat" not in run.input[0].extra


def test_bytes_that_would_come_back_otherwise_stay_a_url() -> None:
    url = "data:image/png;base64,AAF="
    (run,) = to_runs([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]).runs

    assert run.input == (Ref(url),)


def test_a_refusal_can_be_read_and_is_counted() -> None:
    refusal = "I cannot help with that."
    (run,) = to_runs([{"role": "assistant", "content": None, "refusal": refusal}]).runs

    assert approximate().count(run.output) == approximate().count(refusal)


# --- repairs ---


@pytest.mark.parametrize(
    ("messages", "report", "roles"),
    [
        ([{"role": "tool", "tool_call_id": "x", "content": "?"}], "message 0: the result of 'x'", []),
        (
            [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call("x", 0)]}],
            "message 1: the call 'x' has no result",
            ["user", "assistant", "tool"],
        ),
        (
            [
                {"role": "assistant", "content": None, "tool_calls": [call("x", 0)]},
                {"role": "user", "content": "Well?"},
                {"role": "tool", "tool_call_id": "x", "content": "late"},
            ],
            "message 2: the result of 'x'",
            ["assistant", "tool", "user"],
        ),
    ],
)
def test_repairs_name_the_message_and_nothing_stored_is_lost(
    messages: list[ChatMessage], report: str, roles: list[str]
) -> None:
    imported = to_runs(messages)

    assert any(line.startswith(report) for line in imported.repairs)
    assert [message["role"] for message in restored(imported)] == roles
    stored = [part for run in imported.runs for part in run.steps]
    assert len([part for part in stored if isinstance(part, ToolResult)]) == sum(
        message["role"] == "tool" for message in messages
    )


def test_a_repair_does_not_join_what_was_said_before_a_call_with_the_call() -> None:
    said = {"role": "assistant", "content": "Let me look.", "tool_calls": None}
    orphan = {"role": "tool", "tool_call_id": "x", "content": "?"}
    asked = {"role": "assistant", "content": None, "tool_calls": [call("1", 0)]}
    result = {"role": "tool", "tool_call_id": "1", "content": "a cat"}

    assert restored(to_runs([said, orphan, asked, result])) == [said, asked, result]


def test_what_is_not_unicode_is_replaced_and_reported() -> None:
    messages = [{"role": "user", "content": "half a \ud83d"}, {"role": "system", "content": [{"\ud83d\ude00": 1}]}]

    imported = to_runs(messages)

    after = restored(imported)
    json.dumps(after, ensure_ascii=False).encode()
    assert after == [
        {"role": "user", "content": "half a \ufffd"},
        {"role": "system", "content": [{"\U0001f600": 1}]},
    ]
    assert [report[:10] for report in imported.repairs] == ["message 0:", "message 1:"]


# --- what is given ---


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ({"role": "user"}, "not as a dict"),
        ("Hello", "not as a str"),
        (7, "not as a int"),
        ([{"role": "user"}, "Hello"], "message 1 is a str"),
        ([{"role": "user"}, None], "message 1 is a NoneType"),
        ([{"content": "Hello"}], "message 0 has the role None"),
        ([{"role": "narrator"}], "message 0 has the role 'narrator'"),
        ([{"role": ["user"]}], "message 0 has the role"),
        ([{"role": "user", "content": {"text": "Hi"}}], "message 0 has a dict as content"),
        ([{"role": "assistant", "tool_calls": "look"}], "message 0 has tool_calls"),
        ([{"role": "assistant", "tool_calls": ["look"]}], "message 0 has tool_calls"),
        ([{"role": "user"}, {"role": "user", "x": [{1}]}], r"message 1\.x\[0\] is a set"),
        ([{"role": "user", "x": float("nan")}], r"message 0\.x is nan"),
    ],
)
def test_what_are_no_chat_messages_is_refused_by_its_index(messages: Any, complaint: str) -> None:
    with pytest.raises(FormatError, match=complaint):
        to_runs(messages)


def test_what_is_accepted_can_be_stored_however_deep() -> None:
    def nested(levels: int) -> list[ChatMessage]:
        value: Any = "deep"
        for _ in range(levels):
            value = [value]
        return [
            {"role": "user", "content": "a", "x": value},
            {"role": "assistant", "tool_calls": [call("1", 0) | {"x": value}]},
            {"role": "tool", "tool_call_id": "1", "content": [TEXT | {"x": value}, value]},
            {"role": "system", "x": value},
        ]

    deepest = max(level for level in range(MAX_DEPTH) if _is_accepted(nested(level)))

    assert deepest > MAX_DEPTH - 20
    for levels in range(deepest + 1):
        assert restored(to_runs(nested(levels))) == nested(levels)


def _is_accepted(messages: list[ChatMessage]) -> bool:
    try:
        to_runs(messages)
    except FormatError:
        return False
    return True


def test_the_messages_given_are_left_alone() -> None:
    message = {"role": "user", "content": [TEXT | {"cache_control": {"type": "ephemeral"}}]}
    (run,) = to_runs([message]).runs

    message["content"][0]["cache_control"]["type"] = "changed"  # type: ignore[index]

    assert to_messages([run])[0]["content"][0]["cache_control"] == {"type": "ephemeral"}


def test_models_of_the_openai_package_come_back_as_it_would_send_them() -> None:
    from openai.types.chat import ChatCompletionMessage

    answer = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call("1", 0)]}
    result = {"role": "tool", "tool_call_id": "1", "content": "a cat"}

    imported = to_runs([ChatCompletionMessage.model_validate(answer), result])

    assert restored(imported) == [answer, result]


def test_the_openai_package_is_not_needed() -> None:
    program = "import sys, memkit.adapters.openai; sys.exit('openai' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- through a store ---

LONG: list[ChatMessage] = [
    *({"role": "user", "content": [part, *PARTS]} for part in PARTS),
    *({"role": "assistant", "content": "Hm.", **extra} for extra in ANSWERED),
    *LEGACY,
    {"role": "assistant", "content": None, "tool_calls": [call(str(shape), shape) for shape in range(8)]},
    *({"role": "tool", "tool_call_id": str(shape), "content": PARTS} for shape in range(8)),
]


@pytest.mark.anyio
async def test_a_history_of_all_shapes_goes_through_memory_and_back() -> None:
    driver = InMemoryDriver()
    async with Memory(driver, "all shapes", counter=approximate()) as memory:
        await memory.append(*to_runs(LONG).runs)
        assert memory.messages() == LONG

    async with Memory(driver, "all shapes") as memory:
        assert to_messages([run async for run in memory.history()]) == LONG


@pytest.mark.anyio
async def test_real_conversations_come_back_from_files_as_they_were(shared: Path, tmp_path: Path) -> None:
    real = json.loads((shared / "data" / "tau_bench_gpt-4o-airline.json").read_text())
    conversations: list[list[ChatMessage]] = [item["traj"] for item in real]
    systems: list[tuple[ChatMessage, ...]] = []
    for number, messages in enumerate(conversations):
        imported = to_runs(messages)
        assert imported.repairs == ()
        assert [*imported.system, *to_messages(imported.runs)] == messages
        systems.append(imported.system)
        async with Memory(FileDriver(tmp_path), f"conversation {number}") as memory:
            await memory.append(*imported.runs)

    for number, messages in enumerate(conversations):
        async with Memory(FileDriver(tmp_path), f"conversation {number}") as memory:
            runs = [run async for run in memory.history()]
        assert [*systems[number], *to_messages(runs)] == messages


def test_a_result_that_comes_after_the_next_message_is_put_to_its_call() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    said = {"role": "assistant", "content": "Let me see."}
    result = {"role": "tool", "tool_call_id": "1", "content": "sunny"}
    answer = {"role": "assistant", "content": "It is sunny."}
    question = {"role": "user", "content": "What is the weather?"}

    imported = to_runs([question, asked, said, result, answer])

    assert to_messages(imported.runs) == [question, asked, result, said, answer]
    assert imported.repairs == ("message 3: the result of '1' is put right after its call",)


def test_an_item_with_half_a_character_is_kept() -> None:
    said = {"role": "user", "content": [{"type": "new", "text": "\ud83d"}]}
    assert to_messages(to_runs([said]).runs) == [{"role": "user", "content": [{"type": "new", "text": "\ufffd"}]}]
    part = part_of({"type": "new", "text": "\ud83d"})
    assert isinstance(part, Opaque)
    assert parse_json(part.raw) == {"type": "new", "text": "\ud83d"}

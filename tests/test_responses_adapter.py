"""The Responses adapter: whatever items go in come out equal, or reported as repaired and valid."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseInputItemParam
from typing_extensions import get_type_hints, is_typeddict

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
    new_run,
)
from memkit.adapters import openai, responses
from memkit.adapters.responses import Imported, Item, to_items, to_runs
from memkit.adapters.responses.repairs import Repairs
from memkit.rawjson import MAX_DEPTH
from memkit.steps import INTERRUPTED
from memkit.strategies import forget_steps
from memkit.tokens import approximate
from tests.histories import examples, json_values, runs

PIXEL = base64.b64encode(b"\x89PNG, as good as").decode()
ENTRIES: list[Any] = [
    {"type": "input_text", "text": "seen"},
    {"type": "output_text", "text": "said", "annotations": [], "logprobs": []},
    {"type": "output_text", "text": "said", "annotations": [{"type": "url_citation", "url": "https://a.org"}]},
    {"type": "refusal", "refusal": "I cannot help with that."},
    {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{PIXEL}"},
    {"type": "input_image", "detail": "low", "image_url": "https://example.org/cat.png"},
    {"type": "input_image", "detail": "auto", "file_id": "file-1"},
    {"type": "input_image", "image_url": "data:image/png;base64,no base64"},
    {"type": "input_image", "image_url": None},
    {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="},
    {"type": "input_file", "file_data": "data:image/png;base64,AAAA"},
    {"type": "input_file", "file_id": "file-1"},
    {"type": "input_text"},
    {"type": "input_text", "text": None},
    {"type": "never heard of", "kind": "text", "text": "b"},
    {"stdout": "ok", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}},
    {"type": ["odd"]},
    "bare",
    7,
    None,
]
ANSWER: Item = {
    "type": "message",
    "role": "assistant",
    "id": "msg_1",
    "status": "completed",
    "content": [{"type": "output_text", "text": "said", "annotations": [], "logprobs": []}],
}
OUTPUTS = {
    "function_call": "function_call_output",
    "custom_tool_call": "custom_tool_call_output",
    "shell_call": "shell_call_output",
    "local_shell_call": "local_shell_call_output",
    "computer_call": "computer_call_output",
    "apply_patch_call": "apply_patch_call_output",
    "tool_search_call": "tool_search_output",
    "program": "program_output",
}
"""What answers what, as the API's reference has it."""


# --- one item of every kind that the openai package knows ---


def samples(hint: Any, *, full: bool) -> Iterator[Any]:
    """Yield values of a type: with all optional fields, or without any of them."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        for one in get_args(hint):
            yield from samples(one, full=full)
    elif origin is Literal:
        yield get_args(hint)[0]
    elif is_typeddict(hint):
        hints = get_type_hints(hint)
        names = [name for name in hints if full or name in hint.__required_keys__]
        yield {name: next(samples(hints[name], full=full)) for name in names}
    elif hint in (str, object):
        yield "text"
    elif hint in (int, float, bool, type(None)):
        yield {int: 7, float: 0.5, bool: True, type(None): None}[hint]
    elif origin is dict:
        yield {"key": "value"}
    elif origin is not None and get_args(hint):  # an iterable
        yield list(samples(get_args(hint)[0], full=full))
    else:
        yield []


KINDS: list[Item] = [item for full in (True, False) for item in samples(ResponseInputItemParam, full=full)]


def call(kind: str, call_id: object) -> Item:
    plain = {"type": kind, "call_id": call_id}
    if kind == "function_call":
        return {**plain, "id": "fc_1", "name": "look", "arguments": '{"at": 1}', "status": "completed"}
    if kind == "custom_tool_call":
        return {**plain, "name": "run", "input": "print(1)"}
    field = {"apply_patch_call": "operation", "tool_search_call": "arguments", "program": "code"}.get(
        kind, "action"
    )
    return {**plain, field: {"type": "exec", "deep": [1, 1.0, True, None]}, "status": "completed"}


def output(kind: str, call_id: object, content: object) -> Item:
    return {
        "type": OUTPUTS[kind],
        "call_id": call_id,
        "tools" if kind == "tool_search_call" else "output": content,
    }


# --- histories of every shape ---

STATUS: list[Item] = [
    {},
    {},
    {"type": "message"},
    {"type": "message", "id": "msg_1", "status": "completed"},
    {"phase": "final_answer", "kind": "text", "chat": 1, "responses": [1]},
    {"type": None},
]
CONTENTS = st.one_of(
    st.text("abc ü\ud83d", max_size=4).map(lambda text: text.replace("\ud83d", "u")),
    st.lists(st.sampled_from(ENTRIES), max_size=4),
    st.sampled_from([None, {}, 3]),
)
CALL_IDS = st.sampled_from(["a", "b", ""])


def said_by(*roles: str) -> st.SearchStrategy[list[Item]]:
    return st.builds(
        lambda role, content, more: [{"role": role, "content": content, **more}],
        st.sampled_from(roles),
        CONTENTS,
        st.sampled_from(STATUS),
    )


@st.composite
def tool_rounds(draw: st.DrawFn) -> list[Item]:
    kinds = draw(st.lists(st.sampled_from([*OUTPUTS]), min_size=1, max_size=3))
    pairs = [(kind, draw(CALL_IDS)) for kind in kinds]
    calls = [call(kind, name) for kind, name in pairs]
    if draw(st.booleans()):
        calls.insert(0, {"type": "reasoning", "id": "rs_1", "summary": []})
    contents = st.one_of(CONTENTS, st.sampled_from(ENTRIES))
    return [*calls, *(output(kind, name, draw(contents)) for kind, name in draw(st.permutations(pairs)))]


ALONE = [item for item in KINDS if item.get("type") not in {*OUTPUTS, *OUTPUTS.values(), "reasoning"}]
ODD: list[Item] = [
    {},
    {"type": "new", "kind": "text", "text": "x"},
    {"type": ["odd"]},
    {"role": ["odd"]},
    {"id": "x"},
]
BLOCKS = st.one_of(
    said_by("user"),
    said_by("user", "assistant"),
    said_by("system", "developer", "critic"),
    tool_rounds(),
    st.builds(lambda said: [{"type": "reasoning", "id": "rs_1", "summary": []}, *said], said_by("assistant")),
    st.sampled_from([*ALONE, *ODD]).map(lambda item: [item]),
    st.dictionaries(st.sampled_from(["type", "role", "content", "call_id", "x"]), json_values).map(lambda i: [i]),
)
HISTORIES = st.lists(BLOCKS, max_size=8).map(lambda blocks: [item for block in blocks for item in block])


def through_store(found: tuple[Run, ...]) -> list[Run]:
    codec = JsonCodec()
    return [codec.decode(codec.encode(run)) for run in found]  # type: ignore[misc]


def restored(imported: Imported) -> list[Item]:
    """All items again, after a way through the stored format."""
    return [*imported.system, *to_items(through_store(imported.runs))]


def violations(items: list[Item]) -> list[int]:
    """Where the API refuses a list: outputs of no open call, calls that stay open, reasoning on its own."""
    found: list[int] = []
    open_calls: Counter[tuple[object, object]] = Counter()
    kinds = [item["type"] if isinstance(item.get("type"), str) else None for item in items]
    for index, (kind, item) in enumerate(zip(kinds, items, strict=True)):
        key = str(item.get("call_id") or item.get("id"))
        if kind in OUTPUTS:
            open_calls[OUTPUTS[kind], key] += 1
        elif kind in OUTPUTS.values():
            if open_calls[kind, key]:
                open_calls[kind, key] -= 1
            else:
                found.append(index)
        elif kind == "reasoning":
            rest = [at for at in range(index, len(items)) if kinds[at] != "reasoning"]
            follows = items[rest[0]] if rest else {"role": "user"}
            if follows.get("role") not in (None, "assistant") or kinds[rest[0]] in OUTPUTS.values():
                found.append(index)
    return [*found, len(items)] if open_calls.total() else found


@pytest.mark.parametrize("item", KINDS, ids=lambda item: f"{item.get('type')} {len(item)}")
def test_each_kind_that_the_openai_package_knows_comes_back_equal_wherever_it_stands(item: Item) -> None:
    history = [{"role": "user", "content": "q"}, item, item, {"role": "assistant", "content": "a"}, item]

    found = through_store(to_runs(history).runs)

    assert [one for run in found for one in responses.turns.run_items(run)] == history


@given(HISTORIES, st.data())
@examples(300)
def test_every_history_comes_back_equal_or_is_repaired_where_it_is_broken(
    whole: list[Item], data: st.DataObject
) -> None:
    check_history(whole)
    if whole:
        check_history(data.draw(st.lists(st.sampled_from(whole), max_size=10)))


def check_history(items: list[Item]) -> None:
    imported = to_runs(items)
    after = restored(imported)

    assert bool(imported.repairs) == bool(violations(items) or not is_sendable(items))
    assert violations(after) == []
    if not imported.repairs:
        assert after == items
    elif is_sendable(items):
        for item in after:
            assert item in items or item.get("output") == INTERRUPTED
    for report in imported.repairs:
        assert 0 <= int(report.split()[1].rstrip(":")) < len(items)


def is_sendable(items: list[Item]) -> bool:
    try:
        json.dumps(items, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


# --- what the runs are ---


def test_inputs_steps_and_outputs_are_where_one_would_look_for_them() -> None:
    imported = to_runs(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Who is there?"},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            call("function_call", "1"),
            output("function_call", "1", "a cat"),
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "status": "completed",
                "content": [ENTRIES[1]],
            },
        ]
    )

    (run,) = imported.runs
    assert imported.system == ({"role": "developer", "content": "Be brief."},)
    assert run.input == "Who is there?"
    assert [type(part) for part in run.steps] == [Opaque, ToolCall, ToolResult]
    assert run.steps[2] == ToolResult("1", "a cat")
    assert isinstance(run.output[0], Text)
    assert run.output[0].text == "said"
    assert run.status == "complete"


def test_user_messages_in_a_row_are_one_input() -> None:
    items = [
        {"role": "user", "content": [ENTRIES[4]]},
        *({"role": "user", "content": text} for text in ("a", "b")),
    ]

    (run,) = to_runs(items).runs

    assert [type(part) for part in run.input] == [Blob, Text, Text]
    assert to_items([run]) == items


def test_media_are_parts_that_others_can_read() -> None:
    items = [{"role": "user", "content": [ENTRIES[4], ENTRIES[5], ENTRIES[9]]}]

    (run,) = to_runs(items).runs

    image, link, pdf = run.input
    assert isinstance(image, Blob)
    assert isinstance(link, Ref)
    assert isinstance(pdf, Blob)
    assert (image.media_type, link.url, pdf.data) == ("image/png", "https://example.org/cat.png", b"%PDF")


def test_what_a_shell_was_asked_and_answered_can_be_read() -> None:
    items = [call("shell_call", "s"), output("shell_call", "s", [ENTRIES[15]])]

    (run,) = to_runs(items).runs

    assert isinstance(run.steps[0], ToolCall)
    assert (run.steps[0].id, run.steps[0].name) == ("s", "shell")
    assert json.loads(run.steps[0].arguments) == items[0]["action"]
    assert '"stdout":"ok"' in openai.to_messages([run])[1]["content"][0]["text"]


def test_models_are_taken_as_they_would_be_sent() -> None:
    reply = Response.model_validate(
        {
            "id": "resp_1",
            "created_at": 0,
            "model": "m",
            "object": "response",
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "output": [
                call("function_call", "1"),
                {
                    "type": "message",
                    "role": "assistant",
                    "id": "m",
                    "status": "completed",
                    "content": [ENTRIES[1]],
                },
            ],
        }
    )

    imported = to_runs(reply.output)

    assert responses.turns.run_items(imported.runs[0]) == [
        item.model_dump(mode="json", exclude_unset=True) for item in reply.output
    ]


# --- repairs ---


def test_a_call_without_an_output_gets_one_and_one_that_text_cannot_answer_is_left_out() -> None:
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": []}
    items = [{"role": "user", "content": "q"}, call("function_call", "1"), reasoning, call("computer_call", "2")]

    imported = to_runs(items)

    assert restored(imported) == [
        *items[:2],
        {"type": "function_call_output", "call_id": "1", "output": INTERRUPTED},
    ]
    assert imported.repairs == (
        "item 1: the call '1' has no output, and gets one that says so",
        "item 2: the reasoning is left out, since what it led to does not follow",
        "item 3: the computer_call is left out, since it has no output",
    )


def test_an_answer_whose_reasoning_is_forgotten_is_sent_as_a_text_like_any_other() -> None:
    answer = {
        "type": "message",
        "role": "assistant",
        "id": "msg_1",
        "status": "completed",
        "content": [ENTRIES[1]],
    }
    items = [{"role": "user", "content": "q"}, {"type": "reasoning", "id": "rs_1", "summary": []}, answer]
    (run,) = to_runs(items).runs

    assert to_items([run]) == items
    without_id = {key: value for key, value in ANSWER.items() if key != "id"}
    assert to_items([run.replace(steps=())]) == [items[0], without_id]


def test_calls_of_one_id_are_answered_one_after_the_other() -> None:
    items = [call("function_call", "1"), call("function_call", "1"), output("function_call", "1", "a")]

    assert to_runs(items).repairs == ("item 1: the call '1' has no output, and gets one that says so",)


def test_the_work_grows_with_the_items_and_not_with_their_square() -> None:
    looked_at = 0

    class Counted(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            nonlocal looked_at
            looked_at += 1
            return super().get(key, default)

    names = [f"{number}" for number in range(300)]
    items = [Counted(call("function_call", name)) for name in names]
    items += [Counted(output("function_call", name, "a")) for name in reversed(names)]

    assert Repairs(items).applied() == items
    assert looked_at < 20 * len(items)


def test_text_that_cannot_be_sent_is_stored_as_it_is_and_sent_as_it_can() -> None:
    items = [{"role": "user", "content": "\ud83d"}, {"type": "new", "text": "\ud83d"}]

    imported = to_runs(items)

    assert [item for run in through_store(imported.runs) for item in responses.turns.run_items(run)] == items
    assert restored(imported) == [{"role": "user", "content": "\ufffd"}, {"type": "new", "text": "\ufffd"}]
    assert [report.split(":")[0] for report in imported.repairs] == ["item 0", "item 1"]


# --- bad input ---


@pytest.mark.parametrize("items", ["text", b"bytes", {"role": "user"}, 7, None, [None], ["text"], [[("a", 1)]]])
def test_what_is_no_list_of_items_is_refused(items: Any) -> None:
    with pytest.raises(FormatError, match=r"item 0 is|items come as"):
        to_runs(items)


@pytest.mark.parametrize("value", [float("nan"), b"x", {1: 2}, 2**70, object()])
def test_what_json_cannot_hold_is_refused_and_says_where(value: object) -> None:
    with pytest.raises(FormatError, match=r"item 1\.x"):
        to_runs([{"role": "user", "content": "q"}, {"type": "new", "x": value}])


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "made_of",
    [
        lambda deep: {"type": "new", "x": deep},
        lambda deep: {"role": "user", "content": "q", "x": deep},
        lambda deep: {"role": "user", "content": [{"type": "new", "x": deep}]},
        lambda deep: {"type": "function_call_output", "call_id": "1", "output": [{"x": deep}]},
        lambda deep: {"type": "function_call_output", "call_id": "1", "output": [{**ENTRIES[0], "x": deep}]},
        lambda deep: {"type": "shell_call", "call_id": "1", "action": deep},
    ],
)
def test_how_deep_an_item_may_be_is_known_before_it_is_stored(made_of: Any) -> None:
    for depth in range(1, MAX_DEPTH + 10):
        item = made_of(nested(depth))
        try:
            found = to_runs([item]).runs
        except FormatError as error:
            assert "nested deeper" in str(error)  # noqa: PT017 - the other outcome is tested as well
            assert depth > MAX_DEPTH // 2
            break
        assert [one for run in through_store(found) for one in responses.turns.run_items(run)] == [item]
    else:
        pytest.fail("nothing was too deep")


# --- others ---


@given(st.lists(runs, max_size=3))
@examples(100)
def test_whatever_runs_others_have_written_become_items(found: list[Run]) -> None:
    items = to_items(found)

    assert violations(items) == []
    assert is_sendable(items)
    assert all(isinstance(item.get("type") or item.get("role"), str) for item in items)


JUNK: list[Any] = [None, True, -1, 0, 2, 7, 0.5, "", "x", "\ud83d", [], [[]], ["role"], {}, {"x": [None]}]
KEPT = st.dictionaries(
    st.sampled_from(["n", "set", "unset", "part", "role", "type", "is_after"]),
    st.sampled_from(
        [
            *JUNK,
            *OUTPUTS,
            *OUTPUTS.values(),
            "reasoning",
            "user",
            ["type", "call_id", "content"],
            *({name: junk} for name in ("role", "type", "content", "call_id", "id") for junk in JUNK),
            *({"set": {name: junk}} for name in ("type", "text", "image_url") for junk in JUNK),
        ]
    ),
)
HOSTILE = st.lists(
    st.one_of(
        st.builds(
            Text, text=st.just("t"), extra=(KEPT | st.sampled_from(JUNK)).map(lambda kept: {"responses": kept})
        ),
        st.builds(Json, value=json_values, extra=KEPT.map(lambda kept: {"responses": kept})),
        st.builds(ToolCall, id=st.just("1"), name=st.just("n"), extra=KEPT.map(lambda kept: {"responses": kept})),
        st.builds(
            ToolResult,
            id=st.just("1"),
            content=st.just((Json(1, extra={"responses": {"part": {}}}),)),
            extra=KEPT.map(lambda kept: {"responses": kept}),
        ),
        json_values.map(lambda value: Opaque(json.dumps({"kind": "responses", "item": value}).encode())),
    ),
    max_size=4,
).map(tuple)


@given(HOSTILE, HOSTILE, HOSTILE)
@examples(150)
def test_whatever_a_store_holds_in_the_place_of_what_was_kept_breaks_nothing(
    said: Any, steps: Any, answer: Any
) -> None:
    items = to_items(through_store((Run("r", said, steps, answer),)))

    assert violations(items) == []
    assert is_sendable(items)


def test_runs_of_a_plain_memory_are_items_that_the_api_takes() -> None:
    steps = [Text("Let me look."), ToolCall("1", "look", "{}"), ToolResult("1", "a cat")]
    run = new_run(["Who?", Blob("image/png", b"png")], "A cat.", steps=steps)

    assert to_items([run]) == [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Who?"},
                {"type": "input_image", "image_url": "data:image/png;base64,cG5n"},
            ],
        },
        {"role": "assistant", "content": "Let me look."},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "a cat"},
        {"role": "assistant", "content": "A cat."},
    ]


def test_a_system_message_keeps_its_role_wherever_it_is_read() -> None:
    items = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "again"},
    ]

    assert openai.to_messages(to_runs(items).runs) == items


def test_chat_messages_become_items() -> None:
    messages: list[Item] = [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "https://a.org", "detail": "low"}}],
        },
        {"role": "assistant", "content": None, "tool_calls": [chat_call("1")]},
        {"role": "tool", "tool_call_id": "1", "content": "a cat"},
        {"role": "system", "content": "Hush."},
        {"role": "developer", "content": [{"type": "text", "text": "And smile."}]},
        {"role": "assistant", "content": "A cat."},
    ]

    assert to_items(openai.to_runs(messages).runs) == [
        {"role": "user", "content": [{"type": "input_image", "image_url": "https://a.org", "detail": "low"}]},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "a cat"},
        {"role": "system", "content": "Hush."},
        {"role": "developer", "content": "And smile."},
        {"role": "assistant", "content": "A cat."},
    ]


def chat_call(name: str) -> Item:
    return {"id": name, "type": "function", "function": {"name": "look", "arguments": "{}"}}


def test_what_a_user_says_between_calls_is_said_whoever_has_stored_it() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://a.org/cat.png"}}
    told: list[Item] = [
        {"role": "user", "content": "Hurry.", "other": {"mark": 1}},
        {"role": "user", "content": [{"type": "text", "text": "Look:"}, image], "other": {}},
        {"role": "user", "content": [{"type": "text", "text": "Please."}]},
    ]
    asked, answered = ToolCall("1", "look", "{}"), ToolResult("1", "a cat")
    run = new_run("q", "a", steps=[asked, *(Opaque(json.dumps(one).encode()) for one in told), answered])

    items = to_items(through_store((run,)))

    assert [item for item in items if item.get("role") == "user"] == [
        {"role": "user", "content": "q"},
        {"role": "user", "content": "Hurry."},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Look:"},
                {"type": "input_image", "image_url": "https://a.org/cat.png"},
            ],
        },
        {"role": "user", "content": "Please."},
    ]
    assert violations(items) == []
    assert INTERRUPTED not in [item.get("output") for item in items]


def test_what_only_other_programs_understand_is_left_out() -> None:
    steps = [Opaque(b'{"anthropic":{"block":{"type":"thinking"}}}'), Opaque(b'{"kind":"later"}'), Text("")]

    assert to_items([new_run("q", "a", steps=steps)]) == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]


def test_the_openai_package_is_not_needed() -> None:
    program = "import sys, memkit.adapters.responses; sys.exit('openai' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- through a store ---


@pytest.mark.anyio
async def test_items_of_all_kinds_go_through_memory_and_back() -> None:
    items = [item for item in KINDS if item.get("type") not in {*OUTPUTS, *OUTPUTS.values(), "reasoning"}]
    driver = InMemoryDriver()
    async with Memory(driver, "all kinds", counter=approximate()) as memory:
        imported = to_runs(items)
        await memory.append(*imported.runs)
        assert memory.explain().tokens

    async with Memory(driver, "all kinds", strategy=forget_steps(keep=0)) as memory:
        assert [*imported.system, *to_items([run async for run in memory.history()])] == items
        assert violations(to_items(memory.view().runs)) == []


def as_items(messages: list[Item]) -> list[Item]:
    """Chat messages as a program of the Responses API has them."""
    items: list[Item] = []
    for number, message in enumerate(messages):
        if message["role"] == "tool":
            items.append(output("function_call", message["tool_call_id"], message["content"]))
            continue
        if message["content"] and message["role"] == "assistant":
            said = {"type": "output_text", "text": message["content"], "annotations": [], "logprobs": []}
            more = {"id": f"msg_{number}", "status": "completed", "type": "message"}
            items.append({"role": "assistant", "content": [said], **more})
        elif message["content"]:
            items.append({"role": message["role"], "content": message["content"]})
        items.extend(
            {"type": "function_call", "id": f"fc_{number}", "call_id": asked["id"], **asked["function"]}
            for asked in message.get("tool_calls") or ()
        )
    return items


def test_real_conversations_come_back_as_they_were(shared: Path) -> None:
    for items in real_conversations(shared):
        imported = to_runs(items)

        assert imported.repairs == ()
        assert restored(imported) == items


@pytest.mark.anyio
async def test_a_real_conversation_comes_back_from_files_as_it_was(shared: Path, tmp_path: Path) -> None:
    items = max(real_conversations(shared), key=len)
    imported = to_runs(items)
    async with Memory(FileDriver(tmp_path), "conversation") as memory:
        await memory.append(*imported.runs)

    async with Memory(FileDriver(tmp_path), "conversation") as memory:
        found = [run async for run in memory.history()]
    assert [*imported.system, *to_items(found)] == items


def real_conversations(shared: Path) -> list[list[Item]]:
    real = json.loads((shared / "data" / "tau_bench_gpt-4o-airline.json").read_text())
    return [as_items(item["traj"]) for item in real]

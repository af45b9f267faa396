"""A conversation that one format has stored can be read in each of the others, with nothing lost or made up."""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

import pytest

from memkit import JsonCodec, Run
from memkit.adapters import anthropic, langchain, openai, pydantic_ai, responses
from memkit.steps import INTERRUPTED

PIXEL = base64.b64encode(b"\x89PNG, as good as").decode()
URL = f"data:image/png;base64,{PIXEL}"
ASKED, REMARK, ANNOUNCED, ANSWER = "Who is in the picture?", "Hurry up!", "Let me look.", "A cat and a dog."
ARGUMENTS = {"call-1": {"at": 1}, "call-2": {"at": 2, "what": ["né"]}}
RESULTS = {"call-1": "a cat", "call-2": "a dog"}
FOUND = {"type": "web_search_result", "title": "a", "url": "https://example.org", "encrypted_content": "Eo8=="}


class Said(NamedTuple):
    """What must be found in every format."""

    users: list[str]
    calls: dict[str, Any]
    results: dict[str, str]
    model: list[str]


EXPECTED = Said([ASKED, REMARK], ARGUMENTS, RESULTS, [ANNOUNCED, ANSWER])


def text_of(content: Any) -> str:
    """The text of content that is text or a list of texts, media and what only one format knows."""
    items = [{"text": content}] if isinstance(content, str) else content or []
    return "".join(item if isinstance(item, str) else item.get("text") or "" for item in items)


# --- chat messages ---

CHAT: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "text", "text": ASKED}, {"type": "image_url", "image_url": {"url": URL}}],
    },
    {
        "role": "assistant",
        "content": ANNOUNCED,
        "reasoning_content": "Hm.",
        "annotations": [{"type": "url_citation", "url_citation": {"url": "https://example.org"}}],
        "tool_calls": [
            {"id": name, "type": "function", "function": {"name": "look", "arguments": json.dumps(arguments)}}
            for name, arguments in ARGUMENTS.items()
        ],
    },
    *({"role": "tool", "tool_call_id": name, "content": text} for name, text in RESULTS.items()),
    {"role": "user", "content": REMARK},
    {"role": "assistant", "content": ANSWER, "reasoning_content": "Hm."},
]


def said_in_chat(messages: list[Any]) -> Said:
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    return Said(
        [text_of(message["content"]) for message in messages if message["role"] == "user"],
        {call["id"]: json.loads(call["function"]["arguments"]) for call in calls},
        {message["tool_call_id"]: message["content"] for message in messages if message["role"] == "tool"},
        [text_of(message["content"]) for message in messages if message["role"] == "assistant"],
    )


# --- items of the Responses API ---


def message_item(text: str, name: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "id": name, "role": "assistant", "status": "completed", "content": content}


def call_item(name: str) -> dict[str, Any]:
    arguments = json.dumps(ARGUMENTS[name])
    return {"type": "function_call", "id": f"fc_{name}", "call_id": name, "name": "look", "arguments": arguments}


ITEMS: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": ASKED},
            {"type": "input_image", "image_url": URL, "detail": "auto"},
        ],
    },
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"},
    {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "cats"},
    },
    message_item(ANNOUNCED, "msg_1"),
    call_item("call-1"),
    {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "gAAA"},
    call_item("call-2"),
    *({"type": "function_call_output", "call_id": name, "output": text} for name, text in RESULTS.items()),
    {"role": "user", "content": REMARK},
    {"type": "reasoning", "id": "rs_3", "summary": [], "encrypted_content": "gAAA"},
    message_item(ANSWER, "msg_2"),
]


def said_in_items(items: list[Any]) -> Said:
    calls = [item for item in items if item.get("type") == "function_call"]
    outputs = [item for item in items if item.get("type") == "function_call_output"]
    return Said(
        [text_of(item["content"]) for item in items if item.get("role") == "user"],
        {call["call_id"]: json.loads(call["arguments"]) for call in calls},
        {output["call_id"]: output["output"] for output in outputs},
        [text_of(item["content"]) for item in items if item.get("role") == "assistant"],
    )


# --- messages of Anthropic ---

THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "EqQB"}
MESSAGES: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": ASKED},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
        ],
    },
    {
        "role": "assistant",
        "content": [
            THOUGHT,
            {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "cats"}},
            {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [FOUND]},
            {"type": "text", "text": ANNOUNCED},
            *(
                {"type": "tool_use", "id": name, "name": "look", "input": arguments}
                for name, arguments in ARGUMENTS.items()
            ),
        ],
    },
    {
        "role": "user",
        "content": [
            *({"type": "tool_result", "tool_use_id": name, "content": text} for name, text in RESULTS.items()),
            {"type": "text", "text": REMARK, "cache_control": {"type": "ephemeral"}},
        ],
    },
    {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": ANSWER}]},
]


def said_in_messages(messages: list[Any]) -> Said:
    blocks: dict[str, list[Any]] = {"user": [], "assistant": []}
    texts: dict[str, list[str]] = {"user": [], "assistant": []}
    for message in messages:
        content = message["content"]
        found = [{"type": "text", "text": content}] if isinstance(content, str) else content
        blocks[message["role"]] += found
        texts[message["role"]] += [text for text in [text_of(found)] if text]
    return Said(
        texts["user"],
        {block["id"]: block["input"] for block in blocks["assistant"] if block["type"] == "tool_use"},
        {block["tool_use_id"]: block["content"] for block in blocks["user"] if block["type"] == "tool_result"},
        texts["assistant"],
    )


# --- messages of pydantic-ai ---

WHEN = "2026-01-02T03:04:05Z"
THINKING = {"part_kind": "thinking", "content": "Hm.", "signature": "EqQB", "provider_name": "anthropic"}
SEARCH = {"tool_name": "web_search", "tool_call_id": "native"}
PICTURE = {"kind": "binary", "media_type": "image/png", "data": PIXEL, "identifier": "1a2b3c"}
REQUESTS: list[Any] = [
    {
        "kind": "request",
        "instructions": "Be brief.",
        "parts": [{"part_kind": "user-prompt", "content": [ASKED, PICTURE], "timestamp": WHEN}],
    },
    {
        "kind": "response",
        "timestamp": WHEN,
        "parts": [
            THINKING,
            {"part_kind": "builtin-tool-call", "args": {"query": "cats"}, **SEARCH},
            {"part_kind": "builtin-tool-return", "content": [FOUND], "timestamp": WHEN, **SEARCH},
            {"part_kind": "text", "content": ANNOUNCED},
            *(
                {"part_kind": "tool-call", "tool_name": "look", "tool_call_id": name, "args": arguments}
                for name, arguments in ARGUMENTS.items()
            ),
        ],
    },
    {
        "kind": "request",
        "parts": [
            *(
                {"part_kind": "tool-return", "tool_name": "look", "tool_call_id": name, "content": text}
                for name, text in RESULTS.items()
            ),
            {"part_kind": "user-prompt", "content": [REMARK, PICTURE], "timestamp": WHEN},
        ],
    },
    {
        "kind": "response",
        "timestamp": WHEN,
        "parts": [THINKING, {"part_kind": "text", "content": ANSWER}],
    },
]


def said_in_requests(messages: list[Any]) -> Said:
    def parts(kind: str) -> list[Any]:
        return [part for message in messages for part in message["parts"] if part["part_kind"] == kind]

    calls = {part["tool_call_id"]: part["args"] for part in parts("tool-call")}
    return Said(
        [text_of(part["content"]) for part in parts("user-prompt")],
        {name: json.loads(args) if isinstance(args, str) else args for name, args in calls.items()},
        {part["tool_call_id"]: part["content"] for part in parts("tool-return")},
        [part["content"] for part in parts("text")],
    )


# --- messages of LangChain ---

REASONED = {"type": "reasoning", "reasoning": "Hm."}
DICTS: list[Any] = [
    {
        "type": "human",
        "data": {
            "type": "human",
            "content": [{"type": "text", "text": ASKED}, {"type": "image_url", "image_url": {"url": URL}}],
        },
    },
    {
        "type": "ai",
        "data": {
            "type": "ai",
            "content": [
                REASONED,
                {"type": "server_tool_call", "id": "s", "name": "web_search", "args": {"query": "cats"}},
                {"type": "server_tool_result", "tool_call_id": "s", "output": [FOUND]},
                {"type": "text", "text": ANNOUNCED},
            ],
            "tool_calls": [
                {"type": "tool_call", "id": name, "name": "look", "args": arguments}
                for name, arguments in ARGUMENTS.items()
            ],
        },
    },
    *(
        {"type": "tool", "data": {"type": "tool", "name": "look", "tool_call_id": name, "content": text}}
        for name, text in RESULTS.items()
    ),
    {"type": "human", "data": {"type": "human", "content": REMARK}},
    {"type": "ai", "data": {"type": "ai", "content": [REASONED, {"type": "text", "text": ANSWER}]}},
]


def said_in_dicts(dicts: list[Any]) -> Said:
    data = [message["data"] for message in dicts]
    calls = [call for message in data for call in message.get("tool_calls") or ()]
    return Said(
        [text_of(message["content"]) for message in data if message["type"] == "human"],
        {call["id"]: call["args"] for call in calls},
        {message["tool_call_id"]: message["content"] for message in data if message["type"] == "tool"},
        [text_of(message["content"]) for message in data if message["type"] == "ai"],
    )


# --- each through each ---

FORMATS: dict[str, Any] = {
    "chat": (CHAT, lambda given: openai.to_runs(given).runs, openai.to_messages, said_in_chat),
    "responses": (ITEMS, lambda given: responses.to_runs(given).runs, responses.to_items, said_in_items),
    "anthropic": (MESSAGES, lambda given: anthropic.to_runs(given).runs, anthropic.to_messages, said_in_messages),
    "pydantic-ai": (REQUESTS, pydantic_ai.to_runs, pydantic_ai.to_messages, said_in_requests),
    "langchain": (DICTS, lambda given: langchain.to_runs(given).runs, langchain.to_dicts, said_in_dicts),
}


def stored(name: str) -> list[Run]:
    """The conversation as the format has stored it."""
    given, to_runs, _, _ = FORMATS[name]
    codec = JsonCodec()
    return [codec.decode(codec.encode(run)) for run in to_runs(given)]  # type: ignore[misc]


@pytest.mark.parametrize("reader", FORMATS)
@pytest.mark.parametrize("writer", FORMATS)
def test_what_one_format_has_stored_can_be_read_in_another(writer: str, reader: str) -> None:
    _, _, to_messages, said_in = FORMATS[reader]

    messages = to_messages(stored(writer))

    assert said_in(messages) == EXPECTED
    written = json.dumps(messages)
    assert PIXEL in written
    for junk in (INTERRUPTED, "of an unknown kind"):
        assert junk not in written


SERVICES = ["chat", "responses", "anthropic"]


@pytest.mark.parametrize(
    ("writer", "reader"), [(writer, reader) for writer in FORMATS for reader in SERVICES if writer != reader]
)
def test_what_is_sent_to_a_service_has_no_marks_of_a_store(writer: str, reader: str) -> None:
    written = json.dumps(FORMATS[reader][2](stored(writer)))

    for mark in (
        '"pydantic_ai"',
        '"anthropic"',
        '"langchain"',
        '"responses"',
        '"kind"',
        "cache_control",
        "identifier",
    ):
        assert mark not in written

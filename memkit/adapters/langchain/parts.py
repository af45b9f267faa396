"""The fields of LangChain messages as parts of runs, and back. Needs no LangChain.

The plain form of parts is that of the chat message that `memkit.messages` makes of them, as LangChain would write
it. In what a message differs from that is kept in the `extra` of one of its parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from memkit.adapters.langchain.blocks import (
    FORMAT,
    call_item,
    call_of,
    keep,
    kept,
    parts_of_blocks,
    text_of_blocks,
    with_blocks,
)
from memkit.adapters.langchain.written import Written
from memkit.content import Content, Json, Known, Opaque, Part, Text, ToolCall, ToolResult, parts_of, text_of
from memkit.items import as_str
from memkit.messages import ChatMessage, content_message, step_message
from memkit.rawjson import difference, parse_json, restored
from memkit.run import Run, new_run
from memkit.steps import grouped, is_message


def run_of(messages: Sequence[Written], after: Run | None = None) -> Run:
    """Return the messages of one exchange as a run; with `after`, what comes after all that this run has."""
    said: Content = ()
    answer: Content = ()
    steps: list[Part] = [] if after is None else list(after.steps)
    before = len(steps)
    rest = list(messages)
    if after is None and rest[0].kind in {"human", "system"}:
        said = _said("user", rest.pop(0))
    if rest and rest[-1].is_answer:
        answer = _said("assistant", rest.pop())
    for message in rest:
        steps.extend(_steps(message, joins=_would_join(steps)))
    # Complete, even where an answer is missing: a partial run would be left out of prompts.
    return msgspec.structs.replace(new_run(()), input=said, steps=tuple(steps[before:]), output=answer)


def content_of(message: Written) -> Content:
    """Return what a message says, wherever in a run it stands: as many tokens as it has there."""
    if message.kind == "human" or message.is_answer:
        return _said("user" if message.kind == "human" else "assistant", message)
    return _steps(message, joins=False)


def _said(role: str, message: Written) -> Content:
    """Return an input or an output: text, the blocks of a list, or a whole message."""
    parts = parts_of_blocks(message.blocks) if message.kind in {"human", "ai"} else ()
    if role == "assistant" and any(isinstance(part, Opaque | Json) for part in parts):
        parts = ()  # reasoning and the like: other models would refuse it
    if not parts:
        text = _text(message)
        if _rendered(role, text) == message:
            return text
        # Marked, because a lone text without the mark is rendered as a list.
        parts = (Text(text, extra={"chat": {} if message.kind == "human" else _mark(message)}),)
    elif _rendered(role, parts) == message:
        return parts
    for index, part in enumerate(parts):
        if not isinstance(part, Opaque):
            return (*parts[:index], _kept_by(part, _rendered(role, parts), message), *parts[index + 1 :])
    return (_whole(message),)


def _steps(message: Written, *, joins: bool) -> tuple[Part, ...]:
    """Return what one message becomes among steps; `joins` tells that its calls need a text before them."""
    parts: tuple[Known, ...]
    if message.kind == "ai":
        calls = tuple(map(call_of, _calls(message)))
        text = _text(message)
        parts = (Text(text), *calls) if text or joins or not calls else calls
    elif message.kind == "tool":
        parts = (_result(message),)
    elif message.kind in {"human", "system", "chat", "function"}:
        parts = (Text(_text(message), extra={"chat": _mark(message)}),)
    else:
        return (_whole(message),)
    plain = _rendered_step(parts)
    if plain == message:
        return parts
    return (_kept_by(parts[0], plain, message), *parts[1:])


def _would_join(steps: Sequence[Part]) -> bool:
    """Tell whether calls would become a part of the message before, after a repair at the latest."""
    spoken = next((part for part in reversed(steps) if not isinstance(part, ToolResult)), None)
    if spoken is None or isinstance(spoken, Opaque):
        return False
    return not isinstance(spoken, ToolCall) or steps[-1] is spoken


def _kept_by(part: Known, plain: Written, message: Written) -> Known:
    more: dict[str, Any] = {"message": difference(plain.data, message.data)}
    return keep(part, **more, **({"class": message.name} if message.name else {}))


def _whole(message: Written) -> Opaque:
    return Opaque(json.dumps({FORMAT: message.as_dict()}).encode())  # ASCII, whatever lone surrogates there are


def _text(message: Written) -> str:
    content = message.data["content"]
    return content if isinstance(content, str) else text_of_blocks(message.blocks)


def _mark(message: Written) -> dict[str, Any]:
    """Return what makes a chat message of the same role of the text of a message."""
    if message.kind == "human":
        return {"set": {"role": "user"}}
    if message.kind == "system":
        return {"set": {"role": "developer" if message.more.get(_ROLE) == "developer" else "system"}}
    if message.kind == "chat":
        return {"set": {"role": as_str(message.data.get("role"))}}
    if message.kind == "function":
        return {"set": {"role": "function", "name": as_str(message.data.get("name"))}}
    return {}


def _calls(message: Written) -> Iterator[Mapping[str, Any]]:
    for name in ("tool_calls", "invalid_tool_calls"):
        found = message.data.get(name)
        for call in cast("list[Any]", found) if isinstance(found, list) else ():
            if isinstance(call, dict):
                yield cast("dict[str, Any]", call)


def _result(message: Written) -> ToolResult:
    data = message.data
    said: Content = parts_of_blocks(message.blocks) or _text(message)
    is_error = data.get("status") == "error"
    return ToolResult(as_str(data.get("tool_call_id")), said, as_str(data.get("name")), is_error)


# --- parts as messages ---

_ROLE: Final = "__openai_role__"
"""Where LangChain keeps that a system message is one of the developer's."""

_KIND_OF_ROLE: Final = {
    "user": "human",
    "assistant": "ai",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "function",
}


def written_of(runs: Iterable[Run]) -> Iterator[Written]:
    """Yield runs as messages."""
    for run in runs:
        if run.input != ():
            yield _rendered("user", run.input)
        for group in grouped(spoken(run.steps)):
            yield _rendered_step(group)
        if run.output != ():
            yield _rendered("assistant", run.output)


def spoken(steps: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return the steps that LangChain can tell: not what only another API understands, as its reasoning."""
    return tuple(
        part for part in steps if not isinstance(part, Opaque) or is_message(part) or _as_whole(part) is not None
    )


def _rendered(role: str, content: Content) -> Written:
    """Return an input or an output as a message; content must not be `()`."""
    parts = parts_of(content)
    if len(parts) == 1 and (whole := _as_whole(parts[0])) is not None:
        return whole
    data = _fields_of(content_message(role, content), role)
    data["content"] = with_blocks(data["content"], content)
    return _as_written(data, parts)


def _rendered_step(group: tuple[Part, ...]) -> Written:
    """Return steps that make one message (see `grouped`) as that message."""
    first = group[0]
    if (whole := _as_whole(first)) is not None:
        return whole
    data = _fields_of(step_message(group), "tool" if isinstance(first, ToolResult) else "assistant")
    calls = [call_item(part) for part in group if isinstance(part, ToolCall)]
    if calls:
        is_valid = [call.get("type") == "tool_call" for call in calls]
        data["tool_calls"] = [call for call, valid in zip(calls, is_valid, strict=True) if valid]
        data["invalid_tool_calls"] = [call for call, valid in zip(calls, is_valid, strict=True) if not valid]
    if isinstance(first, ToolResult):
        data["content"] = with_blocks(data["content"], first.content)
        data["status"] = "error" if first.error else "success"
    return _as_written(data, group)


def _as_whole(part: Part) -> Written | None:
    found = parse_json(part.raw).get(FORMAT) if isinstance(part, Opaque) else None
    if not isinstance(found, dict):
        return None
    whole = cast("dict[str, Any]", found)
    if not isinstance(data := whole.get("data"), dict):
        return None
    return Written(cast("dict[str, Any]", data) | {"type": whole.get("type")}, as_str(whole.get("class")))


def _as_written(data: dict[str, Any], parts: Sequence[Part]) -> Written:
    """Put back what the plain form of a message would lose."""
    for part in parts:
        more = kept(part, "message")
        if more is not None and not isinstance(part, Opaque):
            return Written(restored(data, more), as_str(part.extra[FORMAT].get("class")))
    return Written(data)


def _fields_of(message: ChatMessage, speaker: str) -> dict[str, Any]:
    """Return the fields of the LangChain message that says what a chat message says; its role may be anything."""
    rest = {name: value for name, value in message.items() if value is not None}
    role = as_str(rest.pop("role", "")) or speaker
    content, name = rest.pop("content", ""), rest.pop("name", None)
    rest.pop("tool_calls", None)  # made of the parts, which have more
    if role == "user":  # what another format notes beside what somebody said is not for a model
        rest = {name: value for name, value in rest.items() if not isinstance(value, dict)}
    data: dict[str, Any] = {
        "content": content if isinstance(content, str | list) else text_of((Json(content),)),
        "additional_kwargs": rest,
        "response_metadata": {},
        "type": _KIND_OF_ROLE.get(role, "chat"),
        "name": as_str(name) or None,
        "id": None,
    }
    match data["type"]:
        case "ai":
            data |= {"tool_calls": [], "invalid_tool_calls": [], "usage_metadata": None}
        case "tool":
            data |= {"tool_call_id": as_str(rest.pop("tool_call_id", "")), "artifact": None, "status": "success"}
        case "function":
            data["name"] = as_str(name)
        case "chat":
            data["role"] = role
        case _:
            pass
    if role == "developer":
        rest[_ROLE] = role
    return data

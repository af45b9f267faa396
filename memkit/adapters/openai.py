"""Chat-completion messages as runs, and back: every history comes back equal, or is reported as repaired.

What parts say naturally is said in parts, so that it can be counted, pruned and read. The rest of a message
(other keys, `null` where a text could be, an image's `detail`) is kept in `extra`, where `memkit.messages`
finds it; tokens are not counted there. A message that is nothing like a part becomes an `Opaque` as a whole:
system messages in the middle, and what only old or audio models write. Works without the openai package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from time import time
from typing import Any, Final, cast

import msgspec

from memkit.content import (
    Content,
    Known,
    Opaque,
    Part,
    Text,
    ToolCall,
    ToolResult,
    parts_of,
    text_of,
)
from memkit.errors import FormatError
from memkit.items import Given, as_dict, as_str, call_of, listed, part_of, with_extra
from memkit.messages import ChatMessage, cleaned, content_message, run_messages, step_message
from memkit.rawjson import difference
from memkit.run import Run, new_id
from memkit.steps import repairs


class Imported(msgspec.Struct, frozen=True):
    """What chat messages became.

    `system` are the system and developer messages at the beginning, which belong to the program rather than
    to the memory. `repairs` tells, message by message, what `to_messages` leaves out or puts in.
    """

    system: tuple[ChatMessage, ...]
    runs: tuple[Run, ...]
    repairs: tuple[str, ...] = ()


def to_runs(messages: Iterable[Given]) -> Imported:
    """Return chat messages as runs: dicts, or models as the openai package has them.

    A user message begins a run, and so does a system message after an answer. The answer, an assistant message
    without calls that ends a run, is its output; what lies between are its steps. Without repairs,
    `[*imported.system, *to_messages(imported.runs)]` equals `messages`, models as they would be sent. Calls
    without results and results without calls are stored as they are, and repaired in every prompt.

    Raises:
        FormatError: not a list of chat messages; it names the index of the culprit.
    """
    given = [_checked(index, message) for index, message in enumerate(listed(messages, "chat messages"))]
    clean = list(map(cleaned, given))
    found = [
        (index, "text that is not valid Unicode is replaced by U+FFFD")
        for index, (before, after) in enumerate(zip(given, clean, strict=True))
        if before is not after
    ]
    talk = next((i for i, message in enumerate(clean) if message["role"] not in _SYSTEM), len(clean))
    runs: list[Run] = []
    for start, stop in _exchanges(clean, talk):
        run, sources = _run(clean, start, stop)
        runs.append(run)
        found.extend((sources[at], what) for at, what in repairs(run.steps))
    reports = tuple(f"message {index}: {what}" for index, what in sorted(found))
    return Imported(tuple(clean[:talk]), tuple(runs), reports)


def to_messages(runs: Iterable[Run]) -> list[ChatMessage]:
    """Return runs as chat messages, as in a prompt, without a system message."""
    return [message for run in runs for message in run_messages(run)]


# --- what is given ---

_SYSTEM: Final = ("system", "developer")
_ROLES: Final = (*_SYSTEM, "user", "assistant", "tool", "function")

_DEPTH: Final = 12
"""How deep what is in a message may come to lie in a stored run, as the codec counts: that of a tool's result."""


def _checked(index: int, given: object) -> ChatMessage:
    """Return a copy of a message that is JSON and has the form of one."""
    where = f"message {index}"
    message: ChatMessage = as_dict(given, where, _DEPTH)
    if message.get("role") not in _ROLES:
        raise FormatError(f"{where} has the role {message.get('role')!r}; there are {', '.join(_ROLES)}")
    if not isinstance(content := message.get("content"), str | list | None):
        raise FormatError(f"{where} has a {type(content).__name__} as content; it is text, a list or null")
    calls: Any = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in cast("Sequence[Any]", calls)):
        raise FormatError(f"{where} has tool_calls that are not a list of dicts")
    return message


def _exchanges(messages: Sequence[ChatMessage], start: int) -> Iterator[tuple[int, int]]:
    """Yield where the runs begin and end."""
    for index in range(start + 1, len(messages)):
        role, before = messages[index]["role"], messages[index - 1]
        if role == "user" or (role in _SYSTEM and _is_answer(before)):
            yield start, index
            start = index
    if start < len(messages):
        yield start, len(messages)


def _is_answer(message: ChatMessage) -> bool:
    is_call = message.get("tool_calls") or message.get("function_call")
    return message["role"] == "assistant" and not is_call


def _run(messages: Sequence[ChatMessage], start: int, stop: int) -> tuple[Run, list[int]]:
    """Return the messages `[start, stop)` as a run, and for each of its steps the message that it comes from."""
    said: Content = ()
    answer: Content = ()
    if messages[start]["role"] in {"user", *_SYSTEM}:
        said = _content(messages[start])
        start += 1
    if start < stop and _is_answer(messages[stop - 1]):
        stop -= 1
        answer = _content(messages[stop])
    steps: list[Part] = []
    sources: list[int] = []
    for index in range(start, stop):
        parts = _steps(messages[index], joins=_would_join(steps))
        steps.extend(parts)
        sources.extend([index] * len(parts))
    # Complete, even where an answer is missing: a partial run would be left out of prompts.
    return Run(new_id(), said, tuple(steps), answer, created_at=time()), sources


def _would_join(steps: Sequence[Part]) -> bool:
    """Tell whether calls would become a part of the message before, after a repair at the latest."""
    spoken = next((part for part in reversed(steps) if not isinstance(part, ToolResult)), None)
    return isinstance(spoken, Text) or (isinstance(spoken, ToolCall) and steps[-1] is spoken)


# --- messages ---


def _content(message: ChatMessage) -> Content:
    """Return an input or an output: text, the items of a list, or a whole message."""
    if _has_no_parts(message):
        return (_whole(message),)
    role, items = message["role"], _items(message)
    content: Content = tuple(map(part_of, items)) if items else _text(message)
    if content_message(role, content) == message:
        return content
    first, *rest = parts_of(content)
    if isinstance(first, Opaque):
        return (_whole(message),)
    # Marked first, because with the mark a lone text is rendered as text and not as a list.
    marked = with_extra(first, "chat", {})
    return (with_extra(first, "chat", difference(content_message(role, (marked, *rest)), message)), *rest)


def _steps(message: ChatMessage, *, joins: bool) -> tuple[Part, ...]:
    """Return what one message becomes among steps; `joins` tells that its calls need a text before them."""
    if message["role"] == "tool":
        parts: tuple[Known, ...] = (_result(message),)
    elif _has_no_parts(message):
        return (_whole(message),)
    else:
        calls = tuple(call_of(item) for item in message.get("tool_calls") or ())
        text = _text(message)
        has_text = text or message.get("content") is not None or not calls or joins
        parts = (Text(text), *calls) if has_text else calls
    plain = step_message(parts)
    if plain == message:
        return parts
    return (with_extra(parts[0], "chat", difference(plain, message)), *parts[1:])


def _has_no_parts(message: ChatMessage) -> bool:
    """Tell whether a message must stay whole. One with calls never must: calls and results come in pairs."""
    if message["role"] not in {"user", "assistant"}:
        return True
    return not message.get("tool_calls") and bool(message.get("function_call") or message.get("audio"))


def _whole(message: ChatMessage) -> Part:
    if "kind" not in message:
        return Opaque(msgspec.json.encode(message))
    # As an Opaque it could be taken for a part of memkit's own.
    text = _text(message)
    plain = content_message("", (Text(text, extra={"chat": {}}),))
    return Text(text, extra={"chat": difference(plain, message)})


def _text(message: ChatMessage) -> str:
    """Return what can be read of a message; of a refusal, why."""
    items = _items(message)
    if items is not None:
        return text_of(tuple(map(part_of, items)))
    return as_str(message.get("refusal") if message.get("content") is None else message["content"])


def _items(message: ChatMessage) -> Sequence[Any] | None:
    """Return the content of a message if it is a list."""
    content = message.get("content")
    return cast("Sequence[Any]", content) if isinstance(content, list) else None


def _result(message: ChatMessage) -> ToolResult:
    items = _items(message)
    content = _text(message) if items is None else tuple(map(part_of, items))
    return ToolResult(as_str(message.get("tool_call_id")), content, as_str(message.get("name")))

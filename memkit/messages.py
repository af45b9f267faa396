"""A view as chat messages, in the shape that chat-completion endpoints have made common.

Every list made here is one that a provider accepts: each call has its result, each result its call, and
all text is valid UTF-8. What parts and text cannot express of this shape is kept in a part's `extra`, under
"chat" for a message, "call" and "part" for an item of one, or is an `Opaque` that holds a whole message; see
`memkit.adapters.openai`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, cast

import msgspec

from memkit.content import (
    Blob,
    Content,
    Opaque,
    Part,
    Ref,
    Text,
    ToolCall,
    ToolResult,
    clean,
    text_of,
)
from memkit.conversation import SUMMARY_FRAME, Summary, View
from memkit.rawjson import merged, parse_json, restored, to_json
from memkit.run import Run
from memkit.steps import grouped, repaired, spoken

ChatMessage: TypeAlias = dict[str, Any]


def message_content(message: ChatMessage) -> Content:
    """Return a message as content that counts as many tokens.

    Raises:
        FormatError: it is not JSON.
    """
    return (Opaque(msgspec.json.encode(sendable(to_json(message, "message")))),)


SummaryAs: TypeAlias = Literal["system", "developer", "user", "griptape"]
"""How a summary enters a prompt: as a labelled block in the name of a role, or as griptape writes it."""


def chat_messages(
    view: View, *, system: Content = (), input: Content = (), summary_as: SummaryAs = "system"
) -> list[ChatMessage]:
    """Return the prompt: `system`, the summary, the runs of the view, and the new `input`."""
    messages: list[ChatMessage] = []
    if system != ():
        messages.append(content_message("system", system))
    messages.extend(view_messages(view, summary_as))
    if input != ():
        messages.append(content_message("user", input))
    return messages


def view_messages(view: View, summary_as: SummaryAs = "system") -> list[ChatMessage]:
    """Return what a view remembers as messages: the summary, then the runs."""
    messages = [] if view.summary is None else [summary_message(view.summary, summary_as)]
    for run in view.runs:
        messages.extend(run_messages(run))
    return messages


def inserted(
    messages: Sequence[ChatMessage], memory: Sequence[ChatMessage], index: int | None
) -> list[ChatMessage]:
    """Return `messages` with those of a memory put in at `index`; None is after the leading system messages."""
    if index is None:
        is_system = [message.get("role") in {"system", "developer"} for message in messages]
        index = (*is_system, False).index(False)
    return [*messages[:index], *memory, *messages[index:]]


def summary_message(summary: Summary, summary_as: SummaryAs = "system") -> ChatMessage:
    """Return a summary as a message.

    As `"griptape"` it is a user message that nothing delimits, so text in it can pass for what the user says.
    """
    if summary_as == "griptape":
        return {"role": "user", "content": f"The conversation so far, in short: {clean(text_of(summary.content))}"}
    return {"role": summary_as, "content": summary_block(summary)}


def run_messages(run: Run) -> list[ChatMessage]:
    """Return a run as chat messages; none, if it is a partial run that nobody answered."""
    if is_skipped(run):
        return []
    messages: list[ChatMessage] = []
    if run.input != ():
        messages.append(content_message("user", run.input))
    if run.steps:
        messages.extend(step_message(group) for group in grouped(repaired(spoken(run.steps))))
    if run.output != ():
        messages.append(content_message("assistant", run.output))
    return messages


def is_skipped(run: Run) -> bool:
    """Tell whether a run is left out of prompts: two inputs in a row would confuse most models."""
    return run.status == "partial" and run.output == ()


_MARK: Final = re.compile("<(?=/?summary)", re.IGNORECASE)


def summary_block(summary: Summary) -> str:
    """Return a summary as it enters a prompt: labelled, and delimited by marks that its text cannot contain."""
    text = _MARK.sub("< ", clean(text_of(summary.content)))
    return SUMMARY_FRAME.format(text)


def content_message(role: str, content: Content) -> ChatMessage:
    """Return what is said as a message of `role`; content must not be `()`."""
    if isinstance(content, str):
        return {"role": role, "content": clean(content)}
    first = content[0]
    if len(content) == 1:
        if (whole := _whole_message(first)) is not None:
            return whole
        if isinstance(first, Text) and "chat" in first.extra:
            return _as_written({"role": role, "content": clean(first.text)}, first)
    return _as_written({"role": role, "content": [content_item(part) for part in content]}, first)


def step_message(group: tuple[Part, ...]) -> ChatMessage:
    """Return steps that make one message (see `grouped`) as that message."""
    first = group[0]
    if isinstance(first, ToolResult):
        result_of = clean(first.id)
        message: ChatMessage = {"role": "tool", "tool_call_id": result_of, "content": _result_content(first)}
        if first.name:
            message["name"] = clean(first.name)
        return _as_written(message, first)
    if (whole := _whole_message(first)) is not None:
        return whole
    calls = [part for part in group if isinstance(part, ToolCall)]
    said = None if isinstance(first, ToolCall) else clean(text_of((first,)))
    message = {"role": "assistant", "content": said}
    if calls:
        message["tool_calls"] = [call_item(call) for call in calls]
    return _as_written(message, first)


def _result_content(result: ToolResult) -> str | list[dict[str, Any]]:
    if isinstance(result.content, str):
        return clean(result.content)
    return [content_item(part) for part in result.content] if result.content else ""


def call_item(call: ToolCall) -> dict[str, Any]:
    """Return a call as an item of `tool_calls`."""
    function = {"name": clean(call.name), "arguments": clean(call.arguments)}
    plain = {"id": clean(call.id), "type": "function", "function": function}
    return merged(plain, _kept(call, "call"))


def content_item(part: Part) -> dict[str, Any]:
    """Return a part as an item of a message's `content`."""
    return merged(_plain_item(part), _kept(part, "part"))


def _plain_item(part: Part) -> dict[str, Any]:
    match part:
        case Blob() if part.media_type.startswith("image/"):
            return {"type": "image_url", "image_url": {"url": data_url(part)}}
        case Blob() if part.media_type in AUDIO:
            audio = {"data": base64.b64encode(part.data).decode(), "format": AUDIO[part.media_type]}
            return {"type": "input_audio", "input_audio": audio}
        case Blob():
            return {"type": "file", "file": {"file_data": data_url(part)}}
        case Ref() if not part.media_type or part.media_type.startswith("image/"):
            return {"type": "image_url", "image_url": {"url": clean(part.url)}}
        case Opaque() if isinstance((value := parse_json(part.raw)).get("type"), str):
            return cast("dict[str, Any]", sendable(value))
        case _:
            return {"type": "text", "text": clean(text_of((part,)))}


AUDIO: Final = {"audio/wav": "wav", "audio/mpeg": "mp3"}
"""Media types of audio that the chat shape has a name for."""


def data_url(blob: Blob) -> str:
    """Return bytes as the URL that holds them."""
    return f"data:{clean(blob.media_type)};base64,{base64.b64encode(blob.data).decode()}"


def _whole_message(part: Part) -> ChatMessage | None:
    if not isinstance(part, Opaque):
        return None
    message: ChatMessage = sendable(parse_json(part.raw))
    return message if isinstance(message.get("role"), str) else None


def _as_written(message: ChatMessage, part: Part) -> ChatMessage:
    """Put back what the plain form of a message would lose: other keys, other values, absent keys."""
    return restored(message, _kept(part, "chat"))


def _kept(part: Part, name: str) -> dict[str, Any]:
    """Return what `extra` keeps of a part's written form, if anything: a copy, since messages may be changed."""
    kept = None if isinstance(part, Opaque) else part.extra.get(name)
    return cast("dict[str, Any]", sendable(kept)) if isinstance(kept, Mapping) else {}


def cleaned(message: ChatMessage) -> ChatMessage:
    """Return a message as it is if all its text is valid UTF-8, or else a copy that can be sent."""
    try:
        msgspec.json.encode(message)
    except UnicodeEncodeError:
        return cast("ChatMessage", sendable(message))
    return message


def sendable(value: Any) -> Any:
    """Return a copy of a JSON value in which all text is valid UTF-8."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        members = cast("Mapping[str, Any]", value).items()
        return {clean(key): sendable(item) for key, item in members}
    if isinstance(value, list | tuple):
        return [sendable(item) for item in cast("Iterable[Any]", value)]
    return value

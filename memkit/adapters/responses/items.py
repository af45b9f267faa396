"""One item of the Responses API as parts, and back: what parts cannot say is kept beside them.

An item takes one part, or as many as its content has entries. Its first part keeps in `extra["responses"]` how
the item differs from the plain form of its parts, and each part how the entry that it stands for does:

    n           how many parts the item takes; without it, one
    role        whose message it is, if not that of whoever speaks in this place of a run
    type        which kind of call or output it is, if not that of a function
    is_after    `"reasoning"`, if the item may not be sent as it was without that before it
    set, unset  see `memkit.rawjson.difference`
    part        the same for an entry of a list of content; without it, content is text

An item that is nothing like parts is an `Opaque`, inside an envelope that tells whose it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

from memkit.content import Blob, Content, Json, Known, Opaque, Part, Ref, Text, ToolCall, ToolResult, text_of
from memkit.items import as_str, part_of, with_extra
from memkit.messages import content_item
from memkit.rawjson import difference, dump_json, parse_json, restored

Item: TypeAlias = dict[str, Any]

FORMAT: Final = "responses"
ROLES: Final = ("user", "assistant", "system", "developer")

# The field that says what is asked for, and for outputs what came out of it.
_CALLS: Final = {
    "function_call": "arguments",
    "custom_tool_call": "input",
    "tool_search_call": "arguments",
    "local_shell_call": "action",
    "shell_call": "action",
    "computer_call": "action",
    "apply_patch_call": "operation",
}
_OUTPUTS: Final = {
    "function_call_output": "output",
    "custom_tool_call_output": "output",
    "tool_search_output": "tools",
    "local_shell_call_output": "output",
    "shell_call_output": "output",
    "computer_call_output": "output",
    "apply_patch_call_output": "output",
}
_NAMED_CALLS: Final = ("function_call", "custom_tool_call")
"""Calls of tools that have names, with arguments that are text. Those of other tools are objects."""


def role_of(item: Item) -> str | None:
    """Return the role of an item that is a message; None if it is none."""
    role = item.get("role")
    return cast("str", role) if item.get("type") in (None, "message") and role in ROLES else None


def parts_of_item(item: Item, speaker: str) -> tuple[Part, ...]:
    """Return an item as parts; `speaker` is the role of those messages that need not say theirs."""
    kind = item.get("type")
    if (role := role_of(item)) and _has_parts(item.get("content")):
        parts, mark = _message(item, role)
        if role != speaker:
            mark["role"] = role
    elif isinstance(kind, str) and kind in _CALLS:
        parts, mark = (_call(item, kind),), {} if kind == "function_call" else {"type": kind}
    elif isinstance(kind, str) and kind in _OUTPUTS:
        parts, mark = (_output(item, kind),), {} if kind == "function_call_output" else {"type": kind}
    else:
        return (Opaque(dump_json({"kind": FORMAT, "item": item})),)
    parts = _marked(parts, mark)
    parts = _marked(parts, {**mark, **difference(_written(parts, speaker), item)})
    return _for_chat(parts, mark)


def items_of(parts: Sequence[Part], speaker: str, *, joined: bool) -> Iterator[tuple[int, Item | None]]:
    """Yield the items of parts, each with the number of parts that it takes; None is no item.

    Parts that were no item are a message each, or, if `joined`, one message together. What other programs
    keep as `Opaque`, and texts without a word, are no items.
    """
    at = 0
    while at < len(parts):
        group = parts[at : at + _size(parts, at, joined=joined)]
        at += len(group)
        yield len(group), _written(group, speaker) if joined or not _is_silent(group[0]) else None


def kept(part: Part) -> Mapping[str, Any]:
    """Return what a part keeps of an item."""
    value = None if isinstance(part, Opaque) else part.extra.get(FORMAT)
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


# --- items to parts ---


def _has_parts(content: Any) -> bool:
    return isinstance(content, str) or (isinstance(content, list) and content != [])


def _message(item: Item, role: str) -> tuple[tuple[Known, ...], dict[str, Any]]:
    content: Any = item["content"]
    if isinstance(content, str):
        return (Text(content),), {}
    parts = _entries(content, _text_type(role))
    return parts, {"n": len(parts)} if len(parts) > 1 else {}


def _call(item: Item, kind: str) -> ToolCall:
    asked = item.get(_CALLS[kind], "")
    arguments = asked if isinstance(asked, str) else dump_json(asked).decode()
    name = as_str(item.get("name")) if kind in _NAMED_CALLS else kind.removesuffix("_call")
    return ToolCall(_call_id(item), name, arguments)


def _output(item: Item, kind: str) -> ToolResult:
    came: Any = item.get(_OUTPUTS[kind], "")
    if isinstance(came, list):
        content: Content = _entries(cast("list[Any]", came), "input_text")
    elif isinstance(came, dict):
        content = _entries([came], "input_text")
    else:
        content = as_str(came)
    return ToolResult(_call_id(item), content)


def _call_id(item: Item) -> str:
    return as_str(item.get("call_id")) or as_str(item.get("id"))


def _entries(entries: Sequence[Any], text_type: str) -> tuple[Known, ...]:
    """Return a list of content as parts. What has no part of its own is readable as `Json`."""
    parts: list[Known] = []
    for entry in entries:
        part: Known = Json(entry)
        more: dict[str, Any] = {}
        if isinstance(entry, dict) and (found := _entry(cast("dict[str, Any]", entry))) is not None:
            part, more = found, difference(_plain_entry(found, text_type), cast("dict[str, Any]", entry))
        parts.append(with_extra(part, FORMAT, {"part": more}))
    return tuple(parts)


def _entry(entry: dict[str, Any]) -> Known | None:
    match entry:
        case {"type": "input_text" | "output_text", "text": str(text)}:
            return Text(text)
        case {"type": "refusal", "refusal": str(text)}:
            return Text(text)
        case {"type": "input_image" | "computer_screenshot", "image_url": str(url)}:
            found = part_of({"type": "image_url", "image_url": {"url": url}})
        case {"type": "input_file", "file_data": str(url)}:
            found = part_of({"type": "file", "file": {"file_data": url}})
        case _:
            return None
    return found if isinstance(found, Blob | Ref) else None


def _marked(parts: tuple[Known, ...], mark: Mapping[str, Any]) -> tuple[Known, ...]:
    """Note on the first part what tells of the item as a whole."""
    if not mark:
        return parts
    return (with_extra(parts[0], FORMAT, {**kept(parts[0]), **mark}), *parts[1:])


def _for_chat(parts: tuple[Known, ...], mark: Mapping[str, Any]) -> tuple[Known, ...]:
    """Tell `memkit.messages` whose message it is, and that a lone text is no list of one."""
    first = parts[0]
    if "role" in mark:
        first = with_extra(first, "chat", {"set": {"role": mark["role"]}})
    elif len(parts) == 1 and isinstance(first, Text) and first.extra:
        first = with_extra(first, "chat", {})
    return (first, *parts[1:])


# --- parts to items ---


def _size(parts: Sequence[Part], at: int, *, joined: bool) -> int:
    """Return how many parts the item takes that begins here."""
    number = kept(parts[at]).get("n", 1)
    if isinstance(number, int) and 1 < number <= len(parts) - at:
        return number
    size = 1
    if joined and _is_free(parts[at]):
        while at + size < len(parts) and _is_free(parts[at + size]):
            size += 1
    return size


def _is_free(part: Part) -> bool:
    """Tell whether a part may be joined with others: it was no item, and says something."""
    if isinstance(part, Opaque):
        return bool(parse_json(part.raw).get("kind") != FORMAT)
    return FORMAT not in part.extra and not isinstance(part, ToolCall | ToolResult)


def _is_silent(part: Part) -> bool:
    """Tell whether a step is no item: foreign, or the empty text that chat messages put before calls."""
    if isinstance(part, Opaque):
        return _whole(part) is None
    return isinstance(part, Text) and not part.text and FORMAT not in part.extra


def _written(group: Sequence[Part], speaker: str) -> Item:
    """Return parts that make one item as it was written."""
    first = group[0]
    mark = kept(first)
    if isinstance(first, ToolCall):
        return restored(_plain_call(first, as_str(mark.get("type"))), mark)
    if isinstance(first, ToolResult):
        return restored(_plain_output(first, as_str(mark.get("type"))), mark)
    if isinstance(first, Opaque) and len(group) == 1 and (whole := _whole(first)) is not None:
        return whole
    return restored(_plain_message(group, mark, speaker), mark)


def _plain_call(call: ToolCall, kind: str) -> Item:
    if kind not in _CALLS:
        kind = "function_call"
    if kind in _NAMED_CALLS:
        return {"type": kind, "call_id": call.id, "name": call.name, _CALLS[kind]: call.arguments}
    try:
        asked = parse_json(call.arguments.encode())
    except ValueError:
        asked = call.arguments
    return {"type": kind, "call_id": call.id, _CALLS[kind]: asked}


def _plain_output(result: ToolResult, kind: str) -> Item:
    if kind not in _OUTPUTS:
        kind = "function_call_output"
    if isinstance(result.content, str):
        came: Any = result.content
    elif kind == "computer_call_output" and len(result.content) == 1:
        came = _written_entry(result.content[0], "input_text")
    else:
        came = [_written_entry(part, "input_text") for part in result.content] if result.content else ""
    return {"type": kind, "call_id": result.id, _OUTPUTS[kind]: came}


def _plain_message(group: Sequence[Part], mark: Mapping[str, Any], speaker: str) -> Item:
    role = as_str(mark.get("role")) or speaker
    is_list = "part" in mark or (role == "user" and (len(group) > 1 or not isinstance(group[0], Text)))
    if not is_list:
        # Models may not say pictures, so what was no item is text.
        return {"role": role, "content": text_of(tuple(group))}
    entries = [_written_entry(part, _text_type(role)) for part in group]
    if role == "assistant":
        return {"type": "message", "role": role, "status": "completed", "content": entries}
    return {"role": role, "content": entries}


def _written_entry(part: Part, text_type: str) -> Any:
    more = kept(part).get("part")
    if not isinstance(more, Mapping):
        return _plain_entry(part, text_type)
    if isinstance(part, Json):
        return part.value
    return restored(_plain_entry(part, text_type), cast("Mapping[str, Any]", more))


def _plain_entry(part: Part, text_type: str) -> dict[str, Any]:
    """Return a part as an entry of a list of content, by way of the form that chat messages have for it."""
    entry = content_item(part)
    match entry:
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            others = {key: value for key, value in entry["image_url"].items() if key != "url"}
            return {"type": "input_image", "image_url": url, **others}
        case {"type": "file", "file": {}}:
            return {"type": "input_file", **entry["file"]}
        case _:
            plain = {"type": text_type, "text": text_of((part,))}
            return {**plain, "annotations": []} if text_type == "output_text" else plain


def _text_type(role: str) -> str:
    return "output_text" if role == "assistant" else "input_text"


def _whole(part: Opaque) -> Item | None:
    """Return the item that a part holds as a whole, or the message; None if it is of another program."""
    value: Any = parse_json(part.raw)
    if value.get("kind") == FORMAT and isinstance(value.get("item"), dict):
        return cast("Item", value["item"])
    role, content = value.get("role"), value.get("content")
    if role not in ROLES or not _has_parts(content):
        return None
    if isinstance(content, str):
        return {"role": role, "content": content}
    return _plain_message(tuple(map(part_of, content)), {}, role)

"""The content blocks and tool calls of LangChain messages, as parts, and back.

What chat completions have too is said as `memkit.items` says it, so that every reader of chat messages gets it
in its own words. What only LangChain has of a block or a call is kept in the part's `extra`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Final, TypeVar, cast

from memkit.content import Blob, Content, Json, Known, Opaque, Part, Ref, Text, ToolCall, clean, text_of
from memkit.items import as_str, blob_of, part_of, with_extra
from memkit.rawjson import difference, load_text, restored

K = TypeVar("K", bound=Known)

FORMAT: Final = "langchain"
"""The key of a part's `extra`, and of an `Opaque`, under which lies what only LangChain has."""

_MEDIA: Final = ("image", "audio", "video", "file")


def parts_of_blocks(blocks: Sequence[Any]) -> tuple[Part, ...]:
    """Return the content blocks of a message as parts, one for one."""
    return tuple(map(_part, blocks))


def with_blocks(rendered: Any, content: Content) -> Any:
    """Return rendered `content` with the blocks of LangChain's own in the place of those of chat messages."""
    if isinstance(content, str) or not isinstance(rendered, list):
        return rendered
    items = cast("list[Any]", rendered)
    if len(items) != len(content):
        return items
    return [_block(part, item) for part, item in zip(content, items, strict=True)]


def text_of_blocks(blocks: Sequence[Any]) -> str:
    """Return the text of content blocks, as LangChain has it."""
    texts = (as_str(_fields(item).get("text")) if _type(item) == "text" else as_str(item) for item in blocks)
    return "".join(texts)


def call_of(call: Mapping[str, Any]) -> ToolCall:
    """Return a tool call, valid or invalid, as a part."""
    args: Any = call.get("args")
    text = text_of((Json(args),)) if isinstance(args, Mapping) else as_str(args)
    made = ToolCall(as_str(call.get("id")), as_str(call.get("name")), text)
    more = difference(call_item(made), call)
    return keep(made, call=more) if more else made


def call_item(call: ToolCall) -> dict[str, Any]:
    """Return a call as an item of `tool_calls`, or of `invalid_tool_calls` if its `type` says so."""
    plain: dict[str, Any] = {"name": clean(call.name), "args": {}, "id": clean(call.id), "type": "tool_call"}
    try:
        plain["args"] = load_text(call.arguments) if call.arguments else {}
    except ValueError:
        plain["args"] = None
    if not isinstance(plain["args"], dict):
        plain |= {"args": clean(call.arguments), "error": None, "type": "invalid_tool_call"}
    return restored(plain, kept(call, "call") or {})


def keep(part: K, **more: Any) -> K:
    """Return a part that keeps more of what only LangChain has."""
    return with_extra(part, FORMAT, {**part.extra.get(FORMAT, {}), **more})


def kept(part: Part, name: str) -> dict[str, Any] | None:
    """Return a copy of what a part keeps under a name: a mapping, or None, whatever is stored."""
    own = None if isinstance(part, Opaque) else part.extra.get(FORMAT)
    found = cast("Mapping[str, Any]", own).get(name) if isinstance(own, Mapping) else None
    return deepcopy(cast("dict[str, Any]", found)) if isinstance(found, dict) else None


def _part(item: Any) -> Part:
    part = _own_part(_fields(item))
    if part is None:
        return part_of(item)
    plain = _own_block(part)
    if isinstance(part, Text) and plain == item:
        return part
    return keep(part, block=difference(plain, item))


def _own_part(item: Mapping[str, Any]) -> Text | Blob | Ref | None:
    """Return a text or media block of LangChain as a part; None if it is neither, or written some other way."""
    match item:
        case {"type": "text", "text": str(text)}:
            return Text(text)
        case {"type": str(kind), "base64": str(data), "mime_type": str(media_type)} if kind in _MEDIA:
            return blob_of(media_type, data)
        case {"type": str(kind), "url": str(url)} if kind in _MEDIA:
            return Ref(url, as_str(item.get("mime_type")) or ("" if kind == "image" else kind))
        case _:
            return None


def _own_block(part: Text | Blob | Ref) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    kind = part.media_type.partition("/")[0] or "image"
    plain = {"type": kind if kind in _MEDIA else "file", "mime_type": part.media_type}
    if isinstance(part, Blob):
        return plain | {"base64": base64.b64encode(part.data).decode()}
    return plain | {"url": part.url}


def _block(part: Part, rendered: Any) -> Any:
    more = kept(part, "block")
    if more is None or not isinstance(part, Text | Blob | Ref):
        return rendered
    return restored(_own_block(part), more)


def _fields(item: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", item) if isinstance(item, Mapping) else {}


def _type(item: Any) -> Any:
    return _fields(item).get("type")

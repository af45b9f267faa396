"""What is in a message of pydantic-ai: its parts, and the items of their content."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from memkit.adapters.blocks import (
    Block,
    Message,
    Opened,
    Side,
    mark_of,
    marked,
    opaque,
)
from memkit.content import (
    Blob,
    Content,
    Json,
    Known,
    Opaque,
    Part,
    Ref,
    Text,
    ToolCall,
    ToolResult,
    text_of,
)
from memkit.items import blob_of
from memkit.items import part_of as part_of_chat
from memkit.messages import content_item
from memkit.rawjson import difference, load_text, parse_json, restored, to_json

NAME: Final = "pydantic_ai"
"""Under which `extra` keeps what parts do not say."""

# Members that say nothing when they are null. Stored differences are relative to these tables: never change them.
_REQUEST: Final[dict[str, Any]] = dict.fromkeys(
    ("timestamp", "instructions", "run_id", "conversation_id", "metadata")
)
_RESPONSE: Final[dict[str, Any]] = dict.fromkeys(
    (
        "provider_name", "provider_url", "canonical_system", "provider_details", "provider_response_id",
        "finish_reason", "metadata", "workspace_ref", "history_digest", "failed_attempts",
    )
)  # fmt: skip
_PROVIDED: Final = {"id": None, "provider_name": None, "provider_details": None}
_CALL: Final = {"tool_kind": None, **_PROVIDED, "part_kind": "tool-call"}
_RETURN: Final[dict[str, Any]] = {
    "tool_kind": None,
    "metadata": None,
    "retry": None,
    "part_kind": "tool-return",
    "content_file_digests": [],
}


class _PydanticAI:
    name = NAME

    def open(self, message: Message) -> Opened:
        side: Side = "user" if message["kind"] == "request" else "model"
        plain = self.close(Opened(side, message["parts"], {}))
        return Opened(side, message["parts"], difference(plain, message))

    def close(self, opened: Opened) -> Message:
        rest: dict[str, Any] = _REQUEST if opened.side == "user" else _RESPONSE
        kind = "request" if opened.side == "user" else "response"
        return restored({"parts": list(opened.blocks), **rest, "kind": kind, "state": "complete"}, opened.about)

    def whole(self, message: Message) -> Opaque:
        return opaque(self, message, whole=True)

    def told(self, block: Any) -> str | list[Any]:
        match block:
            case {"part_kind": "user-prompt", "content": str(text)}:
                return text
            case {"part_kind": "user-prompt", "content": list()}:
                parts = [part_of_item(item) for item in block["content"]]
                return [content_item(part) for part in parts if not isinstance(part, Opaque)]
            case _:
                return []

    def natural(self, block: Block, side: Side) -> Known | None:
        match block:
            case {"part_kind": "text", "content": str(text)} if side == "model":
                return Text(text)
            case {"part_kind": "tool-call", "tool_name": str(name), "tool_call_id": str(call)} if side == "model":
                return _call(call, name, block.get("args"))
            case {"part_kind": "file", "content": {"kind": "binary"}} if side == "model":
                part = part_of_item(block["content"])
                return part if isinstance(part, Blob) else None
            case {"part_kind": "tool-return", "tool_name": str(name), "tool_call_id": str(call)} if side == "user":
                return _result(call, name, block)
            case {"part_kind": "retry-prompt", "tool_name": str(name), "tool_call_id": str(call)} if (
                side == "user"
            ):
                return ToolResult(call, _result_content(block.get("content")), name, error=True)
            case _:
                return None

    def plain(self, part: Known, side: Side) -> Block:
        match part:
            case ToolCall():
                arguments = _arguments(part.arguments) if mark_of(self, part).get("parsed") else part.arguments
                return {"tool_name": part.name, "args": arguments or None, "tool_call_id": part.id, **_CALL}
            case ToolResult():
                outcome = {"outcome": "failed" if part.error else "success"}
                content = _result_value(part)
                return {"tool_name": part.name, "content": content, "tool_call_id": part.id, **_RETURN, **outcome}
            case Blob() if side == "model":
                return {"content": item_of(part), **_PROVIDED, "part_kind": "file"}
            case _:
                return {"content": text_of((part,)), **_PROVIDED, "citations": None, "part_kind": "text"}

    def foreign(self, value: Mapping[str, Any]) -> tuple[Side | None, Sequence[Block]]:
        role, content = value.get("role"), value.get("content")
        if not isinstance(content, str | list):
            return "model", []
        parts = (
            [part_of_chat(item) for item in cast("list[Any]", content)]
            if isinstance(content, list)
            else [Text(content)]
        )
        known = tuple(part for part in parts if not isinstance(part, Opaque))
        if role in ("system", "developer"):
            return "user", [{"content": text_of(known), "part_kind": "system-prompt"}]
        if role == "user":
            said = content if isinstance(content, str) else [item_of(part) for part in known]
            return "user", [{"content": said, "part_kind": "user-prompt"}] if known else []
        return "model", [self.plain(Text(text_of(known)), "model")] if role == "assistant" and text_of(
            known
        ) else []


DIALECT: Final = _PydanticAI()


def _call(call: str, name: str, arguments: Any) -> ToolCall | None:
    if isinstance(arguments, dict):
        return ToolCall(call, name, text_of((Json(arguments),)), extra={NAME: {"parsed": True}})
    return ToolCall(call, name, arguments or "") if isinstance(arguments, str | None) else None


def _arguments(text: str) -> Any:
    try:
        return to_json(load_text(text), "arguments")
    except ValueError:
        return text


def _result(call: str, name: str, block: Block) -> ToolResult:
    content, error = block.get("content"), block.get("outcome", "success") != "success"
    if _is_media(content):
        return ToolResult(call, (part_of_item(content),), name, error, extra={NAME: {"lone": True}})
    return ToolResult(call, _result_content(content), name, error)


def _result_content(content: Any) -> Content:
    if isinstance(content, str | None):
        return () if content is None else content
    if isinstance(content, list) and any(map(_is_media, cast("list[Any]", content))):
        return tuple(map(_result_item, cast("list[Any]", content)))
    return (Json(content),)


def _result_item(item: Any) -> Part:
    return part_of_item(item) if isinstance(item, str) or _is_media(item) else Json(item)


def _result_value(result: ToolResult) -> Any:
    """Return what a tool has answered: data as it is, text as text, and a list if media are in it."""
    if isinstance(result.content, str):
        return result.content
    if not result.content:
        return None
    items = [part.value if isinstance(part, Json) else item_of(part) for part in result.content]
    first = result.content[0]
    is_lone = len(items) == 1 and (isinstance(first, Json) or mark_of(DIALECT, result).get("lone"))
    if is_lone:
        return items[0]
    return items if any(isinstance(item, dict) for item in items) else text_of(result.content)


# --- pieces of content ---

# A tuple, since what is looked for in it may be a list.
_MEDIA: Final = ("image-url", "audio-url", "video-url", "document-url", "binary")


def _is_media(item: Any) -> bool:
    return isinstance(item, dict) and cast("Block", item).get("kind") in _MEDIA


def part_of_item(item: Any) -> Part:
    """Return an item of a user prompt or of what a tool has returned as a part."""
    if isinstance(item, str):
        return Text(item)
    match item:
        case {"kind": "text-content" | "structured-content", "content": str(text)}:
            return Text(text, extra={NAME: {"item": difference({"content": text}, item)}})
        case {"kind": "binary", "media_type": str(media_type)}:
            found: Blob | Ref | None = blob_of(media_type, item.get("data"), b"-_")
        case {"kind": "image-url" | "audio-url" | "video-url" | "document-url", "url": str(url)}:
            media_type = item.get("media_type")
            found = Ref(url, media_type if isinstance(media_type, str) else "")
        case _:
            found = None
    if found is None:
        return opaque(DIALECT, item)
    more = difference(_plain_item(found), item)
    return marked(DIALECT, found, item=more) if more else found


def item_of(part: Part) -> Any:
    """Return a part as an item of a user prompt or of what a tool has returned."""
    kept = mark_of(DIALECT, part).get("item")
    if isinstance(part, Opaque):
        is_own = NAME in parse_json(part.raw)
        return mark_of(DIALECT, part).get("block", "") if is_own else text_of((part,))
    if isinstance(part, Blob | Ref):
        return restored(_plain_item(part), mapping(kept))
    text = text_of((part,))
    return text if kept is None else restored({"content": text}, mapping(kept))


def _plain_item(part: Blob | Ref) -> Block:
    if isinstance(part, Blob):
        data = base64.urlsafe_b64encode(part.data).decode()
        return {"data": data, "media_type": part.media_type, "vendor_metadata": None, "kind": "binary"}
    kind = part.media_type.partition("/")[0] or "image"
    kind = f"{kind if kind in {'image', 'audio', 'video'} else 'document'}-url"
    plain = {"url": part.url, "force_download": False, "vendor_metadata": None, "kind": kind}
    return {**plain, "media_type": part.media_type} if part.media_type else plain


def mapping(value: object) -> dict[str, Any]:
    """Return what should be a dict, of a mark that may be anything that was stored."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def blocks_in(value: object) -> list[Block]:
    """Return what should be a list of blocks, of a mark or a message that may be anything that was stored."""
    return cast("list[Block]", value) if isinstance(value, list) else []

"""What is in a message of Anthropic: its blocks, as parts and back."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from memkit.adapters.blocks import Block, Message, Opened, Side, blocks_of, opaque, part_of
from memkit.content import Blob, Content, Json, Known, Opaque, Part, Ref, Text, ToolCall, ToolResult, text_of
from memkit.items import blob_of
from memkit.items import part_of as part_of_chat
from memkit.messages import content_item
from memkit.rawjson import difference, load_text, restored, to_json

ROLES: Final = ("user", "assistant", "system")


class _Anthropic:
    name = "anthropic"

    def open(self, message: Message) -> Opened:
        side: Side = "user" if message["role"] == "user" else "model"
        content = message["content"]
        blocks = [] if message["role"] == "system" else list_of(content)
        about = difference({"role": message["role"], "content": content}, message)
        return Opened(side, blocks, {**about, "str": True} if isinstance(content, str) else about)

    def close(self, opened: Opened) -> Message:
        content: Any = list(opened.blocks)
        if opened.about.get("str") and len(content) == 1 and _is_plain_text(content[0]):
            content = content[0]["text"]
        role = "user" if opened.side == "user" else "assistant"
        return restored({"role": role, "content": content}, opened.about)

    def whole(self, message: Message) -> Opaque:
        # As other messages that stay whole, so that a prompt of another kind can have it too.
        if message.keys() == {"role", "content"}:
            return Opaque(msgspec.json.encode(message))
        return opaque(self, message, whole=True)

    def told(self, block: Any) -> list[Any]:
        part = self.natural(cast("Block", block), "user") if isinstance(block, dict) else None
        return [content_item(part)] if isinstance(part, Text | Blob | Ref) else []

    def natural(self, block: Block, side: Side) -> Known | None:
        match block:
            case {"type": "text", "text": str(text)}:
                return Text(text)
            case {"type": "tool_use", "id": str(name), "name": str(tool), "input": dict()} if side == "model":
                return ToolCall(name, tool, text_of((Json(block["input"]),)))
            case {"type": "tool_result", "tool_use_id": str(name)} if side == "user":
                return ToolResult(name, _result_content(block), error=block.get("is_error") is True)
            case {"type": "image" | "document", "source": {"type": str()}} if side == "user":
                return _media(block["type"], block["source"])
            case _:
                return None

    def plain(self, part: Known, side: Side) -> Block:
        match part:
            case ToolCall():
                return {"type": "tool_use", "id": part.id, "name": part.name, "input": _arguments(part.arguments)}
            case ToolResult():
                return _result_block(part)
            case Blob() if side == "user" and _is_media(part.media_type):
                data = base64.b64encode(part.data).decode()
                source = {"type": "base64", "media_type": part.media_type, "data": data}
                return {"type": _type_of(part.media_type), "source": source}
            case Ref() if side == "user" and _is_media(part.media_type or "image/"):
                return {"type": _type_of(part.media_type), "source": {"type": "url", "url": part.url}}
            case _:
                return text_block(text_of((part,)))

    def foreign(self, value: Mapping[str, Any]) -> tuple[Side | None, Sequence[Block]]:
        role, content = value.get("role"), value.get("content")
        if not isinstance(content, str | list):
            return "model", []
        if role == "user" and content:
            return "user", _told_blocks(list_of(content))
        role = "system" if role == "developer" else role
        return (None, [{"role": role, "content": content}]) if role in ROLES else ("model", [])


DIALECT: Final = _Anthropic()
_PDF: Final = "application/pdf"


def _told_blocks(items: Sequence[Any]) -> list[Block]:
    """Return the content of a chat message as blocks, but for what only another service knows."""
    parts = [part_of_chat(item) for item in items]
    return [DIALECT.plain(part, "user") for part in parts if not isinstance(part, Opaque)]


def _media(kind: str, source: Mapping[str, Any]) -> Blob | Ref | None:
    match source:
        case {"type": "base64", "media_type": str(media_type)}:
            return blob_of(media_type, source.get("data")) if _type_of(media_type) == kind else None
        case {"type": "url", "url": str(url)}:
            return Ref(url, _PDF if kind == "document" else "")
        case _:
            return None


def _type_of(media_type: str) -> str:
    return "document" if media_type == _PDF else "image"


def _is_media(media_type: str) -> bool:
    return media_type == _PDF or media_type.startswith("image/")


def _arguments(text: str) -> dict[str, Any]:
    """Return the arguments of a call as the object that they must be here."""
    try:
        value: Any = to_json(load_text(text or "{}"), "arguments")
    except ValueError:
        value = None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {"arguments": text}


def _result_content(block: Block) -> Content:
    content = block.get("content")
    if not isinstance(content, list):
        return content if isinstance(content, str) else ()
    return tuple(part_of(DIALECT, item, "user") for item in cast("list[Any]", content))


def _result_block(result: ToolResult) -> Block:
    block: Block = {"type": "tool_result", "tool_use_id": result.id}
    if isinstance(result.content, str):
        block["content"] = result.content
    elif result.content:
        block["content"] = [_result_item(part) for part in result.content]
    return {**block, "is_error": True} if result.error else block


def _result_item(part: Part) -> Block:
    side, blocks = blocks_of(DIALECT, part, "user")
    return blocks[0] if side is not None and blocks else text_block(text_of((part,)))


def list_of(content: Any) -> list[Block]:
    """Return the content of a message as a list of blocks."""
    if isinstance(content, str):
        return [text_block(content)]
    return cast("list[Block]", content) if isinstance(content, list) else []


def text_block(text: str) -> Block:
    """Return text as a block."""
    return {"type": "text", "text": text}


def _is_plain_text(block: Any) -> bool:
    return isinstance(block, dict) and set(cast("Block", block)) == {"type", "text"}

"""The items of chat messages, calls and pieces of content, as parts: the inverse of `memkit.messages`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import msgspec

from memkit.content import Blob, Json, Known, Opaque, Part, Ref, Text, ToolCall, text_of
from memkit.errors import FormatError
from memkit.messages import AUDIO, call_item, content_item
from memkit.rawjson import dump_json, to_json

K = TypeVar("K", bound=Known)


class Dumpable(Protocol):
    """A model of pydantic, such as those that the openai package returns."""

    def model_dump(self, *, mode: str, exclude_unset: bool) -> dict[str, Any]:
        """Return the model as a dict."""
        ...


Given: TypeAlias = Mapping[str, Any] | Dumpable


def listed(given: Iterable[Given], what: str) -> list[Given]:
    """Return what is given as a list.

    Raises:
        FormatError: it is none, or text or one object; `what` names what was to be given.
    """
    kind = cast("type", type(given))
    if issubclass(kind, str | bytes | Mapping) or not issubclass(kind, Iterable):
        raise FormatError(f"{what} come as a list of dicts, not as a {kind.__name__}")
    return list(given)


def as_dict(given: object, where: str, depth: int) -> dict[str, Any]:
    """Return a copy of an object that is JSON, be it given as a dict or as a model.

    Raises:
        FormatError: it is neither, or not JSON; `where` names it.
    """
    if not isinstance(given, Mapping):
        if not hasattr(given, "model_dump"):
            raise FormatError(f"{where} is a {type(given).__name__}, neither a dict nor a model")
        given = cast("Dumpable", given).model_dump(mode="json", exclude_unset=True)
    return cast("dict[str, Any]", to_json(given, where, depth))


def call_of(item: Mapping[str, Any]) -> ToolCall:
    """Return an item of `tool_calls`. What is more than a merge away from its plain form, the message keeps."""
    kind = "custom" if "custom" in item else "function"
    asked: Mapping[str, Any] = item[kind] if isinstance(item.get(kind), dict) else {}
    arguments: Any = asked.get("input" if kind == "custom" else "arguments", "")
    text = arguments if isinstance(arguments, str) else text_of((Json(arguments),))
    call = ToolCall(as_str(item.get("id")), as_str(asked.get("name")), text)
    more = _more(call_item(call), item)
    return with_extra(call, "call", more) if more else call


def part_of(item: Any) -> Part:
    """Return an item of a list of content. Where even an `Opaque` cannot render it, it is only readable."""
    if isinstance(item, str):
        return Text(item)
    if not isinstance(item, dict):
        return Json(item)
    fields = cast("dict[str, Any]", item)
    for part in _candidates(fields):
        more = _more(content_item(part), fields)
        if more is not None:
            return with_extra(part, "part", more) if more else part
    # With a kind of its own, an Opaque could be taken for one of memkit's parts.
    is_renderable = isinstance(fields.get("type"), str) and "kind" not in fields
    return Opaque(dump_json(fields)) if is_renderable else Json(fields)


def blob_of(media_type: str, data: object, altchars: bytes | None = None) -> Blob | None:
    """Return the bytes of base64, if that is what would be made of them again."""
    if not isinstance(data, str):
        return None
    try:
        decoded = base64.b64decode(data, altchars, validate=True)
    except (binascii.Error, ValueError):
        return None
    return Blob(media_type, decoded) if base64.b64encode(decoded, altchars).decode() == data else None


def with_extra(part: K, name: str, value: Mapping[str, Any]) -> K:
    """Return a part with one more field in its `extra`."""
    return msgspec.structs.replace(part, extra={**part.extra, name: value})


def as_str(value: object) -> str:
    """Return text as it is, and nothing of anything else."""
    return value if isinstance(value, str) else ""


def _candidates(item: dict[str, Any]) -> Iterator[Known]:
    match item:
        case {"type": "text", "text": str(text)}:
            yield Text(text)
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            yield from _blobs_of_url(url)
            yield Ref(url)
        case {"type": "file", "file": {"file_data": str(url)}}:
            yield from _blobs_of_url(url)
        case {"type": "input_audio", "input_audio": {"data": str(data), "format": str(name)}}:
            for media_type in (media_type for media_type, known in AUDIO.items() if known == name):
                yield from _blobs(media_type, data)
        case _:
            pass


def _blobs_of_url(url: str) -> Iterator[Blob]:
    head, _, data = url.partition(";base64,")
    if head.startswith("data:"):
        yield from _blobs(head.removeprefix("data:"), data)


def _blobs(media_type: str, data: str) -> Iterator[Blob]:
    if (blob := blob_of(media_type, data)) is not None:
        yield blob


def _more(plain: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what makes `item` of its plain form if merged into it; None if something is to be taken away."""
    if plain.keys() - item.keys():
        return None
    more: dict[str, Any] = {}
    for key, value in item.items():
        inner = plain.get(key)
        if isinstance(inner, dict) and isinstance(value, dict):
            inside = _more(cast("dict[str, Any]", inner), cast("dict[str, Any]", value))
            if inside is None:
                return None
            if inside:
                more[key] = inside
        elif key not in plain or inner != value:
            more[key] = value
    return more

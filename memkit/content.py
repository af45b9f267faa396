"""What is said in a run: text, data, media, tool calls and their results.

A `Content` is a plain `str` where only text was said, which is nearly always, and a tuple of parts
otherwise; `()` means that nothing was said at all, which is not the same as `""`. Parts are immutable.
On the wire a part is a JSON object whose `kind` is one short word; a part of a kind that this version
does not know is an `Opaque` and goes back byte for byte, and unknown fields of a known part survive in
`extra`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast, final

import msgspec

from memkit.errors import FormatError
from memkit.rawjson import MAX_DEPTH, parse_json

EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})
"""The one empty mapping that all parts and runs share."""


class _Part(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, tag_field="kind"):
    extra: Mapping[str, Any] = EMPTY


class Text(_Part, frozen=True, gc=False, tag="text"):
    """Text among other parts. A lone text is a `str` instead."""

    text: str


class Json(_Part, frozen=True, gc=False, tag="json"):
    """A JSON value. It comes back equal as a value, not byte for byte."""

    value: Any


class Blob(_Part, frozen=True, gc=False, tag="blob"):
    """Bytes of a media type, such as a small image. Large ones are better kept elsewhere, as a `Ref`."""

    media_type: str
    data: bytes


class Ref(_Part, frozen=True, gc=False, tag="ref"):
    """Media kept elsewhere, by URL. `text` may stand in for it where only text can be sent."""

    url: str
    media_type: str = ""
    text: str = ""


class ToolCall(_Part, frozen=True, gc=False, tag="call"):
    """A model's request to run a tool. `arguments` is the text that the model wrote, valid JSON or not."""

    id: str
    name: str
    arguments: str = ""


class ToolResult(_Part, frozen=True, gc=False, tag="result"):
    """What a tool answered to the call of the same `id`."""

    id: str
    content: Content = ()
    name: str = ""
    error: bool = False


@final
class Opaque:
    """A part of a kind that this version does not know: one JSON object, kept byte for byte.

    Raises:
        FormatError: `raw` is not one JSON object in UTF-8, or nested deeper than `MAX_DEPTH`.
    """

    __slots__ = ("raw",)
    raw: bytes

    def __init__(self, raw: bytes) -> None:
        _check_opaque(raw)
        object.__setattr__(self, "raw", raw)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Opaque is immutable: cannot set {name}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"Opaque({self.raw!r})"

    def __reduce__(self) -> tuple[type[Opaque], tuple[bytes]]:
        return Opaque, (self.raw,)


Known: TypeAlias = Text | Json | Blob | Ref | ToolCall | ToolResult

if TYPE_CHECKING:
    Part: TypeAlias = Known | Opaque
else:
    # What msgspec decodes by itself. `Opaque` is what the codec makes of all the rest.
    Part = Known

Content: TypeAlias = str | tuple[Part, ...]
ContentLike: TypeAlias = str | Part | Iterable[Part | str] | None
"""What callers may give as content or as steps."""


def to_content(value: ContentLike) -> Content:
    """Return `value` as content: None is `()`, and a lone text without extras becomes a `str`.

    Raises:
        FormatError: `value` holds something that is neither a `str` nor a part.
    """
    if isinstance(value, str):
        return value if type(value) is str else str.__str__(value)
    parts = to_parts(value)
    if len(parts) == 1 and isinstance(lone := parts[0], Text) and not lone.extra:
        return lone.text
    return parts


def to_parts(value: ContentLike) -> tuple[Part, ...]:
    """Return `value` as a tuple of parts, each `str` in it as a `Text`.

    Raises:
        FormatError: `value` holds something that is neither a `str` nor a part.
    """
    if value is None:
        return ()
    if isinstance(value, str | Known | Opaque):
        return (_to_part(value),)
    if isinstance(value, bytes | Mapping) or not isinstance(cast("object", value), Iterable):
        raise FormatError(_no_part(cast("object", value)))
    return tuple(_to_part(item) for item in value)


def parts_of(content: Content) -> tuple[Part, ...]:
    """Return content as parts: a `str` as one `Text`."""
    return (Text(content),) if isinstance(content, str) else content


def text_of(content: Content) -> str:
    """Return what can be read of `content`, one part after another on lines of their own.

    Media are named, not shown: `[image/png, 12 bytes]`. Calls and results read like code.
    """
    if isinstance(content, str):
        return content
    return "\n".join(filter(None, map(_text_of_part, content)))


def clean(text: str) -> str:
    """Return text that UTF-8 can encode: split surrogate pairs are joined, lone ones become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _to_part(item: object) -> Part:
    if isinstance(item, str):
        return Text(str.__str__(item))
    if isinstance(item, Known | Opaque):
        return item
    raise FormatError(_no_part(item))


def _no_part(item: object) -> str:
    return (
        f"content is text or parts (Text, Json, Blob, ...), not a {type(item).__name__}; wrap data in Json(...), "
        "and give chat messages to memkit.adapters.openai.to_runs"
    )


def _check_opaque(raw: bytes) -> None:
    try:
        value = parse_json(raw)
    except ValueError as error:
        raise FormatError(f"an Opaque part must be JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"an Opaque part must be a JSON object, not a {type(value).__name__}")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [item for each in level for item in _inside(each) if isinstance(item, dict | list)]
        if not level:
            return
    raise FormatError(f"an Opaque part is nested deeper than {MAX_DEPTH} levels; store it flatter, or as text")


def _inside(container: Any) -> Iterable[Any]:
    return cast("dict[str, Any]", container).values() if isinstance(container, dict) else container


def _text_of_part(part: Part) -> str:  # noqa: PLR0911 - one for each kind
    match part:
        case Text():
            return part.text
        case Json():
            return _text_of_json(part.value)
        case Blob():
            return f"[{part.media_type}, {len(part.data)} bytes]"
        case Ref():
            return part.text or f"[{part.media_type or 'media'} at {part.url[:200]}]"
        case ToolCall():
            return f"{part.name}({part.arguments})"
        case ToolResult():
            return f"{part.name or part.id} -> {text_of(part.content)}"
        case Opaque():
            return _text_of_opaque(part)


def _text_of_json(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise FormatError(f"a Json part holds what JSON cannot: {error}") from error


def _text_of_opaque(part: Opaque) -> str:
    value = parse_json(part.raw)
    for name in ("text", "content"):
        if isinstance(text := value.get(name), str):
            return text
    return f"[{value.get('kind') or value.get('type') or 'part'} of an unknown kind]"

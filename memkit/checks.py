"""What may be stored: values that JSON can hold, and that come back from it as they went in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

import msgspec

from memkit.content import (
    EMPTY,
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
)
from memkit.conversation import Head, Summary
from memkit.errors import FormatError
from memkit.rawjson import MAX_DEPTH, to_json
from memkit.run import Amend, Entry, Extend, Run

# Results in results cost a reader several frames of its stack for each level, so there can be ten of them.
_RESULT_DEPTH: Final = 10

_known: Final = msgspec.json.Decoder(Known)

# The fields of parts that are not text; those that are checked elsewhere have None.
_FIELDS: Final[dict[tuple[type, str], type | None]] = {
    (Blob, "data"): bytes,
    (Json, "value"): None,
    (ToolResult, "content"): None,
    (ToolResult, "error"): bool,
    **{(kind, "extra"): None for kind in (Text, Json, Blob, Ref, ToolCall, ToolResult)},
}


def check_entry(entry: Entry) -> bool:
    """Refuse an entry that JSON cannot hold; return whether there are extra fields anywhere in it.

    Raises:
        FormatError: naming the path of the culprit.
    """
    return _check_entry(entry, "v")


def check_head(head: Head) -> bool:
    """Refuse a head that JSON cannot hold; return whether there are extra fields anywhere in it.

    Raises:
        FormatError: naming the path of the culprit.
    """
    to_json(head.meta, "meta")
    has_extra = _check_extra(head, "extra", "v")
    if head.summary is not None:
        to_json(head.summary.created_at, "summary.created_at")
        has_extra |= check_content(head.summary.content, "summary.content")
        has_extra |= _check_extra(head.summary, "summary.extra")
    return has_extra


def _check_entry(entry: Entry, *taken: str) -> bool:
    if not isinstance(cast("object", entry.id), str) or not entry.id:
        raise FormatError(f"the id of an entry is a non-empty str, not {entry.id!r}; see new_id()")
    has_extra = _check_extra(entry, "extra", *taken)
    if isinstance(entry, Run):
        to_json(entry.created_at, "created_at")
        if entry.meta is not EMPTY:
            to_json(entry.meta, "meta")
        has_extra |= check_content(entry.input, "input")
        has_extra |= check_parts(entry.steps, "steps")
        has_extra |= check_content(entry.output, "output")
    elif isinstance(entry, Amend):
        has_extra |= _check_entry(entry.run)
    elif isinstance(entry, Extend):
        has_extra |= check_parts(entry.steps, "steps")
        has_extra |= check_content(() if entry.output is None else entry.output, "output")
    return has_extra


def check_content(content: Content, where: str, depth: int = 2) -> bool:
    """Refuse content that JSON cannot hold; return whether there are extra fields anywhere in it.

    Raises:
        FormatError: naming the path of the culprit.
    """
    return False if isinstance(content, str) else check_parts(content, where, depth)


def check_parts(parts: tuple[Part, ...], where: str, depth: int = 2) -> bool:
    """Refuse parts that JSON cannot hold; return whether there are extra fields anywhere in them.

    Raises:
        FormatError: naming the path of the culprit.
    """
    if not isinstance(cast("object", parts), tuple):
        raise FormatError(f"{where} is a {type(parts).__name__}, not a tuple of parts; see to_content()")
    if depth > MAX_DEPTH:
        raise FormatError(f"{where} is nested deeper than {MAX_DEPTH} levels; store it flatter, or as text")
    has_extra = False
    for index, part in enumerate(parts):
        at = f"{where}[{index}]"
        if isinstance(part, Opaque):
            _check_opaque(part, at)
            continue
        if not isinstance(cast("object", part), Known):
            raise FormatError(f"{at} is a {type(part).__name__}, not a part; see memkit.content")
        _check_fields(part, at)
        if isinstance(part, Json):
            to_json(part.value, f"{at}.value", depth)
        elif isinstance(part, ToolResult):
            has_extra |= check_content(part.content, f"{at}.content", depth + _RESULT_DEPTH)
        has_extra |= _check_extra(part, f"{at}.extra", depth=depth)
    return has_extra


def _check_opaque(part: Opaque, where: str) -> None:
    """Refuse a part that would come back as one of a kind that is known, without the fields that it adds."""
    try:
        kind = type(_known.decode(part.raw)).__name__
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    raise FormatError(f"{where} is an Opaque that reads as a {kind}; use that, or wrap it in Json(...)")


def _check_fields(part: Known, where: str) -> None:
    """Refuse other types than those of the fields, which would come back as something else."""
    for name in part.__struct_fields__:
        expected = _FIELDS.get((type(part), name), str)
        if expected and not isinstance(getattr(part, name), expected):
            found = type(getattr(part, name)).__name__
            raise FormatError(f"{where}.{name} is a {found}, not a {expected.__name__}")


def _check_extra(value: Entry | Head | Summary | Known, where: str, *taken: str, depth: int = 2) -> bool:
    """Refuse fields that would take the place of others; return whether there are any."""
    if value.extra is EMPTY:
        return False
    if not isinstance(cast("object", value.extra), Mapping):
        raise FormatError(f"{where} is a {type(value.extra).__name__}, not a mapping")
    to_json(value.extra, where, depth)
    for name in (*taken, value.__struct_config__.tag_field, *value.__struct_fields__):
        if name in value.extra and name != "extra":
            raise FormatError(f"{where}.{name} is no unknown field: {type(value).__name__} has one of that name")
    return True  # even if it is empty: the fast path would write a field called "extra"

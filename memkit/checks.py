"""What may be stored: values that JSON can hold, and that come back from it as they went in."""

from __future__ import annotations

from typing import Final, cast

from memkit.content import EMPTY, Content, Json, Known, Opaque, ToolResult
from memkit.conversation import Head, Summary
from memkit.errors import FormatError
from memkit.rawjson import MAX_DEPTH, to_json
from memkit.run import Amend, Entry, Extend, Run

# Results in results cost a reader several frames of its stack for each level, so there can be ten of them.
_RESULT_DEPTH: Final = 10


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
        has_extra |= _check_extra(head.summary, "summary.extra")
    return has_extra


def _check_entry(entry: Entry, *taken: str) -> bool:
    if not isinstance(cast("object", entry.id), str) or not entry.id:
        raise FormatError(f"the id of an entry is a non-empty str, not {entry.id!r}; see new_id()")
    has_extra = _check_extra(entry, "extra", *taken)
    if isinstance(entry, Run):
        to_json(entry.created_at, "created_at")
        to_json(entry.meta, "meta")
        has_extra |= _check_content(entry.input, "input")
        has_extra |= _check_content(entry.steps, "steps")
        has_extra |= _check_content(entry.output, "output")
    elif isinstance(entry, Amend):
        has_extra |= _check_entry(entry.run)
    elif isinstance(entry, Extend):
        has_extra |= _check_content(entry.steps, "steps")
        has_extra |= _check_content(() if entry.output is None else entry.output, "output")
    return has_extra


def _check_content(content: Content, where: str, depth: int = 2) -> bool:
    if isinstance(content, str):
        return False
    if not isinstance(cast("object", content), tuple):
        raise FormatError(f"{where} is a {type(content).__name__}, not text or a tuple of parts; see to_content()")
    if depth > MAX_DEPTH:
        raise FormatError(f"{where} is nested deeper than {MAX_DEPTH} levels; store it flatter, or as text")
    has_extra = False
    for index, part in enumerate(content):
        at = f"{where}[{index}]"
        if isinstance(part, Opaque):
            continue
        if not isinstance(cast("object", part), Known):
            raise FormatError(f"{at} is a {type(part).__name__}, not a part; see memkit.content")
        if isinstance(part, Json):
            to_json(part.value, f"{at}.value", depth)
        elif isinstance(part, ToolResult):
            has_extra |= _check_content(part.content, f"{at}.content", depth + _RESULT_DEPTH)
        has_extra |= _check_extra(part, f"{at}.extra", depth=depth)
    return has_extra


def _check_extra(value: Entry | Head | Summary | Known, where: str, *taken: str, depth: int = 2) -> bool:
    """Refuse fields that would take the place of others; return whether there are any."""
    if value.extra is EMPTY:
        return False
    to_json(value.extra, where, depth)
    for name in (*taken, value.__struct_config__.tag_field, *value.__struct_fields__):
        if name in value.extra and name != "extra":
            raise FormatError(f"{where}.{name} is no unknown field: {type(value).__name__} has one of that name")
    return True  # even if it is empty: the fast path would write a field called "extra"

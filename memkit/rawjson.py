"""JSON as text: what msgspec does not do, with the scanner of the standard library.

msgspec refuses the escape of a lone surrogate, which `json.dumps` writes and old files hold; and it hands out
the text of a value only if it may keep the whole record in memory.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec


def parse_json(raw: bytes) -> Any:
    """Return the value of JSON text in UTF-8, also where `json.dumps` has escaped a lone surrogate.

    Raises:
        ValueError: not JSON, not UTF-8, or nested too deep to be read.
    """
    text = raw.decode()
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return load_text(text)


def load_text(text: str) -> Any:
    """Return the value of JSON text.

    Raises:
        ValueError: not JSON, or nested too deep to be read.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deep to be read") from error


def split_object(text: str) -> dict[str, str]:
    """Return the members of a JSON object, each value as the text that it is.

    Raises:
        ValueError: not a JSON object.
    """
    fields: dict[str, str] = {}
    at = _skip(text, 0, "{")
    while not text.startswith("}", at):
        name, at = _scanner.raw_decode(text, at)
        start = _skip(text, at, ":")
        _, at = _scanner.raw_decode(text, start)
        fields[str(name)] = text[start:at]
        at = _next(text, at, "}")
    _check_end(text, at)
    return fields


def split_array(text: str) -> list[str]:
    """Return the items of a JSON array, each as the text that it is.

    Raises:
        ValueError: not a JSON array.
    """
    items: list[str] = []
    at = _skip(text, 0, "[")
    while not text.startswith("]", at):
        start = at
        _, at = _scanner.raw_decode(text, start)
        items.append(text[start:at])
        at = _next(text, at, "]")
    _check_end(text, at)
    return items


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_scanner: Final = json.JSONDecoder(parse_constant=_refuse)
_space: Final = re.compile(r"[ \t\n\r]*")


def _after_space(text: str, at: int) -> int:
    match = _space.match(text, at)
    return match.end() if match else at


def _skip(text: str, at: int, mark: str) -> int:
    """Return where the next token begins after `mark`, which must come next."""
    at = _after_space(text, at)
    if not text.startswith(mark, at):
        raise ValueError(f"expected {mark} at character {at}")
    return _after_space(text, at + 1)


def _next(text: str, at: int, closing: str) -> int:
    """Return where the next item begins, or `closing` is."""
    at = _after_space(text, at)
    return at if text.startswith(closing, at) else _skip(text, at, ",")


def _check_end(text: str, at: int) -> None:
    if text[at + 1 :].strip():
        raise ValueError(f"something follows the JSON value, at character {at + 1}")

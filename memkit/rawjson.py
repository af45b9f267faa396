"""JSON beside msgspec: values proven to be JSON, and values as the text that they are.

msgspec writes NaN as null and sets as lists, without a word; it refuses the escape of a lone surrogate, which
`json.dumps` writes and old files hold; and it hands out the text of a value only if it may keep the whole record
in memory. The scanner of the standard library does better there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, cast

import msgspec

from memkit.errors import FormatError

MAX_DEPTH: Final = 100
"""The deepest nesting of JSON values that is stored, so that no load depends on the reader's stack."""


def to_json(value: Any, where: str, depth: int = 1) -> Any:
    """Return a deep copy of `value`, proven to be JSON that comes back as it went in.

    Mappings become dicts and sequences lists. `where` names the value in errors, as in `meta`; `depth` is the
    level at which it will lie.

    Raises:
        FormatError: not a JSON type, a key that is no `str`, NaN or infinity, an integer beyond 64 bits, or
            nesting deeper than `MAX_DEPTH`. It names the path of the culprit.
    """
    scalar = _scalar(value, where)
    if scalar is not _CONTAINER:
        return scalar
    root = _container_like(value)
    # An explicit stack: a recursion would make the limit depend on how deep the caller already is.
    todo: list[tuple[Any, Any, str, int]] = [(value, root, where, depth)]
    while todo:
        source, target, path, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise FormatError(f"{path} is nested deeper than {MAX_DEPTH} levels; store it flatter, or as text")
        for key, item, at in _items(source, path):
            made: Any = _scalar(item, at)
            if made is _CONTAINER:
                made = _container_like(item)
                todo.append((item, made, at, depth + 1))
            if key is None:
                target.append(made)
            else:
                target[key] = made
    return root


_CONTAINER: Final = object()
_JSON_CONTAINERS: Final = (list, tuple, Mapping)


def _scalar(value: Any, where: str) -> Any:
    """Return a JSON scalar as a plain Python value, or `_CONTAINER` for a mapping or a sequence."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value if type(value) is str else str.__str__(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise FormatError(f"{where} is an integer beyond 64 bits; store it as text")
        return int(value)
    if isinstance(value, float):
        if value - value != 0:
            raise FormatError(f"{where} is {value}, which JSON cannot hold; store None or text instead")
        return float(value)
    if isinstance(value, _JSON_CONTAINERS):
        return _CONTAINER
    raise FormatError(f"{where} is a {type(value).__name__}, which JSON cannot hold; convert it first")


def _container_like(value: object) -> Any:
    return {} if isinstance(value, Mapping) else []


def _items(source: Any, path: str) -> Iterator[tuple[str | None, Any, str]]:
    if not isinstance(source, Mapping):
        for index, item in enumerate(cast("Iterable[Any]", source)):
            yield None, item, f"{path}[{index}]"
        return
    for key, item in cast("Mapping[object, Any]", source).items():
        if not isinstance(key, str):
            raise FormatError(f"{path} has the key {key!r}; only text can be a key in JSON")
        yield str.__str__(key), item, f"{path}.{key}"


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return both mappings as one. Where both have a mapping, these are merged; else `other` wins."""
    result = dict(one)
    for key, value in other.items():
        inner = result.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = merged(cast("Mapping[str, Any]", inner), cast("Mapping[str, Any]", value))  # noqa: PLW2901
        result[key] = value
    return result


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


def dump_json(value: Any) -> bytes:
    """Return a JSON value as text in UTF-8, in which a lone surrogate is an escape."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


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
        if not isinstance(name, str):
            raise ValueError(f"the name of a member is text, not {name!r}")  # noqa: TRY004 - of the text
        start = _skip(text, at, ":")
        _, at = _scanner.raw_decode(text, start)
        fields[name] = text[start:at]
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
    if text.startswith(closing, at):
        return at
    at = _skip(text, at, ",")
    if text.startswith(closing, at):
        raise ValueError(f"nothing follows the comma before character {at}")
    return at


def _check_end(text: str, at: int) -> None:
    if text[at + 1 :].strip():
        raise ValueError(f"something follows the JSON value, at character {at + 1}")


def difference(plain: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """Return what turns the plain form of an object into what was written: members to set and to unset."""
    changed = {key: value for key, value in written.items() if key not in plain or plain[key] != value}
    absent = [key for key in plain if key not in written]
    return {name: kept for name, kept in (("set", changed), ("unset", absent)) if kept}


def restored(plain: dict[str, Any], difference: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was written, of its plain form and the `difference`, which may be anything that was stored."""
    unset, more = difference.get("unset"), difference.get("set")
    if isinstance(unset, list):
        plain = {key: value for key, value in plain.items() if key not in unset}
    return plain | cast("dict[str, Any]", more) if isinstance(more, dict) else plain

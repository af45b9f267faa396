"""JSON values, and which of them griptape 1.13 loads: on a key that it does not know, it loads no run at all."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias, TypeGuard

import msgspec

from memkit.rawjson import MAX_DEPTH

Artifact: TypeAlias = dict[str, Any]


class _Reference(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    type: str = "Reference"
    id: str = ""
    title: str
    authors: list[str] = []
    source: str | None = None
    year: str | None = None
    url: str | None = None


class _Artifact(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    id: str = ""
    reference: _Reference | None = None
    meta: dict[str, Any] = {}
    name: str = ""


class _Text(_Artifact, tag="TextArtifact"):
    value: str


class _Error(_Artifact, tag="ErrorArtifact"):
    value: str


class _Info(_Artifact, tag="InfoArtifact"):
    value: str


class _Boolean(_Artifact, tag="BooleanArtifact"):
    value: bool


class _Json(_Artifact, tag="JsonArtifact"):
    value: Any

    def __post_init__(self) -> None:
        if isinstance(self.value, str):
            json.loads(self.value)  # as griptape does with text
        elif isinstance(self.value, float):
            _require(math.isfinite(self.value))
        elif is_array(self.value):
            _require(None not in self.value)


class _Generic(_Artifact, tag="GenericArtifact"):
    value: Any

    def __post_init__(self) -> None:
        _require(self.value is not None)


class _Model(_Generic, tag="ModelArtifact"):
    pass


class _ImageUrl(_Artifact, tag="ImageUrlArtifact"):
    value: str


class _AudioUrl(_Artifact, tag="AudioUrlArtifact"):
    value: str


class _VideoUrl(_Artifact, tag="VideoUrlArtifact"):
    value: str


class _Blob(_Artifact, tag="BlobArtifact"):
    value: str

    def __post_init__(self) -> None:
        base64.b64decode(self.value)


class _Audio(_Blob, tag="AudioArtifact"):
    format: str


class _Image(_Blob, tag="ImageArtifact"):
    format: str
    width: int
    height: int


class _ToolAction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    type: str = "ToolAction"
    tag: str
    name: str
    path: str | None = None
    input: dict[str, Any] = {}


class _Action(_Artifact, tag="ActionArtifact"):
    value: _ToolAction


class _List(_Artifact, tag="ListArtifact"):
    value: list[_Any]
    item_separator: str = ""
    validate_uniform_types: bool = False

    def __post_init__(self) -> None:
        _require(not self.validate_uniform_types or len(set(map(type, self.value))) <= 1)


_Any: TypeAlias = (
    _Text
    | _Error
    | _Info
    | _Boolean
    | _Json
    | _Generic
    | _Model
    | _ImageUrl
    | _AudioUrl
    | _VideoUrl
    | _Blob
    | _Audio
    | _Image
    | _Action
    | _List
)


class _Run(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    type: str = "Run"
    id: str = ""
    meta: dict[str, Any] | None = None
    input: _Any
    output: _Any


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Tell whether a JSON value is an object."""
    return isinstance(value, dict)


def is_array(value: Any) -> TypeGuard[list[Any]]:
    """Tell whether a JSON value is an array."""
    return isinstance(value, list)


def value_of_text(text: str) -> Any:
    """Return the value of JSON text; None of what is none, or too deep to be handled wherever the caller is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return None if any(depth == 2 * MAX_DEPTH for depth, _ in enumerate(levels(value))) else value


def is_storable(value: Any, depth: int = 1) -> bool:
    """Tell whether a value that was read from JSON can be stored at this depth, as `to_json` would say."""
    for at, level in enumerate(levels(value), depth):
        if at > MAX_DEPTH and any(is_object(item) or is_array(item) for item in level):
            return False
        whole = [item for item in level if type(item) is int]
        if whole and (min(whole) < -(2**63) or max(whole) >= 2**64):
            return False
        if not all(map(math.isfinite, (item for item in level if type(item) is float))):
            return False
    return True


def levels(value: Any) -> Iterator[list[Any]]:
    """Yield the values at each depth of a JSON value, without recursion: whoever calls may be deep already."""
    level: list[Any] = [value]
    while level:
        yield level
        level = [item for each in level if is_object(each) or is_array(each) for item in _inside(each)]


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def is_loadable_artifact(value: Any) -> TypeGuard[dict[str, Any]]:
    """Tell whether griptape 1.13 loads an artifact."""
    return _fits(value, _Any)


def is_loadable_run(value: Any) -> TypeGuard[dict[str, Any]]:
    """Tell whether griptape 1.13 loads a run."""
    return _fits(value, _Run)


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("griptape does not load this")


def _fits(value: object, form: Any) -> bool:
    try:
        msgspec.convert(value, form)
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError):
        return False
    return True

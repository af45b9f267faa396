"""Contents and parts: what can be said, what is refused, and how it reads."""

from __future__ import annotations

import copy
import json
import pickle
from collections import OrderedDict
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given

from memkit.content import (
    EMPTY,
    Blob,
    Content,
    Json,
    Opaque,
    Ref,
    Text,
    ToolCall,
    ToolResult,
    parts_of,
    text_of,
    to_content,
    to_parts,
)
from memkit.errors import FormatError
from memkit.rawjson import MAX_DEPTH, to_json
from tests.histories import contents, examples, json_values, parts


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    SEVEN = 7


# --- to_content, to_parts ---


@pytest.mark.parametrize(
    ("value", "content"),
    [
        (None, ()),
        ("", ""),
        ("text", "text"),
        (Text("text"), "text"),
        (["text"], "text"),
        ((), ()),
        (["a", "b"], (Text("a"), Text("b"))),
        (Text("text", extra={"a": 1}), (Text("text", extra={"a": 1}),)),
        (Json(1), (Json(1),)),
        ([Json(1), "a"], (Json(1), Text("a"))),
        (Opaque(b"{}"), (Opaque(b"{}"),)),
    ],
    ids=range(11),
)
def test_what_becomes_content(value: Any, content: Content) -> None:
    assert to_content(value) == content
    assert to_parts(value) == parts_of(content)


def test_an_iterator_is_read_once() -> None:
    assert to_content(text for text in ("a", "b")) == (Text("a"), Text("b"))


@pytest.mark.parametrize("value", [5, b"bytes", {"kind": "text"}, object(), ["a", 5], [["a"]], 1.5])
def test_what_is_no_content_is_refused(value: Any) -> None:
    for make in (to_content, to_parts):
        with pytest.raises(FormatError, match=r"content is text or parts .* wrap data in Json"):
            make(value)


def test_text_is_plain_text_whatever_it_was() -> None:
    for made in (to_content(Colour.RED), to_content([Colour.RED])):
        assert type(made) is str
    (part,) = to_parts(Colour.RED)
    assert isinstance(part, Text)
    assert type(part.text) is str


@examples(100)
@given(contents)
def test_content_is_content_already(content: Content) -> None:
    again = to_content(content)
    assert parts_of(again) == parts_of(content)
    assert to_content(again) == again


# --- text_of ---


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain", "plain"),
        ((), ""),
        ((Text("a"), Text(""), Text("b")), "a\nb"),
        (Json({"a": [1, None, "é"]}), '{"a":[1,null,"é"]}'),
        (Json({"a": "\ud83d"}), '{"a":"\ud83d"}'),
        (Blob("image/png", b"12 bytes are"), "[image/png, 12 bytes]"),
        (Ref("https://example.com/a.png", "image/png"), "[image/png at https://example.com/a.png]"),
        (Ref("data:," + "x" * 1000), f"[media at data:,{'x' * 194}]"),
        (Ref("https://example.com/a.png", text="a cat"), "a cat"),
        (ToolCall("1", "look", '{"at":"it"}'), 'look({"at":"it"})'),
        (ToolResult("1", (Text("a"), Json(1)), "look"), "look -> a\n1"),
        (ToolResult("1", "a"), "1 -> a"),
        (Opaque(b'{"kind":"thought","text":"hm"}'), "hm"),
        (Opaque(b'{"role":"user","content":"hm"}'), "hm"),
        (Opaque(b'{"kind":"thought","content":[1]}'), "[thought of an unknown kind]"),
        (Opaque(b'{"type":"video"}'), "[video of an unknown kind]"),
        (Opaque(b"{}"), "[part of an unknown kind]"),
    ],
    ids=range(17),
)
def test_how_content_reads(content: Any, text: str) -> None:
    assert text_of(content if isinstance(content, str | tuple) else (content,)) == text


@examples(120)
@given(contents)
def test_all_content_can_be_read(content: Content) -> None:
    assert isinstance(text_of(content), str)


# --- Opaque ---


def test_an_opaque_part_is_its_bytes() -> None:
    part = Opaque(b'{"kind":"later", "n":1.10}')
    assert part == Opaque(b'{"kind":"later", "n":1.10}')
    assert part != Opaque(b'{"kind":"later","n":1.10}')
    assert part != b'{"kind":"later", "n":1.10}'
    assert len({part, Opaque(part.raw)}) == 1
    assert repr(part) == """Opaque(b'{"kind":"later", "n":1.10}')"""
    assert copy.deepcopy(part) == pickle.loads(pickle.dumps(part)) == part
    with pytest.raises(AttributeError, match="immutable"):
        part.raw = b"{}"


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "must be JSON"),
        (b"{", "must be JSON"),
        (b'{"a":NaN}', "must be JSON"),
        (b'{"a":1} x', "must be JSON"),
        (b'{"a":"\xff"}', "must be JSON"),
        (b"[]", "must be a JSON object, not a list"),
        (b'"text"', "must be a JSON object, not a str"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"0" + b"}" * (MAX_DEPTH + 1), "deeper than 100 levels"),
        (b'{"a":' * 100_000, "must be JSON"),
    ],
    ids=range(9),
)
def test_what_is_no_json_object_is_not_opaque(raw: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        Opaque(raw)


def test_an_opaque_part_may_be_as_deep_as_anything_and_hold_any_number() -> None:
    for raw in (
        b'{"a":' * MAX_DEPTH + b"0" + b"}" * MAX_DEPTH,
        b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}",
        b'{"n":123456789012345678901234567890,"f":1e999,"z":-0}',
        b'{"text":"\\ud83d"}',
    ):
        assert Opaque(raw).raw == raw


# --- to_json ---


@examples(120)
@given(json_values)
def test_json_comes_back_as_an_equal_copy(value: Any) -> None:
    made = to_json(value, "meta")
    assert made == value
    assert json.dumps(made) == json.dumps(value)
    if isinstance(value, list | dict):
        assert made is not value


def test_other_types_become_those_of_json() -> None:
    value = {
        "mapping": MappingProxyType({"a": OrderedDict(b=1)}),
        "tuple": (1, (2,)),
        Colour.RED: Colour.RED,
        "number": Number.SEVEN,
        "bool": True,
    }
    made = to_json(value, "meta")
    assert made == {"mapping": {"a": {"b": 1}}, "tuple": [1, [2]], "red": "red", "number": 7, "bool": True}
    assert type(made["mapping"]["a"]) is dict
    assert type(made["red"]) is type(list(made)[2]) is str
    assert type(made["number"]) is int
    assert made["bool"] is True


def test_a_copy_shares_nothing_with_what_it_was_made_of() -> None:
    value: dict[str, Any] = {"a": [{"b": 1}]}
    made = to_json(value, "meta")
    value["a"][0]["b"] = 2
    assert made == {"a": [{"b": 1}]}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("nan"), "meta is nan"),
        ({"a": [0, {"b c": float("-inf")}]}, r"meta\.a\[1\]\.b c is -inf"),
        ([b""], r"meta\[0\] is a bytes"),
        ({"a": {1}}, r"meta\.a is a set"),
        ({("a",): 1}, r"meta has the key \('a',\); only text can be a key in JSON"),
        ({"a": 2**64}, r"meta\.a is an integer beyond 64 bits"),
        (1j, "meta is a complex"),
    ],
    ids=range(7),
)
def test_what_json_cannot_hold_is_named_by_its_path(value: Any, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        to_json(value, "meta")


def test_depth_is_counted_in_containers() -> None:
    value: Any = 0
    for _ in range(MAX_DEPTH):
        value = {"a": value}
    assert to_json(value, "meta") == value
    with pytest.raises(FormatError, match=r"meta\[0\](\.a)+ is nested deeper than 100 levels"):
        to_json([value], "meta")
    with pytest.raises(FormatError, match="nested deeper than 100 levels"):
        to_json(value, "meta", 2)


def test_what_contains_itself_is_too_deep() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(FormatError, match="nested deeper"):
        to_json(value, "meta")


# --- parts ---


@examples(100)
@given(parts)
def test_parts_are_immutable(part: Any) -> None:
    name = "raw" if isinstance(part, Opaque) else part.__struct_fields__[0]
    with pytest.raises(AttributeError):
        setattr(part, name, None)


def test_parts_share_one_empty_mapping() -> None:
    assert Text("a").extra is Json(1).extra is EMPTY
    with pytest.raises(TypeError):
        EMPTY["a"] = 1  # type: ignore[index]

"""The stored format: everything comes back as it went in, or is refused with a `FormatError` that says why."""

from __future__ import annotations

import datetime as dt
import gc
import json
import math
import sys
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkit.codec import MAX_BODY, JsonCodec
from memkit.content import EMPTY, Blob, Json, Opaque, Part, Ref, Text, ToolCall, ToolResult
from memkit.conversation import Head, Summary
from memkit.errors import FormatError
from memkit.rawjson import MAX_DEPTH
from memkit.run import Amend, Counts, Entry, Extend, Retract, Run, new_run
from tests.histories import entries, examples, heads

codec = JsonCodec()

LONE = "half a \ud83d pair"


def again(entry: Entry) -> Entry:
    return codec.decode(codec.encode(entry))


def body(**fields: Any) -> bytes:
    return json.dumps({"v": 1, **fields}, separators=(",", ":")).encode()


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def deep_down(call: Callable[[], Any], frames: int = 800) -> Any:
    """Return what `call` returns when it is called from so many frames deep."""
    result: list[Any] = []

    def descend(left: int) -> None:
        if left:
            descend(left - 1)
        else:
            try:
                result.append(call())
            except Exception as error:
                result.append(error)

    thread = threading.Thread(target=descend, args=(frames,))
    thread.start()
    thread.join()
    return result[0]


# --- round trips ---


@examples(300)
@given(entries)
def test_every_entry_comes_back_equal_and_as_the_same_bytes(entry: Entry) -> None:
    stored = codec.encode(entry)
    assert codec.decode(stored) == entry
    assert codec.encode(codec.decode(stored)) == stored


@examples(200)
@given(heads)
def test_every_head_comes_back_equal_and_as_the_same_bytes(head: Head) -> None:
    stored = codec.encode_head(head)
    assert codec.decode_head(stored) == head
    assert codec.encode_head(codec.decode_head(stored)) == stored


@examples(60)
@given(entries)
def test_every_body_is_one_json_object_in_utf_8_with_a_version(entry: Entry) -> None:
    fields = json.loads(codec.encode(entry).decode())
    assert fields["v"] == 1
    assert fields["kind"] == type(entry).__name__.lower()
    assert fields["id"] == entry.id


# --- lone surrogates ---


@pytest.mark.parametrize(
    "run",
    [
        Run("1", LONE),
        Run("1", "q", (Text(text=LONE), Json(value={LONE: LONE}), ToolCall("c", LONE, LONE)), LONE),
        Run("1", "q", (ToolResult("c", (Text(text=LONE),)),)),
        Run("1", "q", meta={LONE: LONE}),
        Run("1", "q", (Json(value=None), Blob(media_type=LONE, data=b"\x00\xff"))),
        Run(LONE, "q", counts=Counts(LONE, 1, 2, 3, 4)),
    ],
    ids=["input", "parts", "result", "meta", "beside null and bytes", "id and counter"],
)
def test_lone_surrogates_are_stored_as_escapes(run: Run) -> None:
    assert again(run) == run
    assert b"\\ud83d" in codec.encode(run)


def test_the_halves_of_a_pair_come_back_joined() -> None:
    """JSON has one way to write both: what comes back is the character that the halves are."""
    assert again(Run("1", "\ud83d\ude00")) == Run("1", "\U0001f600")


def test_lone_surrogates_in_heads_are_stored_as_escapes() -> None:
    head = Head(summary=Summary(content=LONE, upto=1, upto_id="r0", seen=1), meta={"title": LONE})
    assert codec.decode_head(codec.encode_head(head)) == head


@pytest.mark.parametrize("kind", ["run", "other"])
def test_escaped_lone_surrogates_that_others_wrote_are_read(kind: str) -> None:
    part = {"kind": "text" if kind == "run" else kind, "text": LONE}
    run = codec.decode(body(kind="run", id="1", input="q", steps=[part]))
    assert isinstance(run, Run)
    expected: Part = Text(text=LONE) if kind == "run" else Opaque(json.dumps(part, separators=(",", ":")).encode())
    assert run.steps == (expected,)


def test_lone_surrogates_only_in_an_unknown_part_are_kept_as_written() -> None:
    part = Opaque(b'{"kind":"other","text":"\\uD83d \\ud83d\\ude00"}')
    run = Run("1", "q", (part,))
    assert again(run) == run


# --- what JSON cannot hold ---


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (math.nan, r"\.a\[1\] is nan"),
        (math.inf, r"\.a\[1\] is inf"),
        (-math.inf, r"\.a\[1\] is -inf"),
        ({1, 2}, r"\.a\[1\] is a set"),
        (b"bytes", r"\.a\[1\] is a bytes"),
        (dt.datetime(2024, 1, 1, tzinfo=dt.UTC), r"\.a\[1\] is a datetime"),
        ({1: 2}, r"\.a\[1\] has the key 1; only text"),
        ({"b": {None: 1}}, r"\.a\[1\]\.b has the key None"),
        (2**64, r"\.a\[1\] is an integer beyond 64 bits"),
        (-(2**63) - 1, r"\.a\[1\] is an integer beyond 64 bits"),
        (object(), r"\.a\[1\] is a object"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_values_that_would_not_come_back_are_refused_with_their_path(value: Any, problem: str) -> None:
    fields = {"a": [0, value]}
    with pytest.raises(FormatError, match="^meta" + problem):
        new_run("q", meta=fields)
    with pytest.raises(FormatError, match="^meta" + problem):
        codec.encode(Run("1", "q", meta=fields))
    with pytest.raises(FormatError, match="^meta" + problem):
        codec.encode_head(Head(meta=fields))
    with pytest.raises(FormatError, match=r"^steps\[0\]\.value" + problem):
        codec.encode(Run("1", "q", (Json(value=fields),)))
    with pytest.raises(FormatError, match=r"^input\[0\]\.content\[0\]\.extra" + problem):
        codec.encode(Amend(id="1", at=0, run=Run("2", (ToolResult("c", (Text(text="", extra=fields),)),))))
    with pytest.raises(FormatError, match="^extra" + problem):
        codec.encode(Retract(id="1", target="2", at=0, extra=fields))
    with pytest.raises(FormatError, match=r"^summary\.extra" + problem):
        codec.encode_head(Head(summary=Summary(content="", upto=1, upto_id="r", seen=1, extra=fields)))


def test_the_largest_integers_come_back() -> None:
    run = Run("1", (Json(value=[2**64 - 1, -(2**63)]),), meta={"a": 2**64 - 1})
    assert again(run) == run


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (Run("", "q"), "the id of an entry is a non-empty str"),
        (Run(7, "q"), "the id of an entry is a non-empty str"),  # type: ignore[arg-type]
        (Run("1", None), "input is a NoneType"),  # type: ignore[arg-type]
        (Run("1", ["q"]), "input is a list"),  # type: ignore[arg-type]
        (Run("1", ("q",)), r"input\[0\] is a str, not a part"),  # type: ignore[arg-type]
        (Run("1", "q", "steps"), "steps is a str"),  # type: ignore[arg-type]
        (Run("1", "q", output=5), "output is a int"),  # type: ignore[arg-type]
        (Run("1", "q", status="done"), "Invalid enum value 'done'"),  # type: ignore[arg-type]
        (Run("1", "q", created_at=math.nan), "created_at is nan"),
        (Run("1", "q", created_at="now"), "Expected `float`, got `str`"),  # type: ignore[arg-type]
        (Extend(id="1", target="r", at=0, output=5), "output is a int"),  # type: ignore[arg-type]
        (Extend(id="1", target="r", at=0, status="done"), "Invalid enum value 'done'"),  # type: ignore[arg-type]
        (Amend(id="1", at=0, run=Run("", "q")), "the id of an entry"),
    ],
    ids=repr,
)
def test_what_could_never_be_read_again_is_not_written(entry: Entry, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        codec.encode(entry)


def test_any_mapping_can_be_meta() -> None:
    frozen = MappingProxyType({"a": MappingProxyType({"b": 1})})
    assert again(Run("1", "q", meta=frozen)) == Run("1", "q", meta={"a": {"b": 1}})
    assert again(Run("1", LONE, meta=frozen)) == Run("1", LONE, meta={"a": {"b": 1}})


@pytest.mark.parametrize("text", ["x" * (50 << 20), "\ud83d" * (MAX_BODY // 6 + 1)], ids=["plain", "escapes"])
def test_a_body_that_is_too_large_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match=r"'1' takes [\d,]+ bytes, more than 33,554,432; keep large media"):
        codec.encode(Run("1", text))


# --- nesting ---


def test_nesting_is_capped_where_it_is_written() -> None:
    assert again(Run("1", "q", meta={"a": nested(MAX_DEPTH - 1)})).meta["a"] == nested(MAX_DEPTH - 1)  # type: ignore[union-attr]
    for levels in (MAX_DEPTH, 10_000):
        with pytest.raises(FormatError, match="nested deeper than 100 levels"):
            codec.encode(Run("1", "q", meta={"a": nested(levels)}))
        with pytest.raises(FormatError, match="nested deeper than 100 levels"):
            codec.encode(Run("1", (Json(value=nested(levels + 1)),)))
        with pytest.raises(FormatError, match="nested"):
            Opaque(b'{"a":' + b"[" * levels + b"]" * levels + b"}")


def test_results_in_results_are_capped_where_they_are_written() -> None:
    result = ToolResult("1", "nothing")
    for _ in range(9):
        result = ToolResult("1", (result,))
    assert again(Run("1", "q", (result,))) == Run("1", "q", (result,))
    for more in (1, 1_000):
        for _ in range(more):
            result = ToolResult("1", (result,))
        with pytest.raises(FormatError, match="nested deeper than 100 levels"):
            codec.encode(Run("1", "q", (result,)))


def deepest_entries() -> list[Entry]:
    """Return entries as deep as they can be, that take the fast path and the slow one."""
    opaque = Opaque(b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}")
    made: list[Entry] = []
    for leaf in (Json(value=nested(8)), opaque, Text(text=LONE), Text(text="", extra={"a": nested(8)})):
        part: Part = leaf
        for _ in range(9):
            part = ToolResult("1", (part,))
        run = Run("1", (part,), meta={"a": nested(MAX_DEPTH - 1)})
        made += [run, Amend(id="2", at=0, run=run)]
    return made


@pytest.mark.parametrize("entry", deepest_entries(), ids=range(8))
def test_what_can_be_stored_can_be_loaded_from_deep_in_a_stack(entry: Entry) -> None:
    """The limit of recursion counts the caller's frames too: that must not decide what can be read."""
    stored = deep_down(lambda: codec.encode(entry))
    assert stored == codec.encode(entry)
    assert deep_down(lambda: codec.decode(stored)) == entry


@pytest.mark.parametrize(
    "raw",
    [
        b'{"v":1,"kind":"run","id":"1","input":"q","meta":{"a":%s}}' % (b"[" * 10_000 + b"]" * 10_000),
        b'{"v":1,"kind":"run","id":"1","input":[{"kind":"other","a":%s}]}' % (b"[" * 10_000 + b"]" * 10_000),
        b'{"v":1,"kind":"run","id":"1","input":%s"q"%s}'
        % (b'[{"kind":"result","id":"1","content":' * 10_000, b"}]" * 10_000),
        b"[" * 10_000,
        b'{"v":' * 10_000,
    ],
    ids=["meta", "unknown part", "results", "arrays", "objects"],
)
def test_ten_thousand_levels_are_a_format_error(raw: bytes) -> None:
    with pytest.raises(FormatError):
        codec.decode(raw)
    with pytest.raises(FormatError):
        codec.decode_head(raw)
    assert isinstance(deep_down(lambda: codec.decode(raw)), FormatError)


# --- unknown parts ---

RAW_PARTS = [
    b'{"kind":"other"}',
    b'{ "z" : 1.10,\n\t"a":-0 , "kind" : "other","e":1E5 }',
    b'{"role":"assistant","content":null,"tool_calls":[]}',
    b'{"kind":["not","a","word"]}',
    b'{"kind":"other","n":123456789012345678901234567890,"f":1e999}',
    b'{"kind":"other","a":1,"a":2}',
    '{"kind":"other","text":"é \\u00e9 \\/"}'.encode(),
    b'{"kind":"text","words":"a text must have a text"}',
    b"{}",
]


@pytest.mark.parametrize("raw", RAW_PARTS, ids=range(len(RAW_PARTS)))
def test_unknown_parts_come_back_byte_for_byte(raw: bytes) -> None:
    run = Run("1", "q", (ToolResult("c", (Opaque(raw),)), Opaque(raw)), LONE)
    for entry in (run, msgspec.structs.replace(run, output="a"), Amend(id="2", at=0, run=run)):
        assert codec.encode(entry).count(raw) >= 2
        assert again(entry) == entry


def test_unknown_parts_are_read_as_others_wrote_them() -> None:
    stored = b'{"v":1,"kind":"run","id":"1","input":[{ "kind":"other", "n":1.10 } ,\n{"kind":"text","text":"a"}]}'
    run = codec.decode(stored)
    assert isinstance(run, Run)
    assert run.input == (Opaque(b'{ "kind":"other", "n":1.10 }'), Text(text="a"))


def test_an_unknown_part_does_not_keep_its_line_in_memory() -> None:
    stored = codec.encode(Run("1", "x" * 1_000_000, (Opaque(b'{"kind":"other"}'),)))
    tracemalloc.start()
    try:
        run = codec.decode(stored)
        assert isinstance(run, Run)
        parts = run.steps
        del run
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    (part,) = parts
    assert isinstance(part, Opaque)
    assert type(part.raw) is bytes
    assert sys.getsizeof(part.raw) < 100
    assert held < 100_000


# --- unknown fields, newer versions ---

NEWER = {
    "kind": "run",
    "id": "1",
    "input": [{"kind": "text", "text": "a", "kind2": 1, "v": 2, "minor": 0}],
    "steps": [{"kind": "result", "id": "c", "content": [{"kind": "json", "value": None, "unit": "m"}], "ms": 5}],
    "mood": {"a": [1, None]},
    "extra": {"b": 1},
}


def test_unknown_fields_of_a_newer_version_survive() -> None:
    stored = body(minor=3, **NEWER)
    run = codec.decode(stored)
    assert isinstance(run, Run)
    assert run.extra == {"minor": 3, "mood": {"a": [1, None]}, "extra": {"b": 1}}
    assert run.input == (Text(text="a", extra={"kind2": 1, "v": 2, "minor": 0}),)
    assert json.loads(codec.encode(run)) == json.loads(stored)
    assert again(run) == run
    edited = run.replace(output="answer")
    assert json.loads(codec.encode(edited)) == {**json.loads(stored), "output": "answer"}


def test_unknown_fields_survive_in_every_kind_of_entry() -> None:
    for entry in (
        body(minor=1, kind="extend", id="1", target="r", at=0, output=[], later=1),
        body(minor=1, kind="amend", id="1", at=0, run=NEWER, later=1),
        body(minor=1, kind="retract", id="1", target="r", at=0, later={"a": LONE}),
    ):
        assert json.loads(codec.encode(codec.decode(entry))) == json.loads(entry)


def test_unknown_fields_of_heads_and_summaries_survive() -> None:
    summary = {"content": "s", "upto": 1, "upto_id": "r0", "seen": 2, "kind": "bullet points", "v": 9}
    stored = body(minor=1, kind="head", summary=summary, meta={"a": 1}, later=[1])
    head = codec.decode_head(stored)
    assert head.summary is not None
    assert head.summary.extra == {"kind": "bullet points", "v": 9}
    assert json.loads(codec.encode_head(head)) == json.loads(stored)


def test_unknown_fields_of_ones_own_come_back() -> None:
    run = Run("1", (Text(text="a", extra={"b": 1}),), extra={"c": {"d": LONE}})
    assert again(run) == run
    assert codec.encode(run).startswith(b'{"v":1,"minor":0,')


def test_no_unknown_fields_of_ones_own_are_none() -> None:
    unknown = Opaque(b'{"kind":"other"}')
    run = Run("1", (unknown, Text(text="a", extra={})), extra={})
    assert again(run) == Run("1", (unknown, Text(text="a")))


@pytest.mark.parametrize(
    "entry",
    [
        Run("1", "q", extra={"id": "another"}),
        Run("1", "q", extra={"v": 2}),
        Run("1", "q", extra={"kind": "retract"}),
        Run("1", (Text(text="a", extra={"text": "b"}),)),
        Run("1", (ToolResult("c", (Text(text="a", extra={"kind": "b"}),)),)),
        Amend(id="1", at=0, run=Run("1", "q", extra={"input": ""})),
    ],
    ids=repr,
)
def test_unknown_fields_cannot_take_the_place_of_known_ones(entry: Entry) -> None:
    with pytest.raises(FormatError, match="is no unknown field"):
        codec.encode(entry)


def test_nulls_are_absent_fields() -> None:
    stored = body(minor=1, kind="run", id="1", input="q", output=None, counts=None, meta=None)
    assert codec.decode(stored) == Run("1", "q", extra={"minor": 1})


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (body(kind="run", id="1", input="q").replace(b'"v":1', b'"v":2'), "version 2 of the format"),
        (body(kind="poll", id="1"), "kind 'poll' was stored by a newer version; upgrade memkit"),
        (b'{"kind":"run","id":"1","input":"q"}', "not stored by memkit"),
        (b'{"v":1}', "kind None"),
        (b'{"runs": [], "metadata": {}}', "not stored by memkit"),
        (b"\x80\x04\x95 a pickle", "not what memkit stores"),
        (b"", "not what memkit stores"),
        (b"null", "not what memkit stores"),
        (b'{"v":1,"kind":"run","id":"1"}', "Missing required argument 'input'"),
        (b'{"v":1,"kind":"run","id":1,"input":"q"}', "Expected `str`, got `int`"),
        (b'{"v":1,"kind":"run","id":null,"input":"q"}', "Expected `str`, got `null`"),
        (b'{"v":1,"kind":"run","id":"1","input":"q","status":"done"}', "Invalid enum value 'done'"),
        (b'{"v":1,"kind":"run","id":"1","input":"q","steps":["a"]}', "not what memkit stores"),
        (b'{"v":1,"kind":"run","id":"1","input":"q"} {}', "something follows"),
        (b'{"v":1,"kind":"run","id":"1","input":"q","meta":{"a":NaN}}', "NaN is not JSON"),
        (b'{"v":1,"kind":"run","id":"1","input":"\xff"}', "not what memkit stores"),
    ],
    ids=range(16),
)
def test_what_cannot_be_read_says_why(raw: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        codec.decode(raw)


def test_an_entry_is_no_head_and_a_head_no_entry() -> None:
    with pytest.raises(FormatError, match="kind 'run'"):
        codec.decode_head(codec.encode(Run("1", "q")))
    with pytest.raises(FormatError, match="kind 'head'"):
        codec.decode(codec.encode_head(Head()))


# --- damaged bytes ---


@examples(200)
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | st.text('{}[]",:v1kind\\u ').map(str.encode)
)
def test_arbitrary_bytes_are_a_format_error(raw: bytes) -> None:
    for read in (codec.decode, codec.decode_head):
        for prefix in (b"", b'{"v":1,"kind":', b'{"v":1,"minor":1,"kind":"run",'):
            with suppress(FormatError):
                read(prefix + raw)


@examples(200)
@given(entries, st.data())
def test_a_cut_body_is_a_format_error(entry: Entry, data: st.DataObject) -> None:
    stored = codec.encode(entry)
    with pytest.raises(FormatError):
        codec.decode(stored[: data.draw(st.integers(0, len(stored) - 1))])


@examples(200)
@given(entries, st.data())
def test_a_damaged_body_is_read_or_a_format_error(entry: Entry, data: st.DataObject) -> None:
    stored = bytearray(codec.encode(entry))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(stored) - 1))
        stored[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from([b"", b"0", b'"', b"}", b"\xff"])
        )
    with suppress(FormatError):
        assert isinstance(codec.decode(bytes(stored)), Entry)


@examples(200)
@given(heads, st.data())
def test_a_damaged_head_is_read_or_a_format_error(head: Head, data: st.DataObject) -> None:
    stored = bytearray(codec.encode_head(head))
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at : at + 1] = data.draw(st.sampled_from([b"", b"0", b'"', b"}", b"\xff", b",null"]))
    with suppress(FormatError):
        assert isinstance(codec.decode_head(bytes(stored)), Head)


# --- memory ---


def test_the_garbage_collector_does_not_look_at_runs() -> None:
    part_kinds = (
        Text(text="a"),
        Json(value=1),
        Blob(media_type="a", data=b""),
        Ref(url="a"),
        ToolCall("c", "look"),
        ToolResult("c"),
    )
    run = again(Run("1", "q", part_kinds, "a", counts=Counts("c", 1, 2, 3, 4)))
    assert isinstance(run, Run)
    for value in (run, run.counts, *run.steps):
        assert not gc.is_tracked(value)


def test_runs_share_what_they_have_in_common() -> None:
    stored = [codec.encode(Run(str(n), "q", counts=Counts("a counter", n))) for n in range(2)]
    stored.append(codec.encode(Amend(id="a", at=0, run=Run("1", LONE, counts=Counts("a counter", 1)))))
    first, second, amend = map(codec.decode, stored)
    assert isinstance(first, Run)
    assert isinstance(second, Run)
    assert isinstance(amend, Amend)
    assert first.counts is not None
    assert second.counts is not None
    assert amend.run.counts is not None
    assert first.counts.name is second.counts.name is amend.run.counts.name
    assert first.meta is second.meta is amend.run.meta is EMPTY
    assert first.extra is second.extra is amend.extra is EMPTY


@pytest.mark.parametrize(
    "body",
    [
        b'{"v":1,"minor":0,"kind":"run","id":"a","input":"q",}',
        b'{"v":1,"minor":0,"kind":"run","id":"a","input":"q","steps":[{"kind":"new"},]}',
        b'{"v":1,"minor":0,"kind":"run","id":"a","input":"q",1:2}',
    ],
)
def test_what_is_nearly_json_is_not_read(body: bytes) -> None:
    with pytest.raises(FormatError):
        codec.decode(body)

"""Files in version 1 of the stored format, which every later memkit reads as this one does.

A file here is never changed and never deleted: somebody's conversations are stored like that. What a new
version writes in another way becomes a new file.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from memkit.codec import JsonCodec
from memkit.content import Blob, Json, Known, Opaque, Ref, Text, ToolCall, ToolResult
from memkit.conversation import Head, Summary
from memkit.run import Amend, Counts, Entry, Extend, Retract, Run

GOLDEN = Path(__file__).parent / "golden" / "v1"

codec = JsonCodec()

RUN = "018c2f3a4b5c0000000000000001"
CHANGE = "018c2f3a4b5d0000000000000002"
FIELDS = {"later": {"a": [1, 2.5, None, True]}}

WRITTEN: dict[str, Entry | Head] = {
    "run-minimal": Run(RUN, "What is my name?"),
    "run-plain": Run(
        RUN,
        "What is my name?",
        (),
        "You have not told me yet, Zoë.",
        created_at=1701234567.25,
        counts=Counts("o200k_base+media765", 5, 0, 8, 2),
    ),
    "run-nothing-said": Run(RUN, (), (), "", status="partial"),
    "run-all-parts": Run(
        RUN,
        (
            Text(text="Look at this:"),
            Blob(media_type="image/png", data=b"\x89PNG\r\n\x1a\n"),
            Ref(url="https://example.com/a.png", media_type="image/png", text="a chart"),
            Ref(url="https://example.com/b"),
            Json(value={"list": [1, -2.5, True, None, "x"], "empty": {}, "large": 2**64 - 1}),
            Json(value=None),
        ),
        (
            ToolCall("call_1", "look_up", '{"name": "Ada"}'),
            ToolCall("call_2", "now"),
            ToolResult("call_1", "a mathematician", "look_up"),
            ToolResult("call_2", (Text(text="no clock"), Json(value={"code": 7})), error=True),
            ToolResult("call_3"),
        ),
        (Text(text="First part."), Text(text="Second part.")),
        created_at=1701234567.0,
        meta={"channel": "web", "tags": ["a", "b"], "nested": {"score": 0.5}},
        counts=Counts("o200k_base+media765", 1551, 40, 6, 6),
    ),
    "run-unknown-part": Run(RUN, "q", (Opaque(b'{"kind":"reasoning","text":"\\u00fc","n":[1.10,-0,1E5]}'),)),
    "run-newer-field": Run(RUN, (Text(text="a", extra={"language": "en"}),), extra={"minor": 1}),
    "run-part-of-another-shape": Run(RUN, (Opaque(b'{"kind":"text","segments":["a","b"]}'),)),
    "run-lone-surrogates": Run(RUN, "half a \ud83d pair", (Text(text="\udfff"),), meta={"\ud800": "\ud800"}),
    "run-unknown-fields": Run(
        RUN,
        (Text(text="a", extra=FIELDS),),
        (ToolResult("c", (Opaque(b'{"kind":"other"}'), Json(value=None, extra=FIELDS)), extra=FIELDS),),
        extra={"minor": 2, **FIELDS},
    ),
    "extend-steps": Extend(
        id=CHANGE,
        target=RUN,
        at=41,
        drop=1,
        steps=(ToolCall("call_1", "look_up", "{}"), ToolResult("call_1", "found")),
        counts=Counts("o200k_base+media765", 0, 9, 0, 2),
    ),
    "extend-answer": Extend(id=CHANGE, target=RUN, at=41, output="Done.", status="complete"),
    "extend-no-answer": Extend(id=CHANGE, target=RUN, at=41, output=(), status="partial"),
    "amend": Amend(id=CHANGE, at=41, run=Run(RUN, "edited", (), "answer", created_at=1701234567.25)),
    "amend-unknown-fields": Amend(id=CHANGE, at=41, run=Run(RUN, "edited", extra=FIELDS), extra={"minor": 1}),
    "retract": Retract(id=CHANGE, target=RUN, at=41),
    "head-empty": Head(),
    "head-meta": Head(meta={"title": "Names", "pins": [RUN], "n": 0}),
    "head-summary": Head(
        summary=Summary(
            content="They talked about names.",
            upto=40,
            upto_id=RUN,
            seen=44,
            created_at=1701234567.25,
            model="gpt-5-mini",
            counts=Counts("o200k_base+media765", 0, 0, 6, 1),
        )
    ),
    "head-unknown-fields": Head(
        summary=Summary(content="\ud83d", upto=1, upto_id=RUN, seen=1, extra={"kind": "bullets", "v": 2}),
        extra={"minor": 7, "etag": "x"},
    ),
}
"""What this version writes, byte for byte."""

READ: dict[str, Entry | Head] = {
    "read-whitespace": Run(RUN, (Opaque(b'{ "kind" : "other",\n  "n" : 1.10 }'), Text(text="a"))),
    "read-nulls": Run(RUN, "q"),
}
"""What others may have written, and this version would write in another way."""

EVERYTHING = WRITTEN | READ


def stored(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes().removesuffix(b"\n")


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_golden_file_is_read_as_ever(name: str) -> None:
    read = codec.decode_head if isinstance(EVERYTHING[name], Head) else codec.decode
    assert read(stored(name)) == EVERYTHING[name]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_golden_file_is_written_as_ever(name: str) -> None:
    value = WRITTEN[name]
    assert stored(name) == (codec.encode_head(value) if isinstance(value, Head) else codec.encode(value))


def test_no_golden_file_is_forgotten() -> None:
    assert {file.stem for file in GOLDEN.iterdir()} == set(EVERYTHING)


def test_every_kind_of_entry_and_part_is_golden() -> None:
    everything = b"".join(map(stored, EVERYTHING))
    kinds = [kind.__struct_config__.tag for kind in (*get_args(Known), *get_args(Entry), Head)]
    assert len(kinds) == 11
    for kind in kinds:
        assert b'"kind":"%s"' % str(kind).encode() in everything

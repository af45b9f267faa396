"""The codec for threads of Griptape Cloud: what it writes, and what else it finds there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkit.adapters.griptape import GriptapeCodec
from memkit.checks import check_entry, check_head
from memkit.codec import MAX_BODY, Codec
from memkit.content import Json, Text, ToolCall, ToolResult
from memkit.conversation import Head, Summary
from memkit.errors import FormatError, UnsupportedError
from memkit.run import Amend, Counts, Extend, Retract, Run
from tests.histories import examples, heads, json_values
from tests.histories import runs as any_run

codec: Codec = GriptapeCodec()


def message(input: Any = "q", output: Any = "o", **more: Any) -> bytes:
    return json.dumps({"input": input, "output": output, **more}).encode()


def artifact(value: Any, **more: Any) -> str:
    return json.dumps({"type": "TextArtifact", "value": value, **more})


# --- runs ---


def test_a_plain_run_is_a_message_as_griptape_writes_it() -> None:
    body = codec.encode(Run("r", "hi", output="lo", meta={"k": 1}))
    assert body == msgspec.json.encode(
        {"input": artifact("hi"), "output": artifact("lo"), "metadata": {"run_id": "r", "k": 1}}
    )


def test_what_griptape_has_no_word_for_is_in_one_key() -> None:
    steps = (ToolCall("c", "look", "{}"), ToolResult("c", "12 degrees"))
    run = Run("r", "hi", steps, "lo", 5.0, "partial", {"k": 1}, Counts("x", 1, 2, 3, 4), extra={"later": True})
    metadata = json.loads(codec.encode(run))["metadata"]
    assert list(metadata) == ["run_id", "k", "memkit"]
    assert metadata["memkit"]["set"].keys() == {"steps", "created_at", "status", "counts", "later"}
    assert codec.decode(codec.encode(run)) == run


@pytest.mark.parametrize("meta", [{"run_id": "mine"}, {"memkit": 1}, {"memkit": {"v": 1}, "a": 2}, {"a": {}}])
def test_a_meta_with_names_of_ours_comes_back(meta: dict[str, Any]) -> None:
    run = Run("r", "hi", output="lo", meta=meta)
    assert json.loads(codec.encode(run))["metadata"]["run_id"] == "r"
    assert codec.decode(codec.encode(run)) == run


@examples(150)
@given(any_run)
def test_every_run_comes_back(run: Run) -> None:
    body = codec.encode(run)
    found = json.loads(body)
    assert list(found) == ["input", "output", "metadata"]
    assert found["metadata"]["run_id"] == run.id
    assert all(json.loads(found[side])["type"].endswith("Artifact") for side in ("input", "output"))
    assert codec.decode(body) == run


@pytest.mark.parametrize(
    "change", [Extend("e", "r", 0, output="more"), Amend("e", 0, Run("r", "q")), Retract("e", "r", 0)]
)
def test_a_thread_holds_no_changes(change: Any) -> None:
    with pytest.raises(UnsupportedError, match=f"whole runs: the {type(change).__name__} 'e'"):
        codec.encode(change)


@pytest.mark.parametrize("run", [Run("", "q"), Run("r", "q", meta={"n": float("nan")}), Run("r", (Json({1}),))])
def test_what_json_cannot_hold_is_refused(run: Run) -> None:
    with pytest.raises(FormatError):
        codec.encode(run)


def test_a_body_has_a_largest_size() -> None:
    # As JSON text within JSON, each of these quotes takes four bytes.
    with pytest.raises(FormatError, match="bytes, more than"):
        codec.encode(Run("r", '"' * (MAX_BODY // 4)))
    with pytest.raises(FormatError, match="bytes, more than"):
        codec.encode_head(Head(meta={"n": "x" * MAX_BODY}))


# --- messages of others ---


def test_a_message_of_griptape_keeps_its_artifacts() -> None:
    body = message(artifact("hi", id="a"), artifact("lo", id="b"), metadata={"run_id": "r", "k": 1})
    run = codec.decode(body)
    assert (run.id, run.input, run.output, run.meta) == ("r", "hi", "lo", {"k": 1})
    assert run.extra["griptape"]["input"] == {"type": "TextArtifact", "id": "a"}
    found, again = json.loads(body), json.loads(codec.encode(run))
    for side in ("input", "output"):
        found[side], again[side] = json.loads(found[side]), json.loads(again[side])
    assert again == found


@pytest.mark.parametrize("metadata", [None, {}, {"k": 1}])
def test_a_message_without_a_run_id_has_that_of_the_message(metadata: Any) -> None:
    run = codec.decode(message(message_id="m", metadata=metadata))
    assert (run.id, run.input, run.output, run.meta) == ("m", "q", "o", metadata or {})
    assert codec.decode(message(message_id="m")).id == "m"


@pytest.mark.parametrize(
    ("said", "content"),
    [
        ("plain", "plain"),
        ("", ""),
        ('{"a": 1}', '{"a": 1}'),
        ('{"type": "object", "value": 1}', '{"type": "object", "value": 1}'),
        ("[1]", "[1]"),
        ("5", "5"),
        ("[" * 100_000, "[" * 100_000),
        (json.dumps({"type": "JsonArtifact", "value": {"a": 1}}), (Json({"a": 1}),)),
        (json.dumps({"type": "ListArtifact", "value": [{"type": "TextArtifact", "value": "x"}]}), (Text("x"),)),
        (json.dumps({"type": "CsvRowArtifact", "value": {"a": 1}}), '{"a": 1}'),
        ({"type": "TextArtifact", "value": "x"}, "x"),
        (None, ""),
        (5, "5"),
    ],
)
def test_what_is_no_artifact_is_text(said: Any, content: Any) -> None:
    run = codec.decode(message(said, metadata={"run_id": "r"}))
    assert msgspec.structs.replace(run, extra={}).input == (
        (Text("x", extra={}),) if content == (Text("x"),) else content
    )
    assert codec.decode(codec.encode(run)) == run


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        message(metadata=[1], message_id="m"),
        message(metadata={"run_id": 5}, message_id="m"),
        message(metadata={"run_id": "", "memkit": {"v": 1, "set": {"id": "other"}}}),
        b'{"metadata": {"n": NaN, "big": 1000000000000000000000000000}}',
        b'{"input": "q", "message_id": ""}',
    ],
)
def test_odd_messages_are_runs_too(body: bytes) -> None:
    run = codec.decode(body)
    check_entry(run)
    assert codec.decode(body) == run
    assert codec.decode(codec.encode(run)) == run


def test_metadata_give_a_message_no_other_id() -> None:
    metadata = {"run_id": "r", "memkit": {"v": 1, "set": {"id": "other", "status": "partial"}}}
    run = codec.decode(message(metadata=metadata))
    assert (run.id, run.status) == ("r", "partial")


@examples(150)
@given(
    st.dictionaries(
        st.sampled_from(("input", "output", "metadata", "message_id", "index")),
        json_values | st.dictionaries(st.sampled_from(("run_id", "memkit", "k")), json_values),
    )
)
def test_every_object_in_a_thread_is_a_run(found: dict[str, Any]) -> None:
    run = codec.decode(json.dumps(found).encode())
    check_entry(run)
    assert codec.decode(codec.encode(run)) == run


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"5", b'"text"', b"null", b"\xff", b"[" * 100_000, b"{}{}"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(FormatError):
        codec.decode(body)
    with pytest.raises(FormatError):
        codec.decode_head(body)


# --- heads ---


def test_a_head_is_metadata_as_griptape_reads_it() -> None:
    head = Head(summary=Summary(content="s", upto=3, upto_id="c", seen=5, model="m"), meta={"k": 1})
    metadata = json.loads(codec.encode_head(head))
    assert list(metadata) == ["k", "summary", "summary_index", "memkit"]
    assert (metadata["summary"], metadata["summary_index"]) == ("s", 3)
    assert codec.decode_head(codec.encode_head(head)) == head


def test_an_empty_head_is_an_empty_object() -> None:
    assert codec.encode_head(Head()) == b"{}"
    assert codec.decode_head(b"{}") == Head()


def test_metadata_of_an_old_griptape_are_read() -> None:
    old = {"type": "SummaryConversationMemory", "max_runs": 9, "offset": 1, "summary": "s", "summary_index": 2}
    head = codec.decode_head(json.dumps(old).encode())
    assert head.summary == Summary(content="s", upto=2, upto_id="", seen=2)
    assert head.meta == {"type": "SummaryConversationMemory", "max_runs": 9, "offset": 1}
    assert json.loads(codec.encode_head(head)) == old


@examples(150)
@given(heads)
def test_every_head_comes_back(head: Head) -> None:
    assert codec.decode_head(codec.encode_head(head)) == head


@examples(150)
@given(
    st.dictionaries(
        st.sampled_from(("summary", "summary_index", "memkit", "k")),
        json_values | st.just("s") | st.integers(0, 3) | st.just({"v": 1, "set": {"later": 1}}),
    )
)
def test_every_metadata_is_a_head(metadata: dict[str, Any]) -> None:
    head = codec.decode_head(json.dumps(metadata).encode())
    check_head(head)
    assert codec.decode_head(codec.encode_head(head)) == head


# --- what it costs ---


def calls_of(do: Callable[[], object]) -> int:
    """Return how many functions are called, in Python and in C: what takes time, without a clock."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        do()
    finally:
        sys.setprofile(before)
    return count


def test_a_plain_message_is_decoded_without_a_detour() -> None:
    body = codec.encode(Run("r", "a question", output="an answer", created_at=5.5, counts=Counts("x", 1, 2, 3, 4)))
    assert calls_of(lambda: codec.decode(body)) < 250


def test_a_large_value_is_checked_twice_at_most_when_it_is_encoded() -> None:
    count = 2_000
    large = Run("r", (Json({str(n): [n, "abc"] for n in range(count)}),), created_at=5.5)
    checks = calls_of(lambda: check_entry(large))
    assert calls_of(lambda: codec.encode(large)) < 2 * checks

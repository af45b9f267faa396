"""What griptape has stored, in every form, and what is written for it: read by griptape itself where it can be."""

from __future__ import annotations

import base64
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkit.adapters.griptape import Imported, dump, read
from memkit.adapters.griptape.artifacts import artifact_of, content_of
from memkit.checks import check_entry, check_head
from memkit.content import Blob, Json, Opaque, Ref, Text, ToolCall, ToolResult, text_of
from memkit.conversation import Head, Summary
from memkit.errors import FormatError
from memkit.run import Counts, Run
from tests.histories import examples, heads, json_values
from tests.histories import runs as any_run

FILES = [
    *(f"0.25.1/local_{name}.json" for name in ("agent", "max_runs", "summary", "text")),
    *(f"1.13.0/local_{name}.json" for name in ("agent", "max_runs", "meta", "summary", "text")),
    *(
        f"1.13.0/local_artifact_{name}.json"
        for name in (
            "booleanartifact",
            "errorartifact",
            "genericartifact_number",
            "imageartifact",
            "imageurlartifact",
            "infoartifact",
            "jsonartifact",
            "listartifact_text_text",
            "textartifact",
        )
    ),
]


@pytest.fixture(scope="session")
def griptape() -> Any:
    """The real griptape; importing it replaces the encoder of `json`, which is put back."""
    default = json.JSONEncoder.default
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        artifacts = pytest.importorskip("griptape.artifacts")
        from griptape.drivers.memory.conversation.local import LocalConversationMemoryDriver
        from griptape.memory.structure import Run as GriptapeRun
    json.JSONEncoder.default = default
    return SimpleNamespace(artifacts=artifacts, Run=GriptapeRun, Local=LocalConversationMemoryDriver)


def memory(*runs: Any, **more: Any) -> str:
    return json.dumps({"runs": list(runs), **more})


def run(output: Any = "o", **more: Any) -> dict[str, Any]:
    return {"type": "Run", "id": "r", "input": {"type": "TextArtifact", "value": "q"}, "output": output, **more}


def only(stored: str) -> Run:
    (found,) = read(stored).runs
    return found


def again(imported: Imported) -> Imported:
    return read(dump(imported.runs, imported.head))


# --- the files that griptape wrote ---


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_griptape_says_what_its_index_says(shared: Path, name: str) -> None:
    path = shared / "fixtures" / "griptape" / name
    entries = json.loads((path.parent / "index.json").read_text())["files"]
    entry = next(entry for entry in entries if entry["file"] == path.name)
    expected, in_file = entry["expected"], entry["in_file"]
    found = read(path.read_bytes())
    assert found.problems == ()
    assert [item.id for item in found.runs] == [item["id"] for item in expected["runs"]]
    for item, wanted in zip(found.runs, expected["runs"], strict=True):
        assert dict(item.meta) == (wanted.get("meta") or {})
        for side in ("input", "output"):
            assert_says(getattr(item, side), item.extra.get("griptape", {}).get(side, {}), wanted[side])
    assert found.max_runs == in_file["max_runs"]
    assert found.head.meta == (in_file["meta"] or {})
    summary = found.head.summary
    assert (summary and summary.content) == in_file["summary"]
    assert (summary and summary.upto) == in_file["summary_index"]
    assert again(found) == found


def assert_says(content: Any, shell: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert shell.get("id") == wanted.get("id")
    match wanted["type"]:
        case "str" | "TextArtifact" | "InfoArtifact" | "ErrorArtifact":
            assert content == wanted["text"]
        case "JsonArtifact" | "GenericArtifact" | "BooleanArtifact":
            assert content == (Json(json.loads(wanted["text"])),)
        case "ListArtifact":
            assert [part.text for part in content] == [child["text"] for child in wanted["children"]]
            assert [part.extra["griptape"]["id"] for part in content] == [
                child["id"] for child in wanted["children"]
            ]
        case "ImageArtifact":
            assert f"Image, format: png, size: {len(content[0].data)} bytes" == wanted["text"]
            assert content[0].media_type == "image/png"
        case "ImageUrlArtifact":
            assert content == (Ref(wanted["text"], "image/*"),)
        case other:
            pytest.fail(f"no such artifact in the files: {other}")
    assert wanted["type"] == "str" or shell["type"] == wanted["type"]


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("1.13")])
def test_a_file_of_the_newest_griptape_is_written_byte_for_byte(shared: Path, name: str) -> None:
    text = (shared / "fixtures" / "griptape" / name).read_text()
    found = read(text)
    assert dump(found.runs, found.head) == text


@pytest.mark.parametrize("name", FILES)
def test_griptape_reads_what_was_written_of_its_files(
    shared: Path, griptape: Any, tmp_path: Path, name: str
) -> None:
    found = read((shared / "fixtures" / "griptape" / name).read_bytes())
    path = tmp_path / "memory.json"
    path.write_text(dump(found.runs, found.head))
    runs, metadata = griptape.Local(persist_file=str(path)).load()
    assert [item.id for item in runs] == [item.id for item in found.runs]
    for theirs, ours in zip(runs, found.runs, strict=True):
        assert without_memkit(theirs.meta) == dict(ours.meta)
        for side in ("input", "output"):
            if isinstance(said := getattr(ours, side), str):
                assert getattr(theirs, side).to_text() == said
    summary = found.head.summary
    assert metadata.get("summary") == (summary and summary.content)
    assert metadata.get("summary_index") == (summary and summary.upto)
    assert {key: metadata[key] for key in found.head.meta} == found.head.meta


def without_memkit(meta: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (meta or {}).items() if key != "memkit"}


# --- what griptape writes of whatever it holds ---

names = st.sampled_from(("n", "é", "\ud800", ""))
some_meta = st.dictionaries(names, json_values, max_size=2)
text_kinds = st.sampled_from(("TextArtifact", "InfoArtifact", "ErrorArtifact"))


def kind(of: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"type": st.just(of), "name": names, "meta": some_meta, **fields})


encoded = st.binary(max_size=5).map(lambda data: base64.b64encode(data).decode())
lone_artifacts = st.one_of(
    st.fixed_dictionaries({"type": text_kinds, "value": st.text(max_size=5)}),
    kind("TextArtifact", value=names, reference=st.just({"title": "a book", "authors": ["A"]})),
    kind("JsonArtifact", value=st.dictionaries(names, json_values | st.just(float("nan")))),
    kind("JsonArtifact", value=st.lists(json_values.filter(lambda value: value is not None))),
    kind("GenericArtifact", value=json_values.filter(lambda value: value is not None)),
    kind("GenericArtifact", value=st.sampled_from((10**30, float("inf"), {"a": float("nan")}))),
    kind("ModelArtifact", value=st.dictionaries(st.sampled_from("ab"), st.integers(0, 9))),
    kind("BooleanArtifact", value=st.booleans()),
    kind("BlobArtifact", value=encoded),
    kind("AudioArtifact", value=encoded, format=st.sampled_from(("mp3", "wav", "mpeg"))),
    kind("ImageArtifact", value=encoded, format=names | st.just("JPG"), width=st.just(3), height=st.just(4)),
    kind("ImageUrlArtifact", value=names),
    kind("AudioUrlArtifact", value=names),
    kind("VideoUrlArtifact", value=names),
    kind(
        "ActionArtifact",
        value=st.fixed_dictionaries({"tag": names, "name": names, "path": st.none() | names, "input": some_meta}),
    ),
)
griptape_artifacts = lone_artifacts | kind(
    "ListArtifact",
    value=st.lists(lone_artifacts | kind("ListArtifact", value=st.lists(lone_artifacts, max_size=2)), max_size=3),
    item_separator=names,
)
griptape_runs = st.fixed_dictionaries(
    {"meta": st.none() | some_meta, "input": griptape_artifacts, "output": griptape_artifacts}
)
griptape_metadata = st.one_of(
    st.just({}),
    some_meta,
    st.just({"summary": "s", "summary_index": 1, "x": 1}),
    st.just({"x": 1, "summary": "s", "summary_index": 0}),
    st.just({"summary": None, "summary_index": 0, "max_runs": 3, "offset": 1, "n": float("nan")}),
)


@examples(60)
@given(st.lists(griptape_runs, min_size=1, max_size=2), griptape_metadata)
def test_whatever_griptape_writes_comes_back_byte_for_byte(
    griptape: Any, runs: list[dict[str, Any]], metadata: dict[str, Any]
) -> None:
    held = [griptape.Run.from_dict(item) for item in runs]
    text = json.dumps({"runs": [item.to_dict() for item in held], "metadata": metadata})
    found = read(text)
    assert dump(found.runs, found.head) == text


# --- what memkit holds ---


def rebased(head: Head, runs: list[Run]) -> Head:
    """Return a head whose summary counts the runs of the dump."""
    if head.summary is None:
        return head
    ids = [item.id for item in runs]
    upto = ids.index(head.summary.upto_id) + 1 if head.summary.upto and head.summary.upto_id in ids else 0
    moved = msgspec.structs.replace(head.summary, upto=upto, upto_id=ids[upto - 1] if upto else "", seen=upto)
    return msgspec.structs.replace(head, summary=moved)


some_runs = st.lists(any_run, max_size=3, unique_by=lambda item: item.id)


@examples(150)
@given(some_runs, heads)
def test_every_run_and_head_comes_back(runs: list[Run], head: Head) -> None:
    found = read(dump(runs, head))
    assert found.runs == tuple(runs)
    assert found.head == rebased(head, runs)
    assert found.problems == ()


@examples(60)
@given(some_runs, heads)
def test_griptape_loads_every_dump(griptape: Any, runs: list[Run], head: Head) -> None:
    stored = json.loads(dump(runs, head))
    assert list(stored) == ["runs", "metadata"]
    for item, ours in zip(stored["runs"], runs, strict=True):
        theirs = griptape.Run.from_dict(item)
        assert theirs.id == ours.id
        assert isinstance(ours.input, tuple) or theirs.input.to_text() == ours.input


def test_what_griptape_stores_again_still_holds_all_of_a_run(griptape: Any) -> None:
    result = ToolResult("c", "12 degrees")
    ours = Run(
        "r", "hi", (ToolCall("c", "look", "{}"), result), "lo", 5.0, "partial", {"k": 1}, Counts("x", 1, 2, 3, 4)
    )
    theirs = griptape.Run.from_dict(json.loads(dump([ours]))["runs"][0])
    back = only(memory(theirs.to_dict()))
    assert msgspec.structs.replace(back, extra=ours.extra) == ours
    assert back.extra["griptape"]["input"]["type"] == "TextArtifact"


def test_a_plain_run_takes_no_more_than_griptape_needs() -> None:
    stored = json.loads(dump([Run("r", "hi", output="lo", meta={"k": 1})]))
    assert stored == {
        "runs": [
            {
                "type": "Run",
                "id": "r",
                "meta": {"k": 1},
                "input": {"type": "TextArtifact", "value": "hi"},
                "output": {"type": "TextArtifact", "value": "lo"},
            }
        ],
        "metadata": {},
    }


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\ud800",
        (),
        (Json({"a": [1]}),),
        (Json([1, None]),),
        (Json(None),),
        (Json(True),),
        (Json(2.5),),
        (Json("{"),),
        (Blob("image/png", b"x"),),
        (Blob("image/jpeg", b"x"),),
        (Blob("audio/mpeg", b"x"),),
        (Blob("audio/wav", b""),),
        (Blob("application/octet-stream", b"\xff"),),
        (Ref("u", "image/*"),),
        (Ref("u", "audio/*"),),
        (Ref("u", "video/*"),),
        (ToolCall("t", "n", '{"a": 1}'),),
        (Text("a"), Json(1), Ref("u", "image/*")),
        (Text("a"),),
    ],
)
def test_griptape_has_words_for_most_content(griptape: Any, content: Any) -> None:
    artifact = artifact_of(content, {})
    assert content_of(artifact) == (content, {})
    griptape.artifacts.BaseArtifact.from_dict(artifact)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ((Ref("u", "text/html", "a page"),), "a page"),
        ((Ref("u"),), "[media at u]"),
        ((ToolCall("t", "n", "{"),), "n({)"),
        ((Opaque(b'{"kind": "later",  "text": "t"}'),), "t"),
    ],
)
def test_what_griptape_has_no_words_for_is_text_to_it_and_itself_to_memkit(content: Any, text: str) -> None:
    stored = dump([Run("r", content)])
    assert json.loads(stored)["runs"][0]["input"] == {"type": "TextArtifact", "value": text}
    assert only(stored).input == content


def test_changed_text_keeps_the_artifact_it_was_in() -> None:
    found = only(memory(run({"type": "InfoArtifact", "id": "i", "name": "n", "value": "old"})))
    stored = json.loads(dump([msgspec.structs.replace(found, output="new")]))["runs"][0]
    assert stored["output"] == {"type": "InfoArtifact", "id": "i", "name": "n", "value": "new"}
    assert "old" not in json.dumps(stored)


def test_another_kind_of_content_leaves_the_artifact_it_was_in() -> None:
    found = only(memory(run({"type": "InfoArtifact", "id": "i", "value": "old"})))
    stored = json.loads(dump([found.replace(output=(Json({"a": 1}),))]))["runs"][0]
    assert stored["output"] == {"type": "JsonArtifact", "value": {"a": 1}}


# --- the forms of older releases ---


def test_every_form_says_the_same() -> None:
    plain = {"id": "r", "input": "q", "output": "o"}
    artifacts = {"type": "Run", "id": "r", "input": text("q"), "output": text("o")}
    forms = [
        memory({**artifacts, "meta": None}, metadata={}),  # C
        memory(artifacts),
        memory(artifacts, metadata=None),
        memory(artifacts, type="ConversationMemory", meta={}, max_runs=None),  # B'
        memory(artifacts, type="ConversationMemory", max_runs=None),  # B
        memory({"type": "Run", **plain}, type="ConversationMemory", max_runs=None),  # A
        json.dumps({"type": "ConversationMemory", "runs": [plain]}, indent=2),  # A0
        json.dumps([plain]),
        "\ufeff" + memory(plain),
    ]
    for form in forms:
        assert read(form) == read(form.encode()) == Imported((Run("r", "q", output="o"),), Head())


def text(value: str) -> dict[str, Any]:
    return {"type": "TextArtifact", "value": value}


def test_an_empty_object_is_an_empty_memory() -> None:
    assert read("{}") == Imported((), Head())
    assert json.loads(dump(())) == {"runs": [], "metadata": {}}


@pytest.mark.parametrize("place", ["top", "metadata", "meta"])
def test_a_summary_is_read_wherever_it_stands(place: str) -> None:
    fields = {"summary": "s", "summary_index": 1, "offset": 2, "max_runs": 5, "mine": {"a": 1}}
    where = fields if place == "top" else {place: fields}
    found = read(memory(run(id="a"), run(id="b"), type="SummaryConversationMemory", **where))
    assert found.head.summary == Summary(content="s", upto=1, upto_id="a", seen=1)
    assert (found.max_runs, found.offset) == (5, 2)
    kept = found.head.extra["griptape"] if place == "top" else found.head.meta
    assert kept["mine"] == {"a": 1}
    assert again(found) == found
    written = json.loads(dump(found.runs, found.head))["metadata"]
    assert (written["summary"], written["summary_index"]) == ("s", 1)


@pytest.mark.parametrize("index", [3, -1, 1.0, True, "1", None, 10**30])
def test_an_index_of_no_use_hides_no_run(index: Any) -> None:
    found = read(memory(run(id="a"), run(id="b"), metadata={"summary": "s", "summary_index": index}))
    assert found.head.summary == Summary(content="s", upto=0, upto_id="", seen=0)
    assert len(found.problems) == 1
    assert "summary_index" in found.problems[0]
    assert json.loads(dump(found.runs, found.head))["metadata"]["summary_index"] == 0


@pytest.mark.parametrize("summary", ["", None])
def test_an_empty_summary_is_none(summary: Any) -> None:
    stored = memory(metadata={"summary": summary, "summary_index": 0})
    found = read(stored)
    assert found.head.summary is None
    assert dump(found.runs, found.head) == stored


def test_a_structured_summary_is_its_text_to_griptape_and_itself_to_memkit() -> None:
    content = (Json({"facts": ["Ada has two cats"]}),)
    head = Head(summary=Summary(content=content, upto=1, upto_id="a", seen=1))
    stored = dump([Run("a", "q", output="o")], head)
    assert json.loads(stored)["metadata"]["summary"] == '{"facts":["Ada has two cats"]}'
    assert read(stored).head == head


def test_a_summary_counts_the_runs_that_are_dumped() -> None:
    runs = [Run(name, name) for name in "abc"]
    head = Head(summary=Summary(content="s", upto=40, upto_id="b", seen=47, model="m", created_at=3.0))
    found = read(dump(runs, head))
    assert found.head.summary == Summary(content="s", upto=2, upto_id="b", seen=2, model="m", created_at=3.0)
    head = Head(summary=Summary(content="s", upto=7, upto_id="an Extend", seen=9))
    assert json.loads(dump(runs, head))["metadata"] == {"summary": "s", "summary_index": 0}
    assert json.loads(dump(runs, head, positions=[4, 5, 8]))["metadata"] == {"summary": "s", "summary_index": 2}


def test_another_summary_of_griptape_takes_the_place_of_ours() -> None:
    counted = Summary(content="old", upto=1, upto_id="a", seen=1, model="m", counts=Counts("x", output=9))
    stored = json.loads(dump([Run("a", "q"), Run("b", "q")], Head(summary=counted)))
    stored["metadata"] |= {"summary": "new", "summary_index": 2}
    assert read(json.dumps(stored)).head.summary == Summary(content="new", upto=2, upto_id="b", seen=2)


# --- what griptape does not load ---


def test_ids_are_stable_and_never_twice_the_same() -> None:
    stored = memory(run(), run(), {"input": "q", "output": "o"}, run(id=None), run(id=5), run(id=""))
    found = read(stored)
    assert found == read(stored)
    ids = [item.id for item in found.runs]
    assert ids[0] == "r"
    assert len(set(ids)) == 6
    assert all(len(made) == 32 and int(made, 16) for made in ids[1:])
    assert again(found) == found
    written = json.loads(dump(found.runs, found.head))["runs"]
    assert [item["id"] for item in written] == ["r", "r", ids[2], ids[3], ids[4], ""]


def test_what_is_not_known_is_kept_and_griptape_never_sees_it(griptape: Any) -> None:
    artifact = {"type": "TextArtifact", "value": "o", "later": [1], "module_name": "os", "encoding": "utf-8"}
    found = read(memory(run(artifact, flag=True), more={"a": 1}))
    assert found.problems == ()
    assert found.runs[0].output == "o"
    assert found.runs[0].extra["griptape"] == {
        "flag": True,
        "output": {key: value for key, value in artifact.items() if key != "value"},
    }
    assert found.head.extra["griptape"] == {"more": {"a": 1}}
    (written,) = json.loads(dump(found.runs, found.head))["runs"]
    assert written["output"] == {"type": "TextArtifact", "value": "o"}
    griptape.Run.from_dict(written)
    assert again(found) == found


@pytest.mark.parametrize(
    ("artifact", "content", "is_known"),
    [
        ({"value": "o"}, "o", True),
        ({"type": "TextArtifact", "value": 5}, "5", True),
        ({"type": "TextArtifact", "value": None}, "", True),
        ({"type": "TextArtifact"}, "", True),
        ({"type": "TextArtifact", "value": {"a": 1}}, '{"a": 1}', False),
        ({"value": 5}, "5", False),
        ({"type": "CsvRowArtifact", "value": {"a": "b"}}, '{"a": "b"}', False),
        ({"type": "MediaArtifact", "value": "text"}, "text", False),
        ({"type": 7, "value": "text"}, "text", False),
        ({"type": "ImageArtifact", "value": "QQ==", "format": "jpg"}, (Blob("image/jpeg", b"A"),), True),
        ({"type": "ImageArtifact", "value": "QQ==", "mime_type": "image/gif"}, (Blob("image/gif", b"A"),), True),
        (
            {"type": "ImageArtifact", "value": "QQ==", "media_type": "image", "model": "m", "prompt": "p"},
            (Blob("image/*", b"A"),),
            True,
        ),
        ({"type": "BlobArtifact", "value": "QQ=\n="}, (Blob("application/octet-stream", b"A"),), True),
        ({"type": "BlobArtifact", "value": "Q!"}, "Q!", False),
        ({"type": "AudioArtifact", "value": "QQ==", "format": 3}, "QQ==", False),
        ({"type": "JsonArtifact", "value": float("nan")}, "NaN", False),
        ({"type": "JsonArtifact", "value": "{"}, (Json("{"),), True),
        ({"type": "GenericArtifact", "value": 2**70}, str(2**70), False),
        ({"type": "GenericArtifact", "value": None}, (Json(None),), True),
        ({"type": "ActionArtifact", "value": {"tag": 1}}, '{"tag": 1}', False),
        ({"type": "ListArtifact", "value": "x"}, "x", False),
        ({"type": "ImageUrlArtifact", "value": 1}, "1", False),
        ({}, "{}", False),
        (None, "", False),
        (5, "5", False),
        ([1], "[1]", False),
        ("text", "text", True),
    ],
)
def test_no_artifact_makes_a_memory_unreadable(griptape: Any, artifact: Any, content: Any, is_known: bool) -> None:
    found = read(memory(run(artifact)))
    assert found.runs[0].output == content
    assert bool(found.problems) is not is_known
    assert all(problem.startswith("run 0: output: ") for problem in found.problems)
    assert again(found).runs == found.runs
    (written,) = json.loads(dump(found.runs, found.head))["runs"]
    griptape.Run.from_dict(written)


def test_in_a_list_each_part_keeps_what_griptape_had_with_it() -> None:
    children = [
        {"type": "TextArtifact", "value": "a", "id": "1"},
        {"type": "CsvRowArtifact", "value": {"a": "b"}},
        {"type": "ListArtifact", "value": [{"type": "TextArtifact", "value": "b"}]},
        {"type": "JsonArtifact", "value": {"a": 1}, "name": "n"},
    ]
    found = only(memory(run({"type": "ListArtifact", "value": children, "id": "l"})))
    assert [getattr(part, "extra")["griptape"] for part in found.output] == [  # noqa: B009
        {"type": "TextArtifact", "id": "1"},
        children[1],
        children[2],
        {"type": "JsonArtifact", "name": "n"},
    ]
    assert text_of(found.output).splitlines()[:2] == ["a", '{"a": "b"}']
    assert only(dump([found])) == found


@pytest.mark.parametrize("depth", [90, 150])
def test_deep_values_are_kept(depth: int) -> None:
    value = json.loads("[" * depth + "]" * depth)
    stored = memory({**run({"type": "GenericArtifact", "value": value}), "meta": {"deep": value}}, metadata={})
    found = read(stored)
    check_entry(found.runs[0])
    assert json.loads(dump(found.runs, found.head)) == json.loads(stored)


def test_the_deepest_values_that_json_can_be_read_of_are_kept_or_refused() -> None:
    refused = 0
    for depth in range(180, 1_100, 7):
        value = "[" * depth + "]" * depth
        try:
            found = read(f'{{"runs": [{{"id": "r", "input": {{"type": "JsonArtifact", "value": {value}}}}}]}}')
        except FormatError:
            refused += 1
            continue
        assert found.runs[0].input == value
        assert again(found).runs == found.runs
    assert refused < 100


@pytest.mark.parametrize("stored", ["text", 5, None, [1], {}, {"input": "q"}, {"output": "o", "id": "x"}])
def test_what_is_no_run_is_kept_as_it_is(griptape: Any, stored: Any) -> None:
    found = read(memory(stored))
    assert found.problems[-1].startswith("run 0: it is ")
    (kept,) = found.runs
    assert json.loads(kept.extra["griptape"]) == stored
    griptape.Run.from_dict(json.loads(dump(found.runs))["runs"][0])
    assert again(found).runs == found.runs


def test_a_meta_that_is_no_object_is_kept_and_reported() -> None:
    found = read(memory(run(meta=[1])))
    assert found.runs[0].meta == {}
    assert found.runs[0].extra["griptape"]["meta"] == [1]
    assert found.problems == ("run 0: its meta is a list, no object, and kept beside it",)
    assert again(found).runs == found.runs


@pytest.mark.parametrize(
    "theirs", [5, {}, {"v": 2}, {"v": 1, "set": {"status": "odd"}}, {"v": 1, "text": {"x": "{"}}]
)
def test_a_memkit_key_that_is_not_ours_stays(theirs: Any) -> None:
    found = read(memory(run(meta={"memkit": theirs, "k": 1}), metadata={"memkit": [theirs]}))
    assert found.runs[0].meta == {"memkit": theirs, "k": 1}
    assert found.head.meta == {"memkit": [theirs]}
    assert [problem.split(":")[0] for problem in found.problems] == ["run 0", "metadata"]
    back = again(found)
    assert (back.runs, back.head, back.problems) == (found.runs, found.head, ())


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ("", "empty"),
        (" \n", "empty"),
        (b"", "empty"),
        ('{"runs": [{"type": "Run", "id": "8c4', "JSON"),
        ("hello", "JSON"),
        (b"\xff\xfe{", "JSON"),
        ("5", "int"),
        ('"text"', "str"),
        ("null", "NoneType"),
        ('{"runs": 5}', "int"),
        ('{"runs": null}', "NoneType"),
        ('{"error": "gone"}', "error"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_what_is_no_memory_is_an_error_that_says_so(stored: str | bytes, said: str) -> None:
    with pytest.raises(FormatError, match=said) as caught:
        read(stored)
    assert "nothing was changed" in str(caught.value)


def test_what_cannot_be_stored_is_not_dumped() -> None:
    with pytest.raises(FormatError):
        dump([Run("r", "q", meta={"n": float("nan")})])
    with pytest.raises(FormatError):
        dump([], Head(meta={"n": {1}}))


# --- hostile input ---

odd = json_values | st.sampled_from((float("nan"), 10**30, "\ud800", "QQ==", "Q", [None], {"a": {}}))
odd_artifacts = st.recursive(
    odd,
    lambda inner: st.fixed_dictionaries(
        {"value": inner | st.lists(inner, max_size=2)},
        optional={
            "type": st.sampled_from(("TextArtifact", "JsonArtifact", "ListArtifact", "ImageArtifact", "No")) | odd,
            "id": odd,
            "meta": odd,
            "format": st.just("png") | odd,
            "validate_uniform_types": st.booleans(),
            "module_name": st.just("os"),
        },
    ),
    max_leaves=3,
)
patches = st.fixed_dictionaries(
    {"v": st.just(1)},
    optional={
        "set": st.dictionaries(st.sampled_from(("id", "input", "steps", "kind", "v", "minor", "extra")), odd),
        "text": st.dictionaries(st.sampled_from(("id", "later", "summary")), st.text(max_size=5)),
        "unset": st.just(["input"]) | odd,
        "summary": odd,
    },
)
odd_meta = odd | st.fixed_dictionaries({}, optional={"memkit": patches | odd, "k": odd})
odd_runs = odd | st.fixed_dictionaries(
    {},
    optional={
        "type": odd,
        "id": st.sampled_from("ab") | odd,
        "meta": odd_meta,
        "input": odd_artifacts,
        "output": odd_artifacts,
        "more": odd,
    },
)
odd_heads = odd | st.fixed_dictionaries(
    {}, optional={"summary": odd, "summary_index": st.integers(-1, 3) | odd, "memkit": patches | odd, "k": odd}
)
odd_memories = st.fixed_dictionaries(
    {"runs": st.lists(odd_runs, max_size=3)},
    optional={"metadata": odd_heads, "meta": odd_heads, "summary": st.just("s") | odd, "max_runs": odd},
)


@examples(150)
@given(odd_memories)
def test_whatever_is_stored_becomes_runs_that_can_be_stored(stored: dict[str, Any]) -> None:
    found = read(json.dumps(stored))
    assert len(found.runs) == len(stored["runs"]) == len({item.id for item in found.runs})
    for item in found.runs:
        check_entry(item)
    check_head(found.head)
    back = again(found)
    assert (back.runs, back.head) == (found.runs, found.head)


@examples(60)
@given(odd_memories)
def test_griptape_loads_whatever_was_read(griptape: Any, stored: dict[str, Any]) -> None:
    found = read(json.dumps(stored))
    for item in json.loads(dump(found.runs, found.head))["runs"]:
        griptape.Run.from_dict(item)


@examples(150)
@given(odd_memories, st.integers(0, 400), st.binary(max_size=3), st.integers(0, 3))
def test_reading_raises_nothing_else(stored: dict[str, Any], at: int, put: bytes, drop: int) -> None:
    body = json.dumps(stored).encode()
    at = min(at, len(body))
    try:
        found = read(body[:at] + put + body[at + drop :])
    except FormatError:
        return
    for item in found.runs:
        check_entry(item)


# --- what is damaged, and what is removed ---


@pytest.mark.parametrize(
    ("value", "said"),
    [(b"9" * 5_000, "an integer of 5,000 digits"), (b'"a\xffb"', "not UTF-8"), (b'{"\xff": -1}', "not UTF-8")],
)
@pytest.mark.parametrize("place", ["the meta of a run", "a run", "the input of a run", "the metadata"])
def test_a_value_that_cannot_be_read_costs_no_run(place: str, value: bytes, said: str) -> None:
    odd = {
        "a run": value,
        "the meta of a run": b'{"id": "b", "input": "x", "output": "y", "meta": {"n": %b}}' % value,
        "the input of a run": b'{"id": "b", "input": {"type": "JsonArtifact", "value": %b}, "output": "y"}'
        % value,
    }.get(place, b'{"id": "b", "input": "x", "output": "y"}')
    metadata = value if place == "the metadata" else b"1"
    stored = b'{"runs": [{"id": "a", "input": "x", "output": "y"}, %b], "metadata": {"k": %b}}' % (odd, metadata)
    found = read(stored)
    assert len(found.runs) == 2
    assert found.runs[0] == Run("a", "x", output="y")
    (problem,) = (problem for problem in found.problems if said in problem)
    assert problem.startswith("metadata: " if place == "the metadata" else "run 1: ")
    assert again(found).runs == found.runs


def test_bytes_that_are_not_utf8_can_be_had_back() -> None:
    (found,) = read(b'{"runs": [{"id": "a", "input": "x", "output": "caf\xe9"}]}').runs
    assert isinstance(found.output, str)
    assert found.output.encode("utf-8", "surrogateescape") == b"caf\xe9"


def test_text_that_is_damaged_elsewhere_is_not_reported() -> None:
    stored = '{"runs": [{"id": "a", "input": "\\udcff", "output": "%s"}]}' % ("9" * 5_000)
    assert read(stored).problems == ()


SECRET = "the code is 4711"
KEPT_WHOLE = {
    "on top": {"summary": SECRET, "summary_index": 1, "metadata": {"big": 2**70}},
    "in the metadata": {"metadata": {"big": 2**70, "summary": SECRET, "summary_index": 1}},
    "beside metadata that are none": {"meta": {"summary": SECRET, "summary_index": 1}, "metadata": 5},
    "twice": {"summary": SECRET, "summary_index": 1, "metadata": {"summary": SECRET, "summary_index": 1}},
    "two of them": {"summary": "other", "summary_index": 1, "metadata": {"summary": SECRET, "summary_index": 1}},
}


@pytest.mark.parametrize("memory", KEPT_WHOLE.values(), ids=list(KEPT_WHOLE))
def test_the_text_of_a_summary_is_kept_in_one_place_only(memory: dict[str, Any]) -> None:
    found = read(json.dumps({"runs": [run()], **memory}))
    assert found.head.summary is not None
    assert found.head.summary.upto == 1
    without = msgspec.structs.replace(found.head, summary=None)
    assert SECRET not in repr(without)
    assert SECRET not in dump(found.runs, without)


@pytest.mark.parametrize("memory", KEPT_WHOLE.values(), ids=list(KEPT_WHOLE))
def test_a_summary_beside_what_is_kept_whole_is_written_again(memory: dict[str, Any]) -> None:
    found = read(json.dumps({"runs": [run()], **memory}))
    assert found.head.summary is not None
    metadata = json.loads(dump(found.runs, found.head))["metadata"]
    assert (metadata["summary"], metadata["summary_index"]) == (found.head.summary.content, 1)
    assert again(found).head == found.head

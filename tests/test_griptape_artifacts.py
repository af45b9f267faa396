"""What is in a run of griptape, kept by the driver that keeps its runs in memkit's: artifacts, meta, any text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from memkit.adapters.griptape import read
from memkit.content import Blob, ToolCall
from memkit.driver import Driver
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import FormatError
from tests.griptape_agents import (
    as_dicts,
    griptape_modules,
    griptape_run,
    memory_on,
    meta_of,
    runs_of,
    said,
    texts,
)
from tests.memories import store, stored


@pytest.fixture(scope="session")
def gt() -> SimpleNamespace:
    """Give griptape, which takes seconds to import."""
    return griptape_modules()


@pytest.fixture(params=["memory", "file"])
def driver(gt: SimpleNamespace, request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path / "store")


def artifacts() -> dict[str, Callable[[Any], Any]]:
    """Return how to make each kind of artifact of griptape 1.13."""
    from pydantic import BaseModel

    class Point(BaseModel):
        x: int
        name: str

    def action(gt: SimpleNamespace) -> Any:
        from griptape.common import ToolAction

        return gt.ActionArtifact(ToolAction(tag="t1", name="Search", path="find", input={"values": {"q": "cats"}}))

    def listed(gt: SimpleNamespace) -> Any:
        image = gt.ImageArtifact(b"\x89PNG", format="png", width=1, height=2)
        inner = gt.ListArtifact([gt.TextArtifact("inner"), gt.JsonArtifact({"a": 1})])
        return gt.ListArtifact([gt.TextArtifact("look", meta={"k": [1]}), image, inner], item_separator=" / ")

    def referenced(gt: SimpleNamespace) -> Any:
        from griptape.common import Reference

        book = Reference(title="A book", authors=["A. U. Thor"], year="1999")
        return gt.TextArtifact("quoted", reference=book, name="quote", meta={"page": 3})

    return {
        "text": lambda gt: gt.TextArtifact("text"),
        "text, referenced": referenced,
        "text, named": lambda gt: gt.TextArtifact(
            "text", id="an id", name="a name", meta={"is_react_prompt": False}
        ),
        "error": lambda gt: gt.ErrorArtifact("overloaded"),
        "info": lambda gt: gt.InfoArtifact("no memory"),
        "boolean": lambda gt: gt.BooleanArtifact(False),
        "json": lambda gt: gt.JsonArtifact({"a": [1, 2.5, "x", True, {"b": None}]}),
        "json, text": lambda gt: gt.JsonArtifact('"quoted"'),
        "generic, number": lambda gt: gt.GenericArtifact(2.5),
        "generic, list": lambda gt: gt.GenericArtifact([1, "two", None]),
        "model": lambda gt: gt.ModelArtifact(Point(x=1, name="here")),
        "image": lambda gt: gt.ImageArtifact(b"\x89PNG\r\n", format="png", width=3, height=4),
        "image, jpeg": lambda gt: gt.ImageArtifact(b"\xff\xd8", format="jpeg", width=3, height=4),
        "audio": lambda gt: gt.AudioArtifact(b"RIFF", format="wav"),
        "audio, mp3": lambda gt: gt.AudioArtifact(b"ID3", format="mp3"),
        "blob": lambda gt: gt.BlobArtifact(bytes(range(256)), name="all bytes"),
        "image url": lambda gt: gt.ImageUrlArtifact("https://example.org/a.png"),
        "audio url": lambda gt: gt.AudioUrlArtifact("https://example.org/a.mp3"),
        "video url": lambda gt: gt.VideoUrlArtifact("https://example.org/a.mp4"),
        "list": listed,
        "list, empty": lambda gt: gt.ListArtifact([]),
        "list, uniform": lambda gt: gt.ListArtifact([gt.TextArtifact("a")], validate_uniform_types=True),
        "action": action,
    }


KINDS = [
    "text",
    "text, referenced",
    "text, named",
    "error",
    "info",
    "boolean",
    "json",
    "json, text",
    "generic, number",
    "generic, list",
    "model",
    "image",
    "image, jpeg",
    "audio",
    "audio, mp3",
    "blob",
    "image url",
    "audio url",
    "video url",
    "list",
    "list, empty",
    "list, uniform",
    "action",
]


def test_the_kinds_are_all_that_griptape_has(gt: SimpleNamespace) -> None:
    makers = artifacts()
    assert list(makers) == KINDS
    made = {type(make(gt.artifacts)) for make in makers.values()}
    known = {kind for kind in vars(gt.artifacts).values() if isinstance(kind, type)}
    assert known - made == {gt.artifacts.BaseArtifact, gt.artifacts.UrlArtifact}  # these two are abstract


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_artifact_comes_back_as_it_was(
    kind: str, side: str, gt: SimpleNamespace, driver: Driver
) -> None:
    sides = {"input": gt.artifacts.TextArtifact("a"), "output": gt.artifacts.TextArtifact("b")}
    sides[side] = artifacts()[kind](gt.artifacts)
    memory = memory_on(driver)
    memory.add_run(gt.Run(id="r1", meta={"n": 1}, **sides))
    (loaded,) = memory_on(driver).runs
    assert type(getattr(loaded, side)) is type(sides[side])
    assert loaded.to_dict() == memory.runs[0].to_dict()
    assert len(anyio.run(stored, driver, "k")) == 1


def test_media_are_bytes_and_calls_are_calls_for_memkit(gt: SimpleNamespace, driver: Driver) -> None:
    makers = artifacts()
    memory_on(driver).add_run(griptape_run("r1", makers["image"](gt.artifacts), makers["action"](gt.artifacts)))
    (stored_run,) = runs_of(driver)
    assert stored_run.input == (Blob("image/png", b"\x89PNG\r\n"),)
    assert stored_run.output == (ToolCall("t1", "Search", '{"values": {"q": "cats"}}'),)


def test_meta_of_runs_and_memory_are_kept_to_the_depth(gt: SimpleNamespace, driver: Driver) -> None:
    deep = {"a": {"b": [1, {"c": None, "d": ["\u2603", True, 2.5]}]}, "": {"memkit?": 1}}
    memory = memory_on(driver, meta=dict(deep))
    memory.add_run(griptape_run("r1", "a", "b", meta=dict(deep)))
    assert (runs_of(driver)[0].meta, meta_of(driver)) == (deep, deep)
    again = memory_on(driver)
    assert (again.runs[0].meta, again.meta) == (deep, deep)
    again.meta["a"]["b"].append("in place")
    again.conversation_memory_driver.store(again.runs, again.meta)
    assert meta_of(driver)["a"]["b"][-1] == "in place"


@pytest.mark.parametrize("meta", [{}, None])
def test_no_meta_is_no_meta(meta: dict[str, Any] | None, driver: Driver) -> None:
    memory = memory_on(driver)
    memory.add_run(griptape_run("r1", "a", "b", meta=meta))
    assert as_dicts(memory_on(driver).runs) == as_dicts(memory.runs)


def test_meta_is_written_as_griptape_writes_it(driver: Driver) -> None:
    memory_on(driver).add_run(griptape_run("r1", "a", "b", meta={1: (2, 3), "big": 2**70}))
    assert memory_on(driver).runs[0].meta == {"1": [2, 3], "big": 2**70}


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", Path("x")])
def test_what_cannot_be_written_is_refused_and_nothing_is_stored(value: object, driver: Driver) -> None:
    memory = memory_on(driver)
    with pytest.raises(FormatError, match="'r1'"):
        memory.add_run(griptape_run("r1", "a", "b", meta={"x": value}))
    memory.runs[0].meta = {}
    memory.meta["x"] = value
    with pytest.raises(FormatError, match=r"metadata\.x"):
        memory.add_run(griptape_run("r2", "a", "b"))
    assert anyio.run(stored, driver, "k") == []
    del memory.meta["x"]
    memory.add_run(griptape_run("r3", "a", "b"))
    assert [run.id for run in runs_of(driver)] == ["r1", "r2", "r3"]


@pytest.mark.parametrize("run_id", ["", 7, None])
def test_a_run_without_an_id_is_refused(run_id: Any, driver: Driver) -> None:
    memory = memory_on(driver)
    with pytest.raises(FormatError, match="id"):
        memory.add_run(griptape_run(run_id, "a", "b"))
    assert anyio.run(stored, driver, "k") == []


HOSTILE = [
    "{{ 7 * 7 }} {% for x in y %}",
    "\ud800 lone",
    "nul \x00 and \x1b[31m",
    "\u202e\u2028\u0085\ufeff",
    '"]}, {"type": "Run"',
    "\U0001f600" * 20_000,
    "",
    "\r\n\r\n",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_text_comes_back_as_it_was_said(text: str, gt: SimpleNamespace, driver: Driver) -> None:
    memory = memory_on(driver)
    memory.add_run(griptape_run("r1", text, gt.artifacts.ErrorArtifact(text), meta={"text": text}))
    assert said(runs_of(driver)) == [(text, text)]
    assert as_dicts(memory_on(driver).runs) == as_dicts(memory.runs)


@pytest.mark.parametrize("key", ["../../etc/passwd", "user/1:2", "\u2603", "a" * 200, "CON"])
def test_keys_are_only_keys(key: str, driver: Driver) -> None:
    memory_on(driver, key).add_run(griptape_run("r1", "a", "b"))
    assert [run.id for run in memory_on(driver, key).runs] == ["r1"]
    assert memory_on(driver, "other").runs == []


def test_no_class_is_imported_by_a_name_in_the_store(driver: Driver, tmp_path: Path) -> None:
    artifact = {"type": "TextArtifact", "module_name": "tests.no_such_module", "value": "a"}
    stored_run = {
        "id": "r1",
        "input": artifact,
        "output": {"type": "Popen", "module_name": "subprocess", "value": "b"},
    }
    imported = read(json.dumps({"runs": [stored_run]}))
    anyio.run(store, driver, "k", list(imported.runs))
    assert texts(memory_on(driver).runs) == [("a", "b")]

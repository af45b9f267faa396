"""What cannot be stored is refused with an error that says why, and changes nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from memkit.content import Json, ToolResult
from memkit.driver import MAX_KEY_BYTES, Driver
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import BudgetError, FormatError
from memkit.memory import Memory
from memkit.run import Extend, Run, new_run
from memkit.strategies import last_runs, prune
from memkit.tokens import approximate
from tests.memories import Words, inputs, run, store

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "file"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path)


# --- keys and budgets ---


@pytest.mark.parametrize("key", ["", "k" * (MAX_KEY_BYTES + 1), "\ud800", None, 3])
def test_impossible_keys(key: Any) -> None:
    with pytest.raises(FormatError, match="key"):
        Memory(InMemoryDriver(), key)


def test_impossible_budgets() -> None:
    for make in (lambda: prune(0), lambda: prune(-1), lambda: last_runs(-1)):
        with pytest.raises(BudgetError):
            make()
    for retain in (0, -1):
        with pytest.raises(BudgetError, match="at least 1 run"):
            Memory(InMemoryDriver(), "k", retain=retain)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": 40}, r"a strategy is a function of a View, as last_runs\(40\) is, not 40"),
        ({"strategy": last_runs}, "last_runs makes strategies: call it"),
        ({"strategy": prune}, "prune makes strategies: call it"),
        ({"counter": "gpt-4o"}, r"a counter has name, per_message, count, as counters.toktok\('gpt-4o'\) has"),
        ({"codec": "json"}, r"a codec has encode, .* as JsonCodec\(\) has; 'json' has not"),
        ({"retain": "500"}, "retain is a number of runs, not '500'"),
        ({"retain": True}, "retain is a number of runs, not True"),
        ({"max_tokens": 4_000}, "no option max_tokens; there are strategy, counter"),
    ],
    ids=range(8),
)
def test_options_of_the_wrong_type_are_refused_when_the_handle_is_made(options: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Memory(InMemoryDriver(), "k", **options)


def test_a_folder_is_no_driver() -> None:
    folder: Any = "talks"
    with pytest.raises(TypeError, match=r"a driver has load, .* as FileDriver\('folder'\) has; 'talks' has not"):
        Memory(folder, "k")


async def test_negative_tokens_and_numbers_are_refused() -> None:
    async with Memory(InMemoryDriver(), "k", strategy=prune(100), counter=approximate()) as memory:
        for reserve in (lambda: memory.view(reserve=-1), lambda: memory.messages(reserve=-1)):
            with pytest.raises(BudgetError, match="must not be negative"):
                reserve()
        with pytest.raises(BudgetError, match="keep must not be negative"):
            await memory.trim(-1)


async def test_a_budget_without_a_counter_says_what_to_do() -> None:
    async with Memory(InMemoryDriver(), "k", strategy=prune(100)) as memory:
        with pytest.raises(BudgetError, match=r"Memory\(counter="):
            memory.messages("x")
        with pytest.raises(BudgetError, match=r"Memory\(counter="):
            await memory.count("x")


# --- meta ---


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


BAD_META: dict[str, Any] = {
    "nan": {"x": math.nan},
    "set": {"x": {1, 2}},
    "bytes": {"x": b"raw"},
    "key": {1: "x"},
    "deep": {"x": nested(10_000)},
    "long": {"x": 2**80},
    "list": ["x"],
}


@pytest.mark.parametrize("bad", BAD_META)
@pytest.mark.parametrize("is_fresh", [True, False])
async def test_meta_that_is_not_json_changes_nothing(driver: Driver, bad: str, is_fresh: bool) -> None:
    meta = BAD_META[bad]
    async with Memory(driver, "k") as memory:
        if not is_fresh:
            await memory.add("first", "yes")
            await memory.update_meta({"a": 1})
        before = await driver.load("k")
        with pytest.raises(FormatError):
            await memory.update_meta(lambda _: meta)
        if isinstance(meta, dict):
            with pytest.raises(FormatError):
                await memory.add("second", "yes", meta=meta)
        assert await driver.load("k") == before
        assert memory.meta == ({} if is_fresh else {"a": 1})
        await memory.update_meta({"b": 2})
        await memory.add("third", "yes")
        assert memory.meta["b"] == 2
        assert inputs(memory)[-1] == "third"


# --- content ---


BAD_CONTENT: dict[str, Any] = {
    "50 MB": "x" * 50_000_000,
    "nan": (Json(value=math.nan),),
    "deep": (Json(value=nested(10_000)),),
    "object": (Json(value=object()),),
    "number": 3,
}


@pytest.mark.parametrize("bad", BAD_CONTENT)
async def test_content_that_cannot_be_stored_changes_nothing(driver: Driver, bad: str) -> None:
    content = BAD_CONTENT[bad]
    async with Memory(driver, "k", counter=Words()) as memory:
        await memory.add("first", "yes")
        before = await driver.load("k")
        with pytest.raises(FormatError):
            await memory.add(content, "yes")
        with pytest.raises(FormatError):
            await memory.extend(memory.view().runs[0], output=content)
        assert await driver.load("k") == before
        await memory.add("second", "yes")
        assert inputs(memory) == ["first", "second"]
    async with Memory(driver, "k") as memory:
        assert inputs(memory) == ["first", "second"]


@pytest.mark.parametrize("bad", ["deep", "object"])
async def test_json_that_cannot_be_stored_is_refused_with_a_typed_error(driver: Driver, bad: str) -> None:
    async with Memory(driver, "k") as memory:
        with pytest.raises(FormatError):
            await memory.add(Json(value=nested(10_000) if bad == "deep" else object()), "yes")


async def test_a_lone_surrogate_in_json_is_stored_and_sent(driver: Driver) -> None:
    async with Memory(driver, "k", counter=approximate()) as memory:
        await memory.add("what?", "yes", steps=ToolResult(id="1", content=(Json(value={"a": "\ud800"}),)))
        assert len(memory.messages()) == 2


def test_a_run_is_made_of_content() -> None:
    with pytest.raises(FormatError):
        new_run(object())


# --- what only a program without types would give ---

UNREADABLE: dict[str, Any] = {
    "status": Run("bad", "q", status="done"),
    "created_at": Run("bad", "q", created_at="today"),
    "steps": Run("bad", "q", steps="text"),
    "meta": Run("bad", "q", meta=["no mapping"]),
    "drop": Extend("bad", "r0", 0, drop="1"),
    "counts": Run("bad", "q", counts="many"),
}


async def refuse(driver: Driver, entry: Any) -> None:
    await store(driver, "k", [run(0)])
    async with Memory(driver, "k") as memory:
        with pytest.raises(FormatError):
            await memory.append(entry)
    async with Memory(driver, "k") as memory:
        assert inputs(memory) == ["question 0"]


@pytest.mark.parametrize("bad", UNREADABLE)
async def test_what_could_not_be_read_again_is_not_stored(driver: Driver, bad: str) -> None:
    await refuse(driver, UNREADABLE[bad])

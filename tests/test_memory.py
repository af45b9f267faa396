"""What each method of `Memory` does, on both loops and with two drivers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import memkit
from memkit.content import Content, Json, Text, ToolCall, ToolResult
from memkit.driver import Driver
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ClosedError, ConflictError, FormatError, VocabularyError
from memkit.memory import Memory
from memkit.run import Amend, Run
from memkit.strategies import compose, last_runs, prune
from memkit.testing import CountingDriver
from memkit.tokens import TextCounter
from tests.memories import Words, ids, inputs, run, store, stored

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "file"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path)


# --- adding ---


async def test_what_was_added_is_in_the_next_prompt(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        await memory.add("My name is Ada.", "Hello, Ada.")
        assert memory.messages("What is my name?", system="Be kind.") == [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Hello, Ada."},
            {"role": "user", "content": "What is my name?"},
        ]


async def test_what_was_added_is_there_for_the_next_handle(driver: Driver) -> None:
    steps = (ToolCall(id="1", name="look", arguments="{}"), ToolResult(id="1", content="nothing"))
    async with Memory(driver, "k") as memory:
        added = await memory.add(("See ", Json(value=[1])), "yes", steps=steps, meta={"cost": 3})
    async with Memory(driver, "k") as memory:
        assert memory.view().runs == (added,)
    assert added.steps == steps
    assert added.input == (Text(text="See "), Json(value=[1]))
    assert added.meta == {"cost": 3}
    assert added.status == "complete"


async def test_open_keeps_conversations_in_files(tmp_path: Path) -> None:
    async with memkit.open("user-id-123", tmp_path / "here", strategy=last_runs(1)) as memory:
        await memory.add("a", "b")
        await memory.add("c", "d")
    async with memkit.open("user-id-123", tmp_path / "here", strategy=last_runs(1)) as memory:
        assert inputs(memory) == ["c"]


async def test_append_stores_all_and_returns_the_first_position(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        assert await memory.append(run(0)) == 0
        assert await memory.append(run(1), run(2)) == 1
        assert inputs(memory) == ["question 0", "question 1", "question 2"]
        with pytest.raises(FormatError, match="at least one"):
            await memory.append()


async def test_append_of_what_is_stored_changes_nothing(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        await memory.append(run(0), run(1))
        await memory.append(run(2))
        assert await memory.append(run(0), run(1)) == 0
        assert await memory.append(run(2)) == 2
        with pytest.raises(ConflictError, match="other content"):
            await memory.append(run(2, "no"))
        with pytest.raises(ConflictError, match="only a part"):
            await memory.append(run(2), run(3))
        assert ids(memory.view().runs) == ["r0", "r1", "r2"]
    assert await stored(driver, "k") == [run(0), run(1), run(2)]


# --- changing ---


async def test_extend_adds_steps_and_replaces_output_and_status(driver: Driver) -> None:
    call, result = ToolCall(id="1", name="look"), ToolResult(id="1", content="x")
    async with Memory(driver, "k") as memory:
        await memory.append(Run("r", "q", steps=(call,), status="partial"))
        await memory.extend("r", steps=result)
        await memory.extend("r", steps=[call, "and then"], output="done", status="complete")
        expected = Run("r", "q", steps=(call, result, call, Text(text="and then")), output="done")
        assert memory.view().runs == (expected,)
        await memory.extend("r", drop=2)
        await memory.extend("r", output="")
        expected = expected.replace(steps=(call, result), output="")
        assert memory.view().runs == (expected,)
    async with Memory(driver, "k") as memory:
        assert memory.view().runs == (expected,)


async def test_amend_replaces_a_run(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        await store_runs(memory, 3)
        await memory.amend(run(1).replace(output="no"))
        await memory.amend(run(1).replace(output="maybe"))
        assert [item.output for item in memory.view().runs] == ["yes", "maybe", "yes"]
    async with Memory(driver, "k") as memory:
        assert [item.output for item in memory.view().runs] == ["yes", "maybe", "yes"]


async def test_retract_takes_a_run_back_for_good(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        await store_runs(memory, 3)
        await memory.retract("r1")
        await memory.append(Amend("late", 1, run(1)))
        assert ids(memory.view().runs) == ["r0", "r2"]
    async with Memory(driver, "k") as memory:
        assert ids(memory.view().runs) == ["r0", "r2"]


@pytest.mark.parametrize("change", ["extend", "amend", "retract"])
async def test_a_run_that_is_not_there_cannot_change(driver: Driver, change: str) -> None:
    async with Memory(driver, "k") as memory:
        await store_runs(memory, 3)
        with pytest.raises(ConflictError, match="'k' has no run 'r9'"):
            await getattr(memory, change)(run(9))
    assert len(await stored(driver, "k")) == 3


@pytest.mark.parametrize("change", ["extend", "amend"])
async def test_a_run_that_was_taken_back_cannot_change(driver: Driver, change: str) -> None:
    async with Memory(driver, "k") as memory:
        await store_runs(memory, 3)
        await memory.retract("r1")
        with pytest.raises(ConflictError, match="taken back"):
            await getattr(memory, change)(run(1))
    assert len(await stored(driver, "k")) == 4


# --- meta ---


async def test_update_meta_merges_or_applies(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        assert memory.meta == {}
        assert await memory.update_meta({"title": "T", "n": 1}) == {"title": "T", "n": 1}
        assert await memory.update_meta({"n": 2}) == {"title": "T", "n": 2}
        await memory.add("a", "b")
        await memory.update_meta(lambda meta: {"n": meta["n"] + 1})
        assert memory.meta == {"n": 3}
    async with Memory(driver, "k") as memory:
        assert memory.meta == {"n": 3}


async def test_update_meta_keeps_what_another_handle_changed(driver: Driver) -> None:
    async with Memory(driver, "k") as one, Memory(driver, "k") as other:
        await one.update_meta({"a": 1})
        await other.update_meta({"b": 2})
        await one.update_meta(lambda meta: {**meta, "sum": meta["a"] + meta.get("b", 0)})
        assert one.meta == {"a": 1, "b": 2, "sum": 3}
        assert other.meta == {"a": 1, "b": 2}
        await other.refresh()
        assert other.meta == one.meta


async def test_update_meta_gives_up_where_others_are_always_quicker() -> None:
    driver = InMemoryDriver()

    class Contended(CountingDriver):
        async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
            await driver.commit(key, b'{"v":1,"kind":"head"}', revision=(await driver.load(key)).revision)
            return await super().commit(key, head, revision=revision)

    async with Memory(Contended(driver), "k") as memory:
        with pytest.raises(ConflictError, match="others kept changing"):
            await memory.update_meta({"a": 1})


# --- the life of a handle ---

WAITING: list[Callable[[Memory], Awaitable[object]]] = [
    lambda memory: memory.add("a", "b"),
    lambda memory: memory.append(run(0)),
    lambda memory: memory.extend("r", output="x"),
    lambda memory: memory.amend(run(0)),
    lambda memory: memory.retract("r"),
    lambda memory: memory.update_meta({}),
    lambda memory: memory.fork("l"),
    lambda memory: memory.trim(1),
    lambda memory: memory.clear(),
    lambda memory: memory.refresh(),
]
IMMEDIATE: list[Callable[[Memory], object]] = [
    lambda memory: memory.view(),
    lambda memory: memory.messages(),
    lambda memory: memory.explain(),
    lambda memory: memory.turn("a"),
    lambda memory: memory.history(),
    lambda memory: memory.conversation,
    lambda memory: memory.meta,
]


async def test_outside_its_context_a_handle_does_nothing(driver: Driver) -> None:
    counted = CountingDriver(driver)
    memory = Memory(counted, "k")
    for _ in range(2):
        counted.calls.clear()
        for use in IMMEDIATE:
            with pytest.raises(ClosedError, match="'k' is closed"):
                use(memory)
        for call in WAITING:
            with pytest.raises(ClosedError, match="'k' is closed"):
                await call(memory)
        assert not counted.calls
        async with memory:
            await memory.add("a", "b")


async def test_a_handle_is_entered_once_at_a_time(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        with pytest.raises(ClosedError, match="open already"):
            await memory.__aenter__()
        await memory.add("a", "b")
    await store(driver, "k", [run(1)])
    async with memory:
        assert inputs(memory) == ["a", "question 1"]


async def test_a_vocabulary_that_cannot_be_loaded_leaves_nothing_half_open(driver: Driver) -> None:
    await store(driver, "k", [run(0)])
    is_missing = [True]

    def load() -> Callable[[str], int]:
        if is_missing.pop():
            raise VocabularyError("there is no network")
        return len

    counted = CountingDriver(driver)
    counter = TextCounter("lazy", load)
    memory = Memory(counted, "k", strategy=compose(last_runs(5), prune(10_000, counter=counter)))
    is_missing.append(True)
    with pytest.raises(VocabularyError, match="no network"):
        async with memory:
            pytest.fail("entered")
    with pytest.raises(ClosedError):
        memory.view()
    assert not counted.calls
    is_missing[:] = [False]
    async with memory:
        assert inputs(memory) == ["question 0"]


async def test_a_failure_on_the_way_back_leaves_nothing_half_open(driver: Driver) -> None:
    await store(driver, "k", map(run, range(250)))

    def fail(_: object) -> Any:
        raise RuntimeError("a bug in a strategy")

    memory = Memory(driver, "k", strategy=fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a bug"):
            await memory.__aenter__()
        with pytest.raises(ClosedError, match="is closed"):
            memory.view()


# --- clear, count ---


async def test_clear_ends_the_conversation_for_every_handle(driver: Driver) -> None:
    async with Memory(driver, "k") as one, Memory(driver, "k") as other:
        await one.update_meta({"a": 1})
        await one.add("a", "b")
        await other.refresh()
        assert await one.clear() is True
        assert (one.view().runs, one.meta) == ((), {})
        assert await one.clear() is False
        await one.add("anew", "yes")
        for call in (
            lambda: other.add("stale", "yes"),
            lambda: other.update_meta({"stale": True}),
            lambda: other.retract(other.view().runs[0]),
            lambda: other.trim(0),
        ):
            with pytest.raises(ConflictError, match="deleted"):
                await call()
        await other.refresh()
        assert inputs(other) == inputs(one) == ["anew"]
        assert other.meta == {}
        await other.add("more", "yes")
    assert len(await stored(driver, "k")) == 2


async def test_a_handle_that_knows_only_meta_is_stale_too_after_a_clear(driver: Driver) -> None:
    async with Memory(driver, "k") as one, Memory(driver, "k") as other:
        await one.update_meta({"a": 1})
        await other.clear()
        await other.add("anew", "yes")
        with pytest.raises(ConflictError, match="deleted"):
            await one.add("stale", "yes")


async def test_clear_of_what_never_was(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        assert await memory.clear() is False
        await memory.add("a", "b")
        assert inputs(memory) == ["a"]


@pytest.mark.parametrize(
    ("contents", "expected"), [((), 0), (("one two", None), 2 + 4), (("a", (Text(text="b c"),)), 3 + 8)]
)
async def test_count_adds_what_messages_cost(contents: tuple[Content | None, ...], expected: int) -> None:
    async with Memory(InMemoryDriver(), "k", counter=Words(per_message=4)) as memory:
        assert await memory.count(*contents) == expected


async def store_runs(memory: Memory, number: int) -> None:
    for n in range(number):
        await memory.append(run(n))

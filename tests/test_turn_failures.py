"""A turn that fails, is cancelled, or cannot be stored: what was said is kept, and the error goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from anyio import (
    CancelScope,
    Event,
    create_task_group,
    current_time,
    sleep_forever,
    wait_all_tasks_blocked,
)
from anyio.lowlevel import checkpoint

from memkit.driver import Appended, Driver, Record
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import DriverError
from memkit.memory import Memory
from memkit.testing import CountingDriver, FlakyDriver
from memkit.turn import Turn
from tests.memories import inputs, stored, the_run, tool_call

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "file"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path)


# --- errors ---


async def fail_in(turn: Turn) -> None:
    async with turn:
        turn.step(*tool_call(0))
        turn.write("I was about to")
        raise ValueError("the model said no")


@pytest.mark.parametrize("early", [False, True])
async def test_an_error_goes_on_and_the_partial_run_is_stored(driver: Driver, early: bool) -> None:
    async with Memory(driver, "k") as memory:
        turn = memory.turn("Hi", early=early)
        with pytest.raises(ValueError, match="the model said no"):
            await fail_in(turn)
    run = await the_run(driver)
    assert run == turn.run
    assert (run.output, run.status) == ("I was about to", "partial")


async def test_an_error_says_if_the_partial_run_could_not_be_stored() -> None:
    async with Memory(FlakyDriver(InMemoryDriver(), ["before"], calls=["append"]), "k") as memory:
        with pytest.raises(ValueError, match="the model said no") as caught:
            await fail_in(memory.turn("Hi"))
    assert caught.value.__notes__ == [
        "and the turn could not be stored: append: the connection was lost before it was sent"
    ]


async def test_a_partial_run_that_nobody_answered_is_not_sent(driver: Driver) -> None:
    async with Memory(driver, "k") as memory:
        with pytest.raises(ValueError, match="no"):
            async with memory.turn("unanswered"):
                raise ValueError("no")
        await memory.add("answered", "yes")
        assert [message["content"] for message in memory.messages()] == ["answered", "yes"]
        skipped, sent = memory.explain().runs
        assert (skipped.is_included, skipped.why) == (False, "partial, and nobody answered it")
        assert (sent.is_included, sent.why) == (True, "")
        await memory.extend(memory.view().runs[0], output="late", status="complete")
        assert [message["content"] for message in memory.messages()][:2] == ["unanswered", "late"]


Work: TypeAlias = Callable[[Event], Awaitable[None]]
Cancel: TypeAlias = Callable[[Work], Awaitable[None]]


async def by_scope(work: Work) -> None:
    ready = Event()
    async with create_task_group() as tasks:
        tasks.start_soon(work, ready)
        await ready.wait()
        tasks.cancel_scope.cancel()


async def by_deadline(work: Work) -> None:
    async def hurry() -> None:
        await ready.wait()
        scope.deadline = current_time()

    ready = Event()
    async with create_task_group() as tasks:
        tasks.start_soon(hurry)
        with CancelScope() as scope:
            await work(ready)
    assert scope.cancelled_caught


async def by_task(work: Work) -> None:
    ready = Event()
    task = asyncio.ensure_future(work(ready))
    await ready.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_timeout(work: Work) -> None:
    async def hurry() -> None:
        await ready.wait()
        timeout.reschedule(current_time())

    ready = Event()
    timeout = asyncio.timeout(None)
    async with create_task_group() as tasks:
        tasks.start_soon(hurry)
        with pytest.raises(TimeoutError):
            async with timeout:
                await work(ready)


@pytest.fixture(params=[by_scope, by_deadline, by_task, by_timeout], ids=lambda way: way.__name__)
def cancelled(request: pytest.FixtureRequest, anyio_backend: str) -> Cancel:
    """Return a way to start some work and to cancel it when it says that it is ready."""
    if anyio_backend == "trio" and request.param in {by_task, by_timeout}:
        pytest.skip("only asyncio can cancel like that")
    return request.param


@pytest.mark.parametrize("early", [False, True])
async def test_a_cancelled_turn_is_stored_as_far_as_it_came(
    driver: Driver, early: bool, cancelled: Cancel
) -> None:
    async def work(ready: Event) -> None:
        async with Memory(driver, "k") as memory, memory.turn("Hi", early=early) as turn:
            turn.step(*tool_call(0))
            turn.write("I was about to")
            ready.set()
            await sleep_forever()

    await cancelled(work)
    run = await the_run(driver)
    assert (run.output, run.status, run.steps) == ("I was about to", "partial", tool_call(0))


class Cancelling(CountingDriver):
    """A driver whose appends cancel the task that calls them before they begin."""

    async def append(self, *args: object, **options: object) -> Appended:
        if self.calls["append"] == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            self.calls["append"] += 1
            await checkpoint()
        return await self._inner.append(*args, **options)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_cancelled_while_its_turn_is_stored(driver: Driver) -> None:
    async def work() -> None:
        async with Memory(Cancelling(driver), "k") as memory, memory.turn("Hi") as turn:
            turn.write("Done.")

    task = asyncio.ensure_future(work())
    with pytest.raises(asyncio.CancelledError):
        await task
    run = await the_run(driver)
    assert (run.output, run.status) == ("Done.", "complete")


async def test_a_scope_cancelled_just_before_the_end(driver: Driver) -> None:
    with CancelScope() as scope:
        async with Memory(driver, "k") as memory:
            async with memory.turn("Hi") as turn:
                turn.write("Done.")
                scope.cancel()
            await checkpoint()
            pytest.fail("not cancelled")
    assert scope.cancelled_caught
    run = await the_run(driver)
    assert (run.output, run.status) == ("Done.", "complete")


class Hanging(CountingDriver):
    """A driver whose appends never end."""

    async def append(self, *args: object, **options: object) -> Appended:
        await sleep_forever()
        raise AssertionError(args, options)


async def test_a_store_that_hangs_does_not_keep_a_cancelled_turn_for_ever(
    monkeypatch: pytest.MonkeyPatch, cancelled: Cancel
) -> None:
    monkeypatch.setattr("memkit.turn._PATIENCE", 0.01)

    async def work(ready: Event) -> None:
        async with Memory(Hanging(InMemoryDriver()), "k") as memory, memory.turn("Hi"):
            ready.set()

    await cancelled(work)


async def test_an_error_says_if_the_store_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memkit.turn._PATIENCE", 0.01)
    async with Memory(Hanging(InMemoryDriver()), "k") as memory:
        with pytest.raises(ValueError, match="the model said no") as caught:
            await fail_in(memory.turn("Hi"))
    assert "no answer within 0.01 s, the outcome is unknown" in caught.value.__notes__[0]


# --- a store that fails ---


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("early", [False, True])
async def test_a_failed_save_is_made_good_by_the_next_one(driver: Driver, fault: str, early: bool) -> None:
    schedule = [None, fault, fault] if early else [fault, fault]
    flaky = FlakyDriver(driver, schedule, calls=["append"])
    async with Memory(flaky, "k") as memory:
        async with memory.turn("Hi", early=early) as turn:
            turn.step(*tool_call(0))
            with pytest.raises(DriverError):
                await turn.save()
            async with Memory(driver, "k") as other:
                await other.add("other", "yes")
            turn.step(*tool_call(1))
            with pytest.raises(DriverError):
                await turn.save()
            turn.step(*tool_call(2))
            await turn.save()
            turn.answer("Done.")
        assert turn.run in memory.view().runs
    async with Memory(driver, "k") as memory:
        assert turn.run in memory.view().runs
        assert len(memory.view().runs) == 2
    assert turn.run.steps == (*tool_call(0), *tool_call(1), *tool_call(2))
    entries = await stored(driver, "k")
    assert len(entries) == (5 if early else 4)


class Crossing(CountingDriver):
    """A driver whose answers to appends are held, and whose first extend never arrives."""

    def __init__(self, inner: Driver, /) -> None:
        super().__init__(inner)
        self.held: list[Event] | None = []
        self.has_failed = False

    async def append(self, key: str, records: Sequence[Record], /, **options: Any) -> Appended:
        is_lost = not self.has_failed and b'"kind":"extend"' in records[0].body
        self.has_failed |= is_lost
        appended = None if is_lost else await super().append(key, records, **options)
        if self.held is not None:
            self.held.append(Event())
            await self.held[-1].wait()
        if appended is None:
            raise DriverError("the request was lost")
        return appended


async def test_saves_that_overtake_each_other_lose_nothing() -> None:
    async def save(n: int) -> None:
        turn.step(*tool_call(n))
        with suppress(DriverError):
            await turn.save()

    crossing = Crossing(driver := InMemoryDriver())
    async with Memory(crossing, "k") as memory, memory.turn("Hi") as turn:
        async with create_task_group() as tasks:
            for n in range(2):
                tasks.start_soon(save, n)
                await wait_all_tasks_blocked()
            while waiting := [event for event in crossing.held or () if not event.is_set()]:
                waiting[-1].set()
                await wait_all_tasks_blocked()
        assert crossing.has_failed
        crossing.held = None
    assert await the_run(driver) == turn.run
    assert turn.run.steps == (*tool_call(0), *tool_call(1))


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_turn_whose_end_could_not_be_stored_can_be_stored_later(driver: Driver, fault: str) -> None:
    flaky = FlakyDriver(driver, [fault], calls=["append"])
    async with Memory(flaky, "k") as memory:
        with pytest.raises(DriverError):
            async with memory.turn("Hi") as turn:
                turn.write("Done.")
        async with Memory(driver, "k") as other:
            await other.add("other", "yes")
        await memory.append(turn.run)
        await memory.append(turn.run)
        await memory.refresh()
        assert sorted(inputs(memory)) == ["Hi", "other"]
    assert len(await stored(driver, "k")) == 2

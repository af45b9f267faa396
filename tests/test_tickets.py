"""Tickets: waited for to their end, whoever cancels; settled by threads, some at a time, on the right loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any, TypeAlias

import anyio
import pytest
import trio
from anyio import CancelScope, create_task_group, fail_after, to_thread
from anyio.lowlevel import checkpoint

from memkit import tickets
from memkit.errors import DriverError
from memkit.tickets import Ticket, deliver

pytestmark = pytest.mark.anyio

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await checkpoint()


async def from_thread(*outcomes: tickets.Outcome) -> None:
    await to_thread.run_sync(deliver, outcomes)


# --- results and errors ---


@pytest.mark.parametrize("early", [True, False])
async def test_a_result_comes_from_a_thread(early: bool) -> None:
    ticket = Ticket[str]()
    async with create_task_group() as tasks:
        if early:
            await from_thread((ticket, "done", None))
            await turns()
        else:
            tasks.start_soon(from_thread, (ticket, "done", None))
        assert await ticket.outcome(30) == "done"


async def test_an_error_is_raised() -> None:
    ticket, error = Ticket[str](), DriverError("the disk is on fire")
    async with create_task_group() as tasks:
        tasks.start_soon(from_thread, (ticket, None, error))
        with pytest.raises(DriverError) as caught:
            await ticket.outcome(30)
    assert caught.value is error


async def test_only_the_first_outcome_counts() -> None:
    ticket = Ticket[str]()
    deliver([(ticket, "first", None), (ticket, "second", None), (ticket, None, ValueError())])
    assert await ticket.outcome(30) == "first"
    ticket.settle("third", None)
    assert await ticket.outcome(30) == "first"


async def test_after_a_while_the_outcome_is_unknown() -> None:
    ticket = Ticket[str]()
    with pytest.raises(DriverError, match=r"did not end within 0\.01 s and its outcome is unknown") as caught:
        await ticket.outcome(0.01)
    assert caught.value.retryable
    await from_thread((ticket, "late", None))
    await turns()
    with pytest.raises(DriverError, match="unknown"):
        await ticket.outcome(30)


async def test_no_timer_is_left_behind() -> None:
    class Result:
        pass

    ticket, result = Ticket[Result](), Result()
    released = weakref.ref(result)
    deliver([(ticket, result, None)])
    assert await ticket.outcome(3_600) is result
    del ticket, result
    await turns()
    gc.collect()
    assert released() is None


# --- cancellation ---

Cancelled: TypeAlias = Callable[[Callable[[], Awaitable[object]], Callable[[], None]], Awaitable[str]]
"""Waits for something, cancels it, then calls a function that lets it end; returns how it has ended."""


async def by_scope(wait: Callable[[], Awaitable[object]], settle: Callable[[], None]) -> str:
    how = "returned"
    scope = CancelScope()

    async def run() -> None:
        nonlocal how
        with scope:
            try:
                await wait()
            except DriverError:
                how = "failed"
        if scope.cancelled_caught:
            how = "cancelled"

    async with create_task_group() as tasks:
        tasks.start_soon(run)
        await turns()
        scope.cancel()
        await turns(20)
        assert how == "returned", "it did not wait for the outcome"
        settle()
    return how


async def by_task(wait: Callable[[], Awaitable[object]], settle: Callable[[], None], times: int = 1) -> str:
    async def run() -> None:
        await wait()

    task = asyncio.create_task(run())
    await turns()
    for _ in range(times):
        task.cancel()
        await turns()
    assert not task.done(), "it did not wait for the outcome"
    settle()
    await asyncio.wait((task,))
    return "cancelled" if task.cancelled() else "failed" if task.exception() else "returned"


async def by_task_often(wait: Callable[[], Awaitable[object]], settle: Callable[[], None]) -> str:
    return await by_task(wait, settle, times=4)


async def by_timeout(wait: Callable[[], Awaitable[object]], settle: Callable[[], None]) -> str:
    threading.Timer(0.05, settle).start()
    try:
        async with asyncio.timeout(0.01):
            await wait()
    except TimeoutError:
        return "cancelled"
    return "returned"


WAYS = [
    pytest.param(by_scope, "asyncio", id="scope-asyncio"),
    pytest.param(by_scope, "trio", id="scope-trio"),
    pytest.param(by_task, "asyncio", id="task"),
    pytest.param(by_task_often, "asyncio", id="task-often"),
    pytest.param(by_timeout, "asyncio", id="timeout"),
]


@pytest.mark.parametrize(("cancelled", "anyio_backend"), WAYS)
@pytest.mark.parametrize("error", [None, DriverError("no")], ids=["result", "error"])
async def test_who_is_cancelled_waits_for_the_outcome_and_then_is_cancelled(
    cancelled: Cancelled, error: DriverError | None
) -> None:
    ticket = Ticket[str]()
    with fail_after(30):
        how = await cancelled(lambda: ticket.outcome(3_600), lambda: deliver([(ticket, "done", error)]))
    assert how == "cancelled"


@pytest.mark.parametrize(("cancelled", "anyio_backend"), WAYS[:4])
async def test_who_is_cancelled_does_not_wait_for_ever(cancelled: Cancelled) -> None:
    ticket = Ticket[str]()
    with fail_after(30):
        assert await cancelled(lambda: ticket.outcome(0.3), lambda: None) in {"cancelled", "failed"}


@asyncio_only
async def test_a_cancellation_that_comes_with_the_outcome_is_not_lost() -> None:
    for order in ("outcome first", "cancellation first"):
        ticket = Ticket[str]()
        task = asyncio.create_task(ticket.outcome(30))
        await turns()
        if order == "outcome first":
            ticket.settle("done", None)
        task.cancel()
        ticket.settle("done", None)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_task_that_was_cancelled_before_waits_as_well() -> None:
    ticket, ended = Ticket[str](), False

    async def run() -> None:
        nonlocal ended
        with CancelScope() as scope:
            scope.cancel()
            await ticket.outcome(30)
        ended = scope.cancelled_caught

    async with create_task_group() as tasks:
        tasks.start_soon(run)
        await turns(20)
        assert not ended
        deliver([(ticket, "done", None)])
    assert ended


# --- delivery ---


@pytest.mark.parametrize("messages", [1, 6])
async def test_many_are_settled_some_at_a_time(messages: int) -> None:
    waiting = [Ticket[int]() for _ in range(tickets.SLICE * 6 + 1)]
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(sum(ticket._is_settled for ticket in waiting))
            await checkpoint()

    async with create_task_group() as tasks:
        tasks.start_soon(look)
        await turns()
        outcomes = [(ticket, number, None) for number, ticket in enumerate(waiting)]
        for message in range(messages):
            deliver(outcomes[message::messages])
        assert [await ticket.outcome(30) for ticket in waiting] == list(range(len(waiting)))
        tasks.cancel_scope.cancel()
    growth = [after - before for before, after in pairwise(seen)]
    assert max(growth) <= 2 * tickets.SLICE, "trio shuffles: two slices may come between two turns of a task"
    assert sum(map(bool, growth)) >= 3


async def test_each_event_loop_gets_its_own() -> None:
    ready: list[tickets.Outcome] = []
    results: list[int] = []
    all_wait = threading.Barrier(4)

    async def wait(number: int) -> None:
        ticket = Ticket[int]()
        ready.append((ticket, number, None))
        await to_thread.run_sync(all_wait.wait)
        results.append(await ticket.outcome(30))

    async with create_task_group() as tasks:
        for number, backend in enumerate(("asyncio", "trio", "asyncio")):
            tasks.start_soon(to_thread.run_sync, lambda n=number, b=backend: anyio.run(wait, n, backend=b))
        await to_thread.run_sync(all_wait.wait)
        await from_thread(*ready)
    assert sorted(results) == [0, 1, 2]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_event_loop_that_is_gone_is_no_error(backend: str) -> None:
    gone: list[Ticket[str]] = []

    async def make() -> None:
        gone.extend([Ticket() for _ in range(tickets.SLICE + 1)])

    anyio.run(make, backend=backend)

    async def other() -> str:
        here = Ticket[str]()
        deliver([*((ticket, "x", None) for ticket in gone), (here, "done", None)])
        return await here.outcome(30)

    assert anyio.run(other, backend=backend) == "done"


def test_event_loops_are_let_go() -> None:
    loops: list[weakref.ref[Any]] = []

    async def use() -> None:
        ticket = Ticket[str]()
        deliver([(ticket, "done", None)])
        await ticket.outcome(30)

    async def on_asyncio() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await use()

    async def on_trio() -> None:
        loops.append(weakref.ref(trio.lowlevel.current_trio_token()))
        await use()

    for _ in range(10):
        asyncio.run(on_asyncio())
        trio.run(on_trio)
    gc.collect()
    assert sum(loop() is not None for loop in loops) <= 2, "the last of each kind may be kept by its library"

"""A write that awaits ends once it has begun, whoever cancels; then the cancellation is raised."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import pytest
from anyio import (
    CancelScope,
    Event,
    create_task_group,
    fail_after,
    get_cancelled_exc_class,
    get_running_tasks,
    sleep_forever,
    to_thread,
)
from anyio.lowlevel import checkpoint

from memkit.errors import DriverError
from memkit.finish import finish_async

pytestmark = pytest.mark.anyio
asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


class Write:
    """A write that tells when it has begun, and ends when it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = Event()
        self.go_on = Event()
        self.ended = False
        self._error = error

    async def __call__(self) -> str:
        self.begun.set()
        await self.go_on.wait()
        self.ended = True
        if self._error:
            raise self._error
        return "done"


async def by_scope(call: Callable[[], Awaitable[object]], write: Write) -> bool:
    with CancelScope() as scope:
        async with create_task_group() as tasks:
            tasks.start_soon(release_after, write, scope.cancel)
            await call()
    return scope.cancelled_caught


async def by_task(call: Callable[[], Awaitable[object]], write: Write) -> bool:
    async def run() -> None:
        await call()

    task = asyncio.create_task(run())
    await release_after(write, task.cancel)
    await asyncio.wait((task,))
    return task.cancelled()


async def by_timeout(call: Callable[[], Awaitable[object]], write: Write) -> bool:
    limit = asyncio.timeout(None)

    async def run() -> None:
        async with limit:
            await call()

    task = asyncio.create_task(run())
    await release_after(write, lambda: limit.expired() or limit.reschedule(0))
    await asyncio.wait((task,))
    return isinstance(task.exception(), TimeoutError)


async def release_after(write: Write, cancel: Callable[[], object]) -> None:
    """Cancel while the write goes on, several times, and let it end only when that had time to do harm."""
    await write.begun.wait()
    with CancelScope(shield=True):
        for _ in range(3):
            cancel()
            for _ in range(5):
                await checkpoint()
        assert not write.ended
        write.go_on.set()


WAYS = [
    pytest.param("asyncio", by_scope, id="scope on asyncio"),
    pytest.param("trio", by_scope, id="scope on trio"),
    pytest.param("asyncio", by_task, id="task.cancel()"),
    pytest.param("asyncio", by_timeout, id="asyncio.timeout"),
]


@pytest.mark.parametrize(("anyio_backend", "way"), WAYS)
async def test_a_write_that_has_begun_ends_before_the_cancellation_is_raised(
    anyio_backend: str, way: Callable[..., Awaitable[bool]]
) -> None:
    write = Write()
    returned: list[object] = []

    async def call() -> None:
        try:
            returned.append(await finish_async(write))
        finally:
            returned.append(write.ended)

    assert await way(call, write)
    assert returned == [True]


@pytest.mark.parametrize(("anyio_backend", "way"), WAYS)
async def test_the_cancellation_wins_over_an_error_of_the_write(
    anyio_backend: str, way: Callable[..., Awaitable[bool]]
) -> None:
    write = Write(OSError("a failure that nobody waits for any more"))
    assert await way(lambda: finish_async(write), write)
    assert write.ended


async def test_result_and_errors_of_the_write_are_the_callers() -> None:
    write = Write()
    write.go_on.set()
    assert await finish_async(write) == "done"
    failing = Write(OSError("full"))
    failing.go_on.set()
    with pytest.raises(OSError, match="full"):
        await finish_async(failing)


async def test_a_cancellation_before_leaves_nothing_written() -> None:
    write = Write()
    write.go_on.set()
    with CancelScope() as scope:
        scope.cancel()
        await finish_async(write)
    assert scope.cancelled_caught
    assert not write.begun.is_set()


async def test_a_write_that_hangs_is_cancelled_and_its_outcome_unknown() -> None:
    before = len(get_running_tasks())
    cleaned_up = False

    async def hang() -> None:
        nonlocal cleaned_up
        try:
            await sleep_forever()
        except get_cancelled_exc_class():
            with CancelScope(shield=True):
                await checkpoint()
            cleaned_up = True
            raise

    with fail_after(30), pytest.raises(DriverError, match="outcome is unknown") as caught:
        await finish_async(hang, time_limit=0.01)
    assert caught.value.retryable
    assert cleaned_up
    assert len(get_running_tasks()) == before


@pytest.mark.parametrize(("anyio_backend", "way"), WAYS)
async def test_a_write_that_hangs_does_not_make_a_cancelled_caller_immortal(
    anyio_backend: str, way: Callable[..., Awaitable[bool]]
) -> None:
    write = Write()
    told: list[str] = []

    async def hang() -> None:
        write.begun.set()
        await sleep_forever()

    async def call() -> None:
        try:
            await finish_async(hang, time_limit=0.01)
        except DriverError as error:
            told.append(str(error))

    with fail_after(30):
        await way(call, write)
    assert len(told) == 1
    assert "unknown" in told[0]


async def test_a_write_of_its_own_time_limit_is_no_cancellation_of_the_caller() -> None:
    async def times_out() -> None:
        with fail_after(0.001):
            await sleep_forever()

    with pytest.raises(TimeoutError):
        await finish_async(times_out)


async def test_the_write_sees_the_callers_context() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    variable.set("the caller's")

    async def read() -> str:
        return variable.get()

    assert await finish_async(read) == "the caller's"


@asyncio_only
async def test_a_loop_that_shuts_down_in_the_middle_has_nothing_to_complain_about(anyio_backend: str) -> None:
    problems: list[object] = []

    async def main() -> None:
        write = Write()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        main.task = asyncio.create_task(finish_async(write))  # type: ignore[attr-defined]
        await write.begun.wait()

    await to_thread.run_sync(asyncio.run, main())
    assert main.task.cancelled()  # type: ignore[attr-defined]
    assert problems == []

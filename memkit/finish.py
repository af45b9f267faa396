"""`finish` and `finish_async`: a write that has started ends, whoever cancels; then the cancellation is raised.

A shield of anyio does not stop a native `task.cancel()` or `asyncio.timeout`, after which the caller would go
on while the write still goes on too. `finish` runs a blocking write in a worker thread; a lock decides who was
first, the thread or the cancellation. `finish_async` runs one that awaits: on asyncio in a task of its own, which
no cancellation of the caller reaches and which is awaited to its end; elsewhere a shield is enough.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from anyio import (
    CancelScope,
    CapacityLimiter,
    current_time,
    get_cancelled_exc_class,
    move_on_after,
    sleep,
    to_thread,
)
from anyio.lowlevel import RunVar, checkpoint_if_cancelled

from memkit.errors import DriverError
from memkit.patience import patience
from memkit.workers import THREADS, Job, give_up, submit

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

WRITE_TIMEOUT: Final = 10.0
"""Seconds after which a write that hangs is given up, its outcome unknown."""

SEVERAL_WRITES: Final = 6 * WRITE_TIMEOUT
"""Seconds for writes that must end together, each of which may take a driver's whole time."""

_limiter: Final[RunVar[CapacityLimiter]] = RunVar("memkit.finish")


async def finish(write: Callable[[], T], *, time_limit: float = WRITE_TIMEOUT) -> T:
    """Run a blocking write in a worker thread, to its end, whoever cancels; then raise the cancellation.

    A cancellation before the thread has begun leaves nothing written. After `time_limit` seconds the thread
    is left to itself, since a store that hangs must not make a task immortal.

    Raises:
        DriverError: the time is over and the outcome unknown; repeating an append is safe.
    """
    loop = asyncio_loop()
    if loop is None:
        return await _finish_with_claim(write, time_limit)
    return await _finish_on_asyncio(loop, write, time_limit)


async def _finish_on_asyncio(loop: asyncio.AbstractEventLoop, write: Callable[[], T], time_limit: float) -> T:
    job = Job(loop, write)
    others = patience(loop, time_limit)
    others.waiting.add(job)
    submit(job)
    try:
        await job.wait()
    except get_cancelled_exc_class():
        if not job.claim():
            await _waited_for(job)
        if job.is_over or not job.is_late:
            raise
    finally:
        others.waiting.discard(job)
    if job.is_over:
        return job.outcome()
    if not job.claim():
        give_up(job)
    raise unknown_outcome(time_limit)


async def _waited_for(job: Job[Any]) -> None:
    """Wait to the end, whoever cancels."""
    with CancelScope(shield=True):  # or anyio would cancel again in every turn of the loop
        while not (job.is_over or job.is_late):
            with suppress(get_cancelled_exc_class()):
                await job.wait()


async def _finish_with_claim(write: Callable[[], T], time_limit: float) -> T:
    claim = threading.Lock()
    done = threading.Event()

    def claimed() -> T:
        if not claim.acquire(blocking=False):
            raise RuntimeError("the write was cancelled before it began")  # nobody is there to see it
        try:
            return write()
        finally:
            done.set()

    with move_on_after(time_limit) as scope:
        try:
            return await to_thread.run_sync(claimed, abandon_on_cancel=True, limiter=worker_threads())
        except get_cancelled_exc_class():
            if not scope.cancel_called and not claim.acquire(blocking=False):
                await _until(done.is_set, scope.deadline)
                if not done.is_set():
                    raise unknown_outcome(time_limit) from None
            raise
    raise unknown_outcome(time_limit)


async def finish_async(write: Callable[[], Awaitable[T]], *, time_limit: float = WRITE_TIMEOUT) -> T:
    """Await a write to its end, whoever cancels; then raise the cancellation, also if the write has failed.

    A cancellation before the write has begun leaves nothing written. After `time_limit` seconds the write is
    cancelled, and awaited until that is done. No task is left behind.

    Raises:
        DriverError: the time is over and the outcome unknown; repeating an append is safe.
    """
    await checkpoint_if_cancelled()
    limit = move_on_after(time_limit, shield=True)

    async def limited() -> T:
        with limit:
            return await write()
        raise unknown_outcome(time_limit)

    try:
        return await (limited() if asyncio_loop() is None else _in_own_task(limited(), limit))
    finally:
        if not limit.cancelled_caught:
            await checkpoint_if_cancelled()


def is_cancelled() -> bool:
    """Tell whether this task was cancelled by asyncio itself, and not by a scope of anyio."""
    if asyncio_loop() is None:
        return False
    import asyncio  # noqa: PLC0415 - as above

    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _in_own_task(write: Coroutine[Any, Any, T], limit: CancelScope) -> T:
    import asyncio  # noqa: PLC0415 - as above

    task = asyncio.create_task(write)
    cancelled: asyncio.CancelledError | None = None
    with CancelScope(shield=True):  # without it anyio would send its cancellation on every turn of the loop
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError as error:
                cancelled = cancelled or error
    if cancelled is not None and not limit.cancelled_caught:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


def worker_threads() -> CapacityLimiter:
    """Return the limiter of this event loop for the threads of drivers: files must not starve other work."""
    limiter = _limiter.get(None)
    if limiter is None:
        limiter = CapacityLimiter(THREADS)
        _limiter.set(limiter)
    return limiter


async def _until(is_over: Callable[[], bool], deadline: float) -> None:
    # Polling, because this is rare, and because a native cancellation goes through every shield of anyio.
    with CancelScope(shield=True):
        while not is_over() and current_time() < deadline:
            try:
                await sleep(0.001)
            except get_cancelled_exc_class():
                continue


def unknown_outcome(time_limit: float) -> DriverError:
    """Return the error of a write that was given up."""
    return DriverError(
        f"the write did not end within {time_limit:g} s and its outcome is unknown; "
        "repeat it with the same record",
        retryable=True,
    )


def asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """Return the running event loop if it is one of asyncio and this a task of it."""
    module = sys.modules.get("asyncio")
    if module is None:
        return None
    loop: asyncio.AbstractEventLoop | None = module._get_running_loop()  # noqa: SLF001 - documented, does not raise
    # A task of trio as the guest of asyncio is no task of asyncio.
    return loop if loop is not None and module.current_task(loop) is not None else None

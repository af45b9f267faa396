"""`finish` and `finish_async`: a write that has started ends, whoever cancels; then the cancellation is raised.

A shield of anyio does not stop a native `task.cancel()` or `asyncio.timeout`, after which the caller would go
on while the write still goes on too. `finish` runs a blocking write in a worker thread: on asyncio the job is a
future, which tells whether it has begun and whether it is over; elsewhere a lock decides who was first, the
thread or the cancellation. `finish_async` runs one that awaits: on asyncio in a task of its own, which no
cancellation of the caller reaches and which is awaited to its end; elsewhere a shield is enough.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from queue import SimpleQueue
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

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

WRITE_TIMEOUT: Final = 10.0
"""Seconds after which a write that hangs is given up, its outcome unknown."""

SEVERAL_WRITES: Final = 6 * WRITE_TIMEOUT
"""Seconds for writes that must end together, each of which may take a driver's whole time."""

_THREADS: Final = 16
_limiter: Final[RunVar[CapacityLimiter]] = RunVar("memkit.finish")


class _Workers:
    """Daemon threads that run jobs, at most `_THREADS` beside those that were given up.

    The standard executor's threads are joined when the interpreter ends, so one store that hangs would keep the
    process alive for ever.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._free = _THREADS  # how many more threads may be started
        self._given_up: set[Future[Any]] = set()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        job: Future[T] = Future()
        self._jobs.put((job, work))
        if not self._idle.acquire(blocking=False) and self._free > 0:
            self._free -= 1
            threading.Thread(target=self._run, name="memkit", daemon=True).start()
        return job

    def give_up(self, job: Future[Any]) -> None:
        """Let another thread take the place of the one that hangs in this job, and that end with it."""
        self._given_up.add(job)
        self._free += 1

    def _run(self) -> None:
        while True:
            job, work = self._jobs.get()
            if job.set_running_or_notify_cancel():
                try:
                    job.set_result(work())
                except BaseException as error:
                    job.set_exception(error)
            if job in self._given_up:
                return self._given_up.discard(job)
            del job, work
            self._idle.release()


_workers = _Workers()


def _after_fork() -> None:
    global _workers  # noqa: PLW0603 - the threads are not there in a child
    _workers = _Workers()


os.register_at_fork(after_in_child=_after_fork)


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
    import asyncio  # noqa: PLC0415 - 40 ms that a program on trio need not pay

    job = _workers.submit(write)
    waiter = asyncio.wrap_future(job)
    deadline = loop.time() + time_limit
    timer = loop.call_at(deadline, waiter.cancel)
    try:
        return await waiter
    except asyncio.CancelledError:
        # The caller's cancellation, or that of our timer. A job that has not begun is cancelled with its waiter.
        if not job.cancelled():
            await _until(job.done, deadline)
        is_callers = loop.time() < deadline or is_cancelled()
        if not job.done():
            _workers.give_up(job)
        elif is_callers:
            raise
        elif not job.cancelled():
            return job.result()  # done just as the time was over
        raise unknown_outcome(time_limit) from None
    finally:
        timer.cancel()


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
        limiter = CapacityLimiter(_THREADS)
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

"""`finish` and `finish_async`: a write that has started ends, whoever cancels; then the cancellation is raised.

A shield of anyio does not stop a native `task.cancel()` or `asyncio.timeout`, after which the caller would go
on while the write still goes on too. `finish` runs a blocking write in a worker thread; a lock decides who was
first, the thread or the cancellation. `finish_async` runs one that awaits: on asyncio in a task of its own, which
no cancellation of the caller reaches and which is awaited to its end; elsewhere a shield is enough.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

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


class _Job(Generic[T]):
    """A write for a worker thread, and the wait of its caller on asyncio: a bare future, as tickets have it.

    What the standard library has for this, a future of its executor wrapped in one of the loop, takes longer than
    the write.
    """

    __slots__ = ("_claim", "_error", "_loop", "_result", "_waiter", "_write", "is_late", "is_over")

    def __init__(self, loop: asyncio.AbstractEventLoop, write: Callable[[], T]) -> None:
        self._loop = loop
        self._write = write
        self._claim = threading.Lock()  # of who is first: the thread, or the cancellation
        self._waiter = loop.create_future()
        self._result: T
        self._error: BaseException | None = None
        self.is_over = False
        self.is_late = False

    def claim(self) -> bool:
        """Tell the first who asks that the write is theirs: to be done, or to be left."""
        return self._claim.acquire(blocking=False)

    def run(self) -> None:
        """Do it, in a thread, unless the caller has left."""
        if not self.claim():
            return
        try:
            self._result = self._write()
        except BaseException as error:
            self._error = error
        self.is_over = True
        with suppress(RuntimeError):  # the event loop is gone, and so is who waited
            self._loop.call_soon_threadsafe(self._wake)

    def expire(self) -> None:
        """End the wait: the time is over."""
        self.is_late = True
        self._wake()

    async def wait(self) -> None:
        """Wait until it is over, or the time is."""
        if not (self.is_over or self.is_late):
            if self._waiter.done():
                self._waiter = self._loop.create_future()
            await self._waiter

    def outcome(self) -> T:
        """Return what came of it, or raise it."""
        if self._error is not None:
            raise self._error
        return self._result

    def _wake(self) -> None:
        if not self._waiter.done():
            self._waiter.set_result(None)


class _Workers:
    """Daemon threads that run jobs, at most `_THREADS` beside those that were given up.

    The standard executor's threads are joined when the interpreter ends, so one store that hangs would keep the
    process alive for ever.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job[Any]] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0  # threads that wait for a job, less the jobs that wait for a thread
        self._free = _THREADS  # how many more threads may be started
        self._given_up: set[_Job[Any]] = set()

    def submit(self, job: _Job[Any]) -> None:
        """Have a job run."""
        with self._lock:
            self._idle -= 1
            is_short = self._idle < 0 < self._free
            self._free -= is_short
        self._jobs.put(job)
        if is_short:
            self._start()

    def give_up(self, job: _Job[Any]) -> None:
        """Let another thread take the place of the one that hangs in this job, and that end with it."""
        with self._lock:
            if job.is_over:
                return
            self._given_up.add(job)
            is_short = self._idle < 0
            self._free += not is_short
        if is_short:
            self._start()

    def _start(self) -> None:
        threading.Thread(target=self._run, name="memkit", daemon=True).start()

    def _run(self) -> None:
        while self._does_next():
            pass

    def _does_next(self) -> bool:
        """Run the next job; return whether there is to be another one."""
        with self._lock:
            self._idle += 1
        job = self._jobs.get()
        job.run()
        with self._lock:
            is_given_up = job in self._given_up
            self._given_up.discard(job)
        return not is_given_up


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
    job = _Job(loop, write)
    timer = loop.call_later(time_limit, job.expire)
    _workers.submit(job)
    try:
        await job.wait()
    except get_cancelled_exc_class():
        if not job.claim():
            await _waited_for(job)
        if job.is_over or not job.is_late:
            raise
    finally:
        timer.cancel()
    if job.is_over:
        return job.outcome()
    if not job.claim():
        _workers.give_up(job)
    raise unknown_outcome(time_limit)


async def _waited_for(job: _Job[Any]) -> None:
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

"""Daemon threads that do blocking work, and the wait of its caller on asyncio.

What the standard library has for this, a future of its executor wrapped in one of the event loop, takes longer
than the write of a file; and its threads are joined when the interpreter ends, so one store that hangs would keep
the process alive for ever.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

THREADS: Final = 16
"""How many threads there are at most, beside those that were given up."""


class Job(Generic[T]):
    """Work for a thread, which somebody on an event loop of asyncio waits for."""

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

    def expire(self, seconds: float, /) -> None:
        """End the wait: the time is over."""
        del seconds
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
    """The threads of this process."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job[Any]] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0  # threads that wait for a job, less the jobs that wait for a thread
        self._free = THREADS  # how many more threads may be started
        self._given_up: set[Job[Any]] = set()

    def submit(self, job: Job[Any]) -> None:
        """Have a job run."""
        with self._lock:
            self._idle -= 1
            is_short = self._idle < 0 < self._free
            self._free -= is_short
        self._jobs.put(job)
        if is_short:
            self._start()

    def give_up(self, job: Job[Any]) -> None:
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


def submit(job: Job[Any]) -> None:
    """Have a job run in a thread."""
    _workers.submit(job)


def give_up(job: Job[Any]) -> None:
    """Let another thread take the place of the one that hangs in this job."""
    _workers.give_up(job)

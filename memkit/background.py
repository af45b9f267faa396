"""`Background`: work off the reply path. One for each event loop, and the only owner of tasks in memkit."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeAlias

from anyio import (
    CancelScope,
    Event,
    Semaphore,
    create_task_group,
    current_time,
    get_cancelled_exc_class,
    move_on_after,
)
from anyio.lowlevel import current_token

from memkit.errors import BudgetError, ClosedError, DriverError, MemkitError, SummaryError
from memkit.finish import is_cancelled

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

_log: Final = logging.getLogger(__name__)

_LONGEST_PAUSE: Final = 60.0

Job: TypeAlias = Callable[[], Awaitable[object]]
FailureHandler: TypeAlias = Callable[[str, Exception], object]
"""Is given the key of a conversation, and why the work for it failed."""


class _Flight:
    """The work for one conversation of one driver."""

    __slots__ = ("again", "driver", "job", "key", "scope")

    def __init__(self, driver: object, key: str, job: Job) -> None:
        self.driver = driver  # held, so that its id stays its own
        self.key = key
        self.job = job
        self.again = False  # asked for again while it was under way
        # What began is to land: a cancellation of the program reaches it when the grace time is over.
        self.scope = CancelScope(shield=True)


class Background:
    """Makes summaries while replies go out. Use it with `async with`, inside that of the drivers that it needs.

    At most `limit` conversations are worked on at once, each by one task only; asked again meanwhile, that
    looks once more when it is done. What fails is tried `tries` times, with a pause of `backoff` seconds, then
    twice as much, up to a minute; each failure is logged, counted, and handed to `on_failure`. Leaving waits for
    what has begun, at most `grace` seconds, also when cancelled, and makes no pauses any more. What is left
    stays due: the next `Background` or `summarize()` makes it. While `max_pending` conversations wait, no
    others are taken; their next run asks again.
    """

    def __init__(
        self,
        *,
        limit: int = 16,
        tries: int = 6,
        backoff: float = 1.0,
        grace: float = 30.0,
        max_pending: int = 10_000,
        on_failure: FailureHandler | None = None,
    ) -> None:
        if min(limit, tries, max_pending) < 1 or min(backoff, grace) < 0:
            raise BudgetError("limit, tries and max_pending of a Background are 1 or more, backoff and grace 0")
        self._slots = Semaphore(limit, fast_acquire=True)
        self._tries = tries
        self._backoff = backoff
        self._grace = grace
        self._max_pending = max_pending
        self._on_failure = on_failure
        self._flights: dict[tuple[int, str], _Flight] = {}
        self._running = 0
        self._failed = 0
        self._closing = Event()
        self._landed = Event()
        self._loop: object = None
        self._tasks: TaskGroup | None = None

    @property
    def is_open(self) -> bool:
        """Whether work is taken."""
        return self._tasks is not None and not self._closing.is_set()

    @property
    def pending(self) -> int:
        """How many conversations wait for their turn, or for another try."""
        return len(self._flights) - self._running

    @property
    def running(self) -> int:
        """How many conversations are worked on right now."""
        return self._running

    @property
    def failed(self) -> int:
        """How often work has failed so far."""
        return self._failed

    def submit(self, driver: object, key: str, job: Job) -> bool:
        """Have `job` done for a conversation of `driver`, and return whether it was taken. Never waits."""
        if self._tasks is None or not self.is_open:
            return False
        if self._loop != current_token():
            _log.warning("work for %r is not taken: this Background belongs to another event loop", key)
            return False
        name = id(driver), key
        if (flight := self._flights.get(name)) is not None:
            flight.again, flight.job = True, job
            return True
        if self.pending >= self._max_pending:
            _log.warning("work for %r is not taken: %d conversations wait already", key, self.pending)
            return False
        self._flights[name] = _Flight(driver, key, job)
        self._tasks.start_soon(self._fly, name, self._flights[name])
        return True

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise ClosedError("a Background is entered once; make another one")
        self._loop = current_token()
        self._tasks = await create_task_group().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tasks is None:
            raise ClosedError("this Background was never entered")
        self._closing.set()
        try:
            await self._drain()
        finally:
            for flight in self._flights.values():
                flight.scope.cancel()
            # An error of the body is not that of a task: it goes on as it is, in no group.
            await self._tasks.__aexit__(None, None, None)

    async def _drain(self) -> None:
        """Wait for all to land, whoever cancels, until the grace time is over."""
        deadline = current_time() + self._grace
        cancellation: BaseException | None = None
        while self._flights and current_time() < deadline:
            self._landed = Event()
            try:
                with CancelScope(shield=True, deadline=deadline):
                    await self._landed.wait()
            except get_cancelled_exc_class() as error:
                cancellation = error  # a native one of asyncio, which goes through every shield
        if self._flights:
            keys = [key for _, key in self._flights]
            _log.warning("the work for %d conversations is left undone, such as %r", len(keys), keys[:5])
        if cancellation is not None:
            raise cancellation

    async def _fly(self, name: tuple[int, str], flight: _Flight) -> None:
        try:
            with flight.scope:
                await self._finish(flight)
        finally:
            del self._flights[name]
            self._landed.set()

    async def _finish(self, flight: _Flight) -> None:
        """Do the work of a flight until it has succeeded and nobody has asked again, or it was tried too often."""
        failures = 0
        while True:
            error = await self._try(flight)
            if error is None or not _may_pass(error):
                failures = 0
                if not flight.again:
                    return
                continue
            failures += 1
            if failures == self._tries:
                break
            from random import random  # noqa: PLC0415 - a millisecond that a program without failures need not pay

            # Half of a pause is left to chance: what failed together is not to come back together.
            doubled = self._backoff * 2.0 ** min(failures - 1, 64)
            pause = min(_LONGEST_PAUSE, doubled) * (1 + random()) / 2  # noqa: S311
            with move_on_after(pause):
                await self._closing.wait()
        _log.error("the work for %r is given up after %d tries; its next run asks again", flight.key, failures)

    async def _try(self, flight: _Flight) -> Exception | None:
        async with self._slots:
            self._running += 1
            flight.again = False
            try:
                await flight.job()
            except Exception as error:  # whatever it is, it must not end the program
                self._report(flight.key, error)
                return error
            except get_cancelled_exc_class() as error:
                if flight.scope.cancel_called or is_cancelled():
                    raise
                # Of asyncio: the work awaited what somebody had cancelled. It would end the program as well.
                cancelled = MemkitError("it awaited something that was cancelled")
                cancelled.__cause__ = error
                self._report(flight.key, cancelled)
                return cancelled
            finally:
                self._running -= 1
        return None

    def _report(self, key: str, error: Exception) -> None:
        self._failed += 1
        _log.warning("the work for %r failed: %s", key, error, exc_info=not isinstance(error, MemkitError))
        if self._on_failure is None:
            return
        try:
            self._on_failure(key, error)
        except Exception:
            _log.exception("on_failure of a Background failed for %r", key)


def _may_pass(error: Exception) -> bool:
    """Tell whether trying again may help. What will not pass is left until it is asked for again."""
    return error.retryable if isinstance(error, DriverError | SummaryError) else True

"""`Ticket`: what a task waits for whose write others make, in a batch with the writes of other tasks.

A caller that is cancelled cannot take its write out of a batch. So a ticket is waited for to its end, whoever
cancels, and then the cancellation is raised. On asyncio it is a bare future, because it is in the way of every
append, and neither a shield of anyio nor a task of its own could be paid for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar, cast

from anyio import CancelScope, Event, get_cancelled_exc_class, move_on_after
from anyio.lowlevel import checkpoint_if_cancelled

from memkit.finish import asyncio_loop, unknown_outcome
from memkit.patience import patience

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

SLICE: Final = 64
"""How many tickets are settled in one turn of the event loop: it must not stand still for a whole batch."""


class Ticket(Generic[T]):
    """The outcome of one write. It is made, waited for and settled on one event loop.

    `send` has a function called there, soon and from any thread.
    """

    __slots__ = ("_error", "_is_settled", "_loop", "_result", "_waiter", "send")

    def __init__(self) -> None:
        self._loop = asyncio_loop()
        self._waiter: asyncio.Future[None] | Event
        self.send: Send
        if self._loop is not None:
            self._waiter, self.send = self._loop.create_future(), self._loop.call_soon_threadsafe
        else:
            self._waiter = Event()
            import trio.lowlevel  # noqa: PLC0415 - it is running, so it is there

            self.send = trio.lowlevel.current_trio_token().run_sync_soon
        self._is_settled = False
        self._result: T | None = None
        self._error: BaseException | None = None

    def settle(self, result: T | None, error: BaseException | None) -> None:
        """Let the caller go on, with a result or with an error. Only the first time counts."""
        if self._is_settled:
            return
        self._is_settled, self._result, self._error = True, result, error
        if isinstance(self._waiter, Event):
            self._waiter.set()
        elif not self._waiter.done():
            self._waiter.set_result(None)

    def expire(self, seconds: float, /) -> None:
        """Let the caller go on: nobody knows with what."""
        self.settle(None, unknown_outcome(seconds))

    async def outcome(self, time_limit: float) -> T:
        """Wait for the outcome and return it, or raise it.

        Raises:
            DriverError: nothing came within `time_limit` seconds, and the outcome is unknown.
        """
        if self._loop is None:
            await self._wait_shielded(time_limit)
        else:
            await self._wait_on_asyncio(self._loop, time_limit)
        if self._error is not None:
            raise self._error
        return cast("T", self._result)

    async def _wait_on_asyncio(self, loop: asyncio.AbstractEventLoop, time_limit: float) -> None:
        others = patience(loop, time_limit)
        others.waiting.add(self)
        try:
            await cast("asyncio.Future[None]", self._waiter)
        except get_cancelled_exc_class():  # which has cancelled the future as well
            with CancelScope(shield=True):  # or anyio would cancel again in every turn of the loop
                while not self._is_settled:
                    self._waiter = loop.create_future()
                    with suppress(get_cancelled_exc_class()):
                        await self._waiter
            raise
        finally:
            others.waiting.discard(self)

    async def _wait_shielded(self, time_limit: float) -> None:
        with move_on_after(time_limit, shield=True):
            await cast("Event", self._waiter).wait()
        self.expire(time_limit)
        await checkpoint_if_cancelled()


Send: TypeAlias = Callable[..., object]
"""Has a function called on an event loop, soon and from any thread."""

Outcome: TypeAlias = tuple[Ticket[Any], Any, BaseException | None]


class _Here(threading.local):
    """What the event loops of this thread have: the outcomes that are to be settled."""

    def __init__(self) -> None:
        self.outcomes: dict[Send, deque[Outcome]] = {}


_here: Final = _Here()


def deliver(outcomes: Iterable[Outcome]) -> None:
    """Settle tickets on their event loops, with one message to each of these; any thread may call this."""
    by_loop: dict[Send, list[Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome[0].send, []).append(outcome)
    for send, settled in by_loop.items():
        with suppress(RuntimeError):  # the event loop is gone, and so is who waited
            send(_receive, send, settled)


def _receive(send: Send, outcomes: Sequence[Outcome]) -> None:
    waiting = _here.outcomes.get(send)
    if waiting is not None:
        waiting.extend(outcomes)  # behind those of earlier messages, or there would be a slice of each in a turn
    else:
        _here.outcomes[send] = deque(outcomes)
        _settle(send)


def _settle(send: Send) -> None:
    waiting = _here.outcomes[send]
    for _ in range(min(SLICE, len(waiting))):
        ticket, result, error = waiting.popleft()
        ticket.settle(result, error)
    if waiting:
        with suppress(RuntimeError):  # trio may be about to end
            send(_settle, send)
    else:
        del _here.outcomes[send]

"""`Ticket`: what a task waits for whose write others make, in a batch with the writes of other tasks.

A caller that is cancelled cannot take its write out of a batch. So a ticket is waited for to its end, whoever
cancels, and then the cancellation is raised. On asyncio it is a bare future, because it is in the way of every
append, and neither a shield of anyio nor a task of its own could be paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar, cast

from anyio import CancelScope, Event, get_cancelled_exc_class, move_on_after
from anyio.lowlevel import RunVar, checkpoint_if_cancelled

from memkit.finish import asyncio_loop, unknown_outcome

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

SLICE: Final = 64
"""How many tickets are settled in one turn of the event loop: it must not stand still for a whole batch."""


class Ticket(Generic[T]):
    """The outcome of one write. It is made, waited for and settled on one event loop."""

    __slots__ = ("_error", "_is_settled", "_loop", "_result", "_waiter")

    def __init__(self) -> None:
        self._loop = asyncio_loop()
        self._waiter: asyncio.Future[None] | Event = Event() if self._loop is None else self._loop.create_future()
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
        timer = loop.call_later(time_limit, self.settle, None, unknown_outcome(time_limit))
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
            timer.cancel()

    async def _wait_shielded(self, time_limit: float) -> None:
        with move_on_after(time_limit, shield=True):
            await cast("Event", self._waiter).wait()
        self.settle(None, unknown_outcome(time_limit))
        await checkpoint_if_cancelled()


Outcome: TypeAlias = tuple[Ticket[Any], Any, BaseException | None]


class Courier:
    """Brings outcomes from a thread to the event loop of the tickets: one message for many of them."""

    def __init__(self) -> None:
        loop = asyncio_loop()
        self._send: Callable[..., object]
        self._call_soon: Callable[..., object]
        if loop is not None:
            self._send, self._call_soon = loop.call_soon_threadsafe, loop.call_soon
        else:
            import trio.lowlevel  # noqa: PLC0415 - it is running, so it is there

            self._send = self._call_soon = trio.lowlevel.current_trio_token().run_sync_soon

    def post(self, outcomes: Sequence[Outcome]) -> None:
        """Settle tickets; any thread may call this. If the event loop is gone, so is who waited."""
        with suppress(RuntimeError):  # of which trio's RunFinishedError is one
            self._send(self._deliver, outcomes)

    def _deliver(self, outcomes: Sequence[Outcome]) -> None:
        for ticket, result, error in outcomes[:SLICE]:
            ticket.settle(result, error)
        if len(outcomes) > SLICE:
            self._call_soon(self._deliver, outcomes[SLICE:])


_courier: Final[RunVar[Courier]] = RunVar("memkit.tickets")


def courier() -> Courier:
    """Return the courier of this event loop."""
    found = _courier.get(None)
    if found is None:
        found = Courier()
        _courier.set(found)
    return found

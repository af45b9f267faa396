"""`patience`: a limit of time for many who wait, by one timer for all that began at about the same time.

A timer for each of them would cost a fiftieth of an append.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import asyncio


class Waiter(Protocol):
    """Who waits."""

    def expire(self, seconds: float, /) -> None:
        """Wait no more: it has taken so many seconds."""
        ...


class Patience:
    """Those who began to wait within a hundredth of their time."""

    __slots__ = ("ends", "loop", "seconds", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.loop = loop
        self.seconds = seconds
        self.ends = loop.time() + seconds / 100  # when nobody is taken in any more
        self.waiting: set[Waiter] = set()
        loop.call_later(seconds * 1.01, self._give_up)

    def _give_up(self) -> None:
        for waiter in list(self.waiting):
            waiter.expire(self.seconds)


class _Here(threading.local):
    latest: Patience | None = None


_here: Final = _Here()


def patience(loop: asyncio.AbstractEventLoop, seconds: float) -> Patience:
    """Return what those who wait from now on for so many seconds enter, and leave when they are done."""
    found = _here.latest
    if found is None or found.loop is not loop or found.seconds != seconds or found.ends < loop.time():
        found = _here.latest = Patience(loop, seconds)
    return found

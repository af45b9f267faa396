"""The event loop on which the synchronous methods of other people's classes do what waits."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Final, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

T = TypeVar("T")

_starting: Final = threading.Lock()
_portals: Final[list[BlockingPortal]] = []


def wait_for(do: Callable[[], Awaitable[T]]) -> T:
    """Await something on that event loop, while this thread waits.

    It may be called from inside a running event loop, which stands still meanwhile.
    """
    return shared_portal().call(do)


def shared_portal() -> BlockingPortal:
    """Return the portal to an event loop that the process has for this, in a thread; a fork gets its own."""
    with _starting:
        if not _portals:
            _portals.append(_start())
        return _portals[0]


def _start() -> BlockingPortal:
    started: Future[BlockingPortal] = Future()

    async def run() -> None:
        async with BlockingPortal() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    # A daemon: the end of the program does not wait for it, and between two calls it has nothing to lose.
    threading.Thread(target=anyio.run, args=(run,), name="memkit portal", daemon=True).start()
    return started.result()


os.register_at_fork(after_in_child=_portals.clear)

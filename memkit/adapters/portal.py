"""The event loop on which the synchronous methods of other people's classes do what waits."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Final, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from memkit.errors import UnsupportedError

T = TypeVar("T")


class _Shared:
    """The portal that the threads of this process share, once there is one."""

    def __init__(self) -> None:
        self.thread = threading.local()
        self.renew()

    def renew(self) -> None:
        """Begin anew: the lock may have been held when the process was forked."""
        self.starting = threading.Lock()
        self.portal: BlockingPortal | None = None


_shared: Final = _Shared()


def wait_for(do: Callable[[], Awaitable[T]]) -> T:
    """Await something on that event loop, while this thread waits.

    It may be called from inside a running event loop, which stands still meanwhile.

    Raises:
        UnsupportedError: called on that event loop itself, which would wait for itself.
    """
    if getattr(_shared.thread, "is_ours", False):
        raise UnsupportedError(
            "a synchronous method was called on the event loop that memkit runs for such methods, and would wait "
            "for itself; await the asynchronous method there"
        )
    return shared_portal().call(do)


def shared_portal() -> BlockingPortal:
    """Return the portal to an event loop that the process has for this, in a thread; a fork gets its own."""
    with _shared.starting:
        if _shared.portal is None:
            _shared.portal = _start()
        return _shared.portal


def _start() -> BlockingPortal:
    started: Future[BlockingPortal] = Future()

    async def run() -> None:
        _shared.thread.is_ours = True
        async with BlockingPortal() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    # A daemon: the end of the program does not wait for it, and between two calls it has nothing to lose.
    threading.Thread(target=anyio.run, args=(run,), name="memkit portal", daemon=True).start()
    return started.result()


os.register_at_fork(after_in_child=_shared.renew)

"""A command on its way to a server, and its caller's wait for what becomes of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from anyio import CancelScope


class Command:
    """A command, packed, for the server that has its slot.

    `memkit.tickets` would serve as well; its timers cost a fifth of an append, and the flusher needs none.
    """

    __slots__ = (
        "_future",
        "_is_settled",
        "asking",
        "deadline",
        "error",
        "is_open",
        "is_write",
        "key",
        "packed",
        "slot",
        "was_sent",
        "weight",
    )

    def __init__(self, key: str, slot: int, packed: bytes, *, is_write: bool, reply_size: int = 0) -> None:
        self.key = key
        self.slot = slot
        self.packed = packed
        self.is_write = is_write
        self.weight = len(packed) + reply_size
        self.deadline = 0.0
        self.was_sent = False
        self.is_open = False  # sent, and cut off from its answer: it may have been done
        self.asking: str | None = None  # the node that is to be asked, while the slot is moved there
        self.error: BaseException | None = None  # what went wrong with the last try
        self._future: asyncio.Future[Any] | None = None
        self._is_settled = False

    def expect(self) -> asyncio.Future[Any]:
        """Be ready to be settled."""
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        return self._future

    def is_wanted(self) -> bool:
        """Tell whether somebody still waits: who only reads may have left."""
        return self.is_write or self._future is None or not self._future.done()

    def settle(self, reply: Any, error: BaseException | None = None) -> None:
        """Let the caller go on, with a reply or with an error. Only the first time counts."""
        if self._is_settled or self._future is None:
            return
        self._is_settled = True
        if self._future.done():
            return  # the caller was cancelled, and is told by the flag, or has gone
        if error is None:
            self._future.set_result(reply)
        else:
            self._future.set_exception(error)

    async def outcome(self) -> Any:
        """Wait for the reply, that of a write to its end, whoever cancels; then raise the cancellation."""
        try:
            return await self.expect()
        except asyncio.CancelledError:  # which has cancelled the future as well
            with CancelScope(shield=True):  # or anyio would cancel again in every turn of the loop
                while self.is_write and not self._is_settled:
                    self._future = None
                    with suppress(asyncio.CancelledError, Exception):
                        await self.expect()
            raise

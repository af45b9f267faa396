"""`TimeLimit`: one timer for many waits, one after the other."""

from __future__ import annotations

import asyncio
from types import TracebackType


class TimeLimit:
    """Cancels a block that takes longer than `seconds`, like `asyncio.timeout`, and can be entered again.

    A timer for each block would cost a tenth of an append. This one looks, when it is due, whether there is a
    block and whether its time is over, and waits on for as long as that takes.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._deadline = 0.0
        self._is_over = False
        self._is_armed = False

    def __enter__(self) -> None:
        self._task = asyncio.current_task(self._loop)
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        self._deadline = self._loop.time() + self._seconds
        self._is_over = False
        if not self._is_armed:
            self._is_armed = True
            self._loop.call_at(self._deadline, self._look)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._is_over and task is not None:
            is_ours = task.uncancel() <= self._cancelling
            if is_ours and isinstance(error, asyncio.CancelledError):
                raise TimeoutError(f"no answer within {self._seconds:g} s") from error

    def _look(self) -> None:
        self._is_armed = self._task is not None
        if self._task is None:
            return
        if self._loop.time() >= self._deadline:
            self._is_armed = False
            self._is_over = True
            self._task.cancel()
        else:
            self._loop.call_at(self._deadline, self._look)

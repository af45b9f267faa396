"""Waiting between tries, for longer and longer, and for how long in all."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from memkit.errors import DriverError

_SHORTEST: Final = 0.01
_LONGEST: Final = 0.1


class Tries:
    """Tries to write what others spoil by writing at the same time, until the time for that is over."""

    def __init__(self, where: str, retry_for: float) -> None:
        self._where: Final = where
        self._retry_for: Final = retry_for
        self.deadline: Final = asyncio.get_running_loop().time() + retry_for
        self._count = 0

    @property
    def is_over(self) -> bool:
        """Tell whether the time is over."""
        return asyncio.get_running_loop().time() >= self.deadline

    async def pause(self) -> None:
        """Wait for a while before the next try.

        Raises:
            DriverError: the time is over.
        """
        if self.is_over:
            raise DriverError(
                f"others kept writing to {self._where} for {self._retry_for:g} s; repeat it", retryable=True
            )
        await pause(self._count, self.deadline)
        self._count += 1


async def pause(tries: int, deadline: float | None = None) -> None:
    """Wait for a while that is random and grows with the number of tries, but not beyond the deadline."""
    longest = min(_LONGEST, _SHORTEST * 2**tries)
    seconds = random.uniform(_SHORTEST / 2, longest)  # noqa: S311 - so that not all writers come back at once
    if deadline is not None:
        seconds = min(seconds, max(0, deadline - asyncio.get_running_loop().time()))
    await asyncio.sleep(seconds)

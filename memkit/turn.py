"""A turn while it happens: an answer that is streamed, tools that run, and what is stored of it when it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

import msgspec
from anyio import Lock, get_cancelled_exc_class, move_on_after

from memkit.checks import check_content, check_parts
from memkit.content import Content, ContentLike, Part, to_content, to_parts
from memkit.errors import ClosedError, DriverError, MemkitError
from memkit.finish import WRITE_TIMEOUT
from memkit.run import Extend, Run, Status, new_id

_PATIENCE: Final = 2 * WRITE_TIMEOUT
"""Seconds for which a turn that was cancelled waits for a store that hangs: longer than a driver waits."""


class Turn:
    """One exchange in the making. Leave its `async with`, and what was said is stored as a run.

    Left normally, the run is complete; left by an error or a cancellation, it is partial, and the error goes
    on. `step` and `write` take what comes and never wait; `save` stores it before the turn ends.
    """

    def __init__(
        self,
        append: Callable[..., Awaitable[int]],
        base: Callable[[], int],
        run: Run,
        check_extend: Callable[[], None],
        *,
        early: bool,
    ) -> None:
        self._append = append
        self._base = base
        self._check_extend = check_extend
        self._run = run
        self._early = early
        self._position: int | None = None
        self._unfinished: Run | Extend | None = None
        self._steps: list[Part] = []
        self._said: list[str] = []
        self._answer: Content | None = None
        self._storing = Lock(fast_acquire=True)
        self._is_open = False

    @property
    def run(self) -> Run:
        """The run with all that has come so far, stored or not."""
        output = ("".join(self._said) or ()) if self._answer is None else self._answer
        return msgspec.structs.replace(self._run, steps=(*self._run.steps, *self._steps), output=output)

    def step(self, *parts: Part | str) -> None:
        """Take steps: what the model said before a tool call, the call, its result.

        Raises:
            FormatError: one that cannot be stored; none of them was taken.
        """
        self._check_open()
        steps = to_parts(parts)
        check_parts(steps, "steps")
        self._steps.extend(steps)

    def write(self, text: str) -> None:
        """Take a piece of the answer as it is streamed; after `answer`, of a new one."""
        self._check_open()
        self._answer = None
        self._said.append(text)

    def answer(self, output: ContentLike) -> None:
        """Take the whole answer, in the place of what was written before.

        Raises:
            FormatError: it cannot be stored; it was not taken.
        """
        self._check_open()
        content = to_content(output)
        check_content(content, "output")
        self._said.clear()
        self._answer = content

    async def save(self) -> None:
        """Store what has come so far, as a partial run: a process that dies now loses nothing of it."""
        self._check_open()
        self._check_extend()
        await self._store("partial")

    async def __aenter__(self) -> Self:
        if self._early:
            self._check_extend()
        self._is_open = True
        if self._early:
            await self._store("partial")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status: Status = "complete" if error is None else "partial"
        try:
            await (self._store(status) if error is None else self._store_shielded(status))
        except MemkitError as failure:
            if error is None:
                raise
            _add_note(error, failure)
        except get_cancelled_exc_class() as cancellation:
            # Cancelled while leaving: what was said is to be kept all the same.
            try:
                await self._store_shielded(status)
            except MemkitError as failure:
                _add_note(cancellation, failure)
            raise
        finally:
            self._is_open = False

    async def _store_shielded(self, status: Status) -> None:
        with move_on_after(_PATIENCE, shield=True) as scope:
            await self._store(status)
        if scope.cancelled_caught:
            raise DriverError(f"no answer within {_PATIENCE:g} s, the outcome is unknown", retryable=True)

    async def _store(self, status: Status) -> None:
        async with self._storing:
            await self._store_next(status)

    async def _store_next(self, status: Status) -> None:
        await self._finish()
        run = msgspec.structs.replace(self.run, status=status)
        if self._position is not None and self._position < self._base():
            # It was trimmed while it went on, so it is stored anew, as a whole.
            self._position, run = None, msgspec.structs.replace(run, id=new_id())
        if self._position is None:
            entry: Run | Extend = run
        elif run == self._run:
            return
        else:
            output = None if run.output == self._run.output else run.output
            steps = tuple(self._steps)
            entry = Extend(new_id(), run.id, self._position, steps=steps, output=output, status=status)
        del self._steps[:]
        self._run, self._unfinished = run, entry
        await self._finish()

    async def _finish(self) -> None:
        """Store what is to be stored next; again, if the outcome of the last attempt is unknown."""
        if self._unfinished is not None:
            position = await self._append(self._unfinished)
            if self._position is None:
                self._position = position
            self._unfinished = None

    def _check_open(self) -> None:
        if not self._is_open:
            raise ClosedError("this turn is not running; use it inside `async with memory.turn(...) as turn`")


def _add_note(error: BaseException, failure: MemkitError) -> None:
    error.add_note(f"and the turn could not be stored: {failure}")

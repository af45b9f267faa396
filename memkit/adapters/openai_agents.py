"""A `Session` of the OpenAI Agents SDK over any driver.

    session = MemkitSession("user-id-123", FileDriver(".memkit"))
    result = await Runner.run(agent, "What is my name?", session=session)

What one turn of the runner stores is one run, whose tool calls and answers strategies, counters, summaries and
other adapters understand. Each call writes what is new and nothing else. Needs nothing of the package, whose
`Session` is a protocol; the SDK itself runs on asyncio only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, Unpack, cast

import msgspec
from anyio import Lock

from memkit.adapters.responses import Item, checked
from memkit.adapters.responses.repairs import Repairs
from memkit.adapters.responses.turns import entries_of, run_items, without_last
from memkit.codec import JsonCodec
from memkit.conversation import View
from memkit.driver import Driver
from memkit.errors import BudgetError, ConflictError, DriverError
from memkit.memory import Memory
from memkit.messages import is_skipped, sendable, summary_message
from memkit.options import Options
from memkit.run import Entry, Extend, Run, new_id
from memkit.strategies import NamedStrategy, Strategy, counter_of, last_runs
from memkit.window import Window, maybe_in_thread

if TYPE_CHECKING:
    from agents import TResponseInputItem
    from agents.memory import SessionSettings

T = TypeVar("T")


class _Attempt(msgspec.Struct, frozen=True):
    """A write that may have been stored: of these items, as these entries, where the log of that epoch ended."""

    items: list[Item]
    entries: tuple[Entry, ...]
    epoch: str
    end: int


_MANY: Final = 200
"""How many runs become items on the event loop."""


class MemkitSession:
    """The history of one conversation, for `Runner.run(..., session=)`. Making one does no I/O.

    `options` are those of a `Memory`. With a `strategy` or a `summarizer`, `get_items()` is what goes into the
    next prompt: the summary, the runs that the strategy keeps, repaired, and the newest one as it was stored.
    A question that nobody has answered is shown while it is the newest run, and then no more. Without either
    option, and with a limit, it is all that was stored, item by item. `reserve` tokens of the strategy's budget
    are kept free for instructions, tools, the new input and the reply.

    Sessions on the same conversation, in any number of tasks and processes, lose nothing; items stand in the
    order in which they were stored. All methods raise `DriverError` where the store fails, and all but
    `clear_session` raise `FormatError` where it holds what cannot be read.

    Raises:
        BudgetError: `reserve` is negative.
        UnsupportedError: the codec has no form for runs that come in pieces.
    """

    session_settings: SessionSettings | None

    def __init__(
        self,
        session_id: str,
        driver: Driver,
        *,
        session_settings: SessionSettings | None = None,
        reserve: int = 0,
        **options: Unpack[Options],
    ) -> None:
        self.session_id = session_id
        self.session_settings = session_settings
        if reserve < 0:
            raise BudgetError(f"the tokens reserved for other things must not be negative, but are {reserve}")
        self._reserve: Final = reserve
        self._driver: Final = driver
        self._codec: Final = options.get("codec") or JsonCodec()
        self._codec.encode(Extend(new_id(), "run", 0))  # refuse now what could not be finished
        strategy = options.get("strategy")
        self._is_bounded = strategy is not None or options.get("summarizer") is not None
        self._summary_as: Final = options.get("summary_as", "system")
        options["strategy"] = _with_newest(strategy or last_runs(100))
        self._memory = Memory(driver, session_id, **options)
        self._lock = Lock()
        self._is_open = False
        self._unsure: _Attempt | None = None

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Return the newest `limit` items, by default of `session_settings`; without a limit see the class.

        Raises:
            BudgetError: the strategy finds no room, and was told to raise.
            ConflictError: someone deleted the conversation while it was read; call it again.
        """
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        async with self._lock:
            if await self._open():
                await self._memory.refresh()
            if limit is None and self._is_bounded:
                view = self._memory.view(reserve=self._reserve)
                items = await maybe_in_thread(partial(self._viewed, view), len(view.runs) > _MANY)
            else:
                items = await self._stored(limit)
        return cast("list[TResponseInputItem]", items)

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Store items, all or none: a user message begins a run, what follows extends the newest one.

        After a `DriverError` they may be stored or not. Adding them again, before anything else is written by this
        session, stores them once.

        Raises:
            FormatError: an item that JSON cannot hold; nothing was stored.
        """
        given = checked(items)
        if not given:
            return

        async def add() -> None:
            unsure, self._unsure = self._unsure, None
            if unsure is None or unsure.items != given or not await self._was_repeated(unsure):
                now = self._memory.conversation
                if entries := entries_of(given, self._newest()):
                    await self._attempt(_Attempt(given, entries, now.epoch, now.end))

        await self._write(add)

    async def pop_item(self) -> TResponseInputItem | None:
        """Take back the newest item and return it; None if there is none."""

        async def pop() -> Item | None:
            self._unsure = None
            await self._memory.refresh()
            item = None
            while item is None and (newest := self._newest()):
                item, change = without_last(*newest)
                await self._memory.append(change, expect=self._memory.conversation.end)
            return item

        return cast("TResponseInputItem | None", await self._write(pop))

    async def clear_session(self) -> None:
        """Delete the conversation, also one that cannot be read."""
        async with self._lock:
            if self._is_open:
                await self._memory.clear()
            else:
                await self._driver.delete(self.session_id)

    async def _open(self) -> bool:
        """Load what is needed, the first time; tell if that was done before."""
        if self._is_open:
            return True
        await self._memory.__aenter__()  # it owns nothing that would have to be given back
        self._is_open = True
        return False

    async def _write(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write what follows from what is stored; again, from what others have stored meanwhile."""
        async with self._lock:
            await self._open()
            while True:
                before = self._memory.conversation
                try:
                    return await write()
                except ConflictError:
                    await self._memory.refresh()
                    now = self._memory.conversation
                    if (now.epoch, now.end) == (before.epoch, before.end):
                        raise

    async def _attempt(self, attempt: _Attempt) -> None:
        try:
            await self._memory.append(*attempt.entries, expect=attempt.end)
        except DriverError:
            self._unsure = attempt
            raise

    async def _was_repeated(self, attempt: _Attempt) -> bool:
        """Store what may be stored already; tell if it is now, and not to be worked out anew."""
        if attempt.epoch not in {"", self._memory.conversation.epoch}:
            return False  # what it continues was deleted
        try:
            await self._attempt(attempt)
        except ConflictError:  # it was not stored, and others have written since
            return False
        return True

    def _newest(self) -> tuple[Run, int] | None:
        """Return the newest run and its position."""
        positions, runs = self._memory.conversation.resolved()
        return (runs[-1], positions[-1]) if runs else None

    async def _stored(self, limit: int | None) -> list[Item]:
        """Return the newest items as they were stored; like the SDK's own sessions, all for a negative limit."""
        # A window of its own: that of the handle must not keep what one call has read back to.
        window = Window(self._driver, self.session_id, self._codec, None)
        window.conversation = self._memory.conversation
        if limit is None or limit < 0:
            await window.reach(0)
            runs = window.conversation.runs
            return await maybe_in_thread(partial(_items, runs), len(runs) > _MANY)
        while len(items := _newest_items(window.conversation.runs, limit)) < limit:
            now = window.conversation
            if now.start <= now.base:
                break
            await window.load_older()
        return deepcopy(items)

    def _viewed(self, view: View) -> list[Item]:
        summary = [] if view.summary is None else [summary_message(view.summary, self._summary_as)]
        older = [sendable(item) for item in _items([run for run in view.runs[:-1] if not is_skipped(run)])]
        return summary + Repairs([*older, *_items(view.runs[-1:])], len(older)).applied()


def _with_newest(strategy: Strategy) -> Strategy:
    """Return a strategy that leaves the newest run as it is, whatever `strategy` does with it."""

    def apply(view: View) -> View:
        if not view.runs:
            return view  # open, so that the newest run is looked for further back
        after = strategy(view)
        newest = view.runs[-1], view.positions[-1]
        kept = [item for item in zip(after.runs, after.positions, strict=True) if item[1] != newest[1]]
        runs, positions = zip(*kept, newest, strict=True)
        return msgspec.structs.replace(after, runs=runs, positions=positions, sums=None)

    return NamedStrategy(f"with_newest({strategy!r})", apply, counter_of(strategy))


def _items(runs: Sequence[Run]) -> list[Item]:
    """Return the items of runs, copied: callers may change what they get."""
    return [deepcopy(item) for run in runs for item in run_items(run)]


def _newest_items(runs: Sequence[Run], limit: int) -> list[Item]:
    """Return at most `limit` items of the newest runs, in the order of the log, not copied."""
    backwards: list[Item] = []
    for run in reversed(runs):
        if len(backwards) >= limit:
            break
        backwards.extend(reversed(run_items(run)))
    return backwards[:limit][::-1]

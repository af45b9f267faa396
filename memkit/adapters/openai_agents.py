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
from typing import TYPE_CHECKING, Final, TypeVar, Unpack, cast

import msgspec
from anyio import Lock

from memkit.adapters.responses import Item, checked
from memkit.adapters.responses.repairs import Repairs
from memkit.adapters.responses.turns import entries_of, run_items, without_last
from memkit.conversation import View
from memkit.driver import Driver
from memkit.errors import ConflictError
from memkit.memory import Memory
from memkit.messages import is_skipped, sendable, summary_message
from memkit.options import Options
from memkit.run import Extend, Run, new_id
from memkit.strategies import NamedStrategy, Strategy, counter_of, last_runs

if TYPE_CHECKING:
    from agents import TResponseInputItem
    from agents.memory import SessionSettings

T = TypeVar("T")


class MemkitSession:
    """The history of one conversation, for `Runner.run(..., session=)`. Making one does no I/O.

    `options` are those of a `Memory`. With a `strategy` or a `summarizer`, `get_items()` is what goes into the
    next prompt: the summary, the runs that the strategy keeps, repaired, and the newest one as it was stored.
    Without, and with a limit, it is all that was stored, item by item. Sessions on the same conversation, in any
    number of tasks and processes, lose nothing; items stand in the order in which they were stored.

    All methods raise `DriverError` where the store fails and `FormatError` where it holds what cannot be read.

    Raises:
        UnsupportedError: the codec has no form for runs that come in pieces.
    """

    session_settings: SessionSettings | None

    def __init__(
        self,
        session_id: str,
        driver: Driver,
        *,
        session_settings: SessionSettings | None = None,
        **options: Unpack[Options],
    ) -> None:
        self.session_id = session_id
        self.session_settings = session_settings
        if codec := options.get("codec"):
            codec.encode(Extend(new_id(), "run", 0))  # refuse now what could not be finished
        strategy = options.get("strategy")
        self._is_bounded = strategy is not None or options.get("summarizer") is not None
        self._summary_as: Final = options.get("summary_as", "system")
        options["strategy"] = _with_newest(strategy or last_runs(100))
        self._memory = Memory(driver, session_id, **options)
        self._lock = Lock()
        self._is_open = False

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Return the newest `limit` items, by default of `session_settings`; without a limit see the class.

        Raises:
            BudgetError: the strategy finds no room, and was told to raise.
        """
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        async with self._lock:
            if await self._open():
                await self._memory.refresh()
            if limit is None and self._is_bounded:
                items = self._viewed(self._memory.view())
            else:
                items = await self._stored(limit)
        return cast("list[TResponseInputItem]", items)

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Store items, all or none: a user message begins a run, what follows extends the newest one.

        Raises:
            FormatError: an item that JSON cannot hold; nothing was stored.
        """
        given = checked(items)

        async def add() -> None:
            if entries := entries_of(given, self._newest()):
                await self._memory.append(*entries, expect=self._memory.conversation.end)

        await self._write(add)

    async def pop_item(self) -> TResponseInputItem | None:
        """Take back the newest item and return it; None if there is none."""

        async def pop() -> Item | None:
            await self._memory.refresh()
            item = None
            while item is None and (newest := self._newest()):
                item, change = without_last(*newest)
                await self._memory.append(change, expect=self._memory.conversation.end)
            return item

        return cast("TResponseInputItem | None", await self._write(pop))

    async def clear_session(self) -> None:
        """Delete the conversation."""
        async with self._lock:
            await self._open()
            await self._memory.clear()

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

    def _newest(self) -> tuple[Run, int] | None:
        """Return the newest run and its position."""
        positions, runs = self._memory.conversation.resolved()
        return (runs[-1], positions[-1]) if runs else None

    async def _stored(self, limit: int | None) -> list[Item]:
        """Return the newest items as they were stored; like the SDK's own sessions, all for a negative limit."""
        now = self._memory.conversation
        is_all = limit is None or limit < 0
        items = _items(now.runs)
        if now.start > now.base and (is_all or len(items) < cast("int", limit)):
            items = _items([run async for run in self._memory.history()])
        return items if is_all else items[max(0, len(items) - cast("int", limit)) :]

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

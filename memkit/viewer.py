"""The views of a window: how far back it must reach, what its runs cost, what of it no view needs any more."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec

from memkit.content import Content
from memkit.conversation import SUMMARY_REACH, Conversation, View
from memkit.errors import BudgetError
from memkit.run import Run
from memkit.strategies import Strategy
from memkit.tokens import INLINE_CHARS, TokenCounter, chars_of, is_counted
from memkit.window import PAGE, Window, maybe_in_thread

_MUCH: Final = 5_000
"""How many entries are looked through on the event loop: some milliseconds."""


class Viewer:
    """Makes views of a window, and keeps the window as large as they need."""

    def __init__(
        self, window: Window, strategy: Strategy, counter: TokenCounter | None, *, use_summary: bool
    ) -> None:
        self._window = window
        self._strategy = strategy
        self._counter = counter
        self._use_summary = use_summary
        self._full: tuple[Conversation, View] | None = None
        self._shrink_at = 4 * PAGE
        self.is_settled = False

    def view(self, reserved: int) -> View:
        """Return what the strategy keeps when `reserved` tokens are taken by other things."""
        return self._strategy(self.full(reserved))

    def full(self, reserved: int) -> View:
        """Return the view that the strategy is given: all runs of the window, priced if there is a counter."""
        if reserved < 0:
            raise BudgetError(f"the tokens reserved for other things must not be negative, but are {reserved}")
        now = self._window.conversation
        if self._full is None or self._full[0] is not now:
            self._full = now, self._grown(now) or self._priced(now.view(use_summary=self._use_summary))
        view = self._full[1]
        return msgspec.structs.replace(view, reserved=reserved) if reserved else view

    async def settle(self) -> None:
        """Load further back while something older could matter to the strategy."""
        self.is_settled = False
        while True:
            now = self._window.conversation
            is_much = len(now.entries) > _MUCH
            view, uncounted = await maybe_in_thread(partial(self._seen, now), is_much)
            is_slow = is_much or sum(map(chars_of, uncounted)) > INLINE_CHARS
            full = await maybe_in_thread(partial(self._priced, view), is_slow)
            self._full = now, full
            try:
                view = self._strategy(full)
            except BudgetError:
                return  # for `view` to raise, where a caller can handle it
            if now.is_enough(view, use_summary=self._use_summary):
                # A run with dropped steps has lost its counts: it is counted anew after each change.
                self.is_settled = not uncounted
                return
            await self._window.load_older()

    def shrink(self) -> None:
        """Forget what no view needs, once it is much."""
        now = self._window.conversation
        if len(now.entries) < self._shrink_at:
            return
        self._shrink_at = len(now.entries) + PAGE
        try:
            view = self.view(0)
            if view.closed and view.positions:
                self._window.shrink(self._start_for(view))
                self._shrink_at = max(4 * PAGE, len(self._window.conversation.entries) + PAGE)
        except BudgetError:
            return  # for `view` to raise, where a caller can handle it

    def _start_for(self, view: View) -> int:
        """Return from where on entries are needed to make a closed view: a stride may begin far before its cut."""
        now = self._window.conversation
        seen = max(now.head.summary.seen, now.end - SUMMARY_REACH) if now.head.summary else now.end
        start = min(view.positions[0] - PAGE, seen, now.end - PAGE)
        while start > now.start:
            window = now.from_position(start)
            if self._strategy(self._priced(window.view(use_summary=self._use_summary))).closed:
                break
            start -= now.end - start
        return start

    def tokens_of(self, contents: Sequence[Content]) -> int:
        """Return what contents cost as messages, 0 without a counter.

        Raises:
            BudgetError: they are so long that counting them here would block the event loop.
        """
        if self._counter is None:
            return 0
        if is_long(contents):
            raise BudgetError(
                f"counting more than {INLINE_CHARS:,} characters would block the event loop; "
                "pass tokens=await memory.count(system, input)"
            )
        return count_messages(contents, self._counter)

    def _grown(self, now: Conversation) -> View | None:
        """Return the full view after runs were added to its window, without a look at the others.

        None if anything else has changed, or may have.
        """
        if self._full is None:
            return None
        before, view = self._full
        count = len(before.entries)
        added = tuple([entry for entry in now.entries[count:] if isinstance(entry, Run)])
        is_grown = (
            now.end == before.end + len(added)
            and (now.epoch, now.base, now.start) == (before.epoch, before.base, before.start)
            and now.head is before.head
            and (now.head.summary is None or view.summary is not None)
            and now.entries[:count] == before.entries
        )
        return view.appended(added, range(before.end, now.end)) if is_grown else None

    def _seen(self, now: Conversation) -> tuple[View, list[Run]]:
        """Return all runs of a window as a view, and those of them that are to be counted."""
        view = now.view(use_summary=self._use_summary)
        counter = self._counter
        return view, [] if counter is None else [run for run in view.runs if not is_counted(run, counter)]

    def _priced(self, view: View) -> View:
        return view if self._counter is None else view.priced(self._counter)


def is_long(contents: Sequence[Content]) -> bool:
    """Tell whether contents are to be counted in a thread."""
    return sum(chars_of(Run("", content)) for content in contents) > INLINE_CHARS


def count_messages(contents: Sequence[Content], counter: TokenCounter) -> int:
    """Return what contents cost, each as a message; `()` is none."""
    return sum(counter.count(content) + counter.per_message for content in contents if content != ())

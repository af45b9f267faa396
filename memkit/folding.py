"""Folding: runs that wait become a part of the summary, by a call of the summariser and a swap of the head.

Nothing is held while the summariser works, neither a lock nor the log. What happened meanwhile is looked at
before the head is swapped, and once more after it, because the text of a run that was taken back in between
must not stay in the store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from time import time
from typing import Final, cast

import msgspec
from anyio import fail_after

from memkit.content import Content, text_of
from memkit.conversation import (
    SUMMARY_FRAME,
    Conversation,
    Head,
    Summary,
    counts_of_summary,
    is_stale,
    price_of,
    shows_summary,
)
from memkit.errors import ConflictError, SummaryError
from memkit.finish import SEVERAL_WRITES, finish_async
from memkit.history import History
from memkit.run import Counts, Run
from memkit.summaries import (
    CALL_TIME_LIMIT,
    NamesModel,
    Summarizer,
    SummaryPolicy,
    content_of_summary,
    due,
    shortened,
)
from memkit.tokens import INLINE_CHARS, TokenCounter, approximate, chars_of, cost_of, counted
from memkit.window import PAGE, Window, maybe_in_thread

_BACKLOG: Final = 5_000
"""Up to so many entries that wait are held while they are folded; of more, a part is read for each call."""

_LEAST_ROOM: Final = 100
"""Tokens that a call has at least for a run, however long the previous summary is."""


def is_due(conversation: Conversation, policy: SummaryPolicy, counter: TokenCounter | None) -> bool:
    """Tell from what a window holds whether a fold is due."""
    view = conversation.view()
    if view.before:  # what else waits was never loaded: only a fold can tell
        return True
    by = counter or approximate()
    return due(view.runs, policy, counter=by, now=time(), is_stale=_is_unseen(conversation)) > 0


def _is_unseen(conversation: Conversation) -> bool:
    return conversation.head.summary is not None and not shows_summary(conversation)


class Folder:
    """Folds the runs of a conversation as a policy says."""

    def __init__(
        self, window: Window, summarizer: Summarizer, policy: SummaryPolicy, counter: TokenCounter | None
    ) -> None:
        self._window = window
        self._summarizer = summarizer
        self._policy = policy
        self._counter = counter or approximate()

    async def fold(self) -> bool:
        """Fold once what is due, and tell whether anything was; if so, more may be.

        Raises:
            SummaryError: the summariser failed, or made nothing that can be used; nothing was changed.
        """
        window = self._window
        await window.refresh()
        previous = await window.shown_summary()
        now = window.conversation
        covered, waiting = await self._read(now.base if previous is None else previous.upto)
        runs = [run for _, run in waiting]
        taken = 0 if previous is None else price_of(previous, self._counter)
        by, is_stale = self._counter, _is_unseen(now)
        count = due(runs, self._policy, counter=by, now=time(), is_stale=is_stale, taken=taken)
        if not count:
            return False
        room = max(_LEAST_ROOM, self._policy.max_input_tokens - taken)
        content = await self._asked(self._with_context(covered, runs[:count], room), previous, room)
        position, last = waiting[count - 1]
        summary = Summary(
            content=content,
            upto=position + 1,
            upto_id=last.id,
            seen=now.end,
            created_at=time(),
            model=self._model(),
            counts=await self._counts(content),
        )
        self._check_saving(summary, runs[:count], previous)
        try:
            # To its end, whoever cancels: between the swap and the second look the text of a run could stay.
            commit = partial(self._commit, summary, now, previous is not None)
            await finish_async(commit, time_limit=SEVERAL_WRITES)
        except ConflictError:
            await window.refresh()  # cleared, or others keep changing the head: what they have is as good
        return True

    async def _read(self, start: int) -> tuple[list[Run], list[tuple[int, Run]]]:
        """Return runs before `start`, for context, and those from it on: as many as decide about one call."""
        overlap = self._policy.overlap
        first = start - overlap - PAGE if overlap else start
        if self._window.conversation.end - first <= _BACKLOG:
            await self._window.reach(first)
        now = self._window.conversation
        if now.start <= max(first, now.base):  # nearly always: what waits is in the window
            held = zip(*now.resolved(), strict=True)
            runs = await self._priced([(position, run) for position, run in held if position >= first])
        else:
            runs = await self._paged(first, start)
        covered = [run for position, run in runs if position < start]
        return covered[max(0, len(covered) - overlap) :], runs[len(covered) :]

    async def _paged(self, first: int, start: int) -> list[tuple[int, Run]]:
        policy = self._policy
        history = History(self._window, first)
        runs: list[tuple[int, Run]] = []
        while (page := await history.page()) is not None:
            runs += await self._priced(page)
            waiting = [run for position, run in runs if position >= start]
            if len(waiting) > policy.keep + policy.every:
                foldable = waiting[: len(waiting) - policy.keep]
                if sum(cost_of(run, self._counter) for run in foldable) > policy.max_input_tokens:
                    break
        return runs

    async def _priced(self, page: list[tuple[int, Run]]) -> list[tuple[int, Run]]:
        is_long = sum(chars_of(run) for _, run in page) > INLINE_CHARS
        return await maybe_in_thread(
            lambda: [(position, cast("Run", counted(run, self._counter))) for position, run in page], is_long
        )

    def _with_context(self, covered: Sequence[Run], runs: Sequence[Run], room: int) -> list[Run]:
        """Return the runs with as many of those before them as there is room for."""
        room -= sum(cost_of(run, self._counter) for run in runs)
        first = len(covered)
        while first and (room := room - cost_of(covered[first - 1], self._counter)) >= 0:
            first -= 1
        return [*covered[first:], *runs]

    async def _asked(self, runs: Sequence[Run], previous: Summary | None, room: int) -> Content:
        is_long = sum(map(chars_of, runs)) > INLINE_CHARS
        given = await maybe_in_thread(lambda: [shortened(run, room, self._counter) for run in runs], is_long)
        try:
            with fail_after(CALL_TIME_LIMIT):
                made = self._summarizer(given, previous=None if previous is None else text_of(previous.content))
                if isinstance(made, AsyncIterator):
                    return content_of_summary("".join([piece async for piece in made]))
                return content_of_summary(await made)
        except Exception as error:
            key = self._window.conversation.key
            what = str(error) if isinstance(error, SummaryError) else f"{type(error).__name__}: {error}"
            raise SummaryError(f"the summariser of {key!r} failed: {what}") from error

    def _model(self) -> str:
        model = self._summarizer.model if isinstance(self._summarizer, NamesModel) else ""
        return model if isinstance(cast("object", model), str) else ""  # else the head could not be read again

    async def _counts(self, content: Content) -> Counts:
        is_long = len(text_of(content)) > INLINE_CHARS
        return await maybe_in_thread(lambda: counts_of_summary(content, self._counter), is_long)

    def _check_saving(self, summary: Summary, runs: Sequence[Run], previous: Summary | None) -> None:
        """Refuse a summary that says more than what it stands for; its frame, the same for all, is left out."""
        frame = self._counter.count(SUMMARY_FRAME)
        says = price_of(summary, self._counter) - frame
        stands_for = sum(cost_of(run, self._counter) for run in runs)
        stands_for += 0 if previous is None else price_of(previous, self._counter) - frame
        if says >= stands_for:
            raise SummaryError(
                f"the summary of {self._window.conversation.key!r} has {says} tokens, and what it would stand for "
                f"no more than {stands_for}; it is not used",
                retryable=False,
            )

    async def _commit(self, summary: Summary, read: Conversation, builds_on_another: bool) -> None:
        """Swap the summary in, unless a run that it covers was changed meanwhile, or somebody got further.

        Further got also who has read what was trimmed before this one was begun, `read` being what it has read.
        """
        before: Summary | None = None
        replaced, epoch = read.head.summary, read.epoch
        is_whole = builds_on_another or read.base == 0

        def swapped(head: Head) -> Head:
            nonlocal before
            before = head.summary
            others = head.summary if head.summary != replaced else None
            is_behind = others is not None and (
                others.upto >= summary.upto or (not is_whole and self._holds(others))
            )
            is_cleared = self._window.conversation.epoch != epoch
            return head if is_behind or is_cleared else msgspec.structs.replace(head, summary=summary)

        def undone(head: Head) -> Head:
            kept = before if before is not None and self._holds(before) else None
            return msgspec.structs.replace(head, summary=kept) if head.summary == summary else head

        if await self._still_holds(summary, epoch):
            await self._window.commit(swapped)
            if not await self._still_holds(summary, epoch):
                await self._window.commit(undone)

    async def _still_holds(self, summary: Summary, epoch: str) -> bool:
        window = self._window
        await window.refresh()
        if window.conversation.epoch != epoch:
            return False
        await window.reach(summary.seen)
        return self._holds(summary)

    def _holds(self, summary: Summary) -> bool:
        now = self._window.conversation
        # What was trimmed since may have been a change, and nobody can tell any more.
        return now.start <= summary.seen and not is_stale(now, summary)

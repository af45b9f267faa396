"""What needs more of the log than a window holds: all runs, one run by its id, a copy, a redaction."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

import msgspec

from memkit.conversation import Head, Summary, apply
from memkit.errors import ConflictError
from memkit.run import Amend, Change, Entry, Extend, Retract, Run
from memkit.window import Window

_STRIDE: Final = 200


class History(AsyncIterator[Run]):
    """The runs of the log from a position on, oldest first, after all changes.

    What changes a run comes after it, maybe far after, so all changes are read first. An iterator and not a
    generator: a loop over it can be left early with nothing to close.
    """

    def __init__(self, window: Window, start: int = 0) -> None:
        now = window.conversation
        self._window = window
        self._strides = deque(_strides(max(start, now.base), now.end))
        self._changes: dict[int, list[Change]] | None = None
        self._ready: deque[Run] = deque()

    async def __anext__(self) -> Run:
        while not self._ready:
            page = await self.page()
            if page is None:
                raise StopAsyncIteration
            self._ready.extend(run for _, run in page)
        return self._ready.popleft()

    async def rest(self) -> list[tuple[int, Run]]:
        """Return all runs that are left, with their positions."""
        runs: list[tuple[int, Run]] = []
        while (page := await self.page()) is not None:
            runs += page
        return runs

    async def page(self) -> list[tuple[int, Run]] | None:
        """Return some more runs with their positions, maybe none; None at the end."""
        if self._changes is None:
            changes: dict[int, list[Change]] = {}
            for stride in self._strides:
                for _, entry in await _read(self._window, *stride):
                    if not isinstance(entry, Run):
                        changes.setdefault(entry.at, []).append(entry)
            self._changes = changes
        if not self._strides:
            return None
        entries = await _read(self._window, *self._strides[0])
        self._strides.popleft()  # only now: a read that fails can be repeated
        runs = [(at, _changed(run, self._changes.get(at, ()))) for at, run in entries if isinstance(run, Run)]
        return [(at, run) for at, run in runs if run is not None]


async def find_run(window: Window, run_id: str) -> tuple[int, bool]:
    """Return the position of the run of that id, however far back it is, and whether it was taken back.

    Raises:
        ConflictError: there is no such run: it was never stored, or it was trimmed.
    """
    now = window.conversation
    start, entries = now.start, now.entries
    taken_back: set[int] = set()
    while True:
        for position, entry in reversed(list(enumerate(entries, start))):
            if isinstance(entry, Retract) and entry.target == run_id:
                taken_back.add(entry.at)
            elif isinstance(entry, Run) and entry.id == run_id:
                return position, position in taken_back
        if start <= now.base:
            break
        start, entries = await window.read(max(now.base, start - _STRIDE), start)
        if not entries:  # trimmed meanwhile
            break
    raise ConflictError(
        f"{now.key!r} has no run {run_id!r}: it was never stored, or it was trimmed", expected=run_id
    )


def _strides(start: int, stop: int) -> Iterator[tuple[int, int]]:
    return ((at, min(at + _STRIDE, stop)) for at in range(start, stop, _STRIDE))


async def _read(window: Window, start: int, stop: int) -> list[tuple[int, Entry]]:
    """Return positions and entries of `[start, stop)`, of which a driver may leave out what lies in front."""
    pages: list[Iterable[tuple[int, Entry]]] = []
    while start < stop:
        begin, entries = await window.read(start, stop)
        if not entries:  # trimmed meanwhile
            break
        pages.append(enumerate(entries, begin))
        stop = begin
    return list(chain.from_iterable(reversed(pages)))


def _changed(run: Run, changes: Sequence[Change]) -> Run | None:
    after: Run | None = run
    for change in changes:
        if after is not None and after.id == change.target:
            after = apply(after, change)
    return after


async def redactions(window: Window, at: int, stop: int) -> dict[int, Entry]:
    """Return what is to take the place of all entries before `stop` with text of the run at `at`, by position."""
    blank: dict[int, Entry] = {}
    for stride in _strides(at, stop):
        for position, entry in await _read(window, *stride):
            match entry:
                case Run() if position == at:
                    blank[position] = Run(entry.id, (), created_at=entry.created_at)
                case Extend(at=changed) if changed == at:
                    blank[position] = Extend(entry.id, entry.target, at)
                case Amend(at=changed) if changed == at:
                    blank[position] = Amend(entry.id, at, Run(entry.target, (), created_at=entry.run.created_at))
                case Run() | Extend() | Amend() | Retract():
                    pass
    return blank


async def fork_of(source: Window, target: Window) -> None:
    """Copy a conversation into an empty one: runs as they are now, meta, and the summary with its marks moved.

    Raises:
        ConflictError: there is something under the key of `target`.
    """
    await target.open()
    if target.conversation.epoch:
        raise ConflictError(f"there is a conversation {target.conversation.key!r} already; fork to a new key")
    end = source.conversation.end
    copied = await History(source).rest()
    positions = [position for position, _ in copied]
    runs = tuple(run for _, run in copied)
    await source.refresh()  # only now: what was taken back meanwhile must not come along in a summary
    head = source.conversation.head
    summary = await source.shown_summary()
    if summary is not None and summary.upto > end:
        summary = None  # it tells of runs that came after those that were copied
    if runs:
        await target.append(runs, since=0, expect=0)
    moved = Head(summary=summary and _moved(summary, positions, runs), meta=head.meta, extra=head.extra)
    if moved != Head():
        await target.read_head()
        await target.commit(lambda _: moved)


def _moved(summary: Summary, positions: list[int], runs: tuple[Run, ...]) -> Summary:
    upto, seen = bisect_left(positions, summary.upto), bisect_left(positions, summary.seen)
    return msgspec.structs.replace(summary, upto=upto, upto_id=runs[upto - 1].id if upto else "", seen=seen)

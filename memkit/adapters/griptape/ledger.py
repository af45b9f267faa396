"""A log behind a program that stores a whole list of runs each time, as griptape's memory does.

What is new in the list is appended, what changed is amended, what is missing is taken back. Missing is only what
the program knows, because it was shown it or has stored it itself: runs of other writers, and those that were
there before a program that never loads, stay. So nothing is lost where a list would overwrite a list.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import anyio
import msgspec

from memkit.adapters.griptape.artifacts import SHELL, no_report
from memkit.adapters.griptape.patch import KEY
from memkit.adapters.griptape.runs import StoredRun, run_of, stored_of, without
from memkit.codec import Codec, JsonCodec
from memkit.content import EMPTY, Content, Opaque, text_of
from memkit.conversation import Head, Summary, is_stale, shows_summary
from memkit.driver import Driver, Trim, capability, check_key
from memkit.finish import SEVERAL_WRITES, finish_async
from memkit.history import History
from memkit.retention import keep_summary, remove_text
from memkit.run import Amend, Entry, Retract, Run, new_id
from memkit.window import Window

_SUMMARY: Final = ("summary", "summary_index")


def run_from(shown: StoredRun) -> Run:
    """Return a run as a program has it, which has an id."""
    return run_of(shown, 0, (), no_report)


def shown_of(run: Run) -> StoredRun:
    """Return a run as a program is shown it, without what only memkit knows of it: that stays in the store."""
    said = Run(run.id, run.input, output=run.output, meta=run.meta, extra=run.extra)
    shown = stored_of(said, run_from)
    meta = shown["meta"]
    return {**shown, "meta": without(meta, KEY) or None} if meta and KEY in meta else shown


class Known(NamedTuple):
    """What a program knows of a conversation: which runs, and the metadata as they were then.

    All changes of its runs before the position `seen` are known to it.
    """

    ids: frozenset[str] = frozenset()
    metadata: Mapping[str, Any] = EMPTY
    seen: int = 0


class Ledger:
    """Keeps the runs of such a program in a conversation of a memkit driver, one call after the other."""

    def __init__(self, driver: Driver, key: str, *, codec: Codec | None = None) -> None:
        check_key(key)
        self._driver = driver
        self._window = Window(driver, key, codec or JsonCodec(), None)
        self._positions: dict[str, int] = {}
        self._own: set[str] = set()  # the ids of the changes that a call, and those that failed before, made
        self._is_read = False
        self._has_failed = False
        self._lock = anyio.Lock()  # who waits for a call may be interrupted, and make another one

    async def load(self) -> tuple[list[Run], Known]:
        """Return all runs as they are now, and what is known by that, with the summary if there is one to show."""
        async with self._lock:
            runs = await self._read()
            seen = self._window.conversation.end
            return runs, Known(frozenset(self._positions), await self._metadata_of(runs), seen)

    async def store(
        self, ids: Sequence[str], written: Mapping[str, Run], metadata: Mapping[str, Any], known: Known
    ) -> Known:
        """Make the conversation one of the runs of these ids, and of this metadata, for a program that knew this.

        `written` are those that are new or changed. A run that is stored already, and was not known, is left
        as it is. Repeating this after a failure stores nothing twice. Returns what the program knows now.
        """
        async with self._lock:
            if not self._is_read:
                await self._read()
            self._is_read = False  # after a failure, what is stored must be seen anew
            has_failed, self._has_failed = self._has_failed, True
            seen = await self._store(ids, written, known)
            is_summary_new = await self._commit(metadata, known.metadata, ids, seen)
            if is_summary_new or has_failed:
                await self._drop_stale_summary()
            self._is_read, self._has_failed = True, False
            self._own.clear()
            return Known(frozenset(ids), metadata, seen)

    async def _store(self, ids: Sequence[str], written: Mapping[str, Run], known: Known) -> int:
        """Store runs, and return up to where the program knows the log."""
        seen = known.seen if known.ids else self._window.conversation.end
        await self._amend([run for run_id, run in written.items() if run_id in known.ids & self._positions.keys()])
        added = [run for run_id, run in written.items() if run_id not in known.ids | self._positions.keys()]
        if added:
            position = await self._append(added)
            self._positions |= {run.id: position + n for n, run in enumerate(added)}
        own = known.ids | set(ids)
        seen = await self._seen(seen, own)  # before what it is seen by is trimmed
        await self._remove(known.ids - set(ids))
        return await self._seen(seen, own)

    async def _seen(self, since: int, ids: Collection[str]) -> int:
        """Return the end of the log; `since`, if others have changed runs of these ids from there on."""
        await self._window.reach(since)
        now = self._window.conversation
        news = now.entries[since - now.start :] if now.start <= since else ()
        is_changed = any(
            not isinstance(entry, Run) and entry.target in ids and entry.id not in self._own for entry in news
        )
        return since if is_changed or now.start > since else now.end

    async def _read(self) -> list[Run]:
        await self._window.refresh()
        found = await History(self._window).rest()
        self._positions = {run.id: position for position, run in found}
        self._is_read = True
        return [run for _, run in found]

    async def _append(self, entries: Sequence[Entry]) -> int:
        end = self._window.conversation.end
        position = await self._window.append(entries)
        if position != end:
            await self._read()  # others have stored runs before these
        return position

    async def _amend(self, runs: Sequence[Run]) -> None:
        """Let stored runs say what these say; the rest of them, such as their steps, stays."""
        if not runs:
            return
        stored = {run.id: run for run in await self._read()}
        for run in runs:
            if (was := stored.get(run.id)) is None:
                continue  # taken back by another program, for good
            shown = run_from(shown_of(was))
            extra = {name: value for name, value in was.extra.items() if name != SHELL} | dict(run.extra)
            said = {
                "input": _kept(was.input, shown.input, run.input),
                "output": _kept(was.output, shown.output, run.output),
                "meta": was.meta if run.meta == shown.meta else run.meta,
                "extra": extra,
            }
            before = msgspec.structs.replace(was, counts=None)
            amended = msgspec.structs.replace(before, **said)
            if amended == before:
                continue
            await self._change(Amend(new_id(), self._positions[run.id], amended))

    async def _remove(self, ids: Collection[str]) -> None:
        gone = {run_id: at for run_id in ids if (at := self._positions.get(run_id)) is not None}
        if not gone:
            return
        before = max(gone.values()) + 1
        trim = capability(self._driver, Trim)
        if trim is not None and all(at >= before for run_id, at in self._positions.items() if run_id not in gone):
            await keep_summary(self._window, before)
            now = self._window.conversation
            self._window.trimmed(await trim.trim(now.key, before, epoch=now.epoch or None))
        else:
            for run_id, at in gone.items():
                await self._change(Retract(new_id(), run_id, at))
        for run_id in gone:
            self._positions.pop(run_id, None)

    async def _change(self, change: Amend | Retract) -> None:
        """Store a change and remove the text that it replaces from the summary: both, whoever cancels."""

        async def write() -> None:
            await self._append([change])
            await remove_text(self._window, change.at)

        self._own.add(change.id)
        await finish_async(write, time_limit=SEVERAL_WRITES)

    # --- the head ---

    async def _metadata_of(self, runs: Sequence[Run]) -> dict[str, Any]:
        head = self._window.conversation.head
        metadata = dict(head.meta)
        if (summary := await self._window.shown_summary()) is not None:
            covered = sum(self._positions[run.id] < summary.upto for run in runs)
            metadata |= {"summary": text_of(summary.content), "summary_index": covered}
        return metadata

    async def _commit(
        self, given: Mapping[str, Any], known: Mapping[str, Any], ids: Sequence[str], seen: int
    ) -> bool:
        """Bring what the program has changed in the metadata into the head; return whether a summary was.

        A summary that cannot be stored, and what was in its place, are both gone after that.
        """
        gone = known.keys() - given.keys()
        changed = {name: value for name, value in given.items() if name not in known or known[name] != value}
        if not gone and not changed:
            return False
        is_about_summary = not gone.isdisjoint(_SUMMARY) or not changed.keys().isdisjoint(_SUMMARY)
        summary, own = None, changed
        if _has_summary(given):
            own = {name: value for name, value in changed.items() if name not in _SUMMARY}
            summary = await self._summary_of(given, ids, seen) if is_about_summary else None

        def updated(head: Head) -> Head:
            meta = {name: value for name, value in head.meta.items() if name not in gone} | own
            new = summary if is_about_summary else head.summary
            after = msgspec.structs.replace(head, meta=meta, summary=new)
            return head if after == head else after

        await self._window.commit(updated)
        return summary is not None

    async def _summary_of(self, metadata: Mapping[str, Any], ids: Sequence[str], seen: int) -> Summary | None:
        """Return the summary of a program; None if it may tell of a run that is gone, or was changed since."""
        end, epoch = self._window.conversation.end, self._window.conversation.epoch
        await self._window.refresh()
        now = self._window.conversation
        if (now.end, now.epoch) != (end, epoch):
            await self._read()
        index = metadata.get("summary_index")
        is_index = isinstance(index, int) and 0 < index <= len(ids)
        covered = set(ids[:index] if is_index else ids)
        if not covered <= self._positions.keys():
            return None
        upto, upto_id = 0, ""
        for run_id, at in self._positions.items() if is_index else ():  # in the order of the log
            if run_id not in covered:
                break  # a run of another program, of which the summary does not tell
            upto, upto_id = at + 1, run_id
        summary = Summary(content=metadata["summary"], upto=upto, upto_id=upto_id, seen=seen)
        await self._window.reach(seen)
        return None if is_stale(self._window.conversation, summary) else summary

    async def _drop_stale_summary(self) -> None:
        """Remove a summary that a change has overtaken: it may hold text that was taken back meanwhile."""
        await self._window.refresh()
        summary = self._window.conversation.head.summary
        if summary is None:
            return
        await self._window.reach(summary.seen)
        if not shows_summary(self._window.conversation):
            await self._window.commit(
                lambda head: msgspec.structs.replace(head, summary=None) if head.summary == summary else head
            )


def _has_summary(metadata: Mapping[str, Any]) -> bool:
    text = metadata.get("summary")
    return isinstance(text, str) and bool(text.strip())


def _kept(was: Content, shown: Content, now: Content) -> Content:
    """Return what is said now, or what was, if that says more than could be shown and was not changed."""
    return was if _bare(was) != _bare(shown) == _bare(now) else now


def _bare(content: Content) -> Content:
    """Return content without shells, which have other ids each time a run is shown."""
    if isinstance(content, str):
        return content
    return tuple(
        part if isinstance(part, Opaque) else msgspec.structs.replace(part, extra=EMPTY) for part in content
    )

"""A log behind a program that stores a whole list of runs each time, as griptape's memory does.

What is new in the list is appended, what changed is amended, what is missing is taken back. Missing is only what
the program knows, because it was shown it or has stored it itself: runs of other writers, and those that were
there before a program that never loads, stay. So nothing is lost where a list would overwrite a list.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from memkit.adapters.griptape.artifacts import SHELL, no_report
from memkit.adapters.griptape.patch import KEY
from memkit.adapters.griptape.runs import StoredRun, run_of, stored_of, without
from memkit.codec import Codec, JsonCodec
from memkit.content import EMPTY, Content, Opaque, text_of
from memkit.conversation import Head, Summary, shows_summary
from memkit.driver import Driver, Trim, capability, check_key
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
    """What a program knows of a conversation: which runs, and the metadata as they were then."""

    ids: frozenset[str] = frozenset()
    metadata: Mapping[str, Any] = EMPTY


class Ledger:
    """Keeps the runs of such a program in a conversation of a memkit driver. Not for several tasks at once."""

    def __init__(self, driver: Driver, key: str, *, codec: Codec | None = None) -> None:
        check_key(key)
        self._driver = driver
        self._window = Window(driver, key, codec or JsonCodec(), None)
        self._positions: dict[str, int] = {}
        self._is_read = False

    async def load(self) -> tuple[list[Run], dict[str, Any]]:
        """Return all runs as they are now, and the metadata, with the summary if there is one to show."""
        runs = await self._read()
        return runs, await self._metadata_of(runs)

    async def store(
        self, ids: Sequence[str], written: Mapping[str, Run], metadata: Mapping[str, Any], known: Known
    ) -> None:
        """Make the conversation one of the runs of these ids, and of this metadata, for a program that knew this.

        `written` are those that are new or changed. A run that is stored already, and was not known, is left
        as it is. Repeating this after a failure stores nothing twice.
        """
        if not self._is_read:
            await self._read()
        self._is_read = False  # after a failure, what is stored must be seen anew
        await self._amend([run for run_id, run in written.items() if run_id in known.ids & self._positions.keys()])
        added = [run for run_id, run in written.items() if run_id not in known.ids | self._positions.keys()]
        if added:
            position = await self._append(added)
            self._positions |= {run.id: position + n for n, run in enumerate(added)}
        await self._remove(known.ids - set(ids))
        await self._commit(metadata, known.metadata, ids)
        self._is_read = True

    async def _read(self) -> list[Run]:
        await self._window.refresh()
        history = History(self._window)
        found: list[tuple[int, Run]] = []
        while (page := await history.page()) is not None:
            found += page
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
            at = self._positions[run.id]
            await self._append([Amend(new_id(), at, amended)])
            await remove_text(self._window, at)

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
                await self._append([Retract(new_id(), run_id, at)])
                await remove_text(self._window, at)
        for run_id in gone:
            self._positions.pop(run_id, None)

    # --- the head ---

    async def _metadata_of(self, runs: Sequence[Run]) -> dict[str, Any]:
        head = self._window.conversation.head
        metadata = dict(head.meta)
        if head.summary is not None:
            await self._window.reach(head.summary.seen)
            if shows_summary(self._window.conversation):
                covered = sum(self._positions[run.id] < head.summary.upto for run in runs)
                metadata |= {"summary": text_of(head.summary.content), "summary_index": covered}
        return metadata

    async def _commit(self, given: Mapping[str, Any], known: Mapping[str, Any], ids: Sequence[str]) -> None:
        """Bring what the program has changed in the metadata into the head, and nothing else."""
        gone = known.keys() - given.keys()
        changed = {name: value for name, value in given.items() if name not in known or known[name] != value}
        if not gone and not changed:
            return
        summary = self._summary_of(given, ids)
        is_about_summary = not gone.isdisjoint(_SUMMARY) or not changed.keys().isdisjoint(_SUMMARY)
        own = changed if summary is None else {k: v for k, v in changed.items() if k not in _SUMMARY}

        def updated(head: Head) -> Head:
            meta = {name: value for name, value in head.meta.items() if name not in gone} | own
            new = summary if is_about_summary else head.summary
            after = msgspec.structs.replace(head, meta=meta, summary=new)
            return head if after == head else after

        await self._window.commit(updated)

    def _summary_of(self, metadata: Mapping[str, Any], ids: Sequence[str]) -> Summary | None:
        text, index = metadata.get("summary"), metadata.get("summary_index")
        if not isinstance(text, str) or not text.strip():
            return None
        is_index = isinstance(index, int) and 0 < index <= len(ids)
        covered = set(ids[:index]) if is_index else set[str]()
        upto, upto_id = 0, ""
        for run_id, at in self._positions.items():  # in the order of the log
            if run_id not in covered:
                break  # a run of another program, of which the summary does not tell
            upto, upto_id = at + 1, run_id
        return Summary(content=text, upto=upto, upto_id=upto_id, seen=self._window.conversation.end)


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

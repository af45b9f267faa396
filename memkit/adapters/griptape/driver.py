"""A conversation memory driver for griptape that keeps the runs in any memkit driver.

    from griptape.memory.structure import ConversationMemory
    from griptape.structures import Agent

    driver = MemkitConversationMemoryDriver(driver=FileDriver(".memkit"), key="user-id-123")
    agent = Agent(conversation_memory=ConversationMemory(conversation_memory_driver=driver))

griptape calls its drivers synchronously, also from inside a running event loop. The memkit driver works on an
event loop of its own, in a thread that all such drivers of a process share; the calling thread waits meanwhile.
Unlike griptape's own drivers, this one appends what is new, and never overwrites what another program stored.
"""

# pyright: basic
# griptape has no types of its own.

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from copy import deepcopy
from typing import Any, NamedTuple, TypeAlias, TypeVar

import msgspec
from anyio.from_thread import BlockingPortal

from memkit.adapters.griptape.ledger import Known, Ledger, run_from, shown_of
from memkit.adapters.portal import shared_portal, wait_for
from memkit.driver import Driver
from memkit.errors import FormatError
from memkit.rawjson import to_json
from memkit.run import Run

try:
    from attrs import define, field
    from griptape.artifacts import BaseArtifact, TextArtifact
    from griptape.drivers.memory.conversation import BaseConversationMemoryDriver
    from griptape.memory.structure import Run as GriptapeRun
except ImportError as error:
    raise ImportError("memkit.adapters.griptape.driver needs griptape 1.x: pip install griptape") from error

T = TypeVar("T")

OpenDriver: TypeAlias = Callable[[], AbstractAsyncContextManager[Driver]]
"""Opens a driver whose client belongs to one event loop, as `lambda: redis.connect(url)`."""


class _Seen(NamedTuple):
    """A run as it was when it was last stored or loaded, to notice that it was changed."""

    input: BaseArtifact
    said: Any
    output: BaseArtifact
    answer: Any
    meta: dict[str, Any] | None

    @classmethod
    def of(cls, run: GriptapeRun) -> _Seen:
        """Return a run as it is now."""
        return cls(run.input, run.input.value, run.output, run.output.value, deepcopy(run.meta))

    def is_still(self, run: GriptapeRun) -> bool:
        """Tell whether the run is as it was. A value that was changed in place is not noticed."""
        return (
            run.input is self.input
            and run.output is self.output
            and (run.input.value is self.said or run.input.value == self.said)
            and (run.output.value is self.answer or run.output.value == self.answer)
            and run.meta == self.meta
        )


class _Note(NamedTuple):
    run: weakref.ref[GriptapeRun]
    seen: _Seen
    known: Known


class _Notes:
    """What was stored of each run, and what else the memory knows that has it, for as long as the run lives.

    By object and not by id: two memories may share a driver, and each has runs of its own. griptape hands over
    a list of runs and does not say whose it is.
    """

    def __init__(self) -> None:
        self._notes: dict[int, _Note] = {}  # griptape's runs cannot be keys
        self.last: tuple[list[GriptapeRun], Known] = [], Known()

    def seen(self, run: GriptapeRun) -> _Seen | None:
        """Return a run as it is stored, or None if it is not stored as it is."""
        note = self._notes.get(id(run))
        return note.seen if note is not None and note.seen.is_still(run) else None

    def known(self, runs: list[GriptapeRun]) -> Known:
        """Return what the memory of these runs was shown or has stored: nothing, if it is not known here."""
        notes = (self._notes.get(id(run)) for run in runs)
        found = {id(note.known): note.known for note in notes if note is not None}
        if runs is self.last[0]:
            found[id(self.last[1])] = self.last[1]
        ids = frozenset[str]().union(*(known.ids for known in found.values()))
        seen = min((known.seen for known in found.values()), default=0)
        return Known(ids, [Known(), *found.values()][-1].metadata, seen)

    def take(self, runs: list[GriptapeRun], stored: Sequence[tuple[GriptapeRun, _Seen]], known: Known) -> None:
        """Note that the memory of `runs` has these that are stored, and knows this."""
        for run, seen in stored:
            self._notes[id(run)] = _Note(weakref.ref(run, self._forget(id(run))), seen, known)
        self.last = runs, known

    def _forget(self, number: int) -> Callable[[object], object]:
        notes = self._notes
        return lambda _: notes.pop(number, None)


@define(kw_only=True)
class MemkitConversationMemoryDriver(BaseConversationMemoryDriver):
    """Keeps the runs of a griptape memory in the conversation `key` of a memkit driver.

    `key` must be given: there is no conversation that programs share by default. `driver` is a driver, or a
    function that opens one on the event loop on which it is used, and `close()` closes that. A run is stored
    once however often griptape hands it over, is trimmed or taken back when griptape drops it, and amended when
    its artifacts are replaced. Several memories may have the same driver, and take nothing from each other.
    Any thread may call; both methods raise `MemkitError`, as the memkit driver does.
    """

    driver: Driver | OpenDriver = field()
    key: str = field(metadata={"serializable": True})
    _ledger: Ledger | None = field(default=None, init=False)
    _opened: ExitStack = field(factory=ExitStack, init=False)
    _portal: BlockingPortal | None = field(default=None, init=False)
    _notes: _Notes = field(factory=_Notes, init=False)
    _times: dict[str, float] = field(factory=dict[str, float], init=False)
    _lock: Any = field(factory=threading.Lock, init=False)

    def store(self, runs: list[GriptapeRun], metadata: dict[str, Any]) -> None:
        """Store what is new or changed of `runs` and `metadata`, and take back what is missing from `runs`.

        Missing is what the memory that has `runs` was shown or has stored before. A list that is not the one
        stored last, and has none of those, is another memory's, which misses nothing.
        """
        with self._lock:
            written: dict[str, Run] = {}
            stored: list[tuple[GriptapeRun, _Seen]] = []
            for run in runs.copy():  # other threads may add to it
                seen = self._notes.seen(run)
                if seen is None:
                    written[run.id], seen = self._made(run), _Seen.of(run)
                stored.append((run, seen))
            ids, given = [run.id for run, _ in stored], to_json(metadata, "metadata")
            ledger, known = self._open(), self._notes.known(runs)
            self._notes.last = runs, known  # should this fail, the list is still that of this memory
            self._notes.take(runs, stored, wait_for(lambda: ledger.store(ids, written, given, known)))
            self._times.clear()

    def load(self) -> tuple[list[GriptapeRun], dict[str, Any]]:
        """Return all runs as they are now, whoever stored them, and the metadata."""
        with self._lock:
            stored, known = wait_for(self._open().load)
            runs = [_griptape_run(run) for run in stored]
            self._notes.take(runs, [(run, _Seen.of(run)) for run in runs], known)
            return runs, deepcopy(dict(known.metadata))

    def close(self) -> None:
        """Close what was opened here. The next `load` or `store` opens it again."""
        with self._lock:
            self._ledger = None
            self._opened.close()

    def _made(self, run: GriptapeRun) -> Run:
        # The time stays the same until the run is stored: what is repeated after a failure must be the same.
        moment = self._times.setdefault(run.id, time.time())
        try:
            made = run_from(json.loads(json.dumps(run.to_dict())))  # as griptape's own drivers write it
        except Exception as error:
            raise FormatError(
                f"the run {run.id!r} cannot be stored, since griptape cannot write it: {error}; nothing was stored"
            ) from error
        if made.id != run.id:
            raise FormatError(
                f"the id of a run must be text that is not empty, not {run.id!r}; nothing was stored"
            )
        return msgspec.structs.replace(made, created_at=moment)

    def _open(self) -> Ledger:
        portal = shared_portal()
        if self._portal is not portal:  # in a fork: what its parent has opened belongs to another event loop
            self._ledger, self._opened, self._portal = None, ExitStack(), portal
        if self._ledger is None:
            driver = self.driver
            if callable(driver):
                driver = self._opened.enter_context(portal.wrap_async_context_manager(driver()))
            self._ledger = portal.call(Ledger, driver, self.key)  # on its event loop
        return self._ledger


def _griptape_run(run: Run) -> GriptapeRun:
    shown = shown_of(run)
    return GriptapeRun(
        id=run.id, meta=shown["meta"], input=_artifact(shown["input"]), output=_artifact(shown["output"])
    )


def _artifact(stored: dict[str, Any]) -> BaseArtifact:
    """Return an artifact; text, which is nearly all there is, without the schema that takes griptape 4 ms."""
    if stored["type"] == "TextArtifact" and stored.get("reference") is None:
        given = {name: stored[name] for name in ("id", "name", "meta") if name in stored}
        return TextArtifact(stored["value"], **given)
    artifact: BaseArtifact = BaseArtifact.from_dict(stored)
    return artifact

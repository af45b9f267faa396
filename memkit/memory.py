"""`Memory`: the handle on one conversation, which joins driver, codec, counter and strategy.

Everything that decides is a pure function elsewhere; here is what waits. A handle owns no task, is cheap, and
is meant to be made for each request. Handles on the same conversation, in any number of processes, never lose
or double a run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack, cast

import msgspec

from memkit.content import Content, ContentLike, to_content, to_parts
from memkit.conversation import Conversation, Head, View
from memkit.driver import Driver, Redact, Trim, capability, check_key
from memkit.errors import (
    BudgetError,
    ClosedError,
    ConflictError,
    FormatError,
    MemkitError,
    SummaryError,
    UnsupportedError,
)
from memkit.explanation import Explanation, explain
from memkit.finish import SEVERAL_WRITES, finish_async
from memkit.folding import Folder, is_due
from memkit.history import History, find_run, fork_of
from memkit.messages import ChatMessage, chat_messages, inserted, message_content, view_messages
from memkit.options import Options, settings_of
from memkit.rawjson import merged, to_json
from memkit.retention import erase, remove_text, trim, trim_sometimes
from memkit.run import Amend, Entry, Extend, Retract, Run, Status, new_id, new_run
from memkit.turn import Turn
from memkit.viewer import Viewer, count_messages, is_long
from memkit.window import Window, maybe_in_thread

T = TypeVar("T")
_log: Final = logging.getLogger(__name__)


def open(key: str, directory: str | PathLike[str] = ".memkit", **options: Unpack[Options]) -> Memory:  # noqa: A001
    """Return a handle on the conversation `key` in files under `directory`, to be used with `async with`."""
    from memkit.drivers.file import FileDriver  # noqa: PLC0415 - several milliseconds that not every program needs

    return Memory(FileDriver(directory), key, **options)


class Memory:
    """Remembers one conversation. Use it with `async with`, which loads what the strategy needs.

    `strategy` decides what goes into prompts; by default the last 100 runs. `counter` counts every run once
    and is the strategy's own, if not given. `retain` is how many runs stay in the store, of which older ones
    are trimmed a few at a time: at least `retain`, at most a quarter more, or twice as many while a summariser
    has not read them.

    With a `summarizer`, `summarize()` folds older runs into a summary, when `policy` says so; with a
    `background`, too, that happens by itself and off the reply path. `summary_as` is how a summary enters a
    prompt; `use_summary=False` shows the runs that it covers instead.

    All methods raise `ClosedError` outside the `async with`.
    """

    def __init__(self, driver: Driver, key: str, **options: Unpack[Options]) -> None:
        check_key(key)
        self._options = options
        self._settings = settings = settings_of(driver, options)
        self._window = Window(driver, key, settings.codec, settings.counter)
        self._viewer = Viewer(self._window, settings.strategy, settings.counter, use_summary=settings.use_summary)
        self._may_have_new_summary = False
        self._is_open = False

    async def __aenter__(self) -> Self:
        if self._is_open:
            raise ClosedError(f"this handle on {self.key!r} is open already; make one for each `async with`")
        if self._settings.background is not None and not self._settings.background.is_open:
            raise ClosedError("its Background is not running; enter that first, `async with Background()`")
        await self._window.open()
        await self._viewer.settle()
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False

    def __repr__(self) -> str:
        return f"<Memory of {self.key!r}, {self._settings.strategy!r}>"

    # --- what is known without waiting ---

    @property
    def key(self) -> str:
        """The key of the conversation."""
        return self._window.conversation.key

    @property
    def conversation(self) -> Conversation:
        """The window on the conversation that is loaded."""
        self._check_open()
        return self._window.conversation

    @property
    def meta(self) -> Mapping[str, Any]:
        """The meta of the conversation, as of the last read; `update_meta` changes it."""
        return self.conversation.head.meta

    def view(self, *, reserve: int = 0) -> View:
        """Return what the strategy keeps when `reserve` tokens of the prompt are taken by other things."""
        self._check_open()
        return self._viewer.view(reserve)

    def messages(
        self, input: ContentLike = None, *, system: ContentLike = None, reserve: int = 0, tokens: int | None = None
    ) -> list[ChatMessage]:
        """Return the prompt as chat messages: `system`, the summary, the runs of the view, the new `input`.

        With a counter, the tokens of `system` and `input` and `reserve` more, for tools and the reply, are kept
        free. `tokens` are those of `system` and `input` together, if the caller has counted them already.

        Raises:
            BudgetError: `system` or `input` is so long that counting it would block the event loop: pass
                `tokens=await memory.count(...)`. Or the strategy finds no room, and was told to raise.
        """
        said, told = to_content(input), to_content(system)
        view = self.view(reserve=self._taken((told, said), reserve, tokens))
        return chat_messages(view, system=told, input=said, summary_as=self._settings.summary_as)

    def insert_into(
        self,
        messages: Sequence[ChatMessage],
        index: int | None = None,
        *,
        reserve: int = 0,
        tokens: int | None = None,
    ) -> list[ChatMessage]:
        """Return `messages` with what is remembered put in at `index`, by default after leading system messages.

        `messages` themselves are not changed. With a counter their tokens are kept free, and `reserve` more;
        `tokens` are theirs, if the caller has counted them already.

        Raises:
            BudgetError: as `messages` does.
        """
        view = self.view(reserve=self._taken(list(map(message_content, messages)), reserve, tokens))
        return inserted(messages, view_messages(view, self._settings.summary_as), index)

    def explain(
        self, input: ContentLike = None, *, system: ContentLike = None, reserve: int = 0, tokens: int | None = None
    ) -> Explanation:
        """Return what `messages` would put into the prompt, what not, why, and for how many tokens."""
        said = to_content(system), to_content(input)
        full = self._viewer.full(self._taken(said, reserve, tokens))
        return explain(self.conversation, full, self._settings.strategy)

    # --- what waits ---

    async def add(
        self,
        input: ContentLike,
        output: ContentLike = None,
        *,
        steps: ContentLike = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Run:
        """Store one exchange, and return it as a run. It is stored when this returns.

        Raises:
            FormatError: content or `meta` that cannot be stored; nothing was.
            DriverError: the store failed, maybe after it was stored. Adding again makes another run: to be able
                to repeat, make the run with `new_run` and `append` that, again if need be.
            ConflictError: the conversation was deleted since it was read.
        """
        run = new_run(input, output, steps=steps, meta=meta)
        await self._append(run)
        return run

    async def append(self, *entries: Entry, since: int | None = None, expect: int | None = None) -> int:
        """Store entries made before, all or none, and return the position of the first.

        Entries that are stored already are not stored again: they are looked for from `since` on, the end of
        the log when they were made; by default from where this handle has seen them, or began to see the log.
        With `expect` they are stored only where the log ends there, so that nothing can come between.

        Raises:
            ConflictError: an id is stored with other content, only a part of the entries is stored, or the log
                does not end at `expect`.
        """
        self._check_open()
        if not entries:
            raise FormatError("append() needs at least one run to store")
        since = self._window.seen_since(entries[0].id) if since is None else since
        return await self._append(*entries, since=since, expect=expect)

    def turn(self, input: ContentLike, *, early: bool = False, meta: Mapping[str, Any] | None = None) -> Turn:
        """Return a context in which an answer is streamed or tools run; it is stored as one run on leaving.

        If the context is left by an error or a cancellation, what there is is stored as a partial run. With
        `early=True` the input is stored at once, and `await turn.save()` stores what has come since; both raise
        `UnsupportedError`, and store nothing, where a stored run cannot be extended.
        """
        self._check_open()
        run = new_run(input, meta=meta, status="partial")
        return Turn(self._append, lambda: self._window.conversation.base, run, self._check_extend, early=early)

    async def extend(
        self,
        run: Run | str,
        *,
        drop: int = 0,
        steps: ContentLike = None,
        output: ContentLike = None,
        status: Status | None = None,
    ) -> None:
        """Drop the last `drop` steps of a run, then add `steps`; replace its output and status, if given.

        Calling it again makes another extension: to be able to repeat, make an `Extend` and `append` that.

        Raises:
            ConflictError: there is no such run.
        """
        run_id = _id_of(run)
        at = await self._find(run_id)
        said = None if output is None else to_content(output)
        await self._append(Extend(new_id(), run_id, at, drop, to_parts(steps), said, status))

    async def amend(self, run: Run, *, erase: bool = False) -> None:
        """Put `run` in the place of the stored run of the same id. A summary that covers it is removed.

        With `erase=True` the text that it had is overwritten in the store.

        Raises:
            ConflictError: there is no such run.
            UnsupportedError: `erase` was asked for and the driver cannot do it; nothing was changed.
        """
        if erase:
            self._able(Redact, "erase")
        at = await self._find(run.id)
        amended = run.without_foreign_form() if erase else run
        change = Amend(new_id(), at, msgspec.structs.replace(amended, counts=None))

        async def amend() -> None:
            position = await self._append(change)
            await self._after_removal(at, erase_before=position if erase else 0)

        await finish_async(amend, time_limit=SEVERAL_WRITES)

    async def retract(self, run: Run | str, *, erase: bool = False) -> None:
        """Take a run back, for good. A summary that covers it is removed.

        With `erase=True` its text is overwritten in the store; without, the store keeps it, unseen. A run that
        is taken back already can be given again, to erase it or to finish what a failure has left undone.

        Raises:
            ConflictError: there is no such run.
            UnsupportedError: `erase` was asked for and the driver cannot do it; nothing was changed.
        """
        self._check_open()
        if erase:
            self._able(Redact, "erase")
        run_id = _id_of(run)
        at, is_taken_back = await self._look_for(run_id)

        async def retract() -> None:
            if not is_taken_back:
                await self._append(Retract(new_id(), run_id, at))
            await self._after_removal(at, erase_before=self._window.conversation.end if erase else 0)

        # To its end, whoever cancels: what was taken back must not stay in a summary, or in the log.
        await finish_async(retract, time_limit=SEVERAL_WRITES)

    def history(self) -> History:
        """Iterate over all runs, oldest first, as they are after all changes as of the last read.

        The log is read twice, a page at a time, to where this handle has seen it; `refresh` to see more.
        """
        self._check_open()
        return History(self._window)

    async def update_meta(
        self, change: Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """Merge a mapping into the meta of the conversation, or apply a function to it; return the new meta.

        Mappings in mappings are merged as well; anything else replaces. If someone else was quicker, the change
        is made again on what they left.

        Raises:
            FormatError: the result is not JSON; nothing was changed.
        """
        self._check_open()

        def changed(head: Head) -> Head:
            given = change(head.meta) if callable(change) else change
            if not isinstance(cast("object", given), Mapping):
                raise FormatError(f"the meta of {self.key!r} must be a mapping, not a {type(given).__name__}")
            meta = given if callable(change) else merged(head.meta, given)
            return msgspec.structs.replace(head, meta=to_json(meta, "meta"))

        head = await self._window.commit(changed)
        await self._viewer.settle()  # the head of others may have another summary, or none
        return head.meta

    async def summarize(self) -> bool:
        """Fold into the summary what the policy says is due, in as many calls as that takes; tell if any was.

        Raises:
            SummaryError: there is no summariser, or it failed, or made nothing that can be used. What it had made
                before is kept, and otherwise the conversation is as it was.
            DriverError: the store failed; what is due stays due.
        """
        self._check_open()
        await self.refresh()
        try:
            was_due = await self._fold()
        except MemkitError:
            with suppress(MemkitError):
                await self.refresh()
            raise
        await self.refresh()
        return was_due

    async def fork(self, key: str) -> Memory:
        """Copy the conversation to a new key, and return a handle on the copy, not entered yet.

        Runs are written as they are after all changes, in one append; meta and summary come along.

        Raises:
            ConflictError: there is a conversation of that key already.
        """
        self._check_open()
        await self._window.refresh()
        await fork_of(
            self._window, Window(self._settings.driver, key, self._settings.codec, self._settings.counter)
        )
        await self._viewer.settle()  # the head was read
        return Memory(self._settings.driver, key, **self._options)

    async def trim(self, keep: int) -> int:
        """Drop all but the newest `keep` runs from the store, for good; return how many entries went.

        Raises:
            UnsupportedError: the driver cannot trim.
        """
        self._check_open()
        if keep < 0:
            raise BudgetError(f"keep must not be negative, but is {keep}")
        return await trim(self._window, self._able(Trim, "trim"), keep)

    async def clear(self) -> bool:
        """Delete the conversation; return whether there was one. Other handles on it can write no more."""
        self._check_open()
        was_there = await self._settings.driver.delete(self.key)
        self._window.reset()
        return was_there

    async def refresh(self) -> None:
        """Read what others have stored since, and the head as it is now."""
        self._check_open()
        await self._window.refresh()
        await self._viewer.settle()

    async def count(self, *contents: ContentLike) -> int:
        """Return the tokens of contents with those of their messages, counted in a thread if they are long.

        Raises:
            BudgetError: the handle has no counter.
        """
        counter = self._settings.counter
        if counter is None:
            raise BudgetError("there is nothing to count with; give a counter to Memory(counter=...)")
        given = [to_content(content) for content in contents]
        return await maybe_in_thread(lambda: count_messages(given, counter), is_long(given))

    # --- inside ---

    def _check_extend(self) -> None:
        """Refuse to begin what could not be finished: a codec may have no form for extensions."""
        self._settings.codec.encode(Extend(new_id(), "run", 0))

    async def _append(self, *entries: Entry, since: int | None = None, expect: int | None = None) -> int:
        self._check_open()
        before = self._window.conversation.end
        position = await self._window.append(entries, since=since, expect=expect)
        if (
            position != before
            or not self._viewer.is_settled
            or not all(isinstance(entry, Run) for entry in entries)
        ):
            await self._viewer.settle()
        self._viewer.shrink()
        if self._settings.retain is not None:
            try:
                driver, is_summarized = self._able(Trim, "trim"), self._settings.summarizer is not None
                await trim_sometimes(
                    self._window, driver, self._settings.retain, position, is_summarized=is_summarized
                )
            except MemkitError as error:  # what was to be stored is stored; the next append tries again
                _log.warning("%r could not be trimmed to %d runs: %s", self.key, self._settings.retain, error)
        await self._keep_summarized()
        return position

    async def _keep_summarized(self) -> None:
        """See the summary that the background has made since, and have the next one made if it is due."""
        if self._settings.background is None:
            return
        if self._may_have_new_summary:
            self._may_have_new_summary = False
            try:
                await self._window.read_head()
                await self._viewer.settle()
            except MemkitError as error:  # what was to be stored is stored; the next append tries again
                self._may_have_new_summary = True
                _log.warning("the new summary of %r could not be read: %s", self.key, error)
        if is_due(self._window.conversation, self._settings.policy, self._settings.counter):
            self._settings.background.submit(self._settings.driver, self.key, self._fold_elsewhere)

    async def _fold_elsewhere(self) -> None:
        """Fold by a handle of its own, since this one may be closed by then."""
        try:
            await self._fold()
        finally:
            self._may_have_new_summary = True  # somebody else may have made it, too

    async def _fold(self) -> bool:
        """Fold all that is due, in a window of its own: that of this handle is to stay as its view needs it."""
        if self._settings.summarizer is None:
            raise SummaryError("there is no summariser; give Memory(summarizer=...)")
        window = Window(self._settings.driver, self.key, self._settings.codec, self._settings.counter)
        await window.open()
        folder = Folder(window, self._settings.summarizer, self._settings.policy, self._settings.counter)
        was_due = False
        while await folder.fold():
            was_due = True
        return was_due

    async def _find(self, run_id: str) -> int:
        self._check_open()
        at, is_taken_back = await self._look_for(run_id)
        if is_taken_back:
            raise ConflictError(f"the run {run_id!r} of {self.key!r} was taken back, for good", expected=run_id)
        return at

    async def _look_for(self, run_id: str) -> tuple[int, bool]:
        """Return the position of a run, and whether it was taken back. Others may have stored it just now."""
        try:
            return await find_run(self._window, run_id)
        except ConflictError:
            await self._window.read_head()  # which tells if the conversation was deleted
            await self.refresh()
            return await find_run(self._window, run_id)

    async def _after_removal(self, at: int, *, erase_before: int) -> None:
        """Let the text of a removed run be gone: from the summary, and from the log before a position."""
        await remove_text(self._window, at)
        if erase_before:
            await erase(self._window, self._able(Redact, "erase"), self._settings.codec, at, erase_before)
        await self._viewer.settle()

    def _taken(self, contents: Sequence[Content], reserve: int, tokens: int | None) -> int:
        self._check_open()
        return reserve + (self._viewer.tokens_of(contents) if tokens is None else tokens)

    def _able(self, kind: Callable[..., T], what: str) -> T:
        found = capability(self._settings.driver, kind)
        if found is None:
            raise UnsupportedError(f"{type(self._settings.driver).__name__} cannot {what}")
        return found

    def _check_open(self) -> None:
        if not self._is_open:
            raise ClosedError(f"the handle on {self.key!r} is closed; use it inside `async with`")


def _id_of(run: Run | str) -> str:
    return run if isinstance(run, str) else run.id

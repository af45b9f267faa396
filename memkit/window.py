"""The window on a conversation that a handle holds: loading, paging back, appending, swapping the head.

The async shell around the pure `Conversation`. Entries that come in, from the store or from the caller, are
decoded and counted once; what is large is decoded, encoded and counted in worker threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Final, TypeVar

import msgspec
from anyio import to_thread

from memkit.codec import Codec
from memkit.conversation import Conversation, Head, Summary, shows_summary
from memkit.driver import Appended, Driver, Log, Record
from memkit.errors import ConflictError, FormatError, UnsupportedError
from memkit.run import Entry
from memkit.tokens import INLINE_CHARS, Loadable, TokenCounter, chars_of, counted, is_counted

T = TypeVar("T")

PAGE: Final = 100
"""How many entries are read when a conversation is opened. More follow only if the strategy wants them."""

INLINE_BYTES: Final = 256 * 1024
"""Up to so many bytes are encoded or decoded on the event loop: about half a millisecond."""

_COMMIT_TRIES: Final = 16
_JOINED_BYTES: Final = 8 * 1024 * 1024
"""Once so many were read, the strategy is asked again: of heavy entries it may want few."""


class _Attempt(msgspec.Struct, frozen=True):
    """An append that may have been stored: what, from where on to look for it, and the bytes."""

    entries: tuple[Entry, ...]
    since: int
    records: tuple[Record, ...]


class Window:
    """Holds a `Conversation` and keeps it in step with the store."""

    def __init__(self, driver: Driver, key: str, codec: Codec, counter: TokenCounter | None) -> None:
        self._driver = driver
        self._codec = codec
        self._counter = counter
        self._unsure: dict[str, _Attempt] = {}
        self._lives = 0  # how often the conversation was cleared: what was loaded before belongs to another one
        self._opened_at = 0
        self.conversation = Conversation(key=key)

    async def open(self) -> None:
        """Load head and newest entries in one round trip, after the vocabulary of the counter, once a process."""
        counter = self._counter
        if isinstance(counter, Loadable) and not counter.loaded:
            await to_thread.run_sync(counter.load, abandon_on_cancel=True)
        await self._restart(await self._driver.load(self.conversation.key, -PAGE))

    async def refresh(self) -> None:
        """Read what came after the window, and the head as it is now."""
        now = self.conversation
        if not now.epoch:
            return await self.open()
        log = await self._driver.load(now.key, now.end)
        if log.epoch != now.epoch or not log.start <= now.end <= log.end:
            return await self.open()
        await self._join(log, now.revision)
        return None

    async def load_older(self, position: int = 0) -> None:
        """Read as many entries before the window as it holds already, at least a page, and join them once.

        Fewer, if they reach back to `position`, or are many bytes.

        Raises:
            ConflictError: the conversation was deleted since it was read.
            FormatError: the driver does not give what lies there.
        """
        now = self.conversation
        low = max(now.base, now.start - max(PAGE, len(now.entries)))
        enough = max(low, now.start - max(1, len(now.entries)), position)
        pages: deque[tuple[Entry, ...]] = deque()
        begin, base, size = now.start, now.base, 0
        try:
            while begin > max(enough, base) and size < _JOINED_BYTES:
                log = await self._driver.load(now.key, low, begin)
                if self.conversation.epoch != now.epoch:
                    return  # cleared or begun anew meanwhile
                self._check_epoch(log)
                base = log.base
                if base < begin:
                    pages.appendleft(await self._page(log, begin))
                    begin = log.start
                    size += sum(map(len, log.bodies))
        finally:
            self._prepend(now, pages, base)  # also what was read before a failure

    async def _page(self, log: Log, end: int) -> tuple[Entry, ...]:
        """Return the entries of a log, which are to be those before `end`."""
        entries = await self._entries(log)
        if not entries or log.start + len(entries) != end:
            raise FormatError(
                f"the driver has given {len(entries)} entries from {log.start} on as those before {end} of "
                f"{self.conversation.key!r}, which begins at {log.base}; run memkit.testing.driver_checks() on it"
            )
        return entries

    def _prepend(self, before: Conversation, pages: Iterable[tuple[Entry, ...]], base: int) -> None:
        """Put pages in front of the window that it was before they were read, if it still begins there."""
        now = self.conversation
        if now.epoch != before.epoch:
            return
        if now.start == before.start:
            now = now.prepended(tuple(chain.from_iterable(pages)))
        self.conversation = now.trimmed(base)

    async def reach(self, position: int) -> None:
        """Read back to a position, or to where the log begins."""
        while (now := self.conversation).start > max(position, now.base):
            await self.load_older(position)

    async def shown_summary(self) -> Summary | None:
        """Return the summary if it holds, after reading back to where it was made; None if there is none."""
        if (summary := self.conversation.head.summary) is not None:
            await self.reach(summary.seen)
        return self.conversation.head.summary if shows_summary(self.conversation) else None

    async def append(
        self, entries: Sequence[Entry], *, since: int | None = None, expect: int | None = None
    ) -> int:
        """Store entries as one unit, and return the position of the first.

        An attempt whose outcome stayed unknown is repeated with the same bytes, and never stored twice.
        """
        lives = self._lives
        made = tuple(await self._counted(entries))
        since = self.conversation.end if since is None else since
        attempt = self._unsure.get(made[0].id)
        if attempt is not None:
            since = min(since, attempt.since)
        if attempt is None or attempt.entries != made:
            attempt = _Attempt(made, since, await self._encoded(made))
        self._unsure[made[0].id] = attempt
        now = self.conversation
        try:
            appended = await self._driver.append(
                now.key, attempt.records, since=since, expect=expect, epoch=now.epoch or None
            )
        except (ConflictError, FormatError, UnsupportedError):
            self._unsure.pop(made[0].id, None)  # nothing was stored
            raise
        self._unsure.pop(made[0].id, None)  # another task may have stored the same meanwhile
        if lives == self._lives:
            await self._take_in(appended, made)
        return appended.position

    def seen_since(self, entry_id: str) -> int:
        """Return from where on to look for an entry: where it was seen, or where this handle began to see."""
        now = self.conversation
        for position, entry in enumerate(now.entries, now.start):
            if entry.id == entry_id:
                return position
        return now.end if now.start <= self._opened_at else self._opened_at

    async def commit(self, change: Callable[[Head], Head]) -> Head:
        """Swap the head for what `change` makes of the current one, again and again until nobody was quicker."""
        for _ in range(_COMMIT_TRIES):
            now = self.conversation
            head = change(now.head)
            if head is now.head:
                return head
            data = self._codec.encode_head(head)
            try:
                revision = await self._driver.commit(now.key, data, revision=now.revision)
            except ConflictError:
                await self.read_head()
                continue
            self.conversation = msgspec.structs.replace(self.conversation, head=head, revision=revision)
            if not now.epoch:
                await self.read_head()  # a first commit begins the conversation: in which epoch?
            return head
        raise ConflictError(f"others kept changing the head of {self.conversation.key!r}; try again later")

    async def read_head(self) -> None:
        """Read the head as it is now, and nothing else."""
        revision = self.conversation.revision
        log = await self._driver.load(self.conversation.key, 0, 0)
        self._check_epoch(log)
        self._take_head(log, revision)

    async def read(self, start: int, stop: int) -> tuple[int, tuple[Entry, ...]]:
        """Return entries of `[start, stop)`, fewer from the front if the driver says so, and where they begin."""
        log = await self._driver.load(self.conversation.key, start, stop)
        self._check_epoch(log)
        return log.start, await self._decoded(log)

    def shrink(self, start: int) -> None:
        """Forget the entries before `start`, here, not in the store."""
        self.conversation = self.conversation.from_position(start)

    def trimmed(self, base: int) -> None:
        """Note that the store has dropped the entries before `base`."""
        self.conversation = self.conversation.trimmed(base)

    def reset(self) -> None:
        """Note that the store has dropped the conversation."""
        self._unsure.clear()
        self._lives += 1
        self._opened_at = 0
        self.conversation = Conversation(key=self.conversation.key)

    async def _restart(self, log: Log) -> None:
        now, lives = self.conversation, self._lives
        entries = await self._entries(log)
        if lives != self._lives:
            return  # cleared meanwhile
        if now.epoch not in {"", log.epoch}:
            self._unsure.clear()  # positions of a log that is gone
        if now.epoch != log.epoch or not now.entries:
            self._opened_at = log.end
        self.conversation = Conversation(
            key=now.key, epoch=log.epoch, base=log.base, start=log.start, end=log.end, entries=entries
        )
        self._take_head(log, "")

    async def _take_in(self, appended: Appended, entries: tuple[Entry, ...]) -> None:
        """Add what was stored to the window, after the gap before it, if others have written meanwhile."""
        now = self.conversation
        if not now.epoch:
            now = self.conversation = msgspec.structs.replace(now, epoch=appended.epoch)
        elif now.epoch != appended.epoch:
            return await self.refresh()  # what was repeated is stored in the conversation that came after
        if now.end < appended.position:
            log = await self._driver.load(now.key, now.end, appended.position)
            self._check_epoch(log)
            await self._join(log, now.revision)
            now = self.conversation
        if now.end == appended.position and now.epoch == appended.epoch:
            self.conversation = now.appended(entries)
        return None

    async def _join(self, log: Log, revision: str) -> None:
        """Add entries that follow the window; if some between are missing, they become the window.

        `revision` is that of the head before the log was loaded.
        """
        entries = await self._entries(log)
        now = self.conversation
        if now.epoch != log.epoch:
            return  # cleared or begun anew meanwhile
        stop = log.start + len(entries)
        if log.start > now.end:
            now = msgspec.structs.replace(now, start=log.start, end=stop, entries=entries)
        elif stop > now.end:
            now = now.appended(entries[now.end - log.start :])
        self.conversation = now.trimmed(log.base)
        self._take_head(log, revision)

    def _take_head(self, log: Log, revision: str) -> None:
        """Take a head that was loaded when this handle knew that of `revision`, unless it knows a newer one."""
        now = self.conversation
        if now.revision != revision:
            return
        if (log.epoch, log.revision) != (now.epoch, now.revision):
            try:
                head = Head() if log.head is None else self._codec.decode_head(log.head)
            except FormatError as error:
                raise self._named(error, ", head") from error
            self.conversation = msgspec.structs.replace(now, epoch=log.epoch, head=head, revision=log.revision)

    def _check_epoch(self, log: Log) -> None:
        now = self.conversation
        if now.epoch and log.epoch != now.epoch:
            raise ConflictError(
                f"{now.key!r} was deleted since this handle has read it; call refresh() to begin anew",
                expected=now.epoch,
                actual=log.epoch,
            )

    # --- bytes and tokens, in threads where they are many ---

    async def _entries(self, log: Log) -> tuple[Entry, ...]:
        return tuple(await self._counted(await self._decoded(log)))

    async def _decoded(self, log: Log) -> tuple[Entry, ...]:
        def decode() -> tuple[Entry, ...]:
            entries: list[Entry] = []
            try:
                for body in log.bodies:
                    entries.append(self._codec.decode(body))  # noqa: PERF401 - the count says which one failed
            except FormatError as error:
                raise self._named(error, f", entry {log.start + len(entries)}") from error
            return tuple(entries)

        return await maybe_in_thread(decode, sum(map(len, log.bodies)) > INLINE_BYTES)

    async def _encoded(self, entries: Sequence[Entry]) -> tuple[Record, ...]:
        def encode() -> tuple[Record, ...]:
            try:
                return tuple(Record(entry.id, self._codec.encode(entry)) for entry in entries)
            except FormatError as error:
                raise self._named(error) from error

        return await maybe_in_thread(encode, sum(map(chars_of, entries)) > INLINE_BYTES)

    async def _counted(self, entries: Iterable[Entry]) -> Iterable[Entry]:
        counter = self._counter
        if counter is None:
            return entries
        missing = [entry for entry in entries if not is_counted(entry, counter)]
        if not missing:
            return entries
        is_long = sum(map(chars_of, missing)) > INLINE_CHARS
        return await maybe_in_thread(lambda: [counted(entry, counter) for entry in entries], is_long)

    def _named(self, error: FormatError, where: str = "") -> FormatError:
        return FormatError(f"conversation {self.conversation.key!r}{where}: {error}")


async def maybe_in_thread(do: Callable[[], T], is_long: bool) -> T:
    """Do something here, or in a worker thread if it takes long."""
    return await to_thread.run_sync(do) if is_long else do()

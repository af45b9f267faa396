"""What a store must do for memkit: four methods, and one protocol for each further ability.

Drivers carry opaque bytes. Every one of them passes `memkit.testing.driver_checks()`; what its store cannot
promise it does not declare, and the conformance report shows it as absent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Final, Literal, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import msgspec

from memkit.errors import ConflictError, FormatError
from memkit.run import new_id

T = TypeVar("T")

MAX_KEY_BYTES: Final = 1024
"""The longest key of a conversation, in bytes of UTF-8."""

MAX_LOAD: Final = 2 * 1024 * 1024
"""About how many bytes a load returns at most, if that is more than one entry; the rest stays in front.

What arrives is decoded in a thread, and whatever a thread of Python does for longer than 5 ms, an event loop
waits for. A driver that reads several pages of a store at once has a limit of its own.
"""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One entry of a log: an id that is the entry's own, and its encoded form."""

    id: str
    body: bytes


class Appended(msgspec.Struct, frozen=True, gc=False):
    """Where an append stands: the position of its first record, the end of the log, and the epoch."""

    position: int
    end: int
    epoch: str


class Log(msgspec.Struct, frozen=True):
    """Head and entries of one moment. `bodies` are those of the entries from `start` on.

    An unknown key is an empty log, with `""` as epoch and revision.
    """

    epoch: str = ""
    base: int = 0
    start: int = 0
    end: int = 0
    bodies: Sequence[bytes] = ()
    head: bytes | None = None
    revision: str = ""


class Driver(Protocol):
    """A store of logs with heads.

    All methods raise `DriverError` where the store fails, `FormatError` where a key is impossible or what is
    stored cannot be read, and on an event loop that they cannot run on `UnsupportedError`. A cancellation
    leaves before or after a write, never between.
    """

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        """Return head and entries `start:stop` of one moment, by the rules of a slice of positions.

        Negative positions count from the end. Fewer entries may come from the front than were asked for, at
        least one; `Log.start` says which. Readers never hold up a writer.
        """
        ...

    async def append(
        self,
        key: str,
        records: Sequence[Record],
        /,
        *,
        since: int = 0,
        expect: int | None = None,
        epoch: str | None = None,
    ) -> Appended:
        """Store all records, one after the other, or none; storing them again changes nothing.

        First the id of the first record is looked for among the entries from `since` on, the end of the log
        when the record was made (a driver with an index may look everywhere). Found with the same bytes, its
        position is the answer. Only then `epoch` and `expect`, the end of the log, are compared if given.

        Raises:
            ConflictError: the id is stored with other bytes, only a part of the records is stored, or
                `epoch` or `expect` is not what the store holds. Nothing was stored.
        """
        ...

    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        """Put `head` in the place of the head of that `revision`, and return the new revision.

        Revisions are never used twice for a key, not even after a deletion.

        Raises:
            ConflictError: the head has another revision by now. Nothing was stored.
        """
        ...

    async def delete(self, key: str, /) -> bool:
        """Delete the conversation and end its epoch; return whether there was one."""
        ...


@runtime_checkable
class Trim(Protocol):
    """Can drop the oldest entries of a log."""

    async def trim(self, key: str, before: int, /, *, epoch: str | None = None) -> int:
        """Drop the entries before this position for good, and return the new base.

        Positions of what stays do not change. `before` beyond the end is the end; an unknown key is left so.

        Raises:
            ConflictError: `epoch` is given and not that of the log.
        """
        ...


@runtime_checkable
class Redact(Protocol):
    """Can overwrite what is stored of an entry."""

    async def redact(self, key: str, bodies: Mapping[int, bytes], /, *, epoch: str) -> None:
        """Put these bodies in the place of those at their positions, all or none, and leave no copy of the old.

        Raises:
            ConflictError: `epoch` is not that of the log, or a position is not in it. Nothing changed.
        """
        ...


@runtime_checkable
class Expire(Protocol):
    """Can forget a conversation by itself, after a while."""

    async def expire(self, key: str, ttl: float | None, /) -> bool:
        """Let the conversation be gone after `ttl` seconds from now, or never; return whether there is one."""
        ...


@runtime_checkable
class ListKeys(Protocol):
    """Can tell which conversations there are."""

    def list_keys(self, prefix: str = "", /) -> AsyncIterator[str]:
        """Yield the keys that start with `prefix`, in no order; each once, if it is there all the while."""
        ...


@runtime_checkable
class CheckBody(Protocol):
    """Keeps bodies of one form only, where the store has a form of its own."""

    def check_body(self, body: bytes, /) -> None:
        """Refuse a body of another form. `Memory` asks with a run that its codec has encoded.

        Raises:
            UnsupportedError: this body cannot be kept; the message names a codec whose bodies can.
        """
        ...


Promise: TypeAlias = Literal["batches", "one moment", "compare-and-set", "idempotence"]
"""What a store may be unable to promise: that several records of one append are stored as one (they are refused
then), that a load shows one moment, that a commit cannot overwrite another one made at the same time, that an
append repeated while the first attempt is still under way is stored once."""


@runtime_checkable
class Waives(Protocol):
    """Says which promises its store cannot keep. The checks of them show them as absent."""

    def waives(self) -> frozenset[Promise]:
        """Return the promises that are not kept."""
        ...


@runtime_checkable
class Delegates(Protocol):
    """A driver around another one, which answers for both."""

    def capability(self, kind: Callable[..., T], /) -> T | None:
        """Return what provides `kind` here, or None."""
        ...


def capability(driver: object, kind: Callable[..., T], /) -> T | None:
    """Return what provides the capability `kind` (`Trim`, `Redact`, ...) for a driver; None if nothing does.

    `kind` is one of the protocols of this module. (It is typed so because mypy takes no protocol for a `type[T]`.)
    """
    if isinstance(driver, Delegates):
        return driver.capability(kind)
    return driver if isinstance(driver, cast("type[T]", kind)) else None


def new_epoch() -> str:
    """Return an epoch that no log ever had."""
    return new_id()


def check_key(key: str) -> None:
    """Refuse a key that no driver could store.

    Raises:
        FormatError: not a `str`, empty, longer than `MAX_KEY_BYTES`, or not valid Unicode.
    """
    if not isinstance(cast("object", key), str) or not key:
        raise FormatError(f"the key of a conversation is a non-empty str, not {key!r}")
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise FormatError(f"the key {key[:80]!r} holds lone surrogates; decode it properly first") from error
    if size > MAX_KEY_BYTES:
        raise FormatError(f"the key {key[:40]!r}... has {size} bytes, more than {MAX_KEY_BYTES}; hash it first")


def clip(base: int, end: int, start: int, stop: int | None) -> tuple[int, int]:
    """Return the positions of a slice of the log `[base, end)`, as a slice of a sequence would have them."""
    low = max(base, start + end if start < 0 else start)
    high = end if stop is None else min(end, stop + end if stop < 0 else stop)
    low = min(low, end)
    return low, max(low, high)


def position_of(key: str, records: Sequence[Record], stored: Mapping[str, tuple[int, bytes]]) -> int | None:
    """Return where these records are stored already; None if none of them is.

    `stored` has the position and the body of each entry among which to look, by id.

    Raises:
        ConflictError: an id is stored with other bytes, or only a part of the records is stored.
        FormatError: no records, or an id twice.
    """
    ids = [record.id for record in records]
    if not ids or "" in ids or (len(ids) > 1 and len(set(ids)) < len(ids)):
        raise FormatError(f"an append to {key!r} needs records, each with an id of its own, not {ids[:10]}")
    if not all(map(str.isascii, ids)):
        _check_unicode(key, ids)
    if not stored:
        return None
    found = [stored.get(record_id) for record_id in ids]
    if not any(found):
        return None
    position = found[0][0] if found[0] else -1
    if [item and item[0] for item in found] != list(range(position, position + len(ids))):
        raise ConflictError(
            f"only a part of this append to {key!r} is stored; append the rest under new ids",
            expected=ids,
            actual=[record_id for record_id, item in zip(ids, found, strict=True) if item],
        )
    for record, item in zip(records, found, strict=True):
        if item and item[1] != record.body:
            raise ConflictError(
                f"{record.id!r} is stored in {key!r} with other content; a new entry needs a new id",
                expected=record.id,
                actual=item[0],
            )
    return position


def _check_unicode(key: str, ids: Sequence[str]) -> None:
    try:
        "".join(ids).encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"an id of an append to {key!r} holds lone surrogates: {ids[:10]}") from error


def check_epoch(key: str, epoch: str | None, actual: str) -> None:
    """Compare the epoch that a caller knows, if it does, with that of the log.

    Raises:
        ConflictError: the conversation was deleted meanwhile.
    """
    if epoch is not None and epoch != actual:
        raise ConflictError(
            f"{key!r} was deleted, or deleted and made anew, since it was read; read it again",
            expected=epoch,
            actual=actual,
        )


def check_end(key: str, expect: int | None, actual: int) -> None:
    """Compare the end of the log that a caller expects, if it does, with the real one.

    Raises:
        ConflictError: someone else has appended meanwhile.
    """
    if expect is not None and expect != actual:
        raise ConflictError(
            f"{key!r} ends at {actual}, not at {expect}; read it again", expected=expect, actual=actual
        )


def check_revision(key: str, revision: str, actual: str) -> None:
    """Compare the revision of the head that a caller wants to replace with the current one.

    Raises:
        ConflictError: someone else was quicker.
    """
    if revision != actual:
        raise ConflictError(
            f"the head of {key!r} was changed by someone else; read it again", expected=revision, actual=actual
        )


def check_positions(key: str, positions: Iterable[int], base: int, end: int) -> None:
    """Refuse positions that are not in the log `[base, end)`.

    Raises:
        ConflictError: naming the first that is not.
    """
    for position in positions:
        if not base <= position < end:
            raise ConflictError(
                f"{key!r} has no entry {position}, only those from {base} to {end}",
                expected=position,
                actual=(base, end),
            )

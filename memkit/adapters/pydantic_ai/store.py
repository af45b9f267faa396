"""The `ConversationStore` of pydantic-ai over any driver: a message an entry of the log, their record the head."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from memkit.adapters.pydantic_ai.written import encode
from memkit.driver import Driver, ListKeys, Log, Record, Trim, capability
from memkit.errors import ConflictError, FormatError, UnsupportedError

try:
    import pydantic_ai
    from pydantic import TypeAdapter, ValidationError
    from pydantic_ai.conversation_store import (
        ConversationConflict,
        ConversationEntry,
        ConversationRecord,
        ConversationStore,
    )
    from pydantic_ai.messages import ModelMessagesTypeAdapter
except ImportError as error:
    raise ImportError(
        "there is no ConversationStore in the pydantic-ai that is installed, if any; "
        "this is tested with 2.68: pip install -U 'memkit[pydantic-ai]'"
    ) from error

_log: Final = logging.getLogger(__name__)
_RECORDS: Final = TypeAdapter(ConversationRecord)

_MOST_HOMES: Final = 100_000
"""Of how many entries a store knows by heart in which conversation they are."""


class _Stored(msgspec.Struct, frozen=True):
    """One entry as it is stored."""

    id: str
    message: msgspec.Raw
    parent_id: str | None = None
    kind: str = "message"


class _Deleted(msgspec.Struct, frozen=True):
    """The head of a conversation that is deleted, with all entries before `end`."""

    deleted: Literal[True]
    end: int


class _Head(msgspec.Struct, frozen=True):
    """What every record must have."""

    conversation_id: str
    revision: str
    updated_at: str


class DriverConversationStore(ConversationStore):
    """Keeps conversations of pydantic-ai in any driver. It borrows the driver; make as many stores as you like.

    A save appends the new messages and then swaps the head under its revision: two writers cannot overwrite each
    other, and what one of them had appended in vain is never seen. A fork copies the entries that it shares, so
    deleting a conversation deletes all of it and nothing else. Keys are `prefix` and the id of the conversation.

    All methods raise `DriverError` where the store fails, `FormatError` where what is stored cannot be read, and
    `UnsupportedError` where a newer pydantic-ai has stored it. Listing needs a driver that can list its keys, and
    reads every head.
    """

    def __init__(self, driver: Driver, *, prefix: str = "pydantic-ai/") -> None:
        self._driver = driver
        self._prefix = prefix
        self._logs = _Logs(driver, prefix)

    async def read_record(self, conversation_id: str) -> ConversationRecord | None:
        """Return the record of a conversation, or None if there is none."""
        key = self._prefix + conversation_id
        return await self._logs.record_of(key, await self._driver.load(key, 0, 0))

    async def read_records(
        self, *, scope: str | None = None, limit: int | None = None
    ) -> Sequence[ConversationRecord]:
        """Return the records, newest first, of all conversations or those of a scope.

        One that cannot be read is left out, with a warning in the log, and is an error where it is asked for.
        """
        listing = capability(self._driver, ListKeys)
        if listing is None:
            raise UnsupportedError(f"{type(self._driver).__name__} cannot list its conversations")
        found: list[ConversationRecord] = []
        async for key in listing.list_keys(self._prefix):
            log = await self._driver.load(key, 0, 0)
            try:
                record = await self._logs.record_of(key, log)
            except (FormatError, UnsupportedError) as error:
                _log.warning("left out of a listing: %s", error)
                continue
            if record is not None and scope in {None, record.scope}:
                found.append(record)
        found.sort(key=_updated_at, reverse=True)
        return found[:limit]

    async def write_record(
        self,
        record: ConversationRecord,
        *,
        new_entries: Sequence[ConversationEntry] = (),
        expected_revision: str | None,
    ) -> None:
        """Store new entries, then the record in the place of the one with `expected_revision`.

        Raises:
            ConversationConflict: the record has another revision by now, or entries it needs are gone.
        """
        key = self._prefix + record.conversation_id
        log = await self._checked(key, expected_revision)
        if (deleted := _deletion(log.head)) is not None:
            await self._erase(key, log, deleted.end)
        first = new_entries[0].parent_id if new_entries else record.head_id
        try:
            source = None if record.forked_from is None else self._prefix + record.forked_from
            entries = [*await self._logs.missing(key, first, source), *new_entries]
            if entries:
                records = [Record(entry.id, _encode(entry)) for entry in entries]
                await self._driver.append(key, records, since=log.end, epoch=log.epoch or None)
                if not log.epoch:
                    log = await self._checked(key, expected_revision)
            await self._driver.commit(key, _RECORDS.dump_json(record), revision=log.revision)
        except (ConflictError, LookupError) as error:
            raise ConversationConflict(record.conversation_id) from error
        self._logs.know(key, [entry.id for entry in entries])

    async def delete_record(self, conversation_id: str, *, expected_revision: str) -> None:
        """Delete a conversation with all its messages; forks of it have their own.

        What others save under its name from then on stays. For that, a short mark remains under the key, which is
        not listed; a driver that cannot trim deletes the key instead, and what is saved meanwhile with it.

        Raises:
            ConversationConflict: the record has another revision by now.
        """
        key = self._prefix + conversation_id
        log = await self._checked(key, expected_revision)
        try:
            head = msgspec.json.encode(_Deleted(deleted=True, end=log.end))
            await self._driver.commit(key, head, revision=log.revision)
        except ConflictError as error:
            raise ConversationConflict(conversation_id) from error
        if capability(self._driver, Trim) is None:
            await self._driver.delete(key)
        else:
            await self._erase(key, log, log.end)

    async def read_entry(self, entry_id: str) -> ConversationEntry:
        """Return an entry of a conversation that this store has read or written.

        Raises:
            LookupError: there is none.
        """
        return (await self.read_history(entry_id, limit=1))[0]

    async def read_history(self, head_id: str | None, *, limit: int | None = None) -> list[ConversationEntry]:
        """Return the entries up to `head_id`, or the last `limit` of them. One read, if they are not very many.

        Raises:
            LookupError: one of them is not there.
        """
        return [] if head_id is None or limit == 0 else await self._logs.history(head_id, limit)

    async def _erase(self, key: str, log: Log, end: int) -> None:
        """Trim what a deletion has left, and nothing that was saved after it."""
        trimming = capability(self._driver, Trim)
        if trimming is not None and log.base < end:
            with suppress(ConflictError):  # then all of it is gone already
                await trimming.trim(key, end, epoch=log.epoch)

    async def _checked(self, key: str, expected_revision: str | None) -> Log:
        """Return the head of a log, which must be that of the record of this revision."""
        log = await self._driver.load(key, 0, 0)
        record = await self._logs.record_of(key, log)
        if (None if record is None else record.revision) != expected_revision:
            raise ConversationConflict(key.removeprefix(self._prefix))
        return log


class _Logs:
    """The logs of a driver, and which entry is in which: pydantic-ai asks for entries without saying where."""

    def __init__(self, driver: Driver, prefix: str) -> None:
        self._driver = driver
        self._prefix = prefix
        self._homes: dict[str, str] = {}

    async def record_of(self, key: str, log: Log) -> ConversationRecord | None:
        """Return the record that a log has as its head."""
        if log.head is None or _deletion(log.head) is not None:
            return None
        try:
            # What is missing here, pydantic-ai would make up anew at each read.
            msgspec.json.decode(log.head, type=_Head)
            record = _RECORDS.validate_json(log.head)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError(f"conversation {key!r} is not one of a ConversationStore: {error}") from error
        except ValidationError as error:
            raise _unreadable(key, error) from error
        if self._prefix + record.conversation_id != key:
            raise FormatError(f"conversation {key!r} has the record of {record.conversation_id!r}")
        head_id = record.head_id
        # Forks have the same entries, but what a record claims may also be of a conversation of someone else.
        is_shared = head_id is not None and self._homes.get(head_id, key) != key
        if head_id and is_shared and not _is_whole(await self._read(key, head_id, 1), head_id, 1):
            raise FormatError(f"conversation {key!r} ends with an entry that it does not have")
        unknown = [entry_id for entry_id in record.branches if entry_id not in self._homes]
        self.know(key, unknown if head_id is None else [head_id, *unknown])
        return record

    def know(self, key: str, ids: Iterable[str]) -> None:
        """Take note of where entries are; the oldest notes go first."""
        for entry_id in ids:
            self._homes.pop(entry_id, None)
            self._homes[entry_id] = key
        while len(self._homes) > _MOST_HOMES:
            del self._homes[next(iter(self._homes))]

    async def history(self, head_id: str, limit: int | None) -> list[ConversationEntry]:
        """Return the entries up to `head_id`, or the last `limit` of them; LookupError, if one is not there."""
        key = self._homes.get(head_id)
        if key is None:
            raise LookupError(
                f"nothing that this store has read or written has the entry {head_id!r}; load it first"
            )
        return await self._history(key, head_id, limit)

    async def missing(self, key: str, head_id: str | None, source: str | None) -> list[ConversationEntry]:
        """Return what a log lacks up to `head_id`: what a new fork shares with its source."""
        if head_id is None or self._homes.get(head_id) == key:
            return []
        if _is_whole(await self._read(key, head_id, None), head_id, None):
            return []
        if source is None:
            raise LookupError(f"the entry {head_id!r} is not there")
        return await self._history(source, head_id, None)

    async def _history(self, key: str, head_id: str, limit: int | None) -> list[ConversationEntry]:
        chain = _chain(await self._read(key, head_id, limit), head_id, limit)
        return [_decode(key, entry) for entry in chain]

    async def _read(self, key: str, head_id: str, limit: int | None) -> dict[str, _Stored]:
        """Read a log backwards, in ever larger pages, until it holds the entries up to `head_id`."""
        found: dict[str, _Stored] = {}
        stop: int | None = None
        size = 200 if limit is None else 2 * limit
        looked = 0  # of how many entries it is known that they are not enough
        while True:
            log = await self._driver.load(key, -size if stop is None else max(stop - size, 0), stop)
            found |= {entry.id: entry for entry in _stored(key, log)}
            if log.start <= log.base:
                return found
            if len(found) >= 2 * looked:
                if _is_whole(found, head_id, limit):
                    return found
                looked = len(found)
            stop, size = log.start, 2 * size


def _deletion(head: bytes | None) -> _Deleted | None:
    if head is None or not head.startswith(b'{"deleted":true,'):
        return None
    try:
        return msgspec.json.decode(head, type=_Deleted)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _updated_at(record: ConversationRecord) -> datetime:
    when = record.updated_at
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _is_whole(found: Mapping[str, _Stored], head_id: str, limit: int | None) -> bool:
    try:
        _chain(found, head_id, limit)
    except LookupError:
        return False
    return True


def _chain(found: Mapping[str, _Stored], head_id: str, limit: int | None) -> list[_Stored]:
    """Return the entries up to `head_id`, or the last `limit` of them."""
    chain: list[_Stored] = []
    entry_id: str | None = head_id
    while entry_id is not None and (limit is None or len(chain) < limit):
        if entry_id not in found or len(chain) > len(found):
            raise LookupError(f"the entry {entry_id!r} is not there")
        chain.append(found[entry_id])
        entry_id = chain[-1].parent_id
    return chain[::-1]


def _encode(entry: ConversationEntry) -> bytes:
    return msgspec.json.encode(_Stored(entry.id, msgspec.Raw(encode(entry.message)), entry.parent_id, entry.kind))


def _stored(key: str, log: Log) -> list[_Stored]:
    try:
        return [_DECODER.decode(body) for body in log.bodies]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"conversation {key!r} holds what no ConversationStore has written: {error}") from error


_DECODER: Final = msgspec.json.Decoder(_Stored)


def _decode(key: str, entry: _Stored) -> ConversationEntry:
    try:
        (message,) = ModelMessagesTypeAdapter.validate_json(b"[" + bytes(entry.message) + b"]")
    except ValidationError as error:
        raise _unreadable(key, error) from error
    return ConversationEntry(id=entry.id, parent_id=entry.parent_id, message=message)


def _unreadable(key: str, error: ValidationError) -> UnsupportedError:
    what: Any = error.errors(include_input=False)[0]["msg"]
    return UnsupportedError(
        f"conversation {key!r}: pydantic-ai {pydantic_ai.__version__} cannot read what is stored; upgrade: {what}"
    )

"""Bringing conversations over from where griptape's drivers keep them, and back.

What griptape has stored is read and never written to. What is not there is a `ConflictError`: a misspelt path or
key must not look like a conversation in which nothing was said yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from itertools import chain
from os import PathLike
from typing import Any, Final, Protocol

import anyio
import msgspec
from anyio import to_thread

from memkit.adapters.griptape.artifacts import Report
from memkit.adapters.griptape.codec import GriptapeCodec, read_message
from memkit.adapters.griptape.payload import Imported, dump, number_in, read
from memkit.codec import Codec, JsonCodec, check_codec
from memkit.conversation import Head, shows_summary
from memkit.driver import Driver
from memkit.errors import ConflictError, DriverError, FormatError, UnsupportedError
from memkit.memory import Memory
from memkit.run import Run
from memkit.window import Window


class HashClient(Protocol):
    """A client of `redis.asyncio`, as far as it is needed."""

    def hget(self, name: str, key: str) -> Awaitable[bytes | str | None]:
        """Return a field of a hash."""
        ...


class TableResource(Protocol):
    """A table of a DynamoDB resource of aioboto3, as far as it is needed."""

    @property
    def name(self) -> str:
        """The name of the table."""
        ...

    async def get_item(self, *, Key: Mapping[str, str | int], ConsistentRead: bool) -> Mapping[str, Any]:  # noqa: N803
        """Return an item, as `Item`."""
        ...


async def read_file(path: str | PathLike[str]) -> Imported:
    """Read the file of a `LocalConversationMemoryDriver`.

    Raises:
        ConflictError: there is no such file.
        FormatError: what is in it is not a memory of griptape.
        DriverError: it cannot be read.
    """
    where = f"file {str(path)!r}"
    try:
        stored = await anyio.Path(path).read_bytes()
    except FileNotFoundError as error:
        raise _missing(where) from error
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        raise DriverError(f"{where} cannot be read: {error}") from error
    return await _parsed(stored, where)


async def read_redis(client: HashClient, index: str, conversation_id: str) -> Imported:
    """Read what a `RedisConversationMemoryDriver` has stored, through a client of `redis.asyncio`.

    Raises:
        ConflictError: there is no such hash, or no such field in it.
        FormatError: what is in the field is not a memory of griptape.
        DriverError: the client failed; the cause says how.
    """
    where = f"field {conversation_id!r} of hash {index!r}"
    try:
        stored = await client.hget(index, conversation_id)
    except Exception as error:
        raise _failed(where, error) from error
    if stored is None:
        raise _missing(where)
    return await _parsed(stored, where)


async def read_dynamodb(
    table: TableResource,
    *,
    partition_key: str,
    partition_key_value: str,
    value_attribute_key: str,
    sort_key: str | None = None,
    sort_key_value: str | int | None = None,
) -> Imported:
    """Read what an `AmazonDynamoDbConversationMemoryDriver` has stored, through a table resource of aioboto3.

    The read is a consistent one.

    Raises:
        ConflictError: there is no such item, or no such attribute in it.
        FormatError: what is in the attribute is not a memory of griptape; or one of `sort_key` and
            `sort_key_value` is given without the other.
        DriverError: the client failed; the cause says how.
    """
    key: dict[str, str | int] = {partition_key: partition_key_value}
    if (sort_key is None) != (sort_key_value is None):
        raise FormatError(
            f"give both sort_key and sort_key_value or neither, not {sort_key!r}, {sort_key_value!r}"
        )
    if sort_key is not None and sort_key_value is not None:
        key[sort_key] = sort_key_value
    where = f"attribute {value_attribute_key!r} of item {key} of table {table.name!r}"
    try:
        item = (await table.get_item(Key=key, ConsistentRead=True)).get("Item", {})
    except Exception as error:
        raise _failed(where, error) from error
    if value_attribute_key not in item:
        raise _missing(where)
    stored = item[value_attribute_key]
    if not isinstance(stored, str):
        raise FormatError(f"{where} holds a {type(stored).__name__}; griptape stores text")
    return await _parsed(stored, where)


async def read_thread(driver: Driver, key: str) -> Imported:
    """Read a whole conversation of a driver whose entries `GriptapeCodec` reads, such as a thread in its cloud.

    Of two messages of one run the later one gets another id, always the same.

    Raises:
        ConflictError: there is no such conversation, or it was deleted while it was read.
        FormatError: an entry or the head is no JSON object.
        DriverError: the store failed.
    """
    log = await driver.load(key, 0)
    if not log.epoch:
        raise _missing(f"conversation {key!r}")
    pages, start = deque([log.bodies]), log.start
    while start > log.base:  # a driver may hand over a part
        older = await driver.load(key, log.base, start)
        if older.epoch != log.epoch:
            raise ConflictError(f"{key!r} was deleted while it was read; read it again")
        if not older.bodies:
            break  # trimmed meanwhile
        pages.appendleft(older.bodies)
        start = older.start
    return await to_thread.run_sync(_thread, key, list(chain.from_iterable(pages)), start, log.head)


async def store(imported: Imported, driver: Driver, key: str, *, codec: Codec | None = None) -> None:
    """Write runs and head into a driver of memkit: all runs in one append, then the head if there is none.

    After a failure, or a crash, do it again: what is missing is added and nothing doubled, also if runs were
    added behind meanwhile. A driver that takes one entry at a time gets them one by one.

    Raises:
        ConflictError: the conversation holds something else. Nothing was stored, except by a driver that takes
            one entry at a time if another program wrote meanwhile. Nothing was overwritten.
        FormatError: the codec cannot write the runs, or cannot read what is there.
        DriverError: the store failed; repeat it.
    """
    codec = codec or JsonCodec()
    check_codec(driver, codec)

    def with_head(head: Head) -> Head:
        if imported.head in (Head(), head):
            return head
        if head != Head():
            raise ConflictError(
                f"{key!r} has another summary or meta than what is to be stored; store it under a new key",
                expected=imported.head,
                actual=head,
            )
        return imported.head

    window = Window(driver, key, codec, None)
    await window.open()
    with_head(window.conversation.head)  # a conflict is to be seen before anything is stored
    if imported.runs:
        await _append(window, imported.runs)
    if imported.head != Head():
        await window.read_head()  # the append has given the conversation a revision
        await window.commit(with_head)


async def export(memory: Memory) -> str:
    """Return the conversation of an open handle as text that griptape 1.13 loads, from a file or any other store.

    These are all runs, as they are after all changes; the meta of the conversation; and the summary, if the
    handle shows one.

    Raises:
        ClosedError: the handle is not open.
        ConflictError: the conversation was deleted since the handle has read it.
    """
    conversation = memory.conversation
    head = conversation.head
    if not shows_summary(conversation):
        head = msgspec.structs.replace(head, summary=None)
    placed = await memory.history().rest()
    positions = [position for position, _ in placed]
    runs = [run for _, run in placed]
    return await to_thread.run_sync(partial(dump, runs, head, positions=positions))


# --- reading ---


async def _parsed(stored: str | bytes, where: str) -> Imported:
    try:
        return await to_thread.run_sync(read, stored)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error


def _missing(where: str) -> ConflictError:
    return ConflictError(f"there is no {where}; check how it is spelt", expected=where)


_PASSING: Final = {"ConnectionError", "TimeoutError", "HTTPClientError"}
"""Classes of errors after which a client may do better later, in redis and in botocore, which are not imported."""


def _failed(where: str, error: Exception) -> DriverError:
    retryable = any(kind.__name__ in _PASSING for kind in type(error).__mro__)
    return DriverError(f"{where} cannot be read: {error}", retryable=retryable)


def _thread(key: str, bodies: Sequence[bytes], start: int, stored_head: bytes | None) -> Imported:
    problems: list[str] = []
    runs: dict[str, Run] = {}
    where = ""
    try:
        for index, body in enumerate(bodies):
            where, found = f"entry {start + index}", list[str]()
            run = read_message(body, runs, found.append)
            problems += [f"run {index}: {what}" for what in found]
            runs[run.id] = run
        where = "head"
        head = Head() if stored_head is None else GriptapeCodec().decode_head(stored_head)
    except FormatError as error:
        raise FormatError(f"conversation {key!r}, {where}: {error}") from error
    head = _head_of_thread(head, start, [*runs], problems.append)
    return Imported(
        tuple(runs.values()),
        head,
        number_in((head.meta,), "max_runs"),
        number_in((head.meta,), "offset"),
        tuple(problems),
    )


def _head_of_thread(head: Head, base: int, ids: Sequence[str], report: Report) -> Head:
    """Return the head of a thread with marks that count its runs.

    The metadata that griptape has written say how many runs the summary covers, but not which.
    """
    summary = head.summary
    if summary is None:
        return head
    upto = max(0, summary.upto - base)
    if upto > len(ids) or (upto and summary.upto_id not in ("", ids[upto - 1])):
        report(f"the summary does not fit its {len(ids)} runs, and is taken to cover none")
        upto = 0
    last = ids[upto - 1] if upto else ""
    return msgspec.structs.replace(
        head, summary=msgspec.structs.replace(summary, upto=upto, upto_id=last, seen=upto)
    )


# --- writing ---


async def _append(window: Window, runs: Sequence[Run]) -> None:
    try:
        _check_place(window, await window.append(runs, since=0, expect=0), 0)
    except UnsupportedError:
        await _append_one_by_one(window, runs)


async def _append_one_by_one(window: Window, runs: Sequence[Run]) -> None:
    """Append the runs that are missing to a store that knows neither batches nor `expect`."""
    await window.reach(0)
    now = window.conversation
    there = now.entries[: len(runs)]
    if now.base or there != tuple(runs[: len(there)]):
        raise ConflictError(
            f"{now.key!r} holds other runs than those to be stored; store them under a new key",
            expected=[run.id for run in runs[: len(there)]],
            actual=[entry.id for entry in there],
        )
    for at in range(len(there), len(runs)):
        _check_place(window, await window.append([runs[at]], since=at), at)


def _check_place(window: Window, position: int, expected: int) -> None:
    if position != expected:
        raise ConflictError(
            f"{window.conversation.key!r} holds these runs behind others; store them under a new key",
            expected=expected,
            actual=position,
        )

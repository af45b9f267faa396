"""The driver: what the contract of drivers becomes in requests."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from memkit.driver import Appended, Log, Record, check_key, position_of
from memkit.drivers.dynamodb.appends import Appends
from memkit.drivers.dynamodb.commits import Commits
from memkit.drivers.dynamodb.endings import Endings, list_keys
from memkit.drivers.dynamodb.lanes import Lanes
from memkit.drivers.dynamodb.layout import Layout
from memkit.drivers.dynamodb.loads import Loads
from memkit.drivers.dynamodb.parts import Parts
from memkit.drivers.dynamodb.redactions import Redactions
from memkit.drivers.dynamodb.requests import Requests
from memkit.errors import FormatError
from memkit.finish import finish_async

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb.service_resource import Table

PREFIX: Final = "memkit:"
RETRY_FOR: Final = 10.0
"""Seconds for which a request that may pass is tried again."""

_LONGEST_RETRY: Final = 540
_FARTHEST: Final = 10**16 - 1


class DynamoDbDriver:
    """Keeps conversations in a table of DynamoDB, each run as an item of its own, of any size.

    Borrows a `Table` of aioboto3, whose keys are of type S; `connect` owns one. asyncio only. With a sort key,
    which is the better layout, the newest runs are read with one query; `sort_key=None` is for tables that have
    none, and reads runs in batches. Conversations have the partition key `prefix` + key. `attributes` gives other
    names to attributes, for tables whose keys or whose time to live are called like one of ours: `{"expires":
    "ttl"}`.

    Appends of this driver to one conversation that wait leave together. What failed and may pass (throttles,
    errors of the service, conflicts with other processes) is tried again for `retry_for` seconds; then a
    `DriverError` says so. A lost answer doubles nothing.

    `ttl` is how many seconds a run lives after it was written, and a conversation after its last append or
    commit. `expire` has the last word on a conversation: where it was called, `ttl` does not count any more. What
    has expired is not shown; the service deletes it later, if the table has its time to live on.

    With `consistent=False` loads cost half, and may show a moment that is over by a second.
    """

    def __init__(
        self,
        table: Table,
        *,
        partition_key: str = "pk",
        sort_key: str | None = "sk",
        attributes: Mapping[str, str] | None = None,
        prefix: str = PREFIX,
        ttl: float | None = None,
        retry_for: float = RETRY_FOR,
        consistent: bool = True,
    ) -> None:
        if ttl is not None and not ttl > 0:
            raise FormatError(
                f"ttl={ttl} would delete a conversation as soon as it is written; give None for ever"
            )
        if not 0 < retry_for <= _LONGEST_RETRY:
            raise FormatError(
                f"retry_for is a number of seconds over 0 and up to {_LONGEST_RETRY}, not {retry_for}: for ten "
                "minutes a token keeps what is repeated from being done twice"
            )
        layout = Layout(partition_key, sort_key, prefix, attributes or {})
        self._requests = Requests(table, layout, retry_for=retry_for, consistent=consistent)
        parts = Parts(self._requests)
        self._loads = Loads(self._requests, parts)
        self._lanes = Lanes()
        self._commits = Commits(self._requests, parts, self._loads, ttl)
        self._redactions = Redactions(self._requests, parts, self._loads)
        self._endings = Endings(self._requests, parts, self._loads, self._redactions)
        self._appends = Appends(self._requests, parts, self._loads, self._endings, lanes=self._lanes, ttl=ttl)

    def __repr__(self) -> str:
        return f"DynamoDbDriver({self._requests.name!r}, prefix={self._requests.layout.prefix!r})"

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        """Return head and entries `start:stop` of one moment, about 8 MiB of them at most."""
        self._begin(key)
        log, head = await self._loads.load(key, _position(start), None if stop is None else _position(stop))
        if head is not None:
            self._lanes.note(key, head)
        return log

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
        """Store all records or none, however many; entries from `since` on that are new are read for their ids."""
        self._begin(key)
        position_of(key, records, {})
        return await self._appends.append(key, records, since, expect, epoch)

    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        """Put `head` in the place of the head of that `revision`, and return the new revision."""
        self._begin(key)
        return await finish_async(lambda: self._commit(key, head, revision), time_limit=math.inf)

    async def delete(self, key: str, /) -> bool:
        """Delete the conversation, and return whether there was one.

        It is gone with the first request; then its items are deleted, one by one. Who repeats it, or writes to the
        key, goes on where a deletion was broken off.
        """
        self._begin(key)
        try:
            return await finish_async(lambda: self._endings.delete(key), time_limit=math.inf)
        finally:
            self._lanes.forget(key)

    async def trim(self, key: str, before: int, /, *, epoch: str | None = None) -> int:
        """Drop the entries before this position at once, and delete them; return the new base."""
        self._begin(key)
        before = _position(before)
        try:
            return await finish_async(lambda: self._endings.trim(key, before, epoch), time_limit=math.inf)
        finally:
            self._lanes.forget(key)

    async def redact(self, key: str, bodies: Mapping[int, bytes], /, *, epoch: str) -> None:
        """Put these bodies in the place of those at their positions, all or none.

        Raises:
            UnsupportedError: these are more than 98 entries, where those of one long append count as one.
        """
        self._begin(key)
        await finish_async(lambda: self._redactions.redact(key, bodies, epoch), time_limit=math.inf)

    async def expire(self, key: str, ttl: float | None, /) -> bool:
        """Let the conversation be gone after `ttl` seconds from now, or never, whatever is written to it later.

        That takes a request for each entry, so that the service deletes these, too.
        """
        self._begin(key)
        if ttl is not None and math.isnan(ttl):
            raise FormatError("a time to live is a number of seconds, not NaN")
        try:
            return await finish_async(lambda: self._endings.expire(key, ttl), time_limit=math.inf)
        finally:
            self._lanes.forget(key)

    async def list_keys(self, prefix: str = "", /) -> AsyncIterator[str]:
        """Yield the keys that start with `prefix`, by reading the whole table."""
        self._requests.check_loop()
        try:
            prefix.encode()
        except UnicodeEncodeError:
            return  # no key begins like that
        async for key in list_keys(self._requests, prefix):
            yield key

    def _begin(self, key: str) -> None:
        check_key(key)
        self._requests.check_loop()

    async def _commit(self, key: str, head: bytes, revision: str) -> str:
        while True:
            new = await self._commits.commit(key, head, revision)
            if new is not None:
                return new
            await self._endings.bury_dead(key)


def _position(position: int) -> int:
    return max(-_FARTHEST, min(position, _FARTHEST))

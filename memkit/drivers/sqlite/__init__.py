"""`SqliteDriver`: thousands of conversations in one file, written together, read beside each other.

The database is in WAL mode: readers see one moment and wait for nobody. Tasks and processes may share the file,
which must be on a local file system. What is stored, and why so, is told in `schema`; who writes, in `writer`;
what becomes of a process that forks, in `forks`.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Final, Self, TypeVar

from anyio import to_thread

from memkit.driver import Appended, Log, Record, check_key
from memkit.drivers.sqlite.forks import no_fork, watch
from memkit.drivers.sqlite.schema import MEMORY, connect, explained
from memkit.drivers.sqlite.tables import Tables, in_one_moment, load, next_keys
from memkit.drivers.sqlite.writer import Writer
from memkit.errors import FormatError
from memkit.finish import WRITE_TIMEOUT, worker_threads

T = TypeVar("T")

_PAGE: Final = 200


class SqliteDriver:
    """Keeps conversations in the database at `path`, which is made at the first use; its folder must be there.

    With `durable=True` an append returns when the disk has it; otherwise when the operating system has it,
    which survives a crash of the program but not of the machine. Writes that wait leave as one transaction, so
    durability costs little where there is much traffic. A write that takes longer than `write_timeout` seconds,
    or has to wait for other processes for half as long, ends in a `DriverError`. `":memory:"` is a database of
    this driver alone, gone with it.
    """

    def __init__(
        self, path: str | PathLike[str], *, durable: bool = False, write_timeout: float = WRITE_TIMEOUT
    ) -> None:
        self._path = os.fspath(path)
        if not self._path or "\0" in self._path:  # SQLite takes the first for a database that is gone when closed
            raise FormatError(f"{self._path!r} is not the path of a file")
        self._in_memory = self._path == MEMORY
        if not self._in_memory:
            self._path = os.path.abspath(self._path)  # noqa: PTH100 - and the folder may change
        self._durable = durable
        self._write_timeout = write_timeout
        self._lock_timeout = write_timeout / 2  # so that who waits hears who is in the way
        self._writer = Writer(self._path, durable=durable, timeout=self._lock_timeout, stays=self._in_memory)
        self._readers: deque[sqlite3.Connection] = deque()
        weakref.finalize(self, _close, self._readers, self._writer, wait=False)
        watch(self)

    def __repr__(self) -> str:
        return f"SqliteDriver({self._path!r}, durable={self._durable})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, after what is being written. The next call opens them again.

        Nobody has to: the garbage collector does so, too.
        """
        close = partial(_close, self._readers, self._writer, wait=True)
        await to_thread.run_sync(close, limiter=worker_threads())

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        """Return head and entries `start:stop` of one moment, about 2 MiB of them at most."""
        check_key(key)
        return await self._read(lambda connection: load(connection, key, start, stop))

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
        """Store all records or none; entries from `since` on are read to look for their ids."""
        check_key(key)
        return await self._write(lambda tables: tables.append(key, records, since, expect, epoch))

    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        """Put `head` in the place of the head of that `revision`, and return the new revision."""
        check_key(key)
        return await self._write(lambda tables: tables.replace_head(key, head, revision))

    async def delete(self, key: str, /) -> bool:
        """Delete the conversation and end its epoch; return whether there was one."""
        check_key(key)
        return await self._write(lambda tables: tables.delete(key))

    async def trim(self, key: str, before: int, /, *, epoch: str | None = None) -> int:
        """Drop the entries before this position for good, and return the new base."""
        check_key(key)
        return await self._write(lambda tables: tables.trim(key, before, epoch))

    async def redact(self, key: str, bodies: Mapping[int, bytes], /, *, epoch: str) -> None:
        """Put these bodies in the place of those at their positions; the file has no copy of the old any more.

        (Until the last reader of an older moment has ended, the write-ahead log beside the file may have one.)
        """
        check_key(key)
        await self._write(lambda tables: tables.redact(key, bodies, epoch))

    async def expire(self, key: str, ttl: float | None, /) -> bool:
        """Let the conversation be gone after `ttl` seconds from now, or never; its rows go a little later."""
        check_key(key)
        moment = None if ttl is None else time.time() + ttl
        if moment is not None and not -math.inf < moment < math.inf:
            raise FormatError(f"ttl={ttl} is no number of seconds; None is for ever")
        return await self._write(lambda tables: tables.expire(key, moment))

    async def list_keys(self, prefix: str = "", /) -> AsyncIterator[str]:
        """Yield the keys that start with `prefix`, in their order, a page at a time."""
        after = ""
        while keys := await self._read(partial(next_keys, after=after, prefix=prefix, limit=_PAGE)):
            for key in keys:
                yield key
            after = keys[-1]

    def _write(self, do: Callable[[Tables], T]) -> Awaitable[T]:
        return self._writer.do(do, time_limit=self._write_timeout)

    async def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        if self._in_memory:
            return await self._write(lambda tables: tables.read(read))
        return await to_thread.run_sync(self._read_here, read, abandon_on_cancel=True, limiter=worker_threads())

    def _read_here(self, read: Callable[[sqlite3.Connection], T]) -> T:
        with no_fork():
            try:
                connection = self._reader()
                try:
                    result = in_one_moment(connection, read)
                except BaseException:
                    connection.close()
                    raise
            except sqlite3.Error as error:
                raise explained(error, self._path) from error
            except (TypeError, ValueError) as error:
                raise FormatError(f"{self._path!r} holds what memkit never writes: {error}") from error
            self._readers.append(connection)
            return result

    def _reader(self) -> sqlite3.Connection:
        try:
            return self._readers.pop()
        except IndexError:
            return connect(self._path, durable=self._durable, timeout=self._lock_timeout)

    def before_fork(self) -> None:
        """Close the connections, which nobody uses at this moment."""
        _close_all(self._readers)
        self._writer.before_fork()

    def after_fork(self) -> None:
        """Begin anew in a child, where the threads of its parent are not."""
        self._writer.after_fork()


def _close(readers: deque[sqlite3.Connection], writer: Writer, *, wait: bool) -> None:
    writer.close(wait=wait)
    with no_fork():
        _close_all(readers)


def _close_all(readers: deque[sqlite3.Connection]) -> None:
    while readers:
        readers.pop().close()

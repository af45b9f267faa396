"""`FileDriver`: one file for each conversation, in one folder. The default, and a good choice on one machine.

An append is one line at the end of the file and one hop to a worker thread; its cost does not depend on the
history. Tasks and processes may share the folder. It must be on a local file system: locks of network file
systems do not hold what this needs. What the file looks like is told in `layout`, how it is used in `store`.
"""

from __future__ import annotations

import errno
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

from anyio import Lock, to_thread
from anyio.lowlevel import RunVar

from memkit.driver import Appended, Log, Record, check_key
from memkit.drivers.file.store import ConversationFile, live_key
from memkit.errors import DriverError
from memkit.finish import WRITE_TIMEOUT, finish, worker_threads

T = TypeVar("T")

_locks: Final[RunVar[WeakKeyDictionary[ConversationFile, Lock]]] = RunVar("memkit.drivers.file")
_MAX_KNOWN: Final = 4096
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED: Final = {errno.EACCES, errno.EPERM, errno.EROFS}
_LATER: Final = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR, errno.EIO, errno.EBUSY, errno.ENOMEM}


class FileDriver:
    """Keeps conversations in the folder `directory`, which the first write makes.

    With `durable=True` an append returns when the disk has it (fsync of the file, and of the folder for a new
    file); otherwise when the operating system has it, which survives a crash of the program but not of the
    machine. A write that takes longer than `write_timeout` seconds ends in a `DriverError`.
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        durable: bool = False,
        write_timeout: float = WRITE_TIMEOUT,
    ) -> None:
        self._directory = Path(directory)
        self._durable = durable
        self._write_timeout = write_timeout
        self._known: dict[str, ConversationFile] = {}

    def __repr__(self) -> str:
        return f"FileDriver({str(self._directory)!r}, durable={self._durable})"

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        """Return head and entries `start:stop` of one moment, about 2 MiB of them at most, without a lock."""
        file = self._file(key)
        return await self._read(key, lambda: file.load(start, stop))

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
        """Store all records or none, as one line; entries from `since` on are read to look for their ids."""
        return await self._write(key, lambda file: file.append(records, since, expect, epoch))

    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        """Put `head` in the place of the head of that `revision`, and return the new revision."""
        return await self._write(key, lambda file: file.commit(head, revision))

    async def delete(self, key: str, /) -> bool:
        """Delete the conversation and end its epoch; return whether there was one."""
        return await self._write(key, lambda file: file.delete())

    async def trim(self, key: str, before: int, /, *, epoch: str | None = None) -> int:
        """Drop the entries before this position for good; what stays is written into a new file."""
        return await self._write(key, lambda file: file.trim(before, epoch))

    async def redact(self, key: str, bodies: Mapping[int, bytes], /, *, epoch: str) -> None:
        """Put these bodies in the place of those at their positions, in a new file that replaces the old."""
        await self._write(key, lambda file: file.redact(bodies, epoch))

    async def expire(self, key: str, ttl: float | None, /) -> bool:
        """Let the conversation be gone after `ttl` seconds from now, or never; its file is reused or stays."""
        moment = None if ttl is None else time.time() + ttl
        return await self._write(key, lambda file: file.expire(moment))

    async def list_keys(self, prefix: str = "", /) -> AsyncIterator[str]:
        """Yield the keys that start with `prefix`; every file of the folder is looked into."""
        paths = self._directory.glob("*.jsonl")

        def next_keys() -> list[str | None]:
            return [live_key(path) for path in islice(paths, 64)]

        while keys := await self._read(prefix, next_keys):
            for key in keys:
                if key is not None and key.startswith(prefix):
                    yield key

    async def _read(self, key: str, read: Callable[[], T]) -> T:
        return await to_thread.run_sync(_explaining(key, read), abandon_on_cancel=True, limiter=worker_threads())

    async def _write(self, key: str, write: Callable[[ConversationFile], T]) -> T:
        file = self._file(key)
        # One task of this event loop at a time waits in a thread for the file's own lock; the others wait here.
        async with _lock_of(file):
            return await finish(_explaining(key, lambda: write(file)), time_limit=self._write_timeout)

    def _file(self, key: str) -> ConversationFile:
        file = self._known.get(key)
        if file is None:
            check_key(key)
            if len(self._known) >= _MAX_KNOWN:
                self._known.pop(next(iter(self._known)))
            file = ConversationFile(self._directory / _name_of(key), key, durable=self._durable)
            self._known[key] = file
        return file


def _lock_of(file: ConversationFile) -> Lock:
    locks = _locks.get(None)
    if locks is None:
        locks = WeakKeyDictionary[ConversationFile, Lock]()
        _locks.set(locks)
    lock = locks.get(file)
    if lock is None:
        lock = locks[file] = Lock(fast_acquire=True)
    return lock


def _name_of(key: str) -> str:
    """Return a key's file name: what is readable and harmless of the key, and a digest that tells keys apart."""
    readable = re.sub(r"[^a-z0-9_-]+", "-", key.lower()).strip("-")[:40]
    return f"{readable or 'key'}-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.jsonl"


def _explaining(key: str, do: Callable[[], T]) -> Callable[[], T]:
    """Let errors of the operating system say what happened to which conversation, and what to do."""

    def explained() -> T:
        try:
            return do()
        except OSError as error:
            if error.errno in _FULL:
                advice = "there is no room; nothing was stored, free some and repeat"
            elif error.errno in _DENIED:
                advice = "the folder or file is not writable for this process; nothing was stored"
            else:
                advice = "what was stored before is as it was"
            raise DriverError(
                f"the file of {key[:80]!r} could not be used: {error}; {advice}",
                retryable=error.errno in _FULL | _LATER,
            ) from error

    return explained

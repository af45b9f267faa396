"""The one who writes: a thread that puts whatever waits into one transaction, and so waits for the disk once."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

from memkit.drivers.sqlite.forks import no_fork
from memkit.drivers.sqlite.schema import connect, explained, is_busy
from memkit.drivers.sqlite.tables import Tables
from memkit.errors import DriverError, MemkitError
from memkit.tickets import Outcome, Ticket, deliver

T = TypeVar("T")
_log: Final = logging.getLogger(__name__)

_BATCH: Final = 128
"""How many writes a transaction has at most: with more, the last of them would wait for all the others."""

_IDLE: Final = 5.0
"""Seconds after which a thread that has nothing to do closes its connection and ends."""

_UNTIL_COPIES: Final = 0.2
"""Seconds between two tries to remove the copies of a removed text that a reader still holds."""

_PURGE_EVERY: Final = 30.0
"""Seconds between two looks for conversations that are expired."""


class _Job(NamedTuple):
    do: Callable[[Tables], Any]
    ticket: Ticket[Any]


class Writer:
    """Does what it is given in the order in which it was given, as much as waits in one transaction."""

    def __init__(self, path: str, *, durable: bool, timeout: float, stays: bool) -> None:
        self._path = path
        self._durable = durable
        self._timeout = timeout
        self._stays = stays  # a database in memory is gone with its connection
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closing = False
        self._tables: Tables | None = None
        self._purge_at = 0.0

    async def do(self, job: Callable[[Tables], T], *, time_limit: float) -> T:
        """Have something done, and wait for the outcome, whoever cancels; then raise the cancellation.

        Raises:
            DriverError: the database could not be used, or nothing came of it within `time_limit` seconds.
        """
        ticket: Ticket[T] = Ticket()  # `Ticket[T]()` takes longer than all the rest
        with self._wake:
            if self._thread is None:
                self._thread = self._started()
            self._jobs.append(_Job(job, ticket))
            if len(self._jobs) == 1:
                self._wake.notify()
        return await ticket.outcome(time_limit)

    def close(self, *, wait: bool) -> None:
        """Let the thread end and close its connection, after what waits is done. It begins anew if need be."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
            thread = self._thread
        if wait and thread is not None:
            thread.join(self._timeout)

    def before_fork(self) -> None:
        """Close the connection, which nobody uses at this moment."""
        if not self._stays:
            self._close_tables()

    def after_fork(self) -> None:
        """Begin anew in a child, where the thread of its parent is not."""
        self._wake = threading.Condition()
        self._jobs.clear()
        self._thread = None

    def _started(self) -> threading.Thread:
        self._is_closing = False
        thread = threading.Thread(target=self._run, name="memkit sqlite", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise DriverError(f"no thread could be started for {self._path!r}: {error}", retryable=True) from error
        return thread

    def _run(self) -> None:
        while True:
            try:
                self._work()
            except Exception:  # who comes later must not wait for a thread that has died
                _log.exception("a transaction of %r could not be ended well; what comes next is done", self._path)
            with no_fork():
                self._close_tables()
            with self._wake:
                if not self._jobs:
                    self._thread = None
                    return

    def _work(self) -> None:
        """Do what waits until nothing more comes."""
        while (batch := self._next()) or self._leaves_copies():
            with no_fork():
                if batch:
                    deliver(self._done(batch))
                    self._purge()
                else:
                    self._opened().remove_copies()

    def _next(self) -> list[_Job]:
        """Wait for what is to be done next; nothing means that the thread is to end."""
        with self._wake:
            while not self._jobs:
                pause = _UNTIL_COPIES if self._leaves_copies() else None if self._stays else _IDLE
                if self._is_closing or not self._wake.wait(pause):
                    break
            return [self._jobs.popleft() for _ in range(min(_BATCH, len(self._jobs)))]

    def _leaves_copies(self) -> bool:
        return self._tables is not None and self._tables.leaves_copies and not self._is_closing

    def _done(self, batch: list[_Job]) -> list[Outcome]:
        """Do a batch in one transaction; if that fails, each of it in one of its own, to spare the others."""
        try:
            tables = self._opened()
            tables.begin()
            outcomes = [_tried(job, tables) for job in batch]
            tables.commit()
        except BaseException as error:  # whatever it is, those who wait must be told
            self._roll_back()
            if len(batch) > 1 and self._tables is not None and not is_busy(error):
                return [self._done([job])[0] for job in batch]
            return [(job.ticket, None, explained(error, self._path)) for job in batch]
        tables.remove_copies()
        return outcomes

    def _purge(self) -> None:
        """Delete what is expired, if it is time for that. If it fails, the next look finds it."""
        if self._tables is None or time.monotonic() < self._purge_at:
            return
        try:
            self._tables.begin()
            is_more = self._tables.purge()
            self._tables.commit()
        except sqlite3.Error:
            self._roll_back()
            is_more = False
        self._purge_at = time.monotonic() + (0.0 if is_more else _PURGE_EVERY)

    def _opened(self) -> Tables:
        if self._tables is None:
            self._tables = Tables(connect(self._path, durable=self._durable, timeout=self._timeout))
        return self._tables

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):
            if self._tables is not None:
                self._tables.roll_back()

    def _close_tables(self) -> None:
        tables, self._tables = self._tables, None
        if tables is not None:
            tables.close()


def _tried(job: _Job, tables: Tables) -> Outcome:
    try:
        return job.ticket, job.do(tables), None
    except MemkitError as error:
        return job.ticket, None, error

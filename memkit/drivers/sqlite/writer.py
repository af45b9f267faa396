"""The one who writes: a thread that puts whatever waits into one transaction, and so waits for the disk once."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

from memkit.drivers.sqlite.schema import connect, explained, is_busy
from memkit.drivers.sqlite.tables import Tables
from memkit.errors import MemkitError
from memkit.tickets import Courier, Outcome, Ticket, courier

T = TypeVar("T")

_BATCH: Final = 128
"""How many writes a transaction has at most: with more, the last of them would wait for all the others."""

_IDLE: Final = 5.0
"""Seconds after which a thread that has nothing to do closes its connection and ends."""

_PURGE_EVERY: Final = 30.0
"""Seconds between two looks for conversations that are expired."""


class _Job(NamedTuple):
    do: Callable[[Tables], Any]
    ticket: Ticket[Any]
    courier: Courier


class Writer:
    """Does what it is given in the order in which it was given, as much as waits in one transaction."""

    def __init__(self, path: str, *, durable: bool, timeout: float, stays: bool) -> None:
        self._path = path
        self._durable = durable
        self._timeout = timeout
        self._stays = stays  # a database in memory is gone with its connection
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._pid = 0
        self._is_running = False
        self._is_closing = False

    async def do(self, job: Callable[[Tables], T], *, time_limit: float) -> T:
        """Have something done, and wait for the outcome, whoever cancels; then raise the cancellation.

        Raises:
            DriverError: the database could not be used, or nothing came of it within `time_limit` seconds.
        """
        ticket = Ticket[T]()
        with self._wake:
            if not self._is_running or self._pid != os.getpid():
                self._start()
            self._jobs.append(_Job(job, ticket, courier()))
            self._wake.notify()
        return await ticket.outcome(time_limit)

    def close(self) -> None:
        """Let the thread end and close its connection, after what waits is done. It begins anew if need be."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()

    def _start(self) -> None:
        if self._pid != os.getpid():  # the threads of a parent are not there in its child
            self._pid = os.getpid()
            self._jobs.clear()
        self._is_running, self._is_closing = True, False
        threading.Thread(target=self._run, name="memkit sqlite", daemon=True).start()

    def _run(self) -> None:
        tables: Tables | None = None
        purge_at = 0.0
        while batch := self._next():
            try:
                tables = tables or Tables(connect(self._path, durable=self._durable, timeout=self._timeout))
                outcomes = list(_done(batch, tables, self._path))
                if time.monotonic() >= purge_at:
                    purge_at = time.monotonic() + _PURGE_EVERY
                    _purge(tables)
            except BaseException as error:  # whatever it is, those who wait must be told
                known = explained(error, self._path) if isinstance(error, sqlite3.Error) else error
                outcomes = [(job, None, known) for job in batch]
            _deliver(outcomes)
        if tables is not None:
            tables.close()

    def _next(self) -> list[_Job]:
        """Wait for what is to be done next; nothing means that the thread is to end."""
        with self._wake:
            while not self._jobs:
                is_idle = not self._is_closing and not self._wake.wait(None if self._stays else _IDLE)
                if (is_idle or self._is_closing) and not self._jobs:
                    self._is_running = False
                    return []
            return [self._jobs.popleft() for _ in range(min(_BATCH, len(self._jobs)))]


def _done(batch: list[_Job], tables: Tables, path: str) -> Iterable[tuple[_Job, Any, BaseException | None]]:
    """Do a batch in one transaction; if that fails, each of it in one of its own, to spare the others."""
    try:
        tables.begin()
        outcomes = [(job, *_tried(job, tables)) for job in batch]
        tables.commit()
    except (sqlite3.Error, OverflowError) as error:
        with suppress(sqlite3.Error):
            tables.rollback()
        if len(batch) > 1 and not is_busy(error):
            for job in batch:
                yield from _done([job], tables, path)
            return
        known = explained(error, path) if isinstance(error, sqlite3.Error) else error
        outcomes = [(job, None, known) for job in batch]
    yield from outcomes


def _purge(tables: Tables) -> None:
    """Delete what is expired. If it fails, the next look finds it."""
    try:
        tables.begin()
        tables.purge()
        tables.commit()
    except sqlite3.Error:
        with suppress(sqlite3.Error):
            tables.rollback()


def _tried(job: _Job, tables: Tables) -> tuple[Any, BaseException | None]:
    try:
        return job.do(tables), None
    except MemkitError as error:
        return None, error


def _deliver(outcomes: Iterable[tuple[_Job, Any, BaseException | None]]) -> None:
    by_loop: dict[Courier, list[Outcome]] = {}
    for job, result, error in outcomes:
        by_loop.setdefault(job.courier, []).append((job.ticket, result, error))
    for loop, settled in by_loop.items():
        loop.post(settled)

"""The tables of a database, how a connection is opened, and what its errors mean.

A conversation is a row of `heads` and the rows of `log` that have its number. Rows of the log lie in the order
in which they came, whatever conversation they are of, and one dense index finds them by position: that makes
writing cheap, at the price of reading the newest 50 from up to 50 places. The end of a log is not stored: it
is behind its last row, or its `base`. Numbers of conversations are never used again.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from typing import Final

from memkit.errors import DriverError, FormatError, MemkitError, UnsupportedError

MEMORY: Final = ":memory:"
VERSION: Final = 1
_APPLICATION: Final = 0x6D656D6B  # "memk", in the header of the file
_OLDEST: Final = (3, 35, 0)  # RETURNING
_PAUSE: Final = 0.01

_SCHEMA: Final = """
CREATE TABLE heads (
    conv INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    epoch TEXT NOT NULL,
    base INTEGER NOT NULL DEFAULT 0,
    commits INTEGER NOT NULL DEFAULT 0,
    head BLOB,
    expires REAL
);
CREATE INDEX heads_by_expiry ON heads (expires) WHERE expires IS NOT NULL;
CREATE TABLE log (conv INTEGER NOT NULL, pos INTEGER NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL);
CREATE UNIQUE INDEX log_by_position ON log (conv, pos);
"""


def connect(path: str, *, durable: bool, timeout: float) -> sqlite3.Connection:
    """Open a database, and make its tables if it is new.

    `timeout` is how many seconds a statement waits for other processes. What is deleted or overwritten is
    overwritten with zeros.

    Raises:
        FormatError: not a database of memkit, or one of a newer version.
        sqlite3.Error: it cannot be opened.
    """
    if sqlite3.sqlite_version_info < _OLDEST:
        raise UnsupportedError(f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or later is needed")
    deadline = time.monotonic() + timeout
    while True:
        try:
            return _connect(path, durable=durable, timeout=timeout)
        except sqlite3.OperationalError as error:
            # While another process makes the database or is the last to leave it, SQLite does not wait.
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
            time.sleep(_PAUSE)


def _connect(path: str, *, durable: bool, timeout: float) -> sqlite3.Connection:
    if path != MEMORY and not os.path.exists(path):  # noqa: PTH110 - a path as SQLite takes it
        with suppress(OSError):  # which SQLite explains better
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # what people say is private
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("BEGIN")  # another process may be making the tables
        is_new = not _is_ours(connection, path)
        connection.execute("COMMIT")
        if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        connection.execute("PRAGMA secure_delete = ON")
        if is_new:
            _make_tables(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_tables(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not _is_ours(connection, path):  # otherwise another process was quicker
            for statement in filter(str.strip, _SCHEMA.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _is_ours(connection: sqlite3.Connection, path: str) -> bool:
    """Tell whether the tables are there; if not, the database is empty."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if (application, version) == (_APPLICATION, VERSION):
        return True
    if application == _APPLICATION:
        raise FormatError(
            f"{path!r} was written by a newer memkit: its tables are version {version}; upgrade memkit"
        )
    if application or version or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise FormatError(f"{path!r} is a database, but not one of memkit; nothing was written to it")
    return False


_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: "other processes hold it; repeat",
    sqlite3.SQLITE_LOCKED: "other connections hold it; repeat",
    sqlite3.SQLITE_FULL: "there is no room; free some and repeat",
    sqlite3.SQLITE_IOERR: "the disk failed; what was stored before is as it was",
    sqlite3.SQLITE_NOMEM: "there is no memory; repeat with less at a time",
    sqlite3.SQLITE_READONLY: "it is not writable for this process",
    sqlite3.SQLITE_CANTOPEN: "does its folder exist, and may this process write there?",
    sqlite3.SQLITE_PERM: "this process may not use it",
}
_LATER: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
}


def is_busy(error: BaseException) -> bool:
    """Tell whether other processes kept the database for too long."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def explained(error: BaseException, path: str) -> BaseException:
    """Return what an error means for the user of a driver: one of memkit's if it is of SQLite."""
    if not isinstance(error, (sqlite3.Error, OverflowError)):  # the latter: more bytes than SQLite can count
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest tells apart what calls for the same advice
    found: MemkitError
    if code in _DAMAGED:
        found = FormatError(f"{path!r} is damaged or not a database: {error}; nothing was written to it")
    else:
        advice = _ADVICE.get(code, "what was stored before is as it was")
        found = DriverError(
            f"the database {path!r} could not be used: {error}; {advice}", retryable=code in _LATER
        )
    found.__cause__ = error
    return found

"""The tables of a database, how a connection is opened, and what its errors mean.

A conversation is a row of `heads` and the rows of `log` that have its number. Rows of the log lie in the order
in which they came, whatever conversation they are of, and one dense index finds them by position: that makes
writing cheap, at the price of reading the newest 50 from up to 50 places. The end of a log is not stored: it
is behind its last row, or its `base`. Numbers of conversations are never used again.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from typing import Final

from memkit.errors import DriverError, FormatError, MemkitError, UnsupportedError

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
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        connection.execute("PRAGMA secure_delete = ON")
        _check_version(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_version(connection: sqlite3.Connection, path: str) -> None:
    if _version(connection) == (_APPLICATION, VERSION):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        _make_tables(connection, path)
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _make_tables(connection: sqlite3.Connection, path: str) -> None:
    application, version = _version(connection)
    if (application, version) == (_APPLICATION, VERSION):
        return  # another process was quicker
    if application == _APPLICATION:
        raise FormatError(
            f"{path!r} was written by a newer memkit: its tables are version {version}; upgrade memkit"
        )
    if application or version or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise FormatError(f"{path!r} is a database, but not one of memkit; nothing was written to it")
    for statement in filter(str.strip, _SCHEMA.split(";")):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _version(connection: sqlite3.Connection) -> tuple[int, int]:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application, version


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


def explained(error: sqlite3.Error, path: str) -> MemkitError:
    """Return what an error of SQLite means for the user of a driver."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest tells apart what calls for the same advice
    if code in _DAMAGED:
        return FormatError(f"{path!r} is damaged or not a database: {error}; nothing was written to it")
    advice = _ADVICE.get(code, "what was stored before is as it was")
    return DriverError(f"the database {path!r} could not be used: {error}; {advice}", retryable=code in _LATER)

"""What is done to the tables: one function for each method of the driver, synchronous, inside a transaction."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from memkit.driver import (
    MAX_LOAD,
    Appended,
    Log,
    Record,
    check_end,
    check_epoch,
    check_positions,
    check_revision,
    clip,
    new_epoch,
    position_of,
)

T = TypeVar("T")

_MAX_VACUUM: Final = 64 * 1024 * 1024
"""Up to so many bytes a database is written anew after a redaction: about half a second."""

_MAX_KNOWN: Final = 10_000
_MAX_VARIABLES: Final = 500
_MAX_PURGED: Final = 20
_CHECKPOINT_MS: Final = 200  # that readers of an older moment are waited for


@dataclass(slots=True)
class _Known:
    """What is known of a conversation as of the last transaction."""

    conv: int
    epoch: str
    base: int
    end: int
    commits: int
    expires: float | None

    @property
    def revision(self) -> str:
        return f"{self.epoch}.{self.commits}"


class Tables:
    """The tables as the one who writes sees them. Each method is a part of the transaction that is open.

    A method that raises one of memkit's errors has changed nothing. Rows of the log are inserted together, when
    somebody has to read them and before the commit.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._known: dict[str, _Known] = {}
        self._version = -1
        self._rows: list[tuple[int, int, str, bytes]] = []
        self._leaves_copies = False
        self._was_redacted = False
        self._patience_ms = _CHECKPOINT_MS
        (self._busy_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()

    def read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Read inside the transaction, after all that was written in it."""
        self._flush()
        return read(self._connection)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def begin(self) -> None:
        """Begin a transaction. What is known stays so, unless another process has written meanwhile."""
        self._connection.execute("BEGIN IMMEDIATE")
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            self._known.clear()
            self._version = version

    def commit(self) -> None:
        """Insert what waits, and commit."""
        self._flush()
        self._connection.execute("COMMIT")

    @property
    def leaves_copies(self) -> bool:
        """Whether the log beside the file still has what was redacted or deleted."""
        return self._leaves_copies

    def remove_copies(self) -> None:
        """Empty the log beside the file if it has what was redacted or deleted, as soon as no reader needs it.

        The first time readers are waited for; while one goes on, it is tried again after each transaction.
        """
        if not self._leaves_copies:
            return
        with suppress(sqlite3.Error):  # what was committed stays so
            self._connection.execute(f"PRAGMA busy_timeout = {self._patience_ms}")
            if self._was_redacted and self._is_small():
                # Cells that SQLite has moved within a page are not zeroed where they were.
                self._connection.execute("VACUUM")
            self._was_redacted = False
            (is_busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._leaves_copies = bool(is_busy)
        self._patience_ms = 0 if self._leaves_copies else _CHECKPOINT_MS
        self._connection.execute(f"PRAGMA busy_timeout = {self._busy_ms}")

    def _is_small(self) -> bool:
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (size,) = self._connection.execute("PRAGMA page_size").fetchone()
        return bool(pages * size <= _MAX_VACUUM)

    def roll_back(self) -> None:
        """Take back all that was done since `begin`."""
        self._rows.clear()
        self._known.clear()
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def append(
        self, key: str, records: Sequence[Record], since: int, expect: int | None, epoch: str | None
    ) -> Appended:
        """Add records to a log, or find them there."""
        known = self._find(key)
        stored = {} if known is None or since >= known.end else self._look_up(known, records, since)
        position = position_of(key, records, stored)
        if known is not None and position is not None:
            return Appended(position, known.end, known.epoch)
        check_epoch(key, epoch, known.epoch if known else "")
        check_end(key, expect, known.end if known else 0)
        known = known or self._make(key)
        position, conv = known.end, known.conv
        self._rows += [(conv, at, record.id, record.body) for at, record in enumerate(records, position)]
        known.end += len(records)
        return Appended(position, known.end, known.epoch)

    def replace_head(self, key: str, head: bytes, revision: str) -> str:
        """Swap the head, and return its revision."""
        known = self._find(key)
        check_revision(key, revision, known.revision if known else "")
        known = known or self._make(key)
        self._connection.execute(
            "UPDATE heads SET head = ?, commits = commits + 1 WHERE conv = ?", (head, known.conv)
        )
        known.commits += 1
        return known.revision

    def delete(self, key: str) -> bool:
        """Delete a conversation, and return whether there was one."""
        known = self._find(key)
        if known is not None:
            self._drop(key, known.conv)
            self._leaves_copies = True
        return known is not None

    def trim(self, key: str, before: int, epoch: str | None) -> int:
        """Drop the rows before a position, and return the new base."""
        known = self._find(key)
        check_epoch(key, epoch, known.epoch if known else "")
        if known is None:
            return 0
        self._flush()
        base = min(max(before, known.base), known.end)
        self._connection.execute("DELETE FROM log WHERE conv = ? AND pos < ?", (known.conv, base))
        self._connection.execute("UPDATE heads SET base = ? WHERE conv = ?", (base, known.conv))
        known.base = base
        return base

    def redact(self, key: str, bodies: Mapping[int, bytes], epoch: str) -> None:
        """Overwrite bodies."""
        known = self._find(key)
        check_epoch(key, epoch, known.epoch if known else "")
        check_positions(key, bodies, known.base if known else 0, known.end if known else 0)
        if known is not None:
            self._flush()
            rows = [(body, known.conv, position) for position, body in bodies.items()]
            self._connection.executemany("UPDATE log SET body = ? WHERE conv = ? AND pos = ?", rows)
            self._leaves_copies = self._was_redacted = True

    def expire(self, key: str, moment: float | None) -> bool:
        """Set when a conversation is gone, and return whether there is one."""
        known = self._find(key)
        if known is not None:
            self._connection.execute("UPDATE heads SET expires = ? WHERE conv = ?", (moment, known.conv))
            known.expires = moment
        return known is not None

    def purge(self) -> bool:
        """Delete some conversations that are expired, and return whether there may be more."""
        found = self._connection.execute(
            "SELECT key, conv FROM heads WHERE expires <= ? LIMIT ?", (time.time(), _MAX_PURGED)
        ).fetchall()
        for key, conv in found:
            self._drop(key, conv)
        return len(found) == _MAX_PURGED

    # --- inside ---

    def _find(self, key: str) -> _Known | None:
        known = self._known.get(key) or self._read(key)
        if known is not None and known.expires is not None and known.expires <= time.time():
            self._drop(key, known.conv)
            return None
        return known

    def _read(self, key: str) -> _Known | None:
        row = self._connection.execute(
            "SELECT conv, epoch, base, commits, expires FROM heads WHERE key = ?", (key,)
        ).fetchone()
        if row is None:
            return None
        conv, epoch, base, commits, expires = row
        return self._keep(key, _Known(conv, epoch, base, _end_of(self._connection, conv, base), commits, expires))

    def _make(self, key: str) -> _Known:
        epoch = new_epoch()
        (conv,) = self._connection.execute(
            "INSERT INTO heads (key, epoch) VALUES (?, ?) RETURNING conv", (key, epoch)
        ).fetchone()
        return self._keep(key, _Known(conv, epoch, 0, 0, 0, None))

    def _keep(self, key: str, known: _Known) -> _Known:
        if len(self._known) >= _MAX_KNOWN:
            self._flush()  # or the end of what is forgotten would be read without these rows
            self._known.pop(next(iter(self._known)))
        self._known[key] = known
        return known

    def _drop(self, key: str, conv: int) -> None:
        self._flush()
        self._known.pop(key, None)
        self._connection.execute("DELETE FROM log WHERE conv = ?", (conv,))
        self._connection.execute("DELETE FROM heads WHERE conv = ?", (conv,))

    def _flush(self) -> None:
        if self._rows:
            self._connection.executemany("INSERT INTO log VALUES (?, ?, ?, ?)", self._rows)
            self._rows.clear()

    def _look_up(self, known: _Known, records: Sequence[Record], since: int) -> dict[str, tuple[int, bytes]]:
        self._flush()
        found: dict[str, tuple[int, bytes]] = {}
        for start in range(0, len(records), _MAX_VARIABLES):
            ids = [record.id for record in records[start : start + _MAX_VARIABLES]]
            marks = ", ".join("?" * len(ids))
            query = f"SELECT id, pos, body FROM log WHERE conv = ? AND pos >= ? AND id IN ({marks})"  # noqa: S608
            with suppress(UnicodeEncodeError):  # an id that is stored nowhere, and will be refused
                rows = self._connection.execute(query, (known.conv, since, *ids))
                found |= {record_id: (position, body) for record_id, position, body in rows}
        return found


# --- reading, on connections of their own ---


def in_one_moment(connection: sqlite3.Connection, read: Callable[[sqlite3.Connection], T]) -> T:
    """Read what was there in one moment, in a transaction that holds up nobody."""
    connection.execute("BEGIN")
    try:
        return read(connection)
    finally:
        connection.execute("COMMIT")


def load(connection: sqlite3.Connection, key: str, start: int, stop: int | None) -> Log:
    """Return head and entries `start:stop`."""
    row = connection.execute(
        "SELECT conv, epoch, base, commits, head, expires FROM heads WHERE key = ?", (key,)
    ).fetchone()
    if row is None:
        return Log()
    conv, epoch, base, commits, head, expires = row
    if expires is not None and expires <= time.time():
        return Log()
    end = _end_of(connection, conv, base)
    low, high = clip(base, end, start, stop)
    bodies: list[bytes] = []
    size = 0
    for (body,) in connection.execute(
        "SELECT body FROM log WHERE conv = ? AND pos >= ? AND pos < ? ORDER BY pos DESC", (conv, low, high)
    ):
        size += len(body)
        if size > MAX_LOAD and bodies:
            break
        bodies.append(body)
    bodies.reverse()
    return Log(epoch, base, high - len(bodies), end, bodies, head, f"{epoch}.{commits}")


def next_keys(connection: sqlite3.Connection, after: str, prefix: str, limit: int) -> list[str]:
    """Return some keys that begin with `prefix` and come after another, in their order."""
    with suppress(UnicodeEncodeError):  # no key begins like that
        rows = connection.execute(
            "SELECT key FROM heads WHERE key > ? AND key >= ? AND (expires IS NULL OR expires > ?) "
            "ORDER BY key LIMIT ?",
            (after, prefix, time.time(), limit),
        )
        return [key for (key,) in rows if key.startswith(prefix)]
    return []


def _end_of(connection: sqlite3.Connection, conv: int, base: int) -> int:
    (last,) = connection.execute("SELECT max(pos) FROM log WHERE conv = ?", (conv,)).fetchone()
    return base if last is None else last + 1

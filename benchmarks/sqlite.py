"""SQLite: appending to and loading from conversations of any length, beside a bare statement and a hop.

The hop of the limit is anyio's `to_thread.run_sync`.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path

from anyio import to_thread

from benchmarks.corpus import runs
from benchmarks.measure import Row, interleaved_async, row
from memkit import JsonCodec, Record
from memkit.drivers.sqlite import SqliteDriver

SIZES = (10, 1_000, 10_000, 100_000)
_FILLED_AT_ONCE = 10


async def append(*, quick: bool) -> list[Row]:
    """Return the rows of single appends, not durable and durable."""
    rows: list[Row] = []
    for durable in (False, True):
        name = "append, durable" if durable else "append"
        with tempfile.TemporaryDirectory(prefix="memkit-", dir=Path.cwd()) as folder:
            async with _filled(folder, durable=durable) as driver:
                bare, insert = _bare_insert(folder, durable=durable)
                candidates: dict[str, Callable[[], Awaitable[object]]] = {
                    f"{size}": _appender(driver, f"{size}", size) for size in SIZES
                }
                candidates["limit"] = partial(to_thread.run_sync, insert)
                timings = await interleaved_async(candidates, rounds=9 if quick else 25, calls=60)
                bare.close()
        rows += [row(f"{name}, {size:,} runs held", timings[f"{size}"], timings["limit"], 1.5) for size in SIZES]
        rows += [
            row(f"{name}, {size:,} runs held against 10", timings[f"{size}"], timings["10"], 1.2)
            for size in SIZES[1:]
        ]
    return rows


async def load(*, quick: bool) -> list[Row]:
    """Return the rows of loads of the newest 50."""
    with tempfile.TemporaryDirectory(prefix="memkit-", dir=Path.cwd()) as folder:
        async with _filled(folder, durable=False) as driver:
            bare = sqlite3.connect(Path(folder) / "talks.db", check_same_thread=False)
            (conv,) = bare.execute("SELECT conv FROM heads WHERE key = '1000'").fetchone()
            candidates: dict[str, Callable[[], Awaitable[object]]] = {
                f"{size}": partial(driver.load, f"{size}", -50) for size in SIZES
            }
            candidates["limit"] = partial(to_thread.run_sync, partial(_bare_select, bare, conv))
            timings = await interleaved_async(candidates, rounds=9 if quick else 25, calls=60)
            bare.close()
    rows = [
        row(f"load the newest 50 of {size:,} against of 1,000", timings[f"{size}"], timings["1000"], 1.2)
        for size in SIZES[2:]
    ]
    beside = row("load the newest 50 of 1,000, beside a bare SELECT", timings["1000"], timings["limit"], 1.5)
    beside.target, beside.reached = "", None
    return [*rows, beside]


@asynccontextmanager
async def _filled(folder: str, *, durable: bool) -> AsyncGenerator[SqliteDriver]:
    """Open a database in which conversations of all sizes have grown beside each other."""
    codec = JsonCodec()
    async with SqliteDriver(Path(folder) / "talks.db", durable=durable) as driver:
        bodies = [codec.encode(run) for run in runs(1_000)]
        ends = dict.fromkeys(SIZES, 0)
        while any(end < size for size, end in ends.items()):
            for size, end in ends.items():
                if end < size:
                    records = [
                        Record(f"{at:028x}", bodies[at % len(bodies)]) for at in range(end, end + _FILLED_AT_ONCE)
                    ]
                    ends[size] = (await driver.append(f"{size}", records, since=end)).end
        yield driver


def _appender(driver: SqliteDriver, key: str, size: int) -> Callable[[], Awaitable[object]]:
    numbers = count(size)
    body = JsonCodec().encode(runs(1)[0])

    async def append_one() -> None:
        end = next(numbers)
        await driver.append(key, [Record(f"{end:028x}", body)], since=end)

    return append_one


def _bare_insert(folder: str, *, durable: bool) -> tuple[sqlite3.Connection, Callable[[], object]]:
    """Return a connection to a database without indexes, and what inserts the same bytes there."""
    connection = sqlite3.connect(Path(folder) / "bare.db", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
    connection.execute("CREATE TABLE log (conv INTEGER, pos INTEGER, id TEXT, body BLOB)")
    numbers = count()
    body = JsonCodec().encode(runs(1)[0])

    def insert() -> None:
        number = next(numbers)
        connection.execute("INSERT INTO log VALUES (?, ?, ?, ?)", (1, number, f"{number:028x}", body))

    # As in the database beside it, the write-ahead log has its full length: growing it would cost more.
    connection.execute("BEGIN")
    for _ in range(5_000):
        insert()
    connection.execute("COMMIT")
    return connection, insert


def _bare_select(connection: sqlite3.Connection, conv: int) -> None:
    query = "SELECT body FROM log WHERE conv = ? ORDER BY pos DESC LIMIT 50"
    assert len(connection.execute(query, (conv,)).fetchall()) == 50

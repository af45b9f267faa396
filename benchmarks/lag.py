"""How long the event loop stands still during calls that carry much, ours and those of peers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import anyio

from benchmarks.concurrency import at_once
from benchmarks.corpus import SEED, runs
from benchmarks.crowd import CANDIDATES, CONVERSATIONS, Append
from benchmarks.measure import OURS, Row, Sitting, Timing, beside, readable, shown, timing
from benchmarks.peers import COUNTERS, STORES
from benchmarks.peers.base import ENCODING, Store, is_there, missing
from benchmarks.report import left_out
from benchmarks.stores import FILE, SQLITE, absent_rows, place_for, present
from memkit import FileDriver, Memory, counters, everything, new_run
from memkit.tokens import TextCounter

MEGABYTE = 1_000_000
AT_MOST = 0.010
LARGE = 84_000
"""Made-up runs that make a conversation of a hundred megabytes."""
WAITING = (
    "SQLite, durable",
    "SQLite, durable, through Memory",
    "SQLite",
    "files",
    "Redis",
    "Redis, through Memory",
)
"""Which of our candidates of `concurrency` wait."""

Call = Callable[[], Awaitable[object]]


async def stalls(sitting: Sitting) -> list[Row]:
    """Return the longest stalls of a conversation of 15 MB."""
    counter = _counter()
    text = _text(MEGABYTE)
    with tempfile.TemporaryDirectory(prefix="memkit-") as folder:
        driver = FileDriver(folder)
        async with Memory(driver, "long", counter=counter) as handle:
            await handle.append(*runs(10_000, SEED, sitting.data))
            for name in ("a", "b", "c"):
                await handle.add(name, text)
        calls: dict[str, Call] = {
            "open and read 10,000 runs, three of them of 1 MB": partial(_open, driver),
            "add a run of 1 MB, counted": partial(_add, driver, text, counter),
            "count 5 MB": partial(_count, driver, text * 5, counter),
        }
        rounds = 3 if sitting.quick else 7
        idle = await _idle(rounds)
        rows: list[Row] = []
        for name, call in calls.items():
            sitting.step(name)
            rows.append(_judged(name, await _stall(call, rounds), idle))
        return rows


async def lag(sitting: Sitting) -> list[Row]:
    """Return the longest stalls of loading 100 MB, of counting 5 MB, and of a thousand appends that wait."""
    rounds = 1 if sitting.quick else 5
    idle = await _idle(rounds)
    rows = await _loads(sitting, rounds, idle)
    rows += await _counts(sitting, rounds, idle)
    rows += await _appends(sitting, rounds, idle)
    return [*rows, *(absent_rows(STORES) if sitting.peers else ())]


# --- a conversation of 100 MB is loaded ---


async def _loads(sitting: Sitting, rounds: int, idle: Timing) -> list[Row]:
    size = LARGE // (10 if sitting.quick else 1)
    stores = [one for one in (FILE, SQLITE, *(STORES if sitting.peers else ())) if not one.needs_redis]
    found: dict[str, Timing] = {}
    for store in present(stores):
        able = min(size, store.most // 10 if sitting.quick else store.most)
        try:
            found[store.name] = await _load(store, able, sitting, rounds)
        except Exception as error:
            if store not in STORES:
                raise
            left_out(store.name, error)
            continue
        if able < size:  # it blocks the loop all the time: the stall grows as the history does
            seconds = found[store.name].median * size / able
            found[store.name] = Timing(seconds, seconds, seconds, extrapolated=True)
    rows: list[Row] = []
    for store in (FILE, SQLITE):
        name = f"load {size:,} runs, {100 * size / LARGE:.0f} MB, {store.name.removeprefix(f'{OURS}, ')}"
        rows.append(_beside(_judged(name, found[store.name], idle), found))
    return rows


async def _load(store: Store, size: int, sitting: Sitting, rounds: int) -> Timing:
    async with place_for([store]) as place:
        sitting.step(f"{store.name}: storing {size:,} runs")
        async with store.hold(place, "large", runs(size, SEED, sitting.data)) as held:
            sitting.step(f"{store.name}: loading {size:,} runs")
            return await _stall(held.load_all, rounds)


# --- a text of 5 MB is counted ---


async def _counts(sitting: Sitting, rounds: int, idle: Timing) -> list[Row]:
    text = _text(5 * MEGABYTE)
    rows: list[Row] = []
    found, absent = await _peers_count(text, sitting, rounds) if sitting.peers else ({}, [])
    with tempfile.TemporaryDirectory(prefix="memkit-") as folder:
        for make in (counters.tiktoken, counters.toktok):
            sitting.step(f"count 5 MB, {make.__name__}")
            counter = make(ENCODING)
            counter.load()
            took = await _stall(partial(_count, FileDriver(folder), text, counter), rounds)
            rows.append(_beside(_judged(f"count 5 MB, {make.__name__}", took, idle), found))
    rows += [shown(f"longest stall: count 5 MB, {name}", str(took)) for name, took in found.items()]
    return [*rows, *absent]


async def _peers_count(text: str, sitting: Sitting, rounds: int) -> tuple[dict[str, Timing], list[Row]]:
    """Have peers count a history of one run, by the call that does, with whatever else that does.

    Returns what came of it, and who is absent.
    """
    found: dict[str, Timing] = {}
    absent: list[Row] = []
    for counter in COUNTERS:
        if not is_there(counter.packages):
            absent.append(shown(missing(counter.name, counter.packages), ""))
            continue
        sitting.step(f"count 5 MB, {counter.name}")
        try:
            call = counter.cold([new_run("q", text)], len(text)).time
            await call()  # it imports
            found[counter.name] = await _stall(call, rounds)
        except Exception as error:
            left_out(counter.name, error)
    return found, absent


# --- a thousand appends wait ---


async def _appends(sitting: Sitting, rounds: int, idle: Timing) -> list[Row]:
    """Return the longest stall of as many conversations that append one run each at once; it is not judged."""
    found: dict[str, Timing] = {}
    for candidate in CANDIDATES:
        if candidate.name not in WAITING and not (sitting.peers and candidate.is_slow):
            continue
        if not candidate.is_there():
            continue
        sitting.step(f"{CONVERSATIONS:,} appends wait, {candidate.name}")
        with tempfile.TemporaryDirectory(prefix="memkit-", dir=Path.cwd()) as folder:
            async with candidate.open(Path(folder)) as append:
                await _append_everywhere(append, 0)
                calls = [partial(_append_everywhere, append, number + 1) for number in range(rounds)]
                found[candidate.name] = timing([await longest_stall(call) for call in calls])
    peers = {name: took for name, took in found.items() if name not in WAITING}
    rows: list[Row] = []
    for name in WAITING:
        if name in found:
            row = _judged(f"{CONVERSATIONS:,} appends wait, {name}", found[name], idle)
            row.target, row.reached = "not judged: concurrency has the p99", None
            rows.append(beside(row, peers))
    return rows


async def _append_everywhere(append: Append, position: int) -> None:
    await at_once(lambda conversation: append(conversation, position))


# --- what these share ---


async def longest_stall(call: Call) -> float:
    """Return the seconds by which a heartbeat of a millisecond was late at most, while something was done."""
    worst = 0.0

    async def beat() -> None:
        nonlocal worst
        while True:
            start = time.perf_counter()
            await anyio.sleep(0.001)
            worst = max(worst, time.perf_counter() - start - 0.001)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(beat)
        await anyio.sleep(0.02)
        worst = 0.0
        result = await call()
        await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    del result  # to free a hundred megabytes takes time, too, and is not what was called
    return worst


async def _stall(call: Call, rounds: int) -> Timing:
    return timing([await longest_stall(call) for _ in range(rounds)])


async def _idle(rounds: int) -> Timing:
    return await _stall(partial(anyio.sleep, 0.2), rounds)


def _judged(name: str, took: Timing, idle: Timing) -> Row:
    target, is_reached = f"at most {readable(AT_MOST)}", took.median <= AT_MOST
    timings = {OURS: took, "idle": idle}
    return Row(f"longest stall: {name}", str(took), f"idle: {idle}", None, target, is_reached, timings=timings)


def _beside(row: Row, found: Mapping[str, Timing]) -> Row:
    return beside(row, {name: took for name, took in found.items() if not name.startswith(OURS)})


def _counter() -> TextCounter:
    counter = counters.toktok(ENCODING)
    counter.load()
    return counter


def _text(length: int) -> str:
    text = "".join(f"{run.input} {run.output} " for run in runs(1_000))
    return (text * (length // len(text) + 1))[:length]


async def _open(driver: FileDriver) -> None:
    async with Memory(driver, "long", strategy=everything):
        pass


async def _add(driver: FileDriver, text: str, counter: TextCounter) -> None:
    async with Memory(driver, "large", counter=counter) as handle:
        await handle.add("q", text)


async def _count(driver: FileDriver, text: str, counter: TextCounter) -> None:
    async with Memory(driver, "large", counter=counter) as handle:
        await handle.count(text)

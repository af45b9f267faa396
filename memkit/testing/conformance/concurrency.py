"""Many writers at once: nothing is lost, doubled or out of order, and of two swaps one wins."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, suppress
from multiprocessing import get_context
from typing import Final

import anyio
from anyio import create_task_group, to_thread

from memkit.driver import Driver, Record
from memkit.errors import ConflictError
from memkit.testing.conformance.check import Absent, OpenDriver, check, check_store, need_promise, opened
from memkit.testing.conformance.tools import (
    all_bodies,
    append_numbers,
    holds,
    new_key,
    numbers,
    records,
    same,
    state,
)

WRITERS: Final = 16
PROCESSES: Final = 4
APPENDS: Final = 25


@check_store("concurrency")
async def tasks(open_driver: OpenDriver) -> None:
    """Appends of many tasks are all stored, once, each batch in one piece, each writer's in its order."""
    key = new_key()
    answers: dict[int, list[int]] = {}

    async def run(driver: Driver, writer: int) -> None:
        answers[writer] = await _write(driver, key, writer)

    async with AsyncExitStack() as stack:
        drivers = [await stack.enter_async_context(opened(open_driver)) for _ in range(4)]
        async with create_task_group() as group:
            for writer in range(WRITERS):
                group.start_soon(run, drivers[writer % len(drivers)], writer)
        await _compare(drivers[0], key, answers)


@check_store("concurrency")
async def processes(open_driver: OpenDriver) -> None:
    """Appends of many processes are all stored, once, each batch in one piece, each writer's in its order."""
    try:
        pickle.dumps(open_driver)
    except Exception as error:
        raise Absent("processes, since open_driver cannot be pickled") from error
    key = new_key()
    answers = await to_thread.run_sync(_write_in_processes, open_driver, key)
    async with opened(open_driver) as driver:
        await _compare(driver, key, answers)


@check("concurrency")
async def one_record(driver: Driver) -> None:
    """A record that many append at the same time is stored once, and all of them get its position."""
    need_promise(driver, "idempotence")
    key = new_key()
    await append_numbers(driver, key, [0])
    batch = records(*numbers([1, 2]))
    positions: list[int] = []

    async def append() -> None:
        positions.append((await driver.append(key, batch, since=1)).position)

    async with create_task_group() as group:
        for _ in range(8):
            group.start_soon(append)
    same(positions, [1] * 8, "the positions answered")
    same(list((await state(driver, key)).bodies), numbers(range(3)), "the log")


@check_store("concurrency")
async def one_expectation(open_driver: OpenDriver) -> None:
    """Of many appends that expect the same end exactly one is stored; the others are conflicts."""
    key = new_key()
    won: list[bytes] = []

    async def append(driver: Driver, body: bytes) -> None:
        with suppress(ConflictError):
            await driver.append(key, records(body), expect=0)
            won.append(body)

    async with opened(open_driver) as one, opened(open_driver) as other:
        async with create_task_group() as group:
            for n in range(8):
                group.start_soon(append, (one, other)[n % 2], b"%d" % n)
        same(len(won), 1, "the number of appends that were not refused")
        same(list((await state(one, key)).bodies), won, "the log")


@check_store("concurrency")
async def one_commit(open_driver: OpenDriver) -> None:
    """Of many commits under the same revision exactly one is stored; the others are conflicts."""
    key = new_key()
    won: list[tuple[bytes, str]] = []

    async def commit(driver: Driver, head: bytes, revision: str) -> None:
        with suppress(ConflictError):
            won.append((head, await driver.commit(key, head, revision=revision)))

    async with opened(open_driver) as one, opened(open_driver) as other:
        need_promise(one, "compare-and-set")
        for number in range(1, 4):
            revision = (await one.load(key)).revision
            async with create_task_group() as group:
                for n in range(8):
                    group.start_soon(commit, (one, other)[n % 2], b"%d" % n, revision)
            same(len(won), number, "the number of commits that were not refused")
            log = await state(one, key)
            same((log.head, log.revision), won[-1], "the head and its revision")


def _batches(writer: int) -> Iterator[list[bytes]]:
    """Return what a writer appends, one after the other: every fifth time a batch of three."""
    for n in range(APPENDS):
        yield [b"%d:%d.%d" % (writer, n, part) for part in range(3 if n % 5 == 4 else 1)]


async def _write(driver: Driver, key: str, writer: int) -> list[int]:
    """Append all batches of a writer, and a few records to a key of its own; return the positions."""
    positions: list[int] = []
    end = 0
    for batch in _batches(writer):
        appended = await driver.append(key, records(*batch), since=end)
        positions.append(appended.position)
        end = appended.end
        if len(batch) > 1:
            await driver.append(f"{key}-{writer}", [Record(f"{writer}-{end}", batch[0])])
    return positions


def _write_in_process(open_driver: OpenDriver, key: str, writer: int) -> list[int]:
    async def run() -> list[int]:
        async with opened(open_driver) as driver:
            return await _write(driver, key, writer)

    return anyio.run(run)


def _write_in_processes(open_driver: OpenDriver, key: str) -> dict[int, list[int]]:
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        running = {n: pool.submit(_write_in_process, open_driver, key, n) for n in range(PROCESSES)}
        return {writer: future.result() for writer, future in running.items()}


async def _compare(driver: Driver, key: str, answers: Mapping[int, list[int]]) -> None:
    bodies = await all_bodies(driver, key)
    expected = Counter(body for writer in answers for batch in _batches(writer) for body in batch)
    stored = Counter(bodies)
    same(sorted(expected - stored), [], "entries that were lost")
    same(sorted(stored - expected), [], "entries that were doubled")
    for writer, positions in answers.items():
        holds(positions == sorted(positions), f"the appends of writer {writer} are out of order")
        for position, batch in zip(positions, _batches(writer), strict=True):
            same(bodies[position : position + len(batch)], batch, f"what stands at the position {position}")
        own = [batch[0] for batch in _batches(writer) if len(batch) > 1]
        same(await all_bodies(driver, f"{key}-{writer}"), own, f"the key of writer {writer} alone")

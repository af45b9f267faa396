"""Cancellation: it leaves before or after a write, never between, whoever cancels."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

from anyio import CancelScope, create_task_group, sleep
from anyio.lowlevel import checkpoint

from memkit.driver import Driver, Log, Record, Redact, Trim
from memkit.testing.conformance.check import check, need
from memkit.testing.conformance.tools import all_bodies, holds, new_key, records, same, state

Operation: TypeAlias = Callable[[str, Log], Awaitable[None]]
"""A write to the key of a conversation, which is as this log says."""

Seen: TypeAlias = tuple[int, Sequence[bytes], bytes | None]
"""Base, entries and head of a conversation."""

BODIES: Final = (b"0", b"1", b"2")
BEFORE: Final[Seen] = (0, BODIES, b"head")

Moment: TypeAlias = int | float
"""When to cancel: after so many turns of the event loop, or after so many seconds."""

MOMENTS: Final[Sequence[Moment]] = (*range(13), 0.001, 0.002, 0.005)

A_WHILE: Final = 0.15
"""Seconds in which what was left behind by a cancelled call would arrive."""


@check("cancellation")
async def append(driver: Driver) -> None:
    """A cancelled append is stored as a whole or not at all, at once; repeated, it is stored exactly once."""

    async def operate(key: str, _: Log) -> None:
        await driver.append(key, _batch(key), since=3)

    after = (0, (*BODIES, b"3", b"4"), b"head")
    for key in await _cancel_everywhere(driver, operate, after):
        same((await driver.append(key, _batch(key), since=3)).position, 3, "the position when repeated")
        same(await _see(driver, key), after, "the log after the cancelled append was repeated")


@check("cancellation")
async def commit(driver: Driver) -> None:
    """A cancelled commit has swapped the head or not, at once."""

    async def operate(key: str, log: Log) -> None:
        await driver.commit(key, b"new", revision=log.revision)

    for key in await _cancel_everywhere(driver, operate, (0, BODIES, b"new")):
        await driver.commit(key, b"newer", revision=(await driver.load(key)).revision)


@check("cancellation")
async def delete(driver: Driver) -> None:
    """A cancelled delete leaves the conversation as it was or nothing of it, at once."""

    async def operate(key: str, _: Log) -> None:
        await driver.delete(key)

    for key in await _cancel_everywhere(driver, operate, (0, (), None)):
        await driver.append(key, records(b"next"))


@check("cancellation")
async def trim(driver: Driver) -> None:
    """A cancelled trim has dropped all that it should or nothing, at once."""
    capable = need(driver, Trim)

    async def operate(key: str, log: Log) -> None:
        await capable.trim(key, 2, epoch=log.epoch)

    for key in await _cancel_everywhere(driver, operate, (2, BODIES[2:], b"head")):
        same((await driver.append(key, records(b"next"))).position, 3, "the position of the next append")


@check("cancellation")
async def redact(driver: Driver) -> None:
    """A cancelled redaction has overwritten all that it should or nothing, at once."""
    capable = need(driver, Redact)

    async def operate(key: str, log: Log) -> None:
        await capable.redact(key, {0: b"x", 2: b"longer than it was"}, epoch=log.epoch)

    after = (0, (b"x", b"1", b"longer than it was"), b"head")
    for key in await _cancel_everywhere(driver, operate, after):
        same((await driver.append(key, records(b"next"))).position, 3, "the position of the next append")


@check("cancellation")
async def others_go_on(driver: Driver) -> None:
    """A cancelled append takes no other append with it."""
    batches = [(b"%d.0" % n, b"%d.1" % n) for n in range(8)]

    async def plain(key: str, batch: Sequence[bytes]) -> None:
        await driver.append(key, records(*batch))

    for way, cancel in _ways():
        for moment in (0, 1, 2, 4, 8, 0.001):
            key = new_key()
            async with create_task_group() as tasks:
                for n, batch in enumerate(batches):
                    if n % 2:
                        tasks.start_soon(cancel, partial(plain, key, batch), moment)
                    else:
                        tasks.start_soon(plain, key, batch)
            stored = await all_bodies(driver, key)
            found = Counter(zip(stored[::2], stored[1::2], strict=False))
            holds(
                len(stored) % 2 == 0 and found <= Counter(batches) and all(found[batch] for batch in batches[::2]),
                f"every other append cancelled by {way} {_at(moment)}: stored is {stored}",
            )


async def _cancel_everywhere(driver: Driver, operate: Operation, after: Seen) -> list[str]:
    """Cancel a write in every way, at every moment; return the keys, each of which is as before or after."""
    found: dict[str, tuple[Seen, str]] = {}
    for way, cancel in _ways():
        for moment in MOMENTS:
            key = new_key()
            log = await _prepare(driver, key)
            ended = await cancel(partial(operate, key, log), moment)
            seen = await _see(driver, key)
            what = f"cancelled by {way} {_at(moment)}"
            if ended:
                same(seen, after, f"{what}, but ended before")
            holds(seen in (BEFORE, after), f"{what}: the conversation is {seen}, neither as before nor as after")
            found[key] = (seen, what)
    await sleep(A_WHILE)
    for key, (seen, what) in found.items():
        same(await _see(driver, key), seen, f"{what}: the conversation a while after the call had returned")
    return list(found)


async def _prepare(driver: Driver, key: str) -> Log:
    await driver.append(key, records(*BODIES))
    await driver.commit(key, b"head", revision=(await driver.load(key)).revision)
    return await state(driver, key)


async def _see(driver: Driver, key: str) -> Seen:
    log = await state(driver, key)
    return log.base, log.bodies, log.head


def _batch(key: str) -> list[Record]:
    return [Record(f"{key}-3", b"3"), Record(f"{key}-4", b"4")]


async def _pause(moment: Moment) -> None:
    if isinstance(moment, int):
        for _ in range(moment):
            await checkpoint()
    else:
        await sleep(moment)


def _at(moment: Moment) -> str:
    return f"after {moment} turns" if isinstance(moment, int) else f"after {moment} s"


# The ways to cancel. Each returns whether the call had ended before.

Write: TypeAlias = Callable[[], Awaitable[None]]
Cancel: TypeAlias = Callable[[Write, Moment], Coroutine[Any, Any, bool]]


def _ways() -> Sequence[tuple[str, Cancel]]:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # trio shuffles its tasks, so that one try at each moment would say little.
        return [("an anyio scope", _by_scope)] * 4
    return [
        ("an anyio scope", _by_scope),
        ("task.cancel()", _by_task),
        ("task.cancel(), twice", partial(_by_task, times=2)),
        ("asyncio.timeout", _by_timeout),
    ]


async def _by_scope(write: Write, moment: Moment) -> bool:
    scope = CancelScope()

    async def run() -> None:
        with scope:
            await write()

    async with create_task_group() as tasks:
        tasks.start_soon(run)
        await _pause(moment)
        scope.cancel()
    return not scope.cancelled_caught


async def _by_task(write: Write, moment: Moment, *, times: int = 1) -> bool:
    async def run() -> None:
        await write()

    task = asyncio.create_task(run())
    await _pause(moment)
    for _ in range(times):
        task.cancel()
        await checkpoint()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.result()
    return not task.cancelled()


async def _by_timeout(write: Write, moment: Moment) -> bool:
    limit = asyncio.timeout(None)

    async def run() -> bool:
        try:
            async with limit:
                await write()
        except TimeoutError:
            return False
        return True

    task = asyncio.create_task(run())
    await checkpoint()  # a limit that is not entered yet cannot be over
    await _pause(moment)
    if not task.done():
        limit.reschedule(0)
    return await task

"""What the checks share: fresh keys, records, and ways to say what is expected."""

from __future__ import annotations

import reprlib
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import msgspec
from anyio import current_time, sleep

from memkit.driver import Appended, Driver, Log, Record
from memkit.errors import ConflictError, MemkitError
from memkit.run import new_id
from memkit.testing.conformance.check import waived

_repr: Final = reprlib.Repr()
_repr.maxother = _repr.maxstring = 200
_repr.maxtuple = _repr.maxlist = 12


def new_key() -> str:
    """Return a key that no conversation ever had."""
    return f"memkit-check-{new_id()}"


def records(*bodies: bytes) -> list[Record]:
    """Return records of these bodies, each with a new id."""
    return [Record(new_id(), body) for body in bodies]


def numbers(values: Iterable[int]) -> list[bytes]:
    """Return a short body for each number."""
    return [b'{"n":%d}' % value for value in values]


async def append_numbers(driver: Driver, key: str, values: Iterable[int], *, since: int = 0) -> Appended:
    """Append numbered records: a batch, or one after the other where batches are waived."""
    batch = records(*numbers(values))
    if "batches" not in waived(driver):
        return await driver.append(key, batch, since=since)
    answers = [await driver.append(key, [record], since=since + n) for n, record in enumerate(batch)]
    return msgspec.structs.replace(answers[-1], position=answers[0].position)


async def state(driver: Driver, key: str) -> Log:
    """Return all of a short conversation, in a form that can be compared."""
    log = await driver.load(key, 0)
    return msgspec.structs.replace(log, bodies=tuple(log.bodies))


async def all_bodies(driver: Driver, key: str) -> list[bytes]:
    """Return all bodies of a conversation, page by page from the end, as a driver may bound its answers."""
    log = await driver.load(key, 0)
    start, bodies = log.start, list(log.bodies)
    while start > log.base:
        page = await driver.load(key, 0, start)
        same(page.start + len(page.bodies), start, "where the page before the last one ends")
        holds(len(page.bodies) > 0, f"the page before position {start} is empty")
        start, bodies = page.start, [*page.bodies, *bodies]
    return bodies


async def wait_until_gone(driver: Driver, key: str, before: Log) -> None:
    """Wait until a conversation has expired; demand that it is whole until then."""
    limit = current_time() + 30
    while (log := await state(driver, key)) != Log():
        same(log, before, "a conversation whose time is not over")
        holds(current_time() < limit, "a conversation is still there 30 s after its time was over")
        await sleep(0.02)


def same(actual: object, expected: object, what: str) -> None:
    """Demand that two values are equal."""
    if actual != expected:
        raise AssertionError(f"{what}: expected {_repr.repr(expected)}, got {_repr.repr(actual)}")


def holds(condition: bool, otherwise: str) -> None:
    """Demand that a condition is true."""
    if not condition:
        raise AssertionError(otherwise)


@contextmanager
def refused(kind: type[MemkitError], what: str) -> Generator[None]:
    """Demand that the block raises an error of this kind."""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"{what}: no {kind.__name__} was raised")


@asynccontextmanager
async def nothing_stored(
    driver: Driver, key: str, what: str, kind: type[MemkitError] = ConflictError
) -> AsyncGenerator[None]:
    """Demand that the block is refused, and that the conversation is afterwards as it was."""
    before = await state(driver, key)
    with refused(kind, what):
        yield
    same(await state(driver, key), before, f"{what}: what is stored after the {kind.__name__}")

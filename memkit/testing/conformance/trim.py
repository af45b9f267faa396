"""The capability `Trim`: the oldest entries go for good, and nothing else changes."""

from __future__ import annotations

import msgspec

from memkit.driver import Appended, Driver, Log, Trim
from memkit.errors import FormatError
from memkit.testing.conformance.check import check, need
from memkit.testing.conformance.keys import IMPOSSIBLE
from memkit.testing.conformance.tools import (
    append_numbers,
    new_key,
    nothing_stored,
    numbers,
    records,
    refused,
    same,
    state,
)


@check("trim")
async def base_rises(driver: Driver) -> None:
    """A trim raises the base and drops what is before it; positions, head and revision stay as they are."""
    trim, key = need(driver, Trim), new_key()
    before = await _conversation(driver, key)
    for base in (1, 3, 4):
        same(await trim.trim(key, base, epoch=before.epoch), base, f"the answer of trim to {base}")
        expected = msgspec.structs.replace(before, base=base, start=base, bodies=tuple(numbers(range(base, 5))))
        same(await state(driver, key), expected, f"the log after a trim to {base}")


@check("trim")
async def below_the_base(driver: Driver) -> None:
    """A trim to the base or before it changes nothing and answers with the base."""
    trim, key = need(driver, Trim), new_key()
    await _conversation(driver, key)
    await trim.trim(key, 2)
    before = await state(driver, key)
    for position in (2, 1, 0):
        same(await trim.trim(key, position), 2, f"the answer of trim to {position}, where the base is 2")
        same(await state(driver, key), before, f"the log after a trim to {position}")


@check("trim")
async def everything(driver: Driver) -> None:
    """A trim beyond the end is one to the end; the next append continues the positions in the same epoch."""
    trim, key = need(driver, Trim), new_key()
    before = await _conversation(driver, key)
    same(await trim.trim(key, 100), 5, "the answer of a trim beyond the end")
    expected = msgspec.structs.replace(before, base=5, start=5, bodies=())
    same(await state(driver, key), expected, "the log after it")
    same(await append_numbers(driver, key, [5, 6]), Appended(5, 7, before.epoch), "the next append")
    log = await state(driver, key)
    same((log.base, log.start, list(log.bodies)), (5, 5, numbers([5, 6])), "the log after the next append")
    await driver.commit(key, b"next", revision=before.revision)


@check("trim")
async def retries_after_it(driver: Driver) -> None:
    """Ids of what stays are still known after a trim; a record that was dropped is not answered wrongly."""
    trim, key = need(driver, Trim), new_key()
    dropped, kept = records(b"dropped"), records(b"kept", b"too")
    epoch = (await driver.append(key, dropped)).epoch
    await driver.append(key, kept, since=1)
    await append_numbers(driver, key, [3])
    await trim.trim(key, 1)
    same(await driver.append(key, kept, since=1), Appended(1, 4, epoch), "a repeated append of what stays")
    again = await driver.append(key, dropped)
    expected = [b"kept", b"too", *numbers([3]), b"dropped"][: again.end - 1]
    same(list((await state(driver, key)).bodies), expected, "the log after a dropped record comes again")
    same(again.position, 4 if again.end == 5 else 0, "the position of a dropped record that comes again")


@check("trim")
async def stale_epoch(driver: Driver) -> None:
    """A trim of another epoch is a conflict and drops nothing."""
    trim, key = need(driver, Trim), new_key()
    old = await _conversation(driver, key)
    async with nothing_stored(driver, key, "a trim of another epoch"):
        await trim.trim(key, 1, epoch="another")
    await driver.delete(key)
    await _conversation(driver, key)
    async with nothing_stored(driver, key, "a trim of the deleted epoch"):
        await trim.trim(key, 1, epoch=old.epoch)


@check("trim")
async def unknown_key(driver: Driver) -> None:
    """A trim of an unknown key leaves it unknown; an impossible key is refused."""
    trim, key = need(driver, Trim), new_key()
    same(await trim.trim(key, 3), 0, "the answer of a trim of an unknown key")
    same(await state(driver, key), Log(), "the key after it")
    for impossible in IMPOSSIBLE:
        with refused(FormatError, f"trim of the key {impossible[:8]!r}"):
            await trim.trim(impossible, 1)


async def _conversation(driver: Driver, key: str) -> Log:
    await append_numbers(driver, key, range(5))
    await driver.commit(key, b"head", revision=(await driver.load(key)).revision)
    return await state(driver, key)

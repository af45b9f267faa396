"""Deletion: it ends an epoch, and stale handles cannot write into what comes after."""

from __future__ import annotations

from memkit.driver import Driver, Log
from memkit.testing.conformance.check import check
from memkit.testing.conformance.tools import (
    append_numbers,
    holds,
    new_key,
    nothing_stored,
    numbers,
    records,
    same,
    state,
)


@check("epochs")
async def delete(driver: Driver) -> None:
    """Delete takes entries and head, leaves the key unknown, and tells whether there was a conversation."""
    key, _ = await _deleted(driver)
    same(await state(driver, key), Log(), "the key after its deletion")
    same(await driver.delete(key), False, "a second delete")


@check("epochs")
async def new_epoch(driver: Driver) -> None:
    """After a deletion positions start anew, in an epoch that no log of the key ever had."""
    key, old = await _deleted(driver)
    epochs = {old.epoch}
    for life in range(2, 5):
        appended = await append_numbers(driver, key, [life])
        same((appended.position, appended.end), (0, 1), "position and end in the new epoch")
        log = await state(driver, key)
        same((log.epoch, log.head, list(log.bodies)), (appended.epoch, None, numbers([life])), "the new log")
        epochs.add(log.epoch)
        holds(len(epochs) == life, f"the epoch {log.epoch!r} comes a second time")
        same(await driver.delete(key), True, "delete of the new log")


@check("epochs")
async def stale_append(driver: Driver) -> None:
    """An append of a deleted epoch is a conflict, also where the new log has the end that it expects."""
    key, old = await _deleted(driver)
    async with nothing_stored(driver, key, "an append of the old epoch to the deleted key"):
        await driver.append(key, records(b"late"), epoch=old.epoch)
    await append_numbers(driver, key, range(old.end))
    async with nothing_stored(driver, key, "an append of the old epoch to the new log"):
        await driver.append(key, records(b"late"), epoch=old.epoch)
    async with nothing_stored(driver, key, "the same with the right end"):
        await driver.append(key, records(b"late"), epoch=old.epoch, expect=old.end, since=old.end)


@check("epochs")
async def stale_expect(driver: Driver) -> None:
    """An append that expects the end of the deleted log is a conflict while the new one is shorter."""
    key, old = await _deleted(driver)
    async with nothing_stored(driver, key, "the old end expected of the deleted key"):
        await driver.append(key, records(b"late"), expect=old.end)
    await append_numbers(driver, key, [0])
    async with nothing_stored(driver, key, "the old end expected of the new log"):
        await driver.append(key, records(b"late"), expect=old.end)


@check("epochs")
async def stale_commit(driver: Driver) -> None:
    """A revision of the deleted log is stale, also where the new log was changed just as often."""
    key, old = await _deleted(driver)
    async with nothing_stored(driver, key, "the old revision on the deleted key"):
        await driver.commit(key, b"late", revision=old.revision)
    await append_numbers(driver, key, range(old.end))
    async with nothing_stored(driver, key, "the old revision on the new log"):
        await driver.commit(key, b"late", revision=old.revision)
    revision = (await driver.load(key)).revision
    await driver.commit(key, b"head", revision=revision)
    for stale in (old.revision, ""):
        async with nothing_stored(driver, key, f"revision={stale!r} on a new log with a head"):
            await driver.commit(key, b"late", revision=stale)


@check("epochs")
async def ids_forgotten(driver: Driver) -> None:
    """The ids of a deleted log are gone with it: the same record can be stored in the new one."""
    key = new_key()
    batch = records(*numbers(range(3)))
    old = await driver.append(key, batch)
    await driver.delete(key)
    async with nothing_stored(driver, key, "a repeated append of the old epoch"):
        await driver.append(key, batch, epoch=old.epoch)
    appended = await driver.append(key, batch[1:])
    same((appended.position, appended.end), (0, 2), "position and end of records stored anew")
    same(list((await state(driver, key)).bodies), numbers([1, 2]), "the new log")


async def _deleted(driver: Driver) -> tuple[str, Log]:
    """Return a key whose conversation is deleted, and what the conversation was."""
    key = new_key()
    await append_numbers(driver, key, range(3))
    await driver.commit(key, b"old", revision=(await driver.load(key)).revision)
    old = await state(driver, key)
    same(await driver.delete(key), True, "delete")
    return key, old

"""Conflicts: the store holds something else than the caller believes, and nothing is stored."""

from __future__ import annotations

from memkit.driver import Appended, Driver, Log
from memkit.testing.conformance.check import check
from memkit.testing.conformance.tools import (
    append_numbers,
    new_key,
    nothing_stored,
    numbers,
    records,
    same,
    state,
)


@check("conflicts")
async def expect(driver: Driver) -> None:
    """An append that expects another end of the log is a conflict; nothing of it is stored."""
    key = new_key()
    epoch = (await append_numbers(driver, key, range(3))).epoch
    for wrong in (0, 2, 4, 100):
        async with nothing_stored(driver, key, f"expect={wrong} where the log ends at 3"):
            await driver.append(key, records(b"a", b"b"), expect=wrong)
    same(await driver.append(key, records(b"a"), expect=3), Appended(3, 4, epoch), "expect=3")


@check("conflicts")
async def epoch(driver: Driver) -> None:
    """An append of another epoch is a conflict; nothing of it is stored."""
    key = new_key()
    current = (await append_numbers(driver, key, [0])).epoch
    for wrong in ("", "another", current + "0"):
        async with nothing_stored(driver, key, f"epoch={wrong!r} where it is {current!r}"):
            await driver.append(key, records(b"a"), epoch=wrong, expect=1)
    await driver.append(key, records(b"a"), epoch=current, expect=1)


@check("conflicts")
async def unknown_key(driver: Driver) -> None:
    """What conflicts with an unknown key does not make it known; its epoch is "" and its end 0."""
    key = new_key()
    async with nothing_stored(driver, key, "expect=1 of an unknown key"):
        await driver.append(key, records(b"a"), expect=1)
    async with nothing_stored(driver, key, "an epoch of an unknown key"):
        await driver.append(key, records(b"a"), epoch="another")
    async with nothing_stored(driver, key, "a revision of an unknown key"):
        await driver.commit(key, b"head", revision="another")
    same(await state(driver, key), Log(), "the key after conflicts")
    appended = await driver.append(key, records(*numbers([0])), expect=0, epoch="")
    same((appended.position, appended.end), (0, 1), 'expect=0, epoch="" of an unknown key')


@check("conflicts")
async def stale_revision(driver: Driver) -> None:
    """A commit under another revision than the current one is a conflict, and the head stays."""
    key = new_key()
    await append_numbers(driver, key, [0])
    stale = (await driver.load(key)).revision
    current = await driver.commit(key, b"head", revision=stale)
    for wrong in (stale, "", "another", current + "0"):
        async with nothing_stored(driver, key, f"revision={wrong!r} where it is {current!r}"):
            await driver.commit(key, b"lost", revision=wrong)
    await driver.commit(key, b"new head", revision=current)


@check("conflicts")
async def revision_of_nothing(driver: Driver) -> None:
    """The revision "" is that of an unknown key only: once there are entries, it is stale."""
    key = new_key()
    unknown = await driver.load(key)
    await append_numbers(driver, key, [0])
    async with nothing_stored(driver, key, 'revision="" after the first append'):
        await driver.commit(key, b"head", revision=unknown.revision)

"""The head: swapped under a revision, untouched by appends."""

from __future__ import annotations

from memkit.driver import Driver
from memkit.testing.conformance.check import check
from memkit.testing.conformance.log import BODIES
from memkit.testing.conformance.tools import append_numbers, holds, new_key, numbers, same, state


@check("head")
async def commit(driver: Driver) -> None:
    """A commit under the current revision stores the head byte for byte, and returns the new revision."""
    key = new_key()
    await append_numbers(driver, key, [0])
    revision = (await driver.load(key)).revision
    for head in BODIES:
        revision = await driver.commit(key, head, revision=revision)
        log = await state(driver, key)
        same((log.head, log.revision), (head, revision), "head and revision as loaded")
        same(list(log.bodies), numbers([0]), "the entries")


@check("head")
async def commit_creates(driver: Driver) -> None:
    """A commit under the revision "" makes a conversation that has no entries yet."""
    key = new_key()
    revision = await driver.commit(key, b"head", revision="")
    log = await state(driver, key)
    same((log.head, log.revision, log.end), (b"head", revision, 0), "head, revision and end")
    holds(log.epoch != "", "a conversation that exists has no epoch")
    same((await append_numbers(driver, key, [0])).epoch, log.epoch, "the epoch of the first append")
    same(await driver.delete(key), True, "delete of it")


@check("head")
async def survives_appends(driver: Driver) -> None:
    """An append changes neither head nor revision: what was read before it can be committed after it."""
    key = new_key()
    await append_numbers(driver, key, [0])
    before = await state(driver, key)
    await append_numbers(driver, key, range(1, 150))
    revision = await driver.commit(key, b"one", revision=before.revision)
    await append_numbers(driver, key, range(150, 300))
    log = await driver.load(key, -1)
    same((log.head, log.revision, log.end), (b"one", revision, 300), "head, revision and end")
    await driver.commit(key, b"two", revision=revision)


@check("head")
async def unique_revisions(driver: Driver) -> None:
    """A revision is never used twice for a key: not for the same head, not after deletion and re-creation."""
    key = new_key()
    revisions = [""]
    for life in range(3):
        if life % 2:
            await append_numbers(driver, key, [0])
            revisions.append((await driver.load(key)).revision)
        for _ in range(3):
            current = (await driver.load(key)).revision
            revisions.append(await driver.commit(key, b"the same", revision=current))
        await driver.delete(key)
    repeated = sorted({revision for revision in revisions if revisions.count(revision) > 1})
    holds(not repeated, f"revisions used twice: {repeated}")

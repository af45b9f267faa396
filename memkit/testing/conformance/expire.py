"""The capability `Expire`: a conversation is gone after a while, not before."""

from __future__ import annotations

from typing import Final

from anyio import current_time

from memkit.driver import Driver, Expire, Log
from memkit.errors import FormatError
from memkit.testing.conformance.check import check, need
from memkit.testing.conformance.keys import IMPOSSIBLE
from memkit.testing.conformance.tools import (
    append_numbers,
    holds,
    new_key,
    nothing_stored,
    numbers,
    records,
    refused,
    same,
    state,
    wait_until_gone,
)

TTL: Final = 0.5
SLACK: Final = 0.1
"""Seconds by which the store's clock may differ over a second from ours."""


@check("expire")
async def gone_in_time(driver: Driver) -> None:
    """A conversation is whole until its time is over, and then like an unknown key."""
    expire, key = need(driver, Expire), new_key()
    before = await _conversation(driver, key)
    asked = current_time()
    same(await expire.expire(key, TTL), True, "the answer of expire")
    await wait_until_gone(driver, key, before)
    holds(current_time() > asked + TTL - SLACK, f"it was gone sooner than {TTL:g} s after expire({TTL:g})")
    same(await driver.delete(key), False, "delete of what is expired")


@check("expire")
async def new_epoch(driver: Driver) -> None:
    """What comes after an expired conversation is a new one: stale handles cannot write into it."""
    expire, key = need(driver, Expire), new_key()
    old = await _conversation(driver, key)
    await expire.expire(key, TTL)
    await wait_until_gone(driver, key, old)
    async with nothing_stored(driver, key, "an append of the expired epoch"):
        await driver.append(key, records(b"late"), epoch=old.epoch)
    async with nothing_stored(driver, key, "a commit of the expired revision"):
        await driver.commit(key, b"late", revision=old.revision)
    appended = await append_numbers(driver, key, [0])
    log = await state(driver, key)
    same((appended.position, log.head, list(log.bodies)), (0, None, numbers([0])), "the new conversation")
    holds(log.epoch not in ("", old.epoch), f"the new conversation has the epoch {log.epoch!r}")


@check("expire")
async def new_head(driver: Driver) -> None:
    """A commit under an expired key begins a new conversation, and is kept."""
    expire, key = need(driver, Expire), new_key()
    old = await _conversation(driver, key)
    await expire.expire(key, TTL)
    await wait_until_gone(driver, key, old)
    revision = await driver.commit(key, b"new", revision="")
    log = await state(driver, key)
    same((log.end, log.head, log.revision), (0, b"new", revision), "the new conversation")
    await append_numbers(driver, key, [0])
    log = await state(driver, key)
    same((log.head, list(log.bodies)), (b"new", numbers([0])), "the new conversation after an append")


@check("expire")
async def last_word(driver: Driver) -> None:
    """The last `expire` counts, be it for longer or shorter; None means never."""
    expire = need(driver, Expire)
    longer, never, shorter = new_key(), new_key(), new_key()
    before = {key: await _conversation(driver, key) for key in (longer, never, shorter)}
    for key, first, last in ((longer, 1.0, 600.0), (never, 1.0, None), (shorter, 600.0, 1.0)):
        await expire.expire(key, first)
        same(await expire.expire(key, last), True, "the answer of a second expire")
    await wait_until_gone(driver, shorter, before[shorter])
    for key in (longer, never):
        same(await state(driver, key), before[key], "a conversation that lives on")


@check("expire")
async def unknown_key(driver: Driver) -> None:
    """Expire tells whether there is a conversation, and makes none; an impossible key is refused."""
    expire, key = need(driver, Expire), new_key()
    for ttl in (60, None):
        same(await expire.expire(key, ttl), False, "the answer of expire for an unknown key")
    same(await state(driver, key), Log(), "the key after it")
    for impossible in IMPOSSIBLE:
        with refused(FormatError, f"expire of the key {impossible[:8]!r}"):
            await expire.expire(impossible, 60)


async def _conversation(driver: Driver, key: str) -> Log:
    await append_numbers(driver, key, range(3))
    await driver.commit(key, b"head", revision=(await driver.load(key)).revision)
    return await state(driver, key)

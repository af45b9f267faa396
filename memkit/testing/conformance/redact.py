"""The capability `Redact`: stored bytes are overwritten, all or none."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from memkit.driver import Driver, Redact, Trim
from memkit.errors import ConflictError, FormatError
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
)


@check("redact")
async def overwrites(driver: Driver) -> None:
    """A redaction puts other bytes, of any length, at the given positions, and changes nothing else."""
    redact, key = need(driver, Redact), new_key()
    await append_numbers(driver, key, range(4))
    await append_numbers(driver, key, [4])
    await driver.commit(key, b"head", revision=(await driver.load(key)).revision)
    before = await state(driver, key)
    await redact.redact(key, {}, epoch=before.epoch)
    same(await state(driver, key), before, "the log after a redaction of nothing")
    new = {1: b"", 2: b"\xff\x00 no JSON, and longer than what was here before", 4: b'{"n":0}'}
    await redact.redact(key, new, epoch=before.epoch)
    bodies = tuple(new.get(at, body) for at, body in enumerate(before.bodies))
    same(await state(driver, key), msgspec.structs.replace(before, bodies=bodies), "the log after it")
    same((await append_numbers(driver, key, [5])).position, 5, "the position of the next append")


@check("redact")
async def gone_for_good(driver: Driver) -> None:
    """The old bytes are not returned any more, not even when the old record is appended once more."""
    redact, key = need(driver, Redact), new_key()
    secret = records(b'{"n":"secret"}')
    epoch = (await driver.append(key, secret)).epoch
    await append_numbers(driver, key, [1])
    await redact.redact(key, {0: b"{}"}, epoch=epoch)
    with suppress(ConflictError):
        await driver.append(key, secret)
    same(list((await state(driver, key)).bodies), [b"{}", *numbers([1])], "the log after all")


@check("redact")
async def stale_epoch(driver: Driver) -> None:
    """A redaction of another epoch is a conflict and changes nothing."""
    redact, key = need(driver, Redact), new_key()
    old = (await append_numbers(driver, key, range(2))).epoch
    for wrong in ("", "another"):
        async with nothing_stored(driver, key, f"a redaction with epoch={wrong!r}"):
            await redact.redact(key, {0: b"x"}, epoch=wrong)
    await driver.delete(key)
    await append_numbers(driver, key, range(2))
    async with nothing_stored(driver, key, "a redaction of the deleted epoch"):
        await redact.redact(key, {0: b"x"}, epoch=old)


@check("redact")
async def all_or_none(driver: Driver) -> None:
    """A redaction with a position that is not in the log is a conflict and changes nothing at all."""
    redact, key = need(driver, Redact), new_key()
    epoch = (await append_numbers(driver, key, range(4))).epoch
    for position in (4, 100, -1):
        async with nothing_stored(driver, key, f"a redaction of the positions 2, 3 and {position}"):
            await redact.redact(key, {2: b"x", 3: b"y", position: b"z"}, epoch=epoch)


@check("redact")
async def trimmed(driver: Driver) -> None:
    """Positions that were trimmed are not in the log any more, and those that stay keep their number."""
    redact, key = need(driver, Redact), new_key()
    epoch = (await append_numbers(driver, key, range(4))).epoch
    await need(driver, Trim).trim(key, 2)
    for position in (0, 1):
        async with nothing_stored(driver, key, f"a redaction of the positions 2 and {position} from base 2"):
            await redact.redact(key, {2: b"x", position: b"z"}, epoch=epoch)
    await redact.redact(key, {3: b"x"}, epoch=epoch)
    same(list((await state(driver, key)).bodies), [*numbers([2]), b"x"], "the log after a redaction of 3")


@check("redact")
async def unknown_key(driver: Driver) -> None:
    """An unknown key has no positions to redact, and stays unknown; an impossible key is refused."""
    redact, key = need(driver, Redact), new_key()
    async with nothing_stored(driver, key, "a redaction of an unknown key"):
        await redact.redact(key, {0: b"x"}, epoch="")
    holds((await driver.load(key)).epoch == "", "the redaction made the key known")
    for impossible in IMPOSSIBLE:
        with refused(FormatError, f"redact of the key {impossible[:8]!r}"):
            await redact.redact(impossible, {0: b"x"}, epoch="")

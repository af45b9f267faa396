"""Load by the rules of a slice."""

from __future__ import annotations

from typing import Final

from memkit.driver import Driver, Trim
from memkit.testing.conformance.check import check, need
from memkit.testing.conformance.tools import append_numbers, holds, new_key, numbers, same

LENGTH: Final = 7
BOUNDS: Final = (-100, -8, -7, -6, -4, -1, 0, 1, 2, 3, 4, 6, 7, 8, 100)


@check("slices")
async def whole_log(driver: Driver) -> None:
    """A slice of the log is the same slice of a sequence; a short one comes whole."""
    key = new_key()
    await append_numbers(driver, key, range(LENGTH))
    await _compare(driver, key, base=0)


@check("slices")
async def trimmed_log(driver: Driver) -> None:
    """After a trim positions are what they were, and slices that lie before the base are empty."""
    trim = need(driver, Trim)
    for base in (1, 3, LENGTH):
        key = new_key()
        await append_numbers(driver, key, range(LENGTH))
        await trim.trim(key, base)
        await _compare(driver, key, base=base)


async def _compare(driver: Driver, key: str, *, base: int) -> None:
    for start in BOUNDS:
        for stop in (*BOUNDS, None):
            what = f"load({start}, {stop}) of the log [{base}, {LENGTH})"
            log = await driver.load(key, start, stop)
            expected = [at for at in range(LENGTH)[start:stop] if at >= base]
            same((log.base, log.end), (base, LENGTH), f"base and end in {what}")
            same(list(log.bodies), numbers(expected), what)
            if expected:
                same(log.start, expected[0], f"start in {what}")
            holds(log.base <= log.start <= log.end, f"start {log.start} is outside in {what}")

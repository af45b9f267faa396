"""Large records and long logs: an answer is bounded in bytes, and pages reach all of it."""

from __future__ import annotations

from typing import Final

from memkit.driver import Driver
from memkit.testing.conformance.check import check
from memkit.testing.conformance.tools import all_bodies, append_numbers, holds, new_key, records, same

COUNT: Final = 300
SIZE: Final = 100_000


@check("large")
async def record(driver: Driver) -> None:
    """A record of 8 MB comes back byte for byte, and so does a head of 1 MB."""
    key = new_key()
    body = b'{"v":1,"input":"' + bytes(range(32, 34)) * (4 << 20) + b'"}'
    await append_numbers(driver, key, [0])
    same((await driver.append(key, records(body))).position, 1, "the position of a large record")
    await append_numbers(driver, key, [2])
    same(list((await driver.load(key, 1, 2)).bodies) == [body], True, "the large record as it was")
    await driver.commit(key, body[: 1 << 20], revision=(await driver.load(key, -1)).revision)
    same((await driver.load(key, -1)).head == body[: 1 << 20], True, "the large head as it was")


@check("large")
async def pages(driver: Driver) -> None:
    """A load may return fewer entries than asked, from the front, at least one; following pages reach all."""
    key = new_key()
    bodies = [b'{"n":%d,"text":"%b"}' % (n, b"x" * SIZE) for n in range(COUNT)]
    for start in range(0, COUNT, 10):
        await driver.append(key, records(*bodies[start : start + 10]), since=start)
    for start, stop in ((0, None), (-200, None), (0, 150), (-1, None), (100, 101)):
        log = await driver.load(key, start, stop)
        asked = range(COUNT)[start:stop]
        what = f"load({start}, {stop}) of {COUNT} entries of {SIZE} bytes"
        holds(len(log.bodies) > 0, f"{what} is empty")
        holds(log.start >= asked.start, f"{what} starts at {log.start}")
        same(log.start + len(log.bodies), asked.stop, f"where {what} ends")
        same(list(log.bodies) == bodies[log.start : asked.stop], True, f"{what} has the right entries")
    same(await all_bodies(driver, key) == bodies, True, "all pages together are the log")


@check("large")
async def many_records(driver: Driver) -> None:
    """A log of thousands of small records is read from any position."""
    key, count = new_key(), 3000
    for start in range(0, count, 300):
        await append_numbers(driver, key, range(start, start + 300), since=start)
    for start, stop in ((0, 3), (1499, 1502), (-3, None), (2990, None), (299, 301)):
        log = await driver.load(key, start, stop)
        expected = range(count)[start:stop]
        same(log.start, expected.start, f"start in load({start}, {stop})")
        same([b'{"n":%d}' % n for n in expected], list(log.bodies), f"load({start}, {stop})")
    same(len(await all_bodies(driver, key)), count, "the number of entries")

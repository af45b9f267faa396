"""Append and load: the order of entries, their bytes, and what a reader sees."""

from __future__ import annotations

import random
from itertools import cycle
from typing import Final

from anyio import create_task_group
from anyio.lowlevel import checkpoint

from memkit.driver import Appended, Driver, Log
from memkit.testing.conformance.check import OpenDriver, check, check_store, need_promise, opened
from memkit.testing.conformance.tools import (
    append_numbers,
    holds,
    new_key,
    numbers,
    records,
    same,
    state,
)

BODIES: Final = (
    b'{"v":1,"kind":"run"}',
    '{"text":"caf\u00e9 \u65e5\u672c \U0001f511"}'.encode(),
    b'{\n  "raw": "newlines",\r\n\t"between": "tokens"\n}',
    b'{"a":1}\n{"b":2}\n',
    b'{"broken": ',
    b'"a string"',
    b"[1, 2]",
    b"null",
    b"not JSON at all",
    b"",
    b" ",
    b"\n",
    b"\x00",
    b"\x00\x01\x02\x00",
    b"\xff",
    b'{"text":"\xff\xfe"}',
    b'{"lone":"\\ud800"}',
    b"\xed\xa0\x80",
    b"\x1f\x8b\x08compressed",
    bytes(range(256)),
)
"""Bodies that a careless store changes: raw newlines, no JSON, no text, nothing at all."""


@check("log")
async def unknown_key(driver: Driver) -> None:
    """An unknown key is an empty log, with "" as epoch and revision; reading it does not make it known."""
    key = new_key()
    for start, stop in ((-200, None), (0, None), (0, 10), (5, None), (-1, -1)):
        log = await driver.load(key, start, stop)
        same((log.epoch, log.revision, log.head), ("", "", None), f"load({start}, {stop})")
        same((log.base, log.end, len(log.bodies)), (0, 0, 0), f"load({start}, {stop})")
    same(await driver.delete(key), False, "delete of an unknown key")


@check("log")
async def contiguous_positions(driver: Driver) -> None:
    """The records of an append stand one after the other, from the end of the log on, from position 0."""
    key = new_key()
    first = await append_numbers(driver, key, [0])
    holds(first.epoch != "", "a conversation that exists has no epoch")
    same(first, Appended(0, 1, first.epoch), "the first append")
    same(await append_numbers(driver, key, [1, 2, 3]), Appended(1, 4, first.epoch), "a batch of three")
    same(await append_numbers(driver, key, [4]), Appended(4, 5, first.epoch), "the last append")
    log = await state(driver, key)
    same((log.epoch, log.base, log.start, log.end), (first.epoch, 0, 0, 5), "epoch, base, start, end as loaded")
    same(list(log.bodies), numbers(range(5)), "the entries as loaded")


@check("log")
async def exact_bodies(driver: Driver) -> None:
    """Bodies come back byte for byte, whatever is in them."""
    big = random.Random(1).randbytes(1 << 20)  # noqa: S311
    alone, together = new_key(), new_key()
    for body in (*BODIES, big):
        await driver.append(alone, records(body))
    await driver.append(together, records(*BODIES, big))
    for key, how in ((alone, "one by one"), (together, "as one batch")):
        log = await state(driver, key)
        same(log.end, len(BODIES) + 1, f"the end of the log, appended {how}")
        for actual, body in zip(reversed(log.bodies), (big, *reversed(BODIES)), strict=False):
            same(actual, body, f"a body of {len(body)} bytes, appended {how}")


@check("log")
async def newest_by_default(driver: Driver) -> None:
    """Without a slice, load returns the newest 200 entries."""
    key = new_key()
    await append_numbers(driver, key, range(250))
    log = await driver.load(key)
    same((log.base, log.start, log.end), (0, 50, 250), "base, start, end")
    same(list(log.bodies), numbers(range(50, 250)), "the entries")


@check("log")
async def keys_apart(driver: Driver) -> None:
    """A key has a log, an epoch and a head of its own; the same ids may stand in many logs."""
    one, other = new_key(), new_key()
    batch = records(*numbers(range(2)))
    epochs = {(await driver.append(key, batch)).epoch for key in (one, other)}
    same(len(epochs), 2, "the number of epochs of two conversations")
    await driver.commit(one, b"head", revision=(await state(driver, one)).revision)
    await driver.delete(one)
    log = await state(driver, other)
    same((list(log.bodies), log.head), (numbers(range(2)), None), "the other conversation")


@check_store("log")
async def one_moment(open_driver: OpenDriver) -> None:
    """A load returns head and entries of one moment, while others append and commit."""
    key, rounds = new_key(), 60
    done: list[bool] = []

    async def write(driver: Driver) -> None:
        await append_numbers(driver, key, [0])
        revision = (await driver.load(key)).revision
        for n in range(1, rounds):
            revision = await driver.commit(key, b"%d" % n, revision=revision)
            await append_numbers(driver, key, [n])
        done.append(True)

    async def read(driver: Driver) -> None:
        for turns in cycle(range(1, 4)):
            if done:
                break
            check_moment(await driver.load(key))
            for _ in range(turns):  # out of step with the writer; at least one, since a driver may never wait
                await checkpoint()

    async with opened(open_driver) as one, opened(open_driver) as other:
        need_promise(one, "one moment")
        async with create_task_group() as tasks:
            tasks.start_soon(write, one)
            tasks.start_soon(read, one)
            tasks.start_soon(read, other)


def check_moment(log: Log) -> None:
    """Demand that the head, which counts the entries, was committed no sooner and no later than these."""
    counted = int(log.head or b"0")
    holds(
        log.end - 1 <= counted <= log.end,
        f"the head was committed at end {counted}, the entries end at {log.end}",
    )
    same(list(log.bodies), numbers(range(log.start, log.end)), "the entries")

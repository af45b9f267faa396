"""Processes that append to one file conversation and are killed; run by `test_chaos.py`, not by itself.

A writer keeps its next record, with the end of the log as of when it was made, in a file beside the store, as
a program must that wants to survive: killed and started again, it repeats that record before the next one.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import anyio._backends._asyncio  # imported before the fork: a killed writer must begin anew at once

from memkit.driver import Record
from memkit.drivers.file import FileDriver
from memkit.errors import ConflictError, DriverError

KEY = "chaos"


def record_id(writer: int, number: int) -> str:
    return f"w{writer}-{number:05}"


def body(writer: int, number: int) -> bytes:
    return json.dumps({"writer": writer, "number": number, "text": "x" * (7919 * number % 900)}).encode()


async def write(folder: Path, writer: int, count: int) -> None:
    """Append `count` records in order, beginning with the one that is not acknowledged yet."""
    driver = FileDriver(folder)
    journal = folder / f"writer-{writer}.json"
    number, since = json.loads(journal.read_text()) if journal.exists() else (0, 0)
    while number < count:
        record = Record(record_id(writer, number), body(writer, number))
        try:
            appended = await driver.append(KEY, [record], since=since)
        except DriverError as error:
            if not error.retryable:
                raise
            continue
        number, since = number + 1, appended.end
        note = journal.with_suffix(f".{os.getpid()}")
        note.write_text(json.dumps([number, since]))
        note.replace(journal)


async def trim(folder: Path, keep: int) -> None:
    """Trim to the newest `keep` entries again and again, until killed."""
    driver = FileDriver(folder)
    while True:
        log = await driver.load(KEY, 0, 0)
        if log.end - log.base > 2 * keep:
            await driver.trim(KEY, log.end - keep, epoch=log.epoch)
        await anyio.sleep(0.02)


async def commit(folder: Path) -> None:
    """Commit heads that name the end of the log as of then, again and again, until killed."""
    driver = FileDriver(folder)
    while True:
        log = await driver.load(KEY, 0, 0)
        if log.epoch:
            head = json.dumps({"seen": log.end, "pad": "h" * (log.end % 300)}).encode()
            with suppress(ConflictError):  # someone was quicker
                await driver.commit(KEY, head, revision=log.revision)
        await anyio.sleep(0.005)


def work(role: str, folder: Path, *numbers: int) -> None:
    """Do a job in a process of its own."""
    jobs = {"write": write, "trim": trim, "commit": commit}
    anyio.run(partial(jobs[role], folder, *numbers))

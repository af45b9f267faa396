"""Processes that write to one database and fork or are killed; run by the tests of SQLite, not by themselves.

Each prints, or keeps in a file, the ids of what was acknowledged.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio._backends._asyncio  # imported before the fork: a killed writer must begin anew at once

from memkit.driver import Record
from memkit.drivers.sqlite import SqliteDriver
from memkit.drivers.sqlite.forks import no_fork
from memkit.errors import DriverError

KEY = "chaos"


async def append(driver: SqliteDriver, *names: str) -> None:
    """Append records one after the other, and print the id of each when it is stored."""
    for name in names:
        await driver.append(KEY, [Record(name, b'{"name":"%b"}' % name.encode())])
        os.write(1, f"{name}\n".encode())


def forked(child: Callable[[], None]) -> int:
    """Do something in a child, and return its number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        child()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait(pid: int) -> None:
    """Wait for a child, and demand that it has ended well."""
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"a child has ended with {status}"


def names(who: str, count: int) -> list[str]:
    """Return ids."""
    return [f"{who}-{number}" for number in range(count)]


def fork(path: str) -> None:
    """Fork with connections open, and close them while the child writes."""
    driver = SqliteDriver(path)

    async def use() -> None:
        await append(driver, *names("parent", 10))
        await driver.load(KEY)

    anyio.run(use)
    (is_open, opened), (is_closed, closed) = os.pipe(), os.pipe()

    def child() -> None:
        anyio.run(append, driver, *names("child", 10))
        os.write(opened, b"x")
        os.read(is_closed, 1)
        anyio.run(append, driver, *names("later", 10))

    pid = forked(child)
    os.read(is_open, 1)
    anyio.run(driver.aclose)
    os.write(closed, b"x")
    wait(pid)


def fork_busy(path: str) -> None:
    """Fork again and again while another thread writes and reads."""
    driver, over = SqliteDriver(path), threading.Event()

    async def use() -> None:
        number = 0
        while not over.is_set():
            await append(driver, f"parent-{number}")
            await driver.load(KEY, -50)
            number += 1

    async def in_child(number: int) -> None:
        async with anyio.create_task_group() as tasks:
            for who in range(3):
                tasks.start_soon(append, driver, *names(f"child-{number}-{who}", 10))

    thread = threading.Thread(target=anyio.run, args=(use,))
    thread.start()
    for pid in [forked(lambda number=number: anyio.run(in_child, number)) for number in range(5)]:  # type: ignore[misc]
        wait(pid)
    over.set()
    thread.join()


def fork_memory(path: str) -> None:
    """Fork with a database in memory, and go on in both."""
    driver = SqliteDriver(path)

    async def end(name: str, *more: str) -> None:
        for number in range(len(more)):
            await driver.append(KEY, [Record(more[number], b"{}")])
        log = await driver.load(KEY)
        os.write(1, f"{name} {log.end}\n".encode())

    anyio.run(end, "parent", "a", "b", "c")
    wait(forked(lambda: anyio.run(end, "child", "d")))


def fork_crowded(_: str) -> None:
    """Fork while there is always a thread that uses SQLite."""
    over = threading.Event()

    def use() -> None:
        while not over.is_set():
            with no_fork():
                time.sleep(0.02)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
        time.sleep(0.003)
    wait(forked(lambda: None))
    over.set()
    for thread in threads:
        thread.join()
    os.write(1, b"forked\n")


async def write(path: Path, writer: int, count: int, durable: bool) -> None:
    """Append `count` records, four at once, beginning with those that are not acknowledged yet.

    Two files beside the database tell what is acknowledged, and the end of the log as of when each was made.
    """
    driver = SqliteDriver(path, durable=durable)
    done, made = Note(path.with_name(f"done-{writer}")), Note(path.with_name(f"made-{writer}"))
    waiting = [name for name in names(f"w{writer}", count) if name not in done.lines]

    async def work() -> None:
        while waiting:
            name = waiting.pop(0)
            if name not in made.lines:
                made.add(name, (await driver.load(KEY, 0, 0)).end)
            while True:
                try:
                    await driver.append(KEY, [Record(name, body(name))], since=made.lines[name])
                    break
                except DriverError as error:
                    if not error.retryable:
                        raise
            done.add(name, 0)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(work)


class Note:
    """Names with a number each, in a file that survives who writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text() if path.exists() else ""
        self.lines = {name: int(number) for name, number in map(str.split, text.splitlines())}

    def add(self, name: str, number: int) -> None:
        """Add a name."""
        self.lines[name] = number
        with self._path.open("a") as file:
            file.write(f"{name} {number}\n")


def body(name: str) -> bytes:
    """Return the body of a record."""
    return b'{"name":"%b"}' % (name.encode() * 50)


def work(path: Path, writer: int, count: int, durable: bool) -> None:
    """Write in a process of its own."""
    anyio.run(write, path, writer, count, durable)


if __name__ == "__main__":
    {"fork": fork, "fork-busy": fork_busy, "fork-memory": fork_memory, "fork-crowded": fork_crowded}[sys.argv[1]](
        sys.argv[2]
    )

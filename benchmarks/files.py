"""Appending to files, loading from them, opening a conversation and building a prompt."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import msgspec
from anyio import to_thread

from benchmarks.corpus import runs
from benchmarks.measure import Row, interleaved_async, row
from memkit import FileDriver, JsonCodec, Memory, Record, Run, everything

SIZES = (10, 100, 1_000, 10_000)


async def append(*, quick: bool) -> list[Row]:
    """Return the rows of appends, not durable and durable."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="memkit-", dir=Path.cwd()) as folder:
        for durable in (False, True):
            driver = FileDriver(folder, durable=durable)
            candidates = {
                f"{size}": _appender(driver, f"{durable}-{size}", await _filled(driver, f"{durable}-{size}", size))
                for size in SIZES
            }
            line = JsonCodec().encode(runs(1)[0]) + b"\n"
            bare = partial(_bare, os.path.join(folder, f"bare-{durable}"), line, durable)
            limit = partial(to_thread.run_sync, bare)
            timings = await interleaved_async({**candidates, "limit": limit}, rounds=5 if quick else 15, calls=60)
            name = "append, durable" if durable else "append"
            rows += [
                row(f"{name}, {size:,} runs held", timings[f"{size}"], timings["limit"], 1.2) for size in SIZES
            ]
            rows.append(row(f"{name}, {SIZES[-1]:,} runs held against 10", timings["10000"], timings["10"], 1.1))
    return rows


async def load(*, quick: bool) -> list[Row]:
    """Return the rows of loads: the newest 50, all, and open-and-prompt."""
    rows: list[Row] = []
    rounds = 5 if quick else 15
    with tempfile.TemporaryDirectory(prefix="memkit-") as folder:
        driver = FileDriver(folder)
        for size in (*SIZES, 100_000):
            await _filled(driver, f"{size}", size)
        tails = {f"{size}": partial(driver.load, f"{size}", -50) for size in SIZES if size >= 50}
        timings = await interleaved_async(tails, rounds=rounds, calls=40)
        rows.append(row("load the newest 50 of 10,000 against of 100", timings["10000"], timings["100"], 1.1))
        prompts = {f"{size}": partial(_prompt, driver, f"{size}") for size in (100, 1_000, 10_000, 100_000)}
        timings = await interleaved_async(prompts, rounds=rounds, calls=20)
        for size in (1_000, 10_000, 100_000):
            what = f"open and build a prompt, {size:,} runs against 100"
            rows.append(row(what, timings[f"{size}"], timings["100"], 1.2))
        for size in SIZES:
            path = os.path.join(folder, f"lines-{size}")
            await to_thread.run_sync(_write_lines, path, size)
            candidates = {
                "memkit": partial(_open_whole, driver, f"{size}"),
                "limit": partial(to_thread.run_sync, partial(_read_lines, path)),
            }
            timings = await interleaved_async(candidates, rounds=rounds, calls=3)
            found = row(f"load all of {size:,} runs", timings["memkit"], timings["limit"], 1.5)
            if size < SIZES[-1]:
                found.target, found.reached = "", None  # the target is for the longest
            rows.append(found)
    return rows


async def _filled(driver: FileDriver, key: str, size: int) -> int:
    codec = JsonCodec()
    records = [Record(run.id, codec.encode(run)) for run in runs(size)]
    # One line a run, as real conversations have it, without a hop for each: through the synchronous part.
    file = driver._file(key)  # noqa: SLF001
    for end, record in enumerate(records):
        file.append([record], end, None, None)
    return size


def _appender(driver: FileDriver, key: str, size: int) -> Callable[[], object]:
    numbers = count(size)
    body = JsonCodec().encode(runs(1)[0])

    async def append_one() -> None:
        end = next(numbers)
        await driver.append(key, [Record(f"{end:028x}", body)], since=end)

    return append_one


def _bare(path: str, line: bytes, durable: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(fd, line)
    if durable:
        os.fdatasync(fd)
    os.close(fd)


async def _prompt(driver: FileDriver, key: str) -> None:
    async with Memory(driver, key) as memory:
        memory.messages("What is my name?")


async def _open_whole(driver: FileDriver, key: str) -> None:
    async with Memory(driver, key, strategy=everything) as memory:
        assert len(memory.view().runs) == int(key)


def _write_lines(path: str, size: int) -> None:
    Path(path).write_bytes(b"\n".join(msgspec.json.encode(run) for run in runs(size)))


def _read_lines(path: str) -> None:
    decode = _line.decode
    runs_read = [decode(line) for line in Path(path).read_bytes().split(b"\n")]
    assert runs_read


_line = msgspec.json.Decoder(Run)

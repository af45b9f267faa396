"""Appending to files, loading from them, opening a conversation and building a prompt."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import msgspec
from anyio import to_thread

from benchmarks.corpus import SEED, runs
from benchmarks.measure import Row, Sitting, interleaved_async, row
from benchmarks.peers import STORES
from benchmarks.stores import (
    DURABLE_FILE,
    DURABLE_SQLITE,
    OUR_STORES,
    absent_rows,
    compared,
    fill,
    measure,
    present,
)
from memkit import FileDriver, JsonCodec, Memory, Record, Run, everything

SIZES = (10, 100, 1_000, 10_000)
APPENDED_TO = (*SIZES, 100_000)
DURABLE = (DURABLE_FILE, DURABLE_SQLITE)


async def append(sitting: Sitting) -> list[Row]:
    """Return the rows of appends, not durable and durable, and of whole stores beside peers."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="memkit-", dir=Path.cwd()) as folder:
        for durable in (False, True):
            name = "append, durable" if durable else "append"
            driver = FileDriver(folder, durable=durable)
            candidates: dict[str, Callable[[], Awaitable[object]]] = {}
            for size in APPENDED_TO:
                sitting.step(f"{name}: storing {size:,} runs")
                await fill(driver, f"{durable}-{size}", runs(size, SEED, sitting.data))
                candidates[f"{size}"] = _appender(driver, f"{durable}-{size}", size)
            sitting.step(name)
            line = JsonCodec().encode(runs(1)[0]) + b"\n"
            bare = partial(_bare, os.path.join(folder, f"bare-{durable}"), line, durable)
            candidates["limit"] = partial(to_thread.run_sync, bare)
            timings = await interleaved_async(candidates, rounds=5 if sitting.quick else 15, calls=60)
            rows += [
                row(f"{name}, {size:,} runs held", timings[f"{size}"], timings["limit"], 1.2)
                for size in APPENDED_TO
            ]
            longest = APPENDED_TO[-1]
            what = f"{name}, {longest:,} runs held against 10"
            rows.append(row(what, timings[f"{longest}"], timings["10"], 1.1))
    return [*rows, *(await _appends_beside(sitting) if sitting.peers else [])]


async def _appends_beside(sitting: Sitting) -> list[Row]:
    asked = (*OUR_STORES, *DURABLE, *STORES)
    found = await measure(lambda held: held.append, present(asked), SIZES, sitting, copies=_conversations)
    rows: list[Row] = []
    for store in (*OUR_STORES, *DURABLE):
        what = "append a run, durable" if store.is_durable else "append a run"
        as_durable = [one for one in STORES if one.is_durable == store.is_durable]
        rows += compared(what, store, found, SIZES, as_durable)
    return [*rows, *absent_rows(asked)]


def _conversations(held: int) -> int:
    """Return how many short histories take turns, so that none grows much: some peers write all of it anew."""
    return max(1, 1_000 // max(50, held))


async def load(sitting: Sitting) -> list[Row]:
    """Return the rows of loads, of the newest 50 and of all, and of whole stores beside peers."""
    rows: list[Row] = []
    rounds = 5 if sitting.quick else 15
    with tempfile.TemporaryDirectory(prefix="memkit-") as folder:
        driver = FileDriver(folder)
        for size in SIZES:
            sitting.step(f"storing {size:,} runs")
            await fill(driver, f"{size}", runs(size, SEED, sitting.data))
        sitting.step("the newest 50")
        tails = {f"{size}": partial(driver.load, f"{size}", -50) for size in SIZES if size >= 50}
        timings = await interleaved_async(tails, rounds=rounds, calls=40)
        rows.append(row("load the newest 50 of 10,000 against of 100", timings["10000"], timings["100"], 1.1))
        for size in SIZES:
            sitting.step(f"all of {size:,} runs")
            path = os.path.join(folder, f"lines-{size}")
            await to_thread.run_sync(_write_lines, path, runs(size, SEED, sitting.data))
            candidates = {
                "memkit": partial(_open_whole, driver, f"{size}"),
                "limit": partial(to_thread.run_sync, partial(_read_lines, path)),
            }
            timings = await interleaved_async(candidates, rounds=rounds, calls=3)
            at_most = 1.5 if size == SIZES[-1] else None  # the target is for the longest
            rows.append(row(f"load all of {size:,} runs", timings["memkit"], timings["limit"], at_most))
    return [*rows, *(await _loads_beside(sitting) if sitting.peers else [])]


async def _loads_beside(sitting: Sitting) -> list[Row]:
    asked = (*OUR_STORES, *STORES)
    found = await measure(lambda held: held.load_all, present(asked), SIZES, sitting, calls=5)
    rows = [row for store in OUR_STORES for row in compared("load all runs", store, found, SIZES)]
    found = await measure(lambda held: held.load_last, present(asked), SIZES, sitting)
    rows += [row for store in OUR_STORES for row in compared("load the newest 50", store, found, SIZES)]
    return [*rows, *absent_rows(asked)]


def _appender(driver: FileDriver, key: str, size: int) -> Callable[[], Awaitable[object]]:
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


async def _open_whole(driver: FileDriver, key: str) -> None:
    async with Memory(driver, key, strategy=everything) as memory:
        assert len(memory.view().runs) == int(key)


def _write_lines(path: str, items: Sequence[Run]) -> None:
    Path(path).write_bytes(b"\n".join(msgspec.json.encode(run) for run in items))


def _read_lines(path: str) -> None:
    decode = _line.decode
    runs_read = [decode(line) for line in Path(path).read_bytes().split(b"\n")]
    assert runs_read


_line = msgspec.json.Decoder(Run)

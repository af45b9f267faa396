"""Writers killed at any moment, readers and trimmers beside them: nothing acknowledged is lost or doubled."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import anyio
import pytest

from memkit.driver import Log
from memkit.drivers.file import FileDriver
from tests.chaos import KEY, body, record_id, work

# Forked from a process that has imported everything: a writer that is killed every 50 ms must begin at once.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.chaos"])


def _start(role: str, folder: Path, *numbers: int) -> BaseProcess:
    process = _processes.Process(target=work, args=(role, folder, *numbers), daemon=True)
    process.start()
    return process


class _Reader:
    """Loads slices, checks that each is of one moment, and keeps every entry that it ever saw."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[int, int]] = {}
        self.loads = 0

    def check(self, log: Log) -> None:
        self.loads += 1
        assert log.base <= log.start <= log.end
        for position, raw in enumerate(log.bodies, log.start):
            item = json.loads(raw)
            seen = item["writer"], item["number"]
            assert raw == body(*seen)
            assert self.entries.setdefault(position, seen) == seen, f"entry {position} changed"
        if log.head is not None:
            assert json.loads(log.head)["seen"] <= log.end, "a head from the future"


async def _run(folder: Path, *, writers: int, count: int, loads: int, trims: bool) -> tuple[_Reader, int]:
    """Run the writers to their end, killing one every 50 ms; return what a reader saw, and the kills."""
    driver, reader, rng = FileDriver(folder), _Reader(), random.Random(5)
    running = {writer: _start("write", folder, writer, count) for writer in range(writers)}
    others = [_start("commit", folder), *([_start("trim", folder, 2_000)] if trims else [])]
    kills, grown_to, next_kill = 0, 0, time.monotonic() + 0.2
    try:
        while running or reader.loads < loads:
            # Overlapping slices from the end: no entry can be trimmed before it was seen.
            log = await driver.load(KEY, -40 if reader.loads % 50 else -1_900)
            reader.check(log)
            if time.monotonic() < next_kill:
                continue
            next_kill = time.monotonic() + 0.05
            for writer, process in list(running.items()):
                code = process.exitcode
                if code == 0:
                    del running[writer]
                elif code is not None:
                    running[writer] = _start("write", folder, writer, count)
            if running and log.end > grown_to:  # a busy machine must not be kept from getting anywhere
                running[rng.choice(list(running))].kill()
                kills, grown_to = kills + 1, log.end
            assert all(process.is_alive() for process in others), "a trimmer or committer has failed"
    finally:
        for process in [*running.values(), *others]:
            process.kill()
            process.join()
    return reader, kills


def _check(reader: _Reader, end: int, *, writers: int, count: int) -> None:
    assert end == writers * count, f"{end} entries for {writers * count} appends: something was doubled or lost"
    seen = [reader.entries[position] for position in sorted(reader.entries)]
    assert len(set(seen)) == len(seen), "an entry was stored twice"
    for writer in range(writers):
        numbers = [number for who, number in seen if who == writer]
        assert numbers == sorted(numbers), f"writer {writer} is out of order"


@pytest.mark.parametrize(
    ("writers", "count", "loads"),
    [
        pytest.param(4, 150, 500, id="short"),
        pytest.param(8, 3_000, 100_000, id="long", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
@pytest.mark.parametrize("trims", [False, True], ids=["whole", "trimmed"])
def test_killed_writers_lose_and_double_nothing(
    tmp_path: Path, writers: int, count: int, loads: int, trims: bool
) -> None:
    reader, kills = anyio.run(lambda: _run(tmp_path, writers=writers, count=count, loads=loads, trims=trims))
    log = anyio.run(lambda: FileDriver(tmp_path).load(KEY, -100))
    _check(reader, log.end, writers=writers, count=count)
    assert kills > 0
    if not trims:
        everything = anyio.run(lambda: _all(tmp_path, log.end))
        assert set(everything) == {record_id(w, n) for w in range(writers) for n in range(count)}
    print(f"{kills} kills, {reader.loads:,} loads of one moment, {log.end:,} entries, base {log.base:,}")


async def _all(folder: Path, end: int) -> list[str]:
    driver = FileDriver(folder)
    found: list[str] = []
    for start in range(0, end, 500):
        log = await driver.load(KEY, start, start + 500)
        items = [json.loads(raw) for raw in log.bodies]
        found += [record_id(item["writer"], item["number"]) for item in items]
    return found

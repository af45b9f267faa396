"""What a process pays: memory a run, import time, stalls of the event loop, counting, bytes of a long turn."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from benchmarks.corpus import runs
from benchmarks.measure import Row, readable, timing
from memkit import FileDriver, InMemoryDriver, JsonCodec, Memory, ToolCall, ToolResult, counters, everything
from memkit.testing import CountingDriver
from memkit.tokens import TextCounter, counted

MEGABYTE = 1_000_000


async def memory(*, quick: bool) -> list[Row]:
    """Return the bytes that a run takes beside its texts, counts included."""
    size = 2_000 if quick else 20_000
    counter, codec = counters.toktok("o200k_base"), JsonCodec()
    bodies = [codec.encode(counted(run, counter)) for run in runs(size)]
    codec.decode(bodies[0])
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    held = list(map(codec.decode, bodies))
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    texts = sum(sys.getsizeof(text) for run in held for text in (run.input, run.output))  # type: ignore[union-attr]
    ids = sum(sys.getsizeof(run.id) for run in held)
    each, without_ids = (taken - texts) / size, (taken - texts - ids) / size
    return [
        Row(
            "a run over its texts and id, counts included",
            f"{without_ids:.0f} B",
            "",
            None,
            "at most 250 B",
            without_ids <= 250,
        ),
        Row("the same, its id counted too", f"{each:.0f} B", "", None, "", None),
    ]


async def imports(*, quick: bool) -> list[Row]:
    """Return what `import memkit` takes over a bare interpreter, bytecode compiled beforehand."""
    samples: dict[str, list[float]] = {"pass": [], "import memkit": []}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(5 if quick else 15):
        for code, times in samples.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, env=environment)
            times.append(time.perf_counter() - start)
    seconds = timing(samples["import memkit"]).median - timing(samples["pass"]).median
    return [Row("import memkit", readable(seconds), "", None, "at most 60 ms", seconds <= 0.060)]


async def stalls(*, quick: bool) -> list[Row]:
    """Return the longest time that the event loop stood still during calls that carry much."""
    rows: list[Row] = []
    rounds = 3 if quick else 7
    counter = counters.toktok("o200k_base")
    counter.load()
    with tempfile.TemporaryDirectory(prefix="memkit-") as folder:
        driver = FileDriver(folder)
        async with Memory(driver, "long", counter=counter) as handle:
            await handle.append(*runs(10_000))
            text = "".join(f"{run.input} {run.output} " for run in runs(1_000))[:MEGABYTE]
            for name in ("a", "b", "c"):
                await handle.add(name, text)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "open and read 10,000 runs, three of them of 1 MB": partial(_open, driver),
            "add a run of 1 MB, counted": partial(_add, driver, text, counter),
            "count 5 MB": partial(_count, driver, text * 5, counter),
        }
        idle = [await _longest_stall(partial(anyio.sleep, 0.2)) for _ in range(rounds)]
        for name, call in calls.items():
            stall = timing([await _longest_stall(call) for _ in range(rounds)])
            rows.append(
                Row(
                    f"longest stall: {name}",
                    str(stall),
                    f"idle: {timing(idle)}",
                    None,
                    "at most 10 ms",
                    stall.median <= 0.010,
                )
            )
    return rows


async def turns(*, quick: bool) -> list[Row]:
    """Return the bytes of a turn of 20 tool calls that is stored as it comes, beside those of its parts."""
    del quick
    driver = CountingDriver(InMemoryDriver())
    results = "".join(str(run.output) for run in runs(30))
    parts = 0
    async with Memory(driver, "k") as handle, handle.turn("go", early=True) as turn:
        for number in range(20):
            arguments, result = f'{{"page": {number}}}', results[number * 1_000 : (number + 1) * 1_000]
            turn.step(ToolCall(f"call-{number}", "read", arguments), ToolResult(f"call-{number}", result, "read"))
            parts += len(arguments.encode()) + len(result.encode())
            await turn.save()
        turn.write("done")
    stored = driver.bytes["append"]
    ratio = stored / parts
    return [
        Row(
            "a turn of 20 tool calls, stored as they come",
            f"{stored:,} B",
            f"{parts:,} B",
            ratio,
            "at most 1.5 x",
            ratio <= 1.5,
        )
    ]


async def count(*, quick: bool) -> list[Row]:
    """Return the seconds that a megabyte takes, of real text and of texts made to be slow."""
    rows: list[Row] = []
    texts = {
        "made-up text": "".join(f"{run.input} {run.output} " for run in runs(1_000))[:MEGABYTE],
        "spaces": " " * MEGABYTE,
        "one letter": "a" * MEGABYTE,
        "carets": "^" * MEGABYTE,
        "dashes": "-" * MEGABYTE,
        "lone surrogates": "\ud800" * (MEGABYTE // 3),
    }
    for make in (counters.tiktoken, counters.toktok):
        counter = make("o200k_base")
        counter.load()
        for name, text in texts.items():
            samples: list[float] = []
            for _ in range(2 if quick else 5):
                start = time.perf_counter()
                counter.count(text)
                samples.append(time.perf_counter() - start)
            size = len(text.encode("utf-8", "surrogatepass")) / MEGABYTE
            each = timing([sample / size for sample in samples])
            rows.append(
                Row(f"{make.__name__}, a MB of {name}", str(each), "", None, "at most 1 s", each.median <= 1)
            )
    return rows


async def _longest_stall(call: Callable[[], Awaitable[object]]) -> float:
    worst = 0.0

    async def beat() -> None:
        nonlocal worst
        while True:
            start = time.perf_counter()
            await anyio.sleep(0.001)
            worst = max(worst, time.perf_counter() - start - 0.001)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(beat)
        await anyio.sleep(0.02)
        worst = 0.0
        await call()
        await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    return worst


async def _open(driver: FileDriver) -> None:
    async with Memory(driver, "long", strategy=everything):
        pass


async def _add(driver: FileDriver, text: str, counter: TextCounter) -> None:
    async with Memory(driver, "large", counter=counter) as handle:
        await handle.add("q", text)


async def _count(driver: FileDriver, text: str, counter: TextCounter) -> None:
    async with Memory(driver, "large", counter=counter) as handle:
        await handle.count(text)

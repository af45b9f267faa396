"""What a process pays: memory a run, import time, counting, bytes of a long turn."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, cast

from benchmarks.corpus import SEED, runs
from benchmarks.measure import OURS, Row, Sitting, Timing, beside, shown, timing
from benchmarks.peers import HOLDERS, IMPORTS
from benchmarks.peers.base import ENCODING, is_there, missing
from memkit import InMemoryDriver, JsonCodec, Memory, Run, ToolCall, ToolResult, counters, text_of
from memkit.testing import CountingDriver
from memkit.tokens import counted

T = TypeVar("T")

MEGABYTE = 1_000_000


async def memory(sitting: Sitting) -> list[Row]:
    """Return the bytes that a run takes beside its texts, counts included; of peers, of their messages.

    With its id it is compared to them: an id that they have is in theirs, too.
    """
    items = runs(2_000 if sitting.quick else 20_000, SEED, sitting.data)
    counter, codec = counters.toktok(ENCODING), JsonCodec()
    bodies = [codec.encode(counted(run, counter)) for run in items]
    sitting.step("runs")
    held, taken = _traced(lambda: [cast("Run", codec.decode(body)) for body in bodies])
    texts = sum(sys.getsizeof(text) for run in held for text in (run.input, run.output))
    ids = sum(sys.getsizeof(run.id) for run in held)
    each, without_ids = (taken - texts) / len(items), (taken - texts - ids) / len(items)
    best, others = _of_peers(items, sitting)
    what = "a run over its texts and id, counts included"
    found = Row(what, f"{without_ids:.0f} B", "", None, "at most 250 B", without_ids <= 250)
    whole = shown("the same, its id counted too", f"{each:.0f} B")
    if best:
        whole.peer, whole.peer_ratio = f"{best[0]}: {best[1]:.0f} B", best[1] / each
    return [found, whole, *others]


def _of_peers(items: Sequence[Run], sitting: Sitting) -> tuple[tuple[str, float] | None, list[Row]]:
    """Return the library whose objects for an exchange are the smallest beside the texts, and a row for each."""
    rows: list[Row] = []
    sizes: dict[str, float] = {}
    texts = [(text_of(run.input), text_of(run.output)) for run in items]
    for holder in HOLDERS if sitting.peers else ():
        if not is_there(holder.packages):
            rows.append(shown(missing(holder.name, holder.packages), ""))
            continue
        sitting.step(holder.name)
        make = holder.make()
        make("what is made only once", "is not counted")
        _, taken = _traced(partial(_made, make, texts))
        sizes[holder.name] = taken / len(items)
        rows.append(shown(f"an exchange over its texts, {holder.name}", f"{sizes[holder.name]:,.0f} B"))
    return min(sizes.items(), key=lambda item: item[1]) if sizes else None, rows


def _made(make: Callable[[str, str], object], texts: Sequence[tuple[str, str]]) -> list[object]:
    return [make(*pair) for pair in texts]


def _traced(make: Callable[[], list[T]]) -> tuple[list[T], int]:
    """Return what is made, and the bytes that it takes beside what is cached the first time."""
    make()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    made = make()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return made, taken


async def imports(sitting: Sitting) -> list[Row]:
    """Return what imports take over a bare interpreter, bytecode compiled beforehand."""
    modules = {OURS: "memkit", **(IMPORTS if sitting.peers else {})}
    packages = {name: [module.partition(".")[0]] for name, module in modules.items()}
    there = {name: module for name, module in modules.items() if is_there(packages[name])}
    samples: dict[str, list[float]] = {"pass": [], **{name: [] for name in there}}
    for name, module in there.items():
        sitting.step(f"{name}, for the first time")
        _interpret(f"import {module}")
    for round_number in range(5 if sitting.quick else 15):
        for name, times in samples.items():
            if name in IMPORTS and round_number % 3:
                continue  # they take seconds
            sitting.step(f"{name}, round {round_number + 1}")
            times.append(_interpret("pass" if name == "pass" else f"import {there[name]}"))
    bare = timing(samples.pop("pass")).median
    found = {name: _less(timing(times), bare) for name, times in samples.items()}
    seconds = found[OURS].median
    one = Row(
        "import memkit",
        str(found[OURS]),
        "",
        None,
        "at most 60 ms",
        seconds <= 0.060,
        timings={OURS: found[OURS]},
    )
    others = {name: took for name, took in found.items() if name != OURS}
    rows = [beside(one, others), *(shown(f"import {there[name]}", took) for name, took in others.items())]
    return [*rows, *(shown(missing(name, packages[name]), "") for name in modules if name not in there)]


def _interpret(code: str) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def _less(took: Timing, seconds: float) -> Timing:
    return Timing(took.median - seconds, took.low - seconds, took.high - seconds)


async def turns(sitting: Sitting) -> list[Row]:
    """Return the bytes of turns of 20 tool calls that are stored as they come, beside those of their parts.

    What a call costs beside its parts is the same whatever it returns: short results are shown, not judged.
    """
    del sitting
    rows = [await _turn(length) for length in (1_000, 300, 100)]
    for short in rows[1:]:
        short.target, short.reached = "", None
    return rows


async def _turn(length: int) -> Row:
    """Store a turn whose tools return so many characters each."""
    driver = CountingDriver(InMemoryDriver())
    results = "".join(str(run.output) for run in runs(30))
    parts = 0
    async with Memory(driver, "k") as handle, handle.turn("go", early=True) as turn:
        for number in range(20):
            arguments, result = f'{{"page": {number}}}', results[number * length : (number + 1) * length]
            turn.step(ToolCall(f"call-{number}", "read", arguments), ToolResult(f"call-{number}", result, "read"))
            parts += len(arguments.encode()) + len(result.encode())
            await turn.save()
        turn.write("done")
    stored = driver.bytes["append"]
    what = f"a turn of 20 tool calls with results of {length:,} characters, stored as they come"
    return Row(what, f"{stored:,} B", f"{parts:,} B", stored / parts, "at most 1.5 x", stored / parts <= 1.5)


async def count(sitting: Sitting) -> list[Row]:
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
        counter = make(ENCODING)
        counter.load()
        for name, text in texts.items():
            sitting.step(f"{make.__name__}, {name}")
            samples: list[float] = []
            for _ in range(2 if sitting.quick else 5):
                start = time.perf_counter()
                counter.count(text)
                samples.append(time.perf_counter() - start)
            size = len(text.encode("utf-8", "surrogatepass")) / MEGABYTE
            each = timing([sample / size for sample in samples])
            rows.append(
                Row(f"{make.__name__}, a MB of {name}", str(each), "", None, "at most 1 s", each.median <= 1)
            )
    return rows

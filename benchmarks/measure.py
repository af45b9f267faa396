"""Medians of rounds in which the candidates take turns, so that a busy moment hits all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from rich.console import Console
from rich.table import Table

console = Console()


class Row(msgspec.Struct):
    """One figure: what was measured, its limit, and what is to be reached."""

    what: str
    measured: str
    limit: str
    ratio: float | None
    target: str
    reached: bool | None


class Timing(msgspec.Struct):
    """Seconds per call: the median of the rounds, and the half of them that lies around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{readable(self.median)} ({readable(self.low)} to {readable(self.high)})"


def timing(samples: Sequence[float]) -> Timing:
    """Summarise the rounds of one candidate."""
    low, median, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else [samples[0]] * 3
    return Timing(median, low, high)


def interleaved(candidates: dict[str, Callable[[], object]], *, rounds: int, calls: int) -> dict[str, Timing]:
    """Time synchronous calls: in each round every candidate once, the best of its calls counts."""
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in candidates.items():
                best = float("inf")
                for _ in range(calls):
                    start = time.perf_counter()
                    call()
                    best = min(best, time.perf_counter() - start)
                samples[name].append(best)
    finally:
        gc.enable()
    return {name: timing(values) for name, values in samples.items()}


async def interleaved_async(
    candidates: dict[str, Callable[[], Awaitable[object]]], *, rounds: int, calls: int
) -> dict[str, Timing]:
    """Time asynchronous calls: in each round every candidate once, the median of its calls counts."""
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        for _ in range(3):
            await call()
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        for name, call in candidates.items():
            times: list[float] = []
            for _ in range(calls):
                start = time.perf_counter()
                await call()
                times.append(time.perf_counter() - start)
            samples[name].append(statistics.median(times))
    gc.unfreeze()
    return {name: timing(values) for name, values in samples.items()}


def row(what: str, measured: Timing, limit: Timing, at_most: float) -> Row:
    """Compare a figure with its limit."""
    ratio = measured.median / limit.median
    return Row(what, str(measured), str(limit), ratio, f"at most {at_most:g} x", ratio <= at_most)


def absolute(what: str, seconds: Timing, at_most: float) -> Row:
    """Compare a figure with a number of seconds."""
    return Row(what, str(seconds), "", None, f"at most {readable(at_most)}", seconds.median <= at_most)


def readable(seconds: float) -> str:
    """Return seconds with a unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def show(title: str, rows: Sequence[Row]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for name in ("what", "measured", "limit", "ratio", "target", ""):
        table.add_column(name, justify="right" if name == "ratio" else "left")
    for item in rows:
        ratio = "" if item.ratio is None else f"{item.ratio:.2f}"
        mark = "" if item.reached is None else "reached" if item.reached else "NOT reached"
        table.add_row(item.what, item.measured, item.limit, ratio, item.target, mark)
    console.print(table)

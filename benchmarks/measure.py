"""Medians of rounds in which the candidates take turns, so that a busy moment hits all of them alike."""

from __future__ import annotations

import gc
import os
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from inspect import isawaitable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

OURS = "memkit"
"""What the names of our own lines begin with, in charts and in `Row.timings`."""


class Timing(msgspec.Struct):
    """Seconds per call: the median of the rounds, and the half of them that lies around it."""

    median: float
    low: float
    high: float
    extrapolated: bool = False

    def __str__(self) -> str:
        if self.extrapolated:
            return f"~{readable(self.median)}"
        return f"{readable(self.median)} ({readable(self.low)} to {readable(self.high)})"


class Row(msgspec.Struct):
    """One figure: what was measured, its limit, what is to be reached, and who else was measured.

    `timings` holds the same for programs, by name of the library; `chart` and `x` say of which line each of them
    is a point.
    """

    what: str
    measured: str
    limit: str
    ratio: float | None
    target: str
    reached: bool | None
    peer: str = ""
    """The best peer, and what was measured of it."""
    peer_ratio: float | None = None
    """How many times what memkit takes the best peer takes."""
    chart: str = ""
    x: float = 0
    timings: dict[str, Timing] = {}


class Sitting(msgspec.Struct, frozen=True):
    """What the command line asks for. `step` is told what is measured next."""

    quick: bool = False
    peers: bool = False
    runs: int | None = None
    data: Path | None = None
    step: Callable[[str], None] = lambda _: None


class Candidate(msgspec.Struct, frozen=True):
    """One that takes part: `call` is timed, on what `prepare` returns, which is not."""

    call: Callable[..., Any]
    prepare: Callable[[], Any] | None = None
    is_async: bool = True

    async def time(self) -> float:
        """Return the seconds of one call."""
        given: tuple[Any, ...] = ()
        if self.prepare is not None:
            prepared = self.prepare()
            given = (await prepared if isawaitable(prepared) else prepared,)
        call = self.call
        if self.is_async:
            start = time.perf_counter()
            await call(*given)
            return time.perf_counter() - start
        start = time.perf_counter()
        call(*given)
        return time.perf_counter() - start


async def take_turns(
    candidates: Mapping[str, Candidate],
    *,
    rounds: int,
    calls: int,
    pick: Callable[[Sequence[float]], float] = statistics.median,
    patience: float = float("inf"),
) -> dict[str, Timing]:
    """Time calls: in each round every candidate once, `pick` chooses from its calls.

    One that has taken more than `patience` seconds altogether sits the other rounds out. Garbage is collected
    between rounds, not within a call.
    """
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    spent = dict.fromkeys(candidates, 0.0)
    for name, candidate in candidates.items():
        start = time.perf_counter()
        first = await candidate.time()
        spent[name] += time.perf_counter() - start
        if spent[name] >= patience:
            samples[name].append(first)  # too slow to be called only to warm up
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, candidate in candidates.items():
                times: list[float] = []
                start = time.perf_counter()
                while len(times) < calls and spent[name] + (time.perf_counter() - start) < patience:
                    times.append(await candidate.time())
                spent[name] += time.perf_counter() - start
                if times:
                    samples[name].append(pick(times))
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    return {name: timing(values) for name, values in samples.items()}


async def interleaved_async(
    candidates: Mapping[str, Callable[[], Awaitable[object]]], *, rounds: int, calls: int
) -> dict[str, Timing]:
    """Time asynchronous calls: in each round every candidate once, the median of its calls counts."""
    return await take_turns(
        {name: Candidate(call) for name, call in candidates.items()}, rounds=rounds, calls=calls
    )


def timing(samples: Sequence[float]) -> Timing:
    """Summarise the rounds of one candidate."""
    if len(samples) == 1:
        return Timing(samples[0], samples[0], samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high)


def row(what: str, measured: Timing, limit: Timing, at_most: float | None) -> Row:
    """Compare a figure with its limit."""
    ratio = measured.median / limit.median
    target = "" if at_most is None else f"at most {at_most:g} x"
    reached = None if at_most is None else ratio <= at_most
    timings = {OURS: measured, "limit": limit}
    return Row(what, str(measured), str(limit), ratio, target, reached, timings=timings)


def absolute(what: str, seconds: Timing, at_most: float) -> Row:
    """Compare a figure with a number of seconds."""
    target, is_reached = f"at most {readable(at_most)}", seconds.median <= at_most
    return Row(what, str(seconds), "", None, target, is_reached, timings={OURS: seconds})


def shown(what: str, measured: Timing | str, limit: str = "") -> Row:
    """Return a figure that nothing is asked of."""
    timings = {OURS: measured} if isinstance(measured, Timing) else {}
    return Row(what, str(measured), limit, None, "", None, timings=timings)


def beside(found: Row, peers: Mapping[str, Timing], *, comparable: Iterable[str] | None = None) -> Row:
    """Put peers beside a figure, and name the best of those that are `comparable`, by default of all."""
    names = [name for name in (peers if comparable is None else comparable) if name in peers]
    timings = {**found.timings, **peers}
    if not names:
        return msgspec.structs.replace(found, timings=timings)
    best = min(names, key=lambda name: peers[name].median)
    ratio = peers[best].median / found.timings[OURS].median
    what = f"{best}: {'~' if peers[best].extrapolated else ''}{readable(peers[best].median)}"
    return msgspec.structs.replace(found, peer=what, peer_ratio=ratio, timings=timings)


def readable(seconds: float) -> str:
    """Return seconds with a unit that suits them."""
    for unit, size in _UNITS.items():
        if seconds >= (2 * size if size >= 60 else size):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def seconds_of(measured: str) -> float:
    """Return the seconds that a text begins with which `readable` has made; infinity if it does not."""
    found = re.match(r"~?([\d.e+]+) (\w+)", measured)
    size = {**_UNITS, "ns": 1e-9}.get(found[2]) if found else None
    return float(found[1]) * size if found and size else float("inf")


_UNITS = {"h": 3_600.0, "min": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}


@contextmanager
def elsewhere(server: AbstractContextManager[T]) -> Iterator[T]:
    """Start a server on the cores that this process leaves free: else it would be on a machine of its own."""
    own = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set[int]()
    others = set(range(os.cpu_count() or 1)) - own
    if own and others:
        os.sched_setaffinity(0, others)
    with server as running:
        if own and others:
            os.sched_setaffinity(0, own)
        yield running

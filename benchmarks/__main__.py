"""`python -m benchmarks`: print each figure beside its limit, and whether the target is reached."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import anyio

from benchmarks import concurrency, files, process, prune, sqlite, summaries
from benchmarks.measure import Row, console, show
from benchmarks.vocabulary import unpack


async def _prune(*, quick: bool) -> list[Row]:
    return prune.measure(quick=quick)


async def _redis(*, quick: bool) -> list[Row]:
    from benchmarks.redis import redis  # its packages are an extra

    return await redis(quick=quick)


GROUPS: dict[str, Callable[..., Awaitable[list[Row]]]] = {
    "prune": _prune,
    "append": files.append,
    "load": files.load,
    "memory": process.memory,
    "import": process.imports,
    "stall": process.stalls,
    "turn": process.turns,
    "count": process.count,
    "sqlite-append": sqlite.append,
    "sqlite-load": sqlite.load,
    "concurrency": concurrency.measure,
    "redis": _redis,
    "reply": summaries.busy,
    "folds": summaries.real,
}


def pin() -> None:
    """Stay on one core: between two, waking a thread costs twice as much or not, as the scheduler likes."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


async def run(groups: list[str], *, quick: bool) -> bool:
    """Measure and print these groups; return whether all targets are reached."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("msgspec", "anyio", "tiktoken"))
    console.print(
        f"one core, CPython {platform.python_version()}, {versions}; medians, and the middle half of the rounds"
    )
    rows: list[Row] = []
    for name in groups:
        with console.status(f"measuring {name} ..."):
            found = await GROUPS[name](quick=quick)
        show(name, found)
        rows += found
    return all(item.reached is not False for item in rows)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "groups", nargs="*", metavar="group", help=f"what to measure: {', '.join(GROUPS)}; default all"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a measurement")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is not reached")
    options = parser.parse_args()
    unknown = set(options.groups) - set(GROUPS)
    if unknown:
        parser.error(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    pin()
    with tempfile.TemporaryDirectory(prefix="memkit-") as folder:
        unpack(Path(folder))
        reached = anyio.run(partial(run, options.groups or list(GROUPS), quick=options.quick))
    if options.check and not reached:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

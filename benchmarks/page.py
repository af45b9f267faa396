"""`python -m benchmarks.page PAGE OUT.json ...`: put what `--json` has written into a page, after its mark."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.figures import FIGURES, results
from benchmarks.measure import Row
from benchmarks.report import described
from benchmarks.tables import Table, table_of_figures, tables

MARK = "<!-- What follows is written by `python -m benchmarks.page`. -->\n"


class Measured(msgspec.Struct):
    """What a call of the benchmarks has written."""

    about: dict[str, Any]
    groups: dict[str, list[Row]]


def page(measured: Sequence[Measured]) -> str:
    """Return all tables as Markdown, those of each call after a line that says what it was measured with."""
    return "".join(part for one in measured for part in _parts(one))


def _parts(one: Measured) -> Iterator[str]:
    yield f"\n## Texts {one.about['data']}\n\n{one.about['date'][:10]}, {described(one.about)}.\n"
    yield from (f"\n{failure}\n" for failure in one.about["left_out"])
    parts = [part for figure in FIGURES for part in figure.parts]
    asked = [any(group in one.groups for group in part.groups) for part in parts]
    if any(asked):
        yield _markdown(table_of_figures(list(compress(results(one.groups), asked))))
    for group, rows in one.groups.items():
        for table in tables(group, rows):
            yield _markdown(table)


def _markdown(table: Table) -> str:
    ruler = ["---:" if table.is_number(head) else "---" for head in table.heads]
    lines = [_line(table.heads), _line(ruler), *map(_line, table.lines)]
    title = f"*{table.title}*" if table.is_chart else f"### {table.title}"
    return "\n".join(["", title, "", *lines, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main() -> None:
    """Parse the command line, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("page", type=Path, help="a Markdown file with the mark in it")
    parser.add_argument("json", type=Path, nargs="+", help="what `python -m benchmarks --json` has written")
    options = parser.parse_args()
    head, mark, _ = options.page.read_text("utf-8").partition(MARK)
    if not mark:
        parser.error(f"{options.page} has no line {MARK!r}")
    measured = [msgspec.json.decode(path.read_bytes(), type=Measured) for path in options.json]
    options.page.write_text(head + mark + page(measured), "utf-8")


if __name__ == "__main__":
    main()

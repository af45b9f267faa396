"""The figures that the design promises, and which rows of which group show each of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from benchmarks.measure import Row, seconds_of


class Part(msgspec.Struct, frozen=True):
    """One target of a figure: the rows of these groups that are judged and whose `what` the pattern finds."""

    target: str
    groups: tuple[str, ...]
    pattern: str


class Figure(msgspec.Struct, frozen=True):
    """A line of the design's table."""

    name: str
    parts: tuple[Part, ...]


class Result(msgspec.Struct, frozen=True):
    """What came of one target: the row that is nearest to it or furthest beyond, of how many."""

    name: str
    target: str
    measured: str
    reached: bool | None


def _is(target: str, group: str, pattern: str = "") -> Part:
    return Part(target, (group,), pattern)


FIGURES = (
    Figure(
        "prune, nothing counted yet",
        (
            _is("at most 1.15 x tokenising once what fits, with tiktoken", "prune", "^prune, nothing counted"),
            _is("10,000 runs at most 1.1 x 1,000", "prune", "^the same, 10,000 runs"),
        ),
    ),
    Figure(
        "prune, counts stored",
        (
            _is("at most 25 us at 128k tokens, as a handle holds them", "prune", "^prune, counts stored"),
            _is("no tokenising of a run counted under that name", "prune", "^texts counted again"),
        ),
    ),
    Figure(
        "open and build a prompt, any driver",
        (
            _is("file: 100,000 runs at most 1.2 x 100 runs", "open", ", file, .* against 100$"),
            _is("SQLite: 100,000 runs at most 1.2 x 100 runs", "open", ", SQLite, .* against 100$"),
            _is("Redis: 100,000 runs at most 1.2 x 100 runs", "open", ", Redis, .* against 100$"),
            _is("DynamoDB: bytes and requests of 5,000 runs as of 1,000", "dynamodb", "^prompt, newest"),
        ),
    ),
    Figure(
        "append, file",
        (
            _is("at most 1.2 x (hop + open + write + close)", "append", r"^append, [\d,]+ runs held$"),
            _is("durable at most 1.2 x the same with fdatasync", "append", r"^append, durable, [\d,]+ runs held$"),
            _is("flat from 10 to 100,000", "append", "against 10$"),
        ),
    ),
    Figure(
        "append, Redis",
        (
            _is("at most 1.2 x a bare MULTI", "redis", "append, .* against MULTI"),
            _is("flat, on 6.2 too", "redis", "append, .* held against 10$"),
        ),
    ),
    Figure(
        "append, SQLite",
        (
            _is("at most 1.5 x (bare insert + hop)", "sqlite-append", "runs held$"),
            _is("flat", "sqlite-append", "against 10$"),
        ),
    ),
    Figure(
        "1 000 conversations, one loop",
        (
            _is("Redis at least 0.9 x bare RPUSH in pipelines", "concurrency", "^Redis, against bare RPUSH"),
            _is("Redis at least 4 x the script on a pool of 16", "concurrency", "^Redis, against the script"),
            _is("SQLite durable at least 20 x SQLiteSession", "concurrency", "^SQLite, durable, against"),
            _is(
                "p99 loop lag of SQLite and Redis at most max(5 ms, 3 x idle)", "concurrency", ": lag, p99 by time"
            ),
        ),
    ),
    Figure("load 10 000 runs", (_is("at most 1.5 x read and one decode a line", "load", "^load all of 10,000"),)),
    Figure(
        "loop stall, any call, records up to 1 MB",
        (Part("at most 10 ms", ("stall", "lag"), "^longest stall: "),),
    ),
    Figure("a turn of 20 tool calls stored as they come", (_is("at most 1.5 x the bytes of its parts", "turn"),)),
    Figure("counting", (_is("every str at most 1 s a MB, never a BaseException", "count", ", a MB of "),)),
    Figure("memory", (_is("at most 250 B a run over its texts, counts included", "memory", "^a run over its"),)),
    Figure("import", (_is("at most 60 ms over a bare interpreter", "import", "^import memkit$"),)),
)
"""All of them, in the order of the design, as it names them."""


def results(rows: Mapping[str, Sequence[Row]]) -> list[Result]:
    """Return what came of each target, of the rows by group; of what was not measured, None."""
    return [_result(figure.name, part, rows) for figure in FIGURES for part in figure.parts]


def _result(name: str, part: Part, rows: Mapping[str, Sequence[Row]]) -> Result:
    found = [
        row
        for group in part.groups
        for row in rows.get(group, ())
        if row.reached is not None and re.search(part.pattern, row.what)
    ]
    if not found:
        return Result(name, part.target, "not measured", None)
    missed = [row for row in found if not row.reached]
    if len(found) == 1:
        return Result(name, part.target, _measured(found[0]), not missed)
    # The target is the same for all: the one with the largest figure is nearest to it, or beyond.
    worst = max(missed or found, key=_size)
    how_many = f"{len(missed)} of {len(found)} rows miss it" if missed else f"the worst of {len(found)} rows"
    return Result(name, part.target, f"{_measured(worst)}, {how_many}", not missed)


def _size(row: Row) -> float:
    if row.ratio is not None:
        return -row.ratio if row.target.startswith("at least") else row.ratio
    return seconds_of(row.measured)


def _measured(row: Row) -> str:
    return f"{row.ratio:.2f} x" if row.ratio is not None else row.measured

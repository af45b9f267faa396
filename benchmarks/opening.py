"""Opening a conversation and building a prompt from it: what it costs after a hundred runs and after a million."""

from __future__ import annotations

from benchmarks.measure import OURS, Row, Sitting, row
from benchmarks.peers import OPENED
from benchmarks.stores import OUR_STORES, absent_rows, compared, measure, present

SIZES = (100, 1_000, 10_000, 100_000)
CHART = "open and build a prompt"


async def opening(sitting: Sitting) -> list[Row]:
    """Return the rows of each store that there is, and of `runs` runs if so many are asked for."""
    sizes = (*SIZES, *([sitting.runs] if sitting.runs and sitting.runs not in SIZES else []))
    asked = (*OUR_STORES, *(OPENED if sitting.peers else ()))
    found = await measure(lambda held: held.prompt, present(asked), sizes, sitting)
    rows: list[Row] = []
    for store in OUR_STORES:
        rows += compared(CHART, store, found, sizes, OPENED)
        name = store.name.removeprefix(f"{OURS}, ")
        for size in sizes[1:] if store.name in found else ():
            what = f"{CHART}, {name}, {size:,} runs against 100"
            rows.append(row(what, found[store.name][size], found[store.name][100], 1.2))
    return [*rows, *absent_rows(asked)]

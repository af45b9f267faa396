"""Pruning to budgets of tokens, and what is done once: summing counts, and counting by another handle."""

from __future__ import annotations

from functools import partial

from benchmarks.budget import Budget, tokenise, view_of
from benchmarks.corpus import SEED, runs, with_counts
from benchmarks.measure import OURS, Candidate, Row, Sitting, row, shown, take_turns
from benchmarks.peers import PRUNERS
from benchmarks.peers.base import ENCODING, is_there, missing
from memkit import InMemoryDriver, Memory, counters, prune
from memkit.tokens import TokenCounter

BUDGETS = (4_000, 32_000, 128_000)


async def measure(sitting: Sitting) -> list[Row]:
    """Return the rows of all budgets."""
    counter = counters.tiktoken(ENCODING)
    counter.load()
    rows: list[Row] = []
    for budget in BUDGETS:
        rows += await Budget(budget, counter, sitting).rows()
    rows += await _faster(sitting)
    view = view_of(with_counts(runs(1_000, SEED, sitting.data), counter))
    priced = Candidate(partial(view.priced, counter), is_async=False)
    timings = await take_turns({"priced": priced}, rounds=5 if sitting.quick else 15, calls=20, pick=min)
    rows.append(shown("summing 1,000 stored counts, once after loading", timings["priced"]))
    rows.append(await _recounts(counter, sitting))
    absent = [one for one in PRUNERS if sitting.peers and not is_there(one.packages)]
    rows += [shown(missing(one.name, one.packages), "") for one in absent]
    return rows


async def _faster(sitting: Sitting) -> list[Row]:
    """Return the rows of the counter that is several times as fast, beside which all else takes more."""
    counter = counters.toktok(ENCODING)
    counter.load()
    view = view_of(runs(1_000, SEED, sitting.data))
    rows: list[Row] = []
    for budget in BUDGETS:
        strategy = prune(budget, counter=counter)
        candidates = {
            OURS: Candidate(partial(strategy, view), is_async=False),
            "limit": Candidate(partial(tokenise, strategy(view).runs, counter), is_async=False),
        }
        found = await take_turns(candidates, rounds=5 if sitting.quick else 15, calls=5, pick=min)
        what = f"prune by toktok, nothing counted, 1,000 runs, {budget:,} tokens"
        rows.append(row(what, found[OURS], found["limit"], None))
    return rows


async def _recounts(counter: TokenCounter, sitting: Sitting) -> Row:
    """Return how often a handle tokenises what was counted under that name by another one."""
    noting = _Noting(counter)
    driver = InMemoryDriver()
    async with Memory(driver, "k", counter=counter) as memory:
        await memory.append(*runs(1_000, SEED, sitting.data))
    async with Memory(driver, "k", strategy=prune(BUDGETS[-1], counter=noting)) as memory:
        memory.messages()
    calls = noting.calls
    return Row("texts counted again by another handle, 1,000 runs", f"{calls}", "", None, "0", calls == 0)


class _Noting:
    """A counter that notes how often it is asked."""

    def __init__(self, counter: TokenCounter) -> None:
        self._counter = counter
        self.name, self.per_message = counter.name, counter.per_message
        self.calls = 0

    def count(self, content: object, /) -> int:
        self.calls += 1
        return self._counter.count(content)  # type: ignore[arg-type]

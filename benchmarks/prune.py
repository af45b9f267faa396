"""Pruning to a token budget: nothing counted yet, and with the counts stored."""

from __future__ import annotations

from functools import partial

from benchmarks.corpus import runs
from benchmarks.measure import Row, absolute, interleaved, row
from memkit import Conversation, Run, View, counters, prune
from memkit.tokens import TokenCounter, counted

BUDGETS = (4_000, 32_000, 128_000)
SIZES = (1_000, 10_000)


def measure(*, quick: bool) -> list[Row]:
    """Return the rows of the table."""
    counter = counters.tiktoken("o200k_base")
    counter.load()
    rounds = 5 if quick else 15
    rows: list[Row] = []
    for budget in BUDGETS:
        strategy = prune(budget, counter=counter)
        cold = {f"prune {size}": partial(strategy, _view(runs(size))) for size in SIZES}
        kept = strategy(_view(runs(SIZES[-1]))).runs
        limit = partial(_tokenise, kept, counter)
        timings = interleaved({**cold, "limit": limit}, rounds=rounds, calls=5)
        for size in SIZES:
            what = f"prune, nothing counted, {size:,} runs, {budget:,} tokens"
            rows.append(row(what, timings[f"prune {size}"], timings["limit"], 1.15))
        what = f"the same, {SIZES[1]:,} runs against {SIZES[0]:,}"
        rows.append(row(what, timings[f"prune {SIZES[1]}"], timings[f"prune {SIZES[0]}"], 1.1))
    stored = {size: tuple(counted(run, counter) for run in runs(size)) for size in SIZES}
    for budget in BUDGETS:
        for step in (1, 8):
            strategy = prune(budget, counter=counter, step=step)
            for size in SIZES:
                view = _view(stored[size]).priced(counter)  # as a handle holds it after loading
                timings = interleaved({"prune": partial(strategy, view)}, rounds=rounds, calls=200)
                what = f"prune, counts stored, {size:,} runs, {budget:,} tokens, step {step}"
                rows.append(absolute(what, timings["prune"], 25e-6))
    pricing = interleaved({"priced": partial(_priced, stored[1_000], counter)}, rounds=rounds, calls=20)
    rows.append(Row("pricing 1,000 counted runs, once after loading", str(pricing["priced"]), "", None, "", None))
    return rows


def _view(items: tuple[Run, ...]) -> View:
    return Conversation(key="k", end=len(items), entries=items).view()


def _priced(items: tuple[Run, ...], counter: TokenCounter) -> View:
    return _view(items).priced(counter)


def _tokenise(items: tuple[Run, ...], counter: TokenCounter) -> None:
    for run in items:
        counter.count(run.input)
        counter.count(run.output)

"""`step="auto"`: the cheapest stride, found by each prompt for itself and yet the same from turn to turn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise, takewhile
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkit.content import Content, ToolCall, ToolResult
from memkit.conversation import Conversation, Summary, View
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import BudgetError
from memkit.memory import Memory
from memkit.run import Counts, Run
from memkit.strategies import Strategy, compose, forget_steps, last_runs, pin, prune, where
from memkit.strides import CACHED_PRICE
from memkit.testing.strategies import check_history, strategy_checks
from memkit.tokens import cost_of
from tests.histories import BUDGETS, CHARACTERS, History, examples, histories
from tests.memories import Words, run, store

TOOLS = (ToolCall("1", "look", "{}"), ToolResult("1", "nothing"))
STEPS = (1, 2, 4, 8, 16, 32, 64, 128)


def run_of(position: int, tokens: int, *, steps: int = 0) -> Run:
    counts = Counts(CHARACTERS.name, output=tokens, steps=steps)
    return Run(f"r{position}", "question", TOOLS if steps else (), "answer", counts=counts)


def view_of(tokens: Sequence[int], **fields: Any) -> View:
    runs = tuple(run_of(position, price) for position, price in enumerate(tokens))
    return View(runs=runs, positions=range(len(runs)), **fields).priced(CHARACTERS)


def price(runs: Sequence[Run]) -> int:
    return sum(cost_of(run, CHARACTERS) for run in runs)


# --- what any history shows ---

AUTO = [
    prune(60, counter=CHARACTERS, step="auto"),
    prune(2_000, counter=CHARACTERS, step="auto", on_overflow="last"),
    prune(60, step="auto", on_overflow="raise"),
    last_runs(0, step="auto"),
    last_runs(3, step="auto"),
    forget_steps(keep=2, step="auto"),
    pin(["r1", "nobody"], prune(60, counter=CHARACTERS, step="auto")),
    compose(forget_steps(step="auto"), prune(200, counter=CHARACTERS, step="auto")),
    compose(prune(200, counter=CHARACTERS, step="auto"), last_runs(5, step="auto")),
    compose(where(lambda run: run.input != "question 1"), prune(60, counter=CHARACTERS, step="auto")),
]


@pytest.mark.parametrize("strategy", AUTO, ids=repr)
def test_older_runs_never_matter(strategy: Strategy) -> None:
    strategy_checks(strategy, max_examples=60)


@examples(250)
@given(BUDGETS, st.sampled_from(("empty", "last", "raise")), histories())
def test_older_runs_never_matter_to_any_budget(max_tokens: int, on_overflow: Any, history: History) -> None:
    check_history(prune(max_tokens, counter=CHARACTERS, step="auto", on_overflow=on_overflow), history)


@examples(250)
@given(BUDGETS, histories(max_ops=20))
def test_it_is_the_largest_step_of_all(max_tokens: int, history: History) -> None:
    """A step larger than any position is halved until half is kept: the slow way to the same place."""
    view = history.view()
    auto = prune(max_tokens, counter=CHARACTERS, step="auto")(view)
    assert auto == prune(max_tokens, counter=CHARACTERS, step=1 << 20)(view)
    assert auto == prune(max_tokens, counter=CHARACTERS, step="auto")(view)


@examples(250)
@given(BUDGETS, histories(max_ops=20))
def test_half_of_what_fits_is_kept(max_tokens: int, history: History) -> None:
    view = history.view()
    fits = prune(max_tokens, counter=CHARACTERS)(view)
    kept = prune(max_tokens, counter=CHARACTERS, step="auto")(view)
    assert kept.runs == fits.runs[len(fits.runs) - len(kept.runs) :]
    assert bool(kept.runs) == bool(fits.runs)
    assert 2 * price(kept.runs) >= price(fits.runs)
    assert kept.summary == fits.summary


@examples(200)
@given(histories())
def test_prices_make_no_difference(history: History) -> None:
    strategy, view = prune(100, counter=CHARACTERS, step="auto"), history.view()
    with_prices, without = strategy(view.priced(CHARACTERS)), strategy(view)
    assert with_prices.runs == without.runs
    assert with_prices.closed == without.closed


# --- turn by turn ---

TURNS, BUDGET = 2_000, 4_000


def sizes(kind: str) -> list[int]:
    """Return the tokens of some thousand runs."""
    rng = random.Random(7)
    return {
        "all alike": [240] * TURNS,
        "lognormal": [1 + int(200 * rng.lognormvariate(0, 0.6)) for _ in range(TURNS)],
        "heavy tail": [1 + int(50 * min(70.0, rng.paretovariate(1.1))) for _ in range(TURNS)],
        "tools now and then": [rng.choice((100, 100, 100, 1_500)) for _ in range(TURNS)],
        "small talk and work in turns": [(60, 900)[turn // 150 % 2] for turn in range(TURNS)],
        "one token": [1] * TURNS,
    }[kind]


KINDS = (
    "all alike",
    "lognormal",
    "heavy tail",
    "tools now and then",
    "small talk and work in turns",
)


def replayed(strategy: Strategy, tokens: Sequence[int], *, steps: int = 0) -> Iterator[View]:
    """Yield the view after each turn."""
    runs = tuple(run_of(position, price, steps=steps) for position, price in enumerate(tokens))
    whole = View(runs=runs, positions=range(len(runs))).priced(CHARACTERS)
    assert whole.sums is not None
    for end in range(1, len(runs) + 1):
        part = msgspec.structs.replace(whole, runs=runs[:end], positions=range(end), sums=whole.sums[: end + 1])
        yield strategy(part)


def firsts(strategy: Strategy, tokens: Sequence[int]) -> list[int]:
    return [view.positions[0] for view in replayed(strategy, tokens)]


def moves(places: Sequence[int]) -> int:
    return sum(older != newer for older, newer in pairwise(places))


def money(strategy: Strategy, tokens: Sequence[int], *, steps: int = 0) -> float:
    """Return what all prompts cost, in tokens at the full price."""
    cost, before = 0.0, View()
    for view in replayed(strategy, tokens, steps=steps):
        same = [
            run for run, _ in takewhile(lambda pair: pair[0] == pair[1], zip(view.runs, before.runs, strict=False))
        ]
        cost += price(view.runs) - (1 - CACHED_PRICE) * price(same)
        before = view
    return cost


def fewest_moves(tokens: Sequence[int]) -> int:
    """Return how often one that remembers its cut would have to move it, down to half each time."""
    sums = [*accumulate(tokens, initial=0)]
    first = moved = 0
    for end in range(1, len(tokens) + 1):
        if sums[end] - sums[first] > BUDGET:
            moved += 1
            while 2 * (sums[end] - sums[first + 1]) >= BUDGET:
                first += 1
            while sums[end] - sums[first] > BUDGET:
                first += 1
    return moved


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_run_rarely_moves_and_never_back(kind: str) -> None:
    tokens = sizes(kind)
    places = firsts(prune(BUDGET, counter=CHARACTERS, step="auto"), tokens)
    assert places == sorted(places)
    assert 0 < moves(places) <= 2 * fewest_moves(tokens)
    assert moves(places) < moves(firsts(prune(BUDGET, counter=CHARACTERS), tokens)) / 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_costs_less(kind: str) -> None:
    tokens = sizes(kind)[:600]
    by_step = {step: money(prune(BUDGET, counter=CHARACTERS, step=step), tokens) for step in STEPS}
    auto = money(prune(BUDGET, counter=CHARACTERS, step="auto"), tokens)
    assert auto <= 1.01 * min(by_step.values()), by_step
    assert auto < by_step[1] / 1.5


@pytest.mark.parametrize("n", [2, 3, 10, 30])
def test_no_step_of_last_runs_costs_less(n: int) -> None:
    tokens = [100] * 400
    by_step = {step: money(last_runs(n, step=step), tokens) for step in range(1, 2 * n + 12)}
    assert money(last_runs(n, step="auto"), tokens) <= 1.02 * min(by_step.values())


@pytest.mark.parametrize("keep", [1, 3, 6])
def test_no_step_of_forget_steps_costs_much_less(keep: int) -> None:
    """The prompts are cut, else most of what they cost is old runs without traffic."""
    tokens = [2] * 300

    def cost(step: Any) -> float:
        return money(compose(last_runs(40, step=40), forget_steps(keep=keep, step=step)), tokens, steps=200)

    assert cost("auto") <= 1.1 * min(cost(step) for step in range(1, 20))


def test_the_steps_that_are_documented() -> None:
    def strides(strategy: Strategy) -> set[int]:
        places = sorted(set(firsts(strategy, sizes("one token"))))
        return {newer - older for older, newer in pairwise(places)}

    assert strides(last_runs(100, step="auto")) == {42}
    assert strides(last_runs(1, step="auto")) == {1}


# --- beside other things ---


def kept(strategy: Strategy, view: View) -> list[int]:
    return list(strategy(view).positions)


def test_what_is_reserved_is_not_in_the_budget() -> None:
    tokens = sizes("lognormal")
    for reserved in (0, 100, 1_999, 3_990):
        less = prune(BUDGET - reserved, counter=CHARACTERS, step="auto")
        view = view_of(tokens, reserved=reserved)
        assert kept(prune(BUDGET, counter=CHARACTERS, step="auto"), view) == kept(less, view_of(tokens))


def test_the_summary_is_not_in_the_budget() -> None:
    counts = Counts(CHARACTERS.name, output=999, messages=1)
    summary = Summary(content="-", upto=0, upto_id="", seen=0, counts=counts)
    tokens = sizes("lognormal")
    with_summary = prune(BUDGET, counter=CHARACTERS, step="auto")(view_of(tokens, summary=summary))
    assert with_summary.summary is summary
    assert list(with_summary.positions) == kept(
        prune(BUDGET - 1_000, counter=CHARACTERS, step="auto"), view_of(tokens)
    )


def test_a_window_of_many_pages_gives_what_the_whole_log_gives() -> None:
    """A stride of a thousand entries: what is loaded ends where the cut is known, not before."""
    log = tuple(run_of(position, 1) for position in range(5_100))
    strategy = prune(3_000, counter=CHARACTERS, step="auto")
    whole = kept(strategy, View(runs=log, positions=range(5_100)))
    assert whole[0] == 3_072
    for size in range(100, 5_000, 100):
        window = Conversation(key="k", start=5_100 - size, end=5_100, entries=log[-size:])
        view = strategy(window.view())
        assert window.is_enough(view) == (size > 3_000)
        if size > 3_000:
            assert list(view.positions) == whole


class Forbidden:
    """A counter that must not be asked."""

    name = CHARACTERS.name
    per_message = 1

    def count(self, content: Content, /) -> int:
        raise AssertionError(f"counts {content!r}, which is counted")


def test_nothing_is_counted_again() -> None:
    runs = tuple(run_of(position, 10) for position in range(500))
    for view in (View(runs=runs, positions=range(500)), view_of([10] * 500)):
        assert kept(prune(1_000, counter=Forbidden(), step="auto"), view) == list(range(448, 500))


def test_without_any_counter_it_says_so() -> None:
    with pytest.raises(BudgetError, match="prune needs a counter"):
        prune(8, step="auto")(View(runs=(run_of(0, 1),), positions=range(1)))


@pytest.mark.parametrize("step", ["foo", "AUTO", "", "8", 0, -8, 1.5, None], ids=repr)
@pytest.mark.parametrize(
    "make",
    [
        lambda step: prune(10, step=step),
        lambda step: last_runs(10, step=step),
        lambda step: forget_steps(step=step),
    ],
    ids=["prune", "last_runs", "forget_steps"],
)
def test_what_is_no_step_is_refused(make: Any, step: Any) -> None:
    with pytest.raises(BudgetError, match=r'step must be at least 1, not .*, or "auto"'):
        make(step)


def test_it_shows_in_the_name() -> None:
    strategy = compose(forget_steps(step="auto"), last_runs(9, step="auto"), prune(5, step="auto"))
    assert repr(strategy) == (
        "compose(forget_steps(keep=3, step='auto'), last_runs(9, step='auto'), prune(5, step='auto'))"
    )


@pytest.mark.anyio
async def test_a_handle_that_lives_long_sees_what_a_new_one_sees() -> None:
    driver, strategy = InMemoryDriver(), prune(400, counter=Words(), step="auto")
    await store(driver, "k", map(run, range(100)))
    places: list[int] = []
    async with Memory(driver, "k", strategy=strategy) as memory:
        for turn in range(100, 700):
            await memory.append(run(turn))
            places.append(memory.view(reserve=20).positions[0])
            if turn % 50 == 0:
                async with Memory(driver, "k", strategy=strategy) as other:
                    assert memory.messages("And now?") == other.messages("And now?")
    assert places == sorted(places)
    assert 0 < moves(places) <= len(places) / 20

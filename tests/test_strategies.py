"""What each strategy keeps, against naive references, and that older runs never matter where it says so."""

from __future__ import annotations

import random
import sys
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkit.content import Content, ToolCall, ToolResult, text_of
from memkit.conversation import Conversation, Summary, View, price_of
from memkit.errors import BudgetError, UnsupportedError
from memkit.run import Counts, Run
from memkit.steps import messages_of
from memkit.strategies import (
    Strategy,
    compose,
    everything,
    forget_steps,
    last_runs,
    pin,
    prune,
    since,
    where,
)
from memkit.testing.strategies import check_history, strategy_checks
from memkit.tokens import count_run, counted
from tests.histories import BUDGETS, CHARACTERS, STEPS, History, examples, histories, some_ids, strategies

TOOLS = (ToolCall("1", "look", "{}"), ToolResult("1", "nothing"))


class Recorder:
    """A counter that notes what it was asked to count."""

    name = "recorder"
    per_message = 0

    def __init__(self) -> None:
        self.seen: list[Content] = []

    def count(self, content: Content, /) -> int:
        self.seen.append(content)
        return len(text_of(content))


def run_of(position: int, tokens: int, *, counter: str = CHARACTERS.name, **fields: Any) -> Run:
    counts = Counts(counter, output=tokens)
    return Run(f"r{position}", "question", output="answer", counts=counts, **fields)


def view_of(*tokens: int, **fields: Any) -> View:
    runs = tuple(run_of(position, price) for position, price in enumerate(tokens))
    return View(runs=runs, positions=range(len(runs)), **fields)


def price(runs: tuple[Run, ...]) -> int:
    """Return what runs cost under `CHARACTERS`, worked out without the code that is tested."""
    total = 0
    for run in runs:
        counts = run.counts or Counts(
            CHARACTERS.name,
            CHARACTERS.count(run.input),
            CHARACTERS.count(run.steps),
            CHARACTERS.count(run.output),
            messages_of(run),
        )
        total += counts.input + counts.steps + counts.output + counts.messages * CHARACTERS.per_message
    return total


def outcome(strategy: Strategy, view: View) -> Any:
    """Return what can be seen of a strategy's answer."""
    try:
        made = strategy(view)
    except BudgetError:
        return BudgetError
    return list(made.positions), made.runs, made.summary, made.closed, made.omitted, made.reserved


def _named(value: object) -> str:
    return getattr(value, "__name__", repr(value))


# --- stable under prepending ---

STABLE = [
    everything,
    last_runs(0),
    last_runs(3),
    last_runs(100),
    last_runs(3, step=8),
    since(7),
    where(lambda run: run.input != "question 1"),
    prune(60, counter=CHARACTERS),
    prune(60),
    prune(4_000, counter=CHARACTERS, step=32),
    prune(60, counter=CHARACTERS, step=8, on_overflow="last"),
    prune(60, counter=CHARACTERS, on_overflow="raise"),
    forget_steps(keep=2),
    forget_steps(keep=0),
    forget_steps(keep=2, step=4),
    pin(["r1", "r3"], last_runs(2)),
    pin(["r1", "nobody"], prune(60, counter=CHARACTERS, step=4)),
    compose(forget_steps(keep=2), prune(60, counter=CHARACTERS, step=4)),
    compose(where(lambda run: run.input != "question 1"), last_runs(3)),
    compose(last_runs(9), pin(["r1"], prune(60, counter=CHARACTERS))),
]


@pytest.mark.parametrize("strategy", STABLE, ids=_named)
def test_our_strategies_pass_the_checks(strategy: Strategy) -> None:
    strategy_checks(strategy, max_examples=60)


@examples(600)
@given(strategies, histories())
def test_any_composition_passes_the_checks(strategy: Strategy, history: History) -> None:
    check_history(strategy, history)


def loaded_for(strategy: Strategy, log: tuple[Run, ...]) -> tuple[int, View]:
    """Load a log back from its end, doubling, until the strategy has enough."""
    size = 16
    while True:
        start = max(0, len(log) - size)
        window = Conversation(key="k", start=start, end=len(log), entries=log[start:])
        view = strategy(window.view())
        if window.is_enough(view):
            return size, view
        size *= 2


@pytest.mark.parametrize(
    ("strategy", "most"),
    [
        (last_runs(10), 16),
        (last_runs(9, step=16), 32),
        (since(990), 16),
        (prune(100, counter=CHARACTERS), 16),
        (prune(100, counter=CHARACTERS, step=8), 16),
        (compose(where(lambda run: run.created_at % 2 == 0), last_runs(10)), 32),
        (compose(forget_steps(), prune(100, counter=CHARACTERS)), 16),
        (pin(["r995"], last_runs(10)), 16),
        (compose(last_runs(10), pin(["r5"], prune(100, counter=CHARACTERS))), 16),
        (pin(["r5"], last_runs(10)), 1_024),
        (where(lambda run: run.created_at % 2 == 0), 1_024),
    ],
    ids=_named,
)
def test_no_more_is_loaded_than_a_strategy_needs(strategy: Strategy, most: int) -> None:
    log = tuple(run_of(position, 10, created_at=float(position)) for position in range(1_000))
    size, view = loaded_for(strategy, log)
    assert size == most
    assert list(view.positions) == list(strategy(View(runs=log, positions=range(1_000))).positions)


def test_a_cut_after_a_pin_waits_for_the_pin() -> None:
    """The tokens of the pin, once it is loaded, are no longer there for the newer runs."""
    log = (run_of(0, 2), run_of(1, 202), *(run_of(position, 2) for position in range(2, 40)))
    strategy = compose(pin(["r1"], prune(50, counter=CHARACTERS)), last_runs(2))
    assert list(loaded_for(strategy, log)[1].positions) == [1]


def test_a_cut_after_a_stride_waits_for_the_stride() -> None:
    """All 16 runs of the first window fit, but the stride of the whole log begins among them."""
    log = tuple(run_of(position, 10) for position in range(40))
    strategy = compose(prune(200, counter=CHARACTERS, step=16), last_runs(12))
    strided = prune(200, counter=CHARACTERS, step=16)(View(runs=log, positions=range(40)))
    assert list(strided.positions) == list(range(24, 40))
    for size in range(1, 40):
        window = Conversation(key="k", start=40 - size, end=40, entries=log[40 - size :])
        view = strategy(window.view())
        assert not window.is_enough(view) or list(view.positions) == list(range(28, 40))


# --- the checks find what is wrong ---


def closing_filter(view: View) -> View:
    return msgspec.structs.replace(view.only(lambda run: run.input != "question 1"), closed=True)


def without_repetitions(view: View) -> View:
    first = {run.input: run.id for run in reversed(view.runs)}
    return view.only(lambda run: first[run.input] == run.id)


def three_longest(view: View) -> View:
    longest = sorted(view.runs, key=lambda run: len(run.output), reverse=True)[:3]
    return view.only(lambda run: run in longest)


def cut_by_list_index(view: View) -> View:
    return view.suffix(max(0, len(view.runs) - 3) // 4 * 4)


def summary_of_short_views_only(view: View) -> View:
    return view if len(view.runs) < 3 else msgspec.structs.replace(view, summary=None)


def reversed_runs(view: View) -> View:
    return msgspec.structs.replace(view, runs=view.runs[::-1], positions=view.positions[::-1], sums=None)


def runs_without_their_positions(view: View) -> View:
    return msgspec.structs.replace(view, runs=view.runs[1:], sums=None)


def positions_of_others(view: View) -> View:
    return msgspec.structs.replace(view, runs=view.runs[1:], positions=view.positions[:-1], sums=None)


def invented_run(view: View) -> View:
    return msgspec.structs.replace(view, runs=(Run("new", ""), *view.runs), positions=[-1, *view.positions])


def stale_prices(view: View) -> View:
    return msgspec.structs.replace(view, runs=tuple(run.replace(output="short") for run in view.runs))


def change_in_place(view: View) -> View:
    if isinstance(view.sums, list):
        view.sums.append(0)
    return view


class Alternating:
    """Keeps all runs and none in turn: each answer is given `times` times."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.calls = 0

    def __call__(self, view: View) -> View:
        self.calls += 1
        return view if self.calls // self.times % 2 else view.suffix(len(view.runs))


@pytest.mark.parametrize(
    ("strategy", "problem"),
    [
        (closing_filter, "closes a view that older runs change"),
        (without_repetitions, "is not stable"),
        (compose(without_repetitions, last_runs(3)), "is not stable"),
        (three_longest, "is not stable"),
        (cut_by_list_index, "closes a view that older runs change"),
        (reversed_runs, "changes the order"),
        (runs_without_their_positions, "another number of positions"),
        (positions_of_others, "positions that are not theirs"),
        (invented_run, "positions that are not theirs"),
        (stale_prices, "prices that are not those"),
        (change_in_place, "changes the view that it is given"),
        (Alternating(1), "is not pure"),
        (Alternating(2), "is not pure|older runs change"),
        (Alternating(1_001), "is not pure|older runs change"),
    ],
)
def test_wrong_strategies_fail_the_checks(strategy: Strategy, problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        strategy_checks(strategy)


def test_what_is_shown_of_a_summary_must_be_stable_too() -> None:
    entries = tuple(run_of(position, 1) for position in range(6))
    history = History(entries, summary=Summary(content="-", upto=1, upto_id="r0", seen=5))
    check_history(everything, history)
    with pytest.raises(AssertionError, match="is not stable"):
        check_history(summary_of_short_views_only, history)


def test_a_failure_shows_the_smallest_history() -> None:
    with pytest.raises(AssertionError) as caught:
        strategy_checks(without_repetitions)
    assert "of the window from 1 on it keeps r1 at 1\nof the whole log it keeps r0 at 0" in str(caught.value)


def test_an_error_of_a_strategy_is_shown_with_its_history() -> None:
    def divides(view: View) -> View:
        return view.suffix(1 // len(view.runs))

    with pytest.raises(ZeroDivisionError) as caught:
        strategy_checks(divides)
    assert "was given no runs\nthe log [0, 0)" in caught.value.__notes__[0]


def test_the_checks_take_what_makes_a_strategy() -> None:
    class Remembering:
        """Pure for one history, which is all that it may be asked for."""

        def __init__(self) -> None:
            self.first: list[str] = []

        def __call__(self, view: View) -> View:
            self.first = self.first or [run.id for run in view.runs[:1]]
            return view.only(lambda run: run.id not in self.first)

    strategy_checks(lambda: last_runs(3))
    strategy_checks(Remembering)


def test_the_checks_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(UnsupportedError, match=r"pip install memkit\[testing\]"):
        strategy_checks(everything)


# --- laws of all strategies ---


@examples(250)
@given(strategies, histories())
def test_prices_make_no_difference(strategy: Strategy, history: History) -> None:
    view = history.view()
    assert outcome(strategy, view) == outcome(strategy, view.priced(CHARACTERS))


@examples(200)
@given(strategies, strategies, strategies, histories())
def test_compose_is_associative_and_everything_its_identity(
    a: Strategy, b: Strategy, c: Strategy, history: History
) -> None:
    view = history.view()
    one_by_one = outcome(lambda given: c(b(a(given))), view)
    assert outcome(compose(compose(a, b), c), view) == one_by_one
    assert outcome(compose(a, compose(b, c)), view) == one_by_one
    assert outcome(compose(a, b, c), view) == one_by_one
    assert outcome(compose(everything, a), view) == outcome(compose(a, everything), view) == outcome(a, view)
    assert outcome(compose(), view) == outcome(everything, view)


@examples(200)
@given(strategies, histories())
def test_what_is_left_out_is_counted(strategy: Strategy, history: History) -> None:
    view = history.view()
    made = outcome(strategy, view)
    assert made is BudgetError or made[4] == len(view.runs) - len(made[1])


def test_a_strategy_shows_its_settings() -> None:
    strategy = compose(last_runs(40, step=8), pin({"b", "a"}, prune(6_000)), since(1.5), everything)
    shown = "compose(last_runs(40, step=8), pin(['a', 'b'], prune(6000)), since(1.5), everything)"
    assert repr(strategy) == shown


# --- everything, last_runs, since, where ---


def test_everything_is_everything() -> None:
    view = view_of(1, 2, 3)
    assert everything(view) is view


@examples(200)
@given(st.integers(0, 12), STEPS, histories())
def test_last_runs_keeps_n_and_fewer_than_a_stride_more(n: int, step: int, history: History) -> None:
    view = history.view()
    kept = last_runs(n, step=step)(view)
    size = len(kept.runs)
    assert kept.runs == view.runs[len(view.runs) - size :]
    assert size == len(view.runs) if len(view.runs) < n else n <= size < n + step


def test_the_first_run_stays_for_a_stride() -> None:
    first = [last_runs(5, step=8)(view_of(*[1] * size)).positions[0] for size in range(5, 40)]
    assert sorted(set(first)) == [0, 8, 16, 24, 32]
    assert first == sorted(first)
    changes = [newer - older for older, newer in pairwise(first) if newer != older]
    assert changes == [8] * 4


def test_since_is_a_suffix_after_the_newest_older_run() -> None:
    clocks = [5.0, 1.0, 8.0, 3.0, 9.0]
    view = View(runs=tuple(run_of(at, 1, created_at=clock) for at, clock in enumerate(clocks)), positions=range(5))
    assert list(since(4)(view).positions) == [4]
    assert list(since(datetime.fromtimestamp(4, UTC))(view).positions) == [4]
    assert list(since(1)(view).positions) == [0, 1, 2, 3, 4]
    assert since(4)(view).closed
    assert not since(1)(view).closed
    assert since(10)(view).runs == ()


def test_where_filters_and_stays_open() -> None:
    view = view_of(1, 2, 3, 4)
    kept = where(lambda run: run.id in {"r1", "r3"})(view)
    assert list(kept.positions) == [1, 3]
    assert not kept.closed
    assert kept.omitted == 2


# --- prune ---


def longest_that_fits(view: View, max_tokens: int) -> tuple[list[int], Summary | None]:
    """Try every suffix: the reference for `prune`, quadratic and simple."""
    room = max_tokens - view.reserved
    summary = view.summary
    if summary is not None and price_of(summary, CHARACTERS) > room:
        summary = None
    if summary is not None:
        room -= price_of(summary, CHARACTERS)
    for first in range(len(view.runs)):
        if price(view.runs[first:]) <= room:
            return list(view.positions[first:]), summary
    return [], summary


@examples(250)
@given(BUDGETS, histories(max_ops=16))
def test_prune_keeps_the_longest_suffix_that_fits(max_tokens: int, history: History) -> None:
    view = history.view()
    kept = prune(max_tokens, counter=CHARACTERS)(view)
    assert (list(kept.positions), kept.summary) == longest_that_fits(view, max_tokens)
    assert kept.runs == view.runs[len(view.runs) - len(kept.runs) :]


def strided(view: View, fitting: list[int], step: int) -> list[int]:
    """Try every multiple of `step` after what does not fit, then of its halvings: the reference for strides."""
    if len(fitting) == len(view.runs):
        return fitting
    prices = {at: price((run,)) for at, run in zip(view.positions, view.runs, strict=True)}
    too_old = max(at for at in view.positions if at not in fitting)
    while step > 1:
        multiple = next(at for at in range(too_old + 1, too_old + 1 + step) if at % step == 0)
        kept = [at for at in fitting if at >= multiple]
        if kept and 2 * sum(prices[at] for at in kept) >= sum(prices[at] for at in fitting):
            return kept
        step //= 2
    return fitting


@examples(250)
@given(BUDGETS, STEPS, histories(max_ops=20))
def test_a_stride_cuts_at_multiples_and_keeps_half(max_tokens: int, step: int, history: History) -> None:
    view = history.view()
    fitting = prune(max_tokens, counter=CHARACTERS)(view)
    kept = prune(max_tokens, counter=CHARACTERS, step=step)(view)
    assert list(kept.positions) == strided(view, list(fitting.positions), step)
    assert 2 * price(kept.runs) >= price(fitting.runs)
    assert bool(kept.runs) == bool(fitting.runs)
    assert kept.summary == fitting.summary


def test_a_stride_begins_at_a_multiple_while_much_fits() -> None:
    firsts = [
        prune(400, step=8, counter=CHARACTERS)(view_of(*[10] * size)).positions[0] for size in range(41, 200)
    ]
    assert {first % 8 for first in firsts} == {0}


@pytest.mark.parametrize(("on_overflow", "kept"), [("empty", []), ("last", [2])], ids=["empty", "last"])
@pytest.mark.parametrize("step", [1, 8])
def test_where_not_even_the_newest_run_fits(on_overflow: Any, kept: list[int], step: int) -> None:
    strategy = prune(10, counter=CHARACTERS, on_overflow=on_overflow, step=step)
    view = strategy(view_of(1, 1, 11))
    assert list(view.positions) == kept
    assert view.closed


def test_overflow_can_raise_and_names_what_is_reserved() -> None:
    strategy = prune(10, counter=CHARACTERS, on_overflow="raise")
    with pytest.raises(BudgetError, match="10 tokens, of which 4 are reserved"):
        strategy(view_of(1, 1, 7, reserved=4))
    assert strategy(view_of(reserved=11)).runs == ()
    assert list(strategy(view_of(1, 1, 6, reserved=4)).positions) == [2]


def test_a_summary_is_paid_for_or_left_out() -> None:
    summary = Summary(
        content="-", upto=0, upto_id="", seen=0, counts=Counts(CHARACTERS.name, output=5, messages=1)
    )
    view = view_of(4, 4, 4, summary=summary)
    strategy = prune(10, counter=CHARACTERS)
    assert list(strategy(view).positions) == [2]
    assert strategy(view).summary is summary
    dear = msgspec.structs.replace(summary, counts=Counts(CHARACTERS.name, output=10, messages=1))
    without = strategy(msgspec.structs.replace(view, summary=dear))
    assert without.summary is None
    assert list(without.positions) == [1, 2]


def test_prune_takes_the_counter_of_the_view() -> None:
    assert list(prune(8)(view_of(4, 4, 4).priced(CHARACTERS)).positions) == [1, 2]
    with pytest.raises(BudgetError, match="prune needs a counter"):
        prune(8)(view_of(4, 4, 4))


def test_prices_of_another_counter_are_not_used() -> None:
    view = view_of(4, 4, 4).priced(CHARACTERS)
    counter = Recorder()
    assert len(prune(len("questionanswer"), counter=counter)(view).runs) == 1


def test_stored_counts_are_never_counted_again() -> None:
    counter = Recorder()
    runs = tuple(run_of(position, 10, counter=counter.name, steps=TOOLS) for position in range(50))
    summary = Summary(content="-", upto=0, upto_id="", seen=0, counts=Counts(counter.name, output=5))
    view = View(runs=runs, positions=range(50), summary=summary)
    for strategy, number in ((prune(95, counter=counter), 9), (prune(95, counter=counter, step=4), 6)):
        assert len(strategy(view).runs) == len(strategy(view.priced(counter)).runs) == number
    assert counter.seen == []


@examples(200)
@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 60))
def test_only_what_fits_and_one_run_more_is_tokenised(lengths: list[int], max_tokens: int) -> None:
    runs = tuple(Run(f"r{at}", f"{at:04}", output="!" * length) for at, length in enumerate(lengths))
    counter = Recorder()
    kept = prune(max_tokens, counter=counter)(View(runs=runs, positions=range(len(runs))))
    asked = {content for content in counter.seen if isinstance(content, str) and content.isdigit()}
    assert asked <= {run.input for run in runs[max(0, len(runs) - len(kept.runs) - 1) :]}
    assert len(counter.seen) == 2 * len(asked)


# --- strides over thousands of turns: no amnesia, and a prompt cache that hits ---


def simulated(step: int, sizes: list[int], max_tokens: int) -> tuple[float, list[int]]:
    """Return the share of prompt tokens that a provider would have cached, and how many runs each prompt has."""
    runs = [run_of(position, size) for position, size in enumerate(sizes)]
    strategy = prune(max_tokens, counter=CHARACTERS, step=step)
    cached = sent = 0
    before: list[int] = []
    kept: list[int] = []
    for end in range(1, len(runs) + 1):
        start = max(0, end - 100)
        view = strategy(View(runs=tuple(runs[start:end]), positions=range(start, end)))
        now = list(view.positions)
        same = next(
            (n for n, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now))
        )
        cached += sum(sizes[at] for at in now[:same])
        sent += sum(sizes[at] for at in now)
        before = [*now, end]
        kept.append(len(now))
    return cached / sent, kept


@pytest.mark.parametrize(("typical", "max_tokens"), [(240, 4_000), (1_500, 32_000)])
def test_strides_keep_the_prompt_cache_and_never_cause_amnesia(typical: int, max_tokens: int) -> None:
    chance = random.Random(7)
    sizes = [int(chance.lognormvariate(0, 0.8) * typical) for _ in range(2_500)]
    share, kept = simulated(1, sizes, max_tokens)
    for step in (8, 32):
        strided_share, strided_kept = simulated(step, sizes, max_tokens)
        assert not [1 for few, many in zip(strided_kept, kept, strict=True) if many and not few]
        assert strided_share > 1.4 * share


# --- forget_steps ---


@examples(200)
@given(st.integers(0, 5), STEPS, histories())
def test_forget_steps_changes_old_runs_only(keep: int, step: int, history: History) -> None:
    view = history.view()
    made = forget_steps(keep=keep, step=step)(view)
    old = max(0, len(view.runs) - keep)
    border = view.positions[old] // step * step if keep and old else history.end
    assert list(made.positions) == list(view.positions)
    for at, before, after in zip(view.positions, view.runs, made.runs, strict=True):
        if old and at < border:
            assert after.steps == ()
            assert msgspec.structs.replace(after, steps=before.steps, counts=before.counts) == before
        else:
            assert after is before


@examples(200)
@given(histories(with_summary=False))
def test_forgotten_steps_cost_nothing_and_nothing_is_counted_for_it(history: History) -> None:
    runs = tuple(counted(msgspec.structs.replace(run, counts=None), CHARACTERS) for run in history.view().runs)
    made = forget_steps(keep=1)(View(runs=runs, positions=range(len(runs))))
    for run in made.runs:
        assert run.counts == count_run(run, CHARACTERS)


def test_pruning_after_forgetting_tokenises_nothing() -> None:
    counter = Recorder()
    counts = Counts(counter.name, input=1, steps=100, output=1, messages=4)
    runs = tuple(Run(f"r{at}", "q", TOOLS, "a", counts=counts) for at in range(50))
    view = View(runs=runs, positions=range(50))
    strategy = compose(forget_steps(keep=1), prune(110, counter=counter))
    assert len(strategy(view).runs) == len(strategy(view.priced(counter)).runs) == 5
    assert counter.seen == []


def test_uncounted_runs_stay_uncounted_without_their_steps() -> None:
    made = forget_steps(keep=0)(View(runs=(Run("r0", "q", TOOLS, "a"),), positions=range(1)))
    assert made.runs == (Run("r0", "q", (), "a"),)


# --- pin ---


@examples(200)
@given(some_ids, BUDGETS, histories())
def test_pins_are_kept_and_their_tokens_reserved(ids: set[str], max_tokens: int, history: History) -> None:
    view = history.view()
    kept = pin(ids, prune(max_tokens, counter=CHARACTERS))(view)
    pinned = tuple(run for run in view.runs if run.id in ids)
    others = tuple(run for run in kept.runs if run.id not in ids)
    assert [run for run in kept.runs if run.id in ids] == list(pinned)
    assert list(kept.positions) == sorted(kept.positions)
    assert kept.reserved == view.reserved
    rest = view.only(lambda run: run.id not in ids)
    alone = prune(max_tokens, counter=CHARACTERS)(
        msgspec.structs.replace(rest, reserved=view.reserved + price(pinned))
    )
    assert others == alone.runs
    if others:
        assert price(kept.runs) + view.reserved <= max_tokens


def test_pins_reserve_under_the_counter_of_what_they_wrap() -> None:
    """Also where the view has prices under another counter, or none."""
    strategy = pin(["r0"], compose(everything, prune(10, counter=CHARACTERS)))
    for view in (view_of(4, 4, 4, 4), view_of(4, 4, 4, 4).priced(Recorder())):
        assert list(strategy(view).positions) == [0, 3]


def test_pins_of_pins_and_of_filters() -> None:
    view = view_of(*[1] * 10)
    strategy = pin(["r1"], pin(["r3"], last_runs(1)))
    assert list(strategy(view).positions) == [1, 3, 9]
    strategy = compose(where(lambda run: run.id != "r1"), pin(["r1", "r3"], last_runs(1)))
    assert list(strategy(view).positions) == [3, 9]


# --- impossible settings ---


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: last_runs(-1), "n must be at least 0, not -1"),
        (lambda: last_runs(3, step=0), "step must be at least 1, not 0"),
        (lambda: prune(0), "max_tokens must be at least 1, not 0"),
        (lambda: prune(10, step=-8), "step must be at least 1, not -8"),
        (lambda: forget_steps(keep=-1), "keep must be at least 0, not -1"),
        (lambda: forget_steps(step=0), "step must be at least 1, not 0"),
    ],
)
def test_impossible_settings_are_refused_at_once(make: Any, problem: str) -> None:
    with pytest.raises(BudgetError, match=problem):
        make()

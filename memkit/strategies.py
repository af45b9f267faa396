"""Strategies: which part of a conversation goes into the next prompt.

A strategy is a pure function from view to view. It must be *stable under prepending*: older runs never
change what it does with newer ones (`memkit.testing.strategy_checks` proves that for anyone's). Whoever cuts
a suffix closes the view, which ends the loading; filters leave it open. Cuts lie between runs, so a tool call
is never parted from its result.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Final, Literal, TypeAlias

import msgspec

from memkit.conversation import View, price_of
from memkit.errors import BudgetError
from memkit.run import Run
from memkit.steps import messages_of
from memkit.strides import Step, check_step, stable_cut, step_beside
from memkit.tokens import TokenCounter, cost_of

Strategy: TypeAlias = Callable[[View], View]
Overflow: TypeAlias = Literal["empty", "last", "raise"]


class NamedStrategy(msgspec.Struct, frozen=True):
    """A strategy that shows its settings, the counter that it needs, and what `compose` made it of."""

    label: str
    function: Callable[[View], View]
    counter: TokenCounter | None = None
    parts: tuple[Strategy, ...] = ()

    def __call__(self, view: View) -> View:
        """Apply the strategy."""
        return self.function(view)

    def __repr__(self) -> str:
        return self.label


def everything(view: View) -> View:
    """Keep all runs. Loads the whole history; long conversations want `last_runs` or `prune`."""
    return view


def last_runs(n: int, *, step: Step = 1) -> Strategy:
    """Keep the newest `n` runs; with `step`, at least `n` and fewer than `n + step`.

    The first kept run then stays the same for `step` entries of the log, so that the beginning of the prompt
    stays the same from turn to turn and a provider's prompt cache keeps hitting. `"auto"` is the step at which
    the prompts cost least where cached tokens cost a tenth: the root of 18 (n - 1), 42 for 100 runs.

    Raises:
        BudgetError: `n` is negative, or `step` neither positive nor `"auto"`.
    """
    _at_least("n", n, 0)
    check_step(step)
    stride = step_beside(n, step)

    def apply(view: View) -> View:
        index = len(view.runs) - n
        if index < 0:
            return view
        if n == 0:
            return view.suffix(index)
        cut = view.positions[index] // stride * stride
        first = bisect_left(view.positions, cut)
        # At index 0 an older run, not loaded yet, may still lie behind the cut.
        return view.suffix(first) if first or view.positions[0] == cut else view

    return NamedStrategy(f"last_runs({n}{_step(step)})", apply)


def since(moment: float | datetime) -> Strategy:
    """Keep what came after the newest run that is older than `moment`, a datetime or seconds since the epoch.

    A suffix, not a filter: the clocks of several writers are not ordered, the log is.
    """
    seconds = moment.timestamp() if isinstance(moment, datetime) else moment

    def apply(view: View) -> View:
        for index in reversed(range(len(view.runs))):
            if view.runs[index].created_at < seconds:
                return view.suffix(index + 1)
        return view

    return NamedStrategy(f"since({moment!r})", apply)


def where(predicate: Callable[[Run], bool]) -> Strategy:
    """Keep the runs for which `predicate` is true. Alone it loads the whole history; compose it with a cut."""
    return NamedStrategy(f"where({_name(predicate)})", lambda view: view.only(predicate))


def pin(ids: Collection[str], inner: Strategy) -> Strategy:
    """Keep the runs of these ids whatever `inner` does; their tokens are reserved before it chooses.

    Loading goes back until all of them are found, so an id that is not there loads the whole history.
    """
    pinned = frozenset(ids)
    counter = counter_of(inner)

    def apply(view: View) -> View:
        rest = view.only(lambda run: run.id not in pinned)
        price = _price(view, pinned, counter or view.counter)
        kept = inner(msgspec.structs.replace(rest, reserved=view.reserved + price))
        found = [item for item in zip(view.positions, view.runs, strict=True) if item[1].id in pinned]
        has_all = view.closed or len(found) == len(pinned)
        merged = sorted([*zip(kept.positions, kept.runs, strict=True), *found], key=lambda item: item[0])
        return msgspec.structs.replace(
            kept,
            runs=tuple([run for _, run in merged]),
            positions=[position for position, _ in merged],
            sums=None,
            closed=kept.closed and has_all,
            settled=kept.settled and has_all,
            omitted=kept.omitted - len(found),
            reserved=view.reserved,
        )

    return NamedStrategy(f"pin({sorted(pinned)}, {_name(inner)})", apply, counter)


def prune(
    max_tokens: int,
    *,
    counter: TokenCounter | None = None,
    step: Step = 1,
    on_overflow: Overflow = "empty",
) -> Strategy:
    """Keep the longest suffix of runs that fits `max_tokens` beside the summary and what is reserved.

    Runs are whole or absent. Without `counter` the prices are those of the handle's counter. With `step` the
    cut lies at the first position divisible by `step` that fits; while that would keep less than half of the
    tokens that fit, `step` is halved. `"auto"` is the largest step that this leaves, and so the cheapest: the
    fewer cuts, the less a turn costs, and a token kept, whatever the price of cached tokens. About a quarter of
    the budget is then unused on average, never more than half of what fits.

    Where not even the newest run fits, `on_overflow` says what is kept: nothing (`"empty"`), the newest run all
    the same (`"last"`), or a `BudgetError` (`"raise"`). A summary that does not fit is left out.

    Raises:
        BudgetError: `max_tokens` is not positive, or `step` neither positive nor `"auto"`; or, when applied,
            there is no counter at all.
    """
    _at_least("max_tokens", max_tokens, 1)
    check_step(step)

    def apply(view: View) -> View:
        by = counter or view.counter
        if by is None:
            raise BudgetError("prune needs a counter: give one to prune(counter=...) or to Memory(counter=...)")
        if not view.runs and view.summary is None:
            return view
        budget = max_tokens - view.reserved
        if view.summary is not None:
            price = price_of(view.summary, by)
            if price > budget:
                view = msgspec.structs.replace(view, summary=None)
            else:
                budget -= price
        older, sums = _sums(view, by, budget)
        first = bisect_left(sums, sums[-1] - budget)
        if older + first == 0 or not view.runs:
            # All fits, but with older runs a stride may begin among these.
            return view if step == 1 else msgspec.structs.replace(view, settled=False)
        if older + first >= len(view.runs):
            return _overflow(view, max_tokens, on_overflow)
        positions = view.positions[older:] if older else view.positions
        return view.suffix(older + stable_cut(positions, sums, first, step))

    return NamedStrategy(f"prune({max_tokens}{_step(step)})", apply, counter)


def forget_steps(*, keep: int = 3, step: Step = 1) -> Strategy:
    """Drop the tool traffic of all but the newest `keep` runs; with `step`, of fewer, in strides.

    `"auto"` is the step of `last_runs(keep)`: right where a run is little without its traffic.

    Raises:
        BudgetError: `keep` is negative, or `step` neither positive nor `"auto"`.
    """
    _at_least("keep", keep, 0)
    check_step(step)
    stride = step_beside(keep, step)

    def apply(view: View) -> View:
        index = len(view.runs) - keep
        if index <= 0:
            return view
        if keep:
            index = bisect_left(view.positions, view.positions[index] // stride * stride)
        old, new = view.runs[:index], view.runs[index:]
        if not any(run.steps for run in old):
            return view
        return view.changed((*map(_without_steps, old), *new))

    return NamedStrategy(f"forget_steps(keep={keep}{_step(step)})", apply)


def compose(*strategies: Strategy) -> Strategy:
    """Apply strategies from left to right. Without any, this is `everything`.

    Raises:
        BudgetError: the strategies have different counters.
    """
    parts: list[Strategy] = []
    for strategy in strategies:
        parts.extend(parts_of(strategy))

    def apply(view: View) -> View:
        for part in parts:
            view = part(view)
        return view

    counters = [found for part in parts if (found := counter_of(part)) is not None]
    if len({counter.name for counter in counters}) > 1:
        raise BudgetError(f"runs are counted by one counter, not by several: {counters}")
    label = f"compose({', '.join(map(_name, parts))})"
    return NamedStrategy(label, apply, counters[0] if counters else None, tuple(parts))


FACTORIES: Final[Mapping[str, object]] = {
    factory.__name__: factory for factory in (last_runs, since, where, pin, prune, forget_steps, compose)
}
"""What makes strategies, and is none."""


def counter_of(strategy: Strategy) -> TokenCounter | None:
    """Return the counter that a strategy was made with, if it was."""
    counter: TokenCounter | None = getattr(strategy, "counter", None)
    return counter


def parts_of(strategy: Strategy) -> tuple[Strategy, ...]:
    """Return the strategies that `compose` put together, or the one that it is."""
    composed = isinstance(strategy, NamedStrategy) and strategy.parts
    return composed or (strategy,)


def _sums(view: View, counter: TokenCounter, budget: int) -> tuple[int, Sequence[int]]:
    """Return how many older runs have no price, and running sums of the prices of the others.

    Without prices in the view the newest runs are priced until the budget is spent, and none before them.
    """
    if view.sums is not None and view.counter is not None and view.counter.name == counter.name:
        return 0, view.sums
    spent = [0]
    for run in reversed(view.runs):
        spent.append(spent[-1] - cost_of(run, counter))
        if spent[-1] < -budget:
            break
    return len(view.runs) + 1 - len(spent), spent[::-1]


def _overflow(view: View, max_tokens: int, on_overflow: Overflow) -> View:
    if on_overflow == "raise":
        raise BudgetError(
            f"not even the newest run fits {max_tokens} tokens, of which {view.reserved} are reserved; "
            'raise the budget, reserve less, or choose on_overflow="empty" or "last"'
        )
    return view.suffix(len(view.runs) - (on_overflow == "last"))


def _without_steps(run: Run) -> Run:
    after = msgspec.structs.replace(run, steps=())
    if run.counts is None:
        return after
    # What was dropped needs no count, so this is not `run.replace`.
    counts = msgspec.structs.replace(run.counts, steps=0, messages=messages_of(after))
    return msgspec.structs.replace(after, counts=counts)


def _price(view: View, ids: Collection[str], counter: TokenCounter | None) -> int:
    return 0 if counter is None else sum(cost_of(run, counter) for run in view.runs if run.id in ids)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise BudgetError(f"{name} must be at least {least}, not {value}")


def _step(step: Step) -> str:
    return "" if step == 1 else f", step={step!r}"


def _name(function: object) -> str:
    return repr(function) if isinstance(function, NamedStrategy) else getattr(function, "__name__", repr(function))

"""Checks for strategies: the ones that memkit ships pass them, and so must anyone's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import msgspec

from memkit.conversation import Summary, View
from memkit.errors import BudgetError, UnsupportedError
from memkit.run import Run
from memkit.strategies import Strategy
from memkit.tokens import TokenCounter, cost_of

if TYPE_CHECKING:
    from memkit.testing.histories import History

_encoder = msgspec.json.Encoder(enc_hook=repr)


def strategy_checks(strategy: Strategy | Callable[[], Strategy], *, max_examples: int = 100) -> None:
    """Prove, with random histories, that a strategy is one that memkit can load for.

    ```python
    def test_my_strategy():
        strategy_checks(my_strategy)
        strategy_checks(compose(my_strategy, prune(200, counter=approximate())))
    ```

    A strategy is pure, keeps runs in their order and each at its position, and is *stable under prepending*:
    what it does with newer runs is the same whether older ones have been loaded or not, so that a window of
    the log gives the view that the whole log would give.

    Histories have up to about 300 entries, most of them fewer than 25, with runs of up to 20 000 tokens that
    are called `r0`, `r1`, ...; choose settings that do something to those. A callable without arguments makes
    the strategy: it is called for each history.

    Raises:
        AssertionError: the strategy breaks a rule; the message shows the smallest history found that tells.
        UnsupportedError: hypothesis is not installed.
    """
    try:
        import hypothesis  # noqa: PLC0415 - an extra that nothing else of memkit needs
        from hypothesis.errors import Flaky  # noqa: PLC0415
    except ImportError as error:
        raise UnsupportedError("strategy_checks needs hypothesis: pip install memkit[testing]") from error
    from memkit.testing.histories import histories  # noqa: PLC0415

    @hypothesis.settings(
        max_examples=max_examples,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    @hypothesis.given(histories())
    def holds(history: History) -> None:
        check_history(_made(strategy), history)

    try:
        holds()
    except Flaky as error:
        raise AssertionError(f"{strategy!r} is not pure: one history sometimes passes, sometimes not") from error


def check_history(strategy: Strategy, history: History) -> None:
    """Check one strategy with one history, without prices and with them.

    Raises:
        AssertionError: the strategy breaks a rule of `strategy_checks`.
    """
    from memkit.testing.histories import CHARACTERS  # noqa: PLC0415

    for counter in (None, CHARACTERS):
        whole = _apply(strategy, history, history.base, counter)
        for start in _starts(history):
            window = _apply(strategy, history, start, counter)
            if history.reserved:
                # Loading decides without knowing what a prompt will reserve: that can only make views shorter.
                plain = msgspec.structs.replace(history, reserved=0)
                loaded = _apply(strategy, plain, start, counter)
            else:
                loaded = window
            problem = _compare(history, start, loaded, window, whole)
            if problem:
                raise AssertionError(
                    f"{strategy!r} {problem}\n"
                    f"of the window from {start} on it keeps {_show(window)}\n"
                    f"of the whole log it keeps {_show(whole)}\n{history}"
                )


def _made(strategy: Strategy | Callable[[], Strategy]) -> Strategy:
    try:
        is_maker = not inspect.signature(strategy).parameters
    except ValueError:  # a callable that is written in C
        is_maker = False
    return cast("Callable[[], Strategy]", strategy)() if is_maker else cast("Strategy", strategy)


def _starts(history: History) -> Iterator[int]:
    """Yield where windows begin: those of every size up to 32, then of ever twice the size."""
    size = 0
    while (start := history.end - size) > history.base:
        yield start
        size = size + 1 if size < 32 else 2 * size


def _compare(history: History, start: int, loaded: View | None, window: View | None, whole: View | None) -> str:
    """Return what is wrong with the view of a window beside that of the whole log; None is a `BudgetError`.

    `loaded` is the view that decides whether the window is enough.
    """
    if loaded is None or history.window(start).is_enough(loaded):
        return "" if _kept(window) == _kept(whole) else "closes a view that older runs change"
    if window is None or whole is None or not window.settled or not history.reaches_summary(start):
        return ""
    is_stable = _kept(window) == _kept(whole, start)
    return "" if is_stable else "is not stable: older runs change what it does with newer ones"


def _kept(view: View | None, start: int = 0) -> tuple[list[tuple[int, Run]], Summary | None] | None:
    if view is None:
        return None
    pairs = zip(view.positions, view.runs, strict=True)
    return [(position, run) for position, run in pairs if position >= start], view.summary


def _show(view: View | None) -> str:
    if view is None:
        return "nothing: BudgetError"
    names = [f"{run.id} at {position}" for position, run in zip(view.positions, view.runs, strict=False)]
    summary = "" if view.summary is None else "the summary and "
    return f"{summary}{', '.join(names) or 'no runs'}{' (closed)' if view.closed else ''}"


def _apply(strategy: Strategy, history: History, start: int, counter: TokenCounter | None) -> View | None:
    """Return the view that a strategy makes of a window, checked by itself; None if it raises `BudgetError`."""
    given = history.view(start)
    if counter is not None:
        given = given.priced(counter)
    before = _state(given)
    try:
        made, again = strategy(given), strategy(given)
    except BudgetError:
        return None
    except Exception as error:
        error.add_note(f"{strategy!r} was given {_show(given)}\n{history}")
        raise
    if _state(given) != before:
        problem = "changes the view that it is given"
    elif made != again:
        problem = "is not pure: it answers differently when asked again"
    else:
        problem = _misplaced(given, made) or _mispriced(made)
    if problem:
        raise AssertionError(f"{strategy!r} {problem}\nof {_show(given)}\nit keeps {_show(made)}\n{history}")
    return made


def _state(view: View) -> tuple[object, ...]:
    """Return a copy of all in a view that could be changed in place."""
    return list(view.positions), list(view.sums or ()), _encoder.encode(view.runs)


def _misplaced(given: View, made: View) -> str:
    if len(made.positions) != len(made.runs):
        return "keeps another number of positions than of runs"
    ids = {position: run.id for position, run in zip(given.positions, given.runs, strict=True)}
    if any(ids.get(at) != run.id for at, run in zip(made.positions, made.runs, strict=True)):
        return "moves runs to positions that are not theirs"
    if any(older >= newer for older, newer in pairwise(made.positions)):
        return "changes the order of the runs"
    return ""


def _mispriced(made: View) -> str:
    if made.sums is None or made.counter is None:
        return ""
    prices = [newer - older for older, newer in pairwise(made.sums)]
    is_right = prices == [cost_of(run, made.counter) for run in made.runs]
    return "" if is_right else "hands on prices that are not those of its runs; see View.suffix, only and changed"

"""When runs are folded into a summary, how many at a time, and what a summariser is.

Everything here decides and nothing calls: `memkit.folding` does. A summary is a checkpoint beside the log: it
covers what lies before a position, and what it covers is still stored. So a summary that fails, or was never
made, costs tokens and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

import msgspec

from memkit.content import Content, Json, text_of
from memkit.errors import BudgetError, FormatError, SummaryError
from memkit.rawjson import to_json
from memkit.run import Run
from memkit.tokens import TokenCounter, cost_of

Summarized: TypeAlias = str | Mapping[str, Any]
"""What a summariser makes: text, or a JSON object, which is kept as a `Json` part."""

SETTLING_TIME: Final = 3_600.0
"""Seconds for which a partial run is waited for. It may still be finished, and then its summary would be stale."""


CALL_TIME_LIMIT: Final = 300.0
"""Seconds after which a summariser that hangs is given up. Its own client should have a shorter limit."""


class Summarizer(Protocol):
    """Makes a summary. An async function, an async generator of pieces of text, or an object with this method."""

    def __call__(
        self, runs: Sequence[Run], /, *, previous: str | None
    ) -> Awaitable[Summarized] | AsyncIterator[str]:
        """Return one summary of what `previous` says, if there is one, and of `runs`.

        Whatever it raises, the conversation stays as it was, and the call is made again later.
        """
        ...


@runtime_checkable
class NamesModel(Protocol):
    """A summariser that knows what model it asks; the name is stored with the summary."""

    @property
    def model(self) -> str:
        """The name of the model."""
        ...


class SummaryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Says when runs are folded into the summary.

    The newest `keep` runs are never folded. Of those before them, a fold is due as soon as `every` of them wait,
    or their `tokens` tokens, if that is given. A call of the summariser carries as many as fit
    `max_input_tokens` beside the previous summary, at least one, so a backlog takes several; if there is room
    left, it also gets up to `overlap` runs that are covered already, for context. A partial run, and what
    follows it, waits until it is finished or an hour old.

    Raises:
        BudgetError: a number that cannot be.
    """

    keep: int = 4
    every: int = 8
    tokens: int | None = None
    overlap: int = 0
    max_input_tokens: int = 16_000

    def __post_init__(self) -> None:
        least = {"keep": 0, "every": 1, "tokens": 1, "overlap": 0, "max_input_tokens": 100}
        for name, value in least.items():
            given: object = getattr(self, name)
            if name == "tokens" and given is None:
                continue
            if type(given) is not int or given < value:
                raise BudgetError(f"{name} of a SummaryPolicy is an int of at least {value}, not {given!r}")


def due(
    runs: Sequence[Run],
    policy: SummaryPolicy,
    *,
    counter: TokenCounter,
    now: float,
    is_stale: bool = False,
    taken: int = 0,
) -> int:
    """Return how many of the runs that no summary covers the next fold takes, oldest first; 0 if none is due.

    `now` is in seconds since the epoch. `is_stale` says that there was a summary of some of them already, which
    is to be made anew without waiting for more. `taken` are tokens of the call that other things take.
    """
    waiting = list(_settled(runs[: max(0, len(runs) - policy.keep)], now))
    is_due = len(waiting) >= (1 if is_stale else policy.every)
    if not is_due and waiting and policy.tokens is not None:
        is_due = sum(cost_of(run, counter) for run in waiting) >= policy.tokens
    return _fitting(waiting, policy.max_input_tokens - taken, counter) if is_due else 0


def shortened(run: Run, max_tokens: int, counter: TokenCounter) -> Run:
    """Return a run of at most about `max_tokens`: without its steps, and with its texts cut, as far as need be."""
    if cost_of(run, counter) <= max_tokens:
        return run
    run = run.replace(steps=())
    while (cost := cost_of(run, counter)) > max_tokens:
        share = 0.9 * max_tokens / cost
        before = run
        run = run.replace(input=_cut(run.input, share), output=_cut(run.output, share))
        if run == before:
            break
    return run


def content_of_summary(made: object) -> Content:
    """Return what a summariser has made as content.

    Raises:
        SummaryError: nothing, or neither text nor a JSON object.
    """
    if isinstance(made, Mapping) and made:
        try:
            return (Json(to_json(made, "summary", depth=2)),)
        except FormatError as error:
            raise SummaryError(f"the summariser made an object that is not JSON: {error}") from error
    if isinstance(made, str) and made.strip():
        return made.strip()
    raise SummaryError(f"the summariser made no summary, but {made!r:.80}; it must be text or a JSON object")


def _settled(runs: Sequence[Run], now: float) -> Iterator[Run]:
    for run in runs:
        # Clocks differ, but one that claims to come from a far future would be waited for for ever.
        if run.status == "partial" and abs(now - run.created_at) < SETTLING_TIME:
            return
        yield run


def _fitting(runs: Sequence[Run], max_tokens: int, counter: TokenCounter) -> int:
    tokens = 0
    for index, run in enumerate(runs):
        tokens += cost_of(run, counter)
        if tokens > max_tokens and index:
            return index
    return len(runs)


def _cut(content: Content, share: float) -> Content:
    if content == ():
        return ()
    text = text_of(content)
    half = int(len(text) * share / 2)
    left_out = len(text) - 2 * half
    mark = f" [... {left_out:,} characters left out ...] "
    return text if left_out <= len(mark) else f"{text[:half]}{mark}{text[len(text) - half :]}"

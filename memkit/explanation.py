"""What goes into a prompt, what does not, why, and for how many tokens."""

from __future__ import annotations

import msgspec

from memkit.conversation import Conversation, View, price_of
from memkit.messages import is_skipped
from memkit.run import Run
from memkit.strategies import Strategy, parts_of
from memkit.tokens import cost_of


class Explained(msgspec.Struct, frozen=True):
    """One run: where it stands, whether it is in the prompt, why (not), and its tokens if a counter is known."""

    position: int
    run: Run
    is_included: bool
    why: str
    tokens: int | None


class Explanation(msgspec.Struct, frozen=True):
    """A prompt, run by run. `str()` is a table to read.

    `tokens` is what the included runs and the summary cost, `reserved` what other things take; `before` is
    how many entries were not even loaded, at most.
    """

    runs: tuple[Explained, ...]
    summary: str | None
    tokens: int | None
    reserved: int
    before: int

    def __str__(self) -> str:
        lines = [f"{'position':>8}  {'tokens':>7}  in the prompt?"]
        if self.before:
            lines.append(f"{'...':>8}  {'':>7}  no: at most {self.before} older entries, not loaded")
        for item in self.runs:
            tokens = "?" if item.tokens is None else f"{item.tokens:,}"
            answer = "yes" if item.is_included else "no"
            lines.append(f"{item.position:>8}  {tokens:>7}  {answer}{': ' if item.why else ''}{item.why}")
        lines.append(f"{'summary':>8}  {'':>7}  {'none' if self.summary is None else self.summary}")
        total = "unknown, there is no counter" if self.tokens is None else f"{self.tokens:,}"
        lines.append(f"tokens: {total}; reserved for other things: {self.reserved:,}")
        return "\n".join(lines)


def explain(conversation: Conversation, full: View, strategy: Strategy) -> Explanation:
    """Return why each run of the window is in the prompt that `strategy` makes of the view `full`, or not."""
    counter = full.counter
    positions, all_runs = conversation.resolved()
    view, why = full, dict.fromkeys(set(positions) - set(full.positions), "covered by the summary")
    for part in parts_of(strategy):
        after = part(view)
        why |= _dropped(view, after, f"left out by {part!r}")
        why |= _changed(view, after, f"shortened by {part!r}")
        view = after
    kept = dict(zip(view.positions, view.runs, strict=True))
    runs: list[Explained] = []
    for position, run in zip(positions, all_runs, strict=True):
        sent = kept.get(position)
        is_included = sent is not None and not is_skipped(sent)
        reason = why.get(position, "")
        if sent is not None and not is_included:
            reason = "partial, and nobody answered it"
        tokens = None if counter is None else cost_of(sent or run, counter)
        runs.append(Explained(position, sent or run, is_included, reason, tokens))
    tokens = None
    if counter is not None:
        tokens = sum(item.tokens or 0 for item in runs if item.is_included)
        tokens += price_of(view.summary, counter) if view.summary else 0
    summary = None if view.summary is None else f"covers everything before position {view.summary.upto}"
    return Explanation(tuple(runs), summary, tokens, view.reserved, view.before)


def _dropped(before: View, after: View, reason: str) -> dict[int, str]:
    kept = set(after.positions)
    return {position: reason for position in before.positions if position not in kept}


def _changed(before: View, after: View, reason: str) -> dict[int, str]:
    runs = dict(zip(before.positions, before.runs, strict=True))
    return {at: reason for at, run in zip(after.positions, after.runs, strict=True) if run is not runs.get(at)}

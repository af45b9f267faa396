"""Random histories for property tests of strategies: logs with changes, trims and summaries.

Needs hypothesis: `pip install memkit[testing]`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
from hypothesis import strategies as st

from memkit.content import Part, ToolCall, ToolResult, text_of
from memkit.conversation import Conversation, Head, Summary, View
from memkit.run import Amend, Counts, Entry, Extend, Retract, Run
from memkit.steps import messages_of
from memkit.tokens import TextCounter, cost_of

CHARACTERS: Final = TextCounter("characters", lambda: len, per_message=1, media=5)
"""A counter to which every character is a token. Most runs of a history have counts under its name."""


class History(msgspec.Struct, frozen=True):
    """The log `[base, end)` of a conversation with its head, and the tokens that are reserved in its prompts.

    Runs are called `r0`, `r1`, ... and changes `c0`, `c1`, ... after their positions. A run at position p was
    created at about p seconds, but not every clock was right.
    """

    entries: tuple[Entry, ...]
    base: int = 0
    summary: Summary | None = None
    reserved: int = 0

    @property
    def end(self) -> int:
        """The position after the last entry."""
        return self.base + len(self.entries)

    def window(self, start: int) -> Conversation:
        """Return the conversation as it is when the entries from `start` on have been loaded."""
        return Conversation(
            key="history",
            head=Head(summary=self.summary),
            base=self.base,
            start=start,
            end=self.end,
            entries=self.entries[start - self.base :],
        )

    def view(self, start: int | None = None) -> View:
        """Return the view of a window, by default of the whole log."""
        view = self.window(self.base if start is None else start).view()
        return msgspec.structs.replace(view, reserved=self.reserved)

    def reaches_summary(self, start: int) -> bool:
        """Tell whether a window shows the summary if the whole log does."""
        return self.summary is None or self.summary.seen < self.base or start <= self.summary.seen

    def __repr__(self) -> str:
        return f"<history [{self.base}, {self.end})>"

    def __str__(self) -> str:
        lines = [f"the log [{self.base}, {self.end}), {self.reserved} tokens reserved:"]
        if (summary := self.summary) is not None:
            lines.append(f"  a summary up to {summary.upto}, made when the log ended at {summary.seen}")
        lines.extend(f"  {at}: {_line(entry)}" for at, entry in enumerate(self.entries, self.base))
        return "\n".join(lines)


class _Op(NamedTuple):
    """What hypothesis draws for an entry: four numbers, so that it is quick, and shrinks well."""

    kind: str = "run"
    back: int = 1
    tokens: int = 40
    variant: int = 0

    @property
    def text(self) -> str:
        """One of four texts, so that some runs say the same."""
        return f"question {self.variant % 4}"

    @property
    def is_counted(self) -> bool:
        """Whether the entry has counts, as three of four have."""
        return self.variant // 4 % 4 < 3

    @property
    def calls(self) -> int:
        """How many tool calls there are."""
        return (0, 0, 1, 2)[self.variant // 16 % 4]

    @property
    def clock(self) -> int:
        """How many seconds the writer's clock is off."""
        return self.variant % 7 - self.variant % 3


_KINDS: Final = ("run", "run", "run", "run", "extend", "amend", "retract")
_TOKENS: Final = st.one_of(st.integers(0, 40), st.sampled_from((200, 1_500, 20_000)))
_OPS: Final = st.builds(_Op, st.sampled_from(_KINDS), st.integers(1, 9), _TOKENS, st.integers(0, 63))


@st.composite
def histories(draw: st.DrawFn, *, max_ops: int = 24, with_summary: bool = True) -> History:
    """Return histories of up to `max_ops` random entries, now and then after some hundred plain runs.

    With `with_summary`, half of them have a summary, some of which are stale. All of them have been trimmed
    somewhere, mostly at their beginning.
    """
    plain = draw(st.one_of(st.just(0), st.just(0), st.integers(0, 300)))
    ops = [_Op()] * plain
    ops.extend(draw(st.lists(_OPS, max_size=max_ops)))
    entries: list[Entry] = []
    for op in ops:
        entries.append(_entry(op, entries))
    base = draw(st.one_of(st.just(0), st.integers(0, len(entries))))
    summary = draw(_summaries(entries)) if with_summary and entries and draw(st.booleans()) else None
    reserved = draw(st.sampled_from((0, 0, 10, 60)))
    return History(tuple(entries[base:]), base, summary, reserved)


@st.composite
def _summaries(draw: st.DrawFn, entries: list[Entry]) -> Summary:
    upto = max(1, len(entries) - draw(st.integers(0, 16)))
    seen = min(len(entries), upto + draw(st.integers(0, 12)))
    counts = draw(st.one_of(st.none(), _TOKENS.map(lambda n: Counts(CHARACTERS.name, output=n, messages=1))))
    upto_id = entries[upto - 1].id
    return Summary(content="in short", upto=upto, upto_id=upto_id, seen=seen, counts=counts)


def _entry(op: _Op, before: list[Entry]) -> Entry:
    position = len(before)
    at = next((at for at in range(position - op.back, -1, -1) if isinstance(before[at], Run)), None)
    if op.kind == "run" or at is None:
        return _run(f"r{position}", position, op)
    # Now and then a change is one of a run that never was, and must have no effect.
    target, change = f"r{at}" if op.variant % 8 < 7 else "nobody", f"c{position}"
    if op.kind == "amend":
        return Amend(id=change, at=at, run=_run(target, position, op))
    if op.kind == "retract":
        return Retract(id=change, target=target, at=at)
    steps = _steps(position, op.calls)
    output = "more" if op.variant % 2 else None
    counts = _counts(Run("", (), steps, output or ()), op)
    return Extend(
        id=change, target=target, at=at, drop=op.variant % 5 // 4, steps=steps, output=output, counts=counts
    )


def _run(name: str, position: int, op: _Op) -> Run:
    steps, output = _steps(position, op.calls), "!" * (op.tokens % 40)
    made = Run(name, op.text, steps, output, created_at=float(position + op.clock))
    return msgspec.structs.replace(made, counts=_counts(made, op))


def _steps(position: int, calls: int) -> tuple[Part, ...]:
    steps: list[Part] = []
    for number in range(calls):
        name = f"call-{position}-{number}"
        steps += [ToolCall(name, "look", "{}"), ToolResult(name, "seen")]
    return tuple(steps)


def _counts(run: Run, op: _Op) -> Counts | None:
    """Return counts that lie: nothing but the name of the counter says what a run costs."""
    if not op.is_counted:
        return None
    return Counts(CHARACTERS.name, op.variant % 4, 7 * op.calls, op.tokens, messages_of(run))


def _line(entry: Entry) -> str:
    match entry:
        case Run():
            return _line_of_run(entry)
        case Amend():
            return f"amend of the run at {entry.at}: {_line_of_run(entry.run)}"
        case Retract():
            return f"retract of {entry.target} at {entry.at}"
        case Extend():
            return f"extend of {entry.target} at {entry.at}: drops {entry.drop}, adds {len(entry.steps)} steps"


def _line_of_run(run: Run) -> str:
    price = cost_of(run, CHARACTERS)
    return f"{run.id}, {price} tokens, {len(run.steps)} steps, at {run.created_at:g} s: {text_of(run.input)!r}"

"""A run, and the three ways in which a stored run changes.

A run is one exchange: an input, the steps taken (tool calls and their results), an output. It is the unit
of everything: no strategy can part a tool call from its result. Runs never change in the store. What
changes one is an entry of its own in the same log: `Extend` adds to it, `Amend` supersedes it, `Retract`
takes it back. Such an entry names the run (`target`) and the position of the run in the log (`at`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec

from memkit.content import EMPTY, Content, ContentLike, Part, to_content, to_parts
from memkit.rawjson import to_json

Status: TypeAlias = Literal["complete", "partial"]


FOREIGN_FORMS: Final = frozenset({"griptape"})
"""Keys of a run's `extra` under which adapters keep how another program had written it."""


class Counts(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The tokens of a run, counted once by the counter called `name` and stored with the run.

    `input`, `steps` and `output` are tokens of content alone; `messages` is the number of chat messages
    that the run becomes, each of which costs the counter's `per_message` in a prompt.
    """

    name: str
    input: int = 0
    steps: int = 0
    output: int = 0
    messages: int = 0


class _Entry(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, tag_field="kind"):
    extra: Mapping[str, Any] = EMPTY


class Run(_Entry, frozen=True, gc=False, tag="run"):
    """One exchange. `created_at` is in seconds since the epoch; `()` as content means that nothing was said."""

    id: str
    input: Content
    steps: tuple[Part, ...] = ()
    output: Content = ()
    created_at: float = 0.0
    status: Status = "complete"
    meta: Mapping[str, Any] = EMPTY
    counts: Counts | None = None

    def replace(
        self,
        *,
        input: Content | None = None,
        steps: tuple[Part, ...] | None = None,
        output: Content | None = None,
    ) -> Run:
        """Return this run with other content, and without what told of the old: counts, and foreign forms."""
        return msgspec.structs.replace(
            self.without_foreign_form(),
            input=self.input if input is None else input,
            steps=self.steps if steps is None else steps,
            output=self.output if output is None else output,
            counts=None,
        )

    def without_foreign_form(self) -> Run:
        """Return this run without the form in which another program had stored it, which may hold its text."""
        if not self.extra.keys() & FOREIGN_FORMS:
            return self
        extra = {name: value for name, value in self.extra.items() if name not in FOREIGN_FORMS}
        return msgspec.structs.replace(self, extra=extra or EMPTY)


class Extend(_Entry, frozen=True, gc=False, tag="extend"):
    """Drops the last `drop` steps of a run, then adds `steps`; `output` and `status`, if given, replace.

    `counts` are those of `steps` and `output` alone.
    """

    id: str
    target: str
    at: int
    drop: int = 0
    steps: tuple[Part, ...] = ()
    output: Content | None = None
    status: Status | None = None
    counts: Counts | None = None


class Amend(_Entry, frozen=True, gc=False, tag="amend"):
    """Puts `run` in the place of the run of that id: an edit, a redaction. The last amend in the log wins."""

    id: str
    at: int
    run: Run

    @property
    def target(self) -> str:
        """The id of the run that is superseded."""
        return self.run.id


class Retract(_Entry, frozen=True, gc=False, tag="retract"):
    """Takes a run back, for good: an undo, an answer made anew."""

    id: str
    target: str
    at: int


Change: TypeAlias = Extend | Amend | Retract
Entry: TypeAlias = Run | Change


def new_id() -> str:
    """Return a new id: 28 hexadecimal digits, of which the first 12 are the time in milliseconds.

    Ids sort by the time at which they were made. The other 64 bits are random.
    """
    try:
        random = _spare.pop()
    except IndexError:
        random = _refill()
    return f"{time.time_ns() // 1_000_000:012x}{random}"


_spare: Final[list[str]] = []
"""Random digits for the next ids: to ask the system for each of them takes as long as to store a run."""

os.register_at_fork(after_in_child=_spare.clear)


def _refill() -> str:
    digits = os.urandom(8 * 256).hex()
    first, *rest = (digits[at : at + 16] for at in range(0, len(digits), 16))
    _spare.extend(rest)
    return first


def new_run(
    input: ContentLike,
    output: ContentLike = None,
    *,
    steps: ContentLike = None,
    status: Status = "complete",
    meta: Mapping[str, Any] | None = None,
) -> Run:
    """Make a run with a new id and the present time. `meta` is copied.

    Raises:
        FormatError: content that is neither text nor parts, or `meta` that is not JSON.
    """
    return Run(
        new_id(),
        to_content(input),
        to_parts(steps),
        to_content(output),
        created_at=time.time(),
        status=status,
        meta=to_json(meta, "meta") if meta else EMPTY,
    )

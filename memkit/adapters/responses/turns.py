"""Where runs begin and end in a list of items, and what items change of a run that is stored already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import time

import msgspec

from memkit.adapters.responses.items import FORMAT, Item, items_of, kept, parts_of_item, role_of
from memkit.content import Opaque, Part, parts_of, to_content
from memkit.items import with_extra
from memkit.run import Amend, Change, Entry, Extend, Retract, Run, Status, new_id


class Exchange:
    """What of a list of items makes one run, or continues the stored one.

    `output` is that of the run as a whole; the steps are new ones. `is_question` tells that there is what a user
    said and nothing more.
    """

    def __init__(self, stored: Run | None = None) -> None:
        self.input: list[Part] = []
        self.steps: list[Part] = []
        self.output: tuple[Part, ...] = parts_of(stored.output) if stored else ()
        self.is_question = False
        last = _items(stored.steps[-1:], "assistant", joined=False) if stored and not self.output else []
        self._is_reasoning = bool(last) and last[0].get("type") == "reasoning"

    def begins_before(self, role: str | None) -> bool:
        """Tell whether the next item, a message of `role` or none, is of the next run."""
        if role == "user":
            return not self.is_question
        return role in {"system", "developer"} and self.output != ()

    def begin(self, item: Item) -> None:
        """Take the next item of an input."""
        parts = parts_of_item(item, "user")
        self.input.extend(_as_item(parts) if self.input else parts)
        self.is_question = role_of(item) == "user"

    def take(self, item: Item) -> None:
        """Take the next item of an answer: its last message is the output, what came before it are steps."""
        self.steps.extend(_as_item(self.output))
        self.output = ()
        parts = parts_of_item(item, "assistant")
        if role_of(item) != "assistant":
            self.steps.extend(parts)
        elif self._is_reasoning and not isinstance(first := parts[0], Opaque):
            after = with_extra(first, FORMAT, {**kept(first), "is_after": "reasoning"})
            self.output = (after, *parts[1:])
        else:
            self.output = parts
        self.is_question = False
        self._is_reasoning = item.get("type") == "reasoning"


def _as_item(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Mark parts as one item, where they would be joined with others, or be none."""
    if not parts or isinstance(parts[0], Opaque) or kept(parts[0]):
        return parts
    return (with_extra(parts[0], FORMAT, {"n": len(parts)}), *parts[1:])


def exchanges(items: Iterable[Item], stored: Run | None = None) -> list[Exchange]:
    """Return items as exchanges, of which the first continues the stored run, if there is one.

    A user message begins a run, together with the user messages right after it; so does a system message that
    follows an answer, or nothing at all.
    """
    found = [] if stored is None else [Exchange(stored)]
    for item in items:
        role = role_of(item)
        if not found or found[-1].begins_before(role):
            found.append(Exchange())
            begins = role not in {None, "assistant"}
        else:
            begins = role == "user"
        if begins:
            found[-1].begin(item)
        else:
            found[-1].take(item)
    return found


def new_run(exchange: Exchange, status: Status = "complete") -> Run:
    """Return an exchange as a run."""
    said, answer = to_content(exchange.input), to_content(exchange.output)
    return Run(new_id(), said, tuple(exchange.steps), answer, created_at=time(), status=status)


def entries_of(items: Sequence[Item], newest: tuple[Run, int] | None) -> tuple[Entry, ...]:
    """Return what is to be stored for items that follow the newest run, given with its position.

    A run is partial as long as nothing but a question is there.
    """
    found = exchanges(items, newest and newest[0])
    entries: list[Entry] = []
    if newest is not None:
        (run, at), more = newest, found.pop(0)
        output = to_content(more.output)
        if more.steps or output != run.output:
            changed = None if output == run.output else output
            status: Status | None = "complete" if run.status == "partial" else None
            entries.append(Extend(new_id(), run.id, at, 0, tuple(more.steps), changed, status))
    entries.extend(new_run(exchange, "partial" if exchange.is_question else "complete") for exchange in found)
    return tuple(entries)


def run_items(run: Run) -> list[Item]:
    """Return the items of a run as they were written."""
    answer = parts_of(run.output)
    items = [*_items(parts_of(run.input), "user"), *_items(run.steps, "assistant", joined=False)]
    is_bare = not items or items[-1].get("type") != "reasoning"
    for item in _items(answer, "assistant"):
        if is_bare and kept(answer[0]).get("is_after") == "reasoning":
            # Without an id it is a text like any other, which needs no reasoning before it.
            item.pop("id", None)
        items.append(item)
    return items


def without_last(run: Run, at: int) -> tuple[Item | None, Change]:
    """Return the last item of a run, None if it has none, and the change that takes it away.

    A run of one item is taken back as a whole.
    """
    items = run_items(run)
    if len(items) <= 1:
        return (items[0] if items else None), Retract(new_id(), run.id, at)
    said, answer = parts_of(run.input), parts_of(run.output)
    status: Status | None = "partial" if len(items) - 1 == len(_items(said, "user")) else None
    if size := _last_size(answer, joined=True):
        return items[-1], Extend(new_id(), run.id, at, output=to_content(answer[:-size]), status=status)
    if size := _last_size(run.steps, joined=False):
        return items[-1], Extend(new_id(), run.id, at, size, status=status)
    left = to_content(said[: -_last_size(said, joined=True)])
    return items[-1], Amend(new_id(), at, msgspec.structs.replace(run, input=left, counts=None))


def _items(parts: tuple[Part, ...], speaker: str, *, joined: bool = True) -> list[Item]:
    return [item for _, item in items_of(parts, speaker, joined=joined) if item is not None]


def _last_size(parts: tuple[Part, ...], *, joined: bool) -> int:
    """Return how many parts go with the last item, those after it that are no item among them; 0 without one."""
    size = 0
    for taken, item in reversed(list(items_of(parts, "", joined=joined))):
        size += taken
        if item is not None:
            return size
    return 0

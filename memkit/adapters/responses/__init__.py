"""Items of the Responses API as runs, and back: every history comes back equal, or is reported as repaired.

What parts say naturally is said in parts, so that it can be counted, pruned and read, by other adapters as well:
messages, calls of tools and their outputs. The rest of an item is kept in `extra["responses"]`. What is nothing
like a part becomes an `Opaque`, in its place: reasoning, what hosted tools did, and all kinds of items that are
still to come. Works without the openai package.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, cast

import msgspec

from memkit.adapters.responses.items import Item, role_of
from memkit.adapters.responses.repairs import Repairs
from memkit.adapters.responses.turns import exchanges, new_run, run_items
from memkit.items import Given, as_dict, listed
from memkit.messages import is_skipped, sendable
from memkit.run import Run

__all__ = ["Given", "Imported", "Item", "to_items", "to_runs"]


_DEPTH: Final = 16
"""How deep what is in an item may come to lie in a stored run, as the codec counts: that of a tool's output."""


class Imported(msgspec.Struct, frozen=True):
    """What items became.

    `system` are the system and developer messages at the beginning, which belong to the program rather than
    to the memory. `repairs` tells, item by item, what `to_items` leaves out or puts in.
    """

    system: tuple[Item, ...]
    runs: tuple[Run, ...]
    repairs: tuple[str, ...] = ()


def to_runs(items: Iterable[Given]) -> Imported:
    """Return items of the Responses API as runs: dicts, or models as the openai package has them.

    A user message begins a run, with the user messages right after it, and so does a system message after an
    answer. The answer, an assistant message that ends a run, is its output; what lies between are its steps.
    Without repairs, `[*imported.system, *to_items(imported.runs)]` equals `items`, models as they would be
    sent. Calls without outputs, outputs without calls and reasoning that leads to nothing are stored as they
    are, and repaired in what `to_items` returns.

    Raises:
        FormatError: not a list of items; it names the index of the culprit.
    """
    given = checked(items)
    talk = next((i for i, item in enumerate(given) if role_of(item) not in {"system", "developer"}), len(given))
    runs = tuple(new_run(exchange) for exchange in exchanges(given[talk:]))
    repairs = [(index + talk, what) for index, what in Repairs(given[talk:]).reports()]
    for index, item in enumerate(given):
        if sendable(item) != item:
            repairs.append((index, "text that is not valid Unicode is replaced by U+FFFD"))
    reports = tuple(f"item {index}: {what}" for index, what in sorted(repairs))
    return Imported(tuple(map(sendable, given[:talk])), runs, reports)


def to_items(runs: Iterable[Run]) -> list[Item]:
    """Return runs as items that the Responses API accepts, without a system message."""
    items = [item for run in runs if not is_skipped(run) for item in run_items(run)]
    return [cast("Item", sendable(item)) for item in Repairs(items).applied()]


def checked(items: Iterable[Given]) -> list[Item]:
    """Return copies of items that are JSON objects.

    Raises:
        FormatError: not a list of dicts and models, or what JSON cannot hold.
    """
    return [as_dict(item, f"item {index}", _DEPTH) for index, item in enumerate(listed(items, "items"))]

"""What the Responses API refuses of a list of items, and a list that it takes."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

from memkit.adapters.responses.items import Item
from memkit.steps import INTERRUPTED

_OUTPUT_OF: Final = {
    "function_call": "function_call_output",
    "custom_tool_call": "custom_tool_call_output",
    "tool_search_call": "tool_search_output",
    "local_shell_call": "local_shell_call_output",
    "shell_call": "shell_call_output",
    "computer_call": "computer_call_output",
    "apply_patch_call": "apply_patch_call_output",
    "program": "program_output",
}
_OUTPUTS: Final = frozenset(_OUTPUT_OF.values())
_ANSWERED_BY_TEXT: Final = ("function_call", "custom_tool_call")


class Repairs:
    """What gives each call its output, each output its call, and each reasoning what it led to.

    Items from `stop` on stay as they are. A call that text cannot answer is left out.
    """

    def __init__(self, items: Sequence[Item], stop: int | None = None) -> None:
        stop = len(items) if stop is None else stop
        open_calls, lone = _unpaired(items)
        broken = [at for at in open_calls if at < stop]
        self._items = items
        self._missing = [at for at in broken if _kind(items[at]) in _ANSWERED_BY_TEXT]
        self._unanswerable = [at for at in broken if _kind(items[at]) not in _ANSWERED_BY_TEXT]
        self._lone = [at for at in lone if at < stop]
        self._bare = list(_bare_reasoning(items, {*self._unanswerable, *self._lone}, stop))

    def applied(self) -> list[Item]:
        """Return the items after the repairs."""
        dropped = {*self._lone, *self._bare, *self._unanswerable}
        missing = {*self._missing}
        after: list[Item] = []
        for index, item in enumerate(self._items):
            if index not in dropped:
                after.append(item)
            if index in missing:
                after.append({"type": _OUTPUT_OF[_kind(item)], "call_id": _call_id(item), "output": INTERRUPTED})
        return after

    def reports(self) -> Iterator[tuple[int, str]]:
        """Yield what is done, with the index of the item to which it is done."""
        for index in self._missing:
            yield index, f"the call {_call_id(self._items[index])!r} has no output, and gets one that says so"
        for index in self._unanswerable:
            yield index, f"the {_kind(self._items[index])} is left out, since it has no output"
        for index in self._lone:
            yield index, f"the output of {_call_id(self._items[index])!r} is left out, since no such call is open"
        for index in self._bare:
            yield index, "the reasoning is left out, since what it led to does not follow"


def _unpaired(items: Sequence[Item]) -> tuple[list[int], list[int]]:
    """Return the indexes of the calls without an output, and of the outputs without a call."""
    # The oldest call first: some providers give all calls of a turn the same id.
    open_calls: defaultdict[tuple[str, str], deque[int]] = defaultdict(deque)
    lone: list[int] = []
    for index, item in enumerate(items):
        kind = _kind(item)
        if kind in _OUTPUT_OF:
            open_calls[_OUTPUT_OF[kind], repr(_call_id(item))].append(index)
        elif kind in _OUTPUTS:
            if waiting := open_calls.get((kind, repr(_call_id(item)))):
                waiting.popleft()
            else:
                lone.append(index)
    return sorted(chain.from_iterable(open_calls.values())), lone


def _bare_reasoning(items: Sequence[Item], dropped: set[int], stop: int) -> Iterator[int]:
    """Yield where reasoning is not followed by what the model said or asked for then."""
    is_bare = True
    for index in reversed(range(len(items))):
        kind, role = _kind(items[index]), items[index].get("role")
        if kind != "reasoning":
            is_bare = index in dropped or kind in _OUTPUTS or (role is not None and role != "assistant")
        elif is_bare and index < stop:
            yield index


def _kind(item: Item) -> str:
    kind = item.get("type")
    return kind if isinstance(kind, str) else ""


def _call_id(item: Item) -> object:
    return item.get("call_id") or item.get("id")

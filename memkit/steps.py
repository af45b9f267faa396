"""The steps of a run as chat messages have them: what belongs together, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from memkit.content import Opaque, Part, ToolCall, ToolResult
from memkit.rawjson import parse_json
from memkit.run import Run

INTERRUPTED: Final = "[interrupted: the result of this call was never recorded]"
"""What stands in for the result of a call that has none."""


def messages_of(run: Run) -> int:
    """Return the number of chat messages that a run becomes, if no result of a call is missing."""
    return (run.input != ()) + sum(1 for _ in grouped(spoken(run.steps))) + (run.output != ())


def spoken(steps: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return the steps that chat messages can tell: not what only another API understands, as its reasoning."""
    if not any(isinstance(part, Opaque) for part in steps):
        return steps
    return tuple(part for part in steps if not isinstance(part, Opaque) or is_message(part))


def is_message(part: Opaque) -> bool:
    """Tell whether this is a whole chat message."""
    return isinstance(parse_json(part.raw).get("role"), str)


def grouped(steps: Iterable[Part]) -> Iterator[tuple[Part, ...]]:
    """Yield steps as chat messages have them: a result alone, and calls with the text that announces them."""
    group: list[Part] = []
    for part in steps:
        if group and not joins(part, group[-1]):
            yield tuple(group)
            group = []
        group.append(part)
    if group:
        yield tuple(group)


def joins(part: Part, before: Part) -> bool:
    """Tell whether a step belongs to the message of the step before it: calls join what announces them."""
    return isinstance(part, ToolCall) and not isinstance(before, ToolResult | Opaque)


def repaired(steps: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return steps in which every call has a result and every result a call before it.

    A result without a call is dropped; a call without a result gets one that says so, before the next
    message of the model.
    """
    fixed: list[Part] = []
    open_calls: list[ToolCall] = []
    for index, part in enumerate(steps):
        if isinstance(part, ToolResult):
            # Some providers give all calls of a message the same id, even "".
            call = next((call for call in open_calls if call.id == part.id), None)
            if call is None:
                continue
            open_calls.remove(call)
        elif not (index and joins(part, steps[index - 1])):
            fixed.extend(map(_stand_in, open_calls))
            open_calls.clear()
        if isinstance(part, ToolCall):
            open_calls.append(part)
        fixed.append(part)
    fixed.extend(map(_stand_in, open_calls))
    return tuple(fixed)


def interrupted(steps: tuple[Part, ...]) -> tuple[ToolResult, ...]:
    """Return the results that `repaired` puts in for those that never came."""
    called = [part.id for part in steps if isinstance(part, ToolCall)]
    if called == [part.id for part in steps if isinstance(part, ToolResult)]:
        return ()
    own = set(map(id, steps))
    return tuple(part for part in repaired(steps) if isinstance(part, ToolResult) and id(part) not in own)


def _stand_in(call: ToolCall) -> ToolResult:
    return ToolResult(call.id, INTERRUPTED, call.name, error=True)

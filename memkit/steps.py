"""The steps of a run as chat messages have them: what belongs together, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, cast

from memkit.content import Opaque, Part, ToolCall, ToolResult
from memkit.rawjson import parse_json
from memkit.run import Run

INTERRUPTED: Final = "[interrupted: the result of this call was never recorded]"
"""What stands in for the result of a call that has none."""


def messages_of(run: Run) -> int:
    """Return the number of chat messages that a run becomes, if no result of a call is missing."""
    told = sum(1 for _ in grouped(spoken(run.steps))) if run.steps else 0
    return (run.input != ()) + told + (run.output != ())


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

    The results follow the message that has the calls; one without a call is dropped. A call without a result gets
    one that says so.
    """
    result_of, _ = _pairs(steps)
    fixed: list[Part] = []
    calls: list[int] = []
    for index, part in enumerate(steps):
        if isinstance(part, ToolResult):
            continue
        if calls and not joins(part, steps[index - 1]):
            fixed.extend(_results(steps, calls, result_of))
            calls.clear()
        if isinstance(part, ToolCall):
            calls.append(index)
        fixed.append(part)
    fixed.extend(_results(steps, calls, result_of))
    return tuple(fixed)


def repairs(steps: tuple[Part, ...]) -> Iterator[tuple[int, str]]:
    """Yield what `repaired` does, each with the index of the step to which it does it."""
    result_of, late = _pairs(steps)
    paired = set(result_of.values())
    for index, part in enumerate(steps):
        if isinstance(part, ToolCall) and index not in result_of:
            yield index, f"the call {part.id!r} has no result, and gets one that says so"
        elif isinstance(part, ToolResult) and index not in paired:
            yield index, f"the result of {part.id!r} is left out, since no such call is open"
        elif isinstance(part, ToolResult) and index in late:
            yield index, f"the result of {part.id!r} is put right after its call"


def _pairs(steps: tuple[Part, ...]) -> tuple[dict[int, int], set[int]]:
    """Return the indexes of results by those of their calls, and which of them come after another message.

    Some providers give all calls of a message the same id, even "": the first that is open is meant, and else the
    last one that has no result yet.
    """
    result_of: dict[int, int] = {}
    late: set[int] = set()
    open_calls: dict[str, list[int]] = {}
    closed: dict[str, list[int]] = {}
    for index, part in enumerate(steps):
        if isinstance(part, ToolResult):
            if open_calls.get(part.id):
                result_of[open_calls[part.id].pop(0)] = index
            elif closed.get(part.id):
                result_of[closed[part.id].pop()] = index
                late.add(index)
            continue
        if open_calls and not joins(part, steps[index - 1]):
            for name, calls in open_calls.items():
                closed.setdefault(name, []).extend(calls)
            open_calls = {}
        if isinstance(part, ToolCall):
            open_calls.setdefault(part.id, []).append(index)
    return result_of, late


def _results(steps: tuple[Part, ...], calls: Sequence[int], result_of: Mapping[int, int]) -> Iterator[Part]:
    """Yield the results of the calls of a message: those that came, as they came, and stand-ins."""
    yield from (steps[at] for at in sorted(result_of[call] for call in calls if call in result_of))
    yield from (_stand_in(cast("ToolCall", steps[call])) for call in calls if call not in result_of)


def interrupted(steps: tuple[Part, ...]) -> tuple[ToolResult, ...]:
    """Return the results that `repaired` puts in for those that never came."""
    called = [part.id for part in steps if isinstance(part, ToolCall)]
    if called == [part.id for part in steps if isinstance(part, ToolResult)]:
        return ()
    result_of, _ = _pairs(steps)
    return tuple(
        _stand_in(part) for at, part in enumerate(steps) if isinstance(part, ToolCall) and at not in result_of
    )


def _stand_in(call: ToolCall) -> ToolResult:
    return ToolResult(call.id, INTERRUPTED, call.name, error=True)

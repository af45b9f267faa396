"""A turn of an agent as runs: which messages of a state are new, and what is stored of them as it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from memkit.adapters.langchain.parts import run_of, written_of
from memkit.adapters.langchain.written import Written, exchanges, leading, write
from memkit.memory import Memory
from memkit.run import Run, Status, new_id

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage


def begin(messages: Sequence[BaseMessage], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return ids for the runs that messages make which are not stored yet, by the id of their first message.

    `before` is what the turn before has left in the state.
    """
    known, until = before.get("ids", {}), before.get("until")
    start = _after(messages, until)
    runs = list(exchanges(messages, start or leading(messages)))
    if until is not None and start is None:
        runs = runs[-1:]  # somebody has taken out of the state what was stored last
    firsts = [messages[begin].id for begin, _ in runs] or [""]  # the model may have the first word
    return {"ids": {first: known.get(first) or new_id() for first in firsts}, "until": until}


def may_be_stored(begun: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Tell whether there are exchanges before the newest that no earlier turn of this graph has begun."""
    return any(first not in before.get("ids", {}) for first in list(begun["ids"])[:-1])


async def unstored(memory: Memory, begun: dict[str, Any], messages: Sequence[BaseMessage]) -> dict[str, Any]:
    """Leave out the exchanges that are stored: a caller may give again what an earlier call has returned."""
    ids: dict[str, str] = begun["ids"]
    *older, _ = firsts = list(ids)
    now = memory.conversation
    stored = set(map(_first_id, now.runs))
    if older[-1] not in stored and now.start > now.base:
        stored |= {_first_id(run) async for run in memory.history()}
    new = next((count for count in range(len(older), 0, -1) if older[count - 1] in stored), 0)
    if not new:
        return begun
    start = next(index for index, message in enumerate(messages) if message.id == firsts[new])
    return {"ids": {first: ids[first] for first in firsts[new:]}, "until": messages[start - 1].id}


def _first_id(run: Run) -> str:
    first = next(written_of([run]), None)
    return "" if first is None else first.id


def _after(messages: Sequence[BaseMessage], until: str | None) -> int | None:
    """Return where the messages after that of an id begin; None if it is not there."""
    return next((i + 1 for i, message in enumerate(messages) if until and message.id == until), None)


def since_of(messages: Sequence[BaseMessage], begun: dict[str, Any]) -> int:
    """Return where the messages begin that are new since `begin`."""
    first = next((i for i, message in enumerate(messages) if message.id in begun["ids"]), None)
    return (_after(messages, begun["until"]) or leading(messages)) if first is None else first


async def save(memory: Memory, messages: Sequence[BaseMessage], begun: dict[str, Any], status: Status) -> int:
    """Store what is new, the last run of it with this status; return where that lies."""
    made = _exchanges(messages, begun)
    if not made:
        return memory.conversation.end
    last = [*made][-1]
    stored = await _stored(memory, made)
    for run_id, run in stored.items():
        await _extend(memory, run, made[run_id], status if run_id == last else None)
    new = {run_id: _new_run(run_id, said) for run_id, said in made.items() if run_id not in stored}
    if last in new:
        new[last] = msgspec.structs.replace(new[last], status=status)
    if new:
        await memory.append(*new.values())
    now = memory.conversation
    return next((at for at, run in zip(*now.resolved(), strict=True) if run.id == last), now.end)


def _exchanges(messages: Sequence[BaseMessage], begun: dict[str, Any]) -> dict[str, list[Written]]:
    """Return what is new by the ids of its runs: each reaches from its first message to that of the next."""
    ids: dict[str | None, str] = begun["ids"]
    since = since_of(messages, begun)
    written = [write(message, f"message {index}") for index, message in enumerate(messages) if index >= since]
    starts = [index - since for index, message in enumerate(messages) if message.id in ids]
    if not starts:
        # Nobody has said anything, or somebody has taken that out of the state: it stays as it is stored.
        return {[*ids.values()][-1]: written} if written else {}
    pairs = zip(starts, [*starts[1:], len(written)], strict=True)
    return {ids[messages[since + start].id]: written[start:stop] for start, stop in pairs}


_NOTHING: Final = Run("nothing", ())


def _new_run(run_id: str, said: Sequence[Written]) -> Run:
    """Return a run under an id made by `new_id`, and of its time: what is stored again must be the same."""
    return msgspec.structs.replace(run_of(said), id=run_id, created_at=int(run_id[:12], 16) / 1_000)


async def _stored(memory: Memory, made: Mapping[str, Sequence[Written]]) -> dict[str, Run]:
    """Return those of the runs that are stored, as they are stored."""
    now = memory.conversation
    found = {run.id: run for run in now.runs if run.id in made}
    newest = [*made.values()][-1]
    if len(found) < len(made) and now.start > now.base and (len(made) > 1 or len(newest) > 1):
        # The turn has been going on for longer than the window reaches back.
        found |= {run.id: run async for run in memory.history() if run.id in made}
    return found


async def _extend(memory: Memory, stored: Run, said: Sequence[Written], status: Status | None) -> None:
    """Store in what messages differ from a stored run. Without a status, a run with an answer is complete."""
    merged = _merged(list(written_of([stored])), said)
    made = run_of(merged, after=_NOTHING if stored.input == () else None)
    status = status or ("complete" if made.output != () else stored.status)
    if stored.input != made.input:
        changed = msgspec.structs.replace(
            stored, input=made.input, steps=made.steps, output=made.output, status=status
        )
        await memory.amend(changed)
        return
    pairs = zip(stored.steps, made.steps, strict=False)
    same = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(stored.steps), len(made.steps)))
    drop, steps = len(stored.steps) - same, made.steps[same:]
    output = None if made.output == stored.output else made.output
    if drop or steps or output is not None or status != stored.status:
        await memory.extend(stored.id, drop=drop, steps=steps, output=output, status=status)


def _merged(stored: Sequence[Written], said: Sequence[Written]) -> list[Written]:
    """Return what is stored with what was said since. What has the same id takes the place of what is stored.

    Nothing that is stored goes missing, whatever was taken out of the state. What somebody has put before all that
    is left of it is not of this run: a summary, for instance.
    """
    known = {message.id for message in stored} - {""}
    changed: dict[str, Written] = {}
    added: dict[str, list[Written]] = {}
    last = ""
    for message in said:
        if message.id in known:
            last = message.id
            changed[last] = message
        else:
            added.setdefault(last, []).append(message)
    if not changed:
        return [*stored, *said]
    merged: list[Written] = []
    for message in stored:
        merged.append(changed.get(message.id, message))
        if message.id:
            merged.extend(added.get(message.id, ()))
    return merged

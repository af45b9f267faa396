"""The messages of pydantic-ai as runs, and back, in the JSON form that `ModelMessagesTypeAdapter` writes.

Prompts, texts, files, tool calls and returns become parts; thinking, native tools, instructions and what a newer
release may add stay as they are. Timestamps, usage, ids and all the rest of a message are kept in `extra`. Nothing
is repaired here: pydantic-ai does that itself before it asks a model, and a paused run needs its open calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec

from memkit.adapters.blocks import (
    Message,
    Opened,
    checked,
    mark_of,
    marked,
    messages_of,
    run_of,
    said_parts,
)
from memkit.adapters.pydantic_ai.parts import DIALECT, NAME, blocks_in, item_of, mapping, part_of_item
from memkit.content import Content, Part, ToolCall, ToolResult
from memkit.errors import FormatError
from memkit.messages import is_skipped, sendable
from memkit.rawjson import difference, parse_json, restored
from memkit.run import Run


def to_runs(messages: Iterable[Mapping[str, Any]] | bytes) -> tuple[Run, ...]:
    """Return a history as runs: the bytes of `all_messages_json()`, or the list of dicts in them.

    What pydantic-ai did in one run is one run. Without run ids, a request with a user prompt begins one. Returns
    of tools belong to the run that called them. `to_messages` gives the same messages again; only text that is
    not valid Unicode is replaced.

    Raises:
        FormatError: not the messages of pydantic-ai; it names the index of the culprit.
    """
    given = _given(messages)
    return tuple(_run(given[start:stop]) for start, stop in exchanges(given))


def to_run(messages: Iterable[Mapping[str, Any]] | bytes) -> Run:
    """Return messages as one run, such as those of `result.new_messages_json()`.

    Raises:
        FormatError: as `to_runs`; or there are none.
    """
    given = _given(messages)
    if not given:
        raise FormatError("there are no messages to make a run of")
    return _run(given)


def to_messages(runs: Iterable[Run]) -> list[Message]:
    """Return runs as messages, in the form that `ModelMessagesTypeAdapter.validate_json` reads."""
    return [message for run in runs for message in _run_messages(run)]


def exchanges(messages: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Return where the runs of a history begin and end."""
    starts = [
        index for index in range(len(messages)) if index == 0 or _begins(messages[index - 1], messages[index])
    ]
    return list(zip(starts, [*starts[1:], len(messages)], strict=False))


# --- what is given ---


def _given(messages: Iterable[Mapping[str, Any]] | bytes) -> list[Message]:
    given: Any = messages
    if isinstance(messages, bytes):
        try:
            given = parse_json(messages)
        except ValueError as error:
            raise FormatError(f"this is not the JSON of messages: {error}") from error
    kind = type(cast("object", given))
    if issubclass(kind, str | Mapping) or not issubclass(kind, Iterable):
        raise FormatError(f"messages come as JSON bytes or as a list of dicts, not as a {kind.__name__}")
    copies, _ = checked(list(given))
    for index, message in enumerate(copies):
        if message.get("kind") not in ("request", "response"):
            raise FormatError(
                f"message {index} is of the kind {message.get('kind')!r}, not a request or a response"
            )
        if not isinstance(message.get("parts"), list):
            raise FormatError(f"message {index} has no list of parts")
    return copies


def _begins(before: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
    """Tell whether a run begins with `message`, which follows `before`."""
    if message["kind"] != "request" or _has_results(message):
        return False
    old, new = before.get("run_id"), message.get("run_id")
    return bool(old != new) if old and new else "user-prompt" in _kinds(message)


def _has_results(message: Mapping[str, Any]) -> bool:
    kinds = _kinds(message)
    return "tool-return" in kinds or "retry-prompt" in kinds


def _kinds(message: Mapping[str, Any]) -> list[Any]:
    return [mapping(part).get("part_kind") for part in message["parts"]]


def _run(messages: Sequence[Message]) -> Run:
    said = _input(messages[0])
    run, _ = run_of(DIALECT, said, list(enumerate(messages))[1 if said else 0 :])
    return run


def _input(message: Message) -> tuple[Part, ...]:
    """Return the last user prompt of a request that answers no calls, the rest of the request in its mark."""
    parts: list[Any] = message["parts"]
    places = [index for index, part in enumerate(parts) if _is_prompt(part)]
    if message["kind"] != "request" or not places or _has_results(message):
        return ()
    prompt = parts[places[-1]]
    content: Any = prompt["content"]
    items = [content] if isinstance(content, str) else cast("list[Any]", content)
    first, *rest = [part_of_item(item) for item in items]
    mark: dict[str, Any] = {
        "message": dict(DIALECT.open(message).about),
        "prompt": difference({"content": content, "part_kind": "user-prompt"}, prompt),
        "before": parts[: places[-1]],
        "after": parts[places[-1] + 1 :],
    }
    if isinstance(content, str):
        mark["str"] = True
    return (marked(DIALECT, first, **{name: value for name, value in mark.items() if value}), *rest)


def _is_prompt(part: Any) -> bool:
    match part:
        case {"part_kind": "user-prompt", "content": str()}:
            return True
        case {"part_kind": "user-prompt", "content": list()}:
            return bool(part["content"])
        case _:
            return False


# --- what comes back ---


def _run_messages(run: Run) -> list[Message]:
    if is_skipped(run):
        return []
    said = [] if run.input == () else [_request(run.input)]
    made = [*said, *messages_of(DIALECT, _named(run.steps), run.output)]
    return [cast("Message", sendable(message)) for message in made]


def _request(content: Content) -> Message:
    parts = said_parts(content)
    mark = mark_of(DIALECT, parts[0])
    items = [item_of(part) for part in parts]
    is_text = isinstance(content, str) or (mark.get("str") is True and len(items) == 1)
    plain = {"content": items[0] if is_text else items, "part_kind": "user-prompt"}
    prompt = restored(plain, mapping(mark.get("prompt")))
    blocks = [*blocks_in(mark.get("before")), prompt, *blocks_in(mark.get("after"))]
    return DIALECT.close(Opened("user", blocks, mapping(mark.get("message"))))


def _named(steps: Sequence[Part]) -> list[Part]:
    """Return steps in which results that another program has stored say which tool they come from."""
    names: dict[str, str] = {}
    named: list[Part] = []
    for part in steps:
        if isinstance(part, ToolCall):
            names[part.id] = part.name
        is_plain = isinstance(part, ToolResult) and not part.name and NAME not in part.extra
        named.append(msgspec.structs.replace(part, name=names.get(part.id, "")) if is_plain else part)  # type: ignore[union-attr,type-var]
    return named

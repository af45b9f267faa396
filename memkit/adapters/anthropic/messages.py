"""Messages of Anthropic as runs, and back: every history comes back equal, or is reported as repaired.

Text, images, PDFs, tool calls and their results become parts; thinking, server tools, search results and what is
not known yet stay as they are, with their signatures. Cache marks, citations and the like are kept in `extra`.
Works without the anthropic package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypedDict, cast

from memkit.adapters.anthropic.parts import DIALECT, ROLES, list_of, text_block
from memkit.adapters.blocks import (
    Block,
    Imported,
    Message,
    Opened,
    blocks_of,
    checked,
    is_silent,
    mark_of,
    marked,
    messages_of,
    part_of,
    run_of,
    said_parts,
)
from memkit.content import Content, ContentLike, parts_of, text_of, to_content
from memkit.conversation import View
from memkit.errors import FormatError
from memkit.items import Dumpable, listed
from memkit.messages import is_skipped, sendable, summary_block
from memkit.run import Run
from memkit.steps import repaired, repairs

FIRST: Final = "[The assistant spoke first.]"
"""What stands before an answer that nobody asked for, since a prompt begins with a user."""


class Prompt(TypedDict, total=False):
    """The arguments of `client.messages.create` that hold what is said. Without `system` there is none."""

    system: str | list[Block]
    messages: list[Message]


def to_runs(messages: Iterable[Any]) -> Imported:
    """Return messages as runs: dicts, with models of the anthropic package in them or in their place.

    A user message without results of tools begins a run. The text with which a run ends is its output; what lies
    between, results and what the user said beside them included, are its steps. Without repairs,
    `to_messages(imported.runs)` equals `messages`. Calls without results and results without calls are stored as
    they are, and repaired in every prompt.

    Raises:
        FormatError: not a list of messages; it names the index of the culprit.
    """
    given, found = checked([_dumped(message) for message in listed(messages, "messages")])
    for index, message in enumerate(given):
        _check(index, message)
    runs: list[Run] = []
    for start, stop in _exchanges(given):
        begins = _begins_run(given[start])
        said = _input(given[start]) if begins else ()
        run, sources = run_of(DIALECT, said, list(enumerate(given))[start + begins : stop])
        runs.append(run)
        found.extend((sources[at], what) for at, what in repairs(run.steps))
    return Imported(tuple(runs), tuple(f"message {index}: {what}" for index, what in sorted(found)))


def to_messages(runs: Iterable[Run]) -> list[Message]:
    """Return runs as messages. Each call has its result and each result its call; see `prompt` for the rest."""
    return [message for run in runs for message in _run_messages(run)]


def prompt(view: View, *, input: ContentLike = None, system: str | Sequence[Block] = ()) -> Prompt:
    """Return what a view remembers and the new `input` as the arguments of `client.messages.create`.

    The summary follows `system`, as a block of its own. Users and assistant take turns, and a user begins: what
    several messages in a row say is joined, and what says nothing is left out. Nothing is counted here: keep the
    tokens of `system`, `input`, tools and reply free with `memory.view(reserve=...)`.
    """
    messages = to_messages(view.runs)
    said = to_content(input)
    if said != ():
        messages.append(cast("Message", sendable(_input_message(said))))
    made = Prompt(messages=_taking_turns(messages))
    told: Any = sendable(system if isinstance(system, str) else list(system))
    if view.summary is not None:
        told = [*list_of(told), text_block(summary_block(view.summary))]
    if told:
        made["system"] = told
    return made


# --- what is given ---


def _dumped(value: Any, levels: int = 5) -> Any:
    """Return a message with the models in it as dicts: its own, of blocks, or in the content of a result."""
    if hasattr(value, "model_dump"):
        return _dumped_model(value)
    if isinstance(value, Mapping) and levels:
        return {key: _dumped(item, levels - 1) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple) and levels:
        return [_dumped(item, levels - 1) for item in cast("Iterable[Any]", value)]
    return cast("Any", value)


def _dumped_model(model: Dumpable) -> dict[str, Any]:
    dumped = model.model_dump(mode="json", exclude_unset=True)
    # Of an answer, only what can be sent back.
    is_answer = dumped.get("type") == "message"
    return {"role": dumped.get("role"), "content": dumped.get("content")} if is_answer else dumped


def _check(index: int, message: Message) -> None:
    if message.get("role") not in ROLES:
        raise FormatError(f"message {index} has the role {message.get('role')!r}; there are {', '.join(ROLES)}")
    if not isinstance(content := message.get("content"), str | list):
        raise FormatError(f"message {index} has a {type(content).__name__} as content; it is text or a list")


def _begins_run(message: Message) -> bool:
    """Tell whether a message is an input: said by a user, and no answer to a call."""
    content = message["content"]
    has_results = isinstance(content, list) and any(map(_is_result, cast("list[Any]", content)))
    return message["role"] == "user" and not has_results


def _is_result(block: Any) -> bool:
    return isinstance(block, dict) and cast("Block", block).get("type") == "tool_result"


def _exchanges(messages: Sequence[Message]) -> Iterator[tuple[int, int]]:
    """Yield where the runs begin and end."""
    starts = [index for index, message in enumerate(messages) if index == 0 or _begins_run(message)]
    return zip(starts, [*starts[1:], len(messages)], strict=False)


def _input(message: Message) -> Content:
    opened = DIALECT.open(message)
    if opened.about == {"str": True}:
        return cast("str", message["content"])
    if not opened.blocks:
        return (DIALECT.whole(message),)
    first, *rest = [part_of(DIALECT, block, "user") for block in opened.blocks]
    return (marked(DIALECT, first, message=opened.about) if opened.about else first, *rest)


# --- what is sent ---


def _run_messages(run: Run) -> list[Message]:
    if is_skipped(run):
        return []
    said = [] if run.input == () else [_input_message(run.input)]
    # First without what only another format can tell: between two calls, it would seem to be a new message.
    steps = tuple(part for part in run.steps if not is_silent(DIALECT, part))
    made = [*said, *messages_of(DIALECT, repaired(steps), run.output)]
    return [cast("Message", sendable(message)) for message in made]


def _input_message(content: Content) -> Message:
    blocks: list[Block] = []
    for part in said_parts(content):
        side, made = blocks_of(DIALECT, part, "user")
        if side is None:
            return made[0]
        blocks.extend(made or [text_block(text_of((part,)))])
    first = parts_of(content)[0]
    about: Any = mark_of(DIALECT, first).get("message", {"str": True} if isinstance(content, str) else {})
    is_kept = isinstance(about, dict)
    return DIALECT.close(Opened("user", blocks, cast("dict[str, Any]", about) if is_kept else {}))


def _taking_turns(messages: Iterable[Message]) -> list[Message]:
    turns: list[Message] = []
    for message in messages:
        content = [block for block in list_of(message.get("content")) if block != text_block("")]
        if not content:
            continue
        if turns and turns[-1].get("role") == message.get("role"):
            turns[-1] = {**turns[-1], "content": [*list_of(turns[-1]["content"]), *content]}
        else:
            is_text = isinstance(message["content"], str)
            turns.append(message if is_text else {**message, "content": content})
    if turns and turns[0].get("role") == "assistant":
        turns.insert(0, {"role": "user", "content": FIRST})
    return turns

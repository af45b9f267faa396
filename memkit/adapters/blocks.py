"""Messages made of blocks, as runs and back: what the formats of Anthropic and of pydantic-ai have in common.

A block that a part can say becomes that part, with what more there is to it in `extra`, under the name of the
format; any other becomes an `Opaque`. A message begins where the side changes that speaks, or where the first part
of it carries a `message` mark, which is what a plain message does not say. Calls come last in what a model says,
and results first in what it is told, as chat messages have them; where they did not, the mark keeps the order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import time
from typing import Any, Final, Literal, Protocol, TypeAlias, cast

import msgspec

from memkit.adapters.changes import change_of, changed
from memkit.content import Content, Known, Opaque, Part, Text, ToolCall, ToolResult, parts_of, text_of
from memkit.errors import FormatError
from memkit.items import with_extra
from memkit.messages import cleaned
from memkit.rawjson import difference, parse_json, restored, to_json
from memkit.run import Run, new_id

Block: TypeAlias = dict[str, Any]
Message: TypeAlias = dict[str, Any]
Side: TypeAlias = Literal["user", "model"]

DEPTH: Final = 14
"""How deep what is in a message may come to lie in a stored run, as the codec counts."""


class Imported(msgspec.Struct, frozen=True):
    """What messages became. `repairs` tells, message by message, what is left out or put in on the way back."""

    runs: tuple[Run, ...]
    repairs: tuple[str, ...] = ()


class Opened(msgspec.Struct, frozen=True):
    """A message taken apart. `about` is what a plain message of these blocks does not say."""

    side: Side
    blocks: Sequence[Any]
    about: Mapping[str, Any]


class Dialect(Protocol):
    """A format of messages that are made of blocks."""

    @property
    def name(self) -> str:
        """The name under which `extra` keeps what parts do not say."""
        ...

    def open(self, message: Message) -> Opened:
        """Take a message apart; without blocks it stays whole."""
        ...

    def close(self, opened: Opened) -> Message:
        """Put a message together."""
        ...

    def whole(self, message: Message) -> Opaque:
        """Return a message that stays whole as a part."""
        ...

    def told(self, block: Any) -> str | list[Any]:
        """Return what a model is told beside results as a chat message has it; nothing, if that cannot say it."""
        ...

    def natural(self, block: Block, side: Side) -> Known | None:
        """Return the part that says most of a block; None if it is nothing like a part."""
        ...

    def plain(self, part: Known, side: Side) -> Block:
        """Return a part as a block."""
        ...

    def foreign(self, value: Mapping[str, Any]) -> tuple[Side | None, Sequence[Block]]:
        """Return the blocks of a chat message, or of what else has no mark; with None as side, it is a message."""
        ...


# --- what is given ---


def checked(messages: Sequence[Any]) -> tuple[list[Message], list[tuple[int, str]]]:
    """Return copies of messages, proven to be JSON objects, and what had to be repaired for that.

    Raises:
        FormatError: one is no JSON object; it names the index.
    """
    copies: list[Message] = []
    repairs: list[tuple[int, str]] = []
    for index, given in enumerate(messages):
        message = to_json(given, f"message {index}", DEPTH)
        if not isinstance(message, dict):
            raise FormatError(f"message {index} is a {type(given).__name__}, not a dict")
        copies.append(cleaned(cast("Message", message)))
        if copies[-1] is not message:
            repairs.append((index, "text that is not valid Unicode is replaced by U+FFFD"))
    return copies, repairs


# --- from messages to a run ---


def run_of(dialect: Dialect, said: Content, messages: Iterable[tuple[int, Message]]) -> tuple[Run, list[int]]:
    """Return what followed an input as a run, and for each of its steps the index of the message it comes from."""
    given = list(messages)
    steps: list[Part] = []
    sources: list[int] = []
    output: Content = ()
    before: Side | None = None
    for index, message in given:
        opened = dialect.open(message)
        parts = _parts(dialect, message, opened, begins=opened.side == before)
        before = opened.side
        if index == given[-1][0]:
            parts, output = _split_output(opened, parts)
        steps.extend(parts)
        sources.extend([index] * len(parts))
    # Complete, even where an answer is missing: a partial run would be left out of prompts.
    return Run(new_id(), said, tuple(steps), output, created_at=time()), sources


def _parts(dialect: Dialect, message: Message, opened: Opened, *, begins: bool) -> list[Part]:
    """Return a message as parts; `begins` tells that no change of side shows where it begins."""
    if not opened.blocks:
        return [dialect.whole(message)]
    groups = [_block_parts(dialect, block, opened.side) for block in opened.blocks]
    order = sorted(range(len(groups)), key=lambda index: _rank(groups[index][0]))
    about = dict(opened.about)
    if order != list(range(len(groups))):
        about["order"] = order
    parts = [part for index in order for part in groups[index]]
    if about or begins:
        if isinstance(parts[0], Opaque) and not mark_of(dialect, parts[0]):
            parts.insert(0, _note(dialect, {}))
        parts[0] = marked(dialect, parts[0], message=about)
    return parts


def _block_parts(dialect: Dialect, block: Any, side: Side) -> list[Part]:
    part = part_of(dialect, block, side)
    return [part] if side == "model" or isinstance(part, ToolResult) else _told(dialect, block)


def _told(dialect: Dialect, block: Any) -> list[Part]:
    """Return what a model is told beside results: a chat message, which all formats read, after a note on it."""
    message = {"role": "user", "content": dialect.told(block)}
    _, made = dialect.foreign(message) if message["content"] else (None, ())
    if len(made) != 1:
        return [opaque(dialect, block, side="user")]
    told = Opaque(msgspec.json.encode(message))
    return [told] if made[0] == block else [_note(dialect, change_of(made[0], block)), told]


def _note(dialect: Dialect, change: Mapping[str, Any]) -> Opaque:
    """Return what is to be known of the chat message after it, which no service would accept inside of it."""
    return Opaque(msgspec.json.encode({dialect.name: {"next": change}}))


def _rank(part: Part) -> int:
    if isinstance(part, ToolResult):
        return 0
    return 2 if isinstance(part, ToolCall) else 1


def _split_output(opened: Opened, parts: list[Part]) -> tuple[list[Part], Content]:
    """Return what of the last message of a run are steps, and the answer that ends it."""
    if opened.side == "user" or any(isinstance(part, ToolCall) for part in parts):
        return parts, ()
    cut = next((i for i in range(len(parts), 0, -1) if isinstance(parts[i - 1], Opaque)), 0)
    return parts[:cut], tuple(parts[cut:])


def part_of(dialect: Dialect, block: Any, side: Side) -> Part:
    """Return a block as a part, with what it does not say of the block in `extra`."""
    part = dialect.natural(cast("Block", block), side) if isinstance(block, dict) else None
    if part is None:
        return opaque(dialect, block)
    more = difference(dialect.plain(part, side), cast("Block", block))
    return marked(dialect, part, **more) if more else part


def opaque(dialect: Dialect, block: Any, **mark: Any) -> Opaque:
    """Return a block as an `Opaque`. It stands in the mark: other formats could take it for one of their own."""
    return Opaque(msgspec.json.encode({dialect.name: {**mark, "block": block}}))


def marked(dialect: Dialect, part: Part, **more: Any) -> Part:
    """Return a part with more in its mark."""
    mark = {**mark_of(dialect, part), **more}
    if not isinstance(part, Opaque):
        return with_extra(part, dialect.name, mark)
    return Opaque(msgspec.json.encode({**parse_json(part.raw), dialect.name: mark}))


def mark_of(dialect: Dialect, part: Part) -> dict[str, Any]:
    """Return the mark of a part, which may be anything that was stored."""
    kept = parse_json(part.raw) if isinstance(part, Opaque) else part.extra
    found = kept.get(dialect.name)
    return dict(cast("Mapping[str, Any]", found)) if isinstance(found, Mapping) else {}


# --- from a run to messages ---


def messages_of(dialect: Dialect, steps: Iterable[Part], output: Content) -> list[Message]:
    """Return the steps and the output of a run as messages."""
    messages: list[Message] = []
    opened: list[tuple[Side, dict[str, Any], list[Block]]] = []
    plain: dict[str, Any] = {"str": True} if isinstance(output, str) else {}
    spoken: list[tuple[Part, dict[str, Any]]] = [(part, {}) for part in steps]
    spoken.extend((part, plain) for part in said_parts(output))

    def close() -> None:
        for side, about, blocks in opened:
            messages.append(dialect.close(Opened(side, _in_order(blocks, about.get("order")), about)))
        opened.clear()

    note: dict[str, Any] = {}
    for part, about in spoken:
        mark = mark_of(dialect, part)
        if "next" in mark:
            note = mark
            continue
        side, blocks = blocks_of(dialect, part)
        if note and isinstance(part, Opaque) and not mark:
            mark, blocks = note, [changed(block, note["next"]) for block in blocks]
        note = {}
        if side is None:
            close()
            messages.extend(blocks)
        elif blocks:
            begun = mark.get("message")
            if isinstance(begun, dict) or not opened or opened[-1][0] != side:
                close()
                opened.append((side, cast("dict[str, Any]", begun) if isinstance(begun, dict) else about, []))
            opened[-1][2].extend(blocks)
    close()
    return messages


def said_parts(content: Content) -> tuple[Part, ...]:
    """Return an input or an output as parts. Calls and results, which are neither, read as text."""
    said = parts_of(content)
    return tuple(Text(text_of((part,))) if isinstance(part, ToolCall | ToolResult) else part for part in said)


def _in_order(blocks: Sequence[Block], order: object) -> Sequence[Block]:
    """Return blocks in the order kept of them, if it is one: results may have been put in or left out."""
    places = cast("list[object]", order) if isinstance(order, list) else []
    at = {place: block for place, block in zip(places, blocks, strict=False) if type(place) is int}
    if len(at) != len(blocks) or len(places) != len(blocks) or not at.keys() <= set(range(len(blocks))):
        return blocks
    return [at[place] for place in range(len(blocks))]


def chat_role(part: Known) -> str | None:
    """Return whose message a step is that chat messages have in the name of another than the assistant."""
    match part.extra.get("chat"):
        case {"set": {"role": "user" | "system" | "developer" as role}} if isinstance(part, Text):
            return cast("str", role)
        case _:
            return None


def is_silent(dialect: Dialect, part: Part) -> bool:
    """Tell whether a step says nothing in this format: only another can tell it."""
    return isinstance(part, Opaque) and "next" not in mark_of(dialect, part) and not blocks_of(dialect, part)[1]


def blocks_of(dialect: Dialect, part: Part, side: Side | None = None) -> tuple[Side | None, Sequence[Block]]:
    """Return the blocks that a part stands for, and who speaks; None, where it is a whole message."""
    mark = mark_of(dialect, part)
    spoken: Side = "user" if isinstance(part, ToolResult) or mark.get("side") == "user" else "model"
    if not isinstance(part, Opaque):
        role = None if side or mark else chat_role(part)
        if role is not None:
            return dialect.foreign({"role": role, "content": text_of((part,))})
        return spoken, [restored(dialect.plain(part, side or spoken), mark)]
    value = parse_json(part.raw)
    if dialect.name not in value:
        return dialect.foreign(value)
    if "block" not in mark:
        return spoken, []
    is_whole = mark.get("whole") and isinstance(mark["block"], dict)
    return None if is_whole else spoken, [cast("Block", mark["block"])]

"""Messages made of blocks, as runs and back: what the formats of Anthropic and of pydantic-ai have in common.

A block that a part can say becomes that part, with what more there is to it in `extra`, under the name of the
format; any other becomes an `Opaque`. A message begins where the side changes that speaks, or where the first part
of it carries a `message` mark, which is what a plain message does not say. Calls come last in what a model says,
and results first in what it is told, as chat messages have them; where they did not, the mark keeps the order.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import time
from typing import Any, Final, Literal, Protocol, TypeAlias, cast

import msgspec

from memkit.content import Blob, Content, Known, Opaque, Part, Text, ToolCall, ToolResult, parts_of, text_of
from memkit.errors import FormatError
from memkit.items import with_extra
from memkit.messages import sendable
from memkit.rawjson import difference, parse_json, restored, to_json
from memkit.run import Run, new_id
from memkit.steps import repaired

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

    def told(self, block: Any) -> Opaque:
        """Return what a model is told among the steps, beside results, as a part."""
        ...

    def natural(self, block: Block, side: Side) -> Known | None:
        """Return the part that says most of a block; None if it is nothing like a part."""
        ...

    def plain(self, part: Known, side: Side) -> Block:
        """Return a part as a block."""
        ...

    def foreign(self, value: Mapping[str, Any]) -> tuple[Side | None, Sequence[Block]]:
        """Return the blocks that an `Opaque` without a mark stands for; with None as side, it is a message."""
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
        copy = cast("Message", message)
        try:
            msgspec.json.encode(copy)
        except UnicodeEncodeError:
            copy = cast("Message", sendable(copy))
            repairs.append((index, "text that is not valid Unicode is replaced by U+FFFD"))
        copies.append(copy)
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
    parts = [_part(dialect, block, opened.side) for block in opened.blocks]
    order = sorted(range(len(parts)), key=lambda index: _rank(parts[index]))
    about = dict(opened.about)
    if order != list(range(len(parts))):
        about["order"] = order
    parts = [parts[index] for index in order]
    if about or begins:
        parts[0] = marked(dialect, parts[0], message=about)
    return parts


def _part(dialect: Dialect, block: Any, side: Side) -> Part:
    part = part_of(dialect, block, side)
    return part if side == "model" or isinstance(part, ToolResult) else dialect.told(block)


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


def blob_of(media_type: str, data: object, altchars: bytes | None = None) -> Blob | None:
    """Return the bytes of base64, if that is what would be made of them again."""
    if not isinstance(data, str):
        return None
    try:
        decoded = base64.b64decode(data, altchars, validate=True)
    except (binascii.Error, ValueError):
        return None
    return Blob(media_type, decoded) if base64.b64encode(decoded, altchars).decode() == data else None


def repairs_of(steps: tuple[Part, ...], sources: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield what `repaired` does to these steps, and the messages to which it does it."""
    source_of = {id(part): source for part, source in zip(steps, sources, strict=True)}
    fixed = repaired(steps)
    kept = set(map(id, fixed))
    for part in steps:
        if isinstance(part, ToolResult) and id(part) not in kept:
            yield source_of[id(part)], f"the result of {part.id!r} is left out, since no such call is open"
    callers: dict[str, int] = {}
    for part in fixed:
        if isinstance(part, ToolCall):
            callers[part.id] = source_of[id(part)]
        elif isinstance(part, ToolResult) and id(part) not in source_of:
            yield callers[part.id], f"the call {part.id!r} has no result, and gets one that says so"


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

    for part, about in spoken:
        mark = mark_of(dialect, part)
        side, blocks = blocks_of(dialect, part)
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


def blocks_of(dialect: Dialect, part: Part, side: Side | None = None) -> tuple[Side | None, Sequence[Block]]:
    """Return the blocks that a part stands for, and who speaks; None, where it is a whole message."""
    mark = mark_of(dialect, part)
    spoken: Side = "user" if isinstance(part, ToolResult) or mark.get("side") == "user" else "model"
    if not isinstance(part, Opaque):
        return spoken, [restored(dialect.plain(part, side or spoken), mark)]
    value = parse_json(part.raw)
    if dialect.name not in value:
        return dialect.foreign(value)
    if "block" not in mark:
        return spoken, []
    is_whole = mark.get("whole") and isinstance(mark["block"], dict)
    return None if is_whole else spoken, [cast("Block", mark["block"])]

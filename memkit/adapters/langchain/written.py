"""A LangChain message as its fields, and which messages make a run. Needs no LangChain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

from memkit.errors import FormatError
from memkit.items import as_str
from memkit.rawjson import to_json

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

Given: TypeAlias = "BaseMessage | Mapping[str, Any]"
"""A message, or the dict that `messages_to_dict` makes of one."""

_KINDS: Final = {
    f"{name}MessageChunk": kind
    for name, kind in (
        ("AI", "ai"),
        ("Human", "human"),
        ("System", "system"),
        ("Tool", "tool"),
        ("Function", "function"),
        ("Chat", "chat"),
    )
}

DEPTH: Final = 15
"""How deep what is in a message may come to lie in a stored run, as the codec counts: that of a tool's result."""


class Written(NamedTuple):
    """The fields of a message, and the name of its class if that is not LangChain's own."""

    data: dict[str, Any]
    name: str = ""

    @property
    def type(self) -> str:
        """The type of the message."""
        return as_str(self.data.get("type"))

    @property
    def id(self) -> str:
        """The id of the message; empty, if it has none."""
        return as_str(self.data.get("id"))

    @property
    def kind(self) -> str:
        """The type of the message; of a piece that was streamed, that of what it is a piece of."""
        return kind_of(self)

    @property
    def more(self) -> Mapping[str, Any]:
        """The additional arguments of the message."""
        found = self.data.get("additional_kwargs")
        return cast("dict[str, Any]", found) if isinstance(found, dict) else {}

    @property
    def blocks(self) -> Sequence[Any]:
        """The content of the message, if it is a list."""
        content = self.data["content"]
        return cast("list[Any]", content) if isinstance(content, list) else ()

    @property
    def is_answer(self) -> bool:
        """Whether it is of the model and asks for nothing."""
        calls = (
            self.data.get("tool_calls") or self.data.get("invalid_tool_calls") or self.more.get("function_call")
        )
        return self.kind == "ai" and not calls

    def as_dict(self) -> dict[str, Any]:
        """Return the message as `messages_to_dict` writes it."""
        written = {"type": self.data.get("type"), "data": self.data}
        return written | {"class": self.name} if self.name else written


def checked(messages: Iterable[Given]) -> Iterable[Given]:
    """Return `messages`, if they are several of them.

    Raises:
        FormatError: one message, text, or nothing of the kind.
    """
    kind = cast("type", type(messages))
    is_one = issubclass(kind, str | bytes | Mapping) or hasattr(cast("object", kind), "model_fields")
    if is_one or not issubclass(kind, Iterable):
        raise FormatError(f"LangChain messages come as a list, not as a {kind.__name__}")
    return messages


def write(given: Given, where: str) -> Written:
    """Return a message as its fields, proven to be JSON.

    Raises:
        FormatError: it is no message, or has a field that JSON cannot hold; `where` names it.
    """
    if isinstance(given, Mapping):
        data, name = given.get("data"), as_str(given.get("class"))
        if not isinstance(data, Mapping) or not isinstance(given.get("type"), str):
            raise FormatError(f"{where} is a dict without type and data; see langchain_core's messages_to_dict")
        fields = {**cast("Mapping[str, Any]", data), "type": given["type"]}
    else:
        made = type(given)
        if not hasattr(made, "model_fields"):
            raise FormatError(f"{where} is a {made.__name__}, neither a message nor the dict of one")
        fields = fields_of(given)
        name = "" if made.__module__.startswith("langchain_core.") else made.__name__
    written: dict[str, Any] = to_json(fields, where, DEPTH)
    if not isinstance(content := written.get("content"), str | list):
        raise FormatError(f"{where} has a {type(content).__name__} as content; it is text or a list")
    return Written(written, name)


def kind_of(message: Written | BaseMessage) -> str:
    """Return the type of a message; of a piece that was streamed, that of what it is a piece of."""
    return _KINDS.get(message.type, message.type)


def fields_of(message: BaseMessage) -> dict[str, Any]:
    """Return the fields of a message, those of nobody's class among them."""
    own = vars(message)
    return {name: own[name] for name in type(message).model_fields if name in own} | (message.model_extra or {})


def leading(messages: Sequence[Written | BaseMessage]) -> int:
    """Return how many system messages there are at the beginning."""
    return next((i for i, message in enumerate(messages) if kind_of(message) != "system"), len(messages))


def exchanges(messages: Sequence[Written | BaseMessage], start: int = 0) -> Iterator[tuple[int, int]]:
    """Yield where the runs among messages begin and end, from `start` on."""
    for index in range(start + 1, len(messages)):
        kind = kind_of(messages[index])
        if kind == "human" or (kind == "system" and is_answer(messages[index - 1])):
            yield start, index
            start = index
    if start < len(messages):
        yield start, len(messages)


def is_answer(message: Written | BaseMessage) -> bool:
    """Tell whether a message is of the model and asks for nothing."""
    return (message if isinstance(message, Written) else Written(vars(message))).is_answer

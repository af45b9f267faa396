"""LangChain's message classes, and messages made of their fields."""

from __future__ import annotations

from typing import Any, Final

from memkit.errors import FormatError

_NEEDS: Final = "LangChain messages need langchain-core 1.0 or later: pip install 'memkit[langchain]'"

try:
    from langchain_core import __version__
    from langchain_core.messages import (
        AIMessage,
        AIMessageChunk,
        BaseMessage,
        ChatMessage,
        ChatMessageChunk,
        FunctionMessage,
        FunctionMessageChunk,
        HumanMessage,
        HumanMessageChunk,
        RemoveMessage,
        SystemMessage,
        SystemMessageChunk,
        ToolMessage,
        ToolMessageChunk,
    )
except ImportError as error:
    raise ImportError(_NEEDS) from error
if int(__version__.partition(".")[0]) < 1:
    raise ImportError(f"{_NEEDS}; this is {__version__}")

_CLASSES: Final[dict[str, type[BaseMessage]]] = {
    "human": HumanMessage,
    "ai": AIMessage,
    "system": SystemMessage,
    "tool": ToolMessage,
    "function": FunctionMessage,
    "chat": ChatMessage,
    "remove": RemoveMessage,
    **{
        chunk.__name__: chunk
        for chunk in (
            AIMessageChunk,
            HumanMessageChunk,
            SystemMessageChunk,
            ToolMessageChunk,
            FunctionMessageChunk,
            ChatMessageChunk,
        )
    },
}


def build(data: dict[str, Any], made: type[BaseMessage] | None = None) -> BaseMessage:
    """Return the message of these fields, of a class given or of the one that its `type` stands for.

    Raises:
        FormatError: the class refuses them.
    """
    name = data.get("type")
    kind = made or (_CLASSES.get(name) if isinstance(name, str) else None) or BaseMessage
    try:
        message = kind(**data)
    except Exception as error:  # whatever validators raise, also those of classes that are not LangChain's
        raise FormatError(
            f"langchain-core {__version__} makes no {kind.__name__} of a stored message of type {name!r}: {error}"
        ) from error
    # As it was: a validator may have put back calls that somebody took out of the message.
    return message.model_copy(update=data)

"""Messages of pydantic-ai in the JSON form that everything here is stored in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec
from pydantic_core import PydanticSerializationError

from memkit.adapters.blocks import Message
from memkit.errors import FormatError
from memkit.messages import sendable
from memkit.rawjson import parse_json

try:
    from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter
except ImportError as error:
    raise ImportError("this needs pydantic-ai, tested with 2.68: pip install -U 'memkit[pydantic-ai]'") from error


def write(messages: Sequence[ModelMessage]) -> list[Message]:
    """Return messages as JSON values. Text that is not valid Unicode is replaced by U+FFFD.

    Raises:
        FormatError: something in them, such as what a tool has returned, cannot be JSON.
    """
    given = list(messages)
    try:
        return cast("list[Message]", parse_json(ModelMessagesTypeAdapter.dump_json(given)))
    except PydanticSerializationError:
        pass  # of lone surrogates as well, which there may be in Python
    try:
        return cast("list[Message]", sendable(ModelMessagesTypeAdapter.dump_python(given, mode="json")))
    except PydanticSerializationError as error:
        raise FormatError(f"these messages of pydantic-ai cannot be stored: {error}") from error


def encode(message: ModelMessage) -> bytes:
    """Return the JSON text of a message, as `write`."""
    try:
        return ModelMessagesTypeAdapter.dump_json([message])[1:-1]
    except PydanticSerializationError:
        return msgspec.json.encode(write([message])[0])

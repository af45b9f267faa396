"""What goes over the wire: the objects of the API as they are read, and bodies and heads made of them.

A message is a body: `{"input": ..., "output": ..., "metadata": {"run_id": ...}}`. The metadata of a thread is the
head; one member of it is the driver's own and changes with every commit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final, TypeVar, cast

import msgspec

from memkit.errors import FormatError, UnsupportedError
from memkit.rawjson import parse_json

T = TypeVar("T")

OWN: Final = "memkit"
_ADVICE: Final = "Griptape Cloud keeps messages of its own form only; use codec=GriptapeCodec()"


class Pagination(msgspec.Struct, frozen=True):
    """Where a page stands."""

    total_count: int
    total_pages: int


class Message(msgspec.Struct, frozen=True, rename={"id": "message_id"}):
    """A message as the service returns it. One that holds something else than text must not cost the others."""

    id: str
    index: int | float
    input: Any = msgspec.UNSET
    output: Any = msgspec.UNSET
    metadata: Any = None


class MessagePage(msgspec.Struct, frozen=True, rename={"items": "messages"}):
    """Some messages of a thread."""

    items: list[Message]
    pagination: Pagination


class Thread(msgspec.Struct, frozen=True, rename={"id": "thread_id"}):
    """A thread as the service returns it."""

    id: str
    alias: str | None = None
    created_at: str = ""
    metadata: dict[str, Any] | None = None


class ThreadPage(msgspec.Struct, frozen=True, rename={"items": "threads"}):
    """Some threads of the organisation."""

    items: list[Thread]
    pagination: Pagination


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is stored of a record: a message without what the service adds."""

    input: str
    output: str
    metadata: dict[str, Any]


class StoredHead(msgspec.Struct, frozen=True):
    """The head that a thread holds, None if none was ever committed; `nonce` is that of the last commit."""

    head: bytes | None
    nonce: str
    revision: str


THREADS: Final = "/api/threads"


def thread_path(thread_id: str) -> str:
    """Return the path of a thread."""
    return f"{THREADS}/{thread_id}"


def messages_path(thread_id: str) -> str:
    """Return the path of the messages of a thread."""
    return f"{THREADS}/{thread_id}/messages"


def read(raw: bytes, kind: type[T]) -> T:
    """Return JSON as a value of this type.

    Raises:
        FormatError: not JSON, or not of this type.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, RecursionError):
        pass  # maybe only an escaped surrogate, which msgspec does not read
    try:
        return msgspec.convert(parse_json(raw), kind)
    except (ValueError, RecursionError) as error:
        raise FormatError(str(error)) from error


def dump(value: object, *, is_sorted: bool = False) -> bytes:
    """Return compact JSON of what was read from JSON; a lone surrogate becomes its escape.

    Raises:
        FormatError: nested too deep to be written.
    """
    try:
        try:
            return msgspec.json.encode(value, order="sorted" if is_sorted else None)
        except (UnicodeEncodeError, OverflowError):  # the latter of an integer beyond 64 bits
            return json.dumps(value, separators=(",", ":"), sort_keys=is_sorted).encode()
    except RecursionError as error:
        raise FormatError("a value is nested too deep to be written") from error


def body_of(message: Message) -> bytes:
    """Return the body of a message; one that says of no run gets the id of the message beside."""
    said: dict[str, Any] = {"input": message.input, "output": message.output, "metadata": message.metadata or {}}
    body = {name: value for name, value in said.items() if value is not msgspec.UNSET}
    if not run_id_of(message):
        body["message_id"] = message.id
    return dump(body)


def run_id_of(message: Message | Body) -> str:
    """Return the id of the run that a message is, `""` if it does not say."""
    metadata = message.metadata
    run_id: object = cast("dict[str, Any]", metadata).get("run_id") if isinstance(metadata, dict) else None
    return run_id if isinstance(run_id, str) else ""


def read_body(raw: bytes, record_id: str | None = None) -> Body:
    """Return a body that can be kept, as the run of this id if one is given.

    Raises:
        UnsupportedError: a body of another form, or of another id.
    """
    try:
        body = read(raw, Body)
    except FormatError as error:
        raise UnsupportedError(f"this body cannot be kept ({error}); {_ADVICE}") from error
    run_id = run_id_of(body)
    if not run_id or (record_id is not None and run_id != record_id):
        raise UnsupportedError(
            f"this body cannot be kept (its metadata.run_id is {run_id[:80]!r}, "
            f"not the id of its record); {_ADVICE}"
        )
    return body


def is_same(message: Message, body: Body) -> bool:
    """Tell whether a message holds what a body does."""
    metadata: Any = message.metadata or {}
    return (message.input, message.output, metadata) == (body.input, body.output, body.metadata)


def find(messages: Sequence[Message], body: Body, since: int) -> tuple[int, bool] | None:
    """Return the first position from `since` on of the run of a body, and whether it holds the same."""
    run_id = run_id_of(body)
    for position in range(since, len(messages)):
        if run_id_of(messages[position]) == run_id:
            return position, is_same(messages[position], body)
    return None


def stored_head(thread: Thread) -> StoredHead:
    """Return the head that is in the metadata of a thread, without what is the driver's own."""
    rest = dict(thread.metadata or {})
    own = rest.get(OWN)
    nonce = ""
    if isinstance(own, dict):
        others = dict(cast("dict[str, Any]", own))
        nonce = str(others.pop("revision", ""))
        rest[OWN] = others
        if not others:
            del rest[OWN]
    digest = blake2b(dump([nonce, rest], is_sorted=True), digest_size=16).hexdigest()
    return StoredHead(dump(rest) if rest or nonce else None, nonce, f"{thread.id}.{digest}")


def metadata_of(head: bytes, nonce: str) -> dict[str, Any]:
    """Return the metadata of a thread that hold a head, and the nonce of its commit.

    Raises:
        UnsupportedError: the head is no JSON object, or takes the place of what is the driver's own.
    """
    try:
        metadata = read(head, dict[str, Any])
    except FormatError as error:
        raise UnsupportedError(f"this head cannot be kept ({error}); {_ADVICE}") from error
    own = metadata.get(OWN, {})
    if not isinstance(own, dict) or "revision" in own:
        raise UnsupportedError(f"this head cannot be kept: its {OWN}.revision is the driver's own; {_ADVICE}")
    return {**metadata, OWN: {**cast("dict[str, Any]", own), "revision": nonce}}

"""The stored format: entries and heads as JSON, versioned, readable for ever.

Every body is one JSON object that begins with `{"v":1,"kind":`. A body with more in it than this version
knows, written by a newer minor version or kept for one, says so by beginning otherwise, with a `minor` after
the `v`; it takes the slow path, on which unknown fields land in `extra` and unknown parts in `Opaque`, and
both go back as they came. A different `v` is not read at all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec

from memkit.checks import check_entry, check_head
from memkit.content import (
    EMPTY,
    Blob,
    Content,
    Json,
    Known,
    Opaque,
    Part,
    Ref,
    Text,
    ToolCall,
    ToolResult,
)
from memkit.conversation import Head, Summary
from memkit.driver import CheckBody, capability
from memkit.errors import FormatError
from memkit.rawjson import load_text, split_array, split_object
from memkit.run import Amend, Counts, Entry, Extend, Retract, Run, new_run

T = TypeVar("T")

VERSION: Final = 1
MAX_BODY: Final = 32 * 1024 * 1024
"""The largest body, in bytes. Larger media belong in a store of their own, with a `Ref` here."""


class Codec(Protocol):
    """Turns entries and heads into bytes and back: the place for encryption, compression, other formats.

    All methods raise `FormatError` on what they cannot write or read.
    """

    def encode(self, entry: Entry, /) -> bytes:
        """Return the body of an entry."""
        ...

    def decode(self, body: bytes, /) -> Entry:
        """Return the entry of a body."""
        ...

    def encode_head(self, head: Head, /) -> bytes:
        """Return the bytes of a head."""
        ...

    def decode_head(self, data: bytes, /) -> Head:
        """Return the head of these bytes."""
        ...


def check_codec(driver: object, codec: Codec) -> None:
    """Ask a driver that keeps bodies of one form only whether those of this codec have it.

    Raises:
        UnsupportedError: they have not.
    """
    if (picky := capability(driver, CheckBody)) is not None:
        picky.check_body(codec.encode(new_run("")))


class JsonCodec:
    """memkit's own format."""

    def encode(self, entry: Entry, /) -> bytes:
        """Return the body of an entry.

        Raises:
            FormatError: a value that JSON cannot hold, nesting deeper than 100 levels, or too large a body.
        """
        has_extra = check_entry(entry)
        return _write(entry, has_extra, self.decode, repr(entry.id))

    def decode(self, body: bytes, /) -> Entry:
        """Return the entry of a body.

        Raises:
            FormatError: not an entry, or one of a version that this one cannot read.
        """
        entry = _read(body, _entries, _ENTRIES)
        return entry if type(entry) is Run and entry.counts is None else _with_shared_name(entry)

    def encode_head(self, head: Head, /) -> bytes:
        """Return the bytes of a head.

        Raises:
            FormatError: meta that JSON cannot hold, or too large a head.
        """
        has_extra = check_head(head)
        return _write(head, has_extra, self.decode_head, "the head")

    def decode_head(self, data: bytes, /) -> Head:
        """Return the head of these bytes.

        Raises:
            FormatError: not a head, or one of a version that this one cannot read.
        """
        return _read(data, _heads, {"head": Head})


_ENTRIES: Final[dict[str, type[Entry]]] = {"run": Run, "extend": Extend, "amend": Amend, "retract": Retract}
_PARTS: Final[dict[str, type[Known]]] = {
    "text": Text,
    "json": Json,
    "blob": Blob,
    "ref": Ref,
    "call": ToolCall,
    "result": ToolResult,
}
_FAST: Final = b'{"v":1,"kind":'


def _plain(value: object) -> object:
    """Return what msgspec can encode in the place of what it does not know."""
    if isinstance(value, Opaque):
        return msgspec.Raw(value.raw)
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    raise TypeError(f"a {type(value).__name__} is not JSON")


_encoder: Final = msgspec.json.Encoder(enc_hook=_plain)
_entries: Final = msgspec.json.Decoder(Run | Extend | Amend | Retract)
_heads: Final = msgspec.json.Decoder(Head)


# --- writing ---


def _write(value: Entry | Head, has_extra: bool, read: Callable[[bytes], object], what: str) -> bytes:
    try:
        body = _write_slowly(value) if has_extra else _write_fast(value)
        read(body)  # what a program without types may have put in must fail here, not when it is loaded
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise FormatError(f"{what} cannot be stored: {error}") from error
    if len(body) > MAX_BODY:
        raise FormatError(
            f"{what} takes {len(body):,} bytes, more than {MAX_BODY:,}; keep large media elsewhere, as a Ref"
        )
    return body


def _write_fast(value: Entry | Head) -> bytes:
    try:
        return b'{"v":1,' + _encoder.encode(value)[1:]
    except UnicodeEncodeError:
        return _write_slowly(value)  # a lone surrogate, which only an escape can hold


def _write_slowly(value: Entry | Head) -> bytes:
    fields = _dump(value)[1:]
    has_minor = isinstance(value.extra.get("minor"), int)
    return (f'{{"v":1,{fields}' if has_minor else f'{{"v":1,"minor":0,{fields}').encode()


def _dump(value: Any) -> str:
    if isinstance(value, Opaque):
        return value.raw.decode()
    if isinstance(value, Counts):
        return json.dumps(msgspec.structs.astuple(value), separators=(",", ":"))
    if isinstance(value, msgspec.Struct):
        return "{" + ",".join(f"{json.dumps(name)}:{item}" for name, item in _dump_fields(value)) + "}"
    if isinstance(value, tuple):
        return f"[{','.join(map(_dump, cast('tuple[Any, ...]', value)))}]"
    return json.dumps(msgspec.to_builtins(value, enc_hook=_plain), separators=(",", ":"), allow_nan=False)


def _dump_fields(value: msgspec.Struct) -> Iterator[tuple[str, str]]:
    extra: Mapping[str, Any] = getattr(value, "extra", EMPTY)
    if "minor" in extra:
        yield "minor", _dump(extra["minor"])
    if (tag := value.__struct_config__.tag) is not None:
        yield "kind", json.dumps(tag)
    for field in _fields(type(value)):
        item = getattr(value, field.name)
        if field.name != "extra" and item is not field.default:
            yield field.name, _dump(item)
    for name, item in extra.items():
        if name != "minor":
            yield name, _dump(item)


@cache
def _fields(cls: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(cls)  # which works out the types anew each time


# --- reading ---


def _read(body: bytes, decoder: msgspec.json.Decoder[T], kinds: Mapping[str, type[T]]) -> T:
    if body.startswith(_FAST):
        try:
            return decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # an unknown part, an escaped surrogate, or damage
    return _read_slowly(body, kinds)


def _read_slowly(body: bytes, kinds: Mapping[str, type[T]]) -> T:
    try:
        fields = split_object(body.decode())
        is_version_known = "v" in fields
        version, kind = load_text(fields.pop("v", "null")), load_text(fields.pop("kind", "null"))
        if fields.get("minor") == "0":
            del fields["minor"]  # says no more than that the slow path is to be taken
        if version != VERSION:
            raise FormatError(
                f"stored in version {version!r} of the format, of which this memkit reads {VERSION}"
                if is_version_known
                else "not stored by memkit: there is no format version in it"
            )
        if kind not in kinds:
            raise FormatError(f"an entry of the kind {kind!r} was stored by a newer version; upgrade memkit")
        return _read_struct(kinds[kind], fields)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"not what memkit stores: {error} (it begins {body[:60]!r})") from error


def _read_struct(cls: type[T], fields: Mapping[str, str]) -> T:
    slots = {field.name: field for field in _fields(cast("type[msgspec.Struct]", cls))}
    known: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, raw in fields.items():
        slot = slots.get(name)
        if slot is None or name == "extra":
            extra[name] = load_text(raw)
        elif raw != "null" or slot.required:
            read = _READERS.get(name)
            known[name] = read(raw) if read else msgspec.convert(load_text(raw), slot.type)
    return cast("Callable[..., T]", cls)(**known, extra=extra or EMPTY)


def _read_content(raw: str) -> Content:
    return _read_parts(raw) if raw.startswith("[") else msgspec.convert(load_text(raw), str)


def _read_parts(raw: str) -> tuple[Part, ...]:
    return tuple(map(_read_part, split_array(raw)))


def _read_part(raw: str) -> Part:
    fields = split_object(raw)
    kind = load_text(fields.pop("kind", "null"))
    if isinstance(kind, str) and kind in _PARTS:
        with suppress(msgspec.ValidationError, TypeError, FormatError):
            return _read_struct(_PARTS[kind], fields)
    return Opaque(raw.encode())


def _read_run(raw: str) -> Run:
    fields = split_object(raw)
    fields.pop("kind", None)
    return _read_struct(Run, fields)


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "input": _read_content,
    "output": _read_content,
    "content": _read_content,
    "steps": _read_parts,
    "run": _read_run,
    "summary": lambda raw: _read_struct(Summary, split_object(raw)),
}


def _with_shared_name(entry: Entry) -> Entry:
    """Let all counts share one string for the name of their counter: 60 bytes a run less."""
    run = entry.run if isinstance(entry, Amend) else entry
    if not isinstance(run, Retract) and run.counts is not None:
        msgspec.structs.force_setattr(run.counts, "name", sys.intern(run.counts.name))
    return entry

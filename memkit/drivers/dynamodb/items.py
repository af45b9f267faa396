"""What is in the items: heads and entries. Nothing that is read is believed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from memkit.driver import Record
from memkit.drivers.dynamodb.layout import MAX_INLINE, VERSION, Item
from memkit.errors import FormatError

T = TypeVar("T")


MAX_PARTS: Final = 1_000_000
"""How many parts anything has at most; more is a lie."""

_MOST_SHRINK: Final = 1_100  # nothing that zlib compresses shrinks more

_LONGEST_TTL: Final = 10**11  # seconds, some 3000 years


class Group(msgspec.Struct, frozen=True, array_like=True):
    """Some records in a row, packed together and stored in parts. No parts: they were trimmed.

    `packed` is how many bytes the parts hold, 0 if they are not compressed.
    """

    count: int
    parts: str
    first: int
    chunks: int
    packed: int

    @property
    def size(self) -> int:
        """About how many bytes its records have, at most."""
        return self.packed or self.chunks * MAX_INLINE


class Head(msgspec.Struct, frozen=True):
    """The item that says what there is of a conversation.

    `until` is the millisecond in which it expires, and `expires` the second for the service. `pin` names the call
    of `expire` that has the last word on these, `gone` the deletion that is under way. Entries before `swept` are
    deleted for good.
    """

    epoch: str
    end: int
    revision: str
    base: int = 0
    swept: int = 0
    head: bytes | None = None
    groups: str = ""
    until: int | None = None
    expires: int | None = None
    pin: str = ""
    gone: str = ""

    def is_alive(self, now: int) -> bool:
        """Tell whether there is a conversation at this millisecond."""
        return not self.gone and (self.until is None or self.until > now)

    @property
    def is_mortal(self) -> bool:
        """Tell whether entries may have expired."""
        return self.until is not None or self.pin != ""

    @property
    def same_pin(self) -> str:
        """The condition that `expire` was not called meanwhile, with `:pin` for the pin."""
        return "#pin = :pin" if self.pin else "attribute_not_exists(#pin)"

    def values(self) -> dict[str, Any]:
        """Return the attributes of the item."""
        values = {name: value for name, value in msgspec.structs.asdict(self).items() if value != ""}
        return values | {"memkit": VERSION}


class Lifetime(msgspec.Struct, frozen=True):
    """When a conversation is gone: in milliseconds, and in seconds for the service. `pin` is as in `Head`."""

    until: int | None
    expires: int | None
    pin: str

    @classmethod
    def of(cls, head: Head | None, ttl: float | None, moment: int) -> Lifetime:
        """Return what a write leaves: what `expire` has said, or else `ttl` seconds from this moment."""
        if head is not None and (head.pin or ttl is None):
            return cls(head.until, head.expires, head.pin)
        return cls.after(ttl, moment, "")

    @classmethod
    def after(cls, ttl: float | None, moment: int, pin: str) -> Lifetime:
        """Return `ttl` seconds from this moment, or for ever."""
        if ttl is None:
            return cls(None, None, pin)
        until = moment + math.ceil(min(max(ttl, 0), _LONGEST_TTL) * 1000)
        return cls(until, -(-until // 1000), pin)


class Entry(msgspec.Struct, frozen=True):
    """An item of the log: one record, or groups of them, from its position on.

    `packed` is how many bytes the body has when it is inflated, 0 if it is not compressed.
    """

    position: int = 0
    entry: str = ""
    body: bytes = b""
    packed: int = 0
    count: int = 1
    groups: str = ""
    of: int | None = None
    expires: int | None = None

    @property
    def end(self) -> int:
        """The position after the last one."""
        return self.position + self.count

    def is_alive(self, now: int) -> bool:
        """Tell whether it is to be shown at this millisecond."""
        return self.expires is None or self.expires * 1000 > now

    def record(self, where: str) -> Record:
        """Return the record of an entry without groups.

        Raises:
            FormatError: its body cannot be decompressed.
        """
        return Record(self.entry, inflated(self.body, self.packed, where))


def inflated(data: bytes, size: int, where: str) -> bytes:
    """Return what was compressed and has so many bytes; the data itself if `size` is 0.

    Raises:
        FormatError: it has more bytes, or fewer, or is something else.
    """
    if not size:
        return data
    if size > _MOST_SHRINK * len(data):
        raise damaged(where)
    inflating = zlib.decompressobj()
    try:
        found = inflating.decompress(data, size + 1)
    except zlib.error as error:
        raise damaged(where) from error
    if len(found) != size or not inflating.eof or inflating.unused_data:
        raise damaged(where)
    return found


_groups: Final = msgspec.json.Decoder(tuple[Group, ...])


def read_groups(text: str, count: int, where: str) -> tuple[Group, ...]:
    """Return the groups that an item lists, which hold so many records.

    Raises:
        FormatError: it does not list such groups.
    """
    if not text:
        return ()
    try:
        groups = _groups.decode(text)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise damaged(where) from error
    is_sound = all(
        group.count > 0 and group.first >= 0 and group.packed >= 0 and 0 <= group.chunks <= MAX_PARTS
        for group in groups
    )
    if not is_sound or sum(group.count for group in groups) != count:
        raise damaged(where)
    return groups


def write_groups(groups: Sequence[Group]) -> str:
    """Return the form in which an item lists groups."""
    return msgspec.json.encode(groups).decode()


def read_head(item: Item, where: str) -> Head:
    """Return what the item of a head says.

    Raises:
        FormatError: it is of another program, or of a newer memkit.
    """
    check_version(item, where)
    head = _converted(item, Head, where)
    if not 0 <= head.swept <= head.base <= head.end:
        raise damaged(where)
    return head


def read_entry(item: Item, position: int, where: str) -> Entry:
    """Return what the item of an entry says.

    Raises:
        FormatError: it is of another program, or of a newer memkit.
    """
    check_version(item, where)
    entry = _converted(item | {"position": position}, Entry, where)
    is_alias = entry.of is not None and 0 <= entry.of < position
    is_sound = entry.count == 1 or (entry.count > 1 and entry.groups)
    if not (entry.of is None or is_alias) or not is_sound or entry.packed < 0:
        raise damaged(where)
    return entry


def check_version(item: Item, where: str) -> None:
    """Refuse an item that this version did not write and cannot read.

    Raises:
        FormatError: saying so.
    """
    version = item.get("memkit")
    if version is None or not isinstance(version, int):
        raise FormatError(
            f"an item of another program lies where that of {where} belongs; use another prefix or another "
            "table. Nothing was written"
        )
    if version > VERSION:
        raise FormatError(
            f"{where} was written by a newer memkit: its layout is version {version}, this one knows {VERSION}; "
            "upgrade memkit. Nothing was written"
        )


def _converted(item: Item, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(item, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise damaged(where) from error


def damaged(where: str) -> FormatError:
    """Return the error of an item that no memkit has written."""
    return FormatError(f"{where} is damaged: an item is not what memkit writes. Nothing was written")

"""Records on their way into items: as they are, compressed, packed together, or split over parts."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar, TypeVarTuple

import msgspec
from anyio import to_thread

from memkit.driver import Record
from memkit.drivers.dynamodb.items import Group, damaged, inflated, write_groups
from memkit.drivers.dynamodb.layout import MAX_INLINE, VERSION
from memkit.errors import UnsupportedError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_IN_LOOP: Final = 256 * 1024
"""Up to so many bytes records are made ready on the event loop; more would hold it up."""

_FRAME: Final = struct.Struct(">IQ")
_GROUP: Final = 256 * 1024
"""About how many bytes of records are packed together."""

_MOST_GROUPS: Final = 5_000
"""How many groups an item lists at most, at some 70 bytes each."""

_ROUND: Final = 512
"""More bytes than an entry's item has beside key, id and body."""


class Draft(msgspec.Struct, frozen=True):
    """An entry before it has a position: a record that fits in its item, or packs that become groups.

    `packed` is as in `Entry`.
    """

    count: int
    size: int
    record: Record | None = None
    packed: int = 0
    packs: tuple[Pack, ...] = ()

    def values(self, groups: Sequence[Group], expires: int | None) -> dict[str, Any]:
        """Return the attributes of the item, its packs being stored as these groups."""
        values: dict[str, Any] = {"memkit": VERSION, "expires": expires}
        if self.record is None:
            return values | {"groups": write_groups(groups), "count": self.count}
        return values | {"entry": self.record.id, "body": self.record.body, "packed": self.packed or None}


class Pack(msgspec.Struct, frozen=True):
    """The bytes of a group before they lie in parts. `packed` is as in `Group`."""

    count: int
    chunks: tuple[bytes, ...]
    packed: int


async def aside(size: int, make: Callable[[*Ts], T], *args: *Ts) -> T:
    """Return what `make` makes of so many bytes: in a worker thread if they are many."""
    return await to_thread.run_sync(make, *args) if size > _IN_LOOP else make(*args)


def draft(records: Sequence[Record], most: int, most_bytes: int) -> tuple[Draft, ...]:
    """Return the entries that records become: one for each, or one for all if that would be too much at once."""
    if len(records) <= most:
        drafts = tuple(map(draft_one, records))
        if sum(item.size for item in drafts) <= most_bytes:
            return drafts
    return (Draft(len(records), _ROUND, packs=packs(records)),)


def draft_one(record: Record, room: int = MAX_INLINE) -> Draft:
    """Return the entry that a record becomes: as it is, compressed, or in parts, whichever fits first."""
    size = _ROUND + len(record.id.encode()) + len(record.body)
    if size <= room:
        return Draft(1, size, record)
    body = zlib.compress(record.body, 1)
    size -= len(record.body) - len(body)
    if size <= room:
        return Draft(1, size, Record(record.id, body), packed=len(record.body))
    return Draft(1, _ROUND, packs=(pack([record]),))


def packs(records: Sequence[Record]) -> tuple[Pack, ...]:
    """Pack records in groups of about as many bytes as an item takes.

    Raises:
        UnsupportedError: an item cannot list so many groups.
    """
    found: list[list[Record]] = [[]]
    size = 0
    for record in records:
        length = _FRAME.size + len(record.id.encode()) + len(record.body)
        if found[-1] and size + length > _GROUP:
            found.append([])
            size = 0
        found[-1].append(record)
        size += length
    if len(found) > _MOST_GROUPS:
        raise UnsupportedError(
            f"an append to DynamoDB has up to {_MOST_GROUPS} groups of {_GROUP} bytes; append fewer records at a "
            "time. Nothing was written"
        )
    return tuple(map(pack, found))


def pack(records: Sequence[Record]) -> Pack:
    """Pack records together. What does not fit in one item is compressed, and then split."""
    data, size = b"".join(_framed(records)), 0
    if len(data) > MAX_INLINE:
        data, size = zlib.compress(data, 1), len(data)
    chunks = tuple(data[start : start + MAX_INLINE] for start in range(0, len(data), MAX_INLINE))
    return Pack(len(records), chunks, size)


def unpack(group: Group, chunks: Sequence[bytes], where: str) -> list[Record]:
    """Return the records of a group.

    Raises:
        FormatError: these are not its bytes.
    """
    data = inflated(b"".join(chunks), group.packed, where)
    try:
        records = list(_records(data))
    except (struct.error, ValueError) as error:
        raise damaged(where) from error
    if len(records) != group.count:
        raise damaged(where)
    return records


def _framed(records: Sequence[Record]) -> Iterator[bytes]:
    for record in records:
        record_id = record.id.encode()
        yield _FRAME.pack(len(record_id), len(record.body))
        yield record_id
        yield record.body


def _records(data: bytes) -> Iterator[Record]:
    at = 0
    while at < len(data):
        id_size, size = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        middle, end = at + id_size, at + id_size + size
        if end > len(data):
            raise ValueError("the last record is cut off")
        yield Record(data[at:middle].decode(), data[middle:end])
        at = end

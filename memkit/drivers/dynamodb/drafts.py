"""Records on their way into items: as they are, compressed, packed together, or split over parts."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from memkit.driver import Record
from memkit.drivers.dynamodb.items import Group, damaged, write_groups
from memkit.drivers.dynamodb.layout import MAX_INLINE, VERSION

_FRAME: Final = struct.Struct(">IQ")
_GROUP: Final = 256 * 1024
"""About how many bytes of records are packed together."""

_ROUND: Final = 512
"""More bytes than an entry's item has beside key, id and body."""


class Draft(msgspec.Struct, frozen=True):
    """An entry before it has a position: a record that fits in its item, or packs that become groups."""

    count: int
    size: int
    record: Record | None = None
    packed: bool = False
    packs: tuple[Pack, ...] = ()

    def values(self, groups: Sequence[Group], expires: int | None) -> dict[str, Any]:
        """Return the attributes of the item, its packs being stored as these groups."""
        values: dict[str, Any] = {"memkit": VERSION, "expires": expires}
        if self.record is None:
            return values | {"groups": write_groups(groups), "count": self.count}
        packed = 1 if self.packed else None
        return values | {"entry": self.record.id, "body": self.record.body, "packed": packed}


class Pack(msgspec.Struct, frozen=True):
    """The bytes of a group before they lie in parts."""

    count: int
    chunks: tuple[bytes, ...]
    packed: bool


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
        return Draft(1, size, Record(record.id, body), packed=True)
    return Draft(1, _ROUND, packs=(pack([record]),))


def packs(records: Sequence[Record]) -> tuple[Pack, ...]:
    """Pack records in groups of about as many bytes as an item takes."""
    found: list[Pack] = []
    group: list[Record] = []
    size = 0
    for record in records:
        length = _FRAME.size + len(record.id.encode()) + len(record.body)
        if group and size + length > _GROUP:
            found.append(pack(group))
            group, size = [], 0
        group.append(record)
        size += length
    return (*found, pack(group))


def pack(records: Sequence[Record]) -> Pack:
    """Pack records together. What does not fit in one item is compressed, and then split."""
    data = b"".join(_framed(records))
    is_long = len(data) > MAX_INLINE
    if is_long:
        data = zlib.compress(data, 1)
    chunks = tuple(data[start : start + MAX_INLINE] for start in range(0, len(data), MAX_INLINE))
    return Pack(len(records), chunks, packed=is_long)


def unpack(group: Group, chunks: Sequence[bytes], where: str) -> list[Record]:
    """Return the records of a group.

    Raises:
        FormatError: these are not its bytes.
    """
    data = b"".join(chunks)
    try:
        records = list(_records(zlib.decompress(data) if group.packed else data))
    except (struct.error, UnicodeDecodeError, ValueError, zlib.error) as error:
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

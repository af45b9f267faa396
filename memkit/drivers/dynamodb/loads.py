"""Loading: head and entries of one moment.

A query is no snapshot: what is written meanwhile may be in one of its items and not in another. But the head is
read first, says where the log ends, and is written in one transaction with each entry. So entries from its end on
are left out, and where one before its end is missing, everything is read again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple

from memkit.driver import Log, Record, clip
from memkit.drivers.dynamodb.drafts import aside
from memkit.drivers.dynamodb.finders import MAX_LOAD, Asked, ByBatch, ByQuery, Finder, Found
from memkit.drivers.dynamodb.items import Entry, Group, Head, read_groups, read_head
from memkit.drivers.dynamodb.layout import Item
from memkit.drivers.dynamodb.parts import Parts
from memkit.drivers.dynamodb.requests import BARE, Reading, Requests, together
from memkit.drivers.dynamodb.tries import pause
from memkit.errors import FormatError

_TRIES: Final = 8
_SURE: Final = 1
"""How often the front is read again before what is missing there is believed to have expired."""

_CHUNK: Final = 1_000


class _Range(NamedTuple):
    """Positions that were asked for, and from where on everything was looked at."""

    low: int
    high: int
    floor: int


class _Unit(NamedTuple):
    """The record of an entry, or a group of its records, from its position on."""

    start: int
    size: int
    entry: Entry
    group: Group | None


class Loads:
    """What is read of the conversations in a table."""

    def __init__(self, requests: Requests, parts: Parts) -> None:
        self._requests = requests
        self._layout = requests.layout
        self._parts = parts
        self._finder: Final[Finder] = (ByQuery if self._layout.has_sort_key else ByBatch)(requests)

    async def head(self, key: str) -> Head | None:
        """Return the head, be the conversation alive or not; None if there is none."""
        return self.read_head(key, await self._requests.get(key, self._layout.head(key)))

    async def live_head(self, key: str) -> Head | None:
        """Return the head of a conversation that is alive."""
        head = await self.head(key)
        return head if head is not None and head.is_alive(now()) else None

    def read_head(self, key: str, item: Item | None) -> Head | None:
        """Return what an item says that is a head."""
        return None if item is None else read_head(item, self._requests.where(key))

    async def load(self, key: str, start: int, stop: int | None) -> tuple[Log, Head | None]:
        """Return head and entries `start:stop` of one moment, with the item of the head if it is alive."""
        for tries in range(_TRIES):
            reading = Reading(self._requests.consistent or tries > 0)
            item, found = await self._begin(key, start, stop, reading)
            head = self.read_head(key, item)
            if head is None or not head.is_alive(now()):
                return Log(), None
            low, high = clip(head.base, head.end, start, stop)
            if found is None:
                found = await self._finder.find(Asked(key, head.epoch, reading), low, high)
            entries = _gapless(*found, low, high, is_sure=head.is_mortal and tries >= _SURE)
            body = await self.head_body(key, head)
            if entries is not None and body is not None:
                log = await self._log(key, head, body[0], entries, _Range(low, high, found[1]))
                if log is not None:
                    return log, head
            await pause(tries)
        raise self._gap(key)

    async def entries(self, key: str, head: Head, low: int, high: int, reading: Reading = BARE) -> list[Entry]:
        """Return the entries that hold the positions from `low` up to `high`, the oldest first.

        What has expired is left out; that is at the front.
        """
        entries: list[Entry] = []
        top, tries = high, 0
        while top > low:
            found, floor = await self._finder.find(Asked(key, head.epoch, reading), low, top)
            part = _gapless(found, floor, low, top, is_sure=head.is_mortal and tries >= _SURE)
            if part is not None:
                entries = [*part, *entries]
                top, tries = (part[0].position if part and floor > low else low), 0
                continue
            await pause(tries)
            tries += 1
            if tries == _TRIES:
                raise self._gap(key)
        return entries

    async def all_that_is_left(self, key: str, head: Head, low: int, high: int) -> AsyncIterator[list[Entry]]:
        """Yield entries with positions from `low` up to `high` with gaps or without, some at a time."""
        for start in range(low, high, _CHUNK):
            top = min(start + _CHUNK, high)
            while top > start:
                found, floor = await self._finder.find(Asked(key, head.epoch, BARE), start, top)
                yield found
                top = min(floor, top - 1)

    async def records(self, key: str, entry: Entry) -> list[tuple[int, Record]] | None:
        """Return positions and records of an entry with its body; None if its parts are not there any more.

        What was trimmed is left out.
        """
        units = [unit for unit in self._units(key, entry) if unit.group is None or unit.group.chunks]
        found: list[tuple[int, Record]] = []
        for unit, records in zip(units, await self._read(key, units), strict=True):
            if records is None:
                return None
            found += enumerate(records, unit.start)
        return found

    async def head_body(self, key: str, head: Head) -> tuple[bytes | None] | None:
        """Return what was committed as the head; None if its parts are not there any more."""
        groups = read_groups(head.groups, 1, f"the head of {self._requests.where(key)}")
        if not groups:
            return (head.head,)
        records = await self._parts.read(key, groups[0])
        return (records[0].body,) if records else None

    # --- inside ---

    async def _begin(
        self, key: str, start: int, stop: int | None, reading: Reading
    ) -> tuple[Item | None, Found | None]:
        """Read the head and, where one request reads both, the newest entries."""
        if start < 0 and stop is None:
            return await self._finder.newest(key, min(-start, _CHUNK * _CHUNK), reading)
        return await self._requests.get(key, self._layout.head(key), consistent=reading.consistent), None

    async def _log(
        self, key: str, head: Head, body: bytes | None, entries: Sequence[Entry], asked: _Range
    ) -> Log | None:
        """Return the newest of these entries, as many as may be loaded; None if parts are not there any more."""
        low, high, floor = asked
        chosen: list[_Unit] = []
        size = 0
        edge = high
        for unit in reversed([unit for entry in entries for unit in self._units(key, entry)]):
            end, edge = edge, unit.start
            if end <= low or unit.start >= high:
                continue
            if chosen and size + unit.size > MAX_LOAD:
                break
            chosen.append(unit)
            size += unit.size
        found = await self._read(key, chosen)
        bodies: list[bytes] = []
        size = 0
        for unit, records in zip(chosen, found, strict=True):
            if records is None:
                return None
            inside = list(records)[max(0, low - unit.start) : high - unit.start]
            for record in reversed(inside):
                size += len(record.body)
                if size > MAX_LOAD and bodies:
                    break
                bodies.append(record.body)
        bodies.reverse()
        edge = entries[0].position if entries else high
        base = edge if edge > max(low, floor) else head.base  # what was before it has expired
        return Log(head.epoch, base, high - len(bodies), head.end, bodies, body, head.revision)

    def _units(self, key: str, entry: Entry) -> list[_Unit]:
        """Return what an entry consists of, and how large that is when it is inflated."""
        start = entry.position
        groups = read_groups(entry.groups, entry.count, self._where(key, start))
        if not groups:
            return [_Unit(start, entry.packed or len(entry.body), entry, None)]
        units: list[_Unit] = []
        for group in groups:
            units.append(_Unit(start, group.size, entry, group))
            start += group.count
        return units

    async def _read(self, key: str, units: Sequence[_Unit]) -> list[list[Record] | None]:
        return await together(self._read_unit(key, unit) for unit in units)

    async def _read_unit(self, key: str, unit: _Unit) -> list[Record] | None:
        """Return the records, inflated in a worker thread if they are long; None if their parts are not there."""
        if unit.group is not None:
            return await self._parts.read(key, unit.group)
        return [
            await aside(unit.size if unit.entry.packed else 0, unit.entry.record, self._where(key, unit.start))
        ]

    def _where(self, key: str, position: int) -> str:
        return f"{self._requests.where(key)} at position {position}"

    def _gap(self, key: str) -> FormatError:
        return FormatError(
            f"{self._requests.where(key)} is damaged: there are gaps among its entries, or in them. "
            "Nothing was written"
        )


def _gapless(entries: Sequence[Entry], floor: int, low: int, high: int, *, is_sure: bool) -> list[Entry] | None:
    """Return the entries that reach without a gap from `high` down, the oldest first; None if some are missing.

    Missing are none if those that are not there have expired: if the next one is there and has, or if entries may
    expire and, having been read several times, it still `is_sure`. What is before these stays hidden.
    """
    moment = now()
    chain: list[Entry] = []
    edge = high
    for entry in sorted(entries, key=lambda entry: -entry.position):
        if entry.position >= high:
            continue
        if edge <= max(low, floor):
            break
        if not entry.is_alive(moment):
            return chain[::-1]
        if entry.end < edge:
            return chain[::-1] if is_sure else None
        chain.append(entry)
        edge = entry.position
    return chain[::-1] if edge <= max(low, floor) or is_sure else None


def now() -> int:
    """Return the time in milliseconds."""
    return int(time.time() * 1000)

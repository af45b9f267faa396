"""Finding the entries of a range of positions, in a table with a sort key or without one.

Both return entries, the newest first, and the position from which on they have looked at everything: a range of
more than `MAX_LOAD` bytes is not looked at as a whole. An entry that begins before the range and reaches into it
is found as well. What has expired is found until the service deletes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

from memkit.drivers.dynamodb.items import Entry, check_version, read_entry
from memkit.drivers.dynamodb.layout import Item, beginnings
from memkit.drivers.dynamodb.requests import Reading, Requests, together
from memkit.errors import FormatError

MAX_LOAD: Final = 8 * 1024 * 1024
"""About how many bytes are loaded at a time at most: some requests of 1 MB at once. The rest stays in front."""

_AT_ONCE: Final = 8
_BATCH: Final = 100
_BATCH_BYTES: Final = 1024 * 1024
"""About how many bytes are asked for with one batch once it is known how large entries are."""

_MOST: Final = 10_000


class Asked(NamedTuple):
    """The log of a conversation in one epoch, and how it is read."""

    key: str
    epoch: str
    reading: Reading


Found: TypeAlias = tuple[list[Entry], int]


class Finder(Protocol):
    """Finds items by their positions."""

    async def newest(self, key: str, count: int, reading: Reading) -> tuple[Item | None, Found | None]:
        """Return the item of the head and, if they came with it, the newest entries of whatever epoch it has."""
        ...

    async def find(self, log: Asked, low: int, high: int) -> Found:
        """Return the entries with positions from `low` up to `high`."""
        ...


class ByQuery:
    """Reads the partition of a conversation backwards."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._layout = requests.layout

    async def newest(self, key: str, count: int, reading: Reading) -> tuple[Item | None, Found | None]:
        """Read the head and what lies before it with one query."""
        head_key = self._layout.head(key)
        low = self._layout.first(key)
        items, has_more = await self._requests.page(key, low, head_key, count + 1, reading)
        if not items or not self._layout.is_at(items[0], head_key):
            return None, None
        head, *rest = items
        epoch, end = head.get("epoch"), head.get("end")
        if not isinstance(epoch, str) or not isinstance(end, int):
            return head, None
        entries = _entries(self._requests, key, epoch, rest)
        if not entries:
            return head, None  # nothing of this epoch is near
        wanted = max(0, end - count)
        floor = entries[-1].position if len(entries) == len(rest) and has_more else 0
        if floor > wanted:
            log = Asked(key, epoch, reading)
            more, floor = await self._rest(log, wanted, entries, size_of_all(rest))
            entries += more
        return head, (entries, floor)

    async def find(self, log: Asked, low: int, high: int) -> Found:
        """Read one page and, if that is not all, pages of about as many entries at the same time."""
        if low >= high:
            return [], low
        entries, size, floor = await self._page(log, low, high)
        if floor > low:
            more, floor = await self._rest(log, low, entries, size)
            entries += more
        return entries, floor

    async def _rest(self, log: Asked, low: int, entries: Sequence[Entry], size: int) -> Found:
        found: list[Entry] = []
        high = entries[-1].position
        step = max(1, entries[0].end - high)
        while high > low and size < MAX_LOAD:
            edges = list(range(high, max(low, high - _AT_ONCE * step), -step))
            slices = [(max(low, edge - step), edge) for edge in edges]
            for part, part_size in await together(self._slice(log, start, stop) for start, stop in slices):
                found += [entry for entry in part if not found or entry.position < found[-1].position]
                size += part_size
            high = slices[-1][0]
        return [entry for entry in found if entry.position < entries[-1].position], high

    async def _slice(self, log: Asked, low: int, high: int) -> tuple[list[Entry], int]:
        found: list[Entry] = []
        size, floor = 0, high
        while floor > low:
            entries, more, floor = await self._page(log, low, floor)
            found += entries
            size += more
        return found, size

    async def _page(self, log: Asked, low: int, high: int) -> tuple[list[Entry], int, int]:
        """Return entries from `high` down, their size, and the position down to which this was all."""
        first, last = (self._layout.entry(log.key, log.epoch, at) for at in (0, high - 1))
        items, has_more = await self._requests.page(log.key, first, last, high - low, log.reading)
        entries = _entries(self._requests, log.key, log.epoch, items)
        floor = entries[-1].position if entries and has_more else 0
        return entries, size_of_all(items), floor


class ByBatch:
    """Reads entries by their keys, in a table that has a partition key only."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._layout = requests.layout

    async def newest(self, key: str, count: int, reading: Reading) -> tuple[Item | None, Found | None]:
        """Read the head alone: which positions there are is known only then."""
        del count
        return await self._requests.get(key, self._layout.head(key), consistent=reading.consistent), None

    async def find(self, log: Asked, low: int, high: int) -> Found:
        """Get batches of positions, and the entry that begins before the first one.

        The first batch comes alone: it tells how large entries are, and so how many of them the others ask for.
        """
        found: dict[int, Entry] = {}
        size, floor = 0, high
        low = max(low, high - _MOST)
        step, at_once = _BATCH, (1 if log.reading.bodies else _AT_ONCE)
        while floor > low and size < MAX_LOAD:
            edges = range(floor, max(low, floor - at_once * step), -step)
            slices = [range(max(low, edge - step), edge) for edge in edges]
            for entries in await together(self._get(log, positions) for positions in slices):
                found |= {entry.position: entry for entry in entries}
                size += sum(len(entry.body) for entry in entries)
            floor = slices[-1].start
            step = max(1, min(_BATCH, _BATCH_BYTES * (high - floor) // max(size, 1)))
            at_once = _AT_ONCE
        entries = sorted(found.values(), key=lambda entry: -entry.position)
        if floor < high and floor not in found:
            entries += await self._get(log, beginnings(floor))
        owners = {entry.of for entry in entries if entry.of is not None} - found.keys()
        if owners:
            entries += await self._get(log, sorted(owners))
        whole = {entry.position: entry for entry in entries if entry.of is None}
        return [whole[position] for position in sorted(whole, reverse=True)], floor

    async def _get(self, log: Asked, positions: Iterable[int]) -> list[Entry]:
        keys = [self._layout.entry(log.key, log.epoch, position) for position in positions]
        items = await self._requests.get_many(log.key, keys, log.reading)
        return _entries(self._requests, log.key, log.epoch, items)


def _entries(requests: Requests, key: str, epoch: str, items: Iterable[Item]) -> list[Entry]:
    """Return what items are as entries of this epoch; those of another one are left out."""
    where = requests.where(key)
    entries: list[Entry] = []
    for item in items:
        try:
            of, position = requests.layout.position_of(item)
        except ValueError:
            check_version(item, f"an entry of {where}")
            raise FormatError(f"{where} is damaged: there is an item between its entries") from None
        if of == epoch:
            entries.append(read_entry(item, position, f"{where} at position {position}"))
    return entries


def size_of_all(items: Iterable[Item]) -> int:
    """Return the bytes of items."""
    return sum(len(item.get("body", b"")) + 100 for item in items)

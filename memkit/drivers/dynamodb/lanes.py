"""Lanes: who waits to append to a conversation, and what this process knows of it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from memkit.driver import Appended, Record
from memkit.drivers.dynamodb.drafts import Draft
from memkit.drivers.dynamodb.items import Group, Head, Lifetime
from memkit.drivers.dynamodb.loads import now
from memkit.drivers.dynamodb.tries import Tries
from memkit.errors import MemkitError

_MAX_IDS: Final = 50_000
_MAX_LANES: Final = 10_000


class Waiting:
    """An append that waits to be stored, and what becomes of it."""

    def __init__(
        self,
        records: Sequence[Record],
        drafts: Sequence[Draft],
        since: int,
        expect: int | None,
        epoch: str | None,
        *,
        tries: Tries,
    ) -> None:
        self.records: Final = records
        self.drafts: Final = drafts
        self.since: Final = since
        self.expect: Final = expect
        self.epoch: Final = epoch
        self.size: Final = sum(draft.size for draft in drafts)
        # With a partition key only, an entry of several positions has aliases.
        self.count: Final = sum(2 * draft.count.bit_length() - 1 for draft in drafts)
        self.groups: Sequence[Group] = ()
        self.life: Lifetime | None = None
        self.is_staged = False
        self.arrived: Final = asyncio.get_running_loop().time()
        self.tries = tries
        self.outcome: Appended | MemkitError | None = None


class Lane:
    """A conversation to which is appended."""

    def __init__(self) -> None:
        self.lock: Final = asyncio.Lock()
        self.waiting: Final[list[Waiting]] = []
        self.error: MemkitError | None = None
        self.head: Head | None = None
        self.is_seen = False
        self.seen_at = -1.0
        self.ids: Final[dict[str, int]] = {}
        """The ids of the entries from `_first` up to `_stop`, and their positions."""
        self.counted = 0
        self._first = 0
        self._stop = 0

    def check(self, waiting: Waiting) -> None:
        """Raise what the last one has failed of, if there is no time left to try it once more."""
        if self.error is not None and waiting.tries.is_over:
            raise self.error

    def live_head(self) -> Head | None:
        """Return the head if the conversation is alive."""
        return self.head if self.head is not None and self.head.is_alive(now()) else None

    def see(self, head: Head | None, seen_at: float) -> None:
        """Take what was read, at that time or later, for what there is."""
        if head is None or self.head is None or head.epoch != self.head.epoch:
            self.forget_ids()
        self.head, self.is_seen, self.seen_at = head, True, seen_at

    def unknown(self, low: int, high: int) -> list[tuple[int, int]]:
        """Return the ranges between these positions of which the ids are not known."""
        if low >= high or (self._first <= low and high <= self._stop):
            return []
        if self._first == self._stop or low > self._stop or high < self._first:
            self.forget_ids()
            return [(low, high)]
        ranges = [(low, self._first), (self._stop, high)]
        return [(start, stop) for start, stop in ranges if start < stop]

    def know(self, low: int, high: int) -> None:
        """Take the ids of these positions for known."""
        if self._first == self._stop:
            self._first, self._stop = low, high
        else:
            self._first, self._stop = min(low, self._first), max(high, self._stop)

    def add(self, records: Sequence[Record], position: int) -> None:
        """Know records that were stored."""
        if self._stop != position:
            self.forget_ids()
        self.ids.update((record.id, at) for at, record in enumerate(records, position))
        self.know(position, position + len(records))

    def forget_ids(self) -> None:
        """Know no ids."""
        self.ids.clear()
        self._first = self._stop = 0

    @property
    def is_idle(self) -> bool:
        """Tell whether nobody waits here."""
        return not self.waiting and not self.lock.locked()


class Lanes:
    """The lanes of all conversations that were used lately."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[str, Lane] = OrderedDict()
        self._known = 0

    def of(self, key: str) -> Lane:
        """Return the lane of a conversation."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane()
        self._lanes.move_to_end(key)
        return lane

    def note(self, key: str, head: Head) -> None:
        """Remember what a load has read, so that an append need not ask for it."""
        lane = self.of(key)
        if lane.is_idle and (lane.head is None or (lane.head.epoch == head.epoch and lane.head.end < head.end)):
            lane.see(head, lane.seen_at)
        self.tidy(lane)

    def forget(self, key: str) -> None:
        """Ask again before the next append."""
        if key in self._lanes:
            self._lanes[key].is_seen = False

    def tidy(self, lane: Lane) -> None:
        """Count what this lane knows, and forget the conversations that were not used for the longest time."""
        self._known += len(lane.ids) - lane.counted
        lane.counted = len(lane.ids)
        if self._fit:
            return
        for key, oldest in list(self._lanes.items()):
            if oldest.is_idle:
                del self._lanes[key]
                self._known -= oldest.counted
            if self._fit:
                return

    @property
    def _fit(self) -> bool:
        return self._known <= _MAX_IDS and len(self._lanes) <= _MAX_LANES

"""Appending: one transaction for all that waits, and what this process knows so that it need not ask.

A transaction raises the end of the head, on the condition that it is the end that was seen, and stores the entries
from there on. So whoever appends knows the ids of all entries up to that end, or looks at those that it does not
know: no record is stored twice, whoever repeats it, and no id costs a write of its own.

Who appends waits for the lock of the conversation, and then stores what all have brought who wait behind it. These
find theirs done when the lock comes to them. Nobody has to be told, and no task is left behind.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Final

from memkit.driver import Appended, Record, check_end, check_epoch, position_of
from memkit.drivers.dynamodb.actions import entries, raised
from memkit.drivers.dynamodb.drafts import aside, draft
from memkit.drivers.dynamodb.endings import Endings
from memkit.drivers.dynamodb.items import Entry, Head, Lifetime
from memkit.drivers.dynamodb.lanes import Lane, Lanes, Waiting
from memkit.drivers.dynamodb.layout import MAX_ACTIONS, MAX_TRANSACTION
from memkit.drivers.dynamodb.loads import Loads, now
from memkit.drivers.dynamodb.parts import Parts
from memkit.drivers.dynamodb.requests import WHOLE, RefusedError, Requests
from memkit.errors import ConflictError, DriverError, FormatError, MemkitError
from memkit.finish import finish_async

_MOST: Final = MAX_ACTIONS - 2
"""How many items a transaction has beside the head and the list of parts."""


class _ChangedError(Exception):
    """What was seen is not there any more."""


class Appends:
    """Appends to the conversations of a table."""

    def __init__(
        self, requests: Requests, parts: Parts, loads: Loads, endings: Endings, *, lanes: Lanes, ttl: float | None
    ) -> None:
        self._requests = requests
        self._layout = requests.layout
        self._parts = parts
        self._loads = loads
        self._endings = endings
        self._lanes = lanes
        self._ttl = ttl

    async def append(
        self, key: str, records: Sequence[Record], since: int, expect: int | None, epoch: str | None
    ) -> Appended:
        """Store records behind the others, or find them there."""
        size = sum(len(record.body) for record in records)
        drafts = await aside(size, draft, records, _MOST, MAX_TRANSACTION)
        waiting = Waiting(records, drafts, max(since, 0), expect, epoch, tries=self._requests.tries(key))
        return await finish_async(lambda: self._take_turn(key, waiting), time_limit=math.inf)

    async def _take_turn(self, key: str, own: Waiting) -> Appended:
        """Wait for the lock, and be done, or be the first of those who wait."""
        lane = self._lanes.of(key)
        lane.waiting.append(own)
        try:
            async with lane.lock:
                if own.outcome is None:
                    lane.check(own)
                await self._lead(key, lane, own)
        except ConflictError:
            await self._discard(key, own)
            raise
        finally:
            if own in lane.waiting:
                lane.waiting.remove(own)
            self._lanes.tidy(lane)
        if isinstance(own.outcome, Appended):
            return own.outcome
        await self._discard(key, own)
        raise own.outcome or DriverError(
            f"nothing came of an append to {self._requests.where(key)}; repeat it", retryable=True
        )

    async def _lead(self, key: str, lane: Lane, own: Waiting) -> None:
        """Store what waits until the own append is done: the others come along."""
        alone = False
        while own.outcome is None:
            try:
                if not await self._advance(key, lane, alone=alone):
                    await own.tries.pause()
            except MemkitError as error:
                lane.is_seen = False
                may_pass = getattr(error, "retryable", False)
                if not (alone or may_pass) and len(lane.waiting) > 1:
                    alone = True  # it may be for what another one has brought
                    continue
                if may_pass:
                    lane.error = error
                raise

    async def _advance(self, key: str, lane: Lane, *, alone: bool) -> bool:
        """Answer or store some of what waits; return False if what was seen has changed meanwhile."""
        try:
            batch = await self._next_batch(key, lane, alone=alone)
            return not batch or await self._store(key, lane, batch)
        except _ChangedError:
            lane.is_seen = False
            return False

    # --- what is to be stored ---

    async def _next_batch(self, key: str, lane: Lane, *, alone: bool) -> list[Waiting]:
        """Return appends that can be stored together, the first that waits among them; answer what need not be."""
        if not lane.is_seen:
            await self._look(key, lane)
        head = lane.live_head()
        end, size, count = (head.end if head else 0), 0, 0
        ids: set[str] = set()
        batch: list[Waiting] = []
        for waiting in list(lane.waiting):
            names = {record.id for record in waiting.records}
            if batch and (
                alone or ids & names or count + waiting.count > _MOST or size + waiting.size > MAX_TRANSACTION
            ):
                break
            await self._know(key, lane, waiting)
            is_new = not any(name in lane.ids for name in names)
            if is_new and waiting.epoch in (None, head.epoch if head else "") and waiting.expect in (None, end):
                batch.append(waiting)
                ids |= names
                end, size, count = end + len(waiting.records), size + waiting.size, count + waiting.count
            elif batch:
                break
            elif lane.seen_at < waiting.arrived:
                lane.is_seen = False
                return []
            else:
                await self._answer(key, lane, waiting)
                return []
        return batch

    async def _look(self, key: str, lane: Lane) -> None:
        seen_at = asyncio.get_running_loop().time()
        lane.see(await self._loads.head(key), seen_at)

    async def _know(self, key: str, lane: Lane, waiting: Waiting) -> None:
        """Know the ids of all entries among which an append may be."""
        head = lane.live_head()
        if head is None:
            return
        for low, high in lane.unknown(max(waiting.since, head.base), head.end):
            try:
                unknown = await self._loads.entries(key, head, low, high)
            except FormatError as error:
                if lane.seen_at < waiting.arrived:
                    raise _ChangedError from error  # another process may have trimmed what is not there
                raise
            for entry in unknown:
                if not entry.groups:
                    lane.ids[entry.entry] = entry.position
                    continue
                records = await self._records(key, entry)
                lane.ids.update((record.id, position) for position, record in records)
            lane.know(low, high)

    async def _answer(self, key: str, lane: Lane, waiting: Waiting) -> None:
        """Answer an append of which records are stored already, or that expects something else."""
        head = lane.live_head()
        stored: dict[str, tuple[int, bytes]] = {}
        if head is not None:
            for record in waiting.records:
                position = lane.ids.get(record.id)
                if position is not None and record.id not in stored:
                    stored |= await self._stored(key, head, position)
                    if record.id not in stored:
                        del lane.ids[record.id]  # trimmed, or expired
        try:
            position = position_of(key, waiting.records, stored)
            if position is None:
                check_epoch(key, waiting.epoch, head.epoch if head else "")
                check_end(key, waiting.expect, head.end if head else 0)
            elif head is not None:
                waiting.outcome = Appended(position, head.end, head.epoch)
        except MemkitError as error:
            waiting.outcome = error
        if waiting.outcome is not None:
            lane.waiting.remove(waiting)

    async def _stored(self, key: str, head: Head, position: int) -> dict[str, tuple[int, bytes]]:
        if not head.base <= position < head.end:
            return {}
        for entry in await self._loads.entries(key, head, position, position + 1, WHOLE):
            records = await self._records(key, entry)
            return {record.id: (at, record.body) for at, record in records}
        return {}

    async def _records(self, key: str, entry: Entry) -> list[tuple[int, Record]]:
        records = await self._loads.records(key, entry)
        if records is None:
            raise _ChangedError  # redacted or trimmed, and so is not the same entry any more
        return records

    # --- storing it ---

    async def _store(self, key: str, lane: Lane, batch: Sequence[Waiting]) -> bool:
        """Store a batch; return False if the head is another one by now."""
        if lane.head is not None and lane.live_head() is None:
            await self._endings.bury(key, lane.head)
            await self._look(key, lane)
            return False
        life = Lifetime.of(lane.head, self._ttl, now())
        for waiting in batch:
            if not await self._stage(key, lane, waiting, life):
                return True
        new, head_action = raised(
            self._requests, key, lane.head, sum(len(waiting.records) for waiting in batch), life
        )
        actions = [head_action]
        position = lane.head.end if lane.head else 0
        for waiting in batch:
            actions += entries(self._requests, key, new.epoch, position, waiting)
            position += len(waiting.records)
        actions += self._parts.adopt(key, [group for waiting in batch for group in waiting.groups])
        seen_at = asyncio.get_running_loop().time()
        try:
            await self._requests.write(key, "append to", actions, max(batch[0].tries.deadline, seen_at + 1))
        except RefusedError as refused:
            if refused.refused[0]:
                lane.see(self._loads.read_head(key, refused.items[0]), seen_at)
            if any(refused.refused[1:]):  # someone has dropped parts that were staged
                for waiting in batch:
                    waiting.is_staged = False
            return False
        lane.error = None
        position = lane.head.end if lane.head else 0
        lane.see(new, seen_at)
        for waiting in batch:
            waiting.outcome = Appended(position, new.end, new.epoch)
            waiting.groups = ()
            lane.add(waiting.records, position)
            position += len(waiting.records)
            lane.waiting.remove(waiting)
        return True

    async def _stage(self, key: str, lane: Lane, waiting: Waiting, life: Lifetime) -> bool:
        """Write the parts of an append, once more if they are to expire at another time by now.

        Return False if that fails: it is the outcome of this append, and not of those that wait beside it.
        """
        if waiting.is_staged and waiting.life is not None and waiting.life.pin == life.pin:
            return True
        packs = [pack for item in waiting.drafts for pack in item.packs]
        try:
            if packs:
                lane.check(waiting)
                await self._discard(key, waiting)
                waiting.groups = await self._parts.stage(key, packs, life.expires)
        except MemkitError as error:
            if getattr(error, "retryable", False):
                lane.error = error
            waiting.outcome = error
            lane.waiting.remove(waiting)
            return False
        if packs and waiting.life is None:
            waiting.tries = self._requests.tries(key)  # however long it took
        waiting.life, waiting.is_staged = life, True
        return True

    async def _discard(self, key: str, waiting: Waiting) -> None:
        groups, waiting.groups = waiting.groups, ()
        await self._parts.discard(key, groups)

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

from anyio import to_thread
from msgspec.structs import replace

from memkit.driver import Appended, Record, check_end, check_epoch, new_epoch, position_of
from memkit.drivers.dynamodb.drafts import draft
from memkit.drivers.dynamodb.endings import Endings
from memkit.drivers.dynamodb.items import Head, Lifetime
from memkit.drivers.dynamodb.lanes import Lane, Lanes, Waiting
from memkit.drivers.dynamodb.layout import ALIVE, MAX_ACTIONS, MAX_TRANSACTION, VERSION, aliases
from memkit.drivers.dynamodb.loads import Loads, now
from memkit.drivers.dynamodb.parts import Parts
from memkit.drivers.dynamodb.requests import WHOLE, Action, RefusedError, Requests, pause
from memkit.errors import ConflictError, DriverError, MemkitError
from memkit.finish import finish_async

_IN_LOOP: Final = 256 * 1024
"""Up to so many bytes records are made ready on the event loop; more would hold it up."""

_MOST: Final = MAX_ACTIONS - 2
"""How many items a transaction has beside the head and the list of parts."""


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
        if size > _IN_LOOP:
            drafts = await to_thread.run_sync(draft, records, _MOST, MAX_TRANSACTION)
        else:
            drafts = draft(records, _MOST, MAX_TRANSACTION)
        waiting = Waiting(records, drafts, max(since, 0), expect, epoch)
        return await finish_async(lambda: self._take_turn(key, waiting), time_limit=math.inf)

    async def _take_turn(self, key: str, own: Waiting) -> Appended:
        """Wait for the lock, and be done, or be the first of those who wait."""
        loop = asyncio.get_running_loop()
        own.arrived = loop.time()
        own.deadline = own.arrived + self._requests.retry_for
        lane = self._lanes.of(key)
        lane.waiting.append(own)
        try:
            async with lane.lock:
                if own.outcome is None and lane.error is not None and loop.time() >= own.deadline:
                    raise lane.error
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
        raise own.outcome or DriverError(f"nothing came of an append to {key!r}; repeat it", retryable=True)

    async def _lead(self, key: str, lane: Lane, own: Waiting) -> None:
        """Store what waits until the own append is done: the others come along."""
        loop = asyncio.get_running_loop()
        tries, alone = 0, False
        while own.outcome is None:
            batch = await self._next_batch(key, lane, alone=alone)
            if not batch:
                continue
            try:
                is_done = await self._store(key, lane, batch)
            except MemkitError as error:
                lane.is_seen = False
                if len(batch) > 1 and not getattr(error, "retryable", False):
                    alone = True  # it may be for what another one has brought
                    continue
                lane.error = error
                raise
            if is_done:
                lane.error = None
                continue
            if loop.time() >= own.deadline:
                raise DriverError(
                    f"others kept writing to {key!r} for {self._requests.retry_for:g} s, and nothing was stored; "
                    "repeat it",
                    retryable=True,
                )
            await pause(tries, own.deadline)
            tries += 1

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
            if not await self._know(key, lane, waiting.since):
                return []
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

    async def _know(self, key: str, lane: Lane, since: int) -> bool:
        """Know the ids of all entries from `since` on; return False if they have changed meanwhile."""
        head = lane.live_head()
        if head is None:
            return True
        for low, high in lane.unknown(max(since, head.base), head.end):
            for entry in await self._loads.entries(key, head, low, high):
                records = [Record(entry.entry, b"")] if not entry.groups else await self._loads.records(key, entry)
                if records is None:
                    lane.is_seen = False
                    return False
                lane.ids.update((record.id, at) for at, record in enumerate(records, entry.position))
            lane.know(low, high)
        return True

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
            records = await self._loads.records(key, entry) or ()
            return {record.id: (at, record.body) for at, record in enumerate(records, entry.position)}
        return {}

    # --- storing it ---

    async def _store(self, key: str, lane: Lane, batch: Sequence[Waiting]) -> bool:
        """Store a batch; return False if the head is another one by now."""
        if lane.head is not None and lane.live_head() is None:
            await self._endings.bury(key, lane.head)
            await self._look(key, lane)
            return False
        moment = now()
        life = Lifetime.of(lane.head, self._ttl, moment)
        for waiting in batch:
            await self._stage(key, waiting, life)
        new, head_action = self._raised(
            key, lane.head, sum(len(waiting.records) for waiting in batch), life, moment
        )
        actions = [head_action]
        position = lane.head.end if lane.head else 0
        for waiting in batch:
            actions += self._entries(key, new.epoch, position, waiting)
            position += len(waiting.records)
        actions += self._parts.adopt(key, [group for waiting in batch for group in waiting.groups])
        seen_at = asyncio.get_running_loop().time()
        try:
            await self._requests.write(key, "append to", actions, max(batch[0].deadline, seen_at + 1))
        except RefusedError as refused:
            lane.see(self._loads.read_head(key, refused.items[0]), seen_at)
            return False
        position = lane.head.end if lane.head else 0
        lane.see(new, seen_at)
        for waiting in batch:
            waiting.outcome = Appended(position, new.end, new.epoch)
            waiting.groups = ()
            lane.add(waiting.records, position)
            position += len(waiting.records)
            lane.waiting.remove(waiting)
        return True

    async def _stage(self, key: str, waiting: Waiting, life: Lifetime) -> None:
        """Write the parts of an append, once more if they are to expire at another time by now."""
        if waiting.life is not None and waiting.life.pin == life.pin:
            return
        await self._discard(key, waiting)
        waiting.life = life
        packs = [pack for item in waiting.drafts for pack in item.packs]
        if packs:
            waiting.groups = await self._parts.stage(key, packs, life.expires)
            waiting.deadline = asyncio.get_running_loop().time() + self._requests.retry_for

    async def _discard(self, key: str, waiting: Waiting) -> None:
        groups, waiting.groups = waiting.groups, ()
        await self._parts.discard(key, groups)

    def _raised(self, key: str, head: Head | None, count: int, life: Lifetime, moment: int) -> tuple[Head, Action]:
        """Return the head with so many entries more, and the action that stores it."""
        item_key = self._layout.head(key)
        if head is None:
            epoch = new_epoch()
            new = Head(epoch, count, epoch, until=life.until, expires=life.expires)
            return new, self._requests.insert(item_key | self._layout.written(new.values()))
        new = replace(head, end=head.end + count, until=life.until, expires=life.expires)
        changes = "SET #end = :end"
        if life.until is not None and not life.pin:
            changes += ", #until = :until, #expires = :expires"
        pinned = "#pin = :pin" if head.pin else "attribute_not_exists(#pin)"
        values = {
            ":end": new.end,
            ":seen": head.end,
            ":epoch": head.epoch,
            ":version": VERSION,
            ":now": moment,
            ":until": life.until,
            ":expires": life.expires,
            ":pin": head.pin,
        }
        return new, self._requests.update(item_key, changes, f"{ALIVE} AND #end = :seen AND {pinned}", values)

    def _entries(self, key: str, epoch: str, position: int, waiting: Waiting) -> list[Action]:
        """Return the actions that store what an append has brought."""
        expires = waiting.life.expires if waiting.life else None
        groups = iter(waiting.groups)
        actions: list[Action] = []
        for item in waiting.drafts:
            values = item.values([next(groups) for _ in item.packs], expires)
            places = [(position, values)]
            if not self._layout.has_sort_key:
                alias = {"memkit": VERSION, "of": position, "expires": expires}
                places += [(at, alias) for at in aliases(position, item.count)]
            for at, content in places:
                item_key = self._layout.entry(key, epoch, at)
                actions.append(self._requests.replace(item_key | self._layout.written(content)))
            position += item.count
        return actions

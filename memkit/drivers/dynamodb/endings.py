"""What ends: a conversation that is deleted, or expires, and entries that are trimmed.

A deletion marks the head as gone, which ends the epoch at once, deletes the entries, and then the head. If a
process dies meanwhile, the next one who deletes or writes the conversation finds the mark and goes on. So it is
with what has expired, as far as the service has not deleted it yet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Final

from memkit.driver import check_epoch
from memkit.drivers.dynamodb.items import Entry, Group, Head, Lifetime, check_version, damaged, read_groups
from memkit.drivers.dynamodb.layout import ALIVE, VERSION, Item, Layout, aliases
from memkit.drivers.dynamodb.loads import Loads, now
from memkit.drivers.dynamodb.parts import Parts
from memkit.drivers.dynamodb.redactions import Redactions
from memkit.drivers.dynamodb.requests import RefusedError, Requests, together
from memkit.run import new_id

_OURS: Final = "#memkit = :version AND #epoch = :epoch"


class Endings:
    """Deletes what is in a table."""

    def __init__(self, requests: Requests, parts: Parts, loads: Loads, redactions: Redactions) -> None:
        self._requests = requests
        self._layout: Layout = requests.layout
        self._parts = parts
        self._loads = loads
        self._redactions = redactions

    async def delete(self, key: str) -> bool:
        """Delete a conversation, and return whether there was one.

        What an append that has failed may have left of its text is deleted even if there is none.
        """
        head = await self._loads.head(key)
        if head is None:
            await self._parts.delete_loose(key)
            return False
        is_alive = head.is_alive(now())
        if is_alive and not await self._mark(key, head, "attribute_not_exists(#gone)"):
            return await self.delete(key)
        await self.bury(key, head)
        return is_alive

    async def bury_dead(self, key: str) -> None:
        """Delete what is left of a conversation, unless it is alive."""
        head = await self._loads.head(key)
        if head is not None and not head.is_alive(now()):
            await self.bury(key, head)

    async def bury(self, key: str, head: Head) -> None:
        """Delete what is left of a conversation that is gone or expired; do nothing if it lives on."""
        if not head.gone:
            await self._mark(key, head, "(attribute_exists(#gone) OR #until <= :now)")
        marked = await self._loads.head(key)
        if marked is None or marked.epoch != head.epoch or not marked.gone:
            return
        await self._sweep(key, marked, marked.swept, marked.end, before=marked.end)
        await self._parts.delete(key, self._groups(key, marked))
        await self._parts.delete_loose(key)
        condition = f"{_OURS} AND attribute_exists(#gone)"
        values = {":version": VERSION, ":epoch": marked.epoch}
        await self._requests.delete_if(key, self._layout.head(key), condition, values)

    async def _mark(self, key: str, head: Head, condition: str) -> bool:
        """Mark a head as gone on a condition; return whether it is."""
        values = {":version": VERSION, ":epoch": head.epoch, ":now": now(), ":mark": new_id()}
        condition = f"{_OURS} AND ({condition} OR #gone = :mark)"
        action = self._requests.update(self._layout.head(key), "SET #gone = :mark", condition, values)
        try:
            await self._requests.write(key, "delete", [action])
        except RefusedError:
            return False
        return True

    async def trim(self, key: str, before: int, epoch: str | None) -> int:
        """Raise the base, and delete what is before it; return the base."""
        tries = self._requests.tries(key)
        while True:
            head = await self._loads.live_head(key)
            check_epoch(key, epoch, head.epoch if head else "")
            if head is None:
                return 0
            base = min(max(before, head.base), head.end)
            values = {":version": VERSION, ":epoch": head.epoch, ":now": now(), ":base": base}
            condition = f"{ALIVE} AND #base <= :base"
            action = self._requests.update(self._layout.head(key), "SET #base = :base", condition, values)
            try:
                await self._requests.write(key, "trim", [action])
            except RefusedError:
                await tries.pause()
                continue
            await self._finish_trim(key, head, base)
            return base

    async def _finish_trim(self, key: str, head: Head, base: int) -> None:
        if head.swept >= base:
            return
        await self._sweep(key, head, head.swept, base, before=base)
        if base < head.end:
            await self._redactions.blank(key, head.epoch, base)
        values = {":version": VERSION, ":epoch": head.epoch, ":base": base}
        condition = f"{_OURS} AND #swept <= :base"
        action = self._requests.update(self._layout.head(key), "SET #swept = :base", condition, values)
        try:
            await self._requests.write(key, "trim", [action])
        except RefusedError:
            return  # deleted, or trimmed further, by someone else

    async def expire(self, key: str, ttl: float | None) -> bool:
        """Set when a conversation and its items expire; return whether there is one."""
        life = Lifetime.after(ttl, now(), new_id())
        changes = "SET #pin = :pin"
        if life.until is None:
            changes += " REMOVE #until, #expires"
        else:
            changes += ", #until = :until, #expires = :expires"
        tries = self._requests.tries(key)
        while True:
            head = await self._loads.live_head(key)
            if head is None:
                return False
            values = {
                ":version": VERSION,
                ":epoch": head.epoch,
                ":now": now(),
                ":pin": life.pin,
                ":until": life.until,
                ":expires": life.expires,
            }
            condition = f"(({ALIVE}) OR #pin = :pin)"
            action = self._requests.update(self._layout.head(key), changes, condition, values)
            try:
                await self._requests.write(key, "expire", [action])
            except RefusedError:
                await tries.pause()
                continue
            await self._set_expiry(key, head.epoch)
            return True

    async def _set_expiry(self, key: str, epoch: str) -> None:
        """Let the items of a conversation expire with its head, also if another call has the last word on that."""
        pin = ""
        while True:
            head = await self._loads.head(key)
            if head is None or head.epoch != epoch or head.gone or head.pin == pin:
                return
            pin = head.pin
            parts = [part for group in self._groups(key, head) for part in self._parts.keys(key, group)]
            await together(self._change_expiry(key, part, head.expires, 0) for part in parts)
            moment = now() // 1000
            async for entries in self._loads.all_that_is_left(key, head, head.base, head.end):
                others = [entry for entry in entries if entry.expires != head.expires]
                items = [item_key for entry in others for item_key in self._items(key, epoch, entry)]
                await together(self._change_expiry(key, item_key, head.expires, moment) for item_key in items)

    async def _change_expiry(self, key: str, item_key: Item, expires: int | None, moment: int) -> None:
        """Let an item expire at another time. What had expired at this moment, in seconds, stays so."""
        changes = "REMOVE #expires" if expires is None else "SET #expires = :expires"
        condition = "attribute_exists(#pk) AND (attribute_not_exists(#expires) OR #expires > :moment)"
        values = {":expires": expires, ":moment": moment}
        action = self._requests.update(item_key, changes, condition, values)
        with suppress(RefusedError):
            await self._requests.write(key, "expire", [action])

    async def _sweep(self, key: str, head: Head, low: int, high: int, *, before: int) -> None:
        """Delete the entries from `low` up to `high` that end before a position, parts first."""
        async for entries in self._loads.all_that_is_left(key, head, low, high):
            over = [entry for entry in entries if entry.end <= before]
            items = [self._items(key, head.epoch, entry) for entry in over]
            await self._requests.delete_all(key, [item_key for *others, _ in items for item_key in others])
            await self._requests.delete_all(key, [own for *_, own in items])

    def _items(self, key: str, epoch: str, entry: Entry) -> list[Item]:
        """Return the keys of all items of an entry, its own last."""
        where = f"{self._requests.where(key)} at position {entry.position}"
        groups = read_groups(entry.groups, entry.count, where)
        keys = [part for group in groups for part in self._parts.keys(key, group)]
        if not self._layout.has_sort_key:
            keys += [self._layout.entry(key, epoch, at) for at in aliases(entry.position, entry.count)]
        return [*keys, self._layout.entry(key, epoch, entry.position)]

    def _groups(self, key: str, head: Head) -> Sequence[Group]:
        return read_groups(head.groups, 1, f"the head of {self._requests.where(key)}")


async def list_keys(requests: Requests, prefix: str) -> AsyncIterator[str]:
    """Yield the keys of the conversations that are alive and start with `prefix`."""
    layout = requests.layout
    condition = "attribute_exists(#memkit) AND attribute_exists(#epoch)"
    values: dict[str, Any] = {}
    if layout.prefix + prefix:
        condition += " AND begins_with(#pk, :prefix)"
        values[":prefix"] = layout.prefix + prefix
    after: Item | None = None
    while True:
        items, after = await requests.scan(condition, values, after)
        for item in items:
            key = layout.key_of(item)
            if key.startswith(prefix) and _is_alive(item, requests.where(key)):
                yield key
        if after is None:
            return


def _is_alive(head: Item, where: str) -> bool:
    check_version(head, where)
    until = head.get("until")
    if not isinstance(until, int | None):
        raise damaged(where)
    return not head.get("gone") and (until is None or until > now())

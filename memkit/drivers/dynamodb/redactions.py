"""Redacting: entries are written anew with other bodies, and no copy of the old ones stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from memkit.driver import Record, check_epoch, check_positions
from memkit.drivers.dynamodb.drafts import Pack, aside, draft_one, pack
from memkit.drivers.dynamodb.items import Entry, Group, Head, read_groups, write_groups
from memkit.drivers.dynamodb.layout import ALIVE, MAX_ACTIONS, MAX_INLINE, MAX_TRANSACTION, VERSION
from memkit.drivers.dynamodb.loads import Loads, now
from memkit.drivers.dynamodb.parts import Parts
from memkit.drivers.dynamodb.requests import WHOLE, Action, RefusedError, Requests
from memkit.errors import ConflictError, UnsupportedError

_MOST: Final = MAX_ACTIONS - 2
"""How many entries are redacted at a time at most, beside the head and the list of parts."""


class _Rewriting:
    """Entries of a conversation on their way to have other bodies."""

    def __init__(self, key: str, head: Head, bodies: Mapping[int, bytes], *, drops: bool) -> None:
        self.key: Final = key
        self.head: Final = head
        self.bodies: Final = bodies
        self.drops: Final = drops
        """Whether groups of which all is redacted are left out."""
        self.staged: list[Group] = []
        self.dropped: list[Group] = []

    def expires(self, entry: Entry) -> int | None:
        """Return when the parts of an entry expire. `expire` may not have reached it yet."""
        return self.head.expires if self.head.pin else entry.expires


class Redactions:
    """Gives entries other bodies."""

    def __init__(self, requests: Requests, parts: Parts, loads: Loads) -> None:
        self._requests = requests
        self._layout = requests.layout
        self._parts = parts
        self._loads = loads

    async def redact(self, key: str, bodies: Mapping[int, bytes], epoch: str) -> None:
        """Put these bodies in the place of others, all in one transaction.

        What an append that has failed may have left of them is deleted before.

        Raises:
            ConflictError: an entry was trimmed, or has expired.
        """
        tries = self._requests.tries(key)
        await self._parts.drop_all(key)
        while True:
            head = await self._loads.live_head(key)
            check_epoch(key, epoch, head.epoch if head else "")
            check_positions(key, bodies, head.base if head else 0, head.end if head else 0)
            if head is None or not bodies or await self._rewrite(_Rewriting(key, head, bodies, drops=False)):
                return
            await tries.pause()

    async def blank(self, key: str, epoch: str, base: int) -> None:
        """Empty the records before the base in an entry that reaches beyond it."""
        tries = self._requests.tries(key)
        while True:
            head = await self._loads.live_head(key)
            if head is None or head.epoch != epoch or head.base > base:
                return
            entries = await self._loads.entries(key, head, base, base + 1)
            before = range(entries[0].position if entries else base, base)
            blanks = _Rewriting(key, head, dict.fromkeys(before, b""), drops=True)
            if not before or await self._rewrite(blanks):
                return
            await tries.pause()

    async def _rewrite(self, new: _Rewriting) -> bool:
        """Write the entries anew that have these positions; return False if they have changed meanwhile."""
        entries = await self._entries(new)
        if entries is None:
            return False
        is_much = sum(map(len, new.bodies.values())) > MAX_TRANSACTION
        room = MAX_TRANSACTION // len(entries) if is_much else MAX_INLINE
        actions = [self._check(new)]
        for entry in entries:
            action = await (self._regrouped(new, entry) if entry.groups else self._replaced(new, entry, room))
            if action is None:
                await self._parts.discard(new.key, new.staged)
                return False
            actions.append(action)
        try:
            await self._requests.write(
                new.key, "redact", [*actions, *self._parts.adopt(new.key, new.staged, new.dropped)]
            )
        except RefusedError:
            await self._parts.discard(new.key, new.staged)
            return False
        await self._parts.delete_garbage(new.key, new.dropped)
        return True

    async def _entries(self, new: _Rewriting) -> list[Entry] | None:
        """Return the entries that hold the positions; None if one that is to be dropped has expired."""
        found: dict[int, Entry] = {}
        for position in sorted(new.bodies):
            if any(entry.position <= position < entry.end for entry in found.values()):
                continue
            entries = await self._loads.entries(new.key, new.head, position, position + 1, WHOLE)
            if not entries and new.drops:
                return None
            if not entries:
                raise ConflictError(f"{self._where(new, position)} has expired; load it again", expected=position)
            found[entries[0].position] = entries[0]
            if len(found) > _MOST:
                raise UnsupportedError(
                    f"{self._requests.where(new.key)}: DynamoDB changes up to {_MOST} entries in one "
                    "moment; redact fewer at a time"
                )
        return list(found.values())

    def _check(self, new: _Rewriting) -> Action:
        condition = f"{ALIVE} AND {new.head.same_pin}" + ("" if new.drops else " AND #base <= :low")
        values = {
            ":version": VERSION,
            ":epoch": new.head.epoch,
            ":now": now(),
            ":pin": new.head.pin,
            ":low": min(new.bodies),
        }
        return self._requests.check(self._layout.head(new.key), condition, values)

    async def _replaced(self, new: _Rewriting, entry: Entry, room: int) -> Action:
        """Return the action that gives an entry of one record another body."""
        body = new.bodies[entry.position]
        item = await aside(len(body), draft_one, Record(entry.entry, body), room)
        groups = await self._parts.stage(new.key, item.packs, new.expires(entry))
        new.staged += groups
        values = item.values(groups, entry.expires)
        names = ("entry", "body", "packed", "count", "groups")
        sets = ", ".join(f"#{name} = :{name}" for name in names if values.get(name) is not None)
        removes = ", ".join(f"#{name}" for name in names if values.get(name) is None)
        return self._requests.update(
            self._layout.entry(new.key, new.head.epoch, entry.position),
            f"SET {sets} REMOVE {removes}",
            "attribute_exists(#memkit) AND attribute_not_exists(#groups)",
            {f":{name}": value for name, value in values.items()},
        )

    async def _regrouped(self, new: _Rewriting, entry: Entry) -> Action | None:
        """Return the action that gives an entry other groups; None if their parts are not there any more."""
        groups = list(read_groups(entry.groups, entry.count, self._where(new, entry.position)))
        packs: list[Pack] = []
        places: list[int] = []
        start = entry.position
        for n, group in enumerate(groups):
            positions = range(start, start + group.count)
            start += group.count
            inside = [position for position in positions if position in new.bodies]
            if not group.chunks or not inside:
                continue
            new.dropped.append(group)
            if new.drops and len(inside) == group.count:
                groups[n] = Group(group.count, "", 0, 0, 0)
                continue
            records = await self._parts.read(new.key, group)
            if records is None:
                return None
            places.append(n)
            pairs = zip(positions, records, strict=True)
            others = [Record(record.id, new.bodies.get(at, record.body)) for at, record in pairs]
            packs.append(await aside(sum(len(record.body) for record in others), pack, others))
        written = await self._parts.stage(new.key, packs, new.expires(entry))
        new.staged += written
        for n, group in zip(places, written, strict=True):
            groups[n] = group
        return self._requests.update(
            self._layout.entry(new.key, new.head.epoch, entry.position),
            "SET #groups = :new",
            "#groups = :old",
            {":new": write_groups(groups), ":old": entry.groups},
        )

    def _where(self, new: _Rewriting, position: int) -> str:
        return f"{self._requests.where(new.key)} at position {position}"

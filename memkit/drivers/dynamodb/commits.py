"""Committing: the head is swapped under its revision."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from memkit.driver import Record, check_revision, new_epoch
from memkit.drivers.dynamodb.drafts import aside, pack
from memkit.drivers.dynamodb.items import Group, Head, Lifetime, read_groups, write_groups
from memkit.drivers.dynamodb.layout import ALIVE, MAX_HEAD, MAX_INLINE, VERSION
from memkit.drivers.dynamodb.loads import Loads, now
from memkit.drivers.dynamodb.parts import Parts
from memkit.drivers.dynamodb.requests import Action, RefusedError, Requests
from memkit.run import new_id


class Commits:
    """Swaps heads. Those of more than `MAX_HEAD` bytes lie in parts: each append pays for the item of the head.

    Where `ttl` counts, each append puts off when the conversation expires, which no parts would follow. So there
    heads lie in parts only if they are too long for the item.
    """

    def __init__(self, requests: Requests, parts: Parts, loads: Loads, ttl: float | None) -> None:
        self._requests = requests
        self._layout = requests.layout
        self._parts = parts
        self._loads = loads
        self._ttl = ttl

    async def commit(self, key: str, body: bytes, revision: str) -> str | None:
        """Swap the head and return its revision; None if what is there has to be buried first.

        Raises:
            ConflictError: the head has another revision.
        """
        new, tries = new_id(), self._requests.tries(key)
        while True:
            head = await self._loads.head(key)
            if head is not None and not head.is_alive(now()):
                check_revision(key, revision, "")
                return None
            if head is not None and head.revision == new:
                return new  # the answer to the first try was lost
            check_revision(key, revision, head.revision if head else "")
            if await self._swap(key, head, body, new):
                return new
            await tries.pause()

    async def _swap(self, key: str, old: Head | None, body: bytes, revision: str) -> bool:
        """Store a head in the place of this one, unless that has changed."""
        moment = now()
        life = Lifetime.of(old, self._ttl, moment)
        groups: tuple[Group, ...] = ()
        moves = life.until is not None and not life.pin
        if len(body) > (MAX_INLINE if moves else MAX_HEAD):
            packed = await aside(len(body), pack, [Record("", body)])
            groups = await self._parts.stage(key, [packed], None if moves else life.expires)
        new = replace(
            old or Head(new_epoch(), 0, revision),
            revision=revision,
            head=None if groups else body,
            groups=write_groups(groups) if groups else "",
            until=life.until,
            expires=life.expires,
        )
        where = f"the head of {self._requests.where(key)}"
        dropped = read_groups(old.groups, 1, where) if old else ()
        action = self._action(key, old, new, moment)
        try:
            await self._requests.write(key, "commit to", [action, *self._parts.adopt(key, groups, dropped)])
        except RefusedError:
            await self._parts.discard(key, groups)
            return False
        await self._parts.delete_garbage(key, dropped)
        return True

    def _action(self, key: str, old: Head | None, new: Head, moment: int) -> Action:
        """Return the action that stores the new head, if the old one is still there."""
        item_key = self._layout.head(key)
        if old is None:
            return self._requests.insert(item_key | self._layout.written(new.values()))
        names = ["revision", "head", "groups"]
        if not new.pin:
            names += ["until", "expires"]
        values: dict[str, Any] = {f":{name}": getattr(new, name) for name in names}
        sets = [f"#{name} = :{name}" for name in names if values[f":{name}"] not in (None, "")]
        removes = [f"#{name}" for name in names if values[f":{name}"] in (None, "")]
        changes = f"SET {', '.join(sets)}" + (f" REMOVE {', '.join(removes)}" if removes else "")
        values |= {":old": old.revision, ":epoch": old.epoch, ":version": VERSION, ":now": moment, ":pin": old.pin}
        condition = f"{ALIVE} AND #revision IN (:old, :revision) AND {old.same_pin}"
        return self._requests.update(item_key, changes, condition, values)

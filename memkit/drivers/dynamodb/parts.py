"""Parts: the items over which is split what is too large for one.

Parts are listed as `staged` before they are written, and leave that list in the transaction that begins to refer
to them. In the transaction after which nothing refers to them they are listed as `garbage`, and leave that list
when they are deleted. So whenever a process dies, what nothing refers to is listed, and the next who stages, or
deletes the conversation, deletes it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from anyio import to_thread

from memkit.driver import Record
from memkit.drivers.dynamodb.drafts import Pack, unpack
from memkit.drivers.dynamodb.items import MAX_PARTS, Group, damaged
from memkit.drivers.dynamodb.layout import VERSION, Item
from memkit.drivers.dynamodb.requests import WHOLE, Action, Requests, together
from memkit.run import new_id

_ABANDONED: Final = 3_600_000
"""Milliseconds after which parts that are staged belong to nobody any more."""

_IN_A_BATCH: Final = 2
"""Parts that are read with one request: an answer of more bytes would hold up the event loop."""


class Parts:
    """The parts of all conversations in a table."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._layout = requests.layout

    async def stage(self, key: str, packs: Sequence[Pack], expires: int | None) -> tuple[Group, ...]:
        """Write packs as parts to which nothing refers yet, and return the groups that will."""
        if not packs:
            return ()
        parts = new_id()
        chunks = [chunk for pack in packs for chunk in pack.chunks]
        await self._note(key, "ADD #staged :parts", {_listed(parts, 0, len(chunks))})
        await self._delete_abandoned(key)
        await together(
            self._requests.put(
                key,
                self._layout.part(key, parts, number)
                | self._layout.written({"memkit": VERSION, "body": chunk, "expires": expires}),
            )
            for number, chunk in enumerate(chunks)
        )
        groups: list[Group] = []
        first = 0
        for pack in packs:
            groups.append(Group(pack.count, parts, first, len(pack.chunks), pack.packed))
            first += len(pack.chunks)
        return tuple(groups)

    def adopt(self, key: str, staged: Iterable[Group], dropped: Iterable[Group] = ()) -> list[Action]:
        """Return the action, if one is needed, that makes the first referred to and the others garbage."""
        changes: list[str] = []
        values: dict[str, Any] = {}
        new = {group.parts: 0 for group in staged}
        for group in staged:
            new[group.parts] = max(new[group.parts], group.first + group.chunks)
        if new:
            changes.append("DELETE #staged :staged")
            values[":staged"] = {_listed(parts, 0, chunks) for parts, chunks in new.items()}
        old = _ranges(dropped)
        if old:
            changes.append("ADD #garbage :garbage")
            values[":garbage"] = old
        if not changes:
            return []
        return [self._requests.update(self._layout.loose(key), " ".join(changes), "", values)]

    async def discard(self, key: str, staged: Sequence[Group]) -> None:
        """Delete parts that were staged in vain."""
        if staged:
            await self.delete(key, staged)
            last = staged[-1]
            await self._note(key, "DELETE #staged :parts", {_listed(last.parts, 0, last.first + last.chunks)})

    async def delete_garbage(self, key: str, dropped: Iterable[Group]) -> None:
        """Delete parts that were listed as garbage."""
        ranges = _ranges(dropped)
        if ranges:
            await self._delete_ranges(key, ranges)
            await self._note(key, "DELETE #garbage :parts", ranges)

    async def delete(self, key: str, groups: Iterable[Group]) -> None:
        """Delete the parts of groups."""
        await self._delete_ranges(key, _ranges(groups))

    async def delete_loose(self, key: str) -> None:
        """Delete all parts to which nothing refers, but for those that someone is about to write."""
        await self._delete_abandoned(key)
        empty = "attribute_not_exists(#staged) AND attribute_not_exists(#garbage)"
        await self._requests.delete_if(key, self._layout.loose(key), empty, {})

    async def read(self, key: str, group: Group) -> list[Record] | None:
        """Return the records of a group, or None if some of its parts are not there."""
        keys = self.keys(key, group)
        batches = [keys[at : at + _IN_A_BATCH] for at in range(0, len(keys), _IN_A_BATCH)]
        found: dict[str, bytes] = {}
        for items in await together(self._requests.get_many(key, batch, WHOLE) for batch in batches):
            found |= {self._layout.last(item): item.get("body", b"") for item in items}
        chunks = [found.get(part[self._layout.keys[-1]]) for part in keys]
        if not chunks or any(not isinstance(chunk, bytes) for chunk in chunks):
            return None
        where = f"{key!r} in the parts of an entry"
        whole = [chunk for chunk in chunks if chunk is not None]
        return (
            await to_thread.run_sync(unpack, group, whole, where) if group.packed else unpack(group, whole, where)
        )

    def keys(self, key: str, group: Group) -> list[Item]:
        """Return the keys of the parts of a group."""
        numbers = range(group.first, group.first + group.chunks)
        return [self._layout.part(key, group.parts, number) for number in numbers]

    async def _delete_abandoned(self, key: str) -> None:
        item = await self._requests.get(key, self._layout.loose(key)) or {}
        garbage = _set(item, "garbage")
        old = int(time.time() * 1000) - _ABANDONED
        staged = {listed for listed in _set(item, "staged") if _made_at(key, listed) < old}
        if garbage or staged:
            await self._delete_ranges(key, garbage | staged)
        for name, listed in (("staged", staged), ("garbage", garbage)):
            if listed:
                await self._note(key, f"DELETE #{name} :parts", listed)

    async def _delete_ranges(self, key: str, ranges: Iterable[str]) -> None:
        keys = [item_key for listed in ranges for item_key in self.keys(key, _group(key, listed))]
        await self._requests.delete_all(key, keys)

    async def _note(self, key: str, changes: str, listed: set[str]) -> None:
        item_key = self._layout.loose(key)
        await self._requests.write(
            key, "write to", [self._requests.update(item_key, changes, "", {":parts": listed})]
        )


def _listed(parts: str, first: int, stop: int) -> str:
    return f"{parts}:{first}:{stop}"


def _group(key: str, listed: str) -> Group:
    try:
        parts, first, stop = listed.split(":")
        group = Group(0, parts, int(first), int(stop) - int(first), packed=False)
    except ValueError as error:
        raise damaged(f"the list of parts of {key!r}") from error
    if group.first < 0 or not 0 <= group.chunks <= MAX_PARTS:
        raise damaged(f"the list of parts of {key!r}")
    return group


def _set(item: Item, name: str) -> set[str]:
    found: set[str] = item.get(name) or set()
    return found


def _made_at(key: str, listed: str) -> int:
    try:
        return int(listed[:12], 16)
    except ValueError as error:
        raise damaged(f"the list of parts of {key!r}") from error


def _ranges(groups: Iterable[Group]) -> set[str]:
    return {_listed(group.parts, group.first, group.first + group.chunks) for group in groups if group.chunks}

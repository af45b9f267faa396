"""Parts: the items over which is split what is too large for one.

Parts are listed as `staged` before they are written, and leave that list in the transaction that begins to refer
to them, which is refused if they are not listed any more. In the write after which nothing may refer to them they
are listed as `garbage`, and they leave that list when they are deleted. So whenever a process dies, what nothing
refers to is listed, and the next who stages, redacts or deletes the conversation deletes it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, cast

from memkit.driver import Record
from memkit.drivers.dynamodb.drafts import Pack, aside, unpack
from memkit.drivers.dynamodb.items import MAX_PARTS, Group, check_version, damaged
from memkit.drivers.dynamodb.layout import VERSION, Item
from memkit.drivers.dynamodb.requests import WHOLE, Action, RefusedError, Requests, together
from memkit.run import new_id

_ABANDONED: Final = 3_600_000
"""Milliseconds after which parts that are staged belong to nobody any more."""

_OURS: Final = "(attribute_not_exists(#pk) OR #memkit = :version)"

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
        chunks = [chunk for pack in packs for chunk in pack.chunks]
        tries = self._requests.tries(key)
        while True:
            parts = new_id()
            listed = _listed(parts, 0, len(chunks))
            await self._note(key, "ADD #staged :parts", {listed})
            await together(
                self._requests.put(
                    key,
                    self._layout.part(key, parts, number)
                    | self._layout.written({"memkit": VERSION, "body": chunk, "expires": expires}),
                )
                for number, chunk in enumerate(chunks)
            )
            if listed in (await self._clear(key, _long_ago()) or ()):
                break
            # Someone has dropped them meanwhile, and may have missed the last ones.
            await self._note(key, "ADD #garbage :parts", {listed})
            await self._delete_garbage(key, {listed})
            await tries.pause()
        groups: list[Group] = []
        first = 0
        for pack in packs:
            groups.append(Group(pack.count, parts, first, len(pack.chunks), pack.packed))
            first += len(pack.chunks)
        return tuple(groups)

    def adopt(self, key: str, staged: Iterable[Group], dropped: Iterable[Group] = ()) -> list[Action]:
        """Return the action, if one is needed, that makes the first referred to and the others garbage.

        It is refused if someone has dropped what was staged. Then stage it anew.
        """
        new, old = _staged(staged), _ranges(dropped)
        if not new and not old:
            return []
        changes, conditions = "SET #memkit = :version", [_OURS]
        values: dict[str, Any] = {":version": VERSION, ":staged": new, ":garbage": old}
        if new:
            changes += " DELETE #staged :staged"
        if old:
            changes += " ADD #garbage :garbage"
        for number, listed in enumerate(sorted(new)):
            conditions.append(f"contains(#staged, :s{number})")
            values[f":s{number}"] = listed
        return [self._requests.update(self._layout.loose(key), changes, " AND ".join(conditions), values)]

    async def discard(self, key: str, staged: Sequence[Group]) -> None:
        """Delete parts that were staged in vain; leave them if something refers to them nevertheless."""
        await self._drop(key, _staged(staged))

    async def delete_garbage(self, key: str, dropped: Iterable[Group]) -> None:
        """Delete parts that were listed as garbage."""
        await self._delete_garbage(key, _ranges(dropped))

    async def delete(self, key: str, groups: Iterable[Group]) -> None:
        """Delete the parts of groups."""
        await self._delete_ranges(key, _ranges(groups))

    async def drop_all(self, key: str) -> bool:
        """Delete all parts to which nothing refers, and return whether there is a list of such parts.

        Whoever is about to let something refer to them is refused, and stages them anew.
        """
        return await self._clear(key, None) is not None

    async def delete_loose(self, key: str) -> None:
        """Delete all parts to which nothing refers, and their list."""
        if await self.drop_all(key):
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
        where = f"{self._requests.where(key)}, in parts,"
        whole = [chunk for chunk in chunks if chunk is not None]
        return await aside(group.packed, unpack, group, whole, where)

    def keys(self, key: str, group: Group) -> list[Item]:
        """Return the keys of the parts of a group."""
        numbers = range(group.first, group.first + group.chunks)
        return [self._layout.part(key, group.parts, number) for number in numbers]

    async def _clear(self, key: str, before: int | None) -> set[str] | None:
        """Delete garbage, and what was staged before a moment or, without one, at all; return what was staged.

        None if there is no list.
        """
        item = await self._requests.get(key, self._layout.loose(key))
        if item is None:
            return None
        where = f"the list of parts of {self._requests.where(key)}"
        check_version(item, where)
        staged, garbage = _set(item, "staged", where), _set(item, "garbage", where)
        await self._drop(key, {listed for listed in staged if before is None or _made_at(listed, where) < before})
        await self._delete_garbage(key, garbage)
        return staged

    async def _drop(self, key: str, staged: Iterable[str]) -> None:
        """Delete what is staged, unless something refers to it by now."""
        for listed in staged:
            condition = "contains(#staged, :part) OR contains(#garbage, :part)"
            values = {":part": listed, ":parts": {listed}}
            changes = "DELETE #staged :parts ADD #garbage :parts"
            action = self._requests.update(self._layout.loose(key), changes, condition, values)
            try:
                await self._requests.write(key, "write to", [action])
            except RefusedError:
                continue
            await self._delete_garbage(key, {listed})

    async def _delete_garbage(self, key: str, garbage: set[str]) -> None:
        if not garbage:
            return
        await self._delete_ranges(key, garbage)
        action = self._requests.update(
            self._layout.loose(key), "DELETE #garbage :parts", "attribute_exists(#garbage)", {":parts": garbage}
        )
        with suppress(RefusedError):  # the list is gone, or empty
            await self._requests.write(key, "write to", [action])

    async def _delete_ranges(self, key: str, ranges: Iterable[str]) -> None:
        where = f"the list of parts of {self._requests.where(key)}"
        keys = [item_key for listed in ranges for item_key in self.keys(key, _group(listed, where))]
        await self._requests.delete_all(key, keys)

    async def _note(self, key: str, changes: str, listed: set[str]) -> None:
        values = {":version": VERSION, ":parts": listed}
        changes = f"SET #memkit = :version {changes}"
        action = self._requests.update(self._layout.loose(key), changes, _OURS, values)
        try:
            await self._requests.write(key, "write to", [action])
        except RefusedError as refused:
            where = f"the list of parts of {self._requests.where(key)}"
            check_version(refused.items[0] or {}, where)
            raise damaged(where) from refused


def _listed(parts: str, first: int, stop: int) -> str:
    return f"{parts}:{first}:{stop}"


def _group(listed: str, where: str) -> Group:
    try:
        parts, first, stop = listed.split(":")
        group = Group(0, parts, int(first), int(stop) - int(first), 0)
    except ValueError as error:
        raise damaged(where) from error
    if group.first < 0 or not 0 <= group.chunks <= MAX_PARTS:
        raise damaged(where)
    return group


def _set(item: Item, name: str, where: str) -> set[str]:
    found = item.get(name, set[str]())
    if not isinstance(found, set) or not all(isinstance(listed, str) for listed in cast("set[object]", found)):
        raise damaged(where)
    return cast("set[str]", found)


def _long_ago() -> int:
    return int(time.time() * 1000) - _ABANDONED


def _made_at(listed: str, where: str) -> int:
    try:
        return int(listed[:12], 16)
    except ValueError as error:
        raise damaged(where) from error


def _staged(groups: Iterable[Group]) -> set[str]:
    """Return how groups that were staged are listed: all of one call together."""
    stops: dict[str, int] = {}
    for group in groups:
        stops[group.parts] = max(stops.get(group.parts, 0), group.first + group.chunks)
    return {_listed(parts, 0, stop) for parts, stop in stops.items()}


def _ranges(groups: Iterable[Group]) -> set[str]:
    return {_listed(group.parts, group.first, group.first + group.chunks) for group in groups if group.chunks}

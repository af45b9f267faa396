"""`InMemoryDriver`: conversations in this process, gone with it. For tests, and as the smallest example."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from anyio.lowlevel import checkpoint

from memkit.driver import (
    Appended,
    Log,
    Record,
    check_end,
    check_epoch,
    check_key,
    check_positions,
    check_revision,
    clip,
    new_epoch,
    position_of,
)


@dataclass(slots=True)
class _Stored:
    epoch: str
    base: int = 0
    bodies: list[bytes] = field(default_factory=list[bytes])
    positions: dict[str, int] = field(default_factory=dict[str, int])
    head: bytes | None = None
    commits: int = 0
    expires: float | None = None

    @property
    def end(self) -> int:
        return self.base + len(self.bodies)

    @property
    def revision(self) -> str:
        return f"{self.epoch}.{self.commits}"

    def look_up(self, records: Sequence[Record]) -> dict[str, tuple[int, bytes]]:
        found = {record.id: at for record in records if (at := self.positions.get(record.id)) is not None}
        return {record_id: (at, self.bodies[at - self.base]) for record_id, at in found.items()}


class InMemoryDriver:
    """Keeps conversations in a dict. Every method is one step of the event loop, so nothing can interleave."""

    def __init__(self) -> None:
        self._stored: dict[str, _Stored] = {}

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        """Return head and entries `start:stop` of one moment."""
        await self._begin(key)
        stored = self._get(key)
        if stored is None:
            return Log()
        low, high = clip(stored.base, stored.end, start, stop)
        bodies = stored.bodies[low - stored.base : high - stored.base]
        return Log(stored.epoch, stored.base, low, stored.end, bodies, stored.head, stored.revision)

    async def append(
        self,
        key: str,
        records: Sequence[Record],
        /,
        *,
        since: int = 0,
        expect: int | None = None,
        epoch: str | None = None,
    ) -> Appended:
        """Store all records or none; ids are looked up everywhere, whatever `since` is."""
        del since
        await self._begin(key)
        stored = self._get(key) or _Stored(epoch="")
        position = position_of(key, records, stored.look_up(records))
        if position is None:
            check_epoch(key, epoch, stored.epoch)
            check_end(key, expect, stored.end)
            position = stored.end
            stored = self._make(key)
            stored.positions.update((record.id, position + n) for n, record in enumerate(records))
            stored.bodies.extend(record.body for record in records)
        return Appended(position, stored.end, stored.epoch)

    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        """Put `head` in the place of the head of that `revision`, and return the new revision."""
        await self._begin(key)
        stored = self._get(key)
        check_revision(key, revision, stored.revision if stored else "")
        stored = self._make(key)
        stored.head = head
        stored.commits += 1
        return stored.revision

    async def delete(self, key: str, /) -> bool:
        """Delete the conversation and end its epoch; return whether there was one."""
        await self._begin(key)
        was_there = self._get(key) is not None
        self._stored.pop(key, None)
        return was_there

    async def trim(self, key: str, before: int, /, *, epoch: str | None = None) -> int:
        """Drop the entries before this position for good, and return the new base."""
        await self._begin(key)
        stored = self._get(key)
        check_epoch(key, epoch, stored.epoch if stored else "")
        if stored is None:
            return 0
        base = min(max(before, stored.base), stored.end)
        del stored.bodies[: base - stored.base]
        stored.base = base
        stored.positions = {record_id: at for record_id, at in stored.positions.items() if at >= base}
        return base

    async def redact(self, key: str, bodies: Mapping[int, bytes], /, *, epoch: str) -> None:
        """Put these bodies in the place of those at their positions, all or none."""
        await self._begin(key)
        stored = self._get(key) or _Stored(epoch="")
        check_epoch(key, epoch, stored.epoch)
        check_positions(key, bodies, stored.base, stored.end)
        for position, body in bodies.items():
            stored.bodies[position - stored.base] = body

    async def expire(self, key: str, ttl: float | None, /) -> bool:
        """Let the conversation be gone after `ttl` seconds from now, or never; return whether there is one."""
        await self._begin(key)
        stored = self._get(key)
        if stored is not None:
            stored.expires = None if ttl is None else time.time() + ttl
        return stored is not None

    async def list_keys(self, prefix: str = "", /) -> AsyncIterator[str]:
        """Yield the keys that start with `prefix`."""
        for key in list(self._stored):
            await checkpoint()
            if key.startswith(prefix) and self._get(key) is not None:
                yield key

    async def _begin(self, key: str) -> None:
        """Check the key, and let others run: the one await of every method, before anything is done."""
        check_key(key)
        await checkpoint()

    def _get(self, key: str) -> _Stored | None:
        stored = self._stored.get(key)
        if stored is not None and stored.expires is not None and stored.expires <= time.time():
            del self._stored[key]
            return None
        return stored

    def _make(self, key: str) -> _Stored:
        stored = self._stored.get(key)
        if stored is None:
            stored = self._stored[key] = _Stored(epoch=new_epoch())
        return stored

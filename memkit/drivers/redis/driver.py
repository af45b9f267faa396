"""The driver: what the contract of drivers becomes in scripts."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar

from redis.asyncio import Redis, RedisCluster

from memkit.driver import MAX_LOAD, Appended, Log, Record, check_key, new_epoch, position_of
from memkit.drivers.redis import scripts
from memkit.drivers.redis.commands import Command
from memkit.drivers.redis.lanes import Lanes
from memkit.drivers.redis.nodes import Cluster, OneServer
from memkit.drivers.redis.replies import appended, done, loaded, record_of
from memkit.errors import ConflictError, FormatError, UnsupportedError
from memkit.finish import asyncio_loop, finish_async

T = TypeVar("T")

PREFIX: Final = "memkit:"
TIMEOUT: Final = 5.0
"""Seconds for one try: to connect if need be, to send a pipeline and to receive its replies."""

RETRY_FOR: Final = 10.0
"""Seconds for which what had no answer is tried again: a failover of Sentinel or a cluster takes two or three."""

WAIT_TIMEOUT: Final = 1.0

_DAMAGE: Final = (ValueError, TypeError, IndexError, AttributeError)
_FARTHEST: Final = 2**53
_LONGEST_TTL: Final = 10**14  # milliseconds, some 3000 years
_SCAN: Final = 1_000
_ABOUT: Final = 1024  # bytes of a record in the mean, to plan a pipeline of loads


class RedisDriver:
    """Keeps conversations in Redis or Valkey, each as one hash under `prefix` and its key.

    Borrows a client of redis-py for one server, for a master found by Sentinel, or for a cluster; `connect` owns
    one. Of a pool, one connection is kept while the client is open. asyncio only. The client's own retries do no
    harm, but are not needed.

    Appends and loads that wait leave together. What had no answer is sent again for `retry_for` seconds, each try
    taking at most `timeout`; then a `DriverError` says whether the outcome is unknown. A lost answer doubles
    nothing, as all ids that are stored are known.

    `ttl` is how many seconds a conversation lives after its last append or commit, with `refresh_on_read` also
    after its last load. `expire` has the last word: where it was called, `ttl` does not count any more.

    A server tells that something is stored before its replicas have it, so a failover may lose what was
    acknowledged a moment before. With `wait_replicas` an append returns when so many replicas have it; a
    `DriverError` after `wait_timeout` seconds says that they have not, and repeating is safe. With
    `min-replicas-to-write 1` in its configuration, a master that was cut off from its replicas takes no more
    writes after a while.
    """

    def __init__(
        self,
        client: Redis | RedisCluster,
        *,
        prefix: str = PREFIX,
        ttl: float | None = None,
        refresh_on_read: bool = False,
        timeout: float = TIMEOUT,
        retry_for: float = RETRY_FOR,
        wait_replicas: int = 0,
        wait_timeout: float = WAIT_TIMEOUT,
    ) -> None:
        if ttl is not None and not ttl > 0:
            raise FormatError(
                f"ttl={ttl} would delete a conversation as soon as it is written; give None for ever"
            )
        if wait_replicas and not 0.001 <= wait_timeout < timeout:
            raise FormatError(
                f"wait_timeout={wait_timeout} must be at least a millisecond and less than {timeout=}"
            )
        self._client = client
        self._prefix_text = prefix
        self._prefix = prefix.encode()
        self._ttl = _milliseconds(ttl)
        self._read_ttl = self._ttl if refresh_on_read else b""
        self._timeout = timeout
        self._retry_for = retry_for
        self._wait_replicas = wait_replicas
        self._wait_timeout = wait_timeout
        self._lanes: dict[asyncio.AbstractEventLoop, Lanes] = {}
        self._own_id = new_epoch().encode()
        self._numbers = count()

    def __repr__(self) -> str:
        return f"RedisDriver({type(self._client).__name__}, prefix={self._prefix_text!r})"

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        """Return head and entries `start:stop` of one moment, 5 000 of them or about 2 MiB at most."""
        args = [_position(start), b"" if stop is None else _position(stop), self._read_ttl]
        size = min(_wanted(start, stop) * _ABOUT, MAX_LOAD)
        return await self._call(scripts.LOAD, key, args, partial(loaded, key), is_write=False, reply_size=size)

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
        """Store all records or none; their ids are looked for among all that are stored."""
        del since
        position_of(key, records, {})
        args = [self._fresh(), b"" if expect is None else _position(expect), _expected(epoch), self._ttl]
        for record in records:
            args += record_of(record)
        return await self._call(scripts.APPEND, key, args, partial(appended, key, records, expect, epoch))

    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        """Put `head` in the place of the head of that `revision`, and return the new revision."""
        new = new_epoch()
        args = [self._fresh(), self._ttl, _text(revision), new.encode(), head]
        await self._call(scripts.COMMIT, key, args, partial(done, key, revision=revision))
        return new

    async def delete(self, key: str, /) -> bool:
        """Delete the conversation, and return whether there was one.

        That takes two round trips: a deletion whose answer was lost must not hit what came after it.
        """
        epoch = (await self.load(key, 0, 0)).epoch
        if not epoch and not self._wait_replicas:
            return False
        await self._call(scripts.DELETE, key, [epoch.encode()], partial(done, key))
        return bool(epoch)

    async def trim(self, key: str, before: int, /, *, epoch: str | None = None) -> int:
        """Drop the entries before this position at once, and delete them in slices; return the new base."""

        async def sweep() -> int:
            known, base = epoch, 0
            left = 1
            while left:
                args = [_position(before), _expected(known)]
                try:
                    found = await self._call(scripts.TRIM, key, args, partial(done, key, epoch=known))
                except ConflictError:
                    if known == epoch:
                        raise
                    return base  # deleted by someone else since the first slice
                base, left, known = found[0], found[1], found[2].decode()
            return base

        check_key(key)
        return await finish_async(sweep, time_limit=math.inf)

    async def redact(self, key: str, bodies: Mapping[int, bytes], /, *, epoch: str) -> None:
        """Put these bodies in the place of those at their positions, all or none."""
        args = [_text(epoch)]
        for position, body in bodies.items():
            args += (_position(position), body)
        read = partial(done, key, epoch=epoch, positions=list(bodies))
        await self._call(scripts.REDACT, key, args, read)

    async def expire(self, key: str, ttl: float | None, /) -> bool:
        """Let the conversation be gone after `ttl` seconds from now, or never, whatever is written to it later."""
        found = await self._call(scripts.EXPIRE, key, [_milliseconds(ttl)], partial(done, key))
        return bool(found[0])

    async def list_keys(self, prefix: str = "", /) -> AsyncIterator[str]:
        """Yield the keys that start with `prefix`, without holding up the server.

        What was yielded is remembered, some 100 bytes a key. While slots of a cluster are moved from node to node,
        keys may be missed.
        """
        lanes = self._lanes_here()
        pattern = _escaped(self._prefix + _text(prefix)) + b"*"
        seen: set[bytes] = set()
        done_by: set[str] = set()
        for slot in lanes.nodes.slots():
            if slot % _SCAN == 0:
                await asyncio.sleep(0)  # a cluster has 16 384 slots
            if not (done_by and lanes.nodes.name_of(slot) in done_by):
                async for name in _scan(lanes, slot, pattern):
                    if name not in seen:
                        seen.add(name)
                        yield name[len(self._prefix) :].decode(errors="replace")
                done_by.add(lanes.nodes.name_of(slot))

    async def close(self) -> None:
        """Take no more calls, and wait until those under way are answered. The client stays open."""
        await self._lanes_here().close()

    async def _call(
        self,
        script: scripts.Script,
        key: str,
        args: Sequence[bytes],
        read: Callable[[list[Any]], T],
        *,
        is_write: bool = True,
        reply_size: int = 0,
    ) -> T:
        check_key(key)
        lanes = self._lanes_here()
        name = self._prefix + key.encode()
        slot = lanes.nodes.slot_of(name)
        command = Command(key, slot, script.call(name, args), is_write=is_write, reply_size=reply_size)
        reply = await lanes.do(command)
        try:
            return read(reply)
        except FormatError:
            raise
        except _DAMAGE as error:
            damage = f"what is stored is none of ours ({str(reply)[:100]})"
            raise FormatError(f"{key!r} is damaged: {damage}") from error

    def _fresh(self) -> bytes:
        """Return an epoch that no log ever had, in a third of the time that `new_epoch` takes."""
        return b"%b-%x-%x" % (self._own_id, os.getpid(), next(self._numbers))  # a forked child goes on counting

    def _lanes_here(self) -> Lanes:
        loop = asyncio_loop()
        if loop is None:
            raise UnsupportedError("redis-py runs on asyncio; use asyncio, or SqliteDriver or FileDriver on trio")
        lanes = self._lanes.get(loop)
        if lanes is None:
            client = self._client
            self._lanes = {known: lanes for known, lanes in self._lanes.items() if not known.is_closed()}
            lanes = self._lanes[loop] = Lanes(
                Cluster(client) if isinstance(client, RedisCluster) else OneServer(client),
                timeout=self._timeout,
                retry_for=self._retry_for,
                wait_replicas=self._wait_replicas,
                wait_timeout=self._wait_timeout,
            )
        return lanes


async def _scan(lanes: Lanes, slot: int, pattern: bytes) -> AsyncIterator[bytes]:
    """Yield the names of all hashes of the server that has a slot, some of them several times."""
    cursor, place = b"0", None
    while True:
        if place != lanes.connects(
            slot
        ):  # a cursor means nothing to another server, and to one that was restarted
            cursor, place = b"0", lanes.connects(slot)
        command = (b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % _SCAN, b"TYPE", b"hash")
        reply = await lanes.do(Command("list_keys", slot, scripts.pack(*command), is_write=False))
        cursor, names = reply
        for name in names:
            yield name
        if cursor == b"0" and place == lanes.connects(slot):
            return


def _position(position: int) -> bytes:
    return b"%d" % max(-_FARTHEST, min(position, _FARTHEST))


def _wanted(start: int, stop: int | None) -> int:
    if stop is None:
        return -start if start < 0 else scripts.MAX_ENTRIES
    return max(0, stop - start) if (start < 0) == (stop < 0) else scripts.MAX_ENTRIES


def _text(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _expected(epoch: str | None) -> bytes:
    return b"" if epoch is None else b"=" + _text(epoch)


def _milliseconds(ttl: float | None) -> bytes:
    if ttl is None:
        return b""
    if math.isnan(ttl):
        raise FormatError("a time to live is a number of seconds, not NaN")
    return b"%d" % math.ceil(min(max(ttl, 0) * 1000, _LONGEST_TTL))


def _escaped(text: bytes) -> bytes:
    for special in (b"\\", b"*", b"?", b"[", b"]"):
        text = text.replace(special, b"\\" + special)
    return text

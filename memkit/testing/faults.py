"""Drivers around drivers for tests: calls that fail, calls that take time, calls that are counted.

They change nothing else: each passes the conformance suite of the driver inside, capabilities included.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Final, Literal, TypeAlias, TypeVar, cast

from anyio import sleep
from anyio.lowlevel import checkpoint

from memkit.driver import (
    Appended,
    Driver,
    Expire,
    ListKeys,
    Log,
    Record,
    Redact,
    Trim,
    capability,
)
from memkit.errors import DriverError, UnsupportedError

T = TypeVar("T")

Fault: TypeAlias = Literal["before", "after"]
"""Where a call fails: before it reaches the store, or after, so that only the reply is lost."""

CALLS: Final = ("load", "append", "commit", "delete", "trim", "redact", "expire", "list_keys")


class _Around:
    """Hands every call to the driver inside, through `_call`, which subclasses replace."""

    def __init__(self, inner: Driver, /) -> None:
        self._inner = inner

    async def _call(self, name: str, bodies: Sequence[bytes], call: Callable[[], Awaitable[T]], /) -> T:
        del name, bodies
        return await call()

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        """Load through the driver inside."""
        return await self._call("load", (), lambda: self._inner.load(key, start, stop))

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
        """Append through the driver inside."""
        return await self._call(
            "append",
            [record.body for record in records],
            lambda: self._inner.append(key, records, since=since, expect=expect, epoch=epoch),
        )

    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        """Commit through the driver inside."""
        return await self._call("commit", [head], lambda: self._inner.commit(key, head, revision=revision))

    async def delete(self, key: str, /) -> bool:
        """Delete through the driver inside."""
        return await self._call("delete", (), lambda: self._inner.delete(key))

    async def trim(self, key: str, before: int, /, *, epoch: str | None = None) -> int:
        """Trim through the driver inside."""
        return await self._call("trim", (), lambda: self._inside(Trim).trim(key, before, epoch=epoch))

    async def redact(self, key: str, bodies: Mapping[int, bytes], /, *, epoch: str) -> None:
        """Redact through the driver inside."""
        new = list(bodies.values())
        await self._call("redact", new, lambda: self._inside(Redact).redact(key, bodies, epoch=epoch))

    async def expire(self, key: str, ttl: float | None, /) -> bool:
        """Expire through the driver inside."""
        return await self._call("expire", (), lambda: self._inside(Expire).expire(key, ttl))

    async def list_keys(self, prefix: str = "", /) -> AsyncIterator[str]:
        """List the keys of the driver inside."""
        await self._call("list_keys", (), checkpoint)
        async for key in self._inside(ListKeys).list_keys(prefix):
            yield key

    def capability(self, kind: Callable[..., T], /) -> T | None:
        """Return what provides `kind` here: this driver, if the one inside can do it."""
        found = capability(self._inner, kind)
        return self if found is not None and isinstance(self, cast("type[T]", kind)) else found

    def _inside(self, kind: Callable[..., T]) -> T:
        found = capability(self._inner, kind)
        if found is None:
            raise UnsupportedError(f"{type(self._inner).__name__} has no {kind.__name__}")
        return found


class FlakyDriver(_Around):
    """Lets calls fail as a schedule says: a fault, or None for a call that goes through, for one call each.

    Only the methods named in `calls` use the schedule up. When it is over, all calls go through. A call that
    fails raises `DriverError(retryable=True)`.

        FlakyDriver(driver, [None, "after"], calls=["append"])  # the reply to the second append is lost
    """

    def __init__(
        self, inner: Driver, schedule: Iterable[Fault | None], /, *, calls: Collection[str] = CALLS
    ) -> None:
        super().__init__(inner)
        self._schedule = iter(schedule)
        self._calls = frozenset(calls)

    async def _call(self, name: str, bodies: Sequence[bytes], call: Callable[[], Awaitable[T]], /) -> T:
        del bodies
        fault = next(self._schedule, None) if name in self._calls else None
        if fault == "before":
            raise DriverError(f"{name}: the connection was lost before it was sent", retryable=True)
        answer = await call()
        if fault == "after":
            raise DriverError(f"{name}: the connection was lost before the reply", retryable=True)
        return answer


class SlowDriver(_Around):
    """Lets every call wait for some seconds before it reaches the store."""

    def __init__(self, inner: Driver, seconds: float, /) -> None:
        super().__init__(inner)
        self._seconds = seconds

    async def _call(self, name: str, bodies: Sequence[bytes], call: Callable[[], Awaitable[T]], /) -> T:
        del name, bodies
        await sleep(self._seconds)
        return await call()


class CountingDriver(_Around):
    """Counts, by name of method, the calls, and the bodies and bytes carried either way, heads included."""

    def __init__(self, inner: Driver, /) -> None:
        super().__init__(inner)
        self.calls: Counter[str] = Counter()
        self.bodies: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    async def _call(self, name: str, bodies: Sequence[bytes], call: Callable[[], Awaitable[T]], /) -> T:
        self.calls[name] += 1
        self._count(name, bodies)
        answer = await call()
        if isinstance(answer, Log):
            self._count(name, answer.bodies)
            self.bytes[name] += len(answer.head or b"")
        return answer

    def _count(self, name: str, bodies: Sequence[bytes]) -> None:
        self.bodies[name] += len(bodies)
        self.bytes[name] += sum(map(len, bodies))


def random_faults(seed: int, share: float = 0.1) -> Iterator[Fault | None]:
    """Yield an endless schedule in which this share of the calls fails, the same for the same seed."""
    draw = random.Random(seed)  # noqa: S311
    while True:
        yield draw.choice(("before", "after")) if draw.random() < share else None

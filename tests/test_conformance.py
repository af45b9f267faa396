"""Our drivers keep the contract; drivers that break it are found out; the tools for faults do what they say."""

from __future__ import annotations

import asyncio
import functools
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from unittest import SkipTest

import msgspec
import pytest
from anyio import create_task_group, sleep
from anyio.lowlevel import checkpoint

from memkit.driver import Appended, Expire, ListKeys, Log, Record, Redact, Trim, capability
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ConflictError, DriverError, UnsupportedError
from memkit.run import new_id
from memkit.testing import (
    Check,
    CountingDriver,
    FlakyDriver,
    SlowDriver,
    driver_checks,
    driver_report,
    random_faults,
)

pytestmark = pytest.mark.anyio

CHECKS = {str(check): check for check in driver_checks()}
asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


# --- our drivers keep the contract ---


@pytest.mark.parametrize("check", driver_checks(), ids=str)
async def test_inmemory(check: Check) -> None:
    driver = InMemoryDriver()
    await check(lambda: driver)


@pytest.mark.parametrize("durable", [False, True], ids=["quick", "durable"])
@pytest.mark.parametrize("check", driver_checks(), ids=str)
async def test_file(check: Check, durable: bool, tmp_path: Path) -> None:
    await check(functools.partial(FileDriver, tmp_path, durable=durable))


# --- drivers that do not ---


class ForgetsEpoch(InMemoryDriver):
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
        return await super().append(key, records, since=since, expect=expect)


class ForgetsExpect(InMemoryDriver):
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
        return await super().append(key, records, since=since, epoch=epoch)


class Doubles(InMemoryDriver):
    """Stores what comes again once more."""

    async def append(self, key: str, records: Sequence[Record], /, **options: object) -> Appended:
        anew = [Record(f"{record.id}{new_id()}", record.body) for record in records]
        return await super().append(key, anew, **options)


class RemembersTheLast64(InMemoryDriver):
    """Knows an id only while it is one of the newest 64."""

    async def append(self, key: str, records: Sequence[Record], /, **options: object) -> Appended:
        stored = self._get(key)
        if stored is not None:
            newest = stored.end - 64
            stored.positions = {name: at for name, at in stored.positions.items() if at >= newest}
        return await super().append(key, records, **options)


class ExpectsBeforeIds(InMemoryDriver):
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
        log = await self.load(key, 0, 0)
        if expect not in (None, log.end) or epoch not in (None, log.epoch):
            raise ConflictError("something else is stored")
        return await super().append(key, records, since=since, expect=expect, epoch=epoch)


class SwallowsOtherBytes(InMemoryDriver):
    async def append(self, key: str, records: Sequence[Record], /, **options: object) -> Appended:
        stored = self._get(key)
        known = stored.look_up(records) if stored else {}
        same = [Record(record.id, known.get(record.id, (0, record.body))[1]) for record in records]
        return await super().append(key, same, **options)


class StoresTheRest(InMemoryDriver):
    """Stores the unknown part of a batch that is known in part."""

    async def append(self, key: str, records: Sequence[Record], /, **options: object) -> Appended:
        stored = self._get(key)
        known = stored.look_up(records) if stored else {}
        rest = [record for record in records if record.id not in known]
        return await super().append(key, rest or records, **options)


class StoresOneByOne(InMemoryDriver):
    """Can be interrupted in the middle of a batch."""

    async def append(self, key: str, records: Sequence[Record], /, **options: object) -> Appended:
        if len({record.id for record in records}) < max(len(records), 2) or options.get("expect") is not None:
            return await super().append(key, records, **options)
        first, *rest = records
        appended = await super().append(key, [first])
        for record in rest:
            await sleep(0.002)
            await super().append(key, [record])
        return appended


class ChecksThenStores(InMemoryDriver):
    """Lets others in between the comparison with `expect` and the write."""

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
        if expect is not None and (await self.load(key)).end == expect:
            expect = None
        return await super().append(key, records, since=since, expect=expect, epoch=epoch)


class CommitsBlindly(InMemoryDriver):
    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        return await super().commit(key, head, revision=(await self.load(key)).revision)


class CountsRevisions(InMemoryDriver):
    """Numbers the revisions of a key from 0 on, after a deletion too."""

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        log = await super().load(key, start, stop)
        return msgspec.structs.replace(log, revision=log.revision.rpartition(".")[2])

    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        epoch = (await super().load(key)).epoch
        new = await super().commit(key, head, revision=f"{epoch}.{revision}" if epoch else revision)
        return new.rpartition(".")[2]


class KeepsTheHead(InMemoryDriver):
    """Forgets the head when it deletes."""

    async def delete(self, key: str, /) -> bool:
        stored = self._get(key)
        if stored is None:
            return False
        stored.bodies.clear()
        stored.positions.clear()
        return True


class SlicesOffByOne(InMemoryDriver):
    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        return await super().load(key, start, stop - 1 if stop and stop > 0 else stop)


class BoundsFromTheEnd(InMemoryDriver):
    """Returns less than was asked for where that is much, but leaves out the newest."""

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        log = await super().load(key, start, stop)
        room = 1_000_000 // max(map(len, log.bodies), default=1)
        return msgspec.structs.replace(log, bodies=log.bodies[: max(room, 1)])


class ReadsTwice(InMemoryDriver):
    """Reads the head after the entries."""

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        entries = await super().load(key, start, stop)
        await checkpoint()
        later = await super().load(key, start, stop)
        return msgspec.structs.replace(entries, head=later.head, revision=later.revision)


class Text(InMemoryDriver):
    """Takes bodies for text."""

    async def append(self, key: str, records: Sequence[Record], /, **options: object) -> Appended:
        text = [Record(record.id, record.body.decode(errors="replace").encode()) for record in records]
        return await super().append(key, text, **options)


class LowersKeys(InMemoryDriver):
    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        return await super().load(key.lower(), start, stop)

    async def append(self, key: str, records: Sequence[Record], /, **options: object) -> Appended:
        return await super().append(key.lower(), records, **options)


class TrimRenumbers(InMemoryDriver):
    async def trim(self, key: str, before: int, /, *, epoch: str | None = None) -> int:
        base = await super().trim(key, before, epoch=epoch)
        stored = self._get(key)
        if stored is not None:
            stored.base = 0
        return base


class RedactsAsFarAsItCan(InMemoryDriver):
    async def redact(self, key: str, bodies: Mapping[int, bytes], /, *, epoch: str) -> None:
        for position, body in bodies.items():
            await super().redact(key, {position: body}, epoch=epoch)
            await sleep(0.002)


class ExpiresForGood(InMemoryDriver):
    """Never lifts a time limit."""

    async def expire(self, key: str, ttl: float | None, /) -> bool:
        return await (self.load(key) if ttl is None else super().expire(key, ttl)) is not False


class ListsPatterns(InMemoryDriver):
    """Takes a prefix for a pattern."""

    async def list_keys(self, prefix: str = "", /) -> AsyncIterator[str]:
        async for key in super().list_keys():
            if fnmatchcase(key, f"{prefix}*"):
                yield key


BROKEN: list[tuple[type[InMemoryDriver], set[str]]] = [
    (ForgetsEpoch, {"conflicts-epoch", "epochs-stale-append", "epochs-ids-forgotten"}),
    (ForgetsExpect, {"conflicts-expect", "epochs-stale-expect", "concurrency-one-expectation"}),
    (Doubles, {"retries-record", "retries-batch", "retries-by-another-driver", "concurrency-one-record"}),
    (RemembersTheLast64, {"retries-batch", "retries-long-after"}),
    (ExpectsBeforeIds, {"retries-before-expectations"}),
    (SwallowsOtherBytes, {"retries-other-bytes"}),
    (StoresTheRest, {"retries-known-in-part"}),
    (StoresOneByOne, {"cancellation-append", "concurrency-tasks"}),
    (ChecksThenStores, {"concurrency-one-expectation"}),
    (CommitsBlindly, {"conflicts-stale-revision", "conflicts-unknown-key", "epochs-stale-commit"}),
    (CountsRevisions, {"head-unique-revisions", "epochs-stale-commit"}),
    (KeepsTheHead, {"epochs-delete", "epochs-new-epoch", "list_keys-deleted"}),
    (SlicesOffByOne, {"slices-whole-log", "slices-trimmed-log"}),
    (BoundsFromTheEnd, {"large-pages"}),
    (ReadsTwice, {"log-one-moment"}),
    (Text, {"log-exact-bodies"}),
    (LowersKeys, {"keys-alike"}),
    (TrimRenumbers, {"trim-base-rises", "trim-everything", "slices-trimmed-log", "cancellation-trim"}),
    (RedactsAsFarAsItCan, {"redact-all-or-none", "redact-trimmed", "cancellation-redact"}),
    (ExpiresForGood, {"expire-last-word"}),
    (ListsPatterns, {"list_keys-prefix"}),
]


@pytest.mark.parametrize(("kind", "names"), BROKEN, ids=[kind.__name__ for kind, _ in BROKEN])
async def test_a_broken_driver_fails(kind: type[InMemoryDriver], names: set[str]) -> None:
    driver = kind()
    for name in names:
        with pytest.raises(AssertionError) as caught:
            await CHECKS[name](lambda: driver)
        assert str(caught.value).startswith(CHECKS[name].contract)


class LeavesWritesBehind(InMemoryDriver):
    """Shields its writes, and does not wait for them when it is cancelled."""

    async def append(self, key: str, records: Sequence[Record], /, **options: object) -> Appended:
        async def later() -> Appended:
            await asyncio.sleep(0.003)
            return await super(LeavesWritesBehind, self).append(key, records, **options)

        return await asyncio.shield(later())


@asyncio_only
async def test_a_write_left_behind_is_found() -> None:
    driver = LeavesWritesBehind()
    with pytest.raises(AssertionError, match="a while after the call had returned"):
        await CHECKS["cancellation-append"](lambda: driver)


# --- what is absent, and the report ---


class Plain:
    """A driver with the four methods and nothing else."""

    def __init__(self, inner: InMemoryDriver) -> None:
        self.load = inner.load
        self.append = inner.append
        self.commit = inner.commit
        self.delete = inner.delete


async def test_absent_capabilities_are_skipped() -> None:
    driver = Plain(InMemoryDriver())
    for name, kind in (
        ("trim-everything", "Trim"),
        ("redact-overwrites", "Redact"),
        ("expire-gone-in-time", "Expire"),
        ("list_keys-prefix", "ListKeys"),
        ("cancellation-trim", "Trim"),
    ):
        with pytest.raises(SkipTest, match=f"^absent: {kind}$"):
            await CHECKS[name](lambda: driver)


async def test_what_a_driver_does_not_support_is_skipped() -> None:
    class OneLoopOnly(InMemoryDriver):
        async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
            raise UnsupportedError("this store needs asyncio")

    with pytest.raises(SkipTest, match=r"^absent: this store needs asyncio$"):
        await CHECKS["log-one-moment"](OneLoopOnly)


async def test_an_error_of_the_driver_is_a_failure() -> None:
    class Fails(InMemoryDriver):
        async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
            raise DriverError("the disk is on fire")

    with pytest.raises(AssertionError, match=r"the driver raised DriverError: the disk is on fire"):
        await CHECKS["concurrency-one-commit"](Fails)


async def test_drivers_are_closed() -> None:
    opened: list[str] = []
    driver = InMemoryDriver()

    @asynccontextmanager
    async def connect() -> AsyncIterator[InMemoryDriver]:
        opened.append("open")
        yield driver
        opened.append("closed")

    await CHECKS["retries-by-another-driver"](connect)
    assert opened == ["open", "closed", "open", "closed"]


@asyncio_only
async def test_report() -> None:
    driver = Plain(LowersKeys())
    report = await driver_report(lambda: driver)
    lines = str(report).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert lines[0].split() == ["group", "passed", "absent", "failed"]
    assert rows["head"] == ["4", "0", "0"]
    assert rows["trim"] == ["0", "6", "0"]
    assert rows["keys"] == ["3", "0", "1"]
    assert rows["concurrency"] == ["4", "1", "0"]
    assert [outcome.name for outcome in report.failed] == ["alike"]
    assert "trim-everything absent: Trim" in lines
    assert f"keys-alike failed: {CHECKS['keys-alike'].contract}" in lines
    assert len(report.outcomes) == len(CHECKS)


def test_names_are_unique() -> None:
    assert len(CHECKS) == len(driver_checks())


def test_pytest_is_not_needed() -> None:
    code = "import sys, memkit.testing; sys.exit('pytest' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- faults ---


async def test_a_fault_before_the_store() -> None:
    store = InMemoryDriver()
    driver = FlakyDriver(store, ["before"])
    with pytest.raises(DriverError) as caught:
        await driver.append("k", [Record("1", b"one")])
    assert caught.value.retryable
    assert (await store.load("k")).end == 0
    assert await driver.append("k", [Record("1", b"one")]) == Appended(0, 1, (await store.load("k")).epoch)


async def test_a_fault_after_the_store() -> None:
    store = InMemoryDriver()
    driver = FlakyDriver(store, [None, "after"], calls=["append"])
    await driver.append("k", [Record("1", b"one")])
    assert (await driver.load("k")).end == 1
    with pytest.raises(DriverError) as caught:
        await driver.append("k", [Record("2", b"two")])
    assert caught.value.retryable
    assert (await store.load("k")).end == 2
    assert (await driver.append("k", [Record("2", b"two")])).position == 1


async def test_faults_of_capabilities() -> None:
    store = InMemoryDriver()
    driver = FlakyDriver(store, ["before"] * 4, calls=["trim", "redact", "expire", "list_keys"])
    epoch = (await driver.append("k", [Record("1", b"one")])).epoch
    for call in (
        driver.trim("k", 1),
        driver.redact("k", {0: b"x"}, epoch=epoch),
        driver.expire("k", 0.0),
        anext(driver.list_keys()),
    ):
        with pytest.raises(DriverError):
            await call
    log = await store.load("k")
    assert (log.base, log.bodies) == (0, [b"one"])


async def test_random_faults_are_the_same_for_the_same_seed() -> None:
    first, again, other = (list(islice(random_faults(seed, 0.5), 200)) for seed in (1, 1, 2))
    assert first == again != other
    assert set(first) == {None, "before", "after"}


async def test_slow_calls_wait_before_the_store() -> None:
    store = InMemoryDriver()
    async with create_task_group() as tasks:
        tasks.start_soon(SlowDriver(store, math.inf).append, "k", [Record("1", b"one")])
        await SlowDriver(store, 0.001).append("k", [Record("2", b"two")])
        tasks.cancel_scope.cancel()
    assert (await store.load("k")).bodies == [b"two"]


async def test_counts() -> None:
    driver = CountingDriver(InMemoryDriver())
    epoch = (await driver.append("k", [Record("1", b"one"), Record("2", b"three")])).epoch
    await driver.commit("k", b"head", revision=(await driver.load("k", -1)).revision)
    await driver.load("k")
    await driver.redact("k", {0: b"x"}, epoch=epoch)
    assert [key async for key in driver.list_keys()] == ["k"]
    await driver.delete("k")
    assert driver.calls == {"append": 1, "load": 2, "commit": 1, "redact": 1, "list_keys": 1, "delete": 1}
    assert driver.bodies == {"append": 2, "load": 3, "commit": 1, "redact": 1, "list_keys": 0, "delete": 0}
    assert driver.bytes == {"append": 8, "load": 17, "commit": 4, "redact": 1, "list_keys": 0, "delete": 0}


@pytest.mark.parametrize("kind", [Trim, Redact, Expire, ListKeys])
def test_capabilities_are_those_of_the_driver_inside(kind: type) -> None:
    driver = SlowDriver(FlakyDriver(InMemoryDriver(), []), 0)
    assert capability(driver, kind) is driver
    assert capability(SlowDriver(Plain(InMemoryDriver()), 0), kind) is None


@pytest.mark.parametrize("name", [name for name in CHECKS if not name.startswith(("expire-", "cancellation-"))])
async def test_wrapped_drivers_keep_the_contract(name: str) -> None:
    driver = CountingDriver(FlakyDriver(SlowDriver(InMemoryDriver(), 0), []))
    await CHECKS[name](lambda: driver)

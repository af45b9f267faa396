"""What drivers share: slices, keys, ids, capabilities through wrappers, and writes that end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import anyio
import pytest
from anyio import CancelScope, create_task_group, to_thread
from anyio.lowlevel import checkpoint

from memkit.driver import (
    MAX_KEY_BYTES,
    Expire,
    ListKeys,
    Record,
    Redact,
    Trim,
    capability,
    check_end,
    check_epoch,
    check_key,
    check_revision,
    clip,
    position_of,
)
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ConflictError, DriverError, FormatError
from memkit.finish import finish
from memkit.workers import THREADS


class TestClip:
    @pytest.mark.parametrize("base", range(6))
    def test_is_the_slice_of_a_sequence(self, base: int) -> None:
        bounds = [-100, *range(-7, 8), 100]
        for start in bounds:
            for stop in (*bounds, None):
                low, high = clip(base, 5, start, stop)
                assert base <= low <= high <= 5
                assert list(range(low, high)) == [at for at in range(5)[start:stop] if at >= base]


class TestPositionOf:
    STORED = {"a": (3, b"one"), "b": (4, b"two"), "d": (6, b"four")}  # noqa: RUF012

    def test_new_records(self) -> None:
        assert position_of("k", [Record("x", b""), Record("y", b"")], self.STORED) is None

    def test_known_records(self) -> None:
        assert position_of("k", [Record("a", b"one")], self.STORED) == 3
        assert position_of("k", [Record("a", b"one"), Record("b", b"two")], self.STORED) == 3

    @pytest.mark.parametrize(
        "records",
        [
            [Record("a", b"one"), Record("x", b"")],
            [Record("x", b""), Record("a", b"one")],
            [Record("a", b"one"), Record("d", b"four")],
            [Record("b", b"two"), Record("a", b"one")],
        ],
        ids=["the first", "the second", "not next to each other", "in another order"],
    )
    def test_known_in_part(self, records: list[Record]) -> None:
        with pytest.raises(ConflictError, match="only a part"):
            position_of("k", records, self.STORED)

    def test_other_bytes(self) -> None:
        with pytest.raises(ConflictError, match="'b' is stored in 'k' with other content"):
            position_of("k", [Record("a", b"one"), Record("b", b"new")], self.STORED)

    @pytest.mark.parametrize(
        "records", [[], [Record("x", b"1"), Record("x", b"1")], [Record("", b"1")]], ids=["none", "twice", "empty"]
    )
    def test_impossible(self, records: list[Record]) -> None:
        with pytest.raises(FormatError):
            position_of("k", records, {})


class TestCheckKey:
    @pytest.mark.parametrize("key", ["a", "/", "..", "\0", " ", "k" * MAX_KEY_BYTES, "é" * 512, "\U0001f511"])
    def test_possible(self, key: str) -> None:
        check_key(key)

    @pytest.mark.parametrize("key", ["", "k" * (MAX_KEY_BYTES + 1), "é" * 513, "\ud800", None, b"bytes", 1])
    def test_impossible(self, key: str) -> None:
        with pytest.raises(FormatError):
            check_key(key)


class TestWhatACallerBelieves:
    def test_agreement(self) -> None:
        check_epoch("k", None, "e")
        check_epoch("k", "e", "e")
        check_epoch("k", "", "")
        check_end("k", None, 3)
        check_end("k", 0, 0)
        check_revision("k", "e.1", "e.1")

    def test_another_epoch(self) -> None:
        with pytest.raises(ConflictError, match="deleted") as caught:
            check_epoch("k", "old", "new")
        assert (caught.value.expected, caught.value.actual) == ("old", "new")

    def test_another_end(self) -> None:
        with pytest.raises(ConflictError, match="ends at 3, not at 0") as caught:
            check_end("k", 0, 3)
        assert (caught.value.expected, caught.value.actual) == (0, 3)

    def test_another_revision(self) -> None:
        with pytest.raises(ConflictError, match="changed by someone else") as caught:
            check_revision("k", "", "e.0")
        assert (caught.value.expected, caught.value.actual) == ("", "e.0")


class Untrimmable:
    """A wrapper that answers for the driver inside, except for one capability."""

    def __init__(self, inner: object) -> None:
        self.inner = inner

    def capability(self, kind: type) -> object:
        return None if kind is Trim else capability(self.inner, kind)


class TestCapability:
    @pytest.mark.parametrize("kind", [Trim, Redact, Expire, ListKeys])
    def test_of_a_driver(self, kind: type) -> None:
        driver = InMemoryDriver()
        assert capability(driver, kind) is driver
        assert capability(object(), kind) is None

    def test_through_wrappers(self) -> None:
        driver = InMemoryDriver()
        wrapped = Untrimmable(Untrimmable(driver))
        assert capability(wrapped, Redact) is driver
        assert capability(wrapped, Trim) is None


class Store:
    """A blocking write that begins, then hangs until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.ended = threading.Event()

    def write(self) -> str:
        self.begun.set()
        assert self.go.wait(10)
        self.ended.set()
        return "written"

    async def has_begun(self) -> None:
        assert await to_thread.run_sync(self.begun.wait, 10)


async def turn(times: int = 20) -> None:
    for _ in range(times):
        await checkpoint()


asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.mark.anyio
class TestFinish:
    async def test_result(self) -> None:
        assert await finish(lambda: 7) == 7

    async def test_error_of_the_write(self) -> None:
        def fail() -> None:
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            await finish(fail)

    async def test_runs_in_a_thread(self) -> None:
        assert await finish(threading.get_ident) != threading.get_ident()

    async def test_scope(self) -> None:
        store, scope = Store(), CancelScope()
        ended_first: list[bool] = []

        async def run() -> None:
            with scope:
                try:
                    await finish(store.write)
                finally:
                    ended_first.append(store.ended.is_set())

        async with create_task_group() as tasks:
            tasks.start_soon(run)
            await store.has_begun()
            scope.cancel()
            await turn()
            assert not ended_first
            store.go.set()
        assert scope.cancelled_caught
        assert ended_first == [True]

    @asyncio_only
    @pytest.mark.parametrize("times", [1, 3])
    async def test_task_cancel(self, times: int) -> None:
        store = Store()
        task = asyncio.ensure_future(finish(store.write))
        await store.has_begun()
        for _ in range(times):
            task.cancel()
            await turn()
        assert not task.done()
        store.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert store.ended.is_set()

    @asyncio_only
    async def test_asyncio_timeout(self) -> None:
        store, limit = Store(), asyncio.timeout(None)

        async def run() -> None:
            async with limit:
                await finish(store.write)

        task = asyncio.ensure_future(run())
        await store.has_begun()
        limit.reschedule(0)
        await turn()
        assert limit.expired()
        assert not task.done()
        store.go.set()
        with pytest.raises(TimeoutError):
            await task
        assert store.ended.is_set()

    @asyncio_only
    async def test_error_of_a_cancelled_write_gives_way_to_the_cancellation(self) -> None:
        store = Store()

        def fail() -> None:
            store.write()
            raise OSError("disk full")

        task = asyncio.ensure_future(finish(fail))
        await store.has_begun()
        task.cancel()
        store.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_time_limit(self) -> None:
        store = Store()
        with pytest.raises(DriverError, match="outcome is unknown") as caught:
            await finish(store.write, time_limit=0.05)
        assert caught.value.retryable
        assert not store.ended.is_set()
        store.go.set()
        assert await to_thread.run_sync(store.ended.wait, 10)

    async def test_time_limit_of_a_cancelled_write(self) -> None:
        store, scope = Store(), CancelScope()
        errors: list[DriverError] = []

        async def run() -> None:
            with scope:
                try:
                    await finish(store.write, time_limit=0.2)
                except DriverError as error:
                    errors.append(error)

        async with create_task_group() as tasks:
            tasks.start_soon(run)
            await store.has_begun()
            scope.cancel()
        assert not store.ended.is_set()
        assert [error.retryable for error in errors] == [True]
        store.go.set()

    async def test_cancelled_before_it_begins(self) -> None:
        busy = [Store() for _ in range(THREADS)]
        late, scope = Store(), CancelScope()
        late.go.set()

        async def run() -> None:
            with scope:
                await finish(late.write)

        async with create_task_group() as tasks:
            for store in busy:
                tasks.start_soon(finish, store.write)
            for store in busy:
                await store.has_begun()
            tasks.start_soon(run)
            await turn()
            scope.cancel()
            await turn()
            for store in busy:
                store.go.set()
        assert scope.cancelled_caught
        assert all(store.ended.is_set() for store in busy)
        assert await finish(lambda: "after") == "after"
        assert not late.begun.is_set()

    async def test_cancelled_at_any_moment_it_is_written_or_not(self) -> None:
        for turns in range(40):
            written: list[int] = []
            scope = CancelScope()

            async def run(scope: CancelScope, write: Callable[[int], None]) -> None:
                with scope:
                    await finish(lambda: write(1))

            async with create_task_group() as tasks:
                tasks.start_soon(run, scope, written.append)
                await turn(turns)
                scope.cancel()
            before = list(written)
            await anyio.sleep(0.002)
            assert written == before
            assert written or scope.cancelled_caught

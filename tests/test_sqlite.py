"""SQLite: the contract, writes that leave together, what is closed when, forks, pages, and what must be gone."""

from __future__ import annotations

import functools
import gc
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import create_task_group, to_thread

from memkit.driver import MAX_LOAD, Log, Record
from memkit.drivers.sqlite import SqliteDriver, tables, writer
from memkit.errors import DriverError, FormatError
from memkit.testing import Check, driver_checks

pytestmark = pytest.mark.anyio


def record(name: str, size: int = 10) -> Record:
    return Record(name, b'{"text":"%b"}' % (b"x" * size))


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "memkit sqlite"]


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not holds():
            await anyio.sleep(0.005)


async def purged(driver: SqliteDriver) -> None:
    """Return when the first look for expired conversations is over, which comes after the first answer."""
    await driver.delete("nothing")


def bytes_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is said to SQLite by connections that are opened from now on."""
    said: list[str] = []
    connect = sqlite3.connect

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.set_trace_callback(said.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    return said


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "talks.db"


# --- the contract ---


@pytest.mark.parametrize("durable", [False, True], ids=["quick", "durable"])
@pytest.mark.parametrize("check", driver_checks(), ids=str)
async def test_the_contract(check: Check, durable: bool, path: Path) -> None:
    await check(functools.partial(SqliteDriver, path, durable=durable))


class _Open:
    """A driver that no check closes, because a database in memory is gone with it."""

    def __init__(self, driver: SqliteDriver) -> None:
        for name in ("load", "append", "commit", "delete", "trim", "redact", "expire", "list_keys"):
            setattr(self, name, getattr(driver, name))


@pytest.mark.parametrize("check", driver_checks(), ids=str)
async def test_the_contract_in_memory(check: Check) -> None:
    async with SqliteDriver(":memory:") as driver:
        opened = _Open(driver)
        await check(lambda: opened)  # type: ignore[arg-type, return-value]


async def test_a_database_in_memory_is_gone_with_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writer, "_IDLE", 0.01)
    driver = SqliteDriver(":memory:")
    await driver.append("k", [record("a")])
    await anyio.sleep(0.05)
    assert (await driver.load("k")).end == 1, "an idle one must stay"
    assert (await SqliteDriver(":memory:").load("k")) == Log()
    await driver.aclose()
    assert (await driver.load("k")) == Log()
    await driver.aclose()
    assert not list(tmp_path.iterdir())


# --- writes that leave together ---


@pytest.mark.parametrize("durable", [False, True], ids=["quick", "durable"])
async def test_appends_of_many_tasks_leave_in_few_transactions(
    path: Path, durable: bool, statements: list[str]
) -> None:
    async with SqliteDriver(path, durable=durable) as driver:
        await driver.append("k", [record("first")])
        await purged(driver)
        statements.clear()
        async with create_task_group() as tasks:
            for number in range(1_000):
                tasks.start_soon(driver.append, f"k{number % 50}", [record(f"r{number}")])
        assert 8 <= statements.count("COMMIT") <= 100
        assert statements.count("BEGIN IMMEDIATE") == statements.count("COMMIT")
        assert not [said for said in statements if "checkpoint" in said]


async def test_an_append_says_three_things_to_the_database(path: Path, statements: list[str]) -> None:
    async with SqliteDriver(path) as driver:
        for number in range(10):
            await driver.append("k", [record(f"r{number}")], since=number)
        statements.clear()
        await driver.append("k", [record("r10")], since=10)
        assert [said.split()[0] for said in statements] == ["BEGIN", "PRAGMA", "INSERT", "COMMIT"]


async def together(driver: SqliteDriver, *calls: Callable[[], Awaitable[object]]) -> list[object]:
    """Make calls that leave as one batch, and return the results or errors."""
    results: list[object] = [None] * len(calls)

    async def call(index: int) -> None:
        try:
            results[index] = await calls[index]()
        except Exception as error:
            results[index] = error

    held, go_on = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        held.set()
        go_on.wait(30)

    async with create_task_group() as tasks:
        tasks.start_soon(driver._write, hold)
        await to_thread.run_sync(held.wait)
        for index in range(len(calls)):
            tasks.start_soon(call, index)
            await until(lambda count=index + 1: len(driver._writer._jobs) == count)  # type: ignore[misc]
        go_on.set()
    return results


async def test_an_error_of_one_caller_does_not_harm_the_others_of_its_batch(
    path: Path, statements: list[str]
) -> None:
    async with SqliteDriver(path) as driver:
        await driver.append("k", [record("a")])
        await purged(driver)
        statements.clear()
        results = await together(
            driver,
            lambda: driver.append("k", [record("b")]),
            lambda: driver.append("k", [record("c")], expect=0),
            lambda: driver.append("k", [record("d")], epoch="another"),
            lambda: driver.append("k", []),
            lambda: driver.commit("k", b"{}", revision="another"),
            lambda: driver.append("k", [record("e")]),
        )
        assert [type(result).__name__ for result in results] == [
            "Appended", "ConflictError", "ConflictError", "FormatError", "ConflictError", "Appended",
        ]  # fmt: skip
        assert statements.count("COMMIT") == 2, "the one that was held up, and the batch"
        log = await driver.load("k")
        assert (log.end, len(log.bodies)) == (3, 3)


@pytest.mark.parametrize(
    ("poison", "kind"),
    [
        (lambda driver: driver.append("k", [Record("x", object())]), DriverError),  # SQLite cannot store it
        (lambda driver: driver.append("k", [Record("x", b"x" * 100_000)]), DriverError),  # larger than it may be
        (lambda driver: driver.append("k", [record(f"x{n}", 40_000) for n in range(20)]), DriverError),  # no room
        (lambda driver: driver.append("k", [Record("\ud800", b"{}")]), FormatError),
        (lambda driver: driver.append("k", [object()]), AttributeError),  # what no type checker would let pass
        (lambda driver: driver.redact("k", {0: object()}, epoch=""), Exception),
    ],
    ids=["type", "size", "room", "surrogate", "no record", "redaction"],
)
async def test_what_cannot_be_stored_fails_alone(
    path: Path, poison: Any, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "connect", _small(sqlite3.connect))
    async with SqliteDriver(path) as driver:
        await driver.append("k", [record("a")])
        before, bad, after = await together(
            driver,
            lambda: driver.append("k", [record("b")]),
            lambda: poison(driver),
            lambda: driver.append("k", [record("c")]),
        )
        assert isinstance(bad, kind)
        assert (before.position, after.position) == (1, 2)  # type: ignore[attr-defined]
        assert (await driver.load("k")).end == 3
        assert (await driver.append("k", [record("d")])).position == 3


def _small(connect: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
    """Return a way to open databases that store nothing above 50 000 bytes, and 100 pages together."""

    def opened(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 50_000)
        connection.execute("PRAGMA max_page_count = 100")
        return connection

    return opened


async def test_what_is_known_of_conversations_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MAX_KNOWN", 3)
    async with SqliteDriver(path) as driver:
        async with create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(driver.append, f"k{number % 7}", [record(f"r{number}")])
        for key in range(7):
            log = await driver.load(f"k{key}")
            assert log.end == len(log.bodies) == len(range(key, 200, 7))
        assert len(driver._writer._tables._known) == 3  # type: ignore[union-attr]


# --- threads, event loops, ends ---


async def test_an_idle_thread_ends_and_begins_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_IDLE", 0.01)
    before = set(threads())
    driver = SqliteDriver(path)
    for number in range(3):
        await driver.append("k", [record(f"r{number}")], since=number)
        await until(lambda: not set(threads()) - before)
        assert driver._writer._tables is None
    assert (await driver.load("k")).end == 3
    await driver.aclose()


async def test_writes_meet_a_thread_that_is_about_to_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_IDLE", 0.0)
    async with SqliteDriver(path) as driver:
        for number in range(300):
            assert (await driver.append("k", [record(f"r{number}")], since=number)).position == number


async def test_a_closed_driver_can_be_used_again(path: Path) -> None:
    driver = SqliteDriver(path)
    await driver.aclose()
    for number in range(5):
        await driver.append("k", [record(f"r{number}")], since=number)
        assert (await driver.load("k")).end == number + 1
        await driver.aclose()
        assert [found.name for found in path.parent.iterdir()] == [path.name], "something is still open"
    await driver.aclose()


async def test_closing_waits_for_what_is_being_written(path: Path) -> None:
    driver = SqliteDriver(path)
    held, go_on = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        held.set()
        go_on.wait(30)

    async def close() -> None:
        await driver.aclose()
        assert [found.name for found in path.parent.iterdir()] == [path.name], "something is still open"

    async with create_task_group() as tasks:
        tasks.start_soon(driver._write, hold)
        await to_thread.run_sync(held.wait)
        for number in range(300):
            tasks.start_soon(driver.append, "k", [record(f"r{number}")])
        await until(lambda: len(driver._writer._jobs) == 300)
        tasks.start_soon(close)
        await until(lambda: driver._writer._is_closing)
        go_on.set()
    assert (await driver.load("k", 0, 0)).end == 300
    await driver.aclose()


def open_files(path: Path) -> list[str]:
    """Return what this process has open of a database; nothing where the system does not tell."""
    folder = Path("/proc/self/fd")
    links = list(folder.iterdir()) if folder.is_dir() else []
    names: list[str] = []
    for link in links:
        with suppress(OSError):
            names.append(os.readlink(link))
    return [name for name in names if name.startswith(str(path))]


async def test_a_driver_that_is_collected_closes_its_connections(path: Path) -> None:
    before = set(threads())
    driver = SqliteDriver(path)
    await driver.append("k", [record("a")])
    await driver.load("k")
    assert set(threads()) - before
    del driver
    gc.collect()
    await until(lambda: not set(threads()) - before)
    # Not that the log beside the file is gone: two connections that close at once may both leave it.
    await until(lambda: not open_files(path))


async def test_a_reader_that_fails_is_closed(path: Path, statements: list[str]) -> None:
    async with SqliteDriver(path) as driver:
        await driver.append("k", [record("a")])
        with pytest.raises(ZeroDivisionError):
            await driver._read(lambda _: 1 / 0)
        assert not driver._readers
        assert (await driver.load("k")).end == 1


async def test_one_driver_serves_many_event_loops_at_once(path: Path) -> None:
    driver = SqliteDriver(path)

    async def write(name: str) -> None:
        for number in range(50):
            appended = await driver.append("k", [record(f"{name}{number}")])
            assert (await driver.load("k", appended.position, appended.position + 1)).bodies

    async with create_task_group() as tasks:
        for name, backend in (("a", "asyncio"), ("b", "trio"), ("c", "asyncio"), ("d", "trio")):
            tasks.start_soon(
                to_thread.run_sync, lambda name=name, backend=backend: anyio.run(write, name, backend=backend)
            )
    assert (await driver.load("k")).end == 200
    await driver.aclose()


# --- forks ---


async def forked(role: str, path: Path) -> list[str]:
    """Let a process fork in the middle of things, and return the ids that were acknowledged."""
    result = await to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.sqlite_processes", role, str(path)],
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
            cwd=Path(__file__).parents[1],
        )
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


async def ids_in(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    found = [name for (name,) in connection.execute("SELECT id FROM log ORDER BY conv, pos")]
    connection.close()
    return found


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_child_keeps_what_it_writes_after_its_parent_has_closed(path: Path) -> None:
    acknowledged = await forked("fork", path)
    assert len(acknowledged) == 30
    assert sorted(await ids_in(path)) == sorted(acknowledged)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_process_that_forks_while_it_writes(path: Path) -> None:
    acknowledged = await forked("fork-busy", path)
    assert len([name for name in acknowledged if name.startswith("child")]) == 5 * 30
    assert sorted(await ids_in(path)) == sorted(acknowledged)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_fork_comes_to_its_turn_while_threads_come_and_go() -> None:
    assert await forked("fork-crowded", Path(":memory:")) == ["forked"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_child_has_a_copy_of_a_database_in_memory() -> None:
    assert await forked("fork-memory", Path(":memory:")) == ["parent", "3", "child", "4"]


# --- reading ---


async def test_readers_see_one_moment_beside_a_writer(path: Path) -> None:
    async with SqliteDriver(path) as driver:
        done = anyio.Event()

        async def write() -> None:
            for number in range(0, 300, 3):
                await driver.append("k", [record(f"r{number + n}") for n in range(3)], since=number)
            done.set()

        async def read() -> None:
            end = 0
            while not done.is_set():
                log = await driver.load("k", -7)
                assert log.end % 3 == 0, "a batch was seen in part"
                assert log.end >= end, "time went back"
                assert len(log.bodies) == min(7, log.end)
                end = log.end

        async with create_task_group() as tasks:
            for job in (write, read, read, read):
                tasks.start_soon(job)
        assert (await driver.load("k", 0, 0)).end == 300


async def test_a_load_has_two_megabytes_at_most_and_the_rest_is_in_front(path: Path) -> None:
    async with SqliteDriver(path) as driver:
        await driver.append("k", [record(f"r{number}", 1_000_000) for number in range(20)])
        log = await driver.load("k", 0)
        assert 1_500_000 < sum(map(len, log.bodies)) <= MAX_LOAD
        assert log.start + len(log.bodies) == log.end == 20
        log = await driver.load("k", 0, log.start)
        assert log.start + len(log.bodies) == 18
        await driver.append("k", [record("large", 9_000_000)])
        assert (await driver.load("k")).start == 20, "one that is larger comes alone"


async def test_a_load_reads_no_more_of_a_long_log_than_of_a_short_one(path: Path) -> None:
    steps: dict[int, int] = {}
    async with SqliteDriver(path) as driver:
        for count in (60, 6_000):
            await driver.append(f"k{count}", [record(f"r{number}") for number in range(count)])
        for count in (60, 6_000):
            await driver.load(f"k{count}", -50)
            calls: list[int] = []
            driver._readers[-1].set_progress_handler(lambda calls=calls: calls.append(1), 1)
            assert len((await driver.load(f"k{count}", -50)).bodies) == 50
            driver._readers[-1].set_progress_handler(None, 1)
            steps[count] = len(calls)
    assert steps[60] > 100
    assert steps[6_000] <= steps[60] + 5


# --- keys ---

HOSTILE = [
    "a\0b", "a\0", "\0", "'", "''; DROP TABLE heads; --", '"', "a%", "a_", "%", "_", "*", "[a]", "\\", "\n",
    "x" * 1024, "é" * 512, "x" * 1023 + "y", "\U0010ffff", "\U0010ffff\U0010ffff", "NULL", "1", "1.0", "A", "a",
]  # fmt: skip


async def test_hostile_keys_and_ids_are_kept_apart(path: Path) -> None:
    async with SqliteDriver(path) as driver:
        for key in HOSTILE:
            await driver.append(key, [Record(key, key.encode())])
            assert (await driver.append(key, [Record(key, key.encode())])).position == 0, "stored twice"
        for key in HOSTILE:
            assert (await driver.load(key)).bodies == [key.encode()]
            found = [name async for name in driver.list_keys(key)]
            assert found == sorted(name for name in HOSTILE if name.startswith(key))
            assert await driver.append("zz", [Record(key, b"{}")])
        assert (await driver.load("zz")).end == len(HOSTILE)


@pytest.mark.parametrize("count", [0, 1, 199, 200, 201, 400, 401])
async def test_every_key_is_listed_once_whatever_the_pages_are(path: Path, count: int) -> None:
    async with SqliteDriver(path) as driver:
        names = [f"user:{number:04}" for number in range(count)]
        async with create_task_group() as tasks:
            for key in ["user", *names, "v"]:
                tasks.start_soon(driver.append, key, [record("a")])
        assert [key async for key in driver.list_keys("user:")] == names
        assert [key async for key in driver.list_keys()] == ["user", *names, "v"]
        assert [key async for key in driver.list_keys("w")] == []
        assert [key async for key in driver.list_keys("\ud800")] == []


# --- what must be gone ---


async def test_what_is_redacted_or_deleted_is_in_no_file(path: Path) -> None:
    async with SqliteDriver(path) as driver:
        for number in range(30):
            secret = Record(f"s{number}", b'{"text":"SECRET %b"}' % (b"x" * (number * 300)))
            epoch = (await driver.append("k", [record(f"r{number}", 3_000), secret])).epoch
        await driver.append("other", [Record("o", b'{"text":"PRIVATE"}' * 1_000)])
        revision = await driver.commit(
            "other", b'{"summary":"PRIVATE"}' * 500, revision=(await driver.load("other")).revision
        )
        await driver.commit("other", b"{}", revision=revision)
        assert b"SECRET" in bytes_in(path.parent)
        await driver.redact("k", {2 * number + 1: b"{}" for number in range(30)}, epoch=epoch)
        assert b"SECRET" not in bytes_in(path.parent)
        assert b"PRIVATE" in bytes_in(path.parent)
        await driver.delete("other")
        assert b"PRIVATE" not in bytes_in(path.parent)
        assert (await driver.load("k")).bodies == [record("", 3_000).body, b"{}"] * 30


async def test_copies_go_as_soon_as_the_reader_that_needs_them_has_ended(path: Path) -> None:
    async with SqliteDriver(path) as driver:
        epoch = (await driver.append("k", [Record("s", b'"SECRET"')])).epoch
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM log").fetchone() == (1,)
        await driver.redact("k", {0: b'"public"'}, epoch=epoch)
        assert b"SECRET" in bytes_in(path.parent)
        await driver.append("k", [record("a")])
        assert reader.execute("SELECT body FROM log").fetchall() == [(b'"SECRET"',)]
        reader.close()
        await driver.append("k", [record("b")])
        assert b"SECRET" not in bytes_in(path.parent)


async def test_expired_conversations_are_purged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> tuple[int, int]:
        connection = sqlite3.connect(path)
        counts = tuple(
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("heads", "log")
        )
        connection.close()
        return counts

    async with SqliteDriver(path) as driver:
        await driver.append("stays", [record("a")])
        for number in range(50):
            await driver.append(f"k{number}", [record("a"), record("b")])
            await driver.expire(f"k{number}", 3600 if number < 5 else -1)
        assert rows() == (51, 101)
        assert [key async for key in driver.list_keys("k")] == sorted(f"k{number}" for number in range(5))
        driver._writer._purge_at = 0.0  # half a minute later
        for number in range(4):  # some at a time, so that nobody waits for long
            await driver.append("stays", [record(f"r{number}")])
            await purged(driver)
        assert rows() == (6, 15)
        assert driver._writer._purge_at > time.monotonic()
        assert (await driver.append("k40", [record("a")])).position == 0

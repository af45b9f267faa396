"""SQLite where it cannot work: locked, full, closed, foreign, damaged; and writers that are killed."""

from __future__ import annotations

import multiprocessing
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import fail_after, sleep, to_thread

from memkit.driver import Record
from memkit.drivers.sqlite import SqliteDriver
from memkit.drivers.sqlite.writer import Writer
from memkit.errors import DriverError, FormatError
from tests.sqlite_processes import KEY, Note, body, names, work

pytestmark = pytest.mark.anyio

# Forked from a process that has imported everything: a writer that is killed must begin again at once.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.sqlite_processes"])


def record(name: str, size: int = 10) -> Record:
    return Record(name, b'{"text":"%b"}' % (b"x" * size))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "talks.db"


async def fill(path: Path, count: int = 50, size: int = 500) -> None:
    """Store a conversation, and leave nothing but the database."""
    async with SqliteDriver(path) as driver:
        await driver.append("k", [record(f"r{number}", size) for number in range(count)])


# --- locked ---


async def test_readers_wait_for_nobody_and_writers_are_told_to_repeat(path: Path) -> None:
    await fill(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with SqliteDriver(path, write_timeout=0.2) as driver:
        assert (await driver.load("k")).end == 50
        with pytest.raises(DriverError) as caught:
            await driver.append("k", [record("a")], since=50)
        assert caught.value.retryable
    other.execute("ROLLBACK")
    other.close()
    async with SqliteDriver(path) as driver:
        assert (await driver.append("k", [record("a")], since=50)).position == 50
        assert (await driver.load("k", 0, 0)).end == 51, "it was stored late and once more"


async def test_the_error_of_a_locked_database_says_who_is_in_the_way(path: Path) -> None:
    await fill(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with SqliteDriver(path, write_timeout=60) as driver:
        driver._writer._timeout = 0.1  # half a minute later
        with pytest.raises(DriverError, match="other processes hold it; repeat") as caught:
            await driver.append("k", [record("a")])
        assert caught.value.retryable
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        other.close()
        assert (await driver.append("k", [record("a")])).position == 50


async def test_many_make_a_database_at_once(path: Path) -> None:
    drivers = [SqliteDriver(path) for _ in range(12)]
    async with anyio.create_task_group() as tasks:
        for number, driver in enumerate(drivers):
            tasks.start_soon(driver.append, "k", [record(f"r{number}")])
            tasks.start_soon(driver.load, "k")
    assert (await drivers[0].load("k")).end == 12
    for driver in drivers:
        await driver.aclose()


# --- what is not a database of ours ---


def a_foreign_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE diary (day TEXT)")
    connection.commit()
    connection.close()


def a_newer_version(path: Path) -> None:
    anyio.from_thread.run(fill, path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()


def the_number_of_another_program(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA application_id = 7")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (a_foreign_database, "not one of memkit"),
        (a_newer_version, "newer memkit: its tables are version 2; upgrade"),
        (the_number_of_another_program, "not one of memkit"),
        (lambda path: path.write_bytes(b"a diary, and not a database\n" * 100), "damaged or not a database"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5_000), "damaged or not a database"),
    ],
    ids=["foreign", "newer", "number", "text", "garbage"],
)
async def test_what_is_not_ours_is_an_error_and_stays_as_it_is(
    path: Path, make: Callable[[Path], object], said: str
) -> None:
    await to_thread.run_sync(make, path)
    before = path.read_bytes()
    async with SqliteDriver(path) as driver:
        for call in (
            lambda: driver.load("k"),
            lambda: driver.append("k", [record("a")]),
            lambda: driver.commit("k", b"{}", revision=""),
            lambda: driver.delete("k"),
            lambda: anext(driver.list_keys()),
        ):
            with pytest.raises(FormatError, match=said):
                await call()
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == [path.name]


async def test_a_damaged_page_is_an_error_not_a_shorter_history(path: Path) -> None:
    await fill(path, 200, 2_000)
    content = path.read_bytes()
    size, refused = 4_096, 0
    for page in range(2, len(content) // size, 7):
        path.write_bytes(content[: page * size] + b"\xa5" * size + content[(page + 1) * size :])
        async with SqliteDriver(path) as driver:
            try:
                log = await driver.load("k", 0)
            except FormatError:
                refused += 1
            else:  # the page has nothing to do with this
                assert log.bodies == [record("", 2_000).body] * 200
    assert refused > 0


# --- where it cannot be written ---


async def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    driver = SqliteDriver(tmp_path / "later" / "talks.db", write_timeout=5)
    for call in (lambda: driver.load("k"), lambda: driver.append("k", [record("a")])):
        with pytest.raises(DriverError, match="does its folder exist") as caught:
            await call()
        assert not caught.value.retryable
    (tmp_path / "later").mkdir()
    assert (await driver.append("k", [record("a")])).position == 0
    assert (await driver.load("k")).end == 1
    await driver.aclose()


async def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    async with SqliteDriver(tmp_path) as driver:
        with pytest.raises(DriverError, match="could not be used"):
            await driver.append("k", [record("a")])


@pytest.mark.parametrize("path", ["", "\0", "a\0b"])
async def test_what_is_no_path_of_a_file(path: str) -> None:
    with pytest.raises(FormatError, match="not the path of a file"):
        SqliteDriver(path)


@pytest.mark.parametrize(
    "name",
    ["a b", "file:talks.db?mode=memory", "'\";--", "%41", "a\nb", "~", "é", "\udcff", ":memory:x", "-rf", "#?&"],
)
async def test_any_name_of_a_file(tmp_path: Path, name: str) -> None:
    for _ in range(2):
        async with SqliteDriver(tmp_path / name) as driver:
            await driver.append("k", [record("a")])
            assert (await driver.load("k")).end == 1
    assert [found.name for found in tmp_path.iterdir()] == [name]


@contextmanager
def tiny_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting needs root: a full disk was not tried")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_loses_nothing_and_works_again_when_there_is_room(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as folder:
        ballast = folder / "ballast"
        ballast.write_bytes(b"x" * 150_000)
        driver = SqliteDriver(folder / "talks.db")
        stored = 0

        async def fill_it() -> None:
            nonlocal stored
            while True:
                await driver.append("k", [record(f"r{stored}", 5_000)], since=stored)
                stored += 1

        with pytest.raises(DriverError) as caught:
            await fill_it()
        assert caught.value.retryable
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert stored > 5
        log = await driver.load("k", 0)
        assert log.bodies == [record("", 5_000).body] * stored
        ballast.unlink()
        assert (await driver.append("k", [record(f"r{stored}", 5_000)], since=stored)).position == stored
        await driver.aclose()
        assert (await driver.load("k", 0)).end == stored + 1
        await driver.aclose()


async def test_a_full_database_refuses_what_is_too_large_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def small(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.execute("PRAGMA max_page_count = 20")
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    async with SqliteDriver(path) as driver:
        for size in (100, 200_000, 100, 200_000, 100):
            if size == 100:
                await driver.append("k", [record(f"r{time.monotonic()}", size)])
                continue
            with pytest.raises(DriverError, match="there is no room; free some and repeat") as caught:
                await driver.append("k", [record("large", size)])
            assert caught.value.retryable
        assert (await driver.load("k")).bodies == [record("", 100).body] * 3


async def test_another_user_may_neither_write_nor_make_it(path: Path) -> None:
    await fill(path)
    script = (
        "import anyio, anyio._backends._asyncio, os, sys\n"
        "from memkit.driver import Record\n"
        "from memkit.drivers.sqlite import SqliteDriver\n"
        "from memkit.errors import DriverError\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "async def main():\n"
        "    for name in sys.argv[1:]:\n"
        "        try: await SqliteDriver(name).append('k', [Record('x', b'{}')], since=50)\n"
        "        except DriverError as error: print(error.retryable, error)\n"
        "anyio.run(main)\n"
    )
    for folder in (path.parent, *path.parents[1:3]):
        folder.chmod(0o755)
    before = path.read_bytes()
    for mode in (0o444, 0o000):
        path.chmod(mode)
        path.parent.chmod(0o555)
        try:
            result = await to_thread.run_sync(
                lambda: subprocess.run(
                    [sys.executable, "-c", script, str(path), str(path.with_name("new.db"))],
                    check=False,
                    capture_output=True,
                    text=True,
                )
            )
        finally:
            path.parent.chmod(0o755)
        if "PermissionError" in result.stderr or "ModuleNotFoundError" in result.stderr:
            pytest.skip(f"the interpreter is not readable for another user: {result.stderr[-200:]}")
        errors = result.stdout.splitlines()
        assert [error.split()[0] for error in errors] == ["False", "False"], result.stderr
        assert all("may this process" in error or "not writable" in error for error in errors)
    path.chmod(0o644)
    assert path.read_bytes() == before


# --- failures inside ---


async def test_what_is_committed_is_not_done_again_if_its_copies_cannot_be_removed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(action: int, what: str | None, *_: object) -> int:
        is_checkpoint = action == sqlite3.SQLITE_PRAGMA and what == "wal_checkpoint"
        return sqlite3.SQLITE_DENY if is_checkpoint else sqlite3.SQLITE_OK

    connect = sqlite3.connect

    def connected(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.set_authorizer(refuse)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connected)
    async with SqliteDriver(path) as driver:
        await driver.append("k", [record("a")])
        assert await driver.delete("k") is True
        epoch = (await driver.append("k", [record("a")])).epoch
        await driver.redact("k", {0: b"{}"}, epoch=epoch)
        assert (await driver.load("k")).bodies == [b"{}"]


async def test_a_thread_that_cannot_be_started_is_an_error_and_no_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    driver = SqliteDriver(path)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(DriverError, match="can't start new thread") as caught:
            await driver.append("k", [record("a")])
        assert caught.value.retryable
    assert (await driver.append("k", [record("a")])).position == 0
    await driver.aclose()


async def test_a_failure_of_the_thread_that_writes_holds_nobody_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Writer) -> None:
        raise MemoryError

    async with SqliteDriver(path) as driver:
        with monkeypatch.context() as patch:
            patch.setattr(Writer, "_purge", fail)
            for number in range(20):
                assert (await driver.append("k", [record(f"{number}")])).position == number
        assert (await driver.append("k", [record("last")])).position == 20


# --- killed ---


def _start(path: Path, writer: int, count: int, durable: bool) -> BaseProcess:
    process = _processes.Process(target=work, args=(path, writer, count, durable), daemon=True)
    process.start()
    return process


async def _run(path: Path, count: int, every: float, durable: bool) -> int:
    """Run four writers to their end, one of them killed now and then; return how often; read beside them."""
    driver, rng, kills, grown_to = SqliteDriver(path), random.Random(7), 0, 0
    running = {writer: _start(path, writer, count, durable) for writer in range(4)}
    kill_at = time.monotonic() + every
    seen: list[bytes] = []
    try:
        while running:
            log = await driver.load(KEY, len(seen))
            assert log.start <= len(seen), "it was not read often enough"
            seen += log.bodies[len(seen) - log.start :]
            assert len(seen) == log.end
            await anyio.sleep(0.002)
            if time.monotonic() < kill_at:
                continue
            kill_at = time.monotonic() + every
            for writer, process in list(running.items()):
                code = process.exitcode
                if code == 0:
                    del running[writer]
                elif code is not None:
                    assert code < 0, "a writer has failed"
                    running[writer] = _start(path, writer, count, durable)
            if running and log.end > grown_to:  # a busy machine must not be kept from getting anywhere
                running[rng.choice(list(running))].kill()
                kills, grown_to = kills + 1, log.end
    finally:
        for process in running.values():
            process.kill()
            process.join()
        await driver.aclose()
    return kills


@pytest.mark.parametrize(
    ("count", "every"),
    [
        pytest.param(60, 0.03, id="short"),
        pytest.param(2_000, 0.1, id="long", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
@pytest.mark.parametrize("durable", [False, True], ids=["quick", "durable"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_killed_writers_lose_and_double_nothing(path: Path, count: int, every: float, durable: bool) -> None:
    kills = await _run(path, count, every, durable)
    acknowledged = {name for writer in range(4) for name in Note(path.with_name(f"done-{writer}")).lines}
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT pos, id, body FROM log ORDER BY pos").fetchall()
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    stored = Counter(name for _, name, _ in rows)
    doubled, lost = len(rows) - len(stored), len(acknowledged - stored.keys())
    print(f"{kills} kills: acknowledged {len(acknowledged)}, stored {len(rows)}, doubled {doubled}, lost {lost}")
    assert kills > 0
    assert acknowledged == {name for writer in range(4) for name in names(f"w{writer}", count)} == set(stored)
    assert (doubled, lost) == (0, 0)
    assert [position for position, _, _ in rows] == list(range(4 * count))
    assert all(content == body(name) for _, name, content in rows)


async def test_what_a_reader_still_held_is_gone_soon_after_it(tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with SqliteDriver(path) as driver:
        epoch = (await driver.append("k", [Record("a", b"a secret " * 50)])).epoch
        await driver.load("k")
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM log").fetchall()
            await driver.redact("k", {0: b"gone"}, epoch=epoch)
            reader.execute("COMMIT")
        with fail_after(30):
            while any(b"a secret" in file.read_bytes() for file in tmp_path.iterdir()):
                await sleep(0.05)


async def test_a_body_that_is_none_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with SqliteDriver(path) as driver:
        await driver.append("k", [Record("a", b"x")])
        with closing(sqlite3.connect(path)) as other:
            other.execute("UPDATE log SET body = 5")
            other.commit()
        with pytest.raises(FormatError, match="holds what memkit never writes"):
            await driver.load("k")

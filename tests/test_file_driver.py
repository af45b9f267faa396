"""What is particular to files: names, torn lines, foreign files, full disks, locks, and what an append touches."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from memkit.driver import Record
from memkit.drivers.file import FileDriver, layout, locking, store
from memkit.errors import ConflictError, DriverError, FormatError

pytestmark = pytest.mark.anyio


def record(name: str, size: int = 10) -> Record:
    return Record(name, json.dumps({"name": name, "text": "x" * size}).encode())


def the_file(folder: Path) -> Path:
    (path,) = folder.glob("*.jsonl")
    return path


async def fill(driver: FileDriver, key: str, count: int) -> str:
    epoch = ""
    for number in range(count):
        epoch = (await driver.append(key, [record(f"r{number}")], since=number)).epoch
    return epoch


# --- the folder ---


async def test_a_constructor_does_nothing_and_the_first_write_makes_a_private_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    driver = FileDriver(folder)
    assert (await driver.load("k")).epoch == ""
    assert not folder.exists()
    await driver.append("k", [record("a")])
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "key", ["../../etc/passwd", "/etc/passwd", ".", "..", "a/b", "\0", "~", "CON", "-rf", "é" * 500]
)
async def test_no_key_leaves_the_folder(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "store"
    driver = FileDriver(folder)
    await driver.append(key, [record("a")])
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [folder]
    assert len(the_file(folder).name) < 70
    assert [found async for found in driver.list_keys()] == [key]


async def test_a_renamed_file_is_not_taken_for_another_conversation(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    await driver.append("alice", [record("a")])
    content = the_file(tmp_path).read_bytes()
    await driver.append("bob", [record("b")])
    (bobs,) = tmp_path.glob("bob-*.jsonl")
    bobs.write_bytes(content)
    with pytest.raises(FormatError, match="alice"):
        await FileDriver(tmp_path).load("bob")
    with pytest.raises(FormatError, match="alice"):
        await FileDriver(tmp_path).append("bob", [record("c")])
    assert bobs.read_bytes() == content


# --- crashes ---


@pytest.mark.parametrize("torn", [b'{"p":3,"h":-1,"id":"r3","bo', b"\0" * 500, b'{"p":3', b'\0\0"}\n', b"{"])
async def test_a_torn_tail_is_invisible_and_set_aside_by_the_next_writer(
    tmp_path: Path, torn: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(FileDriver(tmp_path), "k", 3)
    with the_file(tmp_path).open("ab") as file:
        file.write(torn)
    driver = FileDriver(tmp_path)
    before = await driver.load("k")
    assert (before.end, len(before.bodies)) == (3, 3)
    assert not list(tmp_path.glob("*.torn")), "a reader must not touch the file"
    appended = await driver.append("k", [record("r3")], since=3)
    assert appended.position == 3
    (aside,) = tmp_path.glob("*.torn")
    assert aside.read_bytes() == torn + b"\n"
    assert aside.name in caplog.text
    assert (await FileDriver(tmp_path).load("k")).bodies == [record(f"r{n}").body for n in range(4)]


async def test_a_file_whose_creation_was_torn_is_an_unknown_conversation(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    await fill(driver, "k", 1)
    path = the_file(tmp_path)
    header = path.read_bytes().split(b"\n")[0]
    for size in (0, 1, 9, len(header)):
        path.write_bytes(header[:size])
        assert (await FileDriver(tmp_path).load("k")).epoch == ""
        assert (await FileDriver(tmp_path).append("k", [record("a")])).position == 0
        assert (await FileDriver(tmp_path).load("k")).end == 1


async def test_a_crash_at_every_byte_of_an_append_leaves_old_or_new(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    await fill(driver, "k", 2)
    path = the_file(tmp_path)
    old = path.read_bytes()
    await driver.append("k", [record("x"), record("y", 50)], since=2)
    new = path.read_bytes()
    for size in range(len(old), len(new) + 1):
        path.write_bytes(new[:size])
        log = await FileDriver(tmp_path).load("k")
        assert log.end == (4 if size == len(new) else 2)
        assert len(log.bodies) == log.end


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_killed_process_leaves_old_or_new_at_every_system_call(tmp_path: Path) -> None:
    if not _has_strace():
        pytest.skip("strace is not installed: the crash at every system call was not tried")
    # In one thread, without an event loop: strace counts the calls of each thread by itself.
    script = (
        "import sys\nfrom memkit.drivers.file import FileDriver\nfrom memkit.driver import Record\n"
        "file = FileDriver(sys.argv[1], durable=True)._file('k')\n"
        "log = file.load(-10, None)\n"
        "file.append([Record('new', b'{}')], log.end, None, None)\n"
        "file.commit(b'{\"h\":2}', log.revision)\n"
        "file.trim(1, None)\n"
    )

    def run(folder: Path, *inject: str) -> int:
        calls = "trace=pwrite64,fdatasync,fsync,rename,renameat,renameat2,ftruncate"
        command = ["strace", "-f", "-qq", "-o", str(tmp_path / "trace"), "-e", calls, *inject]
        return subprocess.run([*command, sys.executable, "-c", script, str(folder)], check=False).returncode

    async def prepared(name: str) -> Path:
        folder = tmp_path / name
        await fill(FileDriver(folder), "k", 2)
        log = await FileDriver(folder).load("k")
        await FileDriver(folder).commit("k", b'{"h":1}', revision=log.revision)
        return folder

    assert await to_thread.run_sync(run, await prepared("whole")) == 0
    lines = (tmp_path / "trace").read_text().splitlines()
    calls = [line.split(None, 1)[1].split("(")[0] for line in lines if "(" in line]
    assert {"pwrite64", "fdatasync", "fsync"} < set(calls)
    for name in sorted(set(calls)):
        for number in range(1, calls.count(name) + 1):
            folder = await prepared(f"{name}-{number}")
            inject = ("-e", f"inject={name}:signal=KILL:when={number}")
            assert await to_thread.run_sync(run, folder, *inject) != 0
            log = await FileDriver(folder).load("k", 0)
            bodies = [record("r0").body, record("r1").body, b"{}"]
            assert log.bodies in (bodies[:2], bodies, bodies[1:]), f"killed at {name} number {number}"
            assert log.head in (b'{"h":1}', b'{"h":2}')
            await FileDriver(folder).append("k", [record("after")], since=log.end)
            assert (await FileDriver(folder).load("k")).end == log.end + 1


def _has_strace() -> bool:
    try:
        return subprocess.run(["strace", "-V"], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


# --- files that are not ours, or damaged ---


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a diary\nnot of memkit\n", "not a file of memkit"),
        (b'{"runs": []}\n', "not a file of memkit"),
        (b'{"memkit":2,"key":"k","epoch":"e","base":0,"file":"f"}\n', "version 2"),
        (b'{"memkit":1,"key":"k"}\n', "damaged"),
        (b'{"memkit":"one"}\n', "version"),
        (b"\x80\x00\xff" * 20_000, "not a file of memkit"),
    ],
)
async def test_a_foreign_file_is_an_error_and_stays_as_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    await fill(FileDriver(tmp_path), "k", 1)
    path = the_file(tmp_path)
    path.write_bytes(content)
    driver = FileDriver(tmp_path)
    with pytest.raises(FormatError, match=said):
        await driver.load("k")
    with pytest.raises(FormatError, match=said):
        await driver.append("k", [record("a")])
    with pytest.raises(FormatError, match=said):
        await driver.commit("k", b"{}", revision="")
    assert path.read_bytes() == content
    assert [key async for key in driver.list_keys()] == []


async def test_a_line_lost_in_the_middle_is_an_error_not_a_shorter_history(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    for number in range(20):
        await driver.append("k", [record(f"r{number}", 9_000)], since=number)
    path = the_file(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5] + lines[6:]))
    with pytest.raises(FormatError, match="entry 5 follows entry 3"):
        await FileDriver(tmp_path).load("k")
    newest = await FileDriver(tmp_path).load("k", -3)
    assert newest.bodies == [record(f"r{n}", 9_000).body for n in (17, 18, 19)]


# --- disks that are full, folders that are closed ---


@contextmanager
def tiny_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting needs root: a full disk was not tried")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_loses_nothing_and_works_again_when_there_is_room(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as folder:
        ballast = folder / "ballast"
        ballast.write_bytes(b"x" * 20_000)
        driver = FileDriver(folder)
        stored = 0

        async def fill_it() -> None:
            nonlocal stored
            while True:
                await driver.append("k", [record(f"r{stored}", 5_000)], since=stored)
                stored += 1

        with pytest.raises(DriverError, match="no room; nothing was stored") as caught:
            await fill_it()
        assert caught.value.retryable
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC
        log = await FileDriver(folder).load("k", 0)
        assert log.end == stored > 5
        with pytest.raises(DriverError):
            await driver.append("another", [record("a", 20_000)])
        assert (await driver.load("another")).epoch == ""
        with pytest.raises(DriverError, match="no room"):
            await driver.trim("k", 2)  # what stays is written anew before the old goes
        assert (await FileDriver(folder).load("k", 0)).bodies == log.bodies
        ballast.unlink()
        assert await driver.trim("k", stored - 2) == stored - 2
        assert (await driver.append("k", [record(f"r{stored}", 5_000)], since=stored)).position == stored
        assert not list(folder.glob("*.tmp"))


async def test_a_closed_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    await fill(driver, "k", 2)
    script = (
        "import anyio, os, sys\n"
        "from memkit import DriverError, FileDriver, Record\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "async def main():\n"
        "    driver = FileDriver(sys.argv[1])\n"
        "    print((await driver.load('k')).end)\n"
        "    for key in ('k', 'new'):\n"
        "        try: await driver.append(key, [Record('x', b'{}')], since=2)\n"
        "        except DriverError as error: print(error.retryable, error)\n"
        "anyio.run(main)\n"
    )
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    the_file(tmp_path).chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        result = await to_thread.run_sync(
            lambda: subprocess.run(
                [sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True
            )
        )
    except subprocess.CalledProcessError as error:
        if "PermissionError" in error.stderr or "ModuleNotFoundError" in error.stderr:
            pytest.skip(f"the interpreter is not readable for another user: {error.stderr[-200:]}")
        raise
    finally:
        tmp_path.chmod(0o755)
    end, *errors = result.stdout.splitlines()
    assert end == "2"
    assert [error.split()[0] for error in errors] == ["False", "False"]
    assert all("not writable for this process; nothing was stored" in error for error in errors)


# --- locks ---


async def test_readers_wait_for_nobody_and_writers_say_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "LOCK_TIMEOUT", 0.1)
    driver = FileDriver(tmp_path)
    await fill(driver, "k", 2)
    with the_file(tmp_path).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert (await driver.load("k")).end == 2
        with pytest.raises(DriverError, match="other processes have held") as caught:
            await driver.append("k", [record("a")], since=2)
        assert caught.value.retryable
        await driver.append("another", [record("a")])
    assert (await driver.append("k", [record("a")], since=2)).position == 2


async def test_many_waiting_tasks_take_one_thread_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = most = 0
    original = store.ConversationFile.append

    def watched(self: store.ConversationFile, *args: object) -> object:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return original(self, *args)  # type: ignore[arg-type]
        finally:
            inside -= 1

    monkeypatch.setattr(store.ConversationFile, "append", watched)
    driver = FileDriver(tmp_path)
    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(lambda n=number: driver.append("k", [record(f"r{n}")]))
    assert most == 1
    assert (await driver.load("k")).end == 50


# --- what an operation touches ---


async def test_an_append_reads_no_more_of_a_long_log_than_of_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    pread = os.pread

    def counting(fd: int, size: int, offset: int) -> bytes:
        data = pread(fd, size, offset)
        read.append(len(data))
        return data

    seen: dict[int, list[int]] = {}
    for count in (10, 3_000):
        driver = FileDriver(tmp_path)
        await fill(driver, f"k{count}", count)
        monkeypatch.setattr(os, "pread", counting)
        for fresh in (driver, FileDriver(tmp_path)):
            read.clear()
            await fresh.append(f"k{count}", [record("new" + str(id(fresh)))], since=count + (fresh is not driver))
            seen.setdefault(count, []).append(sum(read))
        read.clear()
        await FileDriver(tmp_path).load(f"k{count}", -5)
        seen[count].append(sum(read))
        monkeypatch.setattr(os, "pread", pread)
    assert seen[10][0] < 200, "a warm append reads the header, to see that the file is the same"
    assert seen[3_000][0] < 200
    assert seen[3_000][1] <= 2 * 4096 + 512
    assert seen[3_000][2] <= 40_000


async def test_durable_syncs_the_file_and_the_folder_of_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append("data " + os.readlink(f"/proc/self/fd/{fd}")))
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append("all " + os.readlink(f"/proc/self/fd/{fd}")))
    driver = FileDriver(tmp_path, durable=True)
    await driver.append("k", [record("a")])
    path = the_file(tmp_path)
    assert synced == [f"data {path}", f"all {tmp_path}"]
    synced.clear()
    await driver.append("k", [record("b")], since=1)
    assert synced == [f"data {path}"]
    synced.clear()
    await FileDriver(tmp_path).append("k", [record("c")], since=2)
    assert synced == []


async def test_an_append_that_fails_half_way_is_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FileDriver(tmp_path)
    await fill(driver, "k", 2)
    before = the_file(tmp_path).read_bytes()
    pwrite = os.pwrite

    def half(fd: int, data: bytes, offset: int) -> int:
        if len(data) < 20:
            raise OSError(errno.EIO, "broken disk")
        return pwrite(fd, data[: len(data) // 2], offset)

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(DriverError, match="broken disk"):
        await driver.append("k", [record("a", 500)], since=2)
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert the_file(tmp_path).read_bytes() == before
    assert (await driver.append("k", [record("a", 500)], since=2)).position == 2


async def test_any_slice_of_a_long_log_is_found(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    bodies: list[bytes] = []
    for number in range(120):
        batch = [record(f"r{number}-{n}", 37 * number % 4_000) for n in range(1 + number % 4)]
        await driver.append("k", batch, since=len(bodies))
        bodies += [item.body for item in batch]
        if number % 7 == 0:
            log = await driver.load("k", 0, 0)
            await driver.commit("k", json.dumps({"n": number}).encode(), revision=log.revision)
    await driver.trim("k", 33)
    for start in range(33, len(bodies), 5):
        for stop in (start + 1, start + 9, len(bodies)):
            log = await driver.load("k", start, stop)
            assert (log.start, log.bodies) == (start, bodies[start:stop])


async def test_a_page_is_bounded_in_bytes_and_the_rest_is_in_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_LOAD", 100_000)
    driver = FileDriver(tmp_path)
    bodies = [record(f"r{number}", 30_000).body for number in range(30)]
    for number, body in enumerate(bodies):
        await driver.append("k", [Record(f"r{number}", body)], since=number)
    found: list[bytes] = []
    stop, loads = 30, 0
    while stop:
        log = await driver.load("k", 0, stop)
        assert 1 <= len(log.bodies) < 15
        found[:0] = log.bodies
        stop, loads = log.start, loads + 1
    assert found == bodies
    assert loads > 3


async def test_a_line_that_is_rolled_back_between_two_reads_is_not_shown_beside_what_is_there_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FileDriver(tmp_path)
    await fill(driver, "k", 1_000)
    path = the_file(tmp_path)
    size = path.stat().st_size
    before = await driver.load("k", 0)
    await driver.commit("k", b'{"n":1}', revision=before.revision)
    pread = os.pread
    large: list[int] = []

    def rolling_back(fd: int, count: int, offset: int) -> bytes:
        if count > store.BLOCK:
            large.append(count)
            os.truncate(path, size)
        return pread(fd, count, offset)

    monkeypatch.setattr(os, "pread", rolling_back)
    assert await driver.load("k", 0) == before
    assert len(large) == 2, "one try, and the one after it"


async def test_a_head_that_is_replaced_between_two_reads_makes_nobody_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FileDriver(tmp_path)
    await fill(driver, "k", 1_000)
    revision = (await driver.load("k", 0, 0)).revision
    revision = await driver.commit("k", b'{"n":1}', revision=revision)
    before = await driver.load("k", 0)
    pread = os.pread
    large: list[int] = []

    def committing(fd: int, count: int, offset: int) -> bytes:
        if count > store.BLOCK and not large:
            large.append(count)
            driver._file("k").commit(b'{"n":2}', revision)
        elif count > store.BLOCK:
            large.append(count)
        return pread(fd, count, offset)

    monkeypatch.setattr(os, "pread", committing)
    assert await driver.load("k", 0) == before
    assert len(large) == 1
    assert (await driver.load("k", 0, 0)).head == b'{"n":2}'


@pytest.mark.parametrize("count", [161, 1_001, 3_001])
async def test_a_long_line_before_short_ones_is_read_in_a_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    driver = FileDriver(tmp_path)
    await driver.append("k", [record("long", 1_000_000)])
    for number in range(1, 3_001):
        driver._file("k").append([record(f"r{number}")], number, None, None)
    pread = os.pread
    read: list[int] = []

    def counting(fd: int, size: int, offset: int) -> bytes:
        read.append(size)
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", counting)
    assert len((await driver.load("k", -count)).bodies) == count
    assert len(read) < 12
    assert sum(read) < 6_000_000


# --- what must be gone ---


async def test_an_old_head_and_a_redacted_body_leave_no_trace(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    epoch = await fill(driver, "k", 3)
    revision = (await driver.load("k", 0, 0)).revision
    revision = await driver.commit("k", b'{"summary":"SECRET-1"}', revision=revision)
    await driver.commit("k", b'{"summary":"public"}', revision=revision)
    assert b"SECRET" not in the_file(tmp_path).read_bytes()
    await driver.append("k", [Record("s", b'{"text":"SECRET-2"}'), Record("t", b"\xffSECRET-3")], since=3)
    await driver.redact("k", {3: b"{}", 4: b"{}"}, epoch=epoch)
    content = the_file(tmp_path).read_bytes()
    assert b"SECRET" not in content
    assert b"U0VDUkVU" not in content, "not in base64 either"
    log = await FileDriver(tmp_path).load("k", 0)
    assert log.bodies[3:] == [b"{}", b"{}"]
    assert log.head == b'{"summary":"public"}'
    with pytest.raises(ConflictError):
        await driver.append("k", [Record("s", b'{"text":"SECRET-2"}')], since=3)


def test_a_head_of_any_length_is_blanked_in_its_place() -> None:
    for head in (b"{}", b'{"a":1}', b"", b"\0", b"x" * 1000):
        line = layout.head_line(7, "e.1", None, head)
        blank = layout.blanked(line)
        assert len(blank) == len(line)
        assert blank.endswith(b"}\n")
        assert json.loads(blank)["dead"] == 0
        assert layout.is_head(blank)
        assert layout.position_at(blank) == 7


async def test_a_commit_in_the_place_of_an_expired_conversation_is_kept(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    old = await fill(driver, "k", 2)
    await driver.expire("k", -1)
    revision = await driver.commit("k", b'{"new":1}', revision="")
    for reader in (driver, FileDriver(tmp_path)):
        log = await reader.load("k", 0)
        assert (log.end, log.head, log.revision) == (0, b'{"new":1}', revision)
        assert log.epoch != old
    assert (await driver.append("k", [record("a")])).position == 0


async def test_one_driver_serves_many_event_loops_at_once(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)

    async def write(name: str) -> None:
        for number in range(50):
            await driver.append("k", [record(f"{name}{number}")])

    async with anyio.create_task_group() as tasks:
        for name, backend in (("a", "asyncio"), ("b", "trio"), ("c", "asyncio")):
            tasks.start_soon(lambda name=name, backend=backend: to_thread.run_sync(
                lambda: anyio.run(write, name, backend=backend)
            ))  # fmt: skip
    assert (await driver.load("k")).end == 150


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_child_that_was_forked_meanwhile_keeps_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FileDriver(tmp_path)
    await fill(driver, "k", 1)
    pwrite, children = os.pwrite, []

    def forking(fd: int, data: bytes, offset: int) -> int:
        child = os.fork()
        if child == 0:
            signal.pause()  # with the locked file open
        children.append(child)
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", forking)
    await driver.append("k", [record("a")], since=1)
    monkeypatch.setattr(os, "pwrite", pwrite)
    try:
        assert (await FileDriver(tmp_path).append("k", [record("b")], since=2)).position == 2
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


async def test_a_link_to_the_old_file_does_not_catch_an_append(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    await fill(driver, "k", 5)
    path = the_file(tmp_path)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: driver.append("k", [record("late")], since=5))
            await anyio.sleep(0.05)
            backup = path.with_suffix(".backup")
            os.link(path, backup)
            copy = path.with_suffix(".copy")
            copy.write_bytes(path.read_bytes())
            copy.replace(path)  # as a trim does
            fcntl.flock(held, fcntl.LOCK_UN)
    assert (await FileDriver(tmp_path).load("k")).end == 6
    assert b"late" not in backup.read_bytes()


async def test_what_a_killed_trim_has_left_goes_with_the_conversation(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    await fill(driver, "k", 5)
    left = the_file(tmp_path).with_name(the_file(tmp_path).name + ".tmp")
    left.write_bytes(b"SECRET")
    await driver.trim("k", 2)
    assert not left.exists()
    left.write_bytes(b"SECRET")
    await driver.delete("k")
    assert not list(tmp_path.iterdir())


async def test_a_long_first_append_is_many_lines_and_read_like_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FileDriver(tmp_path)
    records = [record(f"r{number}", 500) for number in range(3_000)]
    assert (await driver.append("k", records)).end == 3_000
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: read.append(size) or pread(fd, size, at))
    log = await FileDriver(tmp_path).load("k", -10)
    assert log.bodies == [item.body for item in records[-10:]]
    assert sum(read) < 150_000
    assert (await FileDriver(tmp_path).append("k", records)).position == 0


async def test_old_heads_do_not_pile_up(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    await fill(driver, "k", 3)
    revision = (await driver.load("k", 0, 0)).revision
    for number in range(600):
        revision = await driver.commit("k", b'{"n":%d,"pad":"%b"}' % (number, b"x" * 1_000), revision=revision)
    assert the_file(tmp_path).stat().st_size < 300 * 1_200
    log = await FileDriver(tmp_path).load("k", 0)
    assert (len(log.bodies), log.revision) == (3, revision)
    assert log.head is not None
    assert json.loads(log.head)["n"] == 599


async def test_a_damaged_conversation_can_be_cleared(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    await fill(driver, "k", 2)
    await driver.commit("k", b'{"h":1}', revision=(await driver.load("k")).revision)
    await driver.append("k", [record("a")], since=2)
    path = the_file(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"head":{"h":1}', b'"dead":0      '))
    for call in (driver.load("k"), FileDriver(tmp_path).append("k", [record("b")])):
        with pytest.raises(FormatError, match="blanked out"):
            await call
    assert await FileDriver(tmp_path).delete("k")
    assert (await driver.load("k")).epoch == ""

"""`Memory` on real files: shared by processes, damaged, foreign, not writable, on a full disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from memkit.content import text_of
from memkit.driver import Driver, Record
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import DriverError, FormatError
from memkit.memory import Memory
from memkit.strategies import everything, last_runs
from tests.memories import ids, inputs, run, store, stored
from tests.memory_writer import KEY

pytestmark = pytest.mark.anyio


async def test_processes_lose_and_double_nothing(tmp_path: Path) -> None:
    count = 30
    writers = {"one": "asyncio", "two": "trio", "three": "asyncio"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.memory_writer", loop, tmp_path, name, str(count)],
            cwd=Path(__file__).parents[1],
        )
        for name, loop in writers.items()
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    async with Memory(FileDriver(tmp_path), KEY, strategy=everything) as memory:
        runs = [(text_of(run.input), run.output, run.status) for run in memory.view().runs]
        for name in writers:
            mine = [run for run in runs if run[0].startswith(name)]
            kept = [n for n in range(count) if n % 10 != 9]
            assert mine == [(f"{name} {n}", "yes", "complete") for n in kept]
        assert len(runs) == 3 * 27
        assert memory.meta == {"count": 3 * count}


# --- what cannot be read ---


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"v":2,"kind":"run","id":"new","input":"x"}', "version 2 of the format"),
        (b'{"v":1,"kind":"poll","id":"new"}', "stored by a newer version; upgrade memkit"),
        (b"gibberish", "not what memkit stores"),
        (b'{"v":1,"kind":"run","id":"new","inp', "not what memkit stores"),
    ],
)
@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_an_entry_that_cannot_be_read(tmp_path: Path, kind: str, body: bytes, message: str) -> None:
    driver: Driver = InMemoryDriver() if kind == "memory" else FileDriver(tmp_path)
    await store(driver, "k", map(run, range(5)))
    await driver.append("k", [Record("new", body)])
    before = await driver.load("k")
    with pytest.raises(FormatError, match=rf"conversation 'k', entry 5: .*{message}"):
        await Memory(driver, "k").__aenter__()
    assert await driver.load("k") == before
    # What need not be read does no harm.
    await store(driver, "k", map(run, range(100, 200)))
    async with Memory(driver, "k", strategy=last_runs(10)) as memory:
        await memory.add("more", "yes")
        assert inputs(memory)[-1] == "more"
        with pytest.raises(FormatError, match="conversation 'k', entry 5"):
            await memory.retract("r1")
        with pytest.raises(FormatError, match="conversation 'k', entry 5"):
            assert [run async for run in memory.history()]


async def test_a_head_that_cannot_be_read(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    await store(driver, "k", [run(0)])
    async with Memory(driver, "k") as memory:
        log = await driver.load("k")
        await driver.commit("k", b'{"v":2,"kind":"head"}', revision=log.revision)
        before = await driver.load("k")
        with pytest.raises(FormatError, match=r"conversation 'k', head: .*version 2"):
            await Memory(driver, "k").__aenter__()
        with pytest.raises(FormatError, match="conversation 'k', head"):
            await memory.update_meta({"a": 1})
        assert await driver.load("k") == before


def the_file(folder: Path) -> Path:
    (path,) = folder.glob("*.jsonl")
    return path


async def test_a_file_that_ends_in_the_middle_of_a_line(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    await store(driver, "k", [run(0), run(1)])
    async with Memory(driver, "k") as memory:
        await memory.append(run(2))
    path = the_file(tmp_path)
    os.truncate(path, path.stat().st_size - 20)
    async with Memory(FileDriver(tmp_path), "k") as memory:
        assert ids(memory.view().runs) == ["r0", "r1"]
        await memory.append(run(2))
        assert ids(memory.view().runs) == ["r0", "r1", "r2"]
    assert await stored(driver, "k") == [run(0), run(1), run(2)]
    assert path.with_name(f"{path.name}.torn").stat().st_size > 20


async def test_a_file_with_a_hole(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    for n in range(10):
        await store(driver, "k", [run(n)])
    path = the_file(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join(lines[:5] + lines[6:])
    path.write_bytes(damaged)
    with pytest.raises(FormatError, match=r"is damaged: .*restore it from a backup"):
        await Memory(FileDriver(tmp_path), "k").__aenter__()
    assert path.read_bytes() == damaged


async def test_a_file_of_another_program(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    await store(driver, "k", [run(0)])
    path = the_file(tmp_path)
    path.write_bytes(b"%PDF-1.7\nnothing of ours")
    with pytest.raises(FormatError, match=r"is not a file of memkit .*move it away"):
        await Memory(FileDriver(tmp_path), "k").__aenter__()
    assert path.read_bytes() == b"%PDF-1.7\nnothing of ours"
    path.rename(tmp_path / "elsewhere.pdf")
    async with Memory(driver, "k") as memory:
        await memory.add("anew", "yes")
        assert inputs(memory) == ["anew"]


# --- what cannot be written ---


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that any user can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


READ_ONLY = dedent(
    """
    import os, sys, anyio
    from memkit import DriverError, FileDriver, Memory

    async def main():
        if os.getuid() == 0:  # whom no permission stops
            os.setuid(65534)
        async with Memory(FileDriver(sys.argv[1]), sys.argv[2]) as memory:
            print(len(memory.view().runs))
            for call in (memory.add("x", "y"), memory.update_meta({"a": 1}), memory.clear()):
                try:
                    await call
                except DriverError as error:
                    print(error.retryable, error)

    anyio.run(main)
    """
)


@pytest.mark.parametrize("key", ["k", "new"])
async def test_a_folder_that_must_not_be_written(public_folder: Path, key: str) -> None:
    driver = FileDriver(public_folder)
    await store(driver, "k", [run(0)])
    path = the_file(public_folder)
    before = path.read_bytes()
    path.chmod(0o444)
    public_folder.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY, public_folder, key],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    number, *errors = done.stdout.splitlines()
    assert number == ("1" if key == "k" else "0")
    assert len(errors) == (3 if key == "k" else 2)
    for error in errors:
        assert error.startswith(f"False the file of '{key}' could not be used: ")
        assert "not writable for this process" in error
    assert path.read_bytes() == before
    path.chmod(0o644)
    public_folder.chmod(0o755)
    async with Memory(driver, "k") as memory:
        await memory.add("later", "yes")
        assert len(memory.view().runs) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("NOT TESTED: a full disk needs a tmpfs, which only root can mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk(small_disk: Path) -> None:
    driver = FileDriver(small_disk)
    filler = small_disk / "filler"
    async with Memory(driver, "k") as memory:
        await memory.append(run(0))
        before = the_file(small_disk).read_bytes()
        filler.write_bytes(b"x" * 50_000)
        large = run(1, "y" * 30_000)
        for call in (
            lambda: memory.append(large),
            lambda: memory.append(large),
            lambda: memory.update_meta({"a": "z" * 30_000}),
            lambda: memory.add("z" * 30_000, "no"),
        ):
            with pytest.raises(DriverError, match=r"'k' .*there is no room; nothing was stored") as caught:
                await call()
            assert caught.value.retryable
            assert the_file(small_disk).read_bytes() == before
        assert ids(memory.view().runs) == ["r0"]
        filler.unlink()
        await memory.append(large)
        await memory.update_meta({"a": 1})
        assert ids(memory.view().runs) == ["r0", "r1"]
    assert await stored(driver, "k") == [run(0), large]

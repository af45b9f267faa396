"""What the design's figures rest on, counted: tokenisations, calls, bytes, decodings. No clock decides a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from benchmarks.figures import FIGURES, results
from benchmarks.measure import Row
from benchmarks.page import MARK
from memkit import (
    Driver,
    FileDriver,
    InMemoryDriver,
    JsonCodec,
    Memory,
    Run,
    TokenCounter,
    conversation,
    everything,
    prune,
)
from memkit.drivers.sqlite import SqliteDriver
from memkit.run import Entry
from memkit.tokens import cost_of
from tests.memories import Spy, Words, store

SHORT, LONG = 300, 10_000

pytestmark = pytest.mark.anyio


def alike(number: int) -> Run:
    """Return a run that takes as many bytes as any other."""
    return Run(f"{number:06d}", "what is it?", output="it is so, as ever", created_at=1.5)


@pytest.fixture(params=["memory", "file", "sqlite"])
async def driver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Driver]:
    if request.param == "sqlite":
        async with SqliteDriver(tmp_path / "talks.db") as database:
            yield database
    else:
        yield InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path)


async def test_a_prompt_tokenises_reads_and_asks_the_same_after_any_history(driver: Driver) -> None:
    """Of a history that is counted under another name, only what is loaded is counted, the same of any length."""
    costs: list[tuple[int, dict[str, int], dict[str, int]]] = []
    for size in (SHORT, LONG):
        await store(driver, f"{size:06d}", map(alike, range(size)))
        spy, words = Spy(driver), Words()
        async with Memory(spy, f"{size:06d}", strategy=prune(800, counter=words)) as memory:
            assert len(memory.view().runs) == 100
            memory.messages("what else?")
            words.counted.remove("what else?")
            costs.append((len(words.counted), dict(spy.calls), dict(spy.bytes)))
    few, many = costs
    assert many == few
    assert few[0] == 2 * 200  # input and output of the page that fits, and of the page that shows that it does


async def test_pruning_for_the_first_time_costs_the_same_after_any_history() -> None:
    counted: list[int] = []
    for size in (SHORT, LONG):
        words = Words()
        async with Memory(InMemoryDriver(), "k", strategy=everything) as memory:
            await memory.append(*map(alike, range(size)))
            assert len(prune(800, counter=words)(memory.view()).runs) == 100
        counted.append(len(words.counted))
    assert counted == [2 * 101] * 2  # what fits, and one run more


@pytest.mark.parametrize("has_gap", [False, True])
async def test_a_prompt_after_an_append_prices_one_run(has_gap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    priced: list[str] = []

    def pricing(run: Run, counter: TokenCounter) -> int:
        priced.append(run.id)
        return cost_of(run, counter)

    driver, words = InMemoryDriver(), Words()
    await store(driver, "k", map(alike, range(SHORT)))
    async with Memory(driver, "k", strategy=prune(800, counter=words)) as memory:
        if has_gap:
            await memory.retract(alike(SHORT - 50))
        memory.messages()
        monkeypatch.setattr(conversation, "cost_of", pricing)
        for number in range(SHORT, SHORT + 5):
            await memory.append(alike(number))
            seen = memory.view()
        assert priced == [f"{number:06d}" for number in range(SHORT, SHORT + 5)]
        async with Memory(driver, "k", strategy=prune(800, counter=words)) as other:
            assert (seen.runs, list(seen.positions)) == (other.view().runs, list(other.view().positions))


async def test_loading_decodes_each_entry_once(driver: Driver) -> None:
    await store(driver, "k", map(alike, range(LONG)))
    codec = Decodings()
    spy = Spy(driver)
    async with Memory(spy, "k", strategy=everything, codec=codec) as memory:
        memory.messages()
    assert codec.decoded == LONG
    assert spy.bytes["load"] == LONG * len(JsonCodec().encode(alike(0)))


class Decodings(JsonCodec):
    """A codec that notes how much it decodes."""

    decoded = 0

    def decode(self, body: bytes, /) -> Entry:
        self.decoded += 1
        return super().decode(body)


async def test_an_append_writes_the_same_after_any_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    pwrite = os.pwrite

    def counting(fd: int, data: bytes, offset: int) -> int:
        written.append(len(data))
        return pwrite(fd, data, offset)

    seen: list[list[int]] = []
    for size in (SHORT, LONG):
        driver = FileDriver(tmp_path)
        await store(driver, f"{size:06d}", map(alike, range(size)))
        async with Memory(driver, f"{size:06d}") as memory:
            written.clear()
            monkeypatch.setattr(os, "pwrite", counting)
            await memory.append(alike(999_999))
            monkeypatch.setattr(os, "pwrite", pwrite)
            seen.append(written[:])
    few, many = seen
    assert len(few) == len(many) == 1
    assert abs(few[0] - many[0]) <= 2  # a position of more digits
    assert few[0] <= len(JsonCodec().encode(alike(0))) + 100


NOT_IMPORTED = (
    "redis", "aioboto3", "botocore", "httpx", "openai", "rich", "griptape", "langchain_core", "pydantic",
    "tiktoken", "toktok", "aiofiles", "sqlite3", "asyncio", "trio", "unittest", "hypothesis", "numpy", "requests",
)  # fmt: skip


def test_importing_memkit_loads_no_client_no_framework_and_no_vocabulary() -> None:
    program = f"import sys, memkit; print([name for name in {NOT_IMPORTED!r} if name in sys.modules])"
    assert python("-c", program) == "[]\n"


def test_what_a_run_takes_in_memory_and_a_turn_in_the_store(tmp_path: Path) -> None:
    """The command measures both in bytes, so it may judge them here."""
    out = tmp_path / "out.json"
    said = python("-m", "benchmarks", "turn", "memory", "--quick", "--check", "--json", str(out))
    assert "NOT reached" not in said
    written = json.loads(out.read_bytes())
    reached = {one["name"]: one["reached"] for one in written["figures"] if one["reached"] is not None}
    assert reached == {"a turn of 20 tool calls stored as they come": True, "memory": True}
    assert set(written["groups"]) == {"turn", "memory"}
    assert {"python", "cpu", "versions", "seed", "date"} <= set(written["about"])
    assert "extrapolated" in said

    page = tmp_path / "page.md"
    page.write_text(f"# Mine\n\n{MARK}\nold tables\n")
    python("-m", "benchmarks.page", str(page), str(out))
    tables = page.read_text().removeprefix(f"# Mine\n\n{MARK}")
    assert "old tables" not in tables
    for row in [row for rows in written["groups"].values() for row in rows]:
        assert f"\n| {row['what']} | {row['measured']} | {row['limit']} | " in tables
    assert tables.count("| reached |") == 2 * len(reached)


def python(*arguments: str) -> str:
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=root)
    return done.stdout


# --- the table of the design ---


def row(what: str, ratio: float, target: str, *, reached: bool) -> Row:
    return Row(what, "1 ms (1 ms to 2 ms)", "1 ms", ratio, target, reached)


def test_a_figure_that_nobody_measured_is_neither_reached_nor_missed() -> None:
    found = results({})
    assert {result.measured for result in found} == {"not measured"}
    assert {result.reached for result in found} == {None}
    assert list(dict.fromkeys(result.name for result in found)) == [figure.name for figure in FIGURES]


def test_one_row_that_misses_is_the_one_that_is_shown() -> None:
    rows = [
        row("append, 10 runs held", 1.1, "at most 1.2 x", reached=True),
        row("append, 100 runs held", 1.4, "at most 1.2 x", reached=False),
        row("append, 1,000 runs held", 1.3, "at most 1.2 x", reached=False),
    ]
    (result,) = [one for one in results({"append": rows}) if one.reached is not None]
    assert (result.name, result.reached) == ("append, file", False)
    assert result.measured == "1.40 x, 2 of 3 rows miss it"


def test_of_several_that_reach_it_the_nearest_is_shown() -> None:
    rows = [
        row("Redis, against bare RPUSH in redis-py pipelines of 128, x 10", 1.2, "at least 0.9 x", reached=True),
        row("Redis, against bare RPUSH in redis-py pipelines of 128, x 50", 0.95, "at least 0.9 x", reached=True),
    ]
    (result,) = [one for one in results({"concurrency": rows}) if one.reached is not None]
    assert (result.reached, result.measured) == (True, "0.95 x, the worst of 2 rows")

"""Which entries a handle reads, and that what it then shows is what the whole log would show."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from anyio import fail_after

from memkit.codec import JsonCodec
from memkit.conversation import View
from memkit.driver import Driver, Log
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import BudgetError, ConflictError, DriverError, FormatError
from memkit.memory import Memory
from memkit.run import Amend, Extend, Retract, Run
from memkit.strategies import Strategy, compose, everything, last_runs, pin, prune, since, where
from memkit.window import Window
from tests.memories import Spy, Stingy, Words, ids, inputs, run, store, summarize

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "file"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path)


def every_50th(run: Run) -> bool:
    return int(run.id[1:]) % 50 == 0


# --- entering ---


async def test_entering_reads_one_page(driver: Driver) -> None:
    await store(driver, "k", map(run, range(500)))
    spy = Spy(driver)
    async with Memory(spy, "k"):
        assert spy.slices == [(-100, None)]
        assert dict(spy.calls) == {"load": 1}
        assert spy.bodies["load"] == 100


async def test_a_prompt_costs_the_same_after_100_and_100_000_runs(driver: Driver) -> None:
    spies: list[Spy] = []
    for number in (100, 100_000):
        key = f"{number} runs"
        await store(driver, key, map(run, range(number)))
        spies.append(Spy(driver))
        async with Memory(spies[-1], key, counter=Words()) as memory:
            memory.messages("What else?")
            await memory.add("What else?", "Nothing.")
    few, many = spies
    assert dict(many.calls) == dict(few.calls) == {"load": 1, "append": 1}
    assert dict(many.bodies) == dict(few.bodies) == {"load": 100, "append": 1}
    assert many.bytes.total() <= 1.2 * few.bytes.total()


@pytest.mark.parametrize(
    ("strategy", "pages", "kept"),
    [
        (last_runs(0), [100], 0),
        (last_runs(100), [100], 100),
        (last_runs(101), [100, 100], 101),
        (last_runs(300), [100, 100, 200], 300),
        (last_runs(50, step=32), [100], 72),
        (since(940.0), [100], 60),
        (since(800.0), [100, 100, 200], 200),
        (prune(200, counter=Words()), [100], 66),
        (prune(300, counter=Words()), [100, 100], 100),
        (prune(900, counter=Words()), [100, 100, 200], 300),
        (compose(where(every_50th), last_runs(3)), [100, 100], 3),
        (compose(last_runs(120), where(every_50th)), [100, 100], 2),
        (pin(["r750"], last_runs(5)), [100, 100, 200], 6),
        (where(every_50th), [100, 100, 200, 400, 200], 20),
        (everything, [100, 100, 200, 400, 200], 1000),
        (compose(), [100, 100, 200, 400, 200], 1000),
    ],
    ids=lambda value: repr(value).split(" at ")[0],
)
async def test_pages_double_while_the_view_is_open(strategy: Strategy, pages: list[int], kept: int) -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(1000)))
    spy = Spy(driver)
    async with Memory(spy, "k", strategy=strategy) as memory:
        read = [(stop or 1000) - (1000 + start if start < 0 else start) for start, stop in spy.slices]
        assert read == pages
        assert spy.bodies["load"] == sum(pages)
        assert len(memory.view().runs) == kept
        spy.forget()
        await memory.append(run(1000))
        assert ids(memory.view().runs)[-1:] == ["r1000"][:kept]
        assert not spy.slices


async def test_a_long_history_is_joined_a_few_times_however_small_the_pages_of_a_store_are() -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(3_000)))
    seen: list[int] = []

    def noting(view: View) -> View:
        seen.append(len(view.runs))
        return view

    stingy = Stingy(driver, 10)
    async with Memory(stingy, "k", strategy=noting) as memory:
        assert ids(memory.view().runs) == [f"r{n}" for n in range(3_000)]
    assert stingy.calls["load"] == 300
    assert seen == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3000, 3000]  # the last by `memory.view()`


async def test_of_heavy_entries_no_more_are_read_than_there_were() -> None:
    """A page is full of bytes long before it is full of entries, and the strategy wants few of them."""
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(1000)))
    stingy = Stingy(driver, 2)
    async with Memory(stingy, "k", strategy=last_runs(5)) as memory:
        assert len(memory.view().runs) == 5
        assert len(memory.conversation.entries) == 8
    assert stingy.calls["load"] == 4


async def test_a_trim_by_others_in_the_middle_of_reading_back() -> None:
    inner = InMemoryDriver()
    await store(inner, "k", map(run, range(1000)))

    class Trimmed(Stingy):
        async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
            if self.calls["load"] == 7:
                await inner.trim("k", 990)
            return await super().load(key, start, stop)

    async with Memory(Trimmed(inner, 10), "k", strategy=everything) as memory:
        assert ids(memory.view().runs) == [f"r{n}" for n in range(990, 1000)]
        assert (memory.conversation.base, memory.conversation.start) == (990, 990)


async def test_what_is_begun_anew_in_the_middle_of_reading_back() -> None:
    inner = InMemoryDriver()
    await store(inner, "k", map(run, range(1000)))

    class BegunAnew(Stingy):
        async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
            if self.calls["load"] == 7:
                await inner.delete("k")
                await store(inner, "k", map(run, range(2000, 3000)))
            return await super().load(key, start, stop)

    with pytest.raises(ConflictError, match="refresh"):
        async with Memory(BegunAnew(inner, 10), "k", strategy=everything):
            pass


async def test_another_task_that_begins_anew_in_the_middle_of_reading_back() -> None:
    """The window is as long and begins where it did, but not one page of the old log may be in it."""
    inner = InMemoryDriver()
    await store(inner, "k", map(run, range(100)))

    class Refreshed(Stingy):
        async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
            if self.calls["load"] == 7:
                self.calls["load"] += 1
                await inner.delete("k")
                await store(inner, "k", map(run, range(2000, 2100)))
                await window.refresh()
            return await super().load(key, start, stop)

    window = Window(Refreshed(inner, 10), "k", JsonCodec(), None)
    await window.open()
    await window.reach(0)
    assert ids(window.conversation.entries) == [f"r{n}" for n in range(2000, 2100)]


async def test_what_was_read_before_a_failure_is_not_read_again() -> None:
    inner = InMemoryDriver()
    await store(inner, "k", map(run, range(1000)))

    class Failing(Stingy):
        async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
            log = await super().load(key, start, stop)
            if self.calls["load"] % 9 == 0:
                raise DriverError("away for a moment", retryable=True)
            return log

    driver = Failing(inner, 10)
    window = Window(driver, "k", JsonCodec(), None)
    await window.open()
    while window.conversation.start:
        with suppress(DriverError):
            await window.reach(0)
    assert ids(window.conversation.entries) == [f"r{n}" for n in range(1000)]
    assert driver.calls["load"] == 100 + 100 // 8


async def test_reading_back_to_a_position_stops_there() -> None:
    inner = InMemoryDriver()
    await store(inner, "k", map(run, range(1000)))
    driver = Stingy(inner, 2)
    window = Window(driver, "k", JsonCodec(), None)
    await window.open()
    await window.reach(935)
    assert window.conversation.start == 934
    assert driver.calls["load"] == 33


@pytest.mark.parametrize("is_empty", [True, False])
async def test_a_driver_that_leaves_entries_out_is_an_error_not_a_loop(is_empty: bool) -> None:
    inner = InMemoryDriver()
    await store(inner, "k", map(run, range(1000)))

    class Wrong(Stingy):
        async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
            log = await super().load(key, start, stop)
            if stop is None:
                return log
            return msgspec.structs.replace(log, bodies=[] if is_empty else log.bodies[:-1])

    with fail_after(20), pytest.raises(FormatError, match=r"before 990 of 'k'.*driver_checks"):
        async with Memory(Wrong(inner, 10), "k", strategy=everything):
            pass


async def test_a_summary_is_read_back_to_where_it_was_made() -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(1000)))
    summary = await summarize(driver, "k", upto=600, seen=650)
    spy = Spy(driver)
    async with Memory(spy, "k", strategy=last_runs(20)) as memory:
        assert spy.slices == [(-100, None), (800, 900), (600, 800)]
        assert memory.view().summary == summary
        assert len(memory.view().runs) == 20
    async with Memory(spy, "k", strategy=everything) as memory:
        assert memory.conversation.start == 200  # the last entry that it covers is seen, too
        assert (memory.view().summary, len(memory.view().runs)) == (summary, 400)
    async with Memory(spy, "k", strategy=last_runs(500), use_summary=False) as memory:
        assert (memory.view().summary, len(memory.view().runs)) == (None, 500)


async def test_a_stale_summary_is_not_shown_and_its_runs_are_read() -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(1000)))
    await summarize(driver, "k", upto=600, seen=650)
    await store(driver, "k", [Retract("x", "r5", 5)])
    async with Memory(driver, "k", strategy=everything) as memory:
        assert memory.view().summary is None
        assert ids(memory.view().runs) == [f"r{n}" for n in range(1000) if n != 5]


# --- changes at the edges of the window ---


async def test_retracts_that_empty_the_window() -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(500)))
    await store(driver, "k", (Retract(f"x{n}", f"r{n}", n) for n in range(300, 500)))
    spy = Spy(driver)
    async with Memory(spy, "k", strategy=last_runs(10)) as memory:
        assert ids(memory.view().runs) == [f"r{n}" for n in range(290, 300)]
        assert spy.calls["load"] == 4
        assert memory.messages()[0]["content"] == "question 290"


@pytest.mark.parametrize("size", [10, 150])
async def test_changes_of_runs_before_the_window(size: int) -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(300)))
    async with Memory(driver, "k", strategy=last_runs(size)) as memory:
        await memory.amend(run(10).replace(output="amended"))
        await memory.extend("r20", output="extended")
        await memory.retract("r30")
        await memory.amend(run(170).replace(output="amended"))
        await memory.extend("r180", output="extended")
        await memory.retract("r190")
        in_view = [f"r{n}" for n in range(300) if n not in {30, 190}][-size:]
        assert ids(memory.view().runs) == in_view
        here = memory.view().runs
    async with Memory(driver, "k", strategy=everything) as memory:
        runs = {run.id: run for run in memory.view().runs}
        assert runs["r10"].output == runs["r170"].output == "amended"
        assert runs["r20"].output == runs["r180"].output == "extended"
        assert here == memory.view().runs[-size:]


async def test_later_changes_of_a_run_before_the_window_are_known() -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(300)))
    await store(driver, "k", [Retract("x", "r30", 30)])
    await store(driver, "k", map(run, range(300, 500)))
    async with Memory(driver, "k", strategy=last_runs(5)) as memory:
        with pytest.raises(ConflictError, match="taken back"):
            await memory.extend("r30", output="extended")


async def test_changes_of_others_that_empty_the_window() -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(300)))
    async with Memory(driver, "k", strategy=last_runs(90)) as memory:
        await store(driver, "k", (Retract(f"x{n}", f"r{n}", n) for n in range(220, 300)))
        await memory.append(run(300))
        assert ids(memory.view().runs) == [f"r{n}" for n in (*range(131, 220), 300)]
        await store(driver, "k", (Retract(f"y{n}", f"r{n}", n) for n in range(140, 220)))
        await memory.refresh()
        assert ids(memory.view().runs) == [f"r{n}" for n in (*range(51, 140), 300)]


async def test_retracting_one_after_the_other_reads_further_back() -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(300)))
    async with Memory(driver, "k", strategy=last_runs(90)) as memory:
        for n in reversed(range(180, 300)):
            await memory.retract(f"r{n}")
            assert ids(memory.view().runs) == [f"r{m}" for m in range(n - 90, n)]


# --- a handle that lives long ---


async def test_a_long_lived_handle_holds_what_its_strategy_needs() -> None:
    async with Memory(InMemoryDriver(), "k", strategy=last_runs(20)) as memory:
        for n in range(2000):
            await memory.append(run(n))
            assert len(memory.conversation.entries) <= 500
        assert ids(memory.view().runs) == [f"r{n}" for n in range(1980, 2000)]


async def test_a_long_lived_handle_keeps_what_its_summary_needs() -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(200)))
    summary = await summarize(driver, "k", upto=150, seen=190)
    async with Memory(driver, "k", strategy=last_runs(20)) as memory:
        for n in range(200, 1000):
            await memory.append(run(n))
            assert memory.view().summary == summary


@pytest.mark.parametrize("step", [512, "auto"])
async def test_a_long_lived_handle_keeps_what_a_wide_stride_needs(step: Any) -> None:
    """The stride begins many pages before its cut; without its beginning, all that is held would fit."""
    driver, runs = InMemoryDriver(), tuple(map(run, range(1_300)))
    strategy = prune(1_500, counter=Words(), step=step)
    async with Memory(driver, "k", strategy=strategy) as memory:
        for end, new in enumerate(runs, 1):
            await memory.append(new)
            if end > 500 and end % 20 == 0:
                whole = strategy(View(runs=runs[:end], positions=range(end)))
                assert list(memory.view().positions) == list(whole.positions)
                assert memory.view().closed
        assert len(memory.conversation.entries) < 1_200


async def test_a_budget_that_nothing_fits_is_raised_by_view_not_on_entering() -> None:
    driver = InMemoryDriver()
    await store(driver, "k", [run(0, "word " * 50)])
    strategy = prune(10, counter=Words(), on_overflow="raise")
    async with Memory(driver, "k", strategy=strategy) as memory:
        with pytest.raises(BudgetError, match="newest run"):
            memory.messages("x")
        await memory.add("short", "enough")
        assert inputs(memory) == ["short"]


async def test_a_budget_that_nothing_fits_is_not_raised_by_a_handle_that_lives_long() -> None:
    strategy = prune(10, counter=Words(), on_overflow="raise")
    async with Memory(InMemoryDriver(), "k", strategy=strategy) as memory:
        for n in range(600):
            await memory.append(run(n, "word " * 50))
        await memory.append(run(600))
        assert ids(memory.view().runs) == ["r600"]


async def test_entries_of_any_kind_survive_the_edge_of_a_page() -> None:
    driver = InMemoryDriver()
    extends = [Extend(f"x{n}", "r0", 0, output=f"version {n}") for n in range(99)]
    await store(driver, "k", [run(0), *extends, Amend("a", 0, run(0, "amended"))])
    async with Memory(driver, "k") as memory:
        assert [run.output for run in memory.view().runs] == ["amended"]

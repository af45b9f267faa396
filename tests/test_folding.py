"""Summaries as a whole: made, stored, shown, never worse than none, whatever the model or others do meanwhile."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from anyio import Event, create_task_group, fail_after

from memkit import conversation as conversation_module
from memkit.background import Background
from memkit.content import Json, text_of
from memkit.conversation import Summary
from memkit.driver import Driver
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import BudgetError, ClosedError, SummaryError
from memkit.memory import Memory
from memkit.run import Extend, Retract, Run
from memkit.strategies import everything, last_runs
from memkit.summaries import Summarized, SummaryPolicy
from tests.memories import CODEC, Spy, Words, ids, store, stored

pytestmark = pytest.mark.anyio

POLICY = SummaryPolicy(keep=2, every=3)


@pytest.fixture(params=["memory", "file"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path)


def long_run(n: int) -> Run:
    """Return a run of so many words that a summary of it saves some."""
    return Run(f"r{n}", f"question {n} {'word ' * 40}", output="yes", created_at=float(n))


class Reader:
    """A summariser that lists the ids of what it has read, and fails as often as it is told."""

    model = "reader-1"

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.calls: list[tuple[list[str], str | None]] = []
        self.during: Callable[[], Any] | None = None

    async def __call__(self, runs: Sequence[Run], /, *, previous: str | None) -> str:
        self.calls.append((ids(runs), previous))
        if self.during is not None:
            during, self.during = self.during, None
            await during()
        if self.failures > 0:
            self.failures -= 1
            raise RuntimeError("the model is overloaded")
        return ",".join([*([previous] if previous else []), *ids(runs)])


def handle(driver: Driver, summarizer: Any = None, **options: Any) -> Memory:
    return Memory(
        driver, "k", counter=Words(), **{"policy": POLICY, "summarizer": summarizer or Reader(), **options}
    )


def names(start: int, stop: int) -> list[str]:
    return [f"r{n}" for n in range(start, stop)]


def covered(memory: Memory) -> list[str]:
    summary = memory.view().summary
    return text_of(summary.content).split(",") if summary else []


async def stored_summary(driver: Driver, key: str = "k") -> Summary | None:
    head = (await driver.load(key, 0, 0)).head
    return None if head is None else CODEC.decode_head(head).summary


async def until(condition: Callable[[], bool]) -> None:
    with fail_after(5):
        while not condition():
            await anyio.sleep(0)


# --- making one ---


async def test_what_is_due_is_folded_and_the_rest_is_shown(driver: Driver) -> None:
    reader = Reader()
    async with handle(driver, reader) as memory:
        for n in range(5):
            assert not await memory.summarize()
            await memory.append(long_run(n))
        assert await memory.summarize()
        assert (covered(memory), ids(memory.view().runs)) == (names(0, 3), names(3, 5))
        for n in range(5, 8):
            await memory.append(long_run(n))
        assert await memory.summarize()
        assert (covered(memory), ids(memory.view().runs)) == (names(0, 6), names(6, 8))
        assert reader.calls == [(names(0, 3), None), (names(3, 6), "r0,r1,r2")]
        assert not await memory.summarize()
    summary = await stored_summary(driver)
    assert summary is not None
    assert (summary.upto, summary.upto_id, summary.seen, summary.model) == (6, "r5", 8, "reader-1")
    assert summary.counts is not None
    assert (summary.counts.name, summary.counts.messages) == ("words", 1)
    assert ids(await stored(driver, "k")) == names(0, 8)


async def test_a_backlog_is_folded_in_several_calls() -> None:
    driver, reader = InMemoryDriver(), Reader()
    await store(driver, "k", map(long_run, range(1_000)))
    async with handle(driver, reader, policy=SummaryPolicy(keep=2, every=3, max_input_tokens=4_300)) as memory:
        assert await memory.summarize()
        assert (covered(memory), ids(memory.view().runs)) == (names(0, 998), names(998, 1_000))
    # The previous summary takes some of every call but the first.
    assert [len(read) for read, _ in reader.calls] == [100, *[99] * 9, 7]
    assert [*chain.from_iterable(read for read, _ in reader.calls)] == names(0, 998)


async def test_runs_that_are_covered_already_come_along_for_context() -> None:
    driver, reader = InMemoryDriver(), Reader()
    policy = SummaryPolicy(keep=0, every=2, overlap=3)
    for n in range(6):
        async with handle(driver, reader, policy=policy) as memory:
            await memory.append(long_run(n))
            await memory.summarize()
    assert [read for read, _ in reader.calls] == [names(0, 2), names(0, 4), names(1, 6)]


async def test_it_is_there_after_a_restart_and_for_handles_that_make_none(driver: Driver) -> None:
    async with handle(driver) as memory:
        await memory.append(*map(long_run, range(10)))
        await memory.summarize()
        made = memory.view().summary
    async with Memory(driver, "k") as memory:
        assert (memory.view().summary, ids(memory.view().runs)) == (made, names(8, 10))
        prompt = memory.messages("go on")
        assert prompt[0]["role"] == "system"
        assert "<summary>\nr0,r1," in prompt[0]["content"]
    async with Memory(driver, "k", use_summary=False) as memory:
        assert ids(memory.view().runs) == names(0, 10)


async def test_it_is_there_in_another_process(tmp_path: Path) -> None:
    async with handle(FileDriver(tmp_path)) as memory:
        await memory.append(*map(long_run, range(5)))
        await memory.summarize()
    code = """
import anyio, sys, memkit
async def main():
    async with memkit.open("k", sys.argv[1]) as memory:
        view = memory.view()
        print(view.summary.content, *[run.id for run in view.runs])
anyio.run(main)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    output = await anyio.to_thread.run_sync(
        lambda: subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    assert output.split() == ["r0,r1,r2", "r3", "r4"]


async def test_it_comes_along_in_a_fork(driver: Driver) -> None:
    async with handle(driver) as memory:
        await memory.append(*map(long_run, range(8)))
        await memory.retract("r7")
        await memory.summarize()
        async with await memory.fork("copy") as copy:
            assert (covered(copy), ids(copy.view().runs)) == (names(0, 5), names(5, 7))
            await copy.append(*map(long_run, range(10, 14)))
            await copy.summarize()
            assert covered(copy) == [*names(0, 7), "r10", "r11"]
        assert covered(memory) == names(0, 5)


async def test_without_a_background_nothing_happens_until_it_is_asked_for(driver: Driver) -> None:
    reader = Reader()
    async with handle(driver, reader) as memory:
        for n in range(20):
            await memory.append(long_run(n))
        assert (reader.calls, memory.view().summary) == ([], None)
        assert await memory.summarize()
    with pytest.raises(ClosedError):
        await memory.summarize()
    async with Memory(driver, "k") as memory:
        with pytest.raises(SummaryError, match="there is no summariser"):
            await memory.summarize()


async def test_a_partial_run_is_not_folded_until_it_is_finished() -> None:
    driver, reader = InMemoryDriver(), Reader()
    async with handle(driver, reader, policy=SummaryPolicy(keep=0, every=2)) as memory:
        await memory.append(long_run(0), long_run(1))
        async with memory.turn("word " * 40, early=True) as turn:
            await memory.append(long_run(2), long_run(3))
            await memory.summarize()
            assert covered(memory) == names(0, 2)
            turn.write("yes")
        await memory.summarize()
        assert covered(memory) == ["r0", "r1", turn.run.id, "r2", "r3"]


async def test_an_object_is_kept_shown_and_given_to_the_next_fold(driver: Driver) -> None:
    seen: list[str | None] = []

    async def summarizer(runs: Sequence[Run], /, *, previous: str | None) -> Mapping[str, Any]:
        seen.append(previous)
        return {"read": ids(runs), "nested": {"é": [1, None]}}

    async with handle(driver, summarizer) as memory:
        await memory.append(*map(long_run, range(5)))
        await memory.summarize()
        await memory.append(*map(long_run, range(5, 8)))
        await memory.summarize()
    async with handle(driver, summarizer) as memory:
        summary = memory.view().summary
        assert summary is not None
        assert summary.content == (Json({"read": names(3, 6), "nested": {"é": [1, None]}}),)
        assert '{"read":["r3","r4","r5"],"nested":{"é":[1,null]}}' in memory.messages()[0]["content"]
    assert seen == [None, '{"read":["r0","r1","r2"],"nested":{"é":[1,null]}}']


async def test_an_answer_may_come_in_pieces(driver: Driver) -> None:
    async def summarizer(runs: Sequence[Run], /, *, previous: str | None) -> AsyncIterator[str]:
        for run in runs:
            await anyio.sleep(0)
            yield f"{run.id} "

    async with handle(driver, summarizer) as memory:
        await memory.append(*map(long_run, range(5)))
        await memory.summarize()
        assert text_of(memory.view().summary.content) == "r0 r1 r2"  # type: ignore[union-attr]


async def test_a_handle_without_a_counter_makes_summaries_too(driver: Driver) -> None:
    async with Memory(driver, "k", summarizer=Reader(), policy=POLICY) as memory:
        await memory.append(*map(long_run, range(5)))
        await memory.summarize()
        assert covered(memory) == names(0, 3)


# --- failures change nothing ---


async def fails_midway(runs: Sequence[Run], /, *, previous: str | None) -> AsyncIterator[str]:
    yield "half of a summa"
    raise OSError("the connection was cut")


def returning(made: object) -> Any:
    async def summarizer(runs: Sequence[Run], /, *, previous: str | None) -> Any:
        return made

    return summarizer


async def pieces_of_nothing(runs: Sequence[Run], /, *, previous: str | None) -> AsyncIterator[Any]:
    yield b"bytes"


def not_async(runs: Sequence[Run], /, *, previous: str | None) -> Any:
    return "text"


BAD: dict[str, Any] = {
    "empty": returning(""),
    "whitespace": returning(" \n\t "),
    "none": returning(None),
    "bytes": returning(b"in short"),
    "list": returning(["in", "short"]),
    "empty object": returning({}),
    "no JSON": returning({"a": {1, 2}}),
    "NaN": returning({"a": float("nan")}),
    "5 MB": returning("word " * 1_000_000),
    "too long": returning("word " * 200),
    "midway": fails_midway,
    "bytes in pieces": pieces_of_nothing,
    "not async": not_async,
    "wrong arguments": lambda: None,
}


@pytest.mark.parametrize("bad", BAD, ids=str)
async def test_a_bad_summary_changes_nothing(driver: Driver, bad: str) -> None:
    async with handle(driver) as memory:
        await memory.append(*map(long_run, range(5)))
        await memory.summarize()
        await memory.append(*map(long_run, range(5, 9)))
    before = await driver.load("k", 0)
    async with handle(driver, BAD[bad]) as memory:
        with pytest.raises(SummaryError):
            await memory.summarize()
        assert (covered(memory), ids(memory.view().runs)) == (names(0, 3), names(3, 9))
    after = await driver.load("k", 0)
    assert (after.bodies, after.head, after.revision) == (before.bodies, before.head, before.revision)


@pytest.mark.parametrize("model", [None, 7, b"name", object()])
async def test_a_model_that_is_no_name_is_not_stored(driver: Driver, model: object) -> None:
    reader = Reader()
    reader.model = model  # type: ignore[assignment]
    async with handle(driver, reader) as memory:
        await memory.append(*map(long_run, range(5)))
        await memory.summarize()
    async with handle(driver) as memory:
        assert memory.view().summary is not None
        assert memory.view().summary.model == ""  # type: ignore[union-attr]


async def test_the_cause_of_a_failure_is_named() -> None:
    driver = InMemoryDriver()
    async with handle(driver, Reader(failures=1)) as memory:
        await memory.append(*map(long_run, range(5)))
        with pytest.raises(SummaryError, match="the summariser of 'k' failed: RuntimeError: the model") as caught:
            await memory.summarize()
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert await memory.summarize()


# --- what griptape 1.13 gets wrong ---


async def test_griptape_1_the_summary_is_persisted(driver: Driver) -> None:
    reader = Reader()
    for n in range(9):
        async with handle(driver, reader) as memory:
            await memory.append(long_run(n))
            await memory.summarize()
    # A restart before every run: what is summarised once is not summarised again, and the newest is what counts.
    assert [*chain.from_iterable(read for read, _ in reader.calls)] == names(0, 6)
    async with handle(driver, reader) as memory:
        assert covered(memory) == names(0, 6)


async def test_griptape_2_a_failure_advances_nothing(driver: Driver) -> None:
    reader = Reader(failures=3)
    async with handle(driver, reader) as memory:
        for n in range(8):
            await memory.append(long_run(n))
            if reader.failures and n >= 4:
                with pytest.raises(SummaryError):
                    await memory.summarize()
                assert (covered(memory), ids(memory.view().runs)) == ([], names(0, n + 1))
        assert await memory.summarize()
        assert (covered(memory), ids(memory.view().runs)) == (names(0, 6), names(6, 8))


async def test_griptape_3_trimming_does_not_shift_what_is_covered(driver: Driver) -> None:
    reader = Reader()
    async with handle(driver, reader, retain=6) as memory:
        for n in range(40):
            await memory.append(long_run(n))
            await memory.summarize()
            said, shown = covered(memory), ids(memory.view().runs)
            assert [*said, *shown] == names(0, n + 1)
            assert len(shown) < POLICY.keep + POLICY.every
    assert len(await stored(driver, "k")) <= 8
    async with handle(driver, reader) as memory:
        assert [*covered(memory), *ids(memory.view().runs)] == names(0, 40)


async def test_griptape_4_the_same_run_added_twice_is_one_run(driver: Driver) -> None:
    reader = Reader()
    async with handle(driver, reader) as memory:
        for n in range(9):
            await memory.append(long_run(n))
            await memory.append(long_run(n))
            await memory.summarize()
        assert [*covered(memory), *ids(memory.view().runs)] == names(0, 9)
    assert [read for read, _ in reader.calls] == [names(0, 3), names(3, 6)]


# --- while others write ---


async def test_adding_does_not_wait_for_a_summary_and_is_not_covered_by_it(driver: Driver) -> None:
    reader = Reader()

    async def add() -> None:
        async with handle(driver) as other:
            await other.append(*map(long_run, range(5, 7)))

    reader.during = add
    async with handle(driver, reader) as memory:
        await memory.append(*map(long_run, range(5)))
        await memory.summarize()
        assert (covered(memory), ids(memory.view().runs)) == (names(0, 3), names(3, 7))


@pytest.mark.parametrize("erase", [False, True])
async def test_what_is_taken_back_during_a_fold_is_in_no_summary(driver: Driver, erase: bool) -> None:
    reader = Reader()

    async def retract() -> None:
        async with handle(driver) as other:
            await other.retract("r1", erase=erase)

    reader.during = retract
    async with handle(driver, reader) as memory:
        await memory.append(*map(long_run, range(6)))
        await memory.summarize()
        assert covered(memory) == ["r0", "r2", "r3"]
    assert [read for read, _ in reader.calls] == [names(0, 4), ["r0", "r2", "r3"]]


async def test_what_is_taken_back_and_trimmed_away_during_a_fold_is_in_no_summary(driver: Driver) -> None:
    reader = Reader()

    async def retract_and_trim() -> None:
        async with handle(driver) as other:
            await other.retract("r1", erase=True)
            await other.append(*map(long_run, range(6, 20)))
            await other.trim(2)

    reader.during = retract_and_trim
    async with handle(driver, reader) as memory:
        await memory.append(*map(long_run, range(6)))
        await memory.summarize()
        assert (covered(memory), ids(memory.view().runs)) == ([], names(18, 20))
    assert await stored_summary(driver) is None


async def test_a_valid_summary_stays_if_the_one_that_replaced_it_proves_stale() -> None:
    class Retracting(InMemoryDriver):
        """Lets another retract a run just before a summary reaches the store."""

        is_armed = False

        async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
            if self.is_armed:
                self.is_armed = False
                await other.retract("r4")
            return await super().commit(key, head, revision=revision)

    driver = Retracting()
    async with handle(driver) as memory, handle(driver) as other:
        await memory.append(*map(long_run, range(5)))
        await memory.summarize()
        before = await stored_summary(driver)
        await memory.append(*map(long_run, range(5, 8)))
        await other.refresh()
        driver.is_armed = True
        async with handle(driver, Reader()) as third:
            await third.summarize()
            assert not driver.is_armed
            assert (covered(third), ids(third.view().runs)) == (names(0, 3), ["r3", "r5", "r6", "r7"])
    assert await stored_summary(driver) == before


async def test_of_two_results_the_further_one_stays(driver: Driver) -> None:
    reader = Reader()

    async def get_further() -> None:
        async with handle(driver) as other:
            await other.append(*map(long_run, range(5, 12)))
            await other.summarize()

    reader.during = get_further
    async with handle(driver, reader) as memory:
        await memory.append(*map(long_run, range(5)))
        await memory.summarize()
        assert (covered(memory), ids(memory.view().runs)) == (names(0, 10), names(10, 12))
    assert [read for read, _ in reader.calls] == [names(0, 3)]


@pytest.mark.parametrize("by_another", [False, True])
async def test_a_conversation_cleared_during_a_fold_stays_empty(driver: Driver, by_another: bool) -> None:
    reader = Reader()

    async def clear() -> None:
        if not by_another:
            await memory.clear()
            return
        async with handle(driver) as other:
            await other.clear()

    reader.during = clear
    async with handle(driver, reader) as memory:
        await memory.append(*map(long_run, range(5)))
        await memory.summarize()
    assert await stored_summary(driver) is None
    assert await stored(driver, "k") == []


async def test_a_conversation_cleared_just_before_the_swap_stays_empty() -> None:
    class Clearing(InMemoryDriver):
        is_armed = True

        async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
            if self.is_armed:
                self.is_armed = False
                await memory.clear()
            return await super().commit(key, head, revision=revision)

    driver = Clearing()
    async with handle(driver) as memory:
        await memory.append(*map(long_run, range(5)))
        await memory.summarize()
    assert not driver.is_armed
    assert (await driver.load("k")).epoch == ""


async def test_a_run_that_is_extended_later_makes_the_summary_stale(driver: Driver) -> None:
    reader = Reader()
    async with handle(driver, reader) as memory:
        await memory.append(*map(long_run, range(5)))
        await memory.summarize()
        await memory.extend("r1", output="no")
        assert (covered(memory), ids(memory.view().runs)) == ([], names(0, 5))
        assert await memory.summarize()
        assert covered(memory) == names(0, 3)
    assert [previous for _, previous in reader.calls] == [None, None]


async def test_cancelled_between_the_swap_and_the_second_look_it_looks(driver: Driver) -> None:
    class Slow(Spy):
        async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
            answer = await super().commit(key, head, revision=revision)
            async with handle(driver) as other:
                await other._append(retract)  # as a process that is killed before it has removed the summary
            scope.cancel()
            return answer

    async with handle(driver) as memory:
        await memory.append(*map(long_run, range(5)))
    retract = Retract("x", "r1", 1)
    with anyio.CancelScope() as scope:
        async with handle(Slow(driver)) as memory:
            await memory.summarize()
    assert scope.cancelled_caught
    assert await stored_summary(driver) is None


# --- off the reply path ---


async def test_the_handle_that_is_still_open_sees_the_summary_after_its_next_append(driver: Driver) -> None:
    async with Background() as background, handle(driver, background=background) as memory:
        await memory.append(*map(long_run, range(5)))
        assert background.pending == 1
        await until(lambda: background.pending + background.running == 0)
        assert covered(memory) == []
        await memory.append(long_run(5))
        assert (covered(memory), ids(memory.view().runs)) == (names(0, 3), names(3, 6))


async def test_a_summary_that_somebody_else_made_is_seen_after_the_next_append_but_one(driver: Driver) -> None:
    busy = Event()
    async with (
        Background(limit=1) as background,
        handle(driver, background=background) as memory,
        handle(driver) as other,
    ):
        background.submit(driver, "busy", busy.wait)
        await until(lambda: background.running == 1)
        await memory.append(*map(long_run, range(5)))
        await other.summarize()
        busy.set()
        await until(lambda: background.pending + background.running == 0)
        for n in range(5, 7):
            await memory.append(long_run(n))
            await until(lambda: background.pending + background.running == 0)
        assert covered(memory) == names(0, 3)


async def test_a_prompt_that_is_made_while_a_summary_is_made_is_whole() -> None:
    driver, reader = InMemoryDriver(), Reader()
    await store(driver, "k", map(long_run, range(300)))
    async with handle(driver, policy=SummaryPolicy(keep=2, every=3)) as other:
        await other.summarize()
        seen: list[str] = []

        async def look() -> None:
            seen.extend(ids(memory.view().runs))

        reader.during = look
        async with handle(driver, reader, strategy=everything) as memory:
            await other.retract("r1")
            await memory.summarize()
    assert seen == ["r0", *names(2, 300)]


async def test_work_that_waits_when_the_handle_is_closed_is_done(driver: Driver) -> None:
    reader = Reader()
    async with Background() as background:
        for n in range(30):
            async with handle(driver, reader, background=background) as memory:
                await memory.append(long_run(n))
    async with handle(driver) as memory:
        assert [*covered(memory), *ids(memory.view().runs)] == names(0, 30)
        assert len(memory.view().runs) < 5


async def test_many_entries_hide_no_run_that_waits() -> None:
    """A new handle reads one page, in which there may be too few runs to tell that a fold is due."""
    driver = InMemoryDriver()
    await store(driver, "k", map(long_run, range(8)))
    await store(driver, "k", (Extend(f"x{n}", "r7", 7, output=f"version {n}") for n in range(200)))
    await store(driver, "k", [long_run(8)])
    async with (
        Background() as background,
        handle(driver, background=background, strategy=last_runs(1)) as memory,
    ):
        await memory.append(long_run(9))
    async with handle(driver) as memory:
        assert covered(memory) == names(0, 8)


async def test_failures_are_counted_logged_and_handed_on(caplog: pytest.LogCaptureFixture) -> None:
    driver, failures = InMemoryDriver(), []
    reader = Reader(failures=2)

    async with (
        Background(backoff=0, on_failure=lambda key, error: failures.append((key, error))) as background,
        handle(driver, reader, background=background) as memory,
    ):
        await memory.append(*map(long_run, range(5)))
        await until(lambda: background.pending + background.running == 0)
    assert background.failed == 2
    assert [(key, type(error)) for key, error in failures] == [("k", SummaryError)] * 2
    assert "the work for 'k' failed: the summariser of 'k' failed: RuntimeError" in caplog.text
    assert not [record for record in caplog.records if record.exc_info]
    assert await stored_summary(driver) is not None


async def test_a_background_must_run_and_needs_a_summariser() -> None:
    driver = InMemoryDriver()
    with pytest.raises(SummaryError, match="needs a summariser"):
        Memory(driver, "k", background=Background())
    with pytest.raises(ClosedError, match="its Background is not running"):
        async with handle(driver, background=Background()):
            pass


async def test_conversations_of_a_busy_bot(caplog: pytest.LogCaptureFixture) -> None:
    """Forty at once, a model that fails one time in five: nothing is lost, doubled, or left behind."""
    caplog.set_level(logging.CRITICAL)
    driver, random, turns = InMemoryDriver(), Random(4), 30
    release = Event()

    async def summarizer(runs: Sequence[Run], /, *, previous: str | None) -> Summarized:
        await release.wait()
        if random.random() < 0.2:
            raise OSError("503")
        return ",".join([*([previous] if previous else []), *ids(runs)])

    async def talk(key: str) -> None:
        for n in range(turns):
            async with Memory(
                driver, key, counter=Words(), summarizer=summarizer, policy=POLICY, background=background
            ) as memory:
                await memory.append(long_run(n))
            if n == turns // 2:
                release.set()

    keys = [f"user {n}" for n in range(40)]
    async with Background(limit=8, backoff=0) as background, create_task_group() as tasks:
        for key in keys:
            tasks.start_soon(talk, key)
    assert background.failed > 0
    for key in keys:
        assert ids(await stored(driver, key)) == names(0, turns)
        async with Memory(driver, key) as memory:
            assert [*covered(memory), *ids(memory.view().runs)] == names(0, turns)
            assert len(memory.view().runs) < POLICY.keep + POLICY.every


# --- what it costs to show one ---


async def test_a_summary_that_nobody_renews_is_not_searched_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation_module, "SUMMARY_REACH", 300)
    driver = Spy(InMemoryDriver())
    async with handle(driver) as memory:
        await memory.append(*map(long_run, range(5)))
        await memory.summarize()
    await store(driver, "k", map(long_run, range(5, 290)))
    async with Memory(driver, "k", strategy=last_runs(2)) as memory:
        assert covered(memory) == names(0, 3)
    await store(driver, "k", map(long_run, range(290, 3_000)))
    driver.forget()
    async with Memory(driver, "k", strategy=last_runs(2)) as memory:
        assert (covered(memory), ids(memory.view().runs)) == ([], names(2_998, 3_000))
    assert driver.calls["load"] == 1
    async with handle(driver) as memory:
        await memory.summarize()
    driver.forget()
    async with Memory(driver, "k", strategy=last_runs(2)) as memory:
        assert covered(memory) == names(0, 2_998)
    assert driver.calls["load"] == 1


def test_a_retention_that_leaves_nothing_to_summarise_is_refused() -> None:
    policy = SummaryPolicy(keep=4, every=8)
    with pytest.raises(BudgetError, match="retain at least 12"):
        Memory(InMemoryDriver(), "k", retain=11, summarizer=Reader(), policy=policy)
    Memory(InMemoryDriver(), "k", retain=12, summarizer=Reader(), policy=policy)


async def test_a_summary_that_saves_nothing_is_not_asked_for_again_at_once() -> None:
    calls: list[int] = []

    async def wordy(runs: Sequence[Run], *, previous: str | None) -> str:
        calls.append(len(runs))
        return "word " * 5_000

    driver = InMemoryDriver()
    async with Background(backoff=0) as background:
        memory = Memory(
            driver, "k", summarizer=wordy, policy=SummaryPolicy(keep=2, every=3), background=background
        )
        async with memory:
            await memory.append(*map(long_run, range(5)))
            await until(lambda: background.pending + background.running == 0)
            assert calls == [3]
            await memory.append(long_run(5))  # more has been said
            await until(lambda: background.pending + background.running == 0)
    assert calls == [3, 4]
    assert background.failed == 2

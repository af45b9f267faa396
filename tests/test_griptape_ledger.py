"""The log behind a program that hands over its whole list of runs each time, without griptape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from anyio import CancelScope

from memkit.adapters.griptape.ledger import Known, Ledger
from memkit.codec import JsonCodec
from memkit.content import Text, text_of
from memkit.conversation import Head
from memkit.driver import Appended, Driver, Record
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ConflictError, DriverError, FormatError
from memkit.memory import Memory
from memkit.run import Amend, Retract, Run
from memkit.testing import CountingDriver, FlakyDriver
from memkit.testing.faults import Fault
from tests.memories import Spy, ids, run, store, stored, summarize

pytestmark = pytest.mark.anyio


class Program:
    """What hands over its list, and has what it was shown: a griptape program with one memory."""

    def __init__(self, driver: Driver, key: str = "k") -> None:
        self.ledger = Ledger(driver, key)
        self.runs: list[Run] = []
        self.metadata: dict[str, Any] = {}
        self.known = Known()

    async def load(self) -> Program:
        self.runs, self.known = await self.ledger.load()
        self.metadata = dict(self.known.metadata)
        return self

    async def store(self, *changed: Run) -> None:
        written = {r.id: r for r in (*changed, *(r for r in self.runs if r.id not in self.known.ids))}
        given = ids(self.runs)
        self.known = await self.ledger.store(given, written, dict(self.metadata), self.known)

    async def add(self, *runs: Run, keep: int = 0) -> None:
        self.runs += runs
        del self.runs[: -keep if keep else 0]
        await self.store()


async def program(driver: Driver) -> Program:
    return await Program(driver).load()


@pytest.fixture(params=["memory", "file"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return InMemoryDriver() if request.param == "memory" else FileDriver(tmp_path)


async def shown(driver: Driver) -> list[str]:
    """Return the ids of all runs, as a handle of memkit sees them."""
    async with Memory(driver, "k") as memory:
        return [run.id async for run in memory.history()]


async def head_of(driver: Driver) -> Head:
    head = (await driver.load("k", 0, 0)).head
    return Head() if head is None else JsonCodec().decode_head(head)


# --- runs ---


async def test_what_is_new_is_appended_and_nothing_else(driver: Driver) -> None:
    spy = Spy(driver)
    one = await program(spy)
    await one.add(run(1), run(2))
    await one.add(run(3))
    await one.store()
    assert ids(await stored(driver, "k")) == ["r1", "r2", "r3"]
    assert spy.bodies["append"] == 3
    assert (await program(driver)).runs == [run(1), run(2), run(3)]


async def test_a_program_that_never_loads_takes_nothing_away(driver: Driver) -> None:
    await store(driver, "k", [run(1), run(2)])
    one = Program(driver)
    await one.add(run(3))
    await one.add(run(4))
    assert await shown(driver) == ["r1", "r2", "r3", "r4"]


async def test_the_oldest_that_are_missing_are_trimmed(driver: Driver) -> None:
    one = await program(driver)
    for n in range(1, 7):
        await one.add(run(n), keep=3)
    log = await driver.load("k", 0)
    assert (log.base, log.end) == (3, 6)
    assert await shown(driver) == ["r4", "r5", "r6"]


async def test_what_is_missing_between_others_is_taken_back(driver: Driver) -> None:
    one = await program(driver)
    await one.add(run(1), run(2), run(3))
    del one.runs[1]
    await one.store()
    entries = await stored(driver, "k")
    assert ids(entries[:3]) == ["r1", "r2", "r3"]
    assert isinstance(entries[3], Retract)
    assert await shown(driver) == ["r1", "r3"]


async def test_two_programs_that_keep_two_runs_each_do_not_trim_each_others(driver: Driver) -> None:
    one, two = await program(driver), await program(driver)
    for n in (1, 2, 3, 4):
        await one.add(run(n), keep=2)
        await two.add(run(10 + n), keep=2)
    assert sorted(await shown(driver)) == ["r13", "r14", "r3", "r4"]


@pytest.mark.parametrize("entry", ["run", "amendment", "retraction"])
async def test_a_run_of_another_program_between_two_entries_is_not_trimmed(entry: str, driver: Driver) -> None:
    one, two = await program(driver), await program(driver)
    await one.add(run(1), run(2), run(3))
    await two.add(run(11))
    if entry == "run":
        await one.add(run(4))
    elif entry == "amendment":
        await one.store(run(2, "no"))
    else:
        del one.runs[1]
        await one.store()
    await one.add(run(5))
    one.runs.clear()
    await one.store()
    assert await shown(driver) == ["r11"]


async def test_two_programs_that_add_in_turn_lose_nothing(driver: Driver) -> None:
    one, two = await program(driver), await program(driver)
    for n in range(1, 6):
        await one.add(run(n))
        await two.add(run(10 + n))
    assert sorted(await shown(driver)) == sorted(f"r{n}" for n in (1, 2, 3, 4, 5, 11, 12, 13, 14, 15))


async def test_a_changed_run_is_amended_and_keeps_what_the_program_does_not_see(driver: Driver) -> None:
    extra = {"later": 1, "griptape": {"input": {"id": "a"}}}
    rich = msgspec.structs.replace(run(1), steps=(Text("looked it up"),), extra=extra)
    await store(driver, "k", [rich, run(2)])
    one = await program(driver)
    await one.store(Run("r1", "asked anew", output="no", meta={"by": "me"}, extra={"griptape": {"id": "b"}}))
    await one.store(Run("r1", "asked anew", output="no", meta={"by": "me"}, extra={"griptape": {"id": "b"}}))
    first, _ = (await program(driver)).runs
    assert (first.input, first.output, first.meta) == ("asked anew", "no", {"by": "me"})
    assert (first.steps, first.created_at) == (rich.steps, rich.created_at)
    assert first.extra == {"later": 1, "griptape": {"id": "b"}}
    assert sum(isinstance(entry, Amend) for entry in await stored(driver, "k")) == 1


async def test_a_change_of_a_run_that_is_gone_meanwhile_stays_without_effect(driver: Driver) -> None:
    await store(driver, "k", [run(1), run(2), run(3)])
    one, two = await program(driver), await program(driver)
    del two.runs[1]
    await two.store()
    await one.store(run(2, "no"))
    assert await shown(driver) == ["r1", "r3"]
    async with Memory(driver, "k") as memory:
        await memory.trim(0)
    await one.store(run(1, "no"))
    assert await shown(driver) == []


async def test_an_edit_removes_a_summary_of_what_was_said(driver: Driver) -> None:
    await store(driver, "k", [run(1), run(2), run(3)])
    await summarize(driver, "k", upto=2, seen=3)
    one = await program(driver)
    await one.store(run(3, "later than the summary"))
    assert (await head_of(driver)).summary is not None
    await one.store(run(1, "no"))
    assert (await head_of(driver)).summary is None


async def test_a_summary_goes_with_a_run_that_is_taken_back(driver: Driver) -> None:
    await store(driver, "k", [run(1), run(2), run(3), run(4)])
    await summarize(driver, "k", upto=2, seen=4)
    one = await program(driver)
    del one.runs[2]
    await one.store()
    assert (await head_of(driver)).summary is not None
    del one.runs[1]
    await one.store()
    assert await head_of(driver) == Head()


# --- summaries that a program gives ---


def summarized(one: Program, text: str, index: int) -> Program:
    one.metadata = {"summary": text, "summary_index": index}
    return one


@pytest.mark.parametrize("erase", [False, True])
@pytest.mark.parametrize("is_older", [False, True])
async def test_a_summary_of_a_run_that_was_taken_back_is_not_stored(
    erase: bool, is_older: bool, driver: Driver
) -> None:
    one = await program(driver)
    await one.add(run(1, "the code is 4711"), run(2), run(3))
    if is_older:
        await summarized(one, "an older summary: 4711", 1).store()
    async with Memory(driver, "k") as memory:
        await memory.retract("r1", erase=erase)
    await summarized(one, "the code is 4711", 2).add(run(4))
    await one.add(run(5))
    assert await head_of(driver) == Head()
    assert (await program(driver)).metadata == {}


async def test_a_summary_that_only_metadata_bring_is_checked_too(driver: Driver) -> None:
    one = await program(driver)
    await one.add(run(1, "the code is 4711"), run(2))
    async with Memory(driver, "k") as memory:
        await memory.retract("r1")
    await summarized(one, "the code is 4711", 1).store()
    assert await head_of(driver) == Head()


async def test_a_summary_of_a_run_that_was_amended_by_others_is_not_stored(driver: Driver) -> None:
    one = await program(driver)
    await one.add(run(1, "the code is 4711"), run(2), run(3))
    async with Memory(driver, "k") as memory:
        await memory.amend(run(1, "no"))
    await one.add(run(4))  # which reads past the amendment, and shows it to nobody
    await summarized(one, "the code is 4711", 2).add(run(5))
    assert await head_of(driver) == Head()


async def test_a_summary_without_an_index_tells_of_all_runs(driver: Driver) -> None:
    one = await program(driver)
    await one.add(run(1, "the code is 4711"), run(2))
    async with Memory(driver, "k") as memory:
        await memory.retract("r1")
    one.metadata = {"summary": "the code is 4711"}
    await one.store()
    assert await head_of(driver) == Head()


async def test_a_refused_summary_takes_the_place_of_the_one_before(driver: Driver) -> None:
    one = await program(driver)
    await one.add(run(1), run(2), run(3))
    await summarized(one, "r1", 1).store()
    async with Memory(driver, "k") as memory:
        await memory.retract("r2")
    assert (await head_of(driver)).summary is not None
    await summarized(one, "r1 and r2", 2).store()
    assert await head_of(driver) == Head()


async def test_changes_by_the_program_itself_leave_its_next_summary(driver: Driver) -> None:
    one = await program(driver)
    await one.add(run(1), run(2), run(3))
    await store(driver, "k", [run(11)])
    await one.store(run(1, "edited"))
    del one.runs[1]
    await summarized(one, "r1 as edited, and r3", 2).add(run(4))
    after = await program(driver)
    assert after.metadata == {"summary": "r1 as edited, and r3", "summary_index": 2}


async def test_after_loading_again_a_program_may_summarize_what_others_have_changed(driver: Driver) -> None:
    one = await program(driver)
    await one.add(run(1), run(2))
    async with Memory(driver, "k") as memory:
        await memory.amend(run(1, "no"))
    await one.load()
    await summarized(one, "r1, amended", 1).add(run(3))
    assert (await program(driver)).metadata == {"summary": "r1, amended", "summary_index": 1}


class Meanwhile(CountingDriver):
    """Lets something happen just before a head is stored, or just after entries are, once."""

    def __init__(self, inner: Driver, /) -> None:
        super().__init__(inner)
        self.before_commit: Callable[[], Awaitable[object]] | None = None
        self.after_append: Callable[[], object] | None = None

    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        act, self.before_commit = self.before_commit, None
        if act is not None:
            await act()
        return await super().commit(key, head, revision=revision)

    async def append(self, key: str, records: Sequence[Record], /, **more: Any) -> Appended:
        appended = await super().append(key, records, **more)
        if self.after_append is not None:
            self.after_append()
        return appended


async def test_a_run_that_is_taken_back_while_its_summary_is_stored_takes_that_along(driver: Driver) -> None:
    async def retract() -> None:
        async with Memory(driver, "k") as memory:
            await memory.retract("r1")

    meanwhile = Meanwhile(driver)
    one = await program(meanwhile)
    await one.add(run(1, "the code is 4711"), run(2))
    meanwhile.before_commit = retract
    await summarized(one, "the code is 4711", 1).store()
    assert await head_of(driver) == Head()


@pytest.mark.parametrize("what", ["amendment", "retraction"])
async def test_no_text_stays_in_a_summary_when_a_change_is_cancelled(what: str, driver: Driver) -> None:
    await store(driver, "k", [run(1), run(2), run(3)])
    await summarize(driver, "k", upto=2, seen=3)
    interrupted = Meanwhile(driver)
    one = await program(interrupted)
    if what == "retraction":
        del one.runs[1]
    with CancelScope() as scope:
        interrupted.after_append = scope.cancel
        await one.store(*([run(1, "no")] if what == "amendment" else []))
    assert scope.cancelled_caught
    assert isinstance((await stored(driver, "k"))[-1], Amend if what == "amendment" else Retract)
    assert (await head_of(driver)).summary is None


async def test_no_text_stays_in_a_summary_when_a_change_failed_and_is_repeated(driver: Driver) -> None:
    await store(driver, "k", [run(1), run(2), run(3)])
    await summarize(driver, "k", upto=2, seen=3)
    one = await program(FlakyDriver(driver, ["before"], calls=["commit"]))
    del one.runs[1]
    with pytest.raises(DriverError):
        await one.store()
    await one.store()
    assert await head_of(driver) == Head()


async def test_a_conversation_that_was_deleted_is_begun_anew_with_what_is_new(driver: Driver) -> None:
    one = await program(driver)
    await one.add(run(1), run(2))
    await driver.delete("k")
    await store(driver, "k", [run(21), run(22), run(23)])
    one.runs.append(run(3))
    del one.runs[0]
    with pytest.raises(ConflictError, match="'k'"):
        await one.store()
    await one.store()
    assert await shown(driver) == ["r21", "r22", "r23", "r3"]


# --- failures ---


CALLS = ("load", "append", "commit", "trim")
LONG_WAY = 40


def armed(faults: list[Fault | None]) -> Iterator[Fault | None]:
    """Yield faults once there are some."""
    while True:
        yield faults.pop(0) if faults else None


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_store_that_failed_anywhere_can_be_repeated(fault: Fault, driver: Driver) -> None:
    for turn in range(LONG_WAY):
        await driver.delete("k")
        await store(driver, "k", [run(1), run(2), run(3), run(4)])
        faults: list[Fault | None] = []
        one = await program(FlakyDriver(driver, armed(faults), calls=CALLS))
        faults += [*[None] * turn, fault]
        one.runs = [run(2, "edited"), run(4), run(5), run(6)]  # r1 can be trimmed, were r3 not missing as well
        one.metadata = {"lang": "en", "summary": "They met.", "summary_index": 1}
        with suppress(DriverError):
            await one.store(one.runs[0])
        is_over = bool(faults)
        faults.clear()
        await one.store(one.runs[0])
        assert await shown(driver) == ["r2", "r4", "r5", "r6"]
        entries = await stored(driver, "k")
        assert len([e for e in entries if isinstance(e, Run)]) == len(
            {e.id for e in entries if isinstance(e, Run)}
        )
        again = await program(driver)
        assert text_of(again.runs[0].output) == "edited"
        assert again.metadata == one.metadata
        if is_over:  # all calls went through
            return
    pytest.fail("the schedule never got past the store")


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_after_a_failure_more_can_be_added_than_was_tried(fault: Fault, driver: Driver) -> None:
    one = await program(FlakyDriver(driver, [fault], calls=["append"]))
    with pytest.raises(DriverError):
        await one.add(run(1))
    await one.add(run(2))
    assert ids(await stored(driver, "k")) == ["r1", "r2"]


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_what_was_to_be_trimmed_is_trimmed_after_a_failure(fault: Fault, driver: Driver) -> None:
    one = await program(FlakyDriver(driver, [fault], calls=["trim"]))
    await one.add(run(1), run(2))
    with pytest.raises(DriverError):
        await one.add(run(3), keep=2)
    await one.store()
    assert await shown(driver) == ["r2", "r3"]


# --- metadata ---


async def with_meta(driver: Driver, metadata: Mapping[str, Any]) -> Program:
    one = await program(driver)
    one.metadata = dict(metadata)
    await one.store()
    return one


async def test_metadata_come_back_and_only_what_changed_is_written(driver: Driver) -> None:
    one = await with_meta(driver, {"lang": "en", "deep": {"a": [1, {"b": None}]}, "gone": 1})
    async with Memory(driver, "k") as memory:
        await memory.update_meta({"lang": "de", "theirs": True})
    one.metadata = {"lang": "en", "deep": {"a": [2]}}
    await one.store()
    assert (await program(driver)).metadata == {"lang": "de", "deep": {"a": [2]}, "theirs": True}


async def test_metadata_that_are_as_they_were_cost_no_write(driver: Driver) -> None:
    await with_meta(driver, {"lang": "en"})
    spy = Spy(driver)
    one = await program(spy)
    await one.add(run(1))
    other = Program(spy)  # knows nothing, and says what is stored
    other.metadata = {"lang": "en"}
    await other.store()
    assert spy.calls["commit"] == 0


@pytest.mark.parametrize(("index", "expected"), [(0, 0), (1, 1), (3, 3), (4, 0), (-1, 0), ("2", 0), (None, 0)])
async def test_a_summary_covers_the_runs_that_its_index_counts(
    index: object, expected: int, driver: Driver
) -> None:
    one = await program(driver)
    one.metadata = {"summary": "They met.", "summary_index": index}
    await one.add(run(1), run(2), run(3))
    again = await program(driver)
    assert again.metadata == {"summary": "They met.", "summary_index": expected}
    async with Memory(driver, "k") as memory:
        view = memory.view()
        assert view.summary is not None
        assert ids(view.runs) == [f"r{n}" for n in range(expected + 1, 4)]


async def test_a_summary_does_not_hide_a_run_of_another_program(driver: Driver) -> None:
    await store(driver, "k", [run(11)])
    one = Program(driver)
    await one.add(run(1), run(2))
    one.metadata = {"summary": "They met.", "summary_index": 1}
    await one.store()
    async with Memory(driver, "k") as memory:
        assert ids(memory.view().runs) == ["r11", "r1", "r2"]


async def test_a_summary_that_is_taken_out_of_the_metadata_is_gone(driver: Driver) -> None:
    one = await program(driver)
    one.metadata = {"summary": "They met.", "summary_index": 1, "lang": "en"}
    await one.add(run(1))
    one.metadata = {"lang": "en"}
    await one.store()
    assert await head_of(driver) == Head(meta={"lang": "en"})


@pytest.mark.parametrize("summary", [None, "", "  ", {"topics": ["cats"]}, 7])
async def test_what_is_no_summary_stays_in_the_metadata(summary: object, driver: Driver) -> None:
    await with_meta(driver, {"summary": summary, "summary_index": 0})
    assert (await head_of(driver)).summary is None
    assert (await program(driver)).metadata == {"summary": summary, "summary_index": 0}


async def test_a_summary_that_memkit_made_is_shown_and_survives(driver: Driver) -> None:
    await store(driver, "k", [run(1), run(2), run(3)])
    made = await summarize(driver, "k", upto=2, seen=3)
    one = await program(driver)
    assert one.metadata == {"summary": "in short", "summary_index": 2}
    await one.add(run(4))
    assert (await head_of(driver)).summary == made


async def test_a_summary_stays_true_when_what_it_covers_is_trimmed(driver: Driver) -> None:
    await store(driver, "k", [run(1), run(2), run(3)])
    await summarize(driver, "k", upto=1, seen=2)
    one = await program(driver)
    await one.add(run(4), keep=1)
    again = await program(driver)
    assert (ids(again.runs), again.metadata) == (["r4"], {"summary": "in short", "summary_index": 0})


async def test_a_stale_summary_is_not_shown(driver: Driver) -> None:
    await store(driver, "k", [run(1), run(2)])
    await summarize(driver, "k", upto=2, seen=2)
    await store(driver, "k", [Amend("a", 0, run(1, "no"))])
    assert (await program(driver)).metadata == {}


def test_a_key_that_cannot_be_is_refused() -> None:
    with pytest.raises(FormatError, match="key"):
        Ledger(InMemoryDriver(), "")


async def test_long_logs_are_read_whole(driver: Driver) -> None:
    many: Sequence[Run] = [run(n) for n in range(450)]
    await store(driver, "k", many)
    one = await program(driver)
    assert ids(one.runs) == ids(many)
    await one.add(run(450), keep=450)
    log = await driver.load("k", 0, 0)
    assert (log.base, log.end) == (1, 451)

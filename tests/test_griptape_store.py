"""Threads read as a whole, and what was imported written into drivers of memkit: all of it, once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from memkit import Memory
from memkit.adapters.griptape.codec import GriptapeCodec
from memkit.adapters.griptape.payload import Imported
from memkit.adapters.griptape.sources import read_thread, store
from memkit.codec import JsonCodec
from memkit.conversation import Head, Summary
from memkit.driver import Appended, Driver, Record
from memkit.drivers.file import FileDriver
from memkit.drivers.griptape_cloud import connect
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ConflictError, DriverError, FormatError, UnsupportedError
from memkit.run import Run
from memkit.testing import CountingDriver, FlakyDriver
from tests.griptape_cloud import KEY, GriptapeCloud, serve
from tests.memories import Stingy, ids, run, stored
from tests.memories import store as store_entries

pytestmark = pytest.mark.anyio


@pytest.fixture
def cloud() -> Iterator[GriptapeCloud]:
    with serve(GriptapeCloud()) as service:
        yield service


def imported(count: int) -> Imported:
    """Return so many runs, with a summary of the first three."""
    head = Head(summary=Summary(content="in short", upto=3, upto_id="r2", seen=3), meta={"tenant": "t-1"})
    return Imported(tuple(run(n) for n in range(count)), head, None, None)


class OneByOne(CountingDriver):
    """A driver that takes one entry at a time, wherever the end of the log is: as that of Griptape Cloud."""

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
        if len(records) > 1 or expect is not None:
            raise UnsupportedError("one entry at a time, please")
        return await super().append(key, records, since=since, epoch=epoch)


async def check_stored(driver: Driver, what: Imported) -> None:
    log = await driver.load("k", 0)
    assert await stored(driver, "k") == list(what.runs)
    assert JsonCodec().decode_head(log.head or b"") == what.head


def message(n: int) -> dict[str, Any]:
    """Return a message of a thread as release 0.30 of griptape has written it."""
    return {"message_id": f"m{n}", "input": f"q{n}", "output": "a", "metadata": None}


# --- threads ---


async def test_a_thread_is_read_as_a_whole_whatever_the_pages() -> None:
    driver = InMemoryDriver()
    before = imported(250)
    await store(before, driver, "k", codec=GriptapeCodec())
    after = await read_thread(Stingy(driver, 7), "k")
    assert after.runs == before.runs
    assert after.head == before.head


async def test_a_thread_of_griptape_cloud_is_filled_and_read(cloud: GriptapeCloud) -> None:
    async with connect(api_key=KEY, base_url=cloud.url) as driver:
        with pytest.raises(ConflictError, match="conversation 'k'"):
            await read_thread(driver, "k")
        for _ in range(2):
            await store(imported(5), driver, "k", codec=GriptapeCodec())
        thread = await read_thread(driver, "k")
        assert thread == imported(5)
        with pytest.raises(UnsupportedError, match="GriptapeCodec"):
            await store(imported(5), driver, "other")


async def test_marks_of_a_thread_count_what_is_left_of_it() -> None:
    driver = InMemoryDriver()
    await store(imported(6), driver, "k", codec=GriptapeCodec())
    for base, upto, upto_id in ((2, 1, "r2"), (4, 0, "")):
        await driver.trim("k", base)
        after = await read_thread(driver, "k")
        assert ids(after.runs) == [f"r{n}" for n in range(base, 6)]
        summary = after.head.summary
        assert summary is not None
        assert (summary.upto, summary.upto_id, summary.seen) == (upto, upto_id, upto)
        assert after.problems == ()


@pytest.mark.parametrize(("index", "upto"), [(0, 0), (2, 2), (3, 3), (4, 0)])
async def test_metadata_of_a_thread_that_griptape_wrote_is_honoured(index: int, upto: int) -> None:
    driver = InMemoryDriver()
    await driver.append("k", [Record(f"m{n}", json.dumps(message(n)).encode()) for n in range(3)])
    metadata = {"type": "SummaryConversationMemory", "max_runs": 9, "offset": 1, "summary": "in short"}
    revision = (await driver.load("k", 0, 0)).revision
    await driver.commit("k", json.dumps({**metadata, "summary_index": index}).encode(), revision=revision)
    thread = await read_thread(driver, "k")
    assert [(run.id, run.input, run.output) for run in thread.runs] == [(f"m{n}", f"q{n}", "a") for n in range(3)]
    assert (thread.max_runs, thread.offset) == (9, 1)
    summary = thread.head.summary
    assert summary is not None
    assert (summary.upto, summary.upto_id) == (upto, f"m{upto - 1}" if upto else "")
    assert len(thread.problems) == (index > 3)  # griptape's own index can run past the messages
    copy = InMemoryDriver()
    await store(thread, copy, "k")
    async with Memory(copy, "k") as memory:
        assert memory.view().summary == summary
        assert len(memory.view().runs) == 3 - upto


async def test_a_thread_that_is_not_there_or_not_of_griptape_is_refused() -> None:
    driver = InMemoryDriver()
    with pytest.raises(ConflictError, match="conversation 'k'"):
        await read_thread(driver, "k")
    await driver.append("k", [Record("r0", b"[]")])
    with pytest.raises(FormatError, match="'k', entry 0"):
        await read_thread(driver, "k")


def fill_with_odd_messages(cloud: GriptapeCloud) -> None:
    """Put messages into a thread as nobody should, each with what can be read of it."""
    later = json.dumps({"type": "FutureArtifact", "value": {"a": 1}})
    thread = cloud.add_thread("k")
    for n, output in enumerate(
        ["there", later, "the same run again", "null", "a number", "an object", "none", "m"]
    ):
        cloud.add_message(thread, input=f"q{n}", output=output, metadata={"run_id": f"r{n % 8 if n != 2 else 0}"})
    messages = cloud.messages[thread]
    messages[3]["output"] = None
    messages[4]["output"] = 2**70
    messages[5]["output"] = {"type": "TextArtifact", "value": "as an object"}
    del messages[6]["output"]
    messages[7]["metadata"] = "text"


async def test_odd_messages_of_a_thread_are_reported_and_cost_no_other(cloud: GriptapeCloud) -> None:
    fill_with_odd_messages(cloud)
    async with connect(api_key=KEY, base_url=cloud.url) as driver:
        thread = await read_thread(driver, "k")
        assert await read_thread(driver, "k") == thread
    assert [run.input for run in thread.runs] == [f"q{n}" for n in range(8)]
    outputs = [run.output for run in thread.runs]
    assert outputs[:6] == ["there", '{"a": 1}', "the same run again", "", str(2**70), "as an object"]
    assert [problem.partition(":")[0] for problem in thread.problems] == [f"run {n}" for n in (1, 3, 4, 6, 7)]
    copy = InMemoryDriver()
    await store(thread, copy, "k")
    assert await stored(copy, "k") == list(thread.runs)


async def test_of_two_messages_of_one_run_the_later_one_gets_another_id(cloud: GriptapeCloud) -> None:
    fill_with_odd_messages(cloud)
    async with connect(api_key=KEY, base_url=cloud.url) as driver:
        thread = await read_thread(driver, "k")
    first, again = thread.runs[0], thread.runs[2]
    assert first.id == "r0"
    assert again.id not in {"r0", ""}
    assert len(set(ids(thread.runs))) == 8


async def test_a_handle_opens_a_thread_of_odd_messages(cloud: GriptapeCloud) -> None:
    fill_with_odd_messages(cloud)
    async with connect(api_key=KEY, base_url=cloud.url) as driver:
        async with Memory(driver, "k", codec=GriptapeCodec()) as memory:
            await memory.add("q8", "a8")
        async with Memory(driver, "k", codec=GriptapeCodec()) as memory:
            assert [run.input for run in memory.view().runs] == [f"q{n}" for n in range(9)]


# --- into a driver of memkit ---


async def test_runs_are_stored_in_one_append_and_the_head_in_one_commit(tmp_path: Path) -> None:
    driver = CountingDriver(FileDriver(tmp_path))
    await store(imported(5), driver, "k")
    await check_stored(driver, imported(5))
    assert (driver.calls["append"], driver.calls["commit"]) == (1, 1)
    await store(imported(5), driver, "k")
    await check_stored(driver, imported(5))
    assert driver.calls["commit"] == 1


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("call", ["append", "commit"])
@pytest.mark.parametrize("limit", [lambda driver: driver, OneByOne], ids=["many", "one by one"])
async def test_a_store_that_broke_off_is_completed_and_nothing_doubled(
    fault: Any, call: str, limit: Callable[[Driver], Driver]
) -> None:
    driver = InMemoryDriver()
    schedule = [fault] if call == "commit" else [None, fault]
    if call == "append" and limit is not OneByOne:
        schedule = [fault]
    with pytest.raises(DriverError):
        await store(imported(5), limit(FlakyDriver(driver, schedule, calls=[call])), "k")
    assert (await driver.load("k", 0, 0)).head is None or (call, fault) == ("commit", "after")
    await store(imported(5), limit(driver), "k")
    await check_stored(driver, imported(5))


async def test_what_was_added_behind_stays() -> None:
    driver = InMemoryDriver()
    with pytest.raises(DriverError):
        await store(imported(5), FlakyDriver(driver, ["before"], calls=["commit"]), "k")
    async with Memory(driver, "k") as memory:
        await memory.append(run(5))
    await store(imported(5), driver, "k")
    assert ids(await stored(driver, "k")) == ["r0", "r1", "r2", "r3", "r4", "r5"]
    async with Memory(driver, "k") as memory:
        assert memory.conversation.head == imported(5).head


@pytest.mark.parametrize("limit", [lambda driver: driver, OneByOne], ids=["many", "one by one"])
@pytest.mark.parametrize(
    "there",
    [
        [Run("other", "q")],
        [Run("other", "q"), *imported(5).runs],
        [Run("r0", "something else")],
        imported(2).runs,
        [*imported(2).runs, Run("other", "q")],
    ],
    ids=["others", "behind others", "other content", "a part", "a part and others"],
)
async def test_a_conversation_that_holds_other_runs_is_left_alone(
    there: Sequence[Run], limit: Callable[[Driver], Driver]
) -> None:
    driver = InMemoryDriver()
    await store_entries(driver, "k", there)
    if limit is OneByOne and there == imported(2).runs:
        return await store(imported(5), limit(driver), "k")  # that is what it leaves when it breaks off
    with pytest.raises(ConflictError):
        await store(imported(5), limit(driver), "k")
    assert await stored(driver, "k") == list(there)
    assert (await driver.load("k")).head is None
    return None


async def test_a_run_that_got_behind_those_of_another_program_is_reported() -> None:
    class Overtaken(OneByOne):
        async def append(self, key: str, records: Sequence[Record], /, **options: Any) -> Appended:
            if options["expect"] is None and records[0].id == "r3":
                await driver.append("k", [Record("other", JsonCodec().encode(Run("other", "q")))])
            return await super().append(key, records, **options)

    driver = InMemoryDriver()
    for _ in range(2):
        with pytest.raises(ConflictError, match="'k' holds"):
            await store(imported(5), Overtaken(driver), "k")
    assert ids(await stored(driver, "k")) == ["r0", "r1", "r2", "other", "r3"]


async def test_a_conversation_that_has_another_head_is_left_alone() -> None:
    driver = InMemoryDriver()
    async with Memory(driver, "k") as memory:
        await memory.update_meta({"tenant": "t-2"})
    with pytest.raises(ConflictError, match="another summary or meta"):
        await store(imported(5), driver, "k")
    assert await stored(driver, "k") == []
    async with Memory(driver, "k") as memory:
        assert memory.meta == {"tenant": "t-2"}


async def test_nothing_makes_no_conversation() -> None:
    driver = InMemoryDriver()
    await store(Imported((), Head(), None, None), driver, "k")
    assert (await driver.load("k")).epoch == ""


class Picky(InMemoryDriver):
    """A driver that keeps bodies of `GriptapeCodec` only."""

    def check_body(self, body: bytes, /) -> None:
        if body.startswith(b'{"v":1'):
            raise UnsupportedError("give me GriptapeCodec")


async def test_a_driver_that_keeps_another_form_is_asked_first() -> None:
    driver = Picky()
    with pytest.raises(UnsupportedError, match="give me GriptapeCodec"):
        await store(imported(5), driver, "k")
    assert (await driver.load("k")).epoch == ""

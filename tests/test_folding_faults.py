"""What goes wrong around a fold: others who fold, models that hang, stores that fail, options that cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import anyio
import pytest
from anyio import CancelScope, Event, create_task_group, wait_all_tasks_blocked

from memkit.background import Background
from memkit.content import text_of
from memkit.driver import Appended, Record
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import SummaryError
from memkit.memory import Memory
from memkit.run import Run
from memkit.summaries import SummaryPolicy
from memkit.testing import FlakyDriver
from memkit.tokens import cost_of
from tests.memories import Words, ids
from tests.test_folding import Reader, handle, long_run, names, stored_summary

pytestmark = pytest.mark.anyio

WORDS = Words()


async def test_who_read_less_takes_nothing_from_who_read_what_was_trimmed() -> None:
    """Two folders and a trim between them: the summary that knows the trimmed runs stays."""
    driver = InMemoryDriver()
    gates = {"a": Event(), "b": Event()}

    def gated(name: str) -> Any:
        async def summarise(runs: Sequence[Run], *, previous: str | None) -> str:
            said = " ".join([*([previous] if previous else []), *(run.id for run in runs)])
            await gates[name].wait()
            return said

        return summarise

    late = SummaryPolicy(keep=0, every=8)
    soon = SummaryPolicy(keep=0, every=1)
    async with (
        Memory(driver, "k", summarizer=gated("a"), policy=late) as a,
        Memory(driver, "k", summarizer=gated("b"), policy=soon) as b,
    ):
        await a.append(*map(long_run, range(8)))
        await b.refresh()
        async with create_task_group() as tasks:
            tasks.start_soon(a.summarize)
            await wait_all_tasks_blocked()
            await b.append(long_run(8))
            await b.trim(3)
            tasks.start_soon(b.summarize)
            await wait_all_tasks_blocked()
            gates["a"].set()
            await wait_all_tasks_blocked()
            gates["b"].set()
    async with handle(driver) as memory:
        summary = memory.view().summary
        assert summary is not None
        assert set(names(0, 8)) <= set(text_of(summary.content).split())


async def test_a_summariser_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memkit.folding.CALL_TIME_LIMIT", 0.01)

    async def hangs(runs: Sequence[Run], *, previous: str | None) -> str:
        await Event().wait()
        raise AssertionError

    driver = InMemoryDriver()
    async with Memory(driver, "k", summarizer=hangs, policy=SummaryPolicy(keep=0, every=1)) as memory:
        await memory.append(long_run(0))
        with pytest.raises(SummaryError, match="TimeoutError"):
            await memory.summarize()


async def test_a_call_carries_no_more_than_it_may_context_and_previous_included() -> None:
    driver = InMemoryDriver()
    sent: list[int] = []

    async def counts(runs: Sequence[Run], *, previous: str | None) -> str:
        sent.append(sum(cost_of(run, WORDS) for run in runs) + WORDS.count(previous or ""))
        return "s " * 40

    policy = SummaryPolicy(keep=0, every=1, overlap=50, max_input_tokens=500)
    async with Memory(driver, "k", counter=WORDS, summarizer=counts, policy=policy) as memory:
        await memory.append(*map(long_run, range(60)))
        await memory.summarize()
    assert len(sent) > 3
    assert max(sent) <= 500


async def test_retention_waits_for_what_the_summary_has_not_read() -> None:
    driver, reader = InMemoryDriver(), Reader(failures=3)
    policy = SummaryPolicy(keep=4, every=8)
    async with handle(driver, reader, policy=policy, retain=16) as memory:
        for n in range(30):
            await memory.append(long_run(n))
        with pytest.raises(SummaryError):
            await memory.summarize()
        assert ids(memory.conversation.runs) == names(0, 30)  # up to twice as many
        for n in range(30, 40):
            await memory.append(long_run(n))
        assert len(memory.conversation.runs) <= 32


async def test_a_failing_store_does_not_hide_why_there_is_no_summary() -> None:
    broken = False
    driver = FlakyDriver(InMemoryDriver(), ("before" if broken else None for _ in count()), calls=["load"])

    async def breaks(runs: Sequence[Run], *, previous: str | None) -> str:
        nonlocal broken
        broken = True
        raise RuntimeError("the model is down")

    async with Memory(driver, "k", summarizer=breaks, policy=SummaryPolicy(keep=0, every=1)) as memory:
        await memory.append(long_run(0))
        with pytest.raises(SummaryError, match="the model is down"):
            await memory.summarize()


@pytest.mark.parametrize(
    "options",
    [
        {"summary_as": "sytem"},
        {"policy": SummaryPolicy()},
        {"summarizer": "gpt-4o"},
        {"summarizer": Reader(), "policy": {"keep": 4}},
        {"summarizer": Reader(), "background": Background},
    ],
)
def test_what_would_fail_after_something_was_stored_is_refused_at_once(options: Any) -> None:
    with pytest.raises(SummaryError):
        Memory(InMemoryDriver(), "k", **options)


class CancelsAfterAppend(InMemoryDriver):
    """Cancels whoever appends, as soon as the append is stored."""

    scope: CancelScope | None = None

    async def append(self, key: str, records: Sequence[Record], /, **options: Any) -> Appended:
        answer = await super().append(key, records, **options)
        if self.scope is not None:
            self.scope.cancel()
        return answer


async def test_a_cancelled_retraction_still_takes_the_text_out_of_summary_and_log() -> None:
    driver = CancelsAfterAppend()
    async with handle(driver) as memory:
        await memory.append(*map(long_run, range(5)))
        await memory.summarize()
        assert await stored_summary(driver) is not None
        with CancelScope() as driver.scope:
            await memory.retract("r0", erase=True)
        assert driver.scope.cancelled_caught
        driver.scope = None
    assert await stored_summary(driver) is None
    assert not any(b"question 0" in body for body in (await driver.load("k", 0)).bodies)


async def test_an_erased_run_leaves_no_form_of_another_program_behind() -> None:
    driver = InMemoryDriver()
    secret = Run("r", "hunter2", output="ok", extra={"griptape": '{"input": "hunter2"}'})
    async with Memory(driver, "k") as memory:
        await memory.append(secret)
        await memory.amend(Run("r", "[gone]", output="ok", extra=secret.extra), erase=True)
    assert not any(b"hunter2" in body for body in (await driver.load("k", 0)).bodies)
    assert secret.replace(input="[gone]").extra == {}


async def test_background_of_another_event_loop_takes_nothing() -> None:
    async with Background() as background:
        taken = await anyio.to_thread.run_sync(
            lambda: anyio.run(_submit, background, backend="asyncio"), abandon_on_cancel=False
        )
    assert taken is False


async def _submit(background: Background) -> bool:
    return background.submit(object(), "k", anyio.sleep_forever)

"""`explain` says of each run whether it is in the prompt, why (not), and what it costs."""

from __future__ import annotations

import pytest

from memkit.content import ToolCall, ToolResult
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import BudgetError
from memkit.memory import Memory
from memkit.run import Retract, Run
from memkit.strategies import Strategy, compose, everything, forget_steps, last_runs, pin, prune, where
from tests.memories import Words, run, store, summarize

pytestmark = pytest.mark.anyio

TOOLS = (ToolCall(id="1", name="f", arguments="a"), ToolResult(id="1", content="b c"))


@pytest.fixture
async def driver() -> InMemoryDriver:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(10)))
    return driver


async def test_what_is_in_the_prompt_and_what_is_not(driver: InMemoryDriver) -> None:
    strategy = compose(where(lambda run: run.id != "r8"), last_runs(5), prune(9, counter=Words()))
    async with Memory(driver, "k", strategy=strategy) as memory:
        explained = memory.explain()
        assert [item.position for item in explained.runs] == list(range(10))
        assert [item.run.id for item in explained.runs if item.is_included] == ["r6", "r7", "r9"]
        reasons = {item.run.id: item.why for item in explained.runs}
        assert reasons["r8"] == "left out by where(<lambda>)"
        assert reasons["r3"] == "left out by last_runs(5)"
        assert reasons["r4"] == reasons["r5"] == "left out by prune(9)"
        assert reasons["r9"] == ""
        assert [item.tokens for item in explained.runs] == [3] * 10
        assert (explained.tokens, explained.reserved, explained.before, explained.summary) == (9, 0, 0, None)


@pytest.mark.parametrize(
    "strategy",
    [
        last_runs(3),
        prune(12),
        compose(last_runs(6), prune(12)),
        compose(forget_steps(keep=1), prune(20)),
        pin(["r1"], last_runs(2)),
        everything,
    ],
    ids=lambda strategy: repr(strategy).split(" at ")[0],
)
@pytest.mark.parametrize("has_summary", [True, False])
async def test_it_agrees_with_the_prompt(driver: InMemoryDriver, strategy: Strategy, has_summary: bool) -> None:
    await store(driver, "k", [Run("t", "question t", TOOLS), Run("p", "unanswered", status="partial")])
    await store(driver, "k", [Retract("x", "r9", 9)])
    if has_summary:
        await summarize(driver, "k", upto=3, seen=13, content="what was")
    async with Memory(driver, "k", strategy=strategy, counter=Words(per_message=1)) as memory:
        explained = memory.explain("input", system="system", reserve=2)
        messages = memory.messages("input", system="system", reserve=2)
        included = [item for item in explained.runs if item.is_included]
        asked = [item.run.input for item in included]
        assert asked == [message["content"] for message in messages[:-1] if message["role"] == "user"]
        assert explained.reserved == 6
        summary = 3 if explained.summary else 0
        assert explained.tokens == sum(item.tokens or 0 for item in included) + summary
        assert (explained.summary is not None) == any("<summary>" in str(message) for message in messages)
        assert all(item.why for item in explained.runs if not item.is_included)


async def test_tool_traffic_that_is_left_out_is_not_paid_for(driver: InMemoryDriver) -> None:
    await store(driver, "k", [Run("t", "tools", TOOLS, "yes"), run(10)])
    async with Memory(driver, "k", strategy=forget_steps(keep=1), counter=Words()) as memory:
        *_, shortened, last = memory.explain().runs
        assert (shortened.is_included, shortened.why) == (True, "shortened by forget_steps(keep=1)")
        assert (shortened.tokens, shortened.run.steps) == (2, ())
        assert (last.is_included, last.why) == (True, "")


async def test_runs_under_a_summary(driver: InMemoryDriver) -> None:
    await summarize(driver, "k", upto=8, seen=10, content="what was said")
    async with Memory(driver, "k", counter=Words(per_message=1)) as memory:
        explained = memory.explain()
        assert explained.summary == "covers everything before position 8"
        assert {item.why for item in explained.runs[:8]} == {"covered by the summary"}
        assert [item.is_included for item in explained.runs] == [False] * 8 + [True] * 2
        assert explained.tokens == 3 + 1 + 2 * 5
    async with Memory(driver, "k", use_summary=False) as memory:
        explained = memory.explain()
        assert explained.summary is None
        assert all(item.is_included for item in explained.runs)


async def test_without_a_counter_costs_are_unknown(driver: InMemoryDriver) -> None:
    async with Memory(driver, "k") as memory:
        explained = memory.explain()
        assert explained.tokens is None
        assert {item.tokens for item in explained.runs} == {None}
        assert "unknown, there is no counter" in str(explained)


async def test_what_was_not_loaded_is_counted_in_entries() -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(500)))
    async with Memory(driver, "k", strategy=last_runs(3)) as memory:
        explained = memory.explain()
        assert explained.before == 400
        assert len(explained.runs) == 100
        assert "at most 400 older entries, not loaded" in str(explained)


async def test_the_table_has_a_line_for_each_run(driver: InMemoryDriver) -> None:
    await store(driver, "k", [Run("big", "word " * 2000, output="yes")])
    async with Memory(driver, "k", strategy=compose(last_runs(2), prune(3000, counter=Words()))) as memory:
        lines = str(memory.explain("one two", reserve=7)).splitlines()
    assert lines[0].split() == ["position", "tokens", "in", "the", "prompt?"]
    assert lines[1].split(maxsplit=2) == ["0", "3", "no: left out by last_runs(2)"]
    assert lines[11].split(maxsplit=2) == ["10", "2,001", "yes"]
    assert lines[12].split() == ["summary", "none"]
    assert lines[13] == "tokens: 2,004; reserved for other things: 9"


async def test_a_strategy_that_finds_no_room_says_so(driver: InMemoryDriver) -> None:
    async with Memory(driver, "k", strategy=prune(1, counter=Words(), on_overflow="raise")) as memory:
        with pytest.raises(BudgetError, match="newest run"):
            memory.explain()


async def test_an_empty_conversation() -> None:
    async with Memory(InMemoryDriver(), "k", counter=Words()) as memory:
        explained = memory.explain()
        assert (explained.runs, explained.tokens, explained.summary) == ((), 0, None)

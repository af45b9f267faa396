"""What is remembered, put into a list of messages that somebody else has made."""

from __future__ import annotations

from typing import Any

import pytest

from memkit.adapters.openai import to_runs
from memkit.conversation import SUMMARY_FRAME
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import BudgetError, FormatError
from memkit.memory import Memory
from memkit.messages import ChatMessage
from memkit.strategies import everything, last_runs, prune
from tests.memories import Words, run, store, summarize

pytestmark = pytest.mark.anyio

SYSTEM: ChatMessage = {"role": "system", "content": "Be brief."}
ASKED: ChatMessage = {"role": "user", "content": "And now?"}


async def remembering(**options: Any) -> Memory:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(3)))
    return Memory(driver, "k", **options)


def said(messages: list[ChatMessage]) -> list[str]:
    return [message["content"] for message in messages]


async def test_by_default_it_stands_after_the_system_messages() -> None:
    async with await remembering(strategy=last_runs(1)) as memory:
        remembered = said(memory.messages())
        developer = {"role": "developer", "content": "In verse."}
        given = [SYSTEM, developer, ASKED]
        assert said(memory.insert_into(given)) == ["Be brief.", "In verse.", *remembered, "And now?"]
        assert said(memory.insert_into([ASKED])) == [*remembered, "And now?"]
        assert said(memory.insert_into([])) == remembered
        assert given == [SYSTEM, developer, ASKED]  # the list of the caller is as it was


@pytest.mark.parametrize(("index", "before"), [(0, 0), (1, 1), (2, 2), (-1, 1), (9, 2)])
async def test_an_index_is_that_of_a_list(index: int, before: int) -> None:
    async with await remembering(strategy=everything) as memory:
        remembered = said(memory.messages())
        given = ["Be brief.", "And now?"]
        assert said(memory.insert_into([SYSTEM, ASKED], index)) == [*given[:before], *remembered, *given[before:]]


async def test_the_tokens_of_the_given_messages_are_kept_free() -> None:
    words = Words()
    async with await remembering(strategy=prune(36, counter=words)) as memory:
        whole = memory.insert_into([ASKED])
        assert len(whole) > 3
        long = {"role": "user", "content": "word " * 30}
        assert len(memory.insert_into([long])) < len(whole)
        assert memory.insert_into([long], tokens=1) == [*whole[:-1], long]
        assert memory.insert_into([ASKED], reserve=33) == [ASKED]


async def test_what_is_too_long_to_be_counted_here_is_refused_unless_it_was_counted() -> None:
    async with await remembering(strategy=prune(10_000, counter=Words())) as memory:
        long = {"role": "user", "content": "word " * 20_000}
        with pytest.raises(BudgetError, match="would block"):
            memory.insert_into([long])
        assert memory.insert_into([long], tokens=100)[-1] == long


async def test_a_message_that_is_no_json_is_refused() -> None:
    async with await remembering() as memory:
        with pytest.raises(FormatError, match="message"):
            memory.insert_into([{"role": "user", "content": object()}])


async def test_a_summary_enters_as_it_is_told_to() -> None:
    driver = InMemoryDriver()
    await store(driver, "k", map(run, range(3)))
    summary = await summarize(driver, "k", upto=2, seen=3)
    shown: dict[str, ChatMessage] = {}
    for summary_as in ("system", "developer", "user", "griptape"):
        async with Memory(driver, "k", summary_as=summary_as) as memory:
            shown[summary_as] = memory.messages()[0]
            assert memory.insert_into([])[0] == memory.messages()[0]
    block = SUMMARY_FRAME.format(summary.content)
    for role in ("system", "developer", "user"):
        assert shown[role] == {"role": role, "content": block}
    assert shown["griptape"] == {
        "role": "user",
        "content": f"The conversation so far, in short: {summary.content}",
    }


async def test_what_was_imported_can_be_inserted() -> None:
    async with await remembering(strategy=last_runs(1)) as memory:
        assert to_runs(memory.insert_into([SYSTEM, ASKED])).repairs == ()

"""The `ConversationStore` of pydantic-ai over drivers: nothing overwritten unnoticed, forks stand on their own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from pydantic_ai import Agent
from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationRecord,
    ConversationStore,
    InMemoryConversationStore,
)
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel

from memkit import (
    Driver,
    DriverError,
    FileDriver,
    FormatError,
    InMemoryDriver,
    Record,
    SqliteDriver,
    UnsupportedError,
)
from memkit.adapters.pydantic_ai import DriverConversationStore
from tests.histories import examples


@pytest.fixture
def anyio_backend() -> str:
    """pydantic-ai runs on asyncio only."""
    return "asyncio"


@pytest.fixture(params=["in memory", "file", "sqlite"])
async def driver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Driver]:
    if request.param == "sqlite":
        async with SqliteDriver(tmp_path / "store.db") as sqlite:
            yield sqlite
    else:
        yield InMemoryDriver() if request.param == "in memory" else FileDriver(tmp_path)


pytestmark = pytest.mark.anyio


def said(text: str) -> list[ModelMessage]:
    return [ModelRequest.user_text_prompt(text), ModelResponse(parts=[TextPart(text.upper())])]


def texts(messages: Sequence[ModelMessage]) -> list[str]:
    return [str(getattr(message.parts[0], "content", "")) for message in messages]


async def talk(store: ConversationStore, name: str, *questions: str, scope: str | None = None) -> Conversation:
    """Say things in a conversation, each saved by itself."""
    conversation = await store.load(name, scope=scope) or Conversation(conversation_id=name)
    for question in questions:
        conversation.messages.extend(said(question))
        await store.save(conversation, scope=scope)
    return conversation


async def test_an_agent_goes_on_where_another_process_has_left_off(driver: Driver) -> None:
    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        if isinstance(messages[-1].parts[-1], ToolReturnPart):
            return ModelResponse(parts=[TextPart(f"{len(messages)} messages")])
        return ModelResponse(parts=[ToolCallPart("look", {"at": 1})])

    agent = Agent(FunctionModel(answer))

    @agent.tool_plain
    def look(at: int) -> BinaryContent:
        """Look."""
        return BinaryContent(bytes([at, 255]), media_type="image/png")

    for expected in ("3 messages", "7 messages"):
        store = DriverConversationStore(driver)
        conversation = await store.load("me") or Conversation(conversation_id="me")
        result = await agent.run("Look!", conversation=conversation)
        await store.save(result)
        assert result.output == expected

    loaded = await DriverConversationStore(driver).load("me")
    assert loaded is not None
    assert ModelMessagesTypeAdapter.dump_json(loaded.messages) == result.all_messages_json()
    assert loaded.usage == result.usage


async def test_each_message_is_stored_once(driver: Driver) -> None:
    store = DriverConversationStore(driver)

    await talk(store, "me", "one", "two", "three")

    assert (await driver.load("pydantic-ai/me")).end == 6


async def test_a_stale_conversation_cannot_be_saved(driver: Driver) -> None:
    store, other = DriverConversationStore(driver), DriverConversationStore(driver)
    await talk(store, "me", "one")
    stale = await other.load("me")
    assert stale is not None
    await talk(store, "me", "two")

    stale.messages.extend(said("lost?"))
    with pytest.raises(ConversationConflict):
        await other.save(stale)
    with pytest.raises(ConversationConflict):
        await other.save(Conversation(conversation_id="me", messages=said("begun anew")))

    assert texts((await talk(other, "me")).messages) == ["one", "ONE", "two", "TWO"]


async def test_of_many_writers_one_wins_and_all_get_through_in_the_end(driver: Driver) -> None:
    async def write(number: int) -> None:
        while True:
            try:
                await talk(DriverConversationStore(driver), "me", f"q{number}")
            except ConversationConflict:
                continue
            return

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(write, number)

    loaded = await DriverConversationStore(driver).load("me")
    assert loaded is not None
    assert sorted(texts(loaded.messages)[::2]) == [f"q{number}" for number in range(8)]
    assert texts(loaded.messages)[1::2] == [text.upper() for text in texts(loaded.messages)[::2]]


async def test_a_window_is_read_without_the_rest(driver: Driver) -> None:
    await talk(DriverConversationStore(driver), "me", *(f"q{number}" for number in range(300)))
    store = DriverConversationStore(driver)

    window = await store.load("me", limit=3)
    whole = await store.load("me")
    none = await store.load("me", limit=0)

    assert window is not None
    assert whole is not None
    assert none is not None
    assert texts(window.messages) == ["Q298", "q299", "Q299"]
    assert len(whole.messages) == 600
    assert none.messages == []
    window.messages.extend(said("more"))
    await store.save(window)
    assert len((await talk(store, "me")).messages) == 602


async def test_a_fork_stands_on_its_own(driver: Driver) -> None:
    store = DriverConversationStore(driver)
    await talk(store, "me", "one", "two")

    fork = await DriverConversationStore(driver).fork("me", at=2, new_conversation_id="fork")
    await talk(DriverConversationStore(driver), "fork", "instead")
    await talk(store, "me", "three")
    await store.delete("me")

    assert texts(fork.messages) == ["one", "ONE"]
    assert await DriverConversationStore(driver).load("me") is None
    assert texts((await talk(DriverConversationStore(driver), "fork")).messages) == [
        "one",
        "ONE",
        "instead",
        "INSTEAD",
    ]
    assert not (await driver.load("pydantic-ai/me")).bodies


async def test_branches_stay_and_can_be_gone_back_to(driver: Driver) -> None:
    store = DriverConversationStore(driver)
    begun = await talk(store, "me", "one", "two")
    assert begun.revision is not None
    entries = await store.load_entries("me")
    assert entries is not None

    await store.branch("me", at=2, expected_revision=begun.revision)
    branched = await talk(store, "me", "instead")
    await store.fork("me", new_conversation_id="fork")
    back = await DriverConversationStore(driver).branch(
        "me", from_entry=entries[-1].id, expected_revision=branched.revision
    )

    assert texts(branched.messages) == ["one", "ONE", "instead", "INSTEAD"]
    assert texts(back.messages) == ["one", "ONE", "two", "TWO"]


async def test_listing_is_by_scope_and_newest_first(driver: Driver) -> None:
    store = DriverConversationStore(driver)
    for name, scope in (("a", "x"), ("b", "y"), ("c", "x")):
        await talk(store, name, "one", scope=scope)
    await talk(DriverConversationStore(driver, prefix="elsewhere/"), "d", "one")
    await talk(store, "a", "two", scope="x")

    assert [record.conversation_id for record in await store.list_conversations()] == ["a", "c", "b"]
    assert [record.conversation_id for record in await store.list_conversations(scope="x", limit=1)] == ["a"]


async def test_what_is_deleted_is_gone_and_its_name_is_free(driver: Driver) -> None:
    store = DriverConversationStore(driver)
    old = await talk(store, "me", "one")

    await DriverConversationStore(driver).delete("me")

    assert await store.load("me") is None
    assert await store.list_conversations() == []
    old.messages.extend(said("two"))
    with pytest.raises(ConversationConflict):
        await store.save(old)
    assert texts((await talk(store, "me", "anew")).messages) == ["anew", "ANEW"]


async def test_an_entry_that_nobody_knows_is_a_lookup_error(driver: Driver) -> None:
    store = DriverConversationStore(driver)
    (entry, _) = await store.save(Conversation(conversation_id="me", messages=said("one")))

    assert (await store.read_entry(entry.id)).message == entry.message
    with pytest.raises(LookupError, match="load it first"):
        await DriverConversationStore(driver).read_entry(entry.id)
    record = ConversationRecord(conversation_id="fork", head_id="nobody's")
    with pytest.raises(ConversationConflict):
        await store.write_record(record, expected_revision=None)


# --- faults ---


class Broken(InMemoryDriver):
    """Fails in the middle of a save: the messages are stored, the head is not."""

    is_broken = False

    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        if self.is_broken:
            raise DriverError("out of order", retryable=True)
        return await super().commit(key, head, revision=revision)


async def test_a_save_that_failed_halfway_can_be_made_again() -> None:
    driver = Broken()
    store = DriverConversationStore(driver)
    conversation = await talk(store, "me", "one")
    conversation.messages.extend(said("two"))

    driver.is_broken = True
    with pytest.raises(DriverError, match="out of order"):
        await store.save(conversation)
    assert texts((await talk(DriverConversationStore(driver), "me")).messages) == ["one", "ONE"]
    driver.is_broken = False
    await store.save(conversation)

    assert texts((await talk(store, "me")).messages) == ["one", "ONE", "two", "TWO"]


async def test_a_first_save_that_failed_halfway_leaves_no_conversation() -> None:
    driver = Broken()
    driver.is_broken = True
    with pytest.raises(DriverError):
        await talk(DriverConversationStore(driver), "me", "one")
    driver.is_broken = False

    assert await DriverConversationStore(driver).load("me") is None
    assert texts((await talk(DriverConversationStore(driver), "me", "one")).messages) == ["one", "ONE"]


async def test_a_deletion_that_failed_halfway_is_done_all_the_same() -> None:
    class Stuck(InMemoryDriver):
        is_stuck = True

        async def trim(self, key: str, before: int, /, *, epoch: str | None = None) -> int:
            if self.is_stuck:
                raise DriverError("out of order")
            return await super().trim(key, before, epoch=epoch)

    driver = Stuck()
    store = DriverConversationStore(driver)
    await talk(store, "me", "one")

    with pytest.raises(DriverError):
        await store.delete("me")

    assert await store.load("me") is None
    assert await store.list_conversations() == []
    driver.is_stuck = False
    assert texts((await talk(store, "me", "anew")).messages) == ["anew", "ANEW"]
    assert len((await driver.load("pydantic-ai/me")).bodies) == 2


async def test_what_is_saved_while_a_deletion_is_under_way_stays() -> None:
    class Slow(InMemoryDriver):
        """Lets another save before what was said is erased."""

        async def trim(self, key: str, before: int, /, *, epoch: str | None = None) -> int:
            await talk(DriverConversationStore(self.inner), "me", "anew")
            return await super().trim(key, before, epoch=epoch)

        @property
        def inner(self) -> Driver:
            other = InMemoryDriver()
            other.__dict__ = self.__dict__
            return other

    driver = Slow()
    await talk(DriverConversationStore(driver), "me", "one")

    await DriverConversationStore(driver).delete("me")

    assert texts((await talk(DriverConversationStore(driver), "me")).messages) == ["anew", "ANEW"]
    assert len((await driver.load("pydantic-ai/me")).bodies) == 2


async def test_what_a_record_claims_does_not_hide_whose_it_is() -> None:
    driver = InMemoryDriver()
    store = DriverConversationStore(driver)
    await talk(store, "me", "one")
    record = await store.read_record("me")
    assert record is not None
    await put_head(driver, "thief", head_of("thief", str(record.head_id)))

    assert [found.conversation_id for found in await store.list_conversations()] == ["me"]
    with pytest.raises(FormatError, match=r"thief.*does not have"):
        await store.load("thief")
    assert len(await store.read_history(record.head_id)) == 2
    with pytest.raises(LookupError):
        await DriverConversationStore(driver).load("thief")


@pytest.mark.parametrize(
    "head",
    [
        b'{"conversation_id":"good","head_id":"x","revision":"1","updated_at":"2026-01-02T03:04:05Z"}',
        b'{"conversation_id":"odd","revision":"1","updated_at":"2026-01-02T03:04:05Z","z":%s}' % (b"[" * 200_000),
    ],
)
async def test_a_record_that_cannot_be_read_hides_no_other(head: bytes, caplog: pytest.LogCaptureFixture) -> None:
    driver = InMemoryDriver()
    store = DriverConversationStore(driver)
    await talk(store, "good", "one")
    await put_head(driver, "odd", head)

    with pytest.raises(FormatError, match="pydantic-ai/odd"):
        await store.load("odd")
    assert [record.conversation_id for record in await store.list_conversations()] == ["good"]
    assert "pydantic-ai/odd" in caplog.text


async def test_a_time_without_a_zone_is_one_of_utc() -> None:
    driver = InMemoryDriver()
    for name, when in (("a", "2026-01-02T03:04:05"), ("b", "2026-01-02T03:04:06Z"), ("c", "2026-01-02T03:04:04Z")):
        await put_head(driver, name, head_of(name, f"of {name}", when))

    listed = await DriverConversationStore(driver).list_conversations()

    assert [record.conversation_id for record in listed] == ["b", "a", "c"]


def head_of(name: str, head_id: str, when: str = "2026-01-02T03:04:05Z") -> bytes:
    head = {"conversation_id": name, "head_id": head_id, "revision": "1", "updated_at": when}
    return json.dumps(head).encode()


async def put_head(driver: Driver, name: str, head: bytes) -> None:
    key = f"pydantic-ai/{name}"
    await driver.commit(key, head, revision=(await driver.load(key)).revision)


async def test_text_that_is_not_valid_unicode_is_replaced() -> None:
    store = DriverConversationStore(InMemoryDriver())

    await talk(store, "me", "half a \ud83d")

    assert texts((await talk(store, "me")).messages) == ["half a \ufffd", "HALF A \ufffd"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"no json", FormatError),
        (b'{"v":1,"kind":"run","id":"x","input":"Hi"}', FormatError),
        (b'{"id":"x","message":%s}' % (b"[" * 200_000), FormatError),
        (b'{"id":"x","message":{"kind":"telegram"}}', UnsupportedError),
        (b'{"id":"x","message":{"kind":"response","parts":[{"part_kind":"hologram"}]}}', UnsupportedError),
    ],
)
async def test_entries_that_cannot_be_read_are_a_typed_error(body: bytes, error: type[Exception]) -> None:
    driver = InMemoryDriver()
    store = DriverConversationStore(driver)
    await driver.append("pydantic-ai/me", [Record("x", body)])
    head = b'{"conversation_id":"me","head_id":"x","revision":"1","updated_at":"2026-01-02T03:04:05Z"}'
    await driver.commit("pydantic-ai/me", head, revision=(await driver.load("pydantic-ai/me")).revision)

    with pytest.raises(error, match="pydantic-ai/me"):
        await store.load("me")


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (b'{"v":1,"kind":"head"}', FormatError),
        (b"\xff", FormatError),
        (b'{"conversation_id":"me","head_id":"x"}', FormatError),
        (
            b'{"conversation_id":"me","head_id":7,"revision":"1","updated_at":"2026-01-02T03:04:05Z"}',
            UnsupportedError,
        ),
    ],
)
async def test_a_head_that_cannot_be_read_is_a_typed_error(head: bytes, error: type[Exception]) -> None:
    driver = InMemoryDriver()
    await driver.commit("pydantic-ai/me", head, revision="")

    with pytest.raises(error, match="pydantic-ai/me"):
        await DriverConversationStore(driver).load("me")


async def test_a_chain_of_entries_that_bites_its_tail_ends() -> None:
    driver = InMemoryDriver()
    body = b'{"id":"x","parent_id":"x","message":{"kind":"request","parts":[]}}'
    await driver.append("pydantic-ai/me", [Record("x", body)])
    head = b'{"conversation_id":"me","head_id":"x","revision":"1","updated_at":"2026-01-02T03:04:05Z"}'
    await driver.commit("pydantic-ai/me", head, revision=(await driver.load("pydantic-ai/me")).revision)

    with pytest.raises(LookupError):
        await DriverConversationStore(driver).load("me")


async def test_a_name_that_no_driver_could_store_is_a_typed_error() -> None:
    with pytest.raises(FormatError):
        await DriverConversationStore(InMemoryDriver()).load("x" * 2_000)


async def test_a_driver_that_cannot_list_says_so() -> None:
    class Plain:
        """The four methods, and no more."""

        def __init__(self) -> None:
            inner = InMemoryDriver()
            self.load, self.append, self.commit, self.delete = inner.load, inner.append, inner.commit, inner.delete

    store = DriverConversationStore(Plain())
    await talk(store, "me", "one")

    with pytest.raises(UnsupportedError, match="Plain cannot list"):
        await store.list_conversations()


# --- against the one that pydantic-ai ships ---


class Stores(RuleBasedStateMachine):
    """Does the same with theirs and with ours, in which each step is a new process."""

    names = st.sampled_from("ab")
    quarters = st.integers(0, 4)

    def __init__(self) -> None:
        super().__init__()
        self.theirs: ConversationStore = InMemoryConversationStore()
        self.driver = InMemoryDriver()
        self.asked = 0
        self.forks: list[str] = []

    def do(self, action: Any) -> None:
        """Do something with both, and expect the same of both."""
        outcomes: list[Any] = []
        for store in (self.theirs, DriverConversationStore(self.driver)):
            try:
                outcomes.append(anyio.run(action, store))
            except UserError as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1]

    @rule(name=names, window=st.none() | st.integers(0, 3), number=st.integers(1, 3))
    def say(self, name: str, window: int | None, number: int) -> None:
        self.asked += number
        messages = [message for n in range(number) for message in said(f"question {self.asked + n}")]

        async def act(store: ConversationStore) -> list[str]:
            conversation = await store.load(name, limit=window) or Conversation(conversation_id=name)
            conversation.messages.extend(messages)
            await store.save(conversation)
            return texts(conversation.messages)

        self.do(act)

    @rule(name=names, quarter=quarters)
    def branch(self, name: str, quarter: int) -> None:
        async def act(store: ConversationStore) -> list[str]:
            loaded = await store.load(name)
            at, revision = (0, None) if loaded is None else (len(loaded.messages) * quarter // 4, loaded.revision)
            return texts((await store.branch(name, at=at, expected_revision=revision)).messages)

        self.do(act)

    @rule(name=names, back=st.integers(0, 2))
    def go_back(self, name: str, back: int) -> None:
        async def act(store: ConversationStore) -> list[str]:
            record = await store.read_record(name)
            if record is None or back >= len(record.branches):
                return []
            tip, revision = record.branches[back], record.revision
            return texts((await store.branch(name, from_entry=tip, expected_revision=revision)).messages)

        self.do(act)

    @rule(name=names, quarter=quarters)
    def fork(self, name: str, quarter: int) -> None:
        into = f"fork {len(self.forks)}"
        self.forks.append(into)

        async def act(store: ConversationStore) -> list[str]:
            at = len((await store.load_entries(name)) or ()) * quarter // 4
            return texts((await store.fork(name, at=at, new_conversation_id=into)).messages)

        self.do(act)

    @rule()
    def continue_fork(self) -> None:
        if self.forks:
            self.say(self.forks[-1], None, 1)

    @rule(name=names)
    def rewrite(self, name: str) -> None:
        async def act(store: ConversationStore) -> list[str]:
            conversation = await store.load(name)
            if conversation is None:
                return []
            conversation.messages[:] = [*conversation.messages[1:3], *conversation.messages[-1:]]
            return texts([entry.message for entry in await store.save(conversation)])

        self.do(act)

    @rule(name=names, is_sure=st.sampled_from([True, False, False, False]))
    def delete(self, name: str, *, is_sure: bool) -> None:
        async def act(store: ConversationStore) -> None:
            if is_sure:
                await store.delete(name)

        self.do(act)

    @invariant()
    def both_hold_the_same(self) -> None:
        async def act(store: ConversationStore) -> list[Any]:
            found: list[Any] = []
            for name in ("a", "b", *self.forks[-2:]):
                loaded = await store.load(name)
                record = await store.read_record(name)
                found.append(loaded and texts(loaded.messages))
                found.append(record and (record.forked_from, len(record.branches)))
            return found

        self.do(act)


def test_it_does_what_the_store_of_pydantic_ai_does() -> None:
    run_state_machine_as_test(Stores, settings=examples(12))

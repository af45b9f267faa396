"""How users type things: checked by pyright and mypy in their strictest modes, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, assert_type

from rich.console import Console

import memkit
from memkit import (
    Amend,
    Appended,
    Background,
    Blob,
    ChatMessage,
    Codec,
    Content,
    Conversation,
    Counts,
    Driver,
    Entry,
    Explanation,
    Extend,
    FileDriver,
    Head,
    InMemoryDriver,
    Json,
    JsonCodec,
    ListKeys,
    Log,
    Memory,
    Opaque,
    Part,
    Record,
    Recorder,
    Redact,
    Ref,
    Retract,
    Run,
    Strategy,
    Summary,
    SummaryPolicy,
    Text,
    TokenCounter,
    ToolCall,
    ToolResult,
    Trim,
    View,
    approximate,
    capability,
    compose,
    everything,
    forget_steps,
    last_runs,
    new_id,
    new_run,
    pin,
    prune,
    since,
    text_of,
    to_content,
    transcript,
    where,
)
from memkit.adapters.openai import to_messages, to_runs
from memkit.chat import chat
from memkit.console import print_conversation
from memkit.counters import from_file, tiktoken, toktok
from memkit.recorder import Structure, Task
from memkit.testing import CountingDriver, FlakyDriver, SlowDriver, driver_checks, driver_report, strategy_checks
from memkit.transcripts import prompt_lines, questions_and_answers

# --- your own parts ---


class MyDriver:
    """A store of your own: it is a `Driver` by its shape."""

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        del key, start, stop
        return Log(epoch="e", base=0, start=0, end=1, bodies=[b"{}"], head=None, revision="r")

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
        del key, since, expect, epoch
        return Appended(0, len(records), "e")

    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        del key, head
        return revision

    async def delete(self, key: str, /) -> bool:
        return bool(key)

    async def trim(self, key: str, before: int, /, *, epoch: str | None = None) -> int:
        del key, epoch
        return before


class MyCounter:
    """A counter of your own: an attribute may be what the protocol has as a property."""

    name: str = "words"
    per_message: int = 3

    def count(self, content: Content, /) -> int:
        return len(text_of(content).split())


class MyCodec:
    """A codec of your own, around the one of memkit."""

    def __init__(self, inner: Codec, cipher: Callable[[bytes], bytes]) -> None:
        self._inner = inner
        self._cipher = cipher

    def encode(self, entry: Entry, /) -> bytes:
        return self._cipher(self._inner.encode(entry))

    def decode(self, body: bytes, /) -> Entry:
        return self._inner.decode(self._cipher(body))

    def encode_head(self, head: Head, /) -> bytes:
        return self._cipher(self._inner.encode_head(head))

    def decode_head(self, data: bytes, /) -> Head:
        return self._inner.decode_head(self._cipher(data))


def without_jokes(view: View) -> View:
    """A strategy of your own: any pure function from view to view."""
    return view.only(lambda run: not run.meta.get("joke"))


def newest(view: View) -> View:
    return view.suffix(max(0, len(view.runs) - 1))


class Shouting:
    """A strategy with settings."""

    def __init__(self, counter: TokenCounter) -> None:
        self.counter = counter

    def __call__(self, view: View) -> View:
        return view.changed(tuple(run.replace(output=text_of(run.output).upper()) for run in view.runs))


DRIVERS: list[Driver] = [
    MyDriver(),
    InMemoryDriver(),
    FileDriver("folder", durable=True),
    CountingDriver(MyDriver()),
    FlakyDriver(MyDriver(), ["before", None, "after"], calls=["append"]),
    SlowDriver(MyDriver(), 0.1),
]
COUNTERS: list[TokenCounter] = [
    MyCounter(),
    approximate(),
    tiktoken("gpt-4o"),
    toktok("o200k_base"),
    from_file("a.tiktoken", "o200k_base"),
]
CODECS: list[Codec] = [JsonCodec(), MyCodec(JsonCodec(), bytes)]
STRATEGIES: list[Strategy] = [
    without_jokes,
    newest,
    Shouting(MyCounter()),
    everything,
    last_runs(40, step=8),
    since(datetime.now(UTC)),
    where(lambda run: run.status == "complete"),
    pin(["id"], prune(1000)),
    prune(6_000, counter=approximate(), step=16, on_overflow="last"),
    forget_steps(keep=3),
    compose(without_jokes, last_runs(40), prune(6_000)),
]


async def capabilities(driver: Driver) -> None:
    trim = capability(driver, Trim)
    if trim is not None:
        assert_type(await trim.trim("key", 10, epoch="e"), int)
    redact = capability(driver, Redact)
    if redact is not None:
        await redact.redact("key", {3: b"{}"}, epoch="e")
    keys = capability(driver, ListKeys)
    if keys is not None:
        assert_type(keys.list_keys("user-"), AsyncIterator[str])


# --- values ---

CONTENTS: list[Content] = [
    "text",
    (),
    (Text(text="see"), Blob(media_type="image/png", data=b"")),
    to_content(None),
]
PARTS: list[Part] = [
    Text(text="text"),
    Json(value={"a": [1, None]}),
    Blob(media_type="image/png", data=b""),
    Ref(url="https://example.org/a.png", media_type="image/png", text="a cat"),
    ToolCall(id="1", name="look", arguments="{}"),
    ToolResult(id="1", content="nothing", error=True),
    Opaque(b'{"kind":"new"}'),
]
ENTRIES: list[Entry] = [
    new_run("question", "answer", steps=PARTS, meta={"cost": 3}),
    Run("id", "question", counts=Counts("words", 1, 0, 0, 1)),
    Extend(new_id(), "id", 0, steps=(Text(text="more"),), status="complete"),
    Amend(new_id(), 0, Run("id", "another question")),
    Retract(new_id(), "id", 0),
]


def what_is_said(run: Run) -> str:
    said: list[str] = []
    for part in run.steps:
        match part:
            case Text():
                said.append(part.text)
            case ToolCall():
                said.append(part.name + part.arguments)
            case ToolResult():
                said.append(text_of(part.content))
            case Json() | Blob() | Ref() | Opaque():
                said.append(text_of((part,)))
    return "".join(said) if isinstance(run.output, str) else text_of(run.output)


# --- the handle ---


async def ask_model(messages: list[ChatMessage]) -> str:
    return str(messages[-1]["content"])


async def quick_start() -> None:
    async with memkit.open("user-id-123") as memory:
        messages = memory.messages("What is my name?")
        answer = await ask_model(messages)
        assert_type(await memory.add("What is my name?", answer), Run)
    async with memkit.open("user-id-123", "folder", strategy=last_runs(3), retain=100) as memory:
        assert_type(memory, Memory)


async def everything_at_once(driver: Driver) -> None:
    memory = Memory(
        driver,
        "key",
        strategy=compose(without_jokes, Shouting(MyCounter()), prune(1000)),
        counter=MyCounter(),
        codec=MyCodec(JsonCodec(), bytes),
        retain=1000,
        use_summary=False,
    )
    async with memory:
        assert_type(memory.key, str)
        assert_type(memory.meta, Mapping[str, Any])
        assert_type(memory.conversation, Conversation)
        assert_type(memory.conversation.head.summary, Summary | None)
        assert_type(memory.view(reserve=10), View)
        assert_type(memory.explain("input", system="system"), Explanation)
        tokens = await memory.count("system", PARTS[0], [Text(text="x")])
        assert_type(
            memory.messages([Text(text="x")], system="system", reserve=5, tokens=tokens), list[ChatMessage]
        )
        run = await memory.add(PARTS[2], "answer", steps=["said", *PARTS], meta={"a": 1})
        assert_type(await memory.append(*ENTRIES, since=3), int)
        await memory.extend(run, drop=1, steps=PARTS[0], output="done", status="complete")
        await memory.amend(run.replace(output="better"), erase=True)
        await memory.retract(run.id, erase=True)
        await memory.update_meta({"title": "T"})
        assert_type(await memory.update_meta(lambda meta: {**meta, "n": 1}), Mapping[str, Any])
        async for stored in memory.history():
            assert_type(stored, Run)
        async with await memory.fork("copy") as copy:
            assert_type(copy, Memory)
        assert_type(await memory.trim(10), int)
        assert_type(await memory.clear(), bool)
        await memory.refresh()


async def a_turn(memory: Memory, stream: AsyncIterator[str]) -> str:
    async with memory.turn("input", early=True, meta={"a": 1}) as turn:
        turn.step("Let me look.", *PARTS)
        await turn.save()
        async for piece in stream:
            turn.write(piece)
        turn.answer(PARTS)
    return transcript([turn.run])


async def errors(memory: Memory) -> None:
    try:
        await memory.refresh()
    except memkit.ConflictError as error:
        assert_type(error.expected, object)
    except memkit.DriverError as error:
        assert_type(error.retryable, bool)
    except (memkit.FormatError, memkit.BudgetError) as error:
        raise ValueError from error
    except memkit.MemkitError:
        pass


# --- recorder, chat, transcripts ---


async def recording(memory: Memory, other: Memory) -> None:
    recorder = Recorder(memory, "per_task", keep_steps=True)
    async with recorder.structure() as structure:
        assert_type(structure, Structure)
        async with structure.task("Hi", memory=other) as task:
            assert_type(task, Task)
            assert_type(task.messages(system="Be brief."), list[ChatMessage])
            task.step("Let me see.")
            task.answer("Hello!")
            assert_type(task.output, Content)
        async with structure.task(memory=None):
            pass
        structure.answer(None)
    assert_type(structure.run, Run | None)
    Recorder(None)


async def chatting(memory: Memory) -> None:
    def at_once(messages: list[ChatMessage]) -> str:
        return str(messages)

    async def later(messages: list[ChatMessage]) -> str:
        return str(messages)

    async def in_pieces(messages: list[ChatMessage]) -> AsyncIterator[str]:
        yield str(messages)

    async def ask(prefix: str) -> str:
        return prefix

    await chat(memory, at_once, handle_input=input, handle_output=print)
    await chat(memory, later, handle_input=ask, exit_keywords={"bye"})
    await chat(memory, in_pieces, system="Be brief.", intro_text="Hi")
    runs = [run async for run in memory.history()]
    assert_type(questions_and_answers(runs, memory.view().summary), list[str])
    assert_type(prompt_lines(memory.messages()), list[str])
    print_conversation(runs, console=Console())


# --- summaries ---


async def fold(runs: Sequence[Run], /, *, previous: str | None) -> str:
    return f"{previous}{len(runs)}"


async def fold_in_pieces(runs: Sequence[Run], /, *, previous: str | None) -> AsyncIterator[str]:
    yield f"{previous}{len(runs)}"


async def fold_structured(runs: Sequence[Run], /, *, previous: str | None) -> dict[str, Any]:
    return {"facts": [previous, len(runs)]}


async def summaries(driver: Driver) -> None:
    for summarizer in (fold, fold_in_pieces, fold_structured):
        async with Background(on_failure=print) as background:
            memory = Memory(driver, "u", summarizer=summarizer, policy=SummaryPolicy(), background=background)
            async with memory:
                assert_type(await memory.summarize(), bool)
            assert_type(background.pending, int)


# --- adapters and tests ---


async def adapters(memory: Memory) -> None:
    imported = to_runs([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}])
    await memory.append(*imported.runs)
    assert_type(to_messages(imported.runs), list[ChatMessage])


async def checks() -> None:
    for check in driver_checks():
        await check(MyDriver)
    print(await driver_report(MyDriver))
    strategy_checks(without_jokes)
    strategy_checks(lambda: compose(newest, prune(100, counter=MyCounter())))

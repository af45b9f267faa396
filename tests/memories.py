"""What the tests of `Memory` share: filled stores, drivers that take notes, a counter that does."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import msgspec

from memkit.codec import JsonCodec
from memkit.content import Content, ToolCall, ToolResult, text_of
from memkit.conversation import Head, Summary
from memkit.driver import Driver, Log, Record
from memkit.memory import Memory
from memkit.run import Counts, Entry, Run
from memkit.testing import CountingDriver

CODEC = JsonCodec()


def run(n: int, output: Content = "yes") -> Run:
    """Return the run number n."""
    return Run(f"r{n}", f"question {n}", output=output, created_at=float(n))


async def store(driver: Driver, key: str, entries: Iterable[Entry]) -> None:
    """Store entries past every handle, a thousand at a time."""
    records = [Record(entry.id, CODEC.encode(entry)) for entry in entries]
    end = (await driver.load(key, 0, 0)).end
    for at in range(0, len(records), 1000):
        end = (await driver.append(key, records[at : at + 1000], since=end)).end


async def stored(driver: Driver, key: str) -> list[Entry]:
    """Return all entries that are stored."""
    return [CODEC.decode(body) for body in (await driver.load(key, 0)).bodies]


async def summarize(driver: Driver, key: str, *, upto: int, seen: int, content: str = "in short") -> Summary:
    """Commit a summary past every handle."""
    log = await driver.load(key, 0)
    upto_id = CODEC.decode(log.bodies[upto - 1 - log.start]).id if upto > log.start else ""
    head = Head() if log.head is None else CODEC.decode_head(log.head)
    # Priced as if it stood in a prompt without its frame, which has more words than the runs of these tests.
    counts = Counts(Words().name, output=len(content.split()), messages=1)
    summary = Summary(content=content, upto=upto, upto_id=upto_id, seen=seen, counts=counts)
    data = CODEC.encode_head(msgspec.structs.replace(head, summary=summary))
    await driver.commit(key, data, revision=log.revision)
    return summary


def inputs(memory: Memory) -> list[str]:
    """Return what was asked in the runs of the view."""
    return [text_of(run.input) for run in memory.view().runs]


def ids(entries: Iterable[Entry]) -> list[str]:
    """Return the ids of runs or other entries."""
    return [entry.id for entry in entries]


async def the_run(driver: Driver) -> Run:
    """Return the only run of the conversation `k`, as a new handle sees it."""
    async with Memory(driver, "k") as memory:
        (run,) = memory.view().runs
        return run


def tool_call(n: int, size: int = 10) -> tuple[ToolCall, ToolResult]:
    """Return a call, and its result of `size` characters."""
    call = ToolCall(id=f"call-{n}", name="search", arguments='{"q":"x"}')
    return call, ToolResult(id=call.id, content="r" * size)


class Spy(CountingDriver):
    """A driver that notes which slices of the log are read."""

    def __init__(self, inner: Driver, /) -> None:
        super().__init__(inner)
        self.slices: list[tuple[int, int | None]] = []

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        self.slices.append((start, stop))
        return await super().load(key, start, stop)

    def forget(self) -> None:
        """Begin anew."""
        self.slices.clear()
        for counts in (self.calls, self.bodies, self.bytes):
            counts.clear()


class Stingy(CountingDriver):
    """A driver that gives at most so many entries at a time, the last of those that it is asked for."""

    def __init__(self, inner: Driver, most: int, /) -> None:
        super().__init__(inner)
        self._most = most

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        log = await super().load(key, start, stop)
        spare = max(0, len(log.bodies) - self._most)
        return msgspec.structs.replace(log, start=log.start + spare, bodies=log.bodies[spare:])


class Words:
    """A counter of words that notes what it counts, and in which thread."""

    def __init__(self, name: str = "words", per_message: int = 0) -> None:
        self.name = name
        self.per_message = per_message
        self.counted: list[Content] = []
        self.threads: set[int] = set()

    def count(self, content: Content, /) -> int:
        if content != ():
            self.counted.append(content)
            self.threads.add(threading.get_ident())
        return len(text_of(content).split())

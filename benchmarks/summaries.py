"""Summaries: what they add to the reply path of a busy bot, and what folding several runs at a time saves."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import anyio
import msgspec

from benchmarks.corpus import runs
from benchmarks.measure import Row, readable, row, timing
from memkit import FileDriver, InMemoryDriver, Memory, Run, SummaryError, counters, text_of, transcript
from memkit.adapters.openai import to_runs
from memkit.background import Background
from memkit.summaries import SummaryPolicy
from memkit.tokens import TokenCounter

POLICY = SummaryPolicy()
CONVERSATIONS = 200
PAUSE = 1.0
"""Seconds from one turn of a user to the next, on average: a model takes as long for a short reply."""


class _Model:
    """A summariser that takes 300 ms, fails one time in five, and lists what it has read."""

    def __init__(self) -> None:
        self._random = Random(5)

    async def __call__(self, given: Sequence[Run], /, *, previous: str | None) -> str:
        await anyio.sleep(0.3)
        if self._random.random() < 0.2:
            raise OSError("503")
        return " ".join([*([previous] if previous else []), *[run.id for run in given]])


class _Bot:
    """Two hundred users at once; each request is answered by a handle of its own."""

    def __init__(self, folder: str, turns: int, counter: TokenCounter) -> None:
        self._driver = FileDriver(folder)
        self._runs = [msgspec.structs.replace(run, id=f"r{n}") for n, run in enumerate(runs(turns))]
        self._counter = counter
        self._keys = [f"user {n}" for n in range(CONVERSATIONS)]
        self.seconds: list[float] = []
        self.failed = 0

    async def talk(self, *, summarised: bool) -> None:
        """Let all users say all they have to say, and return when the last summary is made."""
        async with AsyncExitStack() as stack:
            options: dict[str, Any] = {}
            if summarised:
                background = await stack.enter_async_context(
                    Background(limit=64, tries=12, backoff=0.1, grace=120)
                )
                options = {"summarizer": _Model(), "policy": POLICY, "background": background}
            async with anyio.create_task_group() as tasks:
                for number, key in enumerate(self._keys):
                    tasks.start_soon(self._talk, key, number, options)
        if summarised:
            self.failed = background.failed

    async def _talk(self, key: str, number: int, options: dict[str, Any]) -> None:
        random = Random(number)
        await anyio.sleep(PAUSE * number / CONVERSATIONS)
        for run in self._runs:
            async with Memory(self._driver, key, counter=self._counter, **options) as memory:
                start = time.perf_counter()
                await memory.append(run)
                self.seconds.append(time.perf_counter() - start)
            await anyio.sleep(PAUSE * random.uniform(0.5, 1.5))

    async def check(self) -> tuple[int, int, int]:
        """Return how many runs are stored, how many summaries are an exact prefix, how many folds are left due."""
        stored = exact = left = 0
        names = [run.id for run in self._runs]
        for key in self._keys:
            async with Memory(self._driver, key) as memory:
                view = memory.view()
                said = text_of(view.summary.content).split() if view.summary else []
                shown = [run.id for run in view.runs]
                exact += bool(said) and [*said, *shown] == names
                left += len(shown) >= POLICY.keep + POLICY.every
                stored += [run.id async for run in memory.history()] == names
        return stored, exact, left


async def busy(*, quick: bool) -> list[Row]:
    """Return what `add` takes in a bot with summaries made in the background, beside the same bot without."""
    turns, rounds = (14, 1) if quick else (16, 3)
    counter = counters.toktok("o200k_base")
    counter.load()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    stored = exact = left = failed = 0
    for _ in range(rounds):
        for summarised in (False, True):
            with tempfile.TemporaryDirectory(prefix="memkit-") as folder:
                bot = _Bot(folder, turns, counter)
                await bot.talk(summarised=summarised)
                seconds[summarised] += bot.seconds
                if summarised:
                    found = await bot.check()
                    stored, exact, left = stored + found[0], exact + found[1], left + found[2]
                    failed += bot.failed
    total = rounds * CONVERSATIONS
    slow = [sorted(samples)[len(samples) * 99 // 100] for samples in seconds.values()]
    return [
        row("add, 200 conversations at once, with summaries", timing(seconds[True]), timing(seconds[False]), 1.1),
        Row(
            "the same, one in a hundred takes longer",
            readable(slow[1]),
            readable(slow[0]),
            slow[1] / slow[0],
            "",
            None,
        ),
        _whole("conversations with all runs stored", stored, total),
        _whole("summaries that cover exactly a prefix", exact, total),
        Row("conversations left behind after the drain", str(left), "", None, "0", left == 0),
        Row("calls of the model that failed", str(failed), "", None, "", None),
    ]


def _whole(what: str, count: int, total: int) -> Row:
    return Row(what, f"{count:,}", f"{total:,}", None, "all", count == total)


class _Reader:
    """A summariser with a fixed answer for what it reads: a line for each run, at most 4,000 characters."""

    def __init__(self, counter: TokenCounter) -> None:
        self._counter = counter
        self.calls = 0
        self.tokens = 0

    async def __call__(self, given: Sequence[Run], /, *, previous: str | None) -> str:
        self.calls += 1
        self.tokens += self._counter.count(previous or "") + self._counter.count(transcript(given))
        lines = [text_of(run.input)[:60].replace("\n", " ") for run in given]
        return "\n".join([*([previous] if previous else []), *lines])[-4_000:]


async def folds(*, quick: bool, data: Path | None) -> list[Row]:
    """Return what the summariser is sent for recorded conversations, each run at once and eight at a time."""
    if data is None:
        return [Row("recorded conversations", "not measured: give --data FILE", "", None, "", None)]
    counter = counters.toktok("o200k_base")
    counter.load()
    talks = [to_runs(talk["traj"]).runs for talk in json.loads(data.read_text("utf-8"))]
    talks = talks[:20] if quick else talks
    joined = [tuple(run for talk in talks for run in talk)]
    rows: list[Row] = []
    for name, histories in (
        (f"{len(talks)} conversations, each", talks),
        (f"all {len(joined[0]):,} runs", joined),
    ):
        found = {every: [await _folded(history, every, counter) for history in histories] for every in (1, 8)}
        for index, unit in enumerate(("calls", "tokens sent", "summaries not used")):
            one, eight = ([result[index] for result in found[every]] for every in (1, 8))
            ratio = sum(eight) / sum(one) if sum(one) else None
            what = f"{name}: {unit}, every=8 beside every=1"
            rows.append(Row(what, _each(eight), _each(one), ratio, "", None))
    return rows


def _each(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"{numbers[0]:,}"
    return f"{sum(numbers):,} (median {median(numbers):,g}, most {max(numbers):,})"


async def _folded(history: Sequence[Run], every: int, counter: TokenCounter) -> tuple[int, int, int]:
    """Return calls, tokens and failures of adding a history run by run; one run stays as it is, as in griptape."""
    reader, unused = _Reader(counter), 0
    policy = SummaryPolicy(keep=1, every=every)
    async with Memory(InMemoryDriver(), "k", counter=counter, summarizer=reader, policy=policy) as memory:
        for run in history:
            await memory.append(run)
            try:
                await memory.summarize()
            except SummaryError:  # it would save nothing
                unused += 1
    return reader.calls, reader.tokens, unused

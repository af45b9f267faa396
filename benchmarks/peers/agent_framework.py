"""agent-framework's `TruncationStrategy`, and its history in a file for each session."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from benchmarks.measure import Candidate
from benchmarks.peers.base import Held, Holder, Place, Pruner, Store, rescanning, tokens
from memkit import Run, text_of

NAME = "agent-framework"
PACKAGES = ("agent_framework",)
PROMPT_RUNS = 100


class _Tokenizer:
    def count_tokens(self, text: str) -> int:
        return len(tokens(text))


def _cold(runs: Sequence[Run], budget: int) -> Candidate:
    # Counts are kept in the messages: each time there are new ones.
    compact = _compacting(budget)
    return Candidate(compact, lambda: _messages(runs))


def _stored(runs: Sequence[Run], budget: int) -> Candidate:
    from agent_framework import Message, annotate_message_groups

    messages = _messages(runs)
    annotate_message_groups(messages, tokenizer=_Tokenizer())
    written = [message.to_dict() for message in messages]
    return Candidate(_compacting(budget), lambda: [Message.from_dict(one) for one in written])


async def _warm(runs: Sequence[Run], budget: int) -> Candidate:
    compact = _compacting(budget)
    messages = _messages(runs)
    await compact(messages)

    async def add() -> None:
        messages.extend(_messages(runs[-1:]))
        await compact(messages)

    return Candidate(add)


def _compacting(budget: int) -> Callable[[list[Any]], Any]:
    from agent_framework import TruncationStrategy, apply_compaction

    counter = _Tokenizer()
    strategy = TruncationStrategy(max_n=budget, compact_to=budget, tokenizer=counter)
    return lambda messages: apply_compaction(messages, strategy=strategy, tokenizer=counter)


@asynccontextmanager
async def _hold(place: Place, key: str, runs: Sequence[Run]) -> AsyncGenerator[Held]:
    from agent_framework import FileHistoryProvider

    def opened() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is an experiment, and says so
            return FileHistoryProvider(place.folder / "agent-framework")

    provider = opened()
    await provider.save_messages(key, _messages(runs))
    make, numbers = _maker(), count()

    async def append() -> None:
        # It drops what it holds already, by its text.
        exchange = make(f"{next(numbers)} {text_of(runs[-1].input)}", text_of(runs[-1].output))
        await provider.save_messages(key, exchange)

    async def load_all() -> object:
        loaded = await provider.get_messages(key)
        assert len(loaded) >= 2 * len(runs)
        return loaded

    async def prompt() -> object:
        return (await opened().get_messages(key))[-2 * PROMPT_RUNS :]

    yield Held(append, load_all, prompt)


def _messages(runs: Sequence[Run]) -> list[Any]:
    make = _maker()
    return [message for run in runs for message in make(text_of(run.input), text_of(run.output))]


def _maker() -> Callable[[str, str], Any]:
    from agent_framework import Message

    return lambda asked, answered: (Message("user", [asked]), Message("assistant", [answered]))


PRUNERS = (Pruner("agent-framework", PACKAGES, _cold, rescanning, _warm, _stored),)
STORES = (Store("agent-framework, file", PACKAGES, _hold, most=100_000),)
HOLDER = Holder(NAME, PACKAGES, _maker)
IMPORTS = {NAME: "agent_framework"}

"""llama-index's `ChatMemoryBuffer`, which prunes when it is read, and `Memory`, which does when it is added to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.measure import Candidate
from benchmarks.peers.base import Held, Holder, Place, Pruner, Store, rescanning, tokens
from memkit import Run, text_of

NAME = "llama-index"
PACKAGES = ("llama_index",)
STORED_PACKAGES = (*PACKAGES, "aiosqlite")
AT_ONCE = 50


def _buffer(runs: Sequence[Run], budget: int) -> Candidate:
    return Candidate(_filled(runs, budget).get, is_async=False)


def _awaited(runs: Sequence[Run], budget: int) -> Candidate:
    return Candidate(_filled(runs, budget).aget)


def _filled(runs: Sequence[Run], budget: int) -> Any:
    from llama_index.core.memory import ChatMemoryBuffer

    return ChatMemoryBuffer.from_defaults(chat_history=_messages(runs), token_limit=budget, tokenizer_fn=tokens)


def _cold(runs: Sequence[Run], budget: int) -> Candidate:
    async def fill(memory: Any) -> None:
        await memory.aput_messages(_messages(runs))
        await memory.aget()

    return Candidate(fill, lambda: _memory(budget))


async def _warm(runs: Sequence[Run], budget: int) -> Candidate:
    memory = _memory(budget)
    await memory.aput_messages(_messages(runs))

    async def add() -> None:
        await memory.aput_messages(_messages(runs[-1:]))
        await memory.aget()

    return Candidate(add)


@asynccontextmanager
async def _hold(place: Place, key: str, runs: Sequence[Run]) -> AsyncGenerator[Held]:
    """Hold a conversation in an SQLite file, with its usual limit of 30,000 tokens for what is shown.

    The engine is shared: connections stay open, as a server keeps them.
    """
    from llama_index.core.memory import Memory
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(f"sqlite+aiosqlite:///{place.folder}/llama-index-{key}.db")

    def opened() -> Any:
        return Memory.from_defaults(session_id=key, async_engine=engine, tokenizer_fn=tokens)

    memory = opened()
    for start in range(0, len(runs), AT_ONCE):
        await memory.aput_messages(_messages(runs[start : start + AT_ONCE]))

    async def append() -> None:
        await memory.aput_messages(_messages(runs[-1:]))

    async def load_all() -> object:
        loaded = await memory.aget_all()
        assert len(loaded) >= 2 * len(runs)
        return loaded

    async def prompt() -> None:
        await opened().aget()

    yield Held(append, load_all, prompt)
    await engine.dispose()


def _memory(budget: int) -> Any:
    """Return a memory whose whole budget is for what was said."""
    from llama_index.core.memory import Memory

    return Memory.from_defaults(token_limit=budget, chat_history_token_ratio=1.0, tokenizer_fn=tokens)


def _messages(runs: Sequence[Run]) -> list[Any]:
    make = _maker()
    return [message for run in runs for message in make(text_of(run.input), text_of(run.output))]


def _maker() -> Callable[[str, str], Any]:
    from llama_index.core.llms import ChatMessage, MessageRole

    user, assistant = MessageRole.USER, MessageRole.ASSISTANT
    return lambda asked, answered: (
        ChatMessage(role=user, content=asked),
        ChatMessage(role=assistant, content=answered),
    )


PRUNERS = (
    Pruner("llama-index ChatMemoryBuffer", PACKAGES, _buffer, rescanning),
    Pruner("llama-index Memory", STORED_PACKAGES, _cold, rescanning, _warm),
)
COUNTERS = (Pruner("llama-index ChatMemoryBuffer", PACKAGES, _awaited, rescanning), PRUNERS[1])
STORES = (Store("llama-index Memory, SQLite", STORED_PACKAGES, _hold, most=3_000, is_durable=True),)
HOLDER = Holder(NAME, PACKAGES, _maker)
IMPORTS = {NAME: "llama_index.core.memory"}

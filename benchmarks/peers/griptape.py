"""griptape's `ConversationMemory`: pruned while a prompt is built, stored whole after each run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.measure import Candidate
from benchmarks.peers.base import Held, Holder, Place, Pruner, Store, rescanning
from memkit import Run, text_of

NAME = "griptape"
PACKAGES = ("griptape", "openai")
PROMPT_RUNS = 100


def _prune(runs: Sequence[Run], budget: int) -> Candidate:
    from griptape.common import PromptStack
    from griptape.drivers.prompt.openai_chat_prompt_driver import OpenAiChatPromptDriver
    from griptape.tokenizers import OpenAiTokenizer

    memory = _memory(None)
    memory.runs = _runs(runs)
    driver = OpenAiChatPromptDriver(
        model="gpt-4o", api_key="none", tokenizer=OpenAiTokenizer(model="gpt-4o", max_input_tokens=budget)
    )
    return Candidate(lambda: memory.add_to_prompt_stack(driver, PromptStack()), is_async=False)


@asynccontextmanager
async def _hold(place: Place, key: str, runs: Sequence[Run]) -> AsyncGenerator[Held]:
    """Hold a conversation in a file. Its driver is not asynchronous: whatever waits, waits for it."""
    path = str(place.folder / f"griptape-{key}.json")
    memory = _memory(path)
    memory.runs = _runs(runs)
    memory.conversation_memory_driver.store(memory.runs, memory.meta)
    another = _runs(runs[-1:])[0]

    async def append() -> None:
        memory.add_run(another)

    async def load_all() -> object:
        loaded = _memory(path).runs
        assert len(loaded) >= len(runs)
        return loaded

    async def prompt() -> None:
        stack = _memory(path).to_prompt_stack(PROMPT_RUNS)
        stack.add_user_message("What is my name?")

    yield Held(append, load_all, prompt)


def _memory(path: str | None) -> Any:
    from griptape.drivers.memory.conversation.local import LocalConversationMemoryDriver
    from griptape.memory.structure import ConversationMemory

    return ConversationMemory(conversation_memory_driver=LocalConversationMemoryDriver(persist_file=path))


def _runs(runs: Sequence[Run]) -> list[Any]:
    make = _maker()
    return [make(text_of(run.input), text_of(run.output)) for run in runs]


def _maker() -> Callable[[str, str], Any]:
    from griptape.artifacts import TextArtifact
    from griptape.memory.structure import Run as GriptapeRun

    return lambda asked, answered: GriptapeRun(input=TextArtifact(asked), output=TextArtifact(answered))


PRUNERS = (Pruner("griptape", PACKAGES, _prune, rescanning),)
STORES = (Store("griptape, file", ("griptape",), _hold, most=1_000),)
HOLDER = Holder(NAME, ("griptape",), _maker)
IMPORTS = {NAME: "griptape.memory.structure"}

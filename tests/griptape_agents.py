"""What the tests with the real griptape share: the modules, a stand-in for a model, runs, memories, agents.

griptape takes seconds to import and replaces how all of the process writes JSON. So nothing of it is imported
here until a test asks for it, by `griptape_modules`, which puts that back.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import anyio

from memkit.content import text_of
from memkit.driver import Driver
from memkit.memory import Memory
from memkit.run import Run

Answer = Callable[[list[tuple[str, str]]], str]
"""Answers from the role and the text of each message."""


def say_back(messages: list[tuple[str, str]]) -> str:
    """Answer with what was asked."""
    return f"you said: {messages[-1][1]}"


@cache
def griptape_modules() -> SimpleNamespace:
    """Import griptape, and return what is needed of it by name, with the stand-in and memkit's driver."""
    before = json.JSONEncoder.default
    from griptape import artifacts
    from griptape.common import Message, PromptStack, TextMessageContent
    from griptape.configs.logging import LoggingConfig
    from griptape.drivers.memory.conversation.local import LocalConversationMemoryDriver
    from griptape.drivers.prompt import BasePromptDriver
    from griptape.memory.structure import ConversationMemory, Run, SummaryConversationMemory
    from griptape.structures import Agent, Pipeline, Workflow
    from griptape.tasks import CodeExecutionTask, PromptTask
    from griptape.tokenizers import SimpleTokenizer
    from griptape.utils import Conversation

    from memkit.adapters.griptape.driver import MemkitConversationMemoryDriver

    json.JSONEncoder.default = before  # type: ignore[method-assign]
    logging.getLogger(LoggingConfig().logger_name).setLevel(logging.CRITICAL)
    return SimpleNamespace(
        artifacts=artifacts,
        Message=Message,
        PromptStack=PromptStack,
        Local=LocalConversationMemoryDriver,
        ConversationMemory=ConversationMemory,
        SummaryConversationMemory=SummaryConversationMemory,
        Run=Run,
        Agent=Agent,
        Pipeline=Pipeline,
        Workflow=Workflow,
        PromptTask=PromptTask,
        CodeExecutionTask=CodeExecutionTask,
        Conversation=Conversation,
        Tokenizer=SimpleTokenizer,
        Memkit=MemkitConversationMemoryDriver,
        StandIn=_stand_in(BasePromptDriver, SimpleTokenizer, Message, TextMessageContent, artifacts.TextArtifact),
    )


def _stand_in(base: Any, tokenizer: Any, message: Any, text_content: Any, text: Any) -> Any:
    class StandIn(base):
        """A prompt driver that answers by a function, and notes the messages that it gets."""

        def __init__(self, answer: Answer = say_back, *, max_tokens: int = 100_000) -> None:
            limits = {"max_input_tokens": max_tokens, "max_output_tokens": 1000}
            super().__init__(
                model="stand-in",
                tokenizer=tokenizer(characters_per_token=1, **limits),
                max_attempts=1,
                after_hook=lambda _: None,
            )
            self.answer = answer
            self.prompts: list[list[tuple[str, str]]] = []
            self.lock = threading.Lock()

        def try_run(self, prompt_stack: Any) -> Any:
            said = [(item.role, item.to_text()) for item in prompt_stack.messages]
            with self.lock:
                self.prompts.append(said)
            return message([text_content(text(self.answer(said)))], role="assistant")

        def try_stream(self, prompt_stack: Any) -> Any:
            raise NotImplementedError

    return StandIn


def griptape_run(run_id: str, said: object = "", answer: object = "", **more: Any) -> Any:
    """Return a run of griptape; text becomes text artifacts."""
    gt = griptape_modules()
    text = gt.artifacts.TextArtifact
    side = [item if isinstance(item, gt.artifacts.BaseArtifact) else text(item) for item in (said, answer)]
    return gt.Run(id=run_id, input=side[0], output=side[1], **more)


def memory_on(driver: Any, key: str = "k", **more: Any) -> Any:
    """Return a memory of griptape on a driver of memkit, as another process would make it."""
    gt = griptape_modules()
    return gt.ConversationMemory(conversation_memory_driver=gt.Memkit(driver=driver, key=key), **more)


def agent_on(memory: Any, answer: Answer = say_back) -> Any:
    """Return an agent with this memory."""
    gt = griptape_modules()
    return gt.Agent(prompt_driver=gt.StandIn(answer), conversation_memory=memory)


def as_dicts(runs: Sequence[Any]) -> list[dict[str, Any]]:
    """Return runs as griptape writes them."""
    return [run.to_dict() for run in runs]


def texts(runs: Sequence[Any]) -> list[tuple[str, str]]:
    """Return what was said and answered in runs of griptape."""
    return [(run.input.to_text(), run.output.to_text()) for run in runs]


def runs_of(driver: Driver, key: str = "k") -> list[Run]:
    """Return all runs as memkit sees them."""

    async def read() -> list[Run]:
        async with Memory(driver, key) as memory:
            return [run async for run in memory.history()]

    return anyio.run(read)


def meta_of(driver: Driver, key: str = "k") -> dict[str, Any]:
    """Return the meta of a conversation as memkit sees it."""

    async def read() -> dict[str, Any]:
        async with Memory(driver, key) as memory:
            return dict(memory.meta)

    return anyio.run(read)


def said(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return what was said and answered in runs of memkit."""
    return [(text_of(run.input), text_of(run.output)) for run in runs]

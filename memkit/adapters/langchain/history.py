"""A chat message history for LangChain, over any driver.

    chain = RunnableWithMessageHistory(model, lambda key: MemkitChatMessageHistory(FileDriver(".memkit"), key))

LangChain has deprecated `BaseChatMessageHistory` and `RunnableWithMessageHistory`, and will remove them in
langchain-core 2.0: for new programs there is `memkit.adapters.langchain.agents`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Unpack

import msgspec
from anyio import to_thread

from memkit.adapters.langchain.messages import view_messages
from memkit.adapters.langchain.parts import run_of
from memkit.adapters.langchain.written import Written, exchanges, write
from memkit.adapters.portal import wait_for
from memkit.driver import Driver, check_key
from memkit.memory import Memory
from memkit.options import Options, settings_of
from memkit.run import Entry, Extend, new_id

try:
    from langchain_core.chat_history import BaseChatMessageHistory
    from langchain_core.messages import BaseMessage
except ImportError as error:
    raise ImportError(
        "memkit.adapters.langchain.history needs langchain-core 1.0 or later: pip install 'memkit[langchain]'"
    ) from error


class MemkitChatMessageHistory(BaseChatMessageHistory):
    """Keeps messages as runs in the conversation `key` of a driver. Make one for each call of a chain.

    Its messages are what the strategy keeps, each call with its result. The list that was handed out stays the
    same until messages are added, whatever others store meanwhile: LangChain takes its length for that of the
    history it has put before the input, and would otherwise lose the input. `options` are those of `Memory`.

    Inside a running event loop use the methods that begin with `a`. The others work on an event loop of their own,
    in a thread, and let the calling thread wait: give them a driver that is not used on another loop.

    Raises:
        BudgetError, SummaryError, UnsupportedError: options that do not go together, as `Memory` does.
    """

    def __init__(self, driver: Driver, key: str, **options: Unpack[Options]) -> None:
        super().__init__()
        check_key(key)
        self._driver = driver
        self._key = key
        self._options = options
        self._settings = settings_of(driver, options)
        self._handed_out: list[BaseMessage] | None = None

    async def aget_messages(self) -> list[BaseMessage]:
        """Return what the strategy keeps, read from the store the first time and after each change made here."""
        if self._handed_out is None:
            async with self._memory() as memory:
                view = memory.view()
            self._handed_out = await to_thread.run_sync(view_messages, view, self._settings.summary_as)
        return [message.model_copy(deep=True) for message in self._handed_out]

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Store messages, all or none: each human message begins a run, others go on with the newest.

        Raises:
            FormatError: a message that JSON cannot hold; it names the message and the field.
        """
        written = [write(message, f"message {index}") for index, message in enumerate(messages)]
        if not written:
            return
        async with self._memory() as memory:
            await memory.append(*_entries(memory, [written[start:stop] for start, stop in exchanges(written)]))
        self._handed_out = None

    async def aclear(self) -> None:
        """Delete the conversation, also one that cannot be read."""
        await self._driver.delete(self._key)
        self._handed_out = None

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """What `aget_messages` returns; the calling thread waits for it."""
        return wait_for(self.aget_messages)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Do what `aadd_messages` does; the calling thread waits for it."""
        wait_for(partial(self.aadd_messages, messages))

    def clear(self) -> None:
        """Do what `aclear` does; the calling thread waits for it."""
        wait_for(self.aclear)

    def _memory(self) -> Memory:
        return Memory(self._driver, self._key, **self._options)


def _entries(memory: Memory, exchanges: Sequence[Sequence[Written]]) -> list[Entry]:
    """Return what to store of messages: the rest of the newest run, if it has no answer yet, and new runs."""
    positions, runs = memory.conversation.resolved()
    first, *others = exchanges
    if not runs or runs[-1].output != () or first[0].kind == "human":
        return list(map(run_of, exchanges))
    newest = runs[-1]
    rest = run_of(first, after=newest)
    more = Extend(new_id(), newest.id, positions[-1], steps=rest.steps)
    if rest.output != ():
        more = msgspec.structs.replace(more, output=rest.output, status="complete")
    return [more, *map(run_of, others)]

"""Middleware for LangChain's agents: the part of a state that the model sees, and a memory that lasts.

    agent = create_agent(model, tools, middleware=[MemoryMiddleware(FileDriver(".memkit"))])
    await agent.ainvoke({"messages": [("user", "Hi")]}, {"configurable": {"thread_id": "user-id-123"}})

Both work with `invoke` and `ainvoke`. `invoke` does what waits on an event loop of its own, in a thread that all
of them share: a driver whose client belongs to one loop, as that of Redis does, must be used there alone.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated, Any, Final, NotRequired, Unpack, cast

from anyio import to_thread

from memkit.adapters.langchain.bounded import Bounded, Notes
from memkit.adapters.langchain.messages import view_messages
from memkit.adapters.langchain.turns import begin, may_be_stored, save, since_of, unstored
from memkit.adapters.langchain.written import is_answer, leading
from memkit.adapters.portal import wait_for
from memkit.driver import Driver
from memkit.errors import BudgetError, FormatError
from memkit.memory import Memory
from memkit.options import Options, settings_of
from memkit.strategies import Strategy

_NEEDS: Final = "memkit.adapters.langchain.agents needs langchain 1.1 or later: pip install 'memkit[langchain]'"

try:
    from langchain import __version__
    from langchain.agents import AgentState
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
    from langchain.agents.middleware.types import OmitFromSchema
    from langchain_core.messages import BaseMessage
    from langgraph.config import get_config
    from langgraph.runtime import Runtime
except ImportError as error:
    raise ImportError(_NEEDS) from error
if tuple(map(int, re.findall(r"\d+", __version__)[:2])) < (1, 1):
    raise ImportError(f"{_NEEDS}; this is {__version__}")


def thread_id(runtime: Runtime[Any]) -> str:  # noqa: ARG001 - it is in the config alone
    """Return the thread of the call: `{"configurable": {"thread_id": ...}}`.

    Raises:
        FormatError: the call names none, and there is no conversation that callers share by default.
    """
    found = get_config().get("configurable", {}).get("thread_id")
    if found in (None, ""):
        raise FormatError(
            'which conversation? Call the agent with {"configurable": {"thread_id": "..."}}, '
            "or give MemoryMiddleware(key=...) a function that says so"
        )
    return str(found)


class StrategyMiddleware(AgentMiddleware[Any, Any, Any]):
    """Shows the model the part of the state's messages that a strategy keeps; the state stays as it is.

    For agents whose state is kept by a checkpointer. What is kept is said at `Bounded`: the newest exchange
    always is, whole. `reserve` are tokens for tools and the reply.

    Raises:
        BudgetError: `reserve` is negative; or, when the model is called, as the strategy does.
    """

    def __init__(self, strategy: Strategy, *, reserve: int = 0) -> None:
        super().__init__()
        self._bounded = Bounded(strategy, reserve=reserve)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Call the model with the messages that the strategy keeps."""
        return handler(self._shown(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """Call the model with the messages that the strategy keeps. Counting is done in a thread."""
        return await handler(await to_thread.run_sync(self._shown, request))

    def _shown(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        system = [request.system_message] if request.system_message else []
        shown = self._bounded([*system, *request.messages])
        return request.override(messages=cast("list[Any]", shown[len(system) :]))


class MemoryState(AgentState[Any]):
    """What the middleware adds to the state: which runs the messages of this call are, by their first message."""

    memkit: NotRequired[Annotated[dict[str, Any], OmitFromSchema(input=True, output=True)]]


class MemoryMiddleware(AgentMiddleware[Any, Any, Any]):
    """Remembers conversations in any driver: an agent needs no checkpointer to remember.

    Before each call of the model, what is new in the state is stored, and the model sees what the memory
    remembers followed by the messages of this turn; the state has only the latter. To the strategy this turn is
    the newest run. A turn is stored as it comes, what the model asks for before it is done: if something fails, or
    the process dies, what was said before is kept as a partial run, which prompts of later turns leave out. What
    other middleware takes out of the state stays stored. Messages that an earlier call has returned may be given
    again. With a checkpointer, which interrupts need, its older messages are left out of the call, since the
    memory has them.

    `key` names the conversation of a call, by default its thread. `reserve` are tokens for tools and the reply.
    `options` are those of `Memory`: strategy, counter, summarizer and so on.

    Raises:
        BudgetError, SummaryError, UnsupportedError: options that do not go together, as `Memory` does.
        FormatError: when called: a message that JSON cannot hold, such as an artifact that is an object.
        DriverError: when called: the store failed.
    """

    state_schema = MemoryState

    def __init__(
        self,
        driver: Driver,
        *,
        key: Callable[[Runtime[Any]], str] = thread_id,
        reserve: int = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        if reserve < 0:
            raise BudgetError(f"the tokens reserved for other things must not be negative, but are {reserve}")
        self._driver = driver
        self._key = key
        self._reserve = reserve
        self._options = options
        self._settings = settings_of(driver, options)
        self._notes = Notes(self._settings.counter)

    def before_agent(self, state: Any, runtime: Runtime[Any]) -> dict[str, Any]:
        """Note which messages are new, and under which ids their runs will be stored."""
        before: dict[str, Any] = state.get("memkit") or {}
        begun = begin(state["messages"], before)
        if may_be_stored(begun, before):
            begun = wait_for(partial(self._unstored, self._key(runtime), begun, state["messages"]))
        return {"memkit": begun}

    async def abefore_agent(self, state: Any, runtime: Runtime[Any]) -> dict[str, Any]:
        """Note which messages are new, and under which ids their runs will be stored."""
        before: dict[str, Any] = state.get("memkit") or {}
        begun = begin(state["messages"], before)
        if may_be_stored(begun, before):
            begun = await self._unstored(self._key(runtime), begun, state["messages"])
        return {"memkit": begun}

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Store what is new, and call the model with what is remembered."""
        return handler(wait_for(partial(self._remembered, self._key(request.runtime), request)))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """Store what is new, and call the model with what is remembered."""
        return await handler(await self._remembered(self._key(request.runtime), request))

    def after_model(self, state: Any, runtime: Runtime[Any]) -> None:
        """Store what the model asks for, before it is done."""
        if _is_asked(state):
            wait_for(partial(self._asked, self._key(runtime), state))

    async def aafter_model(self, state: Any, runtime: Runtime[Any]) -> None:
        """Store what the model asks for, before it is done."""
        if _is_asked(state):
            await self._asked(self._key(runtime), state)

    def after_agent(self, state: Any, runtime: Runtime[Any]) -> dict[str, Any]:
        """Store the rest of the turn, which is complete."""
        return wait_for(partial(self._finished, self._key(runtime), state))

    async def aafter_agent(self, state: Any, runtime: Runtime[Any]) -> dict[str, Any]:
        """Store the rest of the turn, which is complete."""
        return await self._finished(self._key(runtime), state)

    async def _unstored(self, key: str, begun: dict[str, Any], messages: Sequence[BaseMessage]) -> dict[str, Any]:
        async with Memory(self._driver, key, **self._options) as memory:
            return await unstored(memory, begun, messages)

    async def _asked(self, key: str, state: Any) -> None:
        async with Memory(self._driver, key, **self._options) as memory:
            await save(memory, state["messages"], state["memkit"], "partial")

    async def _remembered(self, key: str, request: ModelRequest[Any]) -> ModelRequest[Any]:
        begun: dict[str, Any] = cast("Any", request.state)["memkit"]
        messages, own = request.messages, set(begun["ids"].values())
        first, since = leading(messages), since_of(messages, begun)
        system = [*([request.system_message] if request.system_message else []), *messages[:first]]
        async with Memory(self._driver, key, **self._options) as memory:
            at = await save(memory, request.state["messages"], begun, "partial")
            taken = self._reserve + await to_thread.run_sync(lambda: sum(map(self._notes.price, system)))
            view = memory.view(reserve=taken)
        # What others have said since this turn began would change the beginning of its prompt.
        hidden = own | {run.id for position, run in zip(view.positions, view.runs, strict=True) if position > at}
        view = view.only(lambda run: run.id not in hidden)
        remembered = await to_thread.run_sync(view_messages, view, self._settings.summary_as)
        return request.override(messages=cast("Any", [*messages[:first], *remembered, *messages[since:]]))

    async def _finished(self, key: str, state: Any) -> dict[str, Any]:
        messages = state["messages"]
        async with Memory(self._driver, key, **self._options) as memory:
            await save(memory, messages, state["memkit"], "complete")
        return {"memkit": {"ids": {}, "until": messages[-1].id if messages else None}}


def _is_asked(state: Any) -> bool:
    """Tell whether something is done next: an answer is stored together with the end of the turn."""
    return bool(state["messages"]) and not is_answer(state["messages"][-1])

"""An agent of pydantic-ai that remembers: history in, new messages out, and a budget while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, Final

import msgspec

from memkit.adapters.blocks import Message
from memkit.adapters.pydantic_ai.messages import exchanges, to_messages, to_run
from memkit.adapters.pydantic_ai.parts import blocks_in, mapping
from memkit.adapters.pydantic_ai.written import write
from memkit.content import clean, text_of
from memkit.conversation import View
from memkit.errors import UnsupportedError
from memkit.memory import Memory
from memkit.run import Run
from memkit.strategies import Strategy, counter_of, pin
from memkit.tokens import TokenCounter

try:
    import pydantic_ai
    from pydantic import ValidationError
    from pydantic_ai.messages import (
        CompactionPart,
        ModelMessage,
        ModelMessagesTypeAdapter,
        ModelRequest,
        SystemPromptPart,
    )
except ImportError as error:
    raise ImportError("this needs pydantic-ai, tested with 2.68: pip install -U 'memkit[pydantic-ai]'") from error


def model_messages(runs: Iterable[Run]) -> list[ModelMessage]:
    """Return runs as messages of pydantic-ai, as they were given to `remember`.

    Raises:
        UnsupportedError: this release of pydantic-ai does not know what a newer one has stored.
    """
    written = [message for run in runs for message in _dated(run)]
    try:
        return ModelMessagesTypeAdapter.validate_json(msgspec.json.encode(written))
    except ValidationError as error:
        raise UnsupportedError(
            f"pydantic-ai {pydantic_ai.__version__} cannot read what is stored; upgrade it, "
            f"or read the plain form with to_messages: {error.errors(include_input=False)[0]['msg']}"
        ) from error


def history(view: View) -> list[ModelMessage]:
    """Return what a view remembers as the `message_history` of a run: the summary, then the runs.

    The summary is a `CompactionPart`, which pydantic-ai frames. System prompts are stored where they were said, so
    a view that has lost the first run has lost them: prefer `instructions`, or add `ReinjectSystemPrompt`.

    Raises:
        UnsupportedError: as `model_messages`.
    """
    messages = model_messages(view.runs)
    if view.summary is None:
        return messages
    return [ModelRequest(parts=[CompactionPart(clean(text_of(view.summary.content)))]), *messages]


async def remember(memory: Memory, messages: pydantic_ai.AgentRunResult[Any] | Sequence[ModelMessage]) -> Run:
    """Store what is new after a run, a result or its `new_messages()`, in one write; return it as a run.

    Messages without a prompt, such as the results of deferred calls, go on with the newest run if that has no
    answer yet. Remembering the same result twice stores it twice: to be able to repeat, `append` what `to_run`
    makes of `result.new_messages_json()`.

    Raises:
        FormatError: there are no messages, or something in them cannot be stored; nothing was.
        DriverError, ConflictError: as `Memory.append`.
    """
    new = messages.new_messages() if isinstance(messages, pydantic_ai.AgentRunResult) else list(messages)
    run = to_run(write(new))
    last = next(reversed(memory.conversation.runs), None)
    if run.input != () or last is None or last.output != ():
        await memory.append(run)
        return run
    await memory.extend(last, steps=run.steps, output=run.output, status="complete")
    # Another process may have taken it back meanwhile.
    return next((run for run in memory.conversation.runs if run.id == last.id), run)


def processor(
    strategy: Strategy, *, counter: TokenCounter | None = None
) -> Callable[[list[ModelMessage]], list[ModelMessage]]:
    """Return a history processor that applies `strategy` before each request, for `ProcessHistory(...)`.

    The newest run, which is under way, stays as it is, and so do the system prompts at the beginning; what they
    cost is taken off a budget. Calls are never parted from their results. Messages that stay are not copied. What
    is cut is gone from `result.all_messages()` as well, not from `result.new_messages()`.

    Raises:
        BudgetError: when applied, as the strategy does.
    """
    by = counter or counter_of(strategy)

    def process(messages: list[ModelMessage]) -> list[ModelMessage]:
        count = sum(1 for _ in takewhile(_is_system, messages))
        system, talk = messages[:count], messages[count:]
        written = write(talk)
        spans = exchanges(written)
        if len(spans) < 2:
            return messages
        runs = [to_run(written[start:stop]) for start, stop in spans]
        told = _system_prompts(messages[: count + 1])
        reserved = 0 if by is None else sum(by.count(part.content) + by.per_message for part in told)
        view = View(runs=tuple(runs), positions=range(len(runs)), reserved=reserved)
        kept = pin({runs[-1].id}, strategy)(view.priced(by) if by else view).runs
        given = {id(run): talk[start:stop] for run, (start, stop) in zip(runs, spans, strict=True)}
        after = [message for run in kept for message in given.get(id(run)) or model_messages([run])]
        first = _system_prompts(talk[:1])
        if first and kept[0].id != runs[0].id:
            system.append(ModelRequest(parts=first))
        return [*system, *after]

    return process


def _is_system(message: ModelMessage) -> bool:
    return bool(message.parts) and len(_system_prompts([message])) == len(message.parts)


def _system_prompts(messages: Iterable[ModelMessage]) -> list[SystemPromptPart]:
    return [part for message in messages for part in message.parts if isinstance(part, SystemPromptPart)]


_DATED: Final = ("system-prompt", "user-prompt", "tool-return")


def _dated(run: Run) -> list[Message]:
    """Return a run as messages. What another program has stored has the time of the run."""
    messages = to_messages([run])
    with suppress(OverflowError, ValueError, OSError):
        when = datetime.fromtimestamp(run.created_at, UTC).isoformat()
        for message in messages:
            if message.get("kind") == "response":
                message.setdefault("timestamp", when)
            for part in map(mapping, blocks_in(message.get("parts"))):
                if part.get("part_kind") in _DATED:
                    part.setdefault("timestamp", when)
    return messages

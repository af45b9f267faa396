"""langchain-core's `trim_messages`, with a counter that is exact and with its own estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.measure import Candidate
from benchmarks.peers.base import Holder, Pruner, linear, tokens
from memkit import Run, text_of

NAME = "langchain-core"
PACKAGES = ("langchain_core",)
PER_MESSAGE = 4


def _exact(runs: Sequence[Run], budget: int) -> Candidate:
    return _trim(runs, budget, lambda messages: sum(len(tokens(one.content)) + PER_MESSAGE for one in messages))


def _approximate(runs: Sequence[Run], budget: int) -> Candidate:
    from langchain_core.messages.utils import count_tokens_approximately

    return _trim(runs, budget, count_tokens_approximately)


def _trim(runs: Sequence[Run], budget: int, counter: Callable[[Any], int]) -> Candidate:
    from langchain_core.messages import AIMessage, HumanMessage, trim_messages

    messages: list[Any] = []
    for run in runs:
        messages += HumanMessage(text_of(run.input)), AIMessage(text_of(run.output))

    def trim() -> object:
        return trim_messages(messages, max_tokens=budget, token_counter=counter, strategy="last", start_on="human")

    return Candidate(trim, is_async=False)


def _maker() -> Callable[[str, str], Any]:
    from langchain_core.messages import AIMessage, HumanMessage

    return lambda asked, answered: (HumanMessage(asked), AIMessage(answered))


PRUNERS = (
    Pruner("langchain-core", PACKAGES, _exact, linear),
    Pruner("langchain-core, approximate", PACKAGES, _approximate, linear, is_exact=False),
)
HOLDER = Holder(NAME, PACKAGES, _maker)
IMPORTS = {NAME: "langchain_core.messages.utils"}

"""What a strategy keeps of the messages of a graph's state, for the next call of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar
from weakref import ref

import msgspec

from memkit.adapters.langchain.messages import mended, to_messages
from memkit.adapters.langchain.parts import content_of, run_of
from memkit.adapters.langchain.written import DEPTH, Written, exchanges, fields_of, kind_of, leading
from memkit.conversation import View
from memkit.errors import BudgetError, FormatError
from memkit.rawjson import to_json
from memkit.run import Counts, Run, new_run
from memkit.steps import messages_of
from memkit.strategies import Strategy, counter_of
from memkit.tokens import TokenCounter

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

T = TypeVar("T")

_FIRST: Final = 32
"""How many runs a strategy is given at first; more only if it wants them."""


class Bounded:
    """Gives the model the part of a list of messages that a strategy keeps.

        shown = Bounded(prune(6_000, counter=counters.tiktoken("o200k_base")))
        answer = model.invoke(shown(state["messages"]))

    Kept are the system messages at the beginning, what `strategy` keeps of the exchanges, calls together with
    their results, and the newest exchange whole, whose tokens are reserved before the strategy chooses. `reserve`
    are tokens for what else is in the prompt and for the reply. The list and its messages are not changed, and no
    message is counted twice. For `create_react_agent`, which is deprecated, it is
    `pre_model_hook=lambda state: {"llm_input_messages": shown(state["messages"])}`.

    Raises:
        BudgetError: `reserve` is negative; or, when called, as the strategy does.
    """

    def __init__(self, strategy: Strategy, *, reserve: int = 0) -> None:
        if reserve < 0:
            raise BudgetError(f"the tokens reserved for other things must not be negative, but are {reserve}")
        self._strategy = strategy
        self._reserve = reserve
        self._notes = Notes(counter_of(strategy))

    def __call__(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Return what the model is to see. Counts what is new, which takes long where it is much."""
        first = leading(messages)
        runs = list(exchanges(messages, first))
        current = _current(runs, messages)
        older = [messages[start:stop] for start, stop in runs[:current]]
        newest = [
            made for start, stop in runs[current:] for made in self._notes.exchange(messages[start:stop]).shown()
        ]
        reserved = self._reserve + sum(map(self._notes.price, [*messages[:first], *newest]))
        return [*messages[:first], *self._kept(older, reserved), *newest]

    def _kept(self, older: Sequence[Sequence[BaseMessage]], reserved: int) -> Iterator[BaseMessage]:
        size = _FIRST
        while True:
            begin = max(0, len(older) - size)
            made = {exchange.run.id: exchange for exchange in map(self._notes.exchange, older[begin:])}
            view = self._strategy(
                View(
                    runs=tuple(exchange.run for exchange in made.values()),
                    positions=range(begin, len(older)),
                    before=begin,
                    reserved=reserved,
                    counter=self._notes.counter,
                )
            )
            if view.closed or not begin:
                break
            size *= 2
        for run in view.runs:
            exchange = made.get(run.id)
            yield from to_messages([run]) if exchange is None else exchange.shown(run)


def _current(runs: Sequence[tuple[int, int]], messages: Sequence[BaseMessage]) -> int:
    """Return the index of the first run that the model is to answer now: several inputs may wait for an answer."""
    index = max(0, len(runs) - 1)
    while index:
        start, stop = runs[index - 1]
        if stop - start > 1 or kind_of(messages[start]) != "human":
            break
        index -= 1
    return index


class Exchange(NamedTuple):
    """The messages of a run, and the run."""

    messages: Sequence[BaseMessage]
    run: Run

    def shown(self, changed: Run | None = None) -> Iterator[BaseMessage]:
        """Yield the messages as a strategy has changed the run, repaired: what is the same, as it is."""
        run = mended(self.run if changed is None else changed)
        first, last = self.run.input != (), len(self.messages) - (self.run.output != ())
        sections = {"input": slice(0, first), "steps": slice(first, last), "output": slice(last, None)}
        for name, where in sections.items():
            said = getattr(run, name)
            if said == getattr(self.run, name):
                yield from self.messages[where]
            else:
                yield from to_messages([msgspec.structs.replace(new_run(()), **{name: said})])


class _Note(NamedTuple, Generic[T]):
    """What was found out about messages, for as long as they live and are as they were."""

    messages: tuple[ref[BaseMessage], ...]
    said: tuple[tuple[object, ...], ...]
    found: T

    def is_about(self, messages: Sequence[BaseMessage]) -> bool:
        """Tell whether it is about these."""
        return len(messages) == len(self.messages) and all(
            own() is message and said == _said(message)
            for own, said, message in zip(self.messages, self.said, messages, strict=True)
        )


def _said(message: BaseMessage) -> tuple[object, ...]:
    """Return what is counted and shown of a message, to see whether somebody has put something else there."""
    names = ("content", "tool_calls", "invalid_tool_calls", "additional_kwargs")
    found: list[Any] = [getattr(message, name, None) for name in names]
    return tuple(copy(each) for each in found)  # lists and dicts may be added to


class Notes:
    """The runs and tokens of messages: each is worked out once, since a graph hands over the same objects."""

    def __init__(self, counter: TokenCounter | None) -> None:
        self.counter = counter
        self._runs: dict[int, _Note[Run]] = {}
        self._tokens: dict[int, _Note[int]] = {}

    def exchange(self, messages: Sequence[BaseMessage]) -> Exchange:
        """Return the messages of an exchange with their run, counted if there is a counter."""
        return Exchange(messages, self._noted(self._runs, messages, self._made))

    def price(self, message: BaseMessage) -> int:
        """Return what a message costs in a prompt: 0 without a counter."""
        return 0 if self.counter is None else self._count(message) + self.counter.per_message

    def _made(self, messages: Sequence[BaseMessage]) -> Run:
        run = run_of(list(map(_shown, messages)))
        if self.counter is None:
            return run
        tokens = list(map(self._count, messages))
        first, last = run.input != (), len(messages) - (run.output != ())
        said, steps, answer = sum(tokens[:first]), sum(tokens[first:last]), sum(tokens[last:])
        counts = Counts(self.counter.name, said, steps, answer, messages_of(run))
        return msgspec.structs.replace(run, counts=counts)

    def _count(self, message: BaseMessage) -> int:
        counter = self.counter
        if counter is None:
            return 0
        return self._noted(self._tokens, (message,), lambda _: counter.count(content_of(_shown(message))))

    def _noted(
        self,
        notes: dict[int, _Note[T]],
        messages: Sequence[BaseMessage],
        find: Callable[[Sequence[BaseMessage]], T],
    ) -> T:
        key = id(messages[0])
        note = notes.get(key)
        if note is None or not note.is_about(messages):
            refs = tuple(ref(message, lambda _: notes.pop(key, None)) for message in messages)
            note = notes[key] = _Note(refs, tuple(map(_said, messages)), find(messages))
        return note.found


def _shown(message: BaseMessage) -> Written:
    """Return the fields of a message that JSON can hold: no model is sent others, such as a tool's artifact."""
    fields: dict[str, Any] = {"content": message.text}
    for name, value in fields_of(message).items():
        try:
            fields[name] = to_json(value, name, DEPTH)
        except FormatError:
            continue
    return Written(fields)

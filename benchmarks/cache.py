"""What a provider's prompt cache saves: conversations turn by turn, with the steps that `prune` can have.

Each turn asks the model once, with the system text, what is remembered and the new input; a provider is taken to
have cached the prompt of the turn before, and nothing else. An agent that calls tools asks again within a turn:
those prompts only grow, and cost the same whatever the step.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import tiktoken

from benchmarks.corpus import runs, with_counts
from benchmarks.measure import Row
from memkit import ChatMessage, InMemoryDriver, Memory, Run, Strategy, View, counters, prune
from memkit.adapters.openai import to_runs
from memkit.tokens import TokenCounter, cost_of

ENCODING = "o200k_base"
BUDGETS = (4_000, 32_000, 128_000)
STEPS: tuple[int | Literal["auto"], ...] = (1, 8, 32, "auto")
"""Step 1 leaves out one run more each turn."""

ROLES = ("system", "developer", "user", "assistant", "tool")

Talk: TypeAlias = tuple[str | None, tuple[Run, ...]]
"""A system text, and the runs that follow."""


class Provider(msgspec.Struct, frozen=True):
    """What a million tokens of a prompt cost in dollars, and which of its beginning are cached.

    Of the tokens with which the prompt before began, `minimum` or more are cached, in blocks of `block`. Where a
    provider charges for writing to its cache, `written` is that price.
    """

    name: str
    uncached: float
    cached: float
    written: float
    minimum: int = 1_024
    block: int = 128

    def cached_of(self, repeated: int) -> int:
        """Return how many of the tokens that repeat the prompt before are read from the cache."""
        return 0 if repeated < self.minimum else repeated // self.block * self.block

    def price(self, tokens: int, repeated: int) -> float:
        """Return what a prompt costs."""
        cached = self.cached_of(repeated)
        new = self.uncached if tokens < self.minimum else self.written
        return (cached * self.cached + (tokens - cached) * new) / 1e6


PROVIDERS = (
    Provider("cached a tenth", 1.25, 0.125, 1.25),
    Provider("cached a tenth, written 1.25 x", 3.0, 0.3, 3.75, block=1),
    Provider("cached a half", 2.5, 1.25, 2.5),
)
"""What GPT-5, Claude Sonnet 4.5 and GPT-4o cost in 2025. The rows have the prices of the first one."""


class Result(msgspec.Struct):
    """What came of conversations with one strategy."""

    providers: Sequence[Provider]
    dollars: list[float]
    """What all turns cost, for each provider."""
    turns: int = 0
    tokens: int = 0
    cached: int = 0
    cuts: int = 0
    """How often the first run was another one than in the turn before."""
    full: int = 0
    """Turns in which runs were left out."""
    unused: int = 0
    """Tokens that the prompts of those turns had left under the budget."""

    def add(self, tokens: int, repeated: int) -> None:
        """Add a prompt, the first `repeated` tokens of which are those of the prompt before."""
        self.turns += 1
        self.tokens += tokens
        self.cached += self.providers[0].cached_of(repeated)
        for number, provider in enumerate(self.providers):
            self.dollars[number] += provider.price(tokens, repeated)

    def per_thousand(self, provider: int) -> float:
        """Return what a thousand turns cost in dollars."""
        return 1e3 * self.dollars[provider] / self.turns

    def __str__(self) -> str:
        unused = f"{self.unused / self.full:,.0f} unused" if self.full else "never full"
        return f"{self.cached / self.tokens:.1%} cached, {unused}, {self.cuts:,} cuts, ${self.per_thousand(0):.3g}"


class Remembering:
    """The limit: it remembers its cut, and moves it only when the budget is spent, to where half of it is kept.

    A strategy cannot do that: it sees the log, and not what it said of it before.
    """

    def __init__(self, max_tokens: int) -> None:
        self._fitting = prune(max_tokens)
        self._first = 0

    def __call__(self, view: View) -> View:
        fitting = self._fitting(view)
        if not fitting.runs or fitting.sums is None:
            return fitting
        if fitting.positions[0] > self._first:
            sums = fitting.sums
            half = (sums[-1] - sums[0] + 1) // 2
            self._first = fitting.positions[bisect_right(sums, sums[-1] - half, 0, len(fitting.runs)) - 1]
        return fitting.suffix(bisect_left(fitting.positions, self._first))


class Tokens:
    """Tokenises messages, each once."""

    def __init__(self, counter: TokenCounter) -> None:
        self.counter = counter
        self._encoding = tiktoken.get_encoding(ENCODING)
        self._known: dict[object, list[int]] = {}

    def in_all(self, prompt: Sequence[ChatMessage]) -> int:
        """Return how many tokens a prompt has."""
        return sum(len(self._of(message)) for message in prompt)

    def in_both(self, before: Sequence[ChatMessage], prompt: Sequence[ChatMessage]) -> int:
        """Return how many tokens two prompts begin with alike, up to within a message."""
        same = sum(1 for _ in takewhile(_is_same, zip(before, prompt, strict=False)))
        ends = [self._of(messages[same]) for messages in (before, prompt) if same < len(messages)]
        within = takewhile(_is_same, zip(*ends, strict=False)) if len(ends) == 2 else ()
        return self.in_all(prompt[:same]) + sum(1 for _ in within)

    def _of(self, message: ChatMessage) -> list[int]:
        """Return the tokens of a message: the role, what frames a message, the content."""
        role, content = message["role"], message.get("content")
        is_plain = isinstance(content, str) and len(message) == 2
        key: object = (role, content) if is_plain else json.dumps(message)
        if key not in self._known:
            text = content if is_plain else json.dumps([content, message.get("tool_calls")])
            # No token is negative: messages of different roles begin differently, at the first token.
            frame = [-1 - ROLES.index(role)] * self.counter.per_message
            self._known[key] = frame + self._encoding.encode_ordinary(str(text))
        return self._known[key]


def _is_same(pair: tuple[object, object]) -> bool:
    return pair[0] == pair[1]


async def measure(
    *,
    quick: bool,
    data: Path | None = None,
    providers: Sequence[Provider] = PROVIDERS,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Return the rows of all conversations, budgets and steps; `progress` is told what comes next."""
    counter = counters.tiktoken(ENCODING)
    counter.load()
    tokens = Tokens(counter)
    rows: list[Row] = []
    for name, talks in _histories(counter, data, quick=quick).items():
        mean = sum(cost_of(run, counter) for _, talk in talks for run in talk) / len(talks)
        for budget in BUDGETS[: 2 if quick else None]:
            if mean < budget / 2:
                continue  # hardly a run is ever left out
            title = f"{name}, {budget:,} tokens"
            makers: dict[str, Callable[[], Strategy]] = {
                f"step {step}": partial(prune, budget, step=step) for step in STEPS
            }
            makers["limit"] = partial(Remembering, budget)
            results: dict[str, Result] = {}
            for maker, make in makers.items():
                progress(f"{title}, {maker}")
                results[maker] = Result(providers, [0.0] * len(providers))
                await replay(talks, make, budget, tokens, results[maker])
            rows += _rows(title, results)
    return rows


async def replay(
    talks: Sequence[Talk], make: Callable[[], Strategy], budget: int, tokens: Tokens, result: Result
) -> None:
    """Add the prompts of conversations to a result, each with a strategy and a cache of its own."""
    for system, talk in talks:
        before: list[ChatMessage] = []
        first = 0
        async with Memory(InMemoryDriver(), "k", strategy=make(), counter=tokens.counter) as memory:
            for run in talk:
                taken = await memory.count(system, run.input)
                prompt = memory.messages(run.input, system=system, tokens=taken)
                view = memory.view(reserve=taken)
                result.add(tokens.in_all(prompt), tokens.in_both(before, prompt))
                if view.omitted or view.before:
                    result.full += 1
                    result.unused += budget - taken - sum(cost_of(kept, tokens.counter) for kept in view.runs)
                begins_at = view.positions[0] if view.runs else first
                result.cuts += begins_at != first
                before, first = prompt, begins_at
                await memory.append(run)


def _rows(title: str, results: dict[str, Result]) -> list[Row]:
    """Return a row for each step, with the dollars of the first provider, and one for each other provider."""
    limit = results.pop("limit")
    least = min(result.per_thousand(0) for result in results.values())
    rows: list[Row] = []
    for name, result in results.items():
        cost, at_best = result.per_thousand(0), limit.per_thousand(0)
        is_judged = name == "step auto"
        row = Row(
            f"{title}, {name}",
            str(result),
            f"${at_best:.3g}",
            cost / at_best,
            "the cheapest step" if is_judged else "",
            cost <= 1.01 * least if is_judged else None,
        )
        rows.append(row)
    for number, provider in enumerate(limit.providers[1:], 1):
        costs = ", ".join(f"{name} ${result.per_thousand(number):.3g}" for name, result in results.items())
        at_best = limit.per_thousand(number)
        ratio = results["step auto"].per_thousand(number) / at_best
        rows.append(Row(f"{title}, {provider.name}", costs, f"${at_best:.3g}", ratio, "", None))
    return rows


def _histories(counter: TokenCounter, data: Path | None, *, quick: bool) -> dict[str, list[Talk]]:
    """Return conversations by a name for them: those of a file, each and joined into one, or made-up ones."""
    if data is None:
        made_up = runs(600 if quick else 2_000)
        return {f"{len(made_up):,} made-up runs": [(None, with_counts(made_up, counter))]}
    talks: list[Talk] = []
    for talk in json.loads(data.read_text("utf-8"))[: 40 if quick else None]:
        found = to_runs(talk["traj"])
        system = "\n\n".join(str(message["content"]) for message in found.system)
        talks.append((system or None, with_counts(found.runs, counter)))
    joined = tuple(run for _, talk in talks for run in talk)
    return {
        f"{len(talks)} conversations, each": talks,
        f"{len(talks)} conversations joined, {len(joined):,} runs": [(talks[0][0], joined)],
    }

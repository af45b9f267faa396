"""Replay recorded conversations turn by turn, and see what memkit stores, leaves out and costs.

    python examples/replay.py conversations.jsonl
    python examples/replay.py conversations.json --budget 8000 --step 1 --step 16

FILE holds chat-completion messages: JSON Lines with a conversation on each line, or one JSON list of
conversations. A conversation is a list of messages, or an object that has one as "messages" or "traj".

Each turn is what a server does for a request: it opens a handle, builds the prompt from the system text, what
is remembered and the new input, and stores the exchange. Then it is checked that every message can be read
back as it was, and that every prompt was within the budget. If not, the exit code is 1.

The table has a line for each conversation: its turns, the tokens stored, those of the largest prompt, and for
each step how much of a prompt repeats the beginning of the prompt before (which a provider has in its cache)
and from how many prompts older runs were left out (pruned); last, the milliseconds spent in memkit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio

import memkit
from memkit import ChatMessage, FileDriver, Memory, counters
from memkit.adapters.openai import Imported, to_messages, to_runs
from memkit.tokens import cost_of

MEDIA = ("image_url", "input_audio", "file")


@dataclass
class Conversation:
    """What the file holds, and what memkit makes of it."""

    name: str
    messages: list[ChatMessage]
    imported: Imported


@dataclass
class Result:
    """What came of replaying one conversation, or all of them, with one step."""

    turns: int = 0
    stored: int = 0  # tokens of the runs in the store
    largest: int = 0  # tokens of the largest prompt
    pruned: int = 0  # prompts that leave out runs
    too_large: int = 0  # prompts that are over the budget because of the runs in them: must not be
    no_room: int = 0  # prompts that are over it without any: system text and input are too long
    repeatable: int = 0  # tokens of the prompts that have one before them
    repeated: int = 0  # tokens with which the prompt before began, too
    lost: int = 0  # conversations not read back as they were: must not be
    seconds: float = 0.0  # inside memkit

    def add(self, other: Result) -> None:
        """Add what came of another conversation."""
        largest = max(self.largest, other.largest)
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        self.largest = largest


async def replay(
    conversation: Conversation, key: str, directory: str, strategy: memkit.Strategy, budget: int, counter: Counter
) -> Result:
    """Store a conversation under `key`, turn by turn, and look at every prompt on the way."""
    result = Result()
    driver = FileDriver(directory)
    imported = conversation.imported
    system = "\n\n".join(text for message in imported.system for text in texts_of(message)) or None
    before: list[ChatMessage] = []
    for run in imported.runs:
        start = perf_counter()
        async with Memory(driver, key, strategy=strategy, counter=counter.tokens) as memory:
            tokens = await memory.count(system, run.input)
            prompt = memory.messages(run.input, system=system, tokens=tokens)
            view = memory.view(reserve=tokens)
            await memory.append(run)
        result.seconds += perf_counter() - start

        size = counter.of_messages(prompt)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(before, prompt, strict=False))
        result.turns += 1
        result.largest = max(result.largest, size)
        result.pruned += bool(view.omitted or view.before)
        result.too_large += size > budget and bool(view.runs)
        result.no_room += size > budget and not view.runs
        result.repeatable += size if before else 0
        result.repeated += counter.of_messages([message for message, _ in same])
        before = prompt

    # Another driver and another handle, which know nothing but what is stored.
    async with Memory(FileDriver(directory), key) as memory:
        runs = [run async for run in memory.history()]
    is_broken = bool(imported.repairs)
    said = to_messages(imported.runs) if is_broken else conversation.messages[len(imported.system) :]
    result.lost = to_messages(runs) != said
    result.stored = sum(cost_of(run, counter.tokens) for run in runs)
    return result


class Counter:
    """Counts the messages of a prompt one by one: a check on the arithmetic by which memkit prunes."""

    def __init__(self, encoding: str) -> None:
        # The same numbers from both. toktok is faster and needs no download: pip install 'memkit[fast]'.
        self.tokens = counters.toktok(encoding) if find_spec("toktok") else counters.tiktoken(encoding)
        self.tokens.load()
        self._of_text = cache(self.tokens.count)

    def of_messages(self, messages: list[ChatMessage]) -> int:
        """Return the tokens of messages: their texts, media, and what each costs beside."""
        return sum(map(self._of_message, messages))

    def _of_message(self, message: ChatMessage) -> int:
        content = message.get("content")
        items = content if isinstance(content, list) else []
        media = sum(item.get("type") in MEDIA for item in items if isinstance(item, dict))
        text = sum(map(self._of_text, texts_of(message)))
        return text + media * self.tokens.count((memkit.Ref(""),)) + self.tokens.per_message


def texts_of(message: ChatMessage) -> Iterator[str]:
    """Yield the texts of a message that a model reads."""
    content = message.get("content") or message.get("refusal") or ""
    for item in [content] if isinstance(content, str) else content:
        yield str(item.get("text") or item.get("refusal") or "") if isinstance(item, dict) else str(item)
    for call in (*(message.get("tool_calls") or ()), {"function": message.get("function_call")}):
        yield from map(str, (call.get("function") or call.get("custom") or {}).values())


# --- the file ---


def read(path: Path) -> list[Conversation]:
    """Read JSON, or JSON Lines. Raises `ValueError`, naming the place."""
    text = path.read_text("utf-8")
    if not text.strip():
        raise ValueError("there is no conversation in it")
    try:
        value = json.loads(text)
    except ValueError:
        lines = enumerate(text.splitlines(), 1)
        return [conversation_in(parsed(line, number), number) for number, line in lines if line.strip()]
    items = value if isinstance(value, list) and not all(map(is_message, value)) else [value]
    return [conversation_in(item, number) for number, item in enumerate(items, 1)]


def is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value


def parsed(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not JSON: {error}") from error


def conversation_in(value: Any, number: int) -> Conversation:
    messages = value.get("messages", value.get("traj")) if isinstance(value, dict) else value
    try:
        return Conversation(str(number), messages, to_runs(messages))
    except memkit.FormatError as error:
        raise ValueError(f"conversation {number}: {error}") from error


# --- the report ---


def table(results: dict[str, dict[int, Result]], totals: dict[int, Result]) -> None:
    """Print a line for each conversation, and one for all."""
    heads = ["no.", "turns", "stored", "largest"]
    heads += [head for step in totals for head in (f"repeats/{step}", f"pruned/{step}")] + ["ms"]
    rows = [row(name, list(by_step.values())) for name, by_step in results.items()]
    rows.append(row("all", list(totals.values())))
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for cells in [heads, *rows]:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))


def row(name: str, results: Sequence[Result]) -> list[str]:
    largest, seconds = max(of.largest for of in results), sum(of.seconds for of in results)
    cells = [name, f"{results[0].turns:,}", f"{results[0].stored:,}", f"{largest:,}"]
    cells += [cell for of in results for cell in (share(of), f"{of.pruned:,}")]
    return [*cells, f"{1e3 * seconds:,.0f}"]


def share(result: Result) -> str:
    return f"{result.repeated / result.repeatable:.1%}" if result.repeatable else "-"


def summary(step: int, result: Result, budget: int) -> None:
    """Print in words what came of all conversations with one step."""
    per_turn = 1e3 * result.seconds / (result.turns or 1)
    print(f"\nstep {step}: {result.pruned:,} of {result.turns:,} prompts pruned to {budget:,} tokens")
    print(f"  {share(result)} of a prompt's tokens repeat the prompt before")
    print(f"  {result.seconds:.2f} s in memkit, {per_turn:.2f} ms a turn")
    print(f"  {result.lost} conversations lost: not read back as they were")
    print(f"  {result.too_large} prompts over the budget because of the runs in them")
    if result.no_room:
        print(f"  {result.no_room} prompts over the budget without any: system text and input alone exceed it")


# --- the program ---


def progress(items: list[Conversation]) -> Iterator[Conversation]:
    """Yield conversations and show how far it has come."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        for number, item in enumerate(items, 1):
            print(f"conversation {number} of {len(items)}", file=sys.stderr)
            yield item
        return
    yield from track(items, "replaying", console=Console(stderr=True))


async def replay_all(conversations: list[Conversation], args: argparse.Namespace, directory: str) -> bool:
    """Replay all conversations; return whether all was as it must be."""
    counter = Counter(args.encoding)
    results: dict[str, dict[int, Result]] = {}
    totals = {step: Result() for step in args.step or [1, 8]}
    for conversation in progress(conversations):
        by_step = results[conversation.name] = {}
        for step, total in totals.items():
            key = f"{args.file.name}, {conversation.name}, step {step}"
            async with Memory(FileDriver(directory), key) as memory:
                if memory.conversation.end:
                    raise ValueError(f"{directory} has a replay of it already; choose another --directory")
            strategy = memkit.prune(args.budget, step=step)
            by_step[step] = await replay(conversation, key, directory, strategy, args.budget, counter)
            total.add(by_step[step])

    table(results, totals)
    messages = sum(len(conversation.messages) for conversation in conversations)
    repairs = [repair for conversation in conversations for repair in conversation.imported.repairs]
    print(f"\n{messages:,} messages in {len(conversations):,} conversations, {len(repairs)} repairs")
    for step, result in totals.items():
        summary(step, result, args.budget)
    return not any(result.lost or result.too_large for result in totals.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="recorded conversations")
    parser.add_argument("--directory", help="where to store them (default: a temporary folder)")
    parser.add_argument("--budget", type=int, default=3_000, help="tokens of a prompt (default: 3000)")
    parser.add_argument("--encoding", default="o200k_base", help="a model or encoding (default: o200k_base)")
    parser.add_argument("--limit", type=int, help="replay only so many conversations")
    parser.add_argument("--step", type=int, action="append", help="of prune; may be repeated (default: 1 and 8)")
    args = parser.parse_args()
    try:
        conversations = read(args.file)[: args.limit]
        with tempfile.TemporaryDirectory() as folder:
            is_well = anyio.run(replay_all, conversations, args, args.directory or folder)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read this has left, as `head -1` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains once more as it ends
        return 1
    except (OSError, ValueError, memkit.MemkitError) as error:
        print(f"replay.py: {args.file}: {error}", file=sys.stderr)
        return 2
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())

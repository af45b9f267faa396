"""Talk with a model that remembers, one message for each call of this program.

    python examples/session.py "Hello, my name is Collin." user-id-123
    python examples/session.py "What is my name?" user-id-123

A session may be that of a group, in which everyone is called by name:

    python examples/session.py "Hello, everyone." group-id-123 --name Zach
    python examples/session.py "Who all is here?" group-id-123 --name Matt

Any endpoint that speaks chat completions will do: set OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL, and
install the openai package. Without an endpoint a built-in stand-in answers.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec

import anyio

import memkit
from memkit import ChatMessage, counters
from memkit.transcripts import harmless

Model = Callable[[list[ChatMessage]], AsyncIterator[str]]

SYSTEM = "You are a helpful assistant. Answer in one or two sentences."
GROUP = f"{SYSTEM} You talk with a group of people: before what each of them says stands who it is."
REPLY_TOKENS = 500
"""What is kept free of the budget for the answer."""
NAME = re.compile(r"^(.+?) says: |(?i:my name is) (\w+)|I'm ([A-Z]\w*)")
"""Where the stand-in finds the name of whoever speaks."""


async def main(args: argparse.Namespace) -> None:
    model = endpoint(args.model) or stand_in
    counter = make_counter()
    strategy = memkit.prune(args.budget, counter=counter, step=8)
    # A model reads nothing but what is said, so that names the speaker; for programs, the meta of the run does.
    said, system = (f"{args.name} says: {args.text}", GROUP) if args.name else (args.text, SYSTEM)
    meta = {"name": args.name} if args.name else None
    async with memkit.open(args.session, args.directory, strategy=strategy) as memory:
        tokens = await memory.count(system, said)
        prompt = {"system": system, "reserve": REPLY_TOKENS, "tokens": tokens}
        messages = memory.messages(said, **prompt)
        explained = memory.explain(said, **prompt)

        # Whatever happens in here, an error or Ctrl-C, what has been said so far is stored.
        async with memory.turn(said, meta=meta) as turn:
            async for piece in model(messages):
                turn.write(piece)
                print(harmless(piece), end="", flush=True)
        print()

    used = (explained.tokens or 0) + tokens
    included = sum(run.is_included for run in explained.runs)
    left_out = len(explained.runs) - included + explained.before
    print(f"\nThe prompt remembered {count(included, 'earlier exchange')} and left out {left_out}.")
    print(f"It took {used:,} of {args.budget:,} tokens, beside {REPLY_TOKENS} that are kept for the answer.")


def make_counter() -> memkit.TokenCounter:
    """Count as current models of OpenAI do: with toktok if it is installed, else with tiktoken.

    Both give the same numbers. toktok is faster and needs no download: pip install 'memkit[fast]'.
    """
    return counters.toktok("o200k_base") if find_spec("toktok") else counters.tiktoken("o200k_base")


def endpoint(name: str | None) -> Model | None:
    """Return a function that asks the configured endpoint; None if there is none."""
    if not (os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")):
        return None
    try:
        from openai import AsyncOpenAI, OpenAIError
    except ImportError:
        sys.exit("session.py: an endpoint is set, but the openai package is missing: pip install openai")
    if not name:
        sys.exit("session.py: which model? Set OPENAI_MODEL, or use --model")

    async def ask(messages: list[ChatMessage]) -> AsyncIterator[str]:
        # Endpoints on one's own machine want no key, but the client does.
        async with AsyncOpenAI(api_key=os.environ.get("OPENAI_API_KEY") or "none") as client:
            try:
                stream = await client.chat.completions.create(model=name, messages=messages, stream=True)
                async for chunk in stream:
                    if chunk.choices and chunk.choices[0].delta.content:
                        yield chunk.choices[0].delta.content
            except OpenAIError as error:
                sys.exit(f"session.py: the endpoint did not answer: {error}")

    return ask


async def stand_in(messages: list[ChatMessage]) -> AsyncIterator[str]:
    """Answer without a model, from nothing but the messages, as a model would."""
    said = [message["content"] for message in messages if message["role"] == "user"]
    names = [match[match.lastindex] for text in said if (match := NAME.search(text))]
    yield "[No endpoint is set, so this is a stand-in.] "
    if not names:
        yield "I do not know your name yet."
    elif "here?" in said[-1]:
        yield f"Hello {names[-1]}! So far I have met {listed(list(dict.fromkeys(names)))} here."
    elif "?" in said[-1]:
        yield f"Your name is {names[-1]}."
    else:
        yield f"Hello {names[-1]}!"


def listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="what you say")
    parser.add_argument("session", help="whose conversation it is, a person's or a group's: any text")
    parser.add_argument("--name", help="who speaks, where several people do")
    parser.add_argument("--directory", default=".memkit", help="where conversations are kept (default: .memkit)")
    parser.add_argument("--budget", type=int, default=4_000, help="tokens for prompt and answer (default: 4000)")
    parser.add_argument("--model", default=os.environ.get("OPENAI_MODEL"), help="default: OPENAI_MODEL")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        anyio.run(main, arguments())
        sys.stdout.flush()
    except memkit.MemkitError as error:
        sys.exit(f"session.py: {error}")
    except BrokenPipeError:  # whoever read this has left, as `head -1` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains once more as it ends
        sys.exit(1)

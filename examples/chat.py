"""Chat with a model that remembers, until you type "exit".

    python examples/chat.py
    python examples/chat.py --transcript

What was said is there when you come back. Any endpoint that speaks chat completions will do: set
OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL, and install the openai package. Without an endpoint a built-in
stand-in answers.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import AsyncIterator

import anyio

import memkit
from memkit import ChatMessage
from memkit.chat import Answer, chat
from memkit.transcripts import questions_and_answers

SYSTEM = "You are a helpful assistant. Answer in one or two sentences."


async def main(args: argparse.Namespace) -> None:
    async with memkit.open(args.user, args.directory) as memory:
        intro = f'Exchanges remembered: {len(memory.view().runs)}. Type "exit" to leave.'
        await chat(memory, endpoint(args.model) or stand_in, intro_text=intro, system=SYSTEM)
        if args.transcript:
            runs = [run async for run in memory.history()]
            print("", *questions_and_answers(runs, memory.view().summary), sep="\n")


def endpoint(name: str | None) -> Answer | None:
    """Return a function that asks the configured endpoint; None if there is none."""
    if not (os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")):
        return None
    try:
        from openai import AsyncOpenAI, OpenAIError
    except ImportError:
        sys.exit("chat.py: an endpoint is set, but the openai package is missing: pip install openai")
    if not name:
        sys.exit("chat.py: which model? Set OPENAI_MODEL, or use --model")

    async def ask(messages: list[ChatMessage]) -> AsyncIterator[str]:
        # Endpoints on one's own machine want no key, but the client does.
        async with AsyncOpenAI(api_key=os.environ.get("OPENAI_API_KEY") or "none") as client:
            try:
                stream = await client.chat.completions.create(model=name, messages=messages, stream=True)
                async for chunk in stream:
                    if chunk.choices and chunk.choices[0].delta.content:
                        yield chunk.choices[0].delta.content
            except OpenAIError as error:
                sys.exit(f"\nchat.py: the endpoint did not answer: {error}")

    return ask


async def stand_in(messages: list[ChatMessage]) -> AsyncIterator[str]:
    """Answer without a model, from nothing but the messages, as a model would."""
    said = [message["content"] for message in messages if message["role"] == "user"]
    names = [name for text in said for name in re.findall(r"my name is (\w+)", text, re.IGNORECASE)]
    yield "[No endpoint is set, so this is a stand-in.] "
    if not names:
        yield "I do not know your name yet."
    elif "?" in said[-1]:
        yield f"Your name is {names[-1]}."
    else:
        yield f"Hello {names[-1]}!"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("user", nargs="?", default="me", help="whose conversation it is: any text (default: me)")
    parser.add_argument("--directory", default=".memkit", help="where conversations are kept (default: .memkit)")
    parser.add_argument("--model", default=os.environ.get("OPENAI_MODEL"), help="default: OPENAI_MODEL")
    parser.add_argument("--transcript", action="store_true", help="print all that was ever said at the end")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        anyio.run(main, arguments())
        sys.stdout.flush()
    except memkit.MemkitError as error:
        sys.exit(f"chat.py: {error}")
    except BrokenPipeError:  # whoever read this has left, as `head -1` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains once more as it ends
        sys.exit(1)
    except KeyboardInterrupt:  # what had been said is stored
        sys.exit("")

"""Talk with Claude, with a tool, and be remembered from one call of this program to the next.

    python examples/anthropic_messages.py "My name is Collin. What time is it?"
    python examples/anthropic_messages.py "What is my name?"

Set ANTHROPIC_API_KEY and ANTHROPIC_MODEL, and install the anthropic package. Without a key a stand-in answers.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

import memkit
from memkit.adapters import anthropic

Model = Callable[..., Awaitable[Any]]

SYSTEM = "You are a helpful assistant. Answer in one or two sentences."
CLOCK = {"name": "clock", "description": "Tell the time.", "input_schema": {"type": "object", "properties": {}}}
REPLY_TOKENS = 1_000
"""What is kept free of the budget for the answer."""


async def main(said: str) -> None:
    counter = memkit.approximate()
    # What tools said is forgotten after three runs, what people said when the budget is spent.
    strategy = memkit.compose(memkit.forget_steps(keep=3), memkit.prune(8_000, counter=counter, step=8))
    async with memkit.open("claude", strategy=strategy) as memory:
        reserve = REPLY_TOKENS + await memory.count(SYSTEM, said)
        prompt = anthropic.prompt(memory.view(reserve=reserve), input=said, system=SYSTEM)
        answered = await answer(prompt)
        # Exactly what was said since, thinking and signatures included, as one run.
        await memory.append(*anthropic.to_runs([{"role": "user", "content": said}, *answered]).runs)
    print("".join(block.get("text", "") for block in answered[-1]["content"]))


async def answer(prompt: anthropic.Prompt) -> list[anthropic.Message]:
    """Ask the model, and run the tools that it asks for, until it answers; return all that was said."""
    ask = endpoint() or stand_in
    said: list[anthropic.Message] = []
    while True:
        asked = {**prompt, "messages": [*prompt["messages"], *said]}
        content = await ask(**asked, tools=[CLOCK], max_tokens=REPLY_TOKENS)
        said.append({"role": "assistant", "content": content})
        calls = [block for block in content if block["type"] == "tool_use"]
        if not calls:
            return said
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "noon"} for call in calls]
        said.append({"role": "user", "content": results})


def endpoint() -> Model | None:
    """Return a function that asks the real model; None if no key is set."""
    if not os.environ.get("ANTHROPIC_API_KEY"):
        return None
    from anthropic import AsyncAnthropic

    model = os.environ.get("ANTHROPIC_MODEL") or sys.exit("which model? Set ANTHROPIC_MODEL")

    async def ask(**about: Any) -> list[dict[str, Any]]:
        async with AsyncAnthropic() as client:
            message = await client.messages.create(model=model, **about)
            return [block.model_dump(mode="json", exclude_unset=True) for block in message.content]

    return ask


async def stand_in(messages: list[dict[str, Any]], **_about: Any) -> list[dict[str, Any]]:
    """Answer without a model, from nothing but the messages, as a model would."""
    asked = messages[-1]["content"]
    if isinstance(asked, str) and "time" in asked:
        return [{"type": "tool_use", "id": "toolu_1", "name": "clock", "input": {}}]
    found = re.search(r"[Mm]y name is (\w+)\.", " ".join(str(message["content"]) for message in messages))
    name = found[1] if found else "nobody I know"
    text = f"Your name is {name}." if isinstance(asked, str) else f"It is {asked[0]['content']}, {name}."
    return [{"type": "text", "text": f"[No key is set, so this is a stand-in.] {text}"}]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default="What is my name?", help="what you say")
    return parser.parse_args()


if __name__ == "__main__":
    said = arguments().text
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads this may leave, as `head -1` does
    anyio.run(main, said)

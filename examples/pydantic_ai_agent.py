"""An agent of pydantic-ai with a tool, remembered from one call of this program to the next.

    python examples/pydantic_ai_agent.py "My name is Collin. What time is it?"
    python examples/pydantic_ai_agent.py "What is my name?"

Set PYDANTIC_AI_MODEL, such as openai:gpt-5, and the key that it wants. Without it a stand-in answers.
"""

from __future__ import annotations

import argparse
import os
import re
import signal

import anyio
from pydantic_ai import Agent
from pydantic_ai.capabilities import ProcessHistory
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel

import memkit
from memkit.adapters.pydantic_ai import history, processor, remember


async def main(said: str) -> None:
    counter = memkit.approximate()
    # What tools said is forgotten after three runs, what people said when the budget is spent.
    strategy = memkit.compose(memkit.forget_steps(keep=3), memkit.prune(8_000, counter=counter, step=8))
    agent = Agent(
        os.environ.get("PYDANTIC_AI_MODEL") or FunctionModel(stand_in),
        instructions="You are a helpful assistant. Answer in one or two sentences.",
        # While it runs as well: a run of many tool calls may outgrow what the budget had left.
        capabilities=[ProcessHistory(processor(strategy))],
    )
    agent.tool_plain(clock)
    async with memkit.open("agent", strategy=strategy) as memory:
        result = await agent.run(said, message_history=history(memory.view(reserve=1_000)))
        await remember(memory, result)
    print(result.output)


def clock() -> str:
    """Tell the time."""
    return "noon"


def stand_in(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    """Answer without a model, from nothing but the messages, as a model would."""
    last = messages[-1].parts[-1]
    if isinstance(last, UserPromptPart) and "time" in str(last.content):
        return ModelResponse(parts=[ToolCallPart("clock")])
    prompts = [part.content for message in messages for part in message.parts if isinstance(part, UserPromptPart)]
    found = re.search(r"[Mm]y name is (\w+)\.", " ".join(map(str, prompts)))
    name = found[1] if found else "nobody I know"
    told = f"It is {last.content}, {name}." if isinstance(last, ToolReturnPart) else f"Your name is {name}."
    return ModelResponse(parts=[TextPart(f"[No model is set, so this is a stand-in.] {told}")])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default="What is my name?", help="what you say")
    return parser.parse_args()


if __name__ == "__main__":
    said = arguments().text
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads this may leave, as `head -1` does
    anyio.run(main, said)

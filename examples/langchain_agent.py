"""An agent of LangChain that remembers, one turn for each call of this program, in files under ./.memkit.

    python examples/langchain_agent.py "My name is Collin. How is the weather in Oslo?" user-id-123
    python examples/langchain_agent.py "What is my name?" user-id-123

It needs LangChain: pip install 'memkit[langchain]'. With OPENAI_API_KEY and OPENAI_MODEL set, and
langchain-openai installed, that model answers; else a built-in stand-in does, which looks up the weather.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from typing import Any

import anyio
from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

import memkit
from memkit.adapters.langchain.agents import MemoryMiddleware


def weather(city: str) -> str:
    """Look up the weather in a city."""
    return f"It rains in {city}."


async def main(text: str, user: str) -> None:
    # The tools' traffic of the newest three turns, and of all that as much as fits.
    strategy = memkit.compose(
        memkit.forget_steps(keep=3), memkit.prune(6_000, counter=memkit.approximate(), step=8)
    )
    memory = MemoryMiddleware(memkit.FileDriver(".memkit"), strategy=strategy, reserve=500)
    agent = create_agent(model(), [weather], system_prompt="You are a helpful assistant.", middleware=[memory])

    # Each thread is a conversation of its own. No checkpointer is needed.
    result = await agent.ainvoke({"messages": [("user", text)]}, {"configurable": {"thread_id": user}})
    print(result["messages"][-1].text)


def model() -> BaseChatModel:
    if "OPENAI_API_KEY" in os.environ and (name := os.environ.get("OPENAI_MODEL")):
        return init_chat_model(name, model_provider="openai")
    return StandIn()


class StandIn(BaseChatModel):
    """Answers as a model would, from nothing but the messages."""

    @property
    def _llm_type(self) -> str:
        return "stand-in"

    def bind_tools(self, *_: Any, **__: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=answer(messages))])


def answer(messages: list[BaseMessage]) -> AIMessage:
    last, said = messages[-1], " ".join(message.text for message in messages if message.type == "human")
    if isinstance(last, ToolMessage):
        return AIMessage(last.text)
    if city := re.search(r"weather in (\w+)", last.text):
        call = {"name": "weather", "args": {"city": city[1]}, "id": f"call-{len(messages)}"}
        return AIMessage("", tool_calls=[call])
    name = re.search(r"[Mm]y name is (\w+)", said)
    return AIMessage(f"Your name is {name[1]}." if name else "I do not know your name yet.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="what you say")
    parser.add_argument("user", help="whose conversation it is: user-id-123")
    args = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads this may leave, as `head -1` does
    try:
        anyio.run(main, args.text, args.user)
    except memkit.MemkitError as error:
        sys.exit(f"langchain_agent.py: {error}")

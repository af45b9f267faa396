"""Talk with an agent of the OpenAI Agents SDK that remembers, one message for each call of this program.

    python examples/agents_session.py "Hello, my name is Collin." user-id-123
    python examples/agents_session.py "What is the weather in Paris?" user-id-123
    python examples/agents_session.py "What is my name?" user-id-123

It needs openai-agents. With OPENAI_API_KEY set a model of OpenAI answers, that of OPENAI_MODEL if set; without,
a built-in stand-in does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, Model, ModelResponse, RunConfig, Runner, Usage, function_tool
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

import memkit
from memkit.adapters.openai_agents import MemkitSession
from memkit.transcripts import harmless


async def main(args: argparse.Namespace) -> None:
    # What earlier questions needed of tools is forgotten; what was said stays while it fits.
    counter = memkit.approximate()
    strategy = memkit.compose(memkit.forget_steps(keep=2), memkit.prune(4_000, counter=counter, step=8))
    session = MemkitSession(args.session, memkit.FileDriver(args.directory), strategy=strategy)

    has_key = bool(os.environ.get("OPENAI_API_KEY"))
    model = os.environ.get("OPENAI_MODEL") if has_key else StandIn()
    agent = Agent("assistant", instructions="Answer in one sentence.", model=model, tools=[weather])
    config = RunConfig(tracing_disabled=not has_key)
    result = await Runner.run(agent, args.text, session=session, run_config=config)
    print(harmless(result.final_output))


@function_tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"sunny in {city}"


class StandIn(Model):
    """Answers without a model, from nothing but the items, as a model would."""

    async def get_response(self, **request: Any) -> ModelResponse:
        return ModelResponse(output=[self.reply(request["input"])], usage=Usage(), response_id=None)

    def stream_response(self, **request: Any) -> AsyncIterator[Any]:
        raise NotImplementedError("this stand-in does not stream")

    def reply(self, items: list[Any]) -> ResponseFunctionToolCall | ResponseOutputMessage:
        if items[-1].get("type") == "function_call_output":
            return said(f"It is {items[-1]['output']}.")
        asked = [item["content"] for item in items if item.get("role") == "user"]
        if city := re.search(r"weather in (\w+)", asked[-1]):
            arguments = json.dumps({"city": city[1]})
            number = f"call_{len(asked)}"
            return ResponseFunctionToolCall(
                type="function_call", call_id=number, name="weather", arguments=arguments
            )
        names = [match[1] for text in asked if (match := re.search(r"(?i:my name is) (\w+)", text))]
        if not names:
            return said("I do not know your name yet.")
        return said(f"Your name is {names[-1]}." if "?" in asked[-1] else f"Hello {names[-1]}!")


def said(text: str) -> ResponseOutputMessage:
    content = ResponseOutputText(type="output_text", text=f"[A stand-in.] {text}", annotations=[])
    return ResponseOutputMessage(id="msg", type="message", role="assistant", status="completed", content=[content])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="what you say")
    parser.add_argument("session", help="whose conversation it is: any text")
    parser.add_argument("--directory", default=".memkit", help="where conversations are kept (default: .memkit)")
    return parser.parse_args()


if __name__ == "__main__":
    args = arguments()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads this may leave, as `head -1` does
    try:
        asyncio.run(main(args))
    except memkit.MemkitError as error:
        sys.exit(f"agents_session.py: {error}")

"""One turn of a real agent, remembered and saved, then acknowledged: a process to be killed after that.

python -m tests.pydantic_ai_turn FOLDER SAID [forget]
"""

from __future__ import annotations

import sys
import time

import anyio
from pydantic_ai import Agent
from pydantic_ai.conversation import Conversation
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

import memkit
from memkit.adapters.pydantic_ai import DriverConversationStore, history, remember

BUDGET = memkit.compose(memkit.forget_steps(keep=0), memkit.prune(60, counter=memkit.approximate()))


def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    """Call the tool once in every run, then tell what was in the prompt."""
    if isinstance(messages[-1].parts[-1], ToolReturnPart):
        return ModelResponse(parts=[TextPart(f"seen: {', '.join(map(shape, messages))}")])
    return ModelResponse(parts=[TextPart("Let me look."), ToolCallPart("look", {"at": len(messages)})])


def shape(message: ModelMessage) -> str:
    kind = "asks" if isinstance(message, ModelRequest) else "says"
    return f"{kind} {'+'.join(part.part_kind for part in message.parts)}"


async def main(folder: str, said: str, *more: str) -> None:
    agent = Agent(FunctionModel(answer))

    @agent.tool_plain
    def look(at: int) -> str:
        """Look."""
        return f"a cat at {at}"

    strategy = BUDGET if more else memkit.last_runs(100)
    async with memkit.open("me", folder, strategy=strategy) as memory:
        result = await agent.run(said, message_history=history(memory.view()))
        await remember(memory, result)
    conversation = Conversation(conversation_id=said, messages=result.all_messages())
    await DriverConversationStore(memkit.FileDriver(folder)).save(conversation)
    print(result.output, flush=True)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
    time.sleep(60)

"""Sessions in Amazon DynamoDB: one message for each call of this program, a person's or a group's.

    python examples/dynamodb_sessions.py "Hello my name is Collin." user-id-123
    python examples/dynamodb_sessions.py "What is my name?" user-id-123

    python examples/dynamodb_sessions.py "Hello my name is Zach." group-id-123 --name Zach
    python examples/dynamodb_sessions.py "And I'm Matt" group-id-123 --name Matt
    python examples/dynamodb_sessions.py "And I'm Collin, who all is here?" group-id-123 --name Collin

Region and credentials are found as the AWS tools find them. --local needs no account: it takes a DynamoDB Local
that listens on port 8000, or at --endpoint. With OPENAI_API_KEY and OPENAI_MODEL set a model answers (pip install
openai), else a built-in stand-in.
"""

from __future__ import annotations

import argparse
import os
import re
import sys

import anyio

import memkit
from memkit import ChatMessage, Memory
from memkit.drivers import dynamodb
from memkit.transcripts import harmless

SYSTEM = "You are a helpful assistant. Answer in one or two sentences."
GROUP = f"{SYSTEM} You talk with a group of people: before what each of them says stands who it is."
LOCAL = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
    "AWS_DEFAULT_REGION": "us-east-1",
}
LOCAL_ENDPOINT = "http://127.0.0.1:8000"
NAME = re.compile(r"^(.+?) says: |(?i:my name is) (\w+)|I'm ([A-Z]\w*)")
"""Where the stand-in finds the name of whoever speaks."""


async def main(args: argparse.Namespace) -> None:
    endpoint = args.endpoint
    if args.local:
        endpoint = endpoint or LOCAL_ENDPOINT  # whatever the environment says: it may mean a real account
        for name, value in LOCAL.items():
            os.environ.setdefault(name, value)
        await dynamodb.create_table(args.table, endpoint_url=endpoint)
    said, system = (f"{args.name} says: {args.text}", GROUP) if args.name else (args.text, SYSTEM)
    async with (
        dynamodb.connect(args.table, endpoint_url=endpoint) as driver,
        Memory(driver, args.session) as memory,
    ):
        messages = memory.messages(said, system=system)
        answer = await (ask_model if os.environ.get("OPENAI_API_KEY") else stand_in)(messages)
        await memory.add(said, answer, meta={"name": args.name} if args.name else None)
    print(harmless(answer))


async def ask_model(messages: list[ChatMessage]) -> str:
    from openai import AsyncOpenAI, OpenAIError

    async with AsyncOpenAI() as client:
        try:
            reply = await client.chat.completions.create(model=os.environ["OPENAI_MODEL"], messages=messages)
        except OpenAIError as error:
            sys.exit(f"dynamodb_sessions.py: the model did not answer: {error}")
    return reply.choices[0].message.content or ""


async def stand_in(messages: list[ChatMessage]) -> str:
    """Answer without a model, from nothing but the messages, as a model would."""
    said = [message["content"] for message in messages if message["role"] == "user"]
    names = [match[match.lastindex] for text in said if (match := NAME.search(text))]
    if "here?" in said[-1]:
        return f"So far I have met {', '.join(dict.fromkeys(names)) or 'nobody'}."
    if "?" in said[-1]:
        return f"Your name is {names[-1]}." if names else "I do not know your name yet."
    return f"Hello {names[-1]}!" if names else "Hello!"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="what you say")
    parser.add_argument("session", help="whose conversation it is, a person's or a group's: any text")
    parser.add_argument("--name", help="who speaks, where several people do")
    parser.add_argument("--table", default="memkit-sessions", help="default: memkit-sessions")
    parser.add_argument("--endpoint", help="URL of the service (default: as the AWS tools find it)")
    parser.add_argument("--local", action="store_true", help="DynamoDB Local; the table is made if it is missing")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        anyio.run(main, arguments())
    except memkit.MemkitError as error:
        sys.exit(f"dynamodb_sessions.py: {error}")

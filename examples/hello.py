"""Remember something, and put it into a prompt. Runs as it is: `python examples/hello.py`."""

import argparse
import signal
import tempfile

import anyio

import memkit


async def main(directory: str) -> list[memkit.ChatMessage]:
    async with memkit.open("user-id-123", directory) as memory:
        await memory.add("Hello, my name is Collin.", "Hello Collin! How can I help you?")

    # Another handle, as in another process or on another day: what was added is there.
    async with memkit.open("user-id-123", directory) as memory:
        return memory.messages("What is my name?")


argparse.ArgumentParser(description=__doc__).parse_args()  # --help, and nothing else
with tempfile.TemporaryDirectory() as folder:
    messages = anyio.run(main, folder)

signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `python examples/hello.py | head -1` ends quietly
for message in messages:
    print(f"{message['role']:>9}: {message['content']}")

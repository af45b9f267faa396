"""Remember something, and put it into a prompt. Runs as it is: `python examples/hello.py`."""

import tempfile

import anyio

import memkit


async def main(directory: str) -> None:
    async with memkit.open("user-id-123", directory) as memory:
        await memory.add("Hello, my name is Collin.", "Hello Collin! How can I help you?")

    # Another handle, as in another process or on another day: what was added is there.
    async with memkit.open("user-id-123", directory) as memory:
        for message in memory.messages("What is my name?"):
            print(f"{message['role']:>9}: {message['content']}")


with tempfile.TemporaryDirectory() as folder:
    anyio.run(main, folder)

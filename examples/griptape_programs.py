"""Three programs of griptape's documentation, as they are with memkit: a buffer, a summary, a file.

    python examples/griptape_programs.py                # all three, offline
    python examples/griptape_programs.py buffer summary

A stand-in answers, and another one summarises, so that they run anywhere and print the same each time.
docs/griptape.md says for each class, parameter and method of griptape's memory what it is here.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence

import anyio

import memkit
from memkit import ChatMessage, FileDriver, InMemoryDriver, Memory, Run, SummaryPolicy, last_runs, text_of
from memkit.transcripts import prompt_lines, questions_and_answers

QUESTIONS = [
    "Hello, my name is John.",
    "What is my name?",
    "My favourite colour is blue, and I like cats more than dogs.",
    "What is my favourite colour?",
]


async def buffer() -> None:
    """BufferConversationMemory(buffer_size=3): all is kept, the newest three exchanges are sent."""
    async with Memory(InMemoryDriver(), "user", strategy=last_runs(3)) as memory:
        for question in QUESTIONS:
            await memory.add(question, answer(memory.messages(question)))
        print(f"{len(memory.conversation.runs)} exchanges are stored, the prompt has {len(memory.view().runs)}:")
        show(prompt_lines(memory.messages()))


async def summary() -> None:
    """SummaryConversationMemory(offset=2): all but the newest two are summed up, a call for each exchange."""
    policy = SummaryPolicy(keep=2, every=1)
    async with Memory(InMemoryDriver(), "user", summarizer=summarize, policy=policy) as memory:
        for question in QUESTIONS[:3]:
            await memory.add(question, answer(memory.messages(question)))
            await memory.summarize()  # or Memory(background=...), and nobody waits for it
        runs = [run async for run in memory.history()]
        show(questions_and_answers(runs, memory.view().summary))


async def file() -> None:
    """LocalConversationMemoryDriver(persist_file=...): stored by one handle, read by another."""
    with tempfile.TemporaryDirectory() as folder:
        driver = FileDriver(folder)
        async with Memory(driver, "user") as memory:
            for question in QUESTIONS[:2]:
                await memory.add(question, answer(memory.messages(question)))
        async with Memory(driver, "user") as memory:  # as in another process, on another day
            question = "And who am I?"
            await memory.add(question, answer(memory.messages(question)))
            show(questions_and_answers([run async for run in memory.history()]))


def answer(messages: list[ChatMessage]) -> str:
    """Answer as a model would, from nothing but the messages."""
    said = " ".join(message["content"] for message in messages)
    question = messages[-1]["content"]
    if "name is John" not in said:
        return "I do not know your name yet. How can I help you today?"
    if question.startswith("Hello"):
        return "Hello John! It is good to meet you. How can I assist you today?"
    if "name" in question or "who" in question:
        return "Your name is John, as you told me when we began. How can I help you further?"
    if "What" in question:
        return "It is blue." if "colour is blue" in said else "You have not told me."
    return "Blue is a great colour! It is often associated with calmness. Is there anything else you like?"


async def summarize(runs: Sequence[Run], *, previous: str | None) -> str:
    """Sum up as a model would, in a few words. Yours asks one: see memkit.summarizers."""
    told = [text_of(run.input) for run in runs if "?" not in text_of(run.input)]
    return " ".join([*([previous] if previous else []), f"The user said: {' '.join(told)}"])


def show(lines: list[str]) -> None:
    print(*lines, "", sep="\n")


PROGRAMS = {"buffer": buffer, "summary": summary, "file": file}


async def main(names: Sequence[str]) -> None:
    for name in names:
        program = PROGRAMS[name]
        print(f"--- {name}: {program.__doc__}")
        await program()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names, choices = ", ".join(PROGRAMS), [*PROGRAMS, []]  # the last is what none at all becomes
    parser.add_argument("program", nargs="*", choices=choices, metavar="PROGRAM", help=f"by default {names}")
    arguments = parser.parse_args()
    try:
        anyio.run(main, arguments.program or list(PROGRAMS))
        sys.stdout.flush()
    except memkit.MemkitError as error:
        sys.exit(f"griptape_programs.py: {error}")
    except BrokenPipeError:  # whoever read this has left, as `head -1` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains once more as it ends
        sys.exit(1)

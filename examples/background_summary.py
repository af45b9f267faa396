"""Several conversations at once, whose older exchanges become summaries while replies go out.

    python examples/background_summary.py
    python examples/background_summary.py --failures 3 --directory chats

Any endpoint that speaks chat completions will make the summaries: set OPENAI_BASE_URL, OPENAI_API_KEY and
OPENAI_MODEL, and install the openai package. Without an endpoint a built-in stand-in makes them.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial

import anyio

from memkit import (
    Background,
    FileDriver,
    InMemoryDriver,
    MemkitError,
    Memory,
    Run,
    Summarizer,
    SummaryPolicy,
    text_of,
)
from memkit.transcripts import prompt_lines

PEOPLE = {"collin": "Lisbon", "mei": "Oslo", "amara": "Kyoto"}

POLICY = SummaryPolicy(keep=2, every=4)
"""The newest two exchanges stay as they are; older ones are folded into the summary, four at a time."""


async def main(args: argparse.Namespace) -> None:
    logging.getLogger("memkit").setLevel(logging.CRITICAL)  # `report` prints what fails
    driver = FileDriver(args.directory) if args.directory else InMemoryDriver()
    async with summarizer_of(args) as summarizer:
        async with Background(limit=2, backoff=0.1, on_failure=report) as background:
            memory_of = partial(Memory, driver, summarizer=summarizer, policy=POLICY)
            for number in range(len(talk("", ""))):
                async with anyio.create_task_group() as tasks:
                    for name in PEOPLE:
                        tasks.start_soon(reply, memory_of(name, background=background), number)
                await anyio.sleep(0.03)  # people take their time, and so do models
                print(f"turn {number + 1:2}: all have their replies. Summaries: {state(background)}")
            print("That was the last turn. Leaving waits for what has begun ...")
        print(f"                                   Summaries: {state(background)}")

        for name in PEOPLE:
            async with memory_of(name) as memory:
                show(memory)


async def reply(memory: Memory, number: int) -> None:
    """Serve one request: a handle of its own, a prompt, an answer, and one run that is stored."""
    async with memory:
        question, answer = talk(memory.key, PEOPLE[memory.key])[number]
        memory.messages(question)  # what a real bot would send to its model
        await memory.add(question, answer)


def show(memory: Memory) -> None:
    """Print what was folded, and what a model would read now."""
    print(f"\n=== {memory.key} ===")
    if (summary := memory.view().summary) is None:
        print("Nothing was folded. All exchanges are still shown.")
    else:
        by = summary.model or "the stand-in"
        print(
            f"Exchanges 1 to {summary.upto} were folded by {by}; {len(memory.view().runs)} are shown as they are."
        )
    for line in prompt_lines(memory.messages("Where am I going, and when?")):
        print(f"  {line}".replace("\n", "\n  "))


def state(background: Background) -> str:
    return f"{background.pending} pending, {background.running} running, {background.failed} failed"


def report(key: str, error: Exception) -> None:
    print(f"         the summary of {key!r} failed and is tried again: {error}")


# --- summarisers ---


def summarizer_of(args: argparse.Namespace) -> AbstractAsyncContextManager[Summarizer]:
    """Return the configured endpoint, or the stand-in if there is none."""
    if not (os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")):
        return nullcontext(stand_in(args.failures))
    try:
        from memkit.summarizers import openai
    except ImportError as error:
        sys.exit(f"background_summary.py: an endpoint is set, but {error}")
    if not args.model:
        sys.exit("background_summary.py: which model? Set OPENAI_MODEL, or use --model")
    # Endpoints on one's own machine want no key, but the client does.
    return openai.connect(args.model, api_key=os.environ.get("OPENAI_API_KEY") or "none")


def stand_in(failures: int) -> Summarizer:
    """Return a summariser that needs no model: it keeps the first sentence of what people say."""

    async def summarize(runs: Sequence[Run], *, previous: str | None) -> str:
        nonlocal failures
        await anyio.sleep(0.05)
        if failures > 0:
            failures -= 1
            raise ConnectionError("the model is out of order")
        said = [text_of(run.input).split(". ")[0].rstrip(".") + "." for run in runs]
        return " ".join(said if previous is None else [previous, *said])

    return summarize


def talk(name: str, city: str) -> list[tuple[str, str]]:
    """Return what somebody says, and what the bot answers."""
    return [
        (
            f"My name is {name.title()}. I would like to plan a short trip, and I hope you can help me.",
            f"Hello {name.title()}! I would love to. Where would you like to go, and for how many days?",
        ),
        (
            f"I want to see {city}. A friend has told me so much about it that I have to go at last.",
            f"{city} is a lovely choice. When would you like to travel, and do you prefer a train or a flight?",
        ),
        (
            "I travel on the 3rd of May. I can stay for four days, and then I have to be back at work.",
            "Noted: four days from the 3rd of May. That is a good time, mild and not too crowded yet.",
        ),
        (
            "I prefer the train. Flying makes me nervous, and I like to look out of the window for hours.",
            "Then let us look for a train with a window seat. It may take a night, with one change on the way.",
        ),
        (
            "The hotel may cost 120 a night. It should be quiet, and near a station if that is possible.",
            "I have found three quiet ones below 120 a night, each within ten minutes of a station on foot.",
        ),
        (
            "I take the second hotel. It looks friendly, and it has a small library where one can sit at night.",
            "A good choice. I have put it on the list; it can be cancelled free of charge until a week before.",
        ),
        (
            "I do not eat meat. Please keep that in mind when you suggest a place for dinner near the hotel.",
            "I will. There are two vegetarian places around the corner, and a market that is open on Sundays.",
        ),
        (
            "The budget is 900 in all. With the train and the hotel, how much would be left for everything else?",
            "With about 480 for the hotel and 200 for the train, 220 would be left for food and for museums.",
        ),
        (
            "I want one museum a day. More would be too much, since I also want to walk around a lot.",
            "One museum a day it is, each in the morning, when it is quiet. The afternoons are free for walks.",
        ),
        ("Thank you, that is all for today.", f"You are welcome, {name.title()}. Enjoy the trip!"),
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", help="where conversations are kept (default: nowhere, in memory)")
    parser.add_argument("--failures", type=int, default=1, help="how often the stand-in fails first (default: 1)")
    parser.add_argument("--model", default=os.environ.get("OPENAI_MODEL"), help="default: OPENAI_MODEL")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        anyio.run(main, arguments())
        sys.stdout.flush()
    except MemkitError as error:
        sys.exit(f"background_summary.py: {error}")
    except BrokenPipeError:  # whoever read this has left, as `head -1` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains once more as it ends
        sys.exit(1)

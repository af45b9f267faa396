"""The chat loop asks, answers and stores, and can be left at any point."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from anyio import CancelScope, Event, create_task_group, fail_after, from_thread, sleep_forever, to_thread
from anyio.lowlevel import checkpoint, current_token

from memkit.chat import chat
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import BudgetError, ClosedError, DriverError, FormatError
from memkit.memory import Memory
from memkit.messages import ChatMessage
from memkit.run import Run
from memkit.strategies import prune
from memkit.testing import FlakyDriver
from tests.memories import Words, stored

pytestmark = pytest.mark.anyio

EXAMPLE = Path(__file__).parents[1] / "examples" / "chat.py"


class Person:
    """Says these lines, then leaves; hears what is shown."""

    def __init__(self, *lines: str) -> None:
        self._lines = iter(lines)
        self.asked: list[str] = []
        self.heard: list[tuple[str, bool]] = []
        self.threads: set[int] = set()

    def says(self, prefix: str) -> str:
        self.asked.append(prefix)
        self.threads.add(threading.get_ident())
        for line in self._lines:
            return line
        raise EOFError

    def hears(self, text: str, *, stream: bool) -> None:
        self.heard.append((text, stream))

    @property
    def handles(self) -> dict[str, Any]:
        return {"handle_input": self.says, "handle_output": self.hears}


def echo(messages: list[ChatMessage]) -> str:
    """Answer with the question and how many messages there were."""
    return f"{messages[-1]['content']}/{len(messages)}"


async def pieces(messages: list[ChatMessage]) -> AsyncIterator[str]:
    """Answer in pieces."""
    for piece in ("Hel", "lo", "!"):
        await checkpoint()
        yield piece


async def runs(driver: InMemoryDriver) -> list[tuple[Any, Any, str]]:
    entries = await stored(driver, "k")
    return [(run.input, run.output, run.status) for run in entries if isinstance(run, Run)]


async def talk(person: Person, answer: Any = echo, **options: Any) -> list[tuple[Any, Any, str]]:
    """Chat to the end and return what was stored."""
    driver = InMemoryDriver()
    async with Memory(driver, "k") as memory:
        await chat(memory, answer, **{**person.handles, **options})
    return await runs(driver)


# --- a chat that ends well ---


async def test_a_chat_is_shown_and_stored() -> None:
    person = Person("Hello", "again", "exit", "more")

    assert await talk(person, intro_text="Welcome.", system="Be brief.") == [
        ("Hello", "Hello/2", "complete"),
        ("again", "again/4", "complete"),
    ]
    assert person.asked == ["User: "] * 3
    assert person.heard == [
        ("Welcome.", False),
        ("Thinking...", False),
        ("Assistant: Hello/2", False),
        ("Thinking...", False),
        ("Assistant: again/4", False),
        ("Exiting...", False),
    ]


async def test_all_texts_are_of_ones_own_choice_and_an_empty_one_is_not_shown() -> None:
    person = Person("Hi", "bye")
    await talk(
        person,
        exit_keywords=["bye"],
        exiting_text="",
        processing_text="",
        intro_text="",
        prompt_prefix="> ",
        response_prefix="< ",
    )
    assert person.asked == ["> ", "> "]
    assert person.heard == [("< Hi/1", False)]


@pytest.mark.parametrize("word", ["exit", "EXIT", "  Exit\t", "Straße", "STRASSE ", "good bye"])
async def test_a_keyword_ends_it_whatever_its_case_and_the_space_around_it(word: str) -> None:
    person = Person("exit it", word, "more")
    stored = await talk(person, exit_keywords=[" Exit ", "strasse", "Good Bye"])
    assert [run[0] for run in stored] == ["exit it"]
    assert person.heard[-1] == ("Exiting...", False)


async def test_the_end_of_the_input_ends_it() -> None:
    person = Person("Hello")
    assert len(await talk(person)) == 1
    assert person.heard[-1] == ("Exiting...", False)


async def test_an_empty_line_is_asked_again() -> None:
    person = Person("", " \t", " Hello ", "")
    assert await talk(person) == [(" Hello ", " Hello /1", "complete")]
    assert len(person.asked) == 5


async def test_an_answer_is_text_or_awaited_or_comes_in_pieces() -> None:
    async def later(messages: list[ChatMessage]) -> str:
        await checkpoint()
        return echo(messages)

    async def nothing(messages: list[ChatMessage]) -> AsyncIterator[str]:
        for piece in ():
            yield piece

    person = Person("Hello")
    assert await talk(person, later) == [("Hello", "Hello/1", "complete")]
    person = Person("Hello")
    assert await talk(person, pieces) == [("Hello", "Hello!", "complete")]
    assert person.heard[1:-1] == [("Assistant: Hel", True), ("lo", True), ("!", True), ("\n", True)]
    person = Person("Hello")
    assert await talk(person, nothing) == [("Hello", (), "complete")]
    assert person.heard[1:-1] == [("Assistant: \n", True)]


# --- handles ---


async def test_input_and_output_may_wait() -> None:
    person = Person("Hello")
    threads: list[int] = []

    async def says(prefix: str) -> str:
        threads.append(threading.get_ident())
        await checkpoint()
        return person.says(prefix)

    async def hears(text: str, stream: bool = False) -> None:
        await checkpoint()
        person.hears(text, stream=stream)

    assert len(await talk(person, pieces, handle_input=says, handle_output=hears)) == 1
    assert person.heard[1:3] == [("Assistant: Hel", True), ("lo", True)]
    assert set(threads) == {threading.get_ident()}


async def test_a_plain_input_runs_in_a_thread_with_the_context_of_the_caller() -> None:
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("Hello")
    person = Person("anything")

    def says(prefix: str) -> str:
        person.says(prefix)
        return variable.get()

    assert await talk(person, handle_input=says) == [("Hello", "Hello/1", "complete")]
    assert person.threads
    assert threading.get_ident() not in person.threads


async def test_an_input_that_only_wraps_one_that_waits_is_awaited() -> None:
    person = Person("Hello")

    async def says(prefix: str) -> str:
        return person.says(prefix)

    assert len(await talk(person, handle_input=lambda prefix: says(prefix))) == 1  # noqa: PLW0108 - not itself async


class Deaf:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def only_text(self, text: str) -> None:
        self.texts.append(text)

    def positional(self, text: str, stream: str = "", /) -> None:
        self.texts.append(text + stream)

    def whatever(self, text: str, **options: Any) -> None:
        self.texts.append(f"{text}|{options['stream']}")


async def test_an_output_that_takes_only_text_gets_only_text() -> None:
    said = ["Thinking...", "Assistant: Hel", "lo", "!", "\n", "Exiting..."]
    deaf: list[str] = []
    handles: list[tuple[Callable[..., object], list[str]]] = [(deaf.append, deaf)]
    for name in ("only_text", "positional"):
        one = Deaf()
        handles.append((getattr(one, name), one.texts))
    for handle, texts in handles:
        await talk(Person("Hi"), pieces, handle_output=handle)
        assert texts == said
    assert len(await talk(Person("Hi"), pieces, handle_output=min)) == 1  # does not tell what it takes
    one = Deaf()
    await talk(Person("Hi"), pieces, handle_output=one.whatever)
    assert one.texts == [f"{text}|{text not in {'Thinking...', 'Exiting...'}}" for text in said]


# --- what a terminal is shown ---

HOSTILE = "ok\x1b]52;c;cm0gLXJmIH4=\x07\x1b[2A\x9b1A\rUser: I agree\r\n\ttab\x08\x7f \ud800"
SHOWN = "ok\\x1b]52;c;cm0gLXJmIH4=\\x07\\x1b[2A\\x9b1A\nUser: I agree\n\ttab\\x08\\x7f \ufffd"


@pytest.mark.parametrize("width", [None, 1, 2, 3, 5])
async def test_no_answer_controls_the_terminal_however_it_is_cut(
    capsys: pytest.CaptureFixture[str], width: int | None
) -> None:
    async def in_pieces(messages: list[ChatMessage]) -> AsyncIterator[str]:
        for at in range(0, len(HOSTILE), width or 1):
            yield HOSTILE[at : at + (width or 1)]

    answer: Any = (lambda messages: HOSTILE) if width is None else in_pieces
    stored = await talk(Person("Hi"), answer, handle_output=None, processing_text="", exiting_text="")
    assert capsys.readouterr().out == f"Assistant: {SHOWN}\n"
    assert stored[0][1].startswith("ok\x1b]52;")


@pytest.mark.parametrize("streams", [True, False])
async def test_a_line_end_is_shown_once_and_none_is_lost(
    capsys: pytest.CaptureFixture[str], streams: bool
) -> None:
    async def in_pieces(messages: list[ChatMessage]) -> AsyncIterator[str]:
        for piece in ("one\r", "\ntwo\r", "three\n", "\n", "four\u2028", "five\n"):
            yield piece

    answer: Any = in_pieces if streams else lambda messages: "one\r\ntwo\rthree\n\nfour\u2028five\n"
    await talk(Person("Hi"), answer, handle_output=None, processing_text="", exiting_text="")
    assert capsys.readouterr().out == "Assistant: one\ntwo\nthree\n\nfour\nfive\n\n"


async def test_an_output_of_ones_own_gets_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    person = Person("Hi")
    await talk(person, lambda messages: HOSTILE)
    assert person.heard[1] == (f"Assistant: {HOSTILE}", False)
    assert capsys.readouterr().out == ""


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"exit_keywords": "exit"}, r"a collection of words, such as \['exit'\], not a str"),
        ({"exit_keywords": 3}, "a collection of words, not a int"),
        ({"exit_keywords": [b"exit"]}, "each of exit_keywords must be text, not a bytes"),
        ({"answer": "Hello"}, "answer is a function, not a str"),
        ({"answer": None}, "answer is a function, not a NoneType"),
        ({"handle_input": "Hello"}, "handle_input is a function, not a str"),
        ({"handle_output": 3}, "handle_output is a function, not a int"),
        ({"response_prefix": None}, "each text and prefix must be text, not a NoneType"),
        ({"intro_text": b"Hi"}, "each text and prefix must be text, not a bytes"),
    ],
)
async def test_what_makes_no_sense_is_refused_before_anybody_is_asked(
    options: dict[str, Any], complaint: str
) -> None:
    person = Person("Hello")
    with pytest.raises(FormatError, match=complaint):
        await talk(person, **options)
    assert (person.asked, person.heard) == ([], [])


async def test_a_memory_that_is_none_or_closed_is_refused_before_anybody_is_asked() -> None:
    person = Person("Hello")
    nothing: Any = "me"
    with pytest.raises(FormatError, match="remembers in a Memory, not in a str"):
        await chat(nothing, echo, **person.handles)
    with pytest.raises(ClosedError, match="'k' is closed"):
        await chat(Memory(InMemoryDriver(), "k"), echo, **person.handles)
    assert (person.asked, person.heard) == ([], [])


async def test_an_error_of_the_answer_leaves_and_is_stored_as_far_as_it_came() -> None:
    async def breaks(messages: list[ChatMessage]) -> AsyncIterator[str]:
        yield "Hel"
        raise RuntimeError("no model")

    def fails(messages: list[ChatMessage]) -> str:
        raise RuntimeError("no model")

    for answer, said in ((breaks, "Hel"), (fails, ())):
        driver, person = InMemoryDriver(), Person("Hello", "more")
        async with Memory(driver, "k") as memory:
            with pytest.raises(RuntimeError, match="no model"):
                await chat(memory, answer, **person.handles)
        assert await runs(driver) == [("Hello", said, "partial")]
        assert len(person.asked) == 1


@pytest.mark.parametrize("given", [None, b"Hello", 3, ["Hello"]])
async def test_an_answer_that_is_no_text_is_refused(given: Any) -> None:
    async def given_as_piece(messages: list[ChatMessage]) -> AsyncIterator[Any]:
        yield "Hel"
        yield given

    async def awaited(messages: list[ChatMessage]) -> Any:
        return given

    for answer in (lambda messages: given, given_as_piece, awaited):
        with pytest.raises(FormatError, match=r"answer\(\) must be text, not a "):
            await talk(Person("Hello"), answer)
    with pytest.raises(FormatError, match=r"handle_input\(\) must be text, not a "):
        await talk(Person(), handle_input=lambda prefix: given)


async def test_an_error_of_a_handle_leaves_and_lets_the_answer_end() -> None:
    closed: list[bool] = []

    async def answer(messages: list[ChatMessage]) -> AsyncIterator[str]:
        try:
            yield "Hel"
            yield "lo"
        finally:
            closed.append(True)

    def hears(text: str) -> None:
        if text.startswith("Assistant"):
            raise ValueError("no screen")

    def says(prefix: str) -> str:
        raise ValueError("no keyboard")

    driver, person = InMemoryDriver(), Person("Hello")
    async with Memory(driver, "k") as memory:
        with pytest.raises(ValueError, match="no screen"):
            await chat(memory, answer, handle_input=person.says, handle_output=hears)
        assert closed == [True]
        with pytest.raises(ValueError, match="no keyboard"):
            await chat(memory, answer, handle_input=says, handle_output=hears)
    assert await runs(driver) == [("Hello", "Hel", "partial")]


async def test_an_answer_that_could_not_be_stored_leaves() -> None:
    driver = FlakyDriver(InMemoryDriver(), ["before"], calls=["append"])
    async with Memory(driver, "k") as memory:
        with pytest.raises(DriverError):
            await chat(memory, echo, **Person("Hello").handles)


async def test_a_long_question_is_counted_in_a_thread_and_one_that_does_not_fit_is_not_stored() -> None:
    driver, counter = InMemoryDriver(), Words()
    strategy = prune(30_000, counter=counter, on_overflow="raise")
    async with Memory(driver, "k", strategy=strategy) as memory:
        await chat(memory, lambda messages: "yes", **Person("long " * 20_000).handles)
        assert threading.get_ident() not in counter.threads
        with pytest.raises(BudgetError):
            await chat(memory, lambda messages: "yes", **Person("long " * 40_000).handles)
    assert len(await runs(driver)) == 1


# --- cancellation ---


async def test_a_chat_that_waits_for_input_can_be_cancelled() -> None:
    release = threading.Event()
    waiting = Event()

    def says(prefix: str) -> str:
        from_thread.run_sync(waiting.set, token=token)
        release.wait()
        return "too late"

    driver = InMemoryDriver()
    token = current_token()
    async with Memory(driver, "k") as memory:
        with fail_after(10):
            async with create_task_group() as tasks:
                tasks.start_soon(lambda: chat(memory, echo, handle_input=says, handle_output=print))
                await waiting.wait()
                tasks.cancel_scope.cancel()
    thread = next(thread for thread in threading.enumerate() if thread.name == "memkit input")
    assert thread.daemon
    release.set()
    await to_thread.run_sync(thread.join, 10)
    assert not thread.is_alive()
    assert await runs(driver) == []


@pytest.mark.parametrize("awaited", [True, False])
async def test_a_chat_that_is_cancelled_while_answering_keeps_what_was_said(awaited: bool) -> None:
    async def hangs(messages: list[ChatMessage]) -> AsyncIterator[str]:
        yield "Hel"
        scope.cancel()
        await sleep_forever()
        yield "lo"

    async def never(messages: list[ChatMessage]) -> str:
        scope.cancel()
        await sleep_forever()
        return "Hello"

    driver = InMemoryDriver()
    answer: Callable[[list[ChatMessage]], Awaitable[str] | AsyncIterator[str]] = never if awaited else hangs
    async with Memory(driver, "k") as memory:
        with CancelScope() as scope:
            await chat(memory, answer, **Person("Hello", "more").handles)
        assert scope.cancelled_caught
    assert await runs(driver) == [("Hello", () if awaited else "Hel", "partial")]


# --- in a terminal ---


def start(
    folder: Path,
    *args: str,
    backend: str = "asyncio",
    first: str = "",
    stdin: int = subprocess.PIPE,
    stdout: int = subprocess.PIPE,
) -> subprocess.Popen[str]:
    """Start the example on an event loop, after the program `first`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OPENAI_")}
    program = (
        f"{first}\nimport anyio, runpy, sys\n"
        f"run = anyio.run; anyio.run = lambda *args: run(*args, backend={backend!r})\n"
        f"sys.argv[:] = {[str(EXAMPLE), *args]!r}; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=folder,
        env=kept | {"PYTHONIOENCODING": "utf-8:strict"},
        text=True,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def test_the_example_chats_and_remembers(tmp_path: Path, anyio_backend: str) -> None:
    first = start(tmp_path, backend=anyio_backend)
    shown, errors = first.communicate("My name is Collin.\n\nEXIT\nmore\n")
    second = start(tmp_path, "--transcript", backend=anyio_backend)
    shown_again, errors_again = second.communicate("What is my name?\n")

    assert (first.returncode, errors, second.returncode, errors_again) == (0, "", 0, "")
    assert shown.splitlines() == [
        'Exchanges remembered: 0. Type "exit" to leave.',
        "User: Thinking...",
        "Assistant: [No endpoint is set, so this is a stand-in.] Hello Collin!",
        "User: User: Exiting...",
    ]
    assert shown_again.splitlines() == [
        'Exchanges remembered: 1. Type "exit" to leave.',
        "User: Thinking...",
        "Assistant: [No endpoint is set, so this is a stand-in.] Your name is Collin.",
        "User: ",
        "Exiting...",
        "",
        "Q: My name is Collin.",
        "A: [No endpoint is set, so this is a stand-in.] Hello Collin!",
        "Q: What is my name?",
        "A: [No endpoint is set, so this is a stand-in.] Your name is Collin.",
    ]


def test_the_example_says_how_to_use_it_and_what_is_wrong(tmp_path: Path) -> None:
    helped = start(tmp_path, "--help")
    assert "python examples/chat.py" in helped.communicate()[0]
    wrong = start(tmp_path, "")
    assert wrong.communicate("Hi\n")[1].startswith("chat.py: the key of a conversation")
    assert (helped.returncode, wrong.returncode) == (0, 1)


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_an_interrupt_ends_a_program_that_waits_for_input(tmp_path: Path, anyio_backend: str, kind: str) -> None:
    with keyboard(kind) as (stdin, type_in):
        process = start(tmp_path, backend=anyio_backend, stdin=stdin)
        assert process.stdout is not None
        type_in(b"My name is Collin.\n")
        assert any("Assistant" in line for line in iter(process.stdout.readline, ""))
        assert process.stdout.read(6) == "User: "
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)

    assert process.returncode == 1
    assert errors.strip() == ""
    again = start(tmp_path)
    assert "Exchanges remembered: 1." in again.communicate("")[0]


def test_an_interrupt_leaves_the_terminal_as_it_was(tmp_path: Path, anyio_backend: str) -> None:
    """With readline imported, `input` turns the echo of the terminal off while it waits."""
    pytest.importorskip("readline")
    screen, terminal = os.openpty()
    before = termios.tcgetattr(terminal)
    process = start(tmp_path, backend=anyio_backend, first="import readline", stdin=terminal, stdout=terminal)
    shown = b""
    while b"User: " not in shown:
        shown += os.read(screen, 1000)
    assert termios.tcgetattr(terminal) != before
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert termios.tcgetattr(terminal) == before
    os.close(screen)
    os.close(terminal)


def test_input_that_is_no_text_is_explained(tmp_path: Path) -> None:
    with keyboard("pipe") as (stdin, type_in):
        process = start(tmp_path, stdin=stdin)
        type_in(b"\xff\xfe\n")
        _, errors = process.communicate(timeout=30)
    assert errors == "chat.py: what was typed is not text in utf-8\n"


@contextmanager
def keyboard(kind: str) -> Iterator[tuple[int, Callable[[bytes], object]]]:
    """Yield what a process may have as its input, and what types into it."""
    if kind == "terminal":
        writing, reading = os.openpty()
    else:
        reading, writing = os.pipe()
    try:
        yield reading, lambda data: os.write(writing, data)
    finally:
        os.close(reading)
        os.close(writing)

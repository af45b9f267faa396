"""A chat with a model that remembers: the loop of asking, answering and storing, for a terminal or any window."""

from __future__ import annotations

import inspect
import sys
import termios
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager, suppress
from contextvars import copy_context
from io import IncrementalNewlineDecoder
from typing import Final, Protocol, TypeAlias, TypeVar, cast

from anyio import Event, from_thread
from anyio.lowlevel import current_token

from memkit.content import ContentLike
from memkit.errors import BudgetError, FormatError
from memkit.memory import Memory
from memkit.messages import ChatMessage
from memkit.transcripts import harmless
from memkit.turn import Turn

T = TypeVar("T")

_STDIN: Final = 0

Answer: TypeAlias = Callable[[list[ChatMessage]], str | Awaitable[str] | AsyncIterable[str]]
"""Makes the answer to a prompt: text, text to be awaited, or the pieces of it as they come."""

HandleInput: TypeAlias = Callable[[str], str | Awaitable[str]]
"""Shows a prefix and returns what the person says; raises `EOFError` when nobody is there any more."""

HandleOutput: TypeAlias = Callable[..., object]
"""Shows a text, maybe asynchronously; if it takes `stream`, that tells whether more of the line may follow."""


class _Show(Protocol):
    async def __call__(self, text: str, *, stream: bool = False) -> None: ...


async def chat(
    memory: Memory,
    answer: Answer,
    *,
    exit_keywords: Iterable[str] = ("exit",),
    exiting_text: str = "Exiting...",
    processing_text: str = "Thinking...",
    intro_text: str | None = None,
    prompt_prefix: str = "User: ",
    response_prefix: str = "Assistant: ",
    handle_input: HandleInput | None = None,
    handle_output: HandleOutput | None = None,
    system: ContentLike = None,
) -> None:
    """Ask, answer and store, until a person says one of `exit_keywords` or the input ends.

    Each question is answered with what `memory` remembers, and stored with its answer as one run. A chat that
    is cancelled, or whose `answer` fails, ends at once, and stores what has been said as a partial run. Case
    and surrounding space of a keyword do not matter, an empty line is asked again, and a text that is `""` is
    not shown.

    `handle_input` runs in a thread if it is a plain function, and is left there by a cancellation: it may take
    one more line. An answer that comes in pieces is shown with `stream=True`: the prefix with the first
    piece, then piece by piece, and a line break at the end. The default is `input` and `print`, the latter with
    control characters written out, so that no answer can move the cursor or reach the clipboard; a
    `handle_output` gets what it shows as it is.

    Raises:
        BudgetError: a question leaves no room in the prompt, and the strategy was told to raise.
        ClosedError: `memory` is not open.
        FormatError: an argument has the wrong type, or `answer` or `handle_input` returned no text.
    """
    ask, tell = handle_input or _read, handle_output or _printer()
    _check_memory(memory)
    _check_functions(answer=answer, handle_input=ask, handle_output=tell)
    for text in (intro_text or "", processing_text or "", exiting_text or "", prompt_prefix, response_prefix):
        _checked(text, "each text and prefix")
    keywords, show = _folded(exit_keywords), _shown_by(tell)
    if intro_text:
        await show(intro_text)
    while True:
        try:
            question = _checked(await _asked(ask, prompt_prefix), "handle_input()")
        except EOFError:
            break
        if (said := question.strip()).casefold() in keywords:
            break
        if said:
            messages = await _messages(memory, question, system)
            async with memory.turn(question) as turn:
                if processing_text:
                    await show(processing_text)
                await _answered(answer, messages, turn, show, response_prefix)
    if exiting_text:
        await show(exiting_text)


async def _messages(memory: Memory, question: str, system: ContentLike) -> list[ChatMessage]:
    try:
        return memory.messages(question, system=system)
    except BudgetError:  # maybe only too long to be counted on the event loop
        return memory.messages(question, system=system, tokens=await memory.count(system, question))


async def _answered(answer: Answer, messages: list[ChatMessage], turn: Turn, show: _Show, prefix: str) -> None:
    given = answer(messages)
    if isinstance(given, Awaitable):
        given = await given
    if not isinstance(given, AsyncIterable):
        text = _checked(given, "answer()")
        turn.answer(text)
        return await show(prefix + text)
    async with AsyncExitStack() as stack:
        pieces: AsyncIterator[str] = aiter(given)
        if (close := getattr(pieces, "aclose", None)) is not None:  # a generator must not be left half-way
            stack.push_async_callback(close)
        async for piece in pieces:
            turn.write(_checked(piece, "a piece of answer()"))
            await show(prefix + piece, stream=True)
            prefix = ""
    return await show(prefix + "\n", stream=True)


def _checked(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise FormatError(f"{what} must be text, not a {type(value).__name__}")
    return value


def _check_memory(memory: Memory) -> None:
    """Refuse a closed handle now: later somebody would have asked in vain."""
    if not isinstance(cast("object", memory), Memory):
        raise FormatError(f"a chat remembers in a Memory, not in a {type(memory).__name__}; see memkit.open()")
    _ = memory.conversation


def _check_functions(**functions: object) -> None:
    for name, function in functions.items():
        if not callable(function):
            raise FormatError(f"{name} is a function, not a {type(function).__name__}; give it without calling it")


def _folded(keywords: Iterable[str]) -> set[str]:
    if isinstance(keywords, str):
        raise FormatError(f"exit_keywords is a collection of words, such as [{keywords!r}], not a str")
    if not isinstance(cast("object", keywords), Iterable):
        raise FormatError(f"exit_keywords is a collection of words, not a {type(keywords).__name__}")
    return {_checked(keyword, "each of exit_keywords").strip().casefold() for keyword in keywords}


# --- the person at the other end ---


def _read(prefix: str) -> str:
    try:
        return input(prefix)
    except EOFError:
        print()  # or what comes next would stand behind the prefix
        raise
    except UnicodeDecodeError as error:
        raise FormatError(f"what was typed is not text in {error.encoding}") from error


def _printer() -> HandleOutput:
    line_ends = IncrementalNewlineDecoder(None, translate=True)  # of which one may be split over two pieces

    def show(text: str, *, stream: bool) -> None:
        shown = harmless(line_ends.decode(text, final=not stream))
        print(shown, end="" if stream else "\n", flush=True)

    return show


def _shown_by(handle: HandleOutput) -> _Show:
    takes_stream = _takes_stream(handle)

    async def show(text: str, *, stream: bool = False) -> None:
        shown = handle(text, stream=stream) if takes_stream else handle(text)
        if isinstance(shown, Awaitable):
            await cast("Awaitable[object]", shown)

    return show


def _takes_stream(handle: HandleOutput) -> bool:
    try:
        parameters = inspect.signature(handle).parameters
    except (TypeError, ValueError):  # some functions in C do not tell
        return False
    named = parameters.get("stream")
    return any(each.kind is each.VAR_KEYWORD for each in parameters.values()) or (
        named is not None and named.kind in {named.KEYWORD_ONLY, named.POSITIONAL_OR_KEYWORD}
    )


async def _asked(handle: HandleInput, prefix: str) -> object:
    if inspect.iscoroutinefunction(handle):
        return await handle(prefix)
    said = await _in_daemon_thread(lambda: handle(prefix))
    return await said if isinstance(said, Awaitable) else said


async def _in_daemon_thread(wait: Callable[[], T]) -> T:
    """Return what `wait` returns, in a thread for which neither a cancellation nor the end of the program waits.

    The interpreter joins the threads of the usual executors, so that Ctrl-C would do nothing until somebody
    has pressed the enter key.
    """
    outcome: Future[T] = Future()
    context, token, is_over = copy_context(), current_token(), Event()

    def work(_stdin: object) -> None:
        try:
            outcome.set_result(context.run(wait))
        except BaseException as error:
            outcome.set_exception(error)
        with suppress(RuntimeError):  # the event loop is over, and nobody waits any more
            from_thread.run_sync(is_over.set, token=token)

    # It holds the standard input: an interpreter that ends frees it otherwise, and dies of it while the thread
    # still reads.
    thread = threading.Thread(target=work, args=(sys.stdin,), name="memkit input", daemon=True)
    with _terminal_kept():
        thread.start()
        await is_over.wait()
    return outcome.result()


@contextmanager
def _terminal_kept() -> Generator[None, None, None]:
    """Leave the terminal as it was: readline changes it while it waits, and is not there to undo that if left."""
    try:
        settings = termios.tcgetattr(_STDIN)
    except termios.error:  # no terminal
        yield
        return
    try:
        yield
    finally:
        termios.tcsetattr(_STDIN, termios.TCSANOW, settings)

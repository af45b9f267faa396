"""What text, media and runs cost in tokens.

Counting is synchronous and takes up to a second for a megabyte; it is the async shell that decides when
and in which thread it is done. Every run is counted once and carries its `Counts` from then on. A counter's
`name` contains every setting that changes a count, so a count stored under a name is right for ever.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import msgspec

from memkit.content import (
    Blob,
    Content,
    Json,
    Opaque,
    Part,
    Ref,
    Text,
    ToolCall,
    ToolResult,
    text_of,
)
from memkit.errors import FormatError
from memkit.rawjson import parse_json
from memkit.run import Amend, Counts, Entry, Extend, Run
from memkit.steps import interrupted, messages_of

T = TypeVar("T")

CountText: TypeAlias = Callable[[str], int]

INLINE_CHARS: Final = 16_000
"""Up to so many characters are counted on the event loop: about a millisecond. More goes to a thread."""

PIECE_CHARS: Final = 50_000
"""Longer texts are counted in pieces: tiktoken panics on a million spaces, and both libraries hold the
interpreter for a part of the work, which with pieces of this size is under 10 ms for any text."""


class TokenCounter(Protocol):
    """Counts the tokens of content. Synchronous, thread-safe, and total: every `str` has a count."""

    @property
    def name(self) -> str:
        """The name under which counts are stored; it contains every setting that changes a count."""
        ...

    @property
    def per_message(self) -> int:
        """The tokens that a chat message costs beside its content."""
        ...

    def count(self, content: Content, /) -> int:
        """Return the tokens of `content` alone."""
        ...


@runtime_checkable
class Loadable(Protocol):
    """A counter whose vocabulary is loaded once: slow, so `Memory` does it in a thread, before it counts."""

    @property
    def loaded(self) -> bool:
        """Whether the vocabulary is there."""
        ...

    def load(self) -> None:
        """Load the vocabulary, once; any thread may call this. Raises `VocabularyError`."""
        ...


class TextCounter:
    """A counter built on a function that counts text: what all counters of this package are.

    `load` returns that function; it is called at the first count or by `load()`, and not again once it has
    returned. Each piece of media costs `media` tokens whatever its size: none is counted as text.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], CountText],
        *,
        per_message: int = 4,
        media: int = 765,
    ) -> None:
        self._name = f"{name}+media{media}"
        self._per_message = per_message
        self._media = media
        self._load = once(load)
        self._count_text: CountText | None = None

    def __repr__(self) -> str:
        return f"<counter {self._name}>"

    @property
    def name(self) -> str:
        """The vocabulary's name and the estimate for media, as in `o200k_base+media765`."""
        return self._name

    @property
    def per_message(self) -> int:
        """The tokens that a chat message costs beside its content."""
        return self._per_message

    @property
    def loaded(self) -> bool:
        """Whether the vocabulary is there."""
        return self._count_text is not None

    def load(self) -> None:
        """Load the vocabulary, once; any thread may call this.

        Raises:
            VocabularyError: it cannot be had; the message names the remedies.
        """
        self._count_text = self._load()

    def count(self, content: Content, /) -> int:
        """Return the tokens of `content`.

        Text longer than `PIECE_CHARS` is counted in pieces, each of which adds about one token: 0.01 %.

        Raises:
            VocabularyError: the vocabulary was not loaded yet, and cannot be had.
        """
        count_text = self._count_text
        if count_text is None:
            self.load()
            return self.count(content)
        if isinstance(content, str) and len(content) <= PIECE_CHARS:
            return count_text(content)
        total = 0
        for text in _countable(content):
            if text is None:
                total += self._media
            else:
                total += sum(count_text(piece) for piece in _pieces(text))
        return total


def approximate(*, bytes_per_token: float = 4.0, per_message: int = 4, media: int = 765) -> TextCounter:
    """Return a counter that needs no vocabulary: the bytes of the text, divided.

    It is off by a third either way on ordinary text and by more on code, so leave room. Nothing in memkit
    ever chooses it by itself.

    Raises:
        FormatError: `bytes_per_token` is not above zero.
    """
    if not bytes_per_token > 0:
        raise FormatError(f"a token has more than {bytes_per_token} bytes; 4.0 is usual")

    def count_text(text: str) -> int:
        return -int(-len(text.encode("utf-8", "surrogatepass")) // bytes_per_token)

    name = f"approximate{float(bytes_per_token)!r}"
    return TextCounter(name, lambda: count_text, per_message=per_message, media=media)


def once(make: Callable[[], T]) -> Callable[[], T]:
    """Return a function that calls `make` once, whichever threads ask, and returns what that returned.

    Threads that waited for an attempt share its failure: were each to try by itself, their time limits would
    add up. Whoever asks after a failure makes it try again.
    """
    made: list[T] = []
    failure: Exception | None = None
    making = threading.Lock()

    def get() -> T:
        nonlocal failure
        seen = failure
        with making:
            if made:
                return made[0]
            if failure is not None and failure is not seen:
                raise failure
            try:
                made.append(make())
            except Exception as error:
                failure = error
                raise
            return made[0]

    return get


def count_run(run: Run, counter: TokenCounter) -> Counts:
    """Return the counts of a run under `counter`, counting each section once."""
    return Counts(
        counter.name,
        counter.count(run.input),
        counter.count(run.steps) if run.steps else 0,
        counter.count(run.output),
        messages_of(run),
    )


def counted(entry: Entry, counter: TokenCounter) -> Entry:
    """Return an entry with its counts under `counter`: as it is, if it has them already."""
    if is_counted(entry, counter):
        return entry
    match entry:
        case Run():
            return msgspec.structs.replace(entry, counts=count_run(entry, counter))
        case Amend():
            return msgspec.structs.replace(entry, run=counted(entry.run, counter))
        case Extend():
            added = Run("", (), entry.steps, () if entry.output is None else entry.output)
            return msgspec.structs.replace(entry, counts=count_run(added, counter))
        case _:
            return entry


def is_counted(entry: Entry, counter: TokenCounter) -> bool:
    """Tell whether `counted` would have nothing to count."""
    match entry:
        case Amend():
            return is_counted(entry.run, counter)
        case Run() | Extend():
            return entry.counts is not None and entry.counts.name == counter.name
        case _:
            return True


def cost_of(run: Run, counter: TokenCounter) -> int:
    """Return what a run costs in a prompt: its content and its messages. Counts only what is not counted.

    What stands in for results that never came is not stored with the run, and so is counted here.
    """
    counts = run.counts
    if counts is None or counts.name != counter.name:
        counts = count_run(run, counter)
    cost = total(counts, counter)
    for result in interrupted(run.steps) if run.steps else ():
        cost += counter.count(result.content) + counter.per_message
    return cost


def total(counts: Counts, counter: TokenCounter) -> int:
    """Return what these counts cost in a prompt, messages included."""
    return counts.input + counts.steps + counts.output + counter.per_message * counts.messages


def chars_of(entry: Entry) -> int:
    """Return about how many characters a tokeniser would have to read for this entry."""
    match entry:
        case Amend():
            return chars_of(entry.run)
        case Run():
            return _chars(entry.input) + _chars(entry.steps) + _chars(entry.output)
        case Extend():
            return _chars(entry.steps) + _chars(entry.output or ())
        case _:
            return 0


def _chars(content: Content) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(part.raw) if isinstance(part, Opaque) else _chars_of_part(part) for part in content)


def _chars_of_part(part: Part) -> int:
    if isinstance(part, ToolResult):
        return _chars(part.content)
    return sum(len(text) for text in _countable((part,)) if text is not None)


def _pieces(text: str) -> Iterator[str]:
    return (text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS))


def _countable(content: Content) -> Iterator[str | None]:
    """Yield the texts of content that a tokeniser reads, and None for each piece of media."""
    if isinstance(content, str):
        yield content
        return
    for part in content:
        match part:
            case Text():
                yield part.text
            case Json():
                yield text_of((part,))
            case Blob():
                yield None
            case Ref():
                # Either may be what is sent.
                yield None
                yield part.text
            case ToolCall():
                yield part.name
                yield part.arguments
            case ToolResult():
                yield part.name
                yield from _countable(part.content)
            case Opaque():
                yield from _countable_json(parse_json(part.raw))


# Possessive throughout, and so linear on any text. Lines of base64 have 64 or 76 characters.
_DATA_URL: Final = re.compile(r"data:[^\s,]*+,")
_BASE64: Final = re.compile(r"(?:[A-Za-z0-9+/_-]{60,}+\s*+)++[A-Za-z0-9+/_-]*+={0,2}+\s*+")


def _countable_json(value: Any) -> Iterator[str | None]:
    if isinstance(value, str):
        is_media = _DATA_URL.match(value) or (len(value) >= 512 and _BASE64.fullmatch(value))
        yield None if is_media else value
    elif isinstance(value, dict):
        for item in cast("dict[str, Any]", value).values():
            yield from _countable_json(item)
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _countable_json(item)

"""What a counter reads of content, how long texts are counted, and how the counts of runs are kept."""

from __future__ import annotations

import base64
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkit.content import Blob, Content, Json, Opaque, Part, Ref, Text, ToolCall, ToolResult
from memkit.conversation import apply
from memkit.errors import FormatError, VocabularyError
from memkit.messages import run_messages
from memkit.run import Amend, Counts, Entry, Extend, Retract, Run
from memkit.steps import grouped, messages_of
from memkit.tokens import (
    PIECE_CHARS,
    Loadable,
    TextCounter,
    TokenCounter,
    approximate,
    chars_of,
    cost_of,
    count_run,
    counted,
    is_counted,
    once,
    total,
)
from tests.histories import examples

MEDIA = 1_000_000
PIXELS = bytes(range(256)) * 8
BASE64 = base64.b64encode(PIXELS).decode()


class Reader:
    """A counter to which every character is a token, and that remembers what it was given to read."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.counter = TextCounter("reader", lambda: self.read, per_message=3, media=MEDIA)

    def read(self, text: str) -> int:
        self.texts.append(text)
        return len(text)


def opaque(value: object) -> Opaque:
    return Opaque(json.dumps(value).encode())


# What is read


@pytest.mark.parametrize(
    ("content", "texts", "media"),
    [
        ("hello", ["hello"], 0),
        ("", [""], 0),
        ((), [], 0),
        ((Text("a"), Text("b")), ["a", "b"], 0),
        ((Json({"a": [1, "b"]}),), ['{"a":[1,"b"]}'], 0),
        ((Blob("image/png", PIXELS),), [], 1),
        ((Ref("https://example.org/a.png", "image/png"),), [], 1),
        ((Ref("https://example.org/a.pdf", text="what it says"),), ["what it says"], 1),
        ((ToolCall("call_1", "look", '{"at":'),), ["look", '{"at":'], 0),
        ((ToolResult("call_1", "seen"),), ["seen"], 0),
        ((ToolResult("call_1", (Text("seen"), Blob("image/png", PIXELS))),), ["seen"], 1),
        ((ToolResult("call_1"),), [], 0),
        ((opaque({"type": "thinking", "n": 7, "said": ["a", {"deep": "b"}]}),), ["thinking", "a", "b"], 0),
        ((Text("a"), Blob("image/png", b""), Blob("audio/wav", b""), Text("b")), ["a", "b"], 2),
    ],
)
def test_text_is_read_and_media_are_estimated(content: Content, texts: list[str], media: int) -> None:
    reader = Reader()
    assert reader.counter.count(content) == sum(map(len, texts)) + media * MEDIA
    assert reader.texts == texts


@pytest.mark.parametrize(
    "media",
    [
        f"data:image/png;base64,{BASE64}",
        "data:image/svg+xml,%3Csvg%3E",
        "data:;base64,aGk=",
        BASE64,
        BASE64.rstrip("="),
        base64.urlsafe_b64encode(PIXELS).decode(),
        base64.encodebytes(PIXELS).decode(),
        base64.encodebytes(PIXELS).decode().replace("\n", "\r\n"),
    ],
)
def test_media_inside_an_unknown_part_are_not_read(media: str) -> None:
    reader = Reader()
    assert reader.counter.count((opaque({"type": "x", "source": {"data": media}}),)) == MEDIA + 1
    assert reader.texts == ["x"]


@pytest.mark.parametrize(
    "text",
    [
        "data: what was measured, and when",
        "a list of plain words " * 100,
        "word\n" * 1000,
        " " * 10_000,
        "aGk=",
        BASE64 + "!",
        (BASE64[:60] + " ") * 20_000 + "!",
        " " * 1_000_000 + "!",
        "=" * 1_000_000,
    ],
    ids=lambda text: text[:20],
)
def test_text_inside_an_unknown_part_is_read_whatever_it_looks_like(text: str) -> None:
    reader = Reader()
    assert reader.counter.count((opaque({"text": text}),)) == len(text)
    assert "".join(reader.texts) == text


def test_a_lone_surrogate_in_json_is_read() -> None:
    assert Reader().counter.count((Json({"a": "\ud800"}),)) == len('{"a":"x"}')


# Long texts


@pytest.mark.parametrize("length", [0, 1, PIECE_CHARS - 1, PIECE_CHARS])
def test_a_text_is_counted_in_one_call(length: int) -> None:
    reader = Reader()
    assert reader.counter.count("a" * length) == length
    assert reader.texts == ["a" * length]


@pytest.mark.parametrize("wrap", [str, lambda text: (Text(text),), lambda text: (ToolResult("1", text),)])
@pytest.mark.parametrize(
    ("length", "sizes"),
    [
        (PIECE_CHARS + 1, [PIECE_CHARS, 1]),
        (2 * PIECE_CHARS, [PIECE_CHARS, PIECE_CHARS]),
        (3 * PIECE_CHARS - 1, [PIECE_CHARS, PIECE_CHARS, PIECE_CHARS - 1]),
    ],
)
def test_a_longer_text_is_counted_in_pieces(wrap: Callable[[str], Content], length: int, sizes: list[int]) -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 5000))) * (length // 5000 + 1)
    reader = Reader()
    assert reader.counter.count(wrap(text[:length])) == length
    assert list(map(len, reader.texts)) == sizes
    assert "".join(reader.texts) == text[:length]


# Names, and the approximate counter


def test_a_name_holds_what_changes_a_count_and_nothing_else() -> None:
    assert approximate().name == approximate(per_message=9).name == approximate(bytes_per_token=4).name
    names = [approximate(), approximate(media=1), approximate(bytes_per_token=4.000_000_1), Reader().counter]
    assert len({counter.name for counter in names}) == len(names)


def test_counters_keep_to_the_protocols() -> None:
    counter: TokenCounter = approximate(per_message=7)
    assert isinstance(counter, Loadable)
    assert counter.per_message == 7
    assert repr(counter) == "<counter approximate4.0+media765>"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("é", 1), ("ééé", 2), ("\ud800\ud800", 2), ("x" * 4000, 1000)],
)
def test_approximate_divides_bytes_and_rounds_up(text: str, tokens: int) -> None:
    assert approximate().count(text) == tokens


@pytest.mark.parametrize("bytes_per_token", [0, -1.0, float("nan")])
def test_approximate_needs_bytes(bytes_per_token: float) -> None:
    with pytest.raises(FormatError, match="a token has more than"):
        approximate(bytes_per_token=bytes_per_token)


# Loading


def asked_at_once(make: Callable[[], str], threads: int = 8) -> list[str | VocabularyError]:
    """Ask `once(make)` and, while it is being made, from other threads too; return what all of them got."""

    def make_with_others_waiting() -> str:
        if others[0].ident is None:
            for thread in others:
                thread.start()
            while any(thread.is_alive() and not is_waiting(thread) for thread in others):
                time.sleep(0.001)
        return make()

    def ask() -> None:
        try:
            outcomes.append(get())
        except VocabularyError as error:
            outcomes.append(error)

    outcomes: list[str | VocabularyError] = []
    others = [threading.Thread(target=ask) for _ in range(threads - 1)]
    get = once(make_with_others_waiting)
    ask()
    for thread in others:
        thread.join()
    return outcomes


def is_waiting(thread: threading.Thread) -> bool:
    """Tell whether a thread is inside the function that `once` returns, and has seen how things stand."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_name == "get" and "seen" in frame.f_locals


def test_what_threads_ask_for_at_once_is_made_once() -> None:
    made = itertools.count()
    assert asked_at_once(lambda: f"vocabulary {next(made)}") == ["vocabulary 0"] * 8
    assert next(made) == 1


def test_threads_that_waited_share_a_failure() -> None:
    attempts: list[VocabularyError] = []

    def fail() -> str:
        attempts.append(VocabularyError("no network"))
        raise attempts[-1]

    assert asked_at_once(fail) == attempts * 8
    assert len(attempts) == 1


def test_a_vocabulary_is_loaded_at_the_first_count_and_once() -> None:
    loads: list[str] = []

    def load() -> Callable[[str], int]:
        loads.append("loaded")
        return len

    counter = TextCounter("lazy", load)
    assert not loads
    assert not counter.loaded
    assert counter.count("four") == 4
    assert counter.loaded
    counter.load()
    assert counter.count(("x" * PIECE_CHARS + "y").rjust(PIECE_CHARS + 9)) == PIECE_CHARS + 9
    assert loads == ["loaded"]


def test_a_load_that_failed_may_be_tried_again() -> None:
    attempts = iter([VocabularyError("no network"), OSError("no disk"), None])

    def load() -> Callable[[str], int]:
        if (error := next(attempts)) is not None:
            raise error
        return len

    counter = TextCounter("flaky", load)
    with pytest.raises(VocabularyError):
        counter.count("four")
    with pytest.raises(OSError, match="no disk"):
        counter.load()
    assert not counter.loaded
    assert counter.count("four") == 4


# Runs and their messages

TEXTS = st.text(max_size=5)
CONTENT = TEXTS | st.just(()) | st.lists(st.builds(Text, text=TEXTS), min_size=1, max_size=3).map(tuple)
SAID = (
    st.builds(Text, text=TEXTS)
    | st.builds(Json, value=st.integers())
    | st.builds(Blob, media_type=st.sampled_from(["image/png", "audio/wav"]), data=st.binary(max_size=3))
    | st.sampled_from([opaque({"type": "thinking"}), opaque({"role": "assistant", "content": "hi"})])
)


@st.composite
def steps(draw: st.DrawFn) -> tuple[Part, ...]:
    """Draw what a model may do: say things, call tools, and get the result of every call before it goes on."""
    parts: list[Part] = []
    for turn in range(draw(st.integers(0, 4))):
        parts.extend(draw(st.lists(SAID, max_size=2)))
        calls = [f"call_{turn}_{n}" for n in range(draw(st.integers(0, 3)))]
        parts.extend(ToolCall(call, "look", draw(TEXTS)) for call in calls)
        parts.extend(ToolResult(call, draw(CONTENT)) for call in draw(st.permutations(calls)))
    return tuple(parts)


RUNS = st.builds(Run, id=st.just("r"), input=CONTENT, steps=steps(), output=CONTENT)


@examples(300)
@given(RUNS)
def test_messages_are_those_that_a_run_becomes(run: Run) -> None:
    assert messages_of(run) == len(run_messages(run))


@examples(300)
@given(steps())
def test_groups_part_nothing_and_lose_nothing(steps: tuple[Part, ...]) -> None:
    groups = list(grouped(steps))
    assert tuple(itertools.chain(*groups)) == steps
    for group in groups:
        assert all(isinstance(part, ToolCall) for part in group[1:])
        assert len(group) == 1 or not isinstance(group[0], ToolResult | Opaque)


def test_calls_join_the_text_that_announces_them() -> None:
    text, call, other, result = Text("I look."), ToolCall("1", "f"), ToolCall("2", "f"), ToolResult("1", "x")
    assert list(grouped(())) == []
    assert list(grouped((text, call, other, result, call))) == [(text, call, other), (result,), (call,)]
    assert list(grouped((text, text, call))) == [(text,), (text, call)]
    assert list(grouped((opaque({}), call))) == [(opaque({}),), (call,)]


# The counts of runs


def test_the_sections_of_a_run_are_counted_apart() -> None:
    run = Run("r", "question", (ToolCall("1", "f", "{}"), ToolResult("1", "found")), (Text("an"), Text("swer")))
    assert count_run(run, Reader().counter) == Counts(f"reader+media{MEDIA}", 8, 8, 6, 4)
    assert count_run(Run("r", "", (), ""), Reader().counter) == Counts(f"reader+media{MEDIA}", 0, 0, 0, 2)
    assert count_run(Run("r", (), (), ()), Reader().counter) == Counts(f"reader+media{MEDIA}", 0, 0, 0, 0)


RUN = Run("r", "four", (Text("three"),), "output")
ENTRIES: list[Entry] = [
    RUN,
    Extend(id="e", target="r", at=0, steps=(Text("more"),), output="all of it"),
    Extend(id="e", target="r", at=0, status="complete"),
    Amend(id="a", at=0, run=RUN),
    Retract(id="d", target="r", at=0),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: type(entry).__name__)
def test_an_entry_is_counted_once_for_each_name(entry: Entry) -> None:
    first, again, other = Reader(), Reader(), approximate()
    after = counted(entry, first.counter)
    assert sum(map(len, first.texts)) == chars_of(entry)
    assert is_counted(after, again.counter)
    assert counted(after, again.counter) is after
    assert not again.texts
    assert is_counted(after, other) == isinstance(entry, Retract)
    assert counted(after, other) == counted(entry, other)


def test_counting_an_entry_changes_nothing_else() -> None:
    run = counted(RUN, Reader().counter)
    assert isinstance(run, Run)
    assert run.counts == Counts(f"reader+media{MEDIA}", 4, 5, 6, 3)
    assert run.replace() == RUN
    assert counted(Amend(id="a", at=0, run=RUN), Reader().counter) == Amend(id="a", at=0, run=run)


@examples(300)
@given(RUNS, steps(), st.none() | CONTENT)
def test_counts_of_an_extended_run_add_up(run: Run, added: tuple[Part, ...], output: Content | None) -> None:
    counter = Reader().counter
    before = counted(run, counter)
    extend = counted(Extend(id="e", target="r", at=0, steps=added, output=output), counter)
    assert isinstance(before, Run)
    assert isinstance(extend, Extend)
    after = apply(before, extend)
    assert after is not None
    assert after.counts == count_run(after, counter)


def test_a_counted_run_is_priced_without_reading_it() -> None:
    reader = Reader()
    counter = reader.counter
    assert cost_of(RUN, counter) == 4 + 5 + 6 + 3 * counter.per_message
    run = counted(RUN, counter)
    assert isinstance(run, Run)
    reader.texts.clear()
    assert cost_of(run, counter) == cost_of(RUN, Reader().counter)
    assert total(Counts(counter.name, 1, 2, 3, 4), counter) == 6 + 4 * counter.per_message
    assert not reader.texts


def test_chars_are_those_that_would_be_read() -> None:
    content = (Text("abc"), Blob("image/png", PIXELS), Json([1]), ToolResult("1", "four"), opaque({"a": BASE64}))
    unread = len(content[-1].raw)  # not parsed, only to tell how much there is
    assert chars_of(Run("r", "in", content, "")) == 2 + 3 + 3 + 4 + unread
    assert chars_of(Amend(id="a", at=0, run=Run("r", "in", content))) == 12 + unread
    assert chars_of(Extend(id="e", target="r", at=0, steps=content)) == 10 + unread
    assert chars_of(Retract(id="d", target="r", at=0)) == 0

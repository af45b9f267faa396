"""Counters that count as models do: equal counts, every text counted, vocabularies loaded once and in time."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import sysconfig
import textwrap
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memkit import counters, tokens
from memkit.content import Blob, ToolResult
from memkit.errors import VocabularyError
from memkit.tokens import Loadable, TextCounter

ENCODINGS = ["cl100k_base", "o200k_base"]


def python(code: str, **env: str) -> str:
    """Run code in a new interpreter, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=False,
        env={**os.environ, "NO_PROXY": "", "no_proxy": "", **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Names


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("gpt-4o", "o200k_base"),
        ("gpt-4o-mini-2024-07-18", "o200k_base"),
        ("gpt-5", "o200k_base"),
        ("gpt-5-mini", "o200k_base"),
        ("o3", "o200k_base"),
        ("o200k_base", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("cl100k_base", "cl100k_base"),
        ("gpt-oss-120b", "o200k_harmony"),
    ],
)
def test_counters_of_an_encoding_share_their_name(name: str, encoding: str) -> None:
    for counter in (counters.tiktoken(name), counters.toktok(name), counters.from_file("ranks", name)):
        assert counter.name == f"{encoding}+media765"
        assert counter.per_message == 4
        assert isinstance(counter, Loadable)


def test_settings_are_kept_and_named() -> None:
    for counter in (
        counters.tiktoken("gpt-4o", per_message=3, media=85),
        counters.toktok("gpt-4o", per_message=3, media=85),
        counters.from_file("ranks", "gpt-4o", per_message=3, media=85),
    ):
        assert counter.name == "o200k_base+media85"
        assert counter.per_message == 3


def test_tiktoken_has_older_encodings_too() -> None:
    assert counters.tiktoken("text-davinci-003").name == "p50k_base+media765"
    assert counters.tiktoken("r50k_base").name == "r50k_base+media765"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (counters.tiktoken, "claude"),
        (counters.toktok, "claude"),
        (counters.toktok, "gpt2"),
        (counters.toktok, "qwen3.5"),
        (lambda name: counters.from_file("ranks", name), "p50k_base"),
        (counters.tiktoken, ""),
    ],
)
def test_an_unknown_name_is_refused_with_the_names_that_exist(
    make: Callable[[str], TextCounter], name: str
) -> None:
    with pytest.raises(VocabularyError, match=rf"no vocabulary for '{name}'.*o200k_base.*gpt-4o.*TextCounter"):
        make(name)


def test_all_counters_are_found_in_one_place() -> None:
    assert counters.approximate is tokens.approximate
    assert sorted(counters.__all__) == ["approximate", "from_file", "tiktoken", "toktok"]


def test_nothing_is_imported_or_loaded_before_it_is_needed() -> None:
    assert python("""
        import sys
        from memkit import counters

        def loaded(*names):
            return [name for name in names if name in sys.modules]

        print(loaded("tiktoken", "toktok", "requests"))
        counter, fast = counters.tiktoken("gpt-4o"), counters.toktok("gpt-4o")
        print(loaded("tiktoken_ext.openai_public", "toktok", "requests"), counter.loaded, fast.loaded)
        fast.load()
        print(loaded("tiktoken_ext.openai_public", "toktok", "requests"), counter.loaded, fast.loaded)
    """).splitlines() == ["[]", "[] False False", "['toktok'] False True"]


# Equal counts


def sources(rng: random.Random) -> Iterator[str]:
    """Yield slices of the standard library's code, with the prose and the tables in it."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    code = "".join(file.read_text("utf-8", "replace") for file in files)
    for _ in range(10_000):
        start = rng.randrange(len(code))
        yield code[start : start + rng.choice([5, 40, 200, 1000])]


def alphabets() -> list[str]:
    """Return sets of characters, without those that this Python does not know: see `memkit.counters`."""
    ranges = {
        "latin": range(0x20, 0x250),
        "greek and cyrillic": range(0x370, 0x530),
        "right to left": range(0x590, 0x800),
        "indic and thai": range(0x900, 0x1000),
        "kana and CJK": [*range(0x3040, 0x3100), *range(0x4E00, 0x9FFF, 7)],
        "hangul": range(0xAC00, 0xD7A4),
        "emoji": [*range(0x1F300, 0x1F650), 0x200D, 0xFE0F, *range(0x1F3FB, 0x1F400)],
        "combining": [*range(0x300, 0x370), *range(0x61, 0x67)],
        "controls": [*range(0x20), *range(0x7F, 0xA0), *range(0x2000, 0x2070), 0xFEFF, 0xFFFD, 0xFFFF],
        "spaces": [0x20, 0x20, 0x09, 0x0A, 0x0D, 0xA0, 0x2028, 0x3000, 0x61],
        "quotes": map(ord, "'\u2019sStTlLrReEvVmMdD aA1"),
        "code": map(ord, "{}[]()<>=!&|^~+-*/%#@\\'\"`_.,:; \n\tab01"),
        "base64": map(ord, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"),
        "digits": map(ord, "0123456789.,- "),
        "one letter": map(ord, "aA"),
        "rules": map(ord, "-=*_#~\n"),
        "surrogates": [0xD83D, 0xDE00, 0xD800, 0xDFFF, 0x61, 0x20],
        "everything": range(0x110000),
    }
    return ["".join(c for c in map(chr, codes) if unicodedata.category(c) != "Cn") for codes in ranges.values()]


def made_up(rng: random.Random) -> Iterator[str]:
    """Yield texts from one alphabet, from all of them, and with special tokens among them."""
    kinds = alphabets()
    everything = "".join(rng.choice(kind) for _ in range(2000) for kind in kinds)
    special = ["<|endoftext|>", "<|endofprompt|>", "<|fim_prefix|>", "<|start|>", "<|im_start|>"]
    for _ in range(800):
        for kind in kinds:
            yield "".join(rng.choices(kind, k=rng.choice([1, 2, 3, 10, 50, 300])))
        yield "".join(rng.choices(everything, k=100)) + rng.choice(special) + "".join(rng.choices(everything, k=9))


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    rng = random.Random(2026)
    texts = [*sources(rng), *made_up(rng)]
    assert len(texts) > 20_000
    return texts


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_counts_are_equal(encoding: str, corpus: list[str], vocabularies: dict[str, Path]) -> None:
    slow, fast = counters.tiktoken(encoding), counters.toktok(encoding)
    local = counters.from_file(vocabularies[encoding], encoding)
    wrong = [text for text in corpus if not slow.count(text) == fast.count(text) == local.count(text)]
    assert wrong == []


def test_harmony_counts_text_as_o200k_base_does(corpus: list[str], vocabularies: dict[str, Path]) -> None:
    base, fast = counters.toktok("o200k_base"), counters.toktok("o200k_harmony")
    local = counters.from_file(vocabularies["o200k_base"], "o200k_harmony")
    wrong = [text for text in corpus[::10] if not base.count(text) == fast.count(text) == local.count(text)]
    assert wrong == []


@pytest.fixture(params=["tiktoken", "toktok", "from_file"])
def make(request: pytest.FixtureRequest, vocabularies: dict[str, Path]) -> Callable[[str], TextCounter]:
    """Each way to make a counter of an encoding."""
    if request.param == "from_file":
        return lambda encoding: counters.from_file(vocabularies[encoding], encoding)
    return getattr(counters, request.param)


@pytest.mark.parametrize(
    ("text", "cl100k_base", "o200k_base"),
    [
        ("", 0, 0),
        ("hello world", 2, 2),
        ("Größe 東京 😀", 6, 4),
        ("<|endoftext|>", 7, 7),
        ("say <|endoftext|> aloud", 8, 9),
        ("\ud800", 1, 1),
        ("\ud83d\ude00", 2, 1),
    ],
)
def test_known_counts(make: Callable[[str], TextCounter], text: str, cl100k_base: int, o200k_base: int) -> None:
    assert make("cl100k_base").count(text) == cl100k_base
    assert make("o200k_base").count(text) == o200k_base


def test_surrogates_are_paired_or_replaced(make: Callable[[str], TextCounter]) -> None:
    counter = make("o200k_base")
    assert counter.count("a\ud83d\ude00b") == counter.count("a\U0001f600b")
    assert counter.count("a\ud83db\ude00") == counter.count("a\ufffdb\ufffd")


def test_media_and_text_add_up(make: Callable[[str], TextCounter]) -> None:
    counter = make("o200k_base")
    image = Blob("image/png", bytes(100_000))
    assert counter.count((image, ToolResult("1", "hello world"), image)) == 2 * 765 + 2


# Hostile texts: a million characters each

HOSTILE = {
    "spaces": " ",
    "tabs": "\t",
    "newlines": "\n",
    "lines": "\r\n",
    "wide spaces": "\u3000",
    "a": "a",
    "^": "^",
    "=": "=",
    "-": "-",
    "/": "/",
    "families": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "accents": "e\u0301",
    "marks": "\u0301",
    "CJK": "的是不了人我在有他这",
    "base64": "iVBORw0KGgoAAAANSUhEUgAAAAUA+/9",
    "lone surrogates": "\ud800",
    "special tokens": "<|endoftext|>",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_every_text_has_a_count(kind: str, encoding: str) -> None:
    text = HOSTILE[kind] * (1_000_000 // len(HOSTILE[kind])) + "x"
    tokens = counters.tiktoken(encoding).count(text)
    assert tokens == counters.toktok(encoding).count(text)
    assert tokens > 20


# Loading


def test_a_vocabulary_is_read_once_for_all_counters_and_threads() -> None:
    assert (
        python("""
        import sys, threading
        from memkit import counters

        reads = []
        def note(event, arguments):
            if event == "open" and str(arguments[0]).endswith("fb374d419588a4632f3f557e76b4b70aebbca790"):
                reads.append(arguments)
        sys.addaudithook(note)

        made = [counters.tiktoken("gpt-4o", media=n % 3) for n in range(16)]
        start, counts = threading.Barrier(len(made)), []
        def count(counter):
            start.wait()
            counts.append(counter.count("hello world"))
        threads = [threading.Thread(target=count, args=[counter]) for counter in made]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(counts == [2] * len(made), len(reads), all(counter.loaded for counter in made))
    """)
        == "True 1 True\n"
    )


def test_threads_count_at_once(make: Callable[[str], TextCounter], corpus: list[str]) -> None:
    counter, texts = make("cl100k_base"), corpus[::20]
    results: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: results.append([counter.count(text) for text in texts])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[counter.count(text) for text in texts]] * 4


REMEDIES = ["counters.toktok", "memkit[fast]", "counters.from_file", "TIKTOKEN_CACHE_DIR"]


def test_without_a_network_the_error_names_the_remedies(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen: connections are refused
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
        printed = python(
            """
            from memkit import counters
            from memkit.errors import VocabularyError

            counter = counters.tiktoken("gpt-4o")
            for attempt in (counter.load, lambda: counter.count("hello")):
                try:
                    attempt()
                except VocabularyError as error:
                    print(error, "|", type(error.__cause__).__name__, counter.loaded)
            """,
            HTTPS_PROXY=proxy,
            https_proxy=proxy,
            TIKTOKEN_CACHE_DIR=str(tmp_path),
        )
    assert printed.count("could not load the vocabulary o200k_base (ProxyError:") == 2
    assert printed.count("| ProxyError False") == 2
    assert [remedy for remedy in REMEDIES if remedy not in printed] == []
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_answers_costs_the_time_limit_and_no_later_attempt(
    tmp_path: Path, vocabularies: dict[str, Path]
) -> None:
    printed = python(
        f"""
        import os, socket, sys
        from memkit import counters
        from memkit.errors import VocabularyError

        server = socket.create_server(("127.0.0.1", 0))
        proxy = "http://127.0.0.1:%d" % server.getsockname()[1]
        os.environ.update(HTTPS_PROXY=proxy, https_proxy=proxy, TIKTOKEN_CACHE_DIR={str(tmp_path)!r})
        counters.LOAD_TIMEOUT = 0.2
        counter = counters.tiktoken("gpt-4o")
        try:
            counter.load()
        except VocabularyError as error:
            print(error)
        silent, _ = server.accept()
        print(silent.recv(100))

        counters.LOAD_TIMEOUT = 30
        os.environ["TIKTOKEN_CACHE_DIR"] = {str(vocabularies["o200k_base"].parent)!r}
        print(counter.count("hello world"))
        """
    )
    assert "could not load the vocabulary o200k_base (no answer in 0.2 s)" in printed
    assert [remedy for remedy in REMEDIES if remedy not in printed] == []
    assert "b'CONNECT openaipublic" in printed
    assert printed.endswith("\n2\n")


def test_an_encoding_that_tiktoken_has_already_is_not_loaded_again(tmp_path: Path) -> None:
    assert (
        python(f"""
        import os, tiktoken
        from memkit import counters

        tiktoken.get_encoding("cl100k_base")
        os.environ["TIKTOKEN_CACHE_DIR"] = {str(tmp_path)!r}
        os.environ["HTTPS_PROXY"] = os.environ["https_proxy"] = "http://127.0.0.1:1"
        print(counters.tiktoken("gpt-4").count("hello world"))
    """)
        == "2\n"
    )


def test_without_toktok_the_error_names_the_extra() -> None:
    assert (
        python("""
        import sys
        sys.modules["toktok"] = None  # as if it were not installed
        from memkit import counters
        from memkit.errors import VocabularyError

        counter = counters.toktok("gpt-4o")
        try:
            counter.load()
        except VocabularyError as error:
            print("memkit[fast]" in str(error), "counters.tiktoken" in str(error), counter.loaded)
        del sys.modules["toktok"]
        print(counter.count("hello world"))
    """)
        == "True True False\n2\n"
    )


# Local files


def test_a_file_is_checked_and_may_be_put_right(tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    ranks = tmp_path / "o200k_base.tiktoken"
    counter = counters.from_file(ranks, "gpt-4o")
    with pytest.raises(VocabularyError, match="cannot be read"):
        counter.load()
    ranks.write_bytes(vocabularies["cl100k_base"].read_bytes())
    with pytest.raises(VocabularyError, match="not the vocabulary o200k_base"):
        counter.count("hello world")
    ranks.write_bytes(vocabularies["o200k_base"].read_bytes()[:-1])
    with pytest.raises(VocabularyError, match="or damaged"):
        counter.count("hello world")
    ranks.write_bytes(vocabularies["o200k_base"].read_bytes())
    assert counter.count("hello world") == 2


def test_a_relative_path_is_that_of_the_folder_where_it_was_given(
    tmp_path: Path, vocabularies: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(vocabularies["cl100k_base"].parent)
    counter = counters.from_file(vocabularies["cl100k_base"].name, "gpt-4")
    monkeypatch.chdir(tmp_path)
    assert counter.count("hello world") == 2

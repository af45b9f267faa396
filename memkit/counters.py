"""Every counter of memkit: `tiktoken`, the faster `toktok`, `from_file`, and `approximate`.

The first three count as the models of OpenAI do. They give the same counts, and under the same name where
the encoding is the same, so that none has to count again what another has counted. (Letters that are new in
Unicode 17 are the exception: toktok knows them, tiktoken 0.14 does not, and the counts may differ by one.)
Nothing here chooses a counter or replaces one by another: a changed count would change what is pruned.

A vocabulary is loaded at the first count or by `load()`, once for all counters of a process. That takes up
to half a second, for a part of which every other thread stands still: do it before there is traffic.
"""

from __future__ import annotations

import base64
import os
import threading
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple

from memkit.content import clean
from memkit.errors import VocabularyError
from memkit.tokens import CountText, TextCounter, approximate, once

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from tiktoken import Encoding

__all__ = ["approximate", "from_file", "tiktoken", "toktok"]

LOAD_TIMEOUT: Final = 30.0
"""Seconds that `tiktoken` may take to load a vocabulary, which it downloads if it is not in its cache."""


def tiktoken(name: str, *, per_message: int = 4, media: int = 765) -> TextCounter:
    """Return a counter that uses tiktoken. `name` is a model, as `gpt-4o`, or an encoding, as `o200k_base`.

    The vocabulary comes from tiktoken's cache or from the network: see `TIKTOKEN_CACHE_DIR`. Text that looks
    like a special token is text. Each piece of media costs `media` tokens, each message `per_message`.

    Raises:
        VocabularyError: there is no such model or encoding.
    """
    encoding = _encoding_of(name, "tiktoken")
    return TextCounter(encoding, _shared(_load_tiktoken, encoding), per_message=per_message, media=media)


def toktok(name: str, *, per_message: int = 4, media: int = 765) -> TextCounter:
    """Return a counter that uses toktok: the counts of `tiktoken`, several times as fast, without downloads.

    It knows the encodings of all current models and needs the extra `fast`.

    Raises:
        VocabularyError: there is no such model or encoding.
    """
    encoding = _encoding_of(name, "toktok", _FILES)
    return TextCounter(encoding, _shared(_load_toktok, encoding), per_message=per_message, media=media)


def from_file(path: str | os.PathLike[str], name: str, *, per_message: int = 4, media: int = 765) -> TextCounter:
    """Return a counter that uses tiktoken and reads the vocabulary from a local `.tiktoken` file.

    `name` is a model or an encoding. The file must be the published one: its hash is checked when it is
    loaded, and a `VocabularyError` raised if it is another.

    Raises:
        VocabularyError: there is no such model or encoding.
    """
    encoding = _encoding_of(name, "from_file", _FILES)
    load = _shared(_load_file, encoding, os.path.abspath(path))  # noqa: PTH100 - as below
    return TextCounter(encoding, load, per_message=per_message, media=media)


class _File(NamedTuple):
    """What a rank file does not say itself: its hash, and how text is split into words."""

    sha256: str
    pattern: str


_O200K: Final = _File(
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)

_FILES: Final = {
    "cl100k_base": _File(
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    ),
    "o200k_base": _O200K,
    "o200k_harmony": _O200K,  # other special tokens, the same text
}
"""The encodings of current models: those that toktok has built in, and that can be read from a file."""


def _encoding_of(name: str, counter: str, encodings: Collection[str] = ()) -> str:
    """Return the encoding of a model, or of that name, if it is one of `encodings`: by default any."""
    from tiktoken.model import (  # noqa: PLC0415 - `import memkit` does without
        MODEL_PREFIX_TO_ENCODING,
        MODEL_TO_ENCODING,
        encoding_name_for_model,
    )

    known = encodings or {*MODEL_TO_ENCODING.values(), *MODEL_PREFIX_TO_ENCODING.values()}
    try:
        encoding = encoding_name_for_model(name)
    except KeyError:
        encoding = name
    if encoding in known:
        return encoding
    models = [model for model, encoding in MODEL_TO_ENCODING.items() if encoding in known]
    raise VocabularyError(
        f"counters.{counter} has no vocabulary for {name!r}. It has the encodings {', '.join(sorted(known))} "
        f"and the models {', '.join(models)}. For any other model build a TextCounter, or use approximate()"
    )


_loaders: Final[dict[tuple[object, ...], Callable[[], CountText]]] = {}


def _shared(load: Callable[..., CountText], *args: str) -> Callable[[], CountText]:
    """Return the loader of a vocabulary that all counters share, also one made for each request."""
    return _loaders.setdefault((load, *args), once(partial(load, *args)))


def _load_tiktoken(encoding: str) -> CountText:
    # tiktoken downloads without a time limit: that is left to a thread which can be left behind.
    from concurrent.futures import Future  # noqa: PLC0415 - not every program counts so

    loading: Future[Encoding] = Future()

    def load() -> None:
        try:
            loading.set_result(_tiktoken_encoding(encoding))
        except BaseException as error:
            loading.set_exception(error)

    threading.Thread(target=load, name=f"loading {encoding}", daemon=True).start()
    try:
        return _count_with(loading.result(LOAD_TIMEOUT))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if loading.done() else f"no answer in {LOAD_TIMEOUT:g} s"
        raise VocabularyError(
            f"tiktoken could not load the vocabulary {encoding} ({reason}). Use counters.toktok, which has "
            "it built in (pip install 'memkit[fast]'), or counters.from_file with a copy of it, or set "
            "TIKTOKEN_CACHE_DIR to a folder into which tiktoken has downloaded it"
        ) from error


def _tiktoken_encoding(name: str) -> Encoding:
    from tiktoken import Encoding, registry  # noqa: PLC0415

    # Not `get_encoding`, which holds a lock of the whole process while it downloads: after a download that
    # never ends, no later attempt could succeed.
    constructors = import_module("tiktoken_ext.openai_public").ENCODING_CONSTRUCTORS
    return registry.ENCODINGS.get(name) or Encoding(**constructors[name]())


def _load_toktok(encoding: str) -> CountText:
    try:
        truncate: Callable[[str, int, str], tuple[str, int]] = import_module("toktok").truncate
    except ImportError as error:
        raise VocabularyError(
            "counters.toktok needs the package toktok-rs: pip install 'memkit[fast]'. Without it, "
            "counters.tiktoken counts the same, from a vocabulary that it downloads"
        ) from error

    def count_text(text: str) -> int:
        # `truncate` also returns the count of the whole text, in 0.3 us; `batch_count` takes 28.
        try:
            return truncate(text, _NO_LIMIT, encoding)[1]
        except UnicodeEncodeError:
            return truncate(clean(text), _NO_LIMIT, encoding)[1]  # as tiktoken does with surrogates

    count_text("")  # toktok builds its tables at the first count
    return count_text


_NO_LIMIT: Final = 1 << 31


def _load_file(encoding: str, path: str) -> CountText:
    from tiktoken import Encoding  # noqa: PLC0415

    sha256, pattern = _FILES[encoding]
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib takes milliseconds to import
            data = file.read()
    except OSError as error:
        raise VocabularyError(f"the vocabulary {encoding} cannot be read: {error}") from error
    from hashlib import sha256 as digest_of  # noqa: PLC0415 - as does this

    if digest_of(data).hexdigest() != sha256:
        raise VocabularyError(f"{path} is not the vocabulary {encoding}, or damaged: SHA-256 is not {sha256}")
    lines = (line.split() for line in data.splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    return _count_with(Encoding(encoding, pat_str=pattern, mergeable_ranks=ranks, special_tokens={}))


def _count_with(encoding: Encoding) -> CountText:
    encode = encoding.encode_ordinary  # to which special tokens are text
    return lambda text: len(encode(text))

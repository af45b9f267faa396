"""What a library is asked to do beside memkit. Its packages are imported when it is asked, not before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import tiktoken

from benchmarks.measure import Candidate
from memkit import Run

ENCODING = "o200k_base"

Growth: TypeAlias = Callable[[int, int], float]
"""How the work of pruning grows with the runs held, of which so many fit: for rows that would take minutes."""


class Pruner(msgspec.Struct, frozen=True):
    """A library that fits a history into a budget of tokens.

    `cold` and `warm` are given the runs and the budget: with nothing counted yet, and adding one run each time
    to a history that was pruned before. Without `warm` nothing is kept from one time to the next. `stored` is
    given counts, as they were stored; without it none are.
    """

    name: str
    packages: tuple[str, ...]
    cold: Callable[[Sequence[Run], int], Candidate]
    growth: Growth
    warm: Callable[[Sequence[Run], int], Awaitable[Candidate]] | None = None
    stored: Callable[[Sequence[Run], int], Candidate] | None = None
    is_exact: bool = True
    """Whether it counts with the vocabulary, as memkit beside it does."""


class Held(msgspec.Struct, frozen=True):
    """A conversation in a store."""

    append: Callable[[], Awaitable[object]]
    load_all: Callable[[], Awaitable[object]]
    """Returns what was loaded, or what holds it: to let go of it takes time as well."""
    prompt: Callable[[], Awaitable[object]]
    """Opens the conversation anew, and builds a prompt from the newest hundred runs, or what comes closest."""
    load_last: Callable[[], Awaitable[object]] | None = None
    """Loads the newest fifty runs; None where there is no such call."""


class Place(msgspec.Struct, frozen=True):
    """Where a store may keep what it is given: an empty folder, and the socket of a server if there is one.

    What is opened once for all conversations is `shared`, by a name, and closed by the `stack`.
    """

    folder: Path
    stack: AsyncExitStack
    redis: str = ""
    shared: dict[str, Any] = {}


class Store(msgspec.Struct, frozen=True):
    """A library that stores conversations. `hold` fills one, named by the key, with runs."""

    name: str
    packages: tuple[str, ...]
    hold: Callable[[Place, str, Sequence[Run]], AbstractAsyncContextManager[Held]]
    most: int = 10_000_000
    """The longest history that is measured; longer ones are extrapolated."""
    is_durable: bool = False
    """Whether an append is on the disk when it returns."""
    needs_redis: bool = False


class Holder(msgspec.Struct, frozen=True):
    """How a library holds an exchange in memory, made of texts that are there."""

    name: str
    packages: tuple[str, ...]
    make: Callable[[], Callable[[str, str], object]]


def linear(count: int, fits: int) -> float:
    """Return the work of looking at every run once."""
    del fits
    return count


def rescanning(count: int, fits: int) -> float:
    """Return the work of looking at all runs that are left each time that one is dropped."""
    if count <= fits:
        return count
    return (count * (count + 1) - fits * (fits - 1)) / 2


def is_there(packages: Sequence[str]) -> bool:
    """Tell whether all these packages, named as they are imported, are installed."""
    return all(find_spec(package) is not None for package in packages)


def missing(name: str, packages: Sequence[str]) -> str:
    """Return what to say of a library that is not there."""
    gone = ", ".join(package for package in packages if find_spec(package) is None)
    return f"{name}: not measured, there is no {gone}; the group `bench` has it"


@cache
def encoding() -> tiktoken.Encoding:
    """Return the vocabulary that every library is given which takes one."""
    return tiktoken.get_encoding(ENCODING)


def tokens(text: str) -> list[int]:
    """Return the tokens of a text."""
    return encoding().encode_ordinary(text)

"""LangChain messages as runs, and back: every history comes back equal, whole or broken.

What parts say naturally is said in parts, so that it can be counted, pruned and read by every other adapter. The
rest of a message (its id, metadata, reasoning) is kept in `extra`; tokens are not counted there. A message that
is nothing like a part, such as a `RemoveMessage`, becomes an `Opaque` as a whole. Works without LangChain on what
its `messages_to_dict` returns; only `to_messages` and `view_messages` need the package.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from memkit.adapters.langchain.parts import run_of, spoken, written_of
from memkit.adapters.langchain.written import Given, checked, exchanges, leading, write
from memkit.content import Text
from memkit.conversation import View
from memkit.messages import SummaryAs, is_skipped, summary_message
from memkit.run import Run, new_run
from memkit.steps import repaired

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage


class Imported(msgspec.Struct, frozen=True):
    """What messages became.

    `system` are the system messages at the beginning, as they were given: they belong to the program rather than
    to the memory.
    """

    system: tuple[Given, ...]
    runs: tuple[Run, ...]


def to_runs(messages: Iterable[Given]) -> Imported:
    """Return messages as runs.

    A human message begins a run, and so does a system message after an answer. The answer, an AI message without
    calls that ends a run, is its output; what lies between are its steps. `[*imported.system,
    *to_messages(imported.runs)]` equals `messages`; sequences in an artifact come back as lists, as in JSON.

    Raises:
        FormatError: not a list of messages, or one that JSON cannot hold, such as an artifact that is an object
            of some class. It names the message and the field.
    """
    given = tuple(checked(messages))
    written = [write(message, f"message {index}") for index, message in enumerate(given)]
    talk = leading(written)
    return Imported(given[:talk], tuple(run_of(written[start:stop]) for start, stop in exchanges(written, talk)))


def to_messages(runs: Iterable[Run], types: Iterable[type[BaseMessage]] = ()) -> list[BaseMessage]:
    """Return runs as messages, just as they were: with calls that have no result, and inputs without an answer.

    Steps that only another API understands, such as its reasoning, are left out. Classes of your own come back as
    such if they are among `types`, and else as the class of LangChain that they are made from, with their fields:
    nothing is imported by a name that was stored.

    Raises:
        FormatError: a stored message that the installed langchain-core refuses.
        ImportError: langchain-core is not installed, or too old.
    """
    from memkit.adapters.langchain.build import build  # noqa: PLC0415 - needs langchain-core

    known = {made.__name__: made for made in types}
    return [build(message.data, known.get(message.name)) for message in written_of(runs)]


def to_dicts(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return runs as the dicts that LangChain's `messages_to_dict` makes of messages.

    `messages_from_dict` reads them. A message of a class that is not LangChain's own has its name under `class`.
    """
    return [message.as_dict() for message in written_of(runs)]


def view_messages(
    view: View, summary_as: SummaryAs = "system", types: Iterable[type[BaseMessage]] = ()
) -> list[BaseMessage]:
    """Return what a view remembers as messages for a model: the summary, then the runs.

    Every call has a result and every result its call; a partial run that nobody answered is left out.
    """
    shown = [mended(run) for run in view.runs if not is_skipped(run)]
    if view.summary is not None:
        block = summary_message(view.summary, summary_as)
        role, text = block["role"], block["content"]
        said = Text(text, extra={"chat": {"set": {"role": role}}})
        shown.insert(0, new_run(said))
    return to_messages(shown, types)


def mended(run: Run) -> Run:
    """Return a run with a result for every call, and a call for every result: as it is, if it has."""
    steps = repaired(spoken(run.steps))
    return run if steps == run.steps else run.replace(steps=steps)

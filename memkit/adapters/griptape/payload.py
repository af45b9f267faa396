"""Whole memories as griptape has stored them, in every form since 0.10, and as griptape 1.13 loads them."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import msgspec

from memkit.adapters.griptape.artifacts import SHELL, Report, Shell, as_shell, no_report
from memkit.adapters.griptape.patch import (
    KEY,
    Fields,
    Patch,
    applied,
    difference,
    fields_of,
    head_from,
    to_patch,
)
from memkit.adapters.griptape.runs import run_of, stored_of, without
from memkit.adapters.griptape.schema import is_array, is_object, value_of_text
from memkit.adapters.griptape.text import StoredText
from memkit.content import EMPTY, text_of
from memkit.conversation import Head, Summary
from memkit.errors import FormatError
from memkit.rawjson import split_object, to_json
from memkit.run import Run

Metadata: TypeAlias = dict[str, Any]

NO_HEAD: Final = Head()


class Imported(msgspec.Struct, frozen=True):
    """What a stored memory became.

    `max_runs` and `offset` are what the memory itself was set to, where that was stored. `problems` tells what
    could not be read as what it should be, and is kept as it is: "run 3: ...".
    """

    runs: tuple[Run, ...]
    head: Head
    max_runs: int | None = None
    offset: int | None = None
    problems: tuple[str, ...] = ()


def read(stored: str | bytes) -> Imported:
    """Return a memory as any release of griptape since 0.10 has stored it. No class in it is imported.

    Raises:
        FormatError: not JSON, or not a memory.
    """
    try:
        text = StoredText(stored)
        return _imported(_memory(text), text)
    except RecursionError as error:
        raise FormatError(f"the stored memory is nested too deep to be read{_UNCHANGED}") from error


def _imported(memory: Metadata, text: StoredText) -> Imported:
    problems: list[str] = []
    runs: list[Run] = []
    taken: set[str] = set()
    for index, item in enumerate(memory.pop("runs", [])):
        found = list(text.problems_in(item))
        run = run_of(item, index, taken, found.append)
        problems += [f"run {index}: {what}" for what in found]
        taken.add(run.id)
        runs.append(run)
    problems += [f"metadata: {what}" for what in text.problems_in(memory)]
    head = head_of(memory, [run.id for run in runs], problems.append)
    shell = as_shell(head.extra.get(SHELL))
    limits = (memory if isinstance(shell, str) else shell, head.meta)
    max_runs, offset = number_in(limits, "max_runs"), number_in(limits, "offset")
    return Imported(tuple(runs), head, max_runs, offset, tuple(problems))


def dump(runs: Iterable[Run], head: Head = NO_HEAD, *, positions: Sequence[int] | None = None) -> str:
    """Return a memory as the text that griptape 1.13 loads, and of which `read` makes the same runs and head.

    The marks of a summary come to count the runs given. `positions` are those of the runs in their log; without
    them, a summary covers the runs up to the one of its `upto_id`, and none if that is not among them.

    Raises:
        FormatError: a run or the head cannot be stored.
    """
    taken: set[str] = set()
    stored: list[dict[str, Any]] = []
    ids: list[str] = []
    for index, run in enumerate(runs):
        stored.append(stored_of(run, partial(_run_of, index, taken)))
        taken.add(run.id)
        ids.append(run.id)
    metadata = metadata_of(_rebased(head, ids, positions), ids)
    return json.dumps({"runs": stored, "metadata": metadata})


def _run_of(index: int, taken: set[str], stored: dict[str, Any]) -> Run:
    return run_of(stored, index, taken, no_report)


# --- heads ---

_METADATA: Final = ("meta", "metadata")
_SUMMARY: Final = ("summary", "summary_index")


def head_of(memory: Metadata, ids: Sequence[str] | None, report: Report) -> Head:
    """Return the head of a memory without its runs, of which `ids` are those; None where they are not known."""
    more = {key: value for key, value in memory.items() if key not in _METADATA and value is not None}
    metadata: Metadata = {}
    for part in (memory[name] for name in _METADATA if memory.get(name) is not None):
        if not is_object(part):
            report(f"metadata: it is a {type(part).__name__}, no object, and kept beside it")
            return _whole_head(memory, ids, report)
        metadata.update(part)
    if KEY not in metadata:
        return _plain(metadata, more, ids, report)
    problems: list[str] = []
    plain = _plain(without(metadata, KEY), more, ids, problems.append)
    try:
        head = _patched(plain, metadata[KEY])
    except FormatError as error:
        report(f"metadata: the key {KEY!r} stays there: {error}")
        return _plain(metadata, more, ids, report)
    for problem in problems:
        report(problem)
    return head


def metadata_of(head: Head, ids: Sequence[str] | None) -> Metadata:
    """Return a head as metadata of which `head_of` makes the same head.

    Raises:
        FormatError: the head cannot be stored.
    """
    wanted = fields_of(head)
    head = head_from(wanted)  # plain dicts and lists all through
    meta = dict(head.meta)
    own = without(meta, *_SUMMARY, KEY)
    if head.summary is not None:
        own |= {"summary": text_of(head.summary.content), "summary_index": head.summary.upto}
    shell = as_shell(head.extra.get(SHELL))
    for plain in (*_as_it_was(shell, own), meta, own):
        if KEY not in plain and fields_of(head_of({"metadata": plain}, ids, no_report)) == wanted:
            return plain
    return {**own, KEY: _head_patch(head_of({"metadata": own}, ids, no_report), head)}


def _as_it_was(shell: Shell, own: Metadata) -> Iterator[Metadata]:
    """Yield the metadata of which a head with this shell may have been read."""
    if isinstance(shell, str):
        whole = value_of_text(shell)
        if is_object(whole) and is_object(was := whole.get("metadata")):
            yield was | {name: own[name] for name in _SUMMARY if name in own}
    elif is_array(order := shell.get("metadata")):
        names = [name for name in order if isinstance(name, str) and name in own]
        yield {name: own[name] for name in names} | own


def _plain(metadata: Metadata, more: Metadata, ids: Sequence[str] | None, report: Report) -> Head:
    rest, shell = dict(metadata), dict(more)
    summary = _take_summary((shell, rest), ids, report)
    if shell.get("summary_index") == 0:
        del shell["summary_index"]
    if shell.get("type") == "ConversationMemory":
        del shell["type"]
    if summary is not None and list(metadata)[-2:] != list(_SUMMARY) and "summary" in metadata:
        shell["metadata"] = list(metadata)  # their order
    try:
        to_json(shell, "the memory", 3)
        meta = to_json(rest, "metadata") if rest else EMPTY
    except FormatError as error:
        report(f"metadata: it is kept as it is: {error}")
        return _whole_head({**more, "metadata": metadata}, ids, report)
    return Head(summary=summary, meta=meta, extra={SHELL: shell} if shell else EMPTY)


def _whole_head(memory: Metadata, ids: Sequence[str] | None, report: Report) -> Head:
    """Return a head that keeps a memory as text; without its summary, which removals must reach."""
    inner = {name: dict(part) for name in _METADATA if is_object(part := memory.get(name))}
    whole = {**memory, **inner}
    summary = _take_summary((whole, *inner.values()), ids, report)
    return Head(summary=summary, extra={SHELL: json.dumps(whole)})


def _take_summary(sources: Iterable[Metadata], ids: Sequence[str] | None, report: Report) -> Summary | None:
    """Take the summaries out of all places where one may be, and return the first."""
    found = [summary for source in sources if (summary := _summary(source, ids, report)) is not None]
    if any(summary.content != found[0].content for summary in found):
        report("metadata: there are several summaries, of which the first is taken")
    return found[0] if found else None


def _summary(source: Metadata, ids: Sequence[str] | None, report: Report) -> Summary | None:
    """Take a summary out of a place where it may be."""
    content, index = source.get("summary"), source.get("summary_index", 0)
    if not isinstance(content, str) or not content:
        return None
    del source["summary"]
    source.pop("summary_index", None)
    end = 2**53 if ids is None else len(ids)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index <= end:
        report(f"metadata: summary_index is {index!r:.40}, which hides no run: the summary is taken to cover none")
        index = 0
    return Summary(content=content, upto=index, upto_id=ids[index - 1] if ids and index else "", seen=index)


def _rebased(head: Head, ids: Sequence[str], positions: Sequence[int] | None) -> Head:
    """Return a head with the marks of its summary counting the runs of a dump."""
    summary = head.summary
    if summary is None:
        return head
    if positions is not None:
        upto = bisect_left(positions, summary.upto)
    else:
        upto = ids.index(summary.upto_id) + 1 if summary.upto and summary.upto_id in ids else 0
    moved = msgspec.structs.replace(summary, upto=upto, upto_id=ids[upto - 1] if upto else "", seen=upto)
    return msgspec.structs.replace(head, summary=moved)


# --- what griptape has no word for ---


class _SummaryPatch(Patch, kw_only=True):
    """Holds for one text only: griptape may have put another summary in its place."""

    of: str


class _HeadPatch(Patch, kw_only=True):
    summary: _SummaryPatch | None = None


def _head_patch(plain: Head, head: Head) -> Mapping[str, Any]:
    theirs, ours = fields_of(plain), fields_of(head)
    patch: dict[str, Any] = {}
    if plain.summary is not None and head.summary is not None:
        inner = difference(split_object(theirs.pop("summary")), split_object(ours.pop("summary")))
        if len(inner) > 1:
            patch["summary"] = {**inner, "of": _digest(plain.summary)}
    return {**difference(theirs, ours), **patch}


def _patched(plain: Head, patch: object) -> Head:
    made = to_patch(patch, _HeadPatch)
    fields: Fields = applied(fields_of(plain), made)
    inner = made.summary
    if inner is not None and plain.summary is not None and inner.of == _digest(plain.summary):
        marks = applied(split_object(fields["summary"]), inner)
        fields["summary"] = "{" + ",".join(f"{json.dumps(name)}:{raw}" for name, raw in marks.items()) + "}"
    return head_from(fields)


def _digest(summary: Summary) -> str:
    return hashlib.sha256(json.dumps([summary.upto, summary.content]).encode()).hexdigest()[:16]


# --- text ---


def _memory(stored: StoredText) -> Metadata:
    if not stored.text.strip():
        raise FormatError(f"the stored memory is empty{_UNCHANGED}")
    try:
        value = stored.parse()
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the stored memory cannot be read as JSON: {error}{_UNCHANGED}") from error
    if isinstance(value, list):
        return {"runs": value}
    if not is_object(value):
        raise FormatError(f"the stored memory is a {type(value).__name__}, not an object{_UNCHANGED}")
    if value and not value.keys() & {"runs", "metadata"}:
        raise FormatError(f"the stored object has no runs: it has {', '.join(value)!r:.100}{_UNCHANGED}")
    if not isinstance(runs := value.get("runs", []), list):
        raise FormatError(f"the runs of the stored memory are a {type(runs).__name__}, not a list{_UNCHANGED}")
    return value


_UNCHANGED: Final = "; nothing was changed"


def number_in(sources: Iterable[Mapping[str, Any]], name: str) -> int | None:
    """Return the first integer of that name."""
    for source in sources:
        value = source.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None

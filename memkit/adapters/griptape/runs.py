"""griptape's runs as runs, and back.

What memkit's run does not say of the stored one is its shell, in `extra["griptape"]`: the shells of its input and
output, an id or a type that could not be used, keys that are not known. What griptape's run has no word for,
such as steps and counts, goes to the key `memkit` of its meta; see `memkit.adapters.griptape.patch`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Mapping
from typing import Any, Final, TypeAlias

import msgspec

from memkit.adapters.griptape.artifacts import (
    SHELL,
    Report,
    Shell,
    artifact_of,
    as_shell,
    content_of,
)
from memkit.adapters.griptape.patch import KEY, as_stored, is_same, patched_run, run_patch
from memkit.adapters.griptape.schema import is_loadable_run, is_object, is_storable, value_of_text
from memkit.content import EMPTY, Content
from memkit.errors import FormatError
from memkit.run import Run

StoredRun: TypeAlias = dict[str, Any]


def run_of(stored: Any, index: int, taken: Container[str], report: Report) -> Run:
    """Return any JSON value in the place of a run as a run with an id that is not among those taken.

    An id that is missing, unusable or taken is replaced by one made of `stored` and `index`, always the same.
    What is no run is kept whole as the shell of a run that says what can be read of it, and `report` is told.
    """
    run = _patched(stored, index, taken, report) or _plain(stored, index, taken, report)
    return _with_id(run, _derived_id(stored, index, taken)) if run.id in taken else run


def stored_of(run: Run, read: Callable[[StoredRun], Run]) -> StoredRun:
    """Return a run as a run that griptape 1.13 loads, and of which `read` makes the same run.

    Raises:
        FormatError: the run cannot be stored.
    """
    run, fields = as_stored(run)
    plain = _griptape_form(run, read)
    meta = without(plain["meta"] or {}, KEY)
    base: StoredRun = {**plain, "meta": meta or None}
    back = read(base)
    if KEY not in run.meta:
        whole = back if base["meta"] == plain["meta"] else read(plain)
        if is_same(whole, run):
            return plain
    return {**base, "meta": {**meta, KEY: run_patch(back, run, fields)}}


def without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the fields of an object but those of these names."""
    return {name: value for name, value in fields.items() if name not in names}


# --- reading ---


def _patched(stored: Any, index: int, taken: Container[str], report: Report) -> Run | None:
    """Return a run that memkit has written; None if it is another."""
    if not is_object(stored) or not is_object(meta := stored.get("meta")) or KEY not in meta:
        return None
    problems: list[str] = []
    plain = _plain({**stored, "meta": without(meta, KEY) or None}, index, taken, problems.append)
    try:
        run = patched_run(plain, meta[KEY])
    except FormatError as error:
        report(f"the key {KEY!r} of its meta stays there: {error}")
        return None
    for problem in problems:
        report(problem)
    return run


def _plain(stored: Any, index: int, taken: Container[str], report: Report) -> Run:
    if not is_object(stored):
        report(f"it is a {type(stored).__name__}, no run, and kept as it is")
        view = content_of(stored)[0]
        return Run(_derived_id(stored, index, taken), view, extra={SHELL: json.dumps(stored)})
    rest = without(stored, *_SAID)
    contents = {side: _content(stored, side, rest, report) for side in ("input", "output")}
    if stored.get("type", "Run") != "Run":
        rest["type"] = stored["type"]
    run_id = stored.get("id")
    if not isinstance(run_id, str) or not run_id or run_id in taken:
        if run_id is not None:
            rest["id"] = run_id
        run_id = _derived_id(stored, index, taken)
    meta = _meta(stored, rest, report)
    shell: Shell = rest
    if not contents.keys() <= stored.keys() or meta is None or not is_storable(rest, 3):
        report("it is not all that a run should be, and kept as it is")
        shell = json.dumps(stored)
    extra = {SHELL: shell} if shell else EMPTY
    return Run(run_id, contents["input"], output=contents["output"], meta=meta or EMPTY, extra=extra)


_SAID: Final = ("type", "id", "meta", "input", "output")


def _content(stored: StoredRun, side: str, shell: StoredRun, report: Report) -> Content:
    """Return what was said on a side of a run, and put the rest of it into the shell."""
    if side not in stored:
        return ()
    content, inner = content_of(stored[side], lambda what: report(f"{side}: {what}"))
    if inner:
        shell[side] = inner
    return content


def _meta(stored: StoredRun, shell: StoredRun, report: Report) -> Mapping[str, Any] | None:
    """Return the meta of a run; None if it cannot be stored."""
    meta = stored.get("meta")
    if is_object(meta) and meta:
        return meta if is_storable(meta, 3) else None
    if meta is not None:
        shell["meta"] = meta
        if not is_object(meta):
            report(f"its meta is a {type(meta).__name__}, no object, and kept beside it")
    return EMPTY


def _derived_id(stored: object, index: int, taken: Container[str]) -> str:
    text = f"{index} {json.dumps(stored, sort_keys=True)}"
    while (made := hashlib.sha256(text.encode()).hexdigest()[:32]) in taken:
        text = made
    return made


def _with_id(run: Run, run_id: str) -> Run:
    return msgspec.structs.replace(run, id=run_id)


# --- writing ---


def _griptape_form(run: Run, read: Callable[[StoredRun], Run]) -> StoredRun:
    """Return a run with what griptape has words for, as it was stored where it has not changed since."""
    shell = as_shell(run.extra.get(SHELL))
    if isinstance(shell, str):
        whole = value_of_text(shell)
        said = Run(run.id, run.input, output=run.output, meta=run.meta, extra=run.extra)
        if is_loadable_run(whole) and is_same(read(whole), said):
            return {**whole, "meta": whole.get("meta")}
        shell = {}
    return {
        "type": _text(shell, "type", "Run"),
        "id": _text(shell, "id", run.id),
        "meta": dict(run.meta) or ({} if shell.get("meta") == {} else None),
        "input": artifact_of(run.input, _inner(shell, "input")),
        "output": artifact_of(run.output, _inner(shell, "output")),
    }


def _text(shell: Mapping[str, Any], name: str, default: str) -> str:
    value = shell.get(name)
    return value if isinstance(value, str) else default


def _inner(shell: Mapping[str, Any], side: str) -> Shell:
    return as_shell(shell.get(side))

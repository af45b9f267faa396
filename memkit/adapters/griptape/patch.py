"""What griptape's form has no word for, as the difference that makes a memkit value of what was read.

It lies under the key `memkit` of a `meta`, which griptape loads and stores as it is. Fields are compared as text,
so nothing is taken for equal that is not the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from memkit.checks import check_entry, check_head
from memkit.codec import JsonCodec
from memkit.content import EMPTY
from memkit.conversation import Head
from memkit.errors import FormatError
from memkit.rawjson import load_text, split_object
from memkit.run import Counts, Run, Status

Fields: TypeAlias = dict[str, str]
"""The fields of a value by name, each as its JSON text."""


class _Simple(msgspec.Struct, forbid_unknown_fields=True):
    created_at: float = 0.0
    status: Status = "complete"
    counts: Counts | None = None


class _SimplePatch(msgspec.Struct, forbid_unknown_fields=True):
    """What nearly all patches are: they need not be decoded as a body is."""

    v: Literal[1]
    set: _Simple


P = TypeVar("P", bound=msgspec.Struct)

KEY: Final = "memkit"

_codec: Final = JsonCodec()


class Patch(msgspec.Struct, kw_only=True):
    """Fields that are other or more, as values or, where those say less, as JSON text; and absent ones by name."""

    v: Literal[1]
    set: dict[str, Any] = {}
    text: dict[str, str] = {}
    unset: list[str] = []


def fields_of(value: Run | Head) -> Fields:
    """Return the fields of a run or a head.

    Raises:
        FormatError: what cannot be stored.
    """
    body = _codec.encode_head(value) if isinstance(value, Head) else _codec.encode(value)
    fields = split_object(body.decode())
    del fields["v"], fields["kind"]
    if fields.get("minor") == "0":
        del fields["minor"]
    return fields


def as_stored(run: Run) -> tuple[Run, Fields]:
    """Return a run as it comes back from a store, with plain dicts and lists all through, and its fields.

    Raises:
        FormatError: it cannot be stored.
    """
    fields = fields_of(run)
    return _decoded(fields), fields


def _run_from(fields: Fields) -> Run:
    run = _decoded(fields)
    check_entry(run)
    return run


def _decoded(fields: Fields) -> Run:
    run = _codec.decode(_body("run", fields))
    if not isinstance(run, Run):
        raise FormatError(f"a {type(run).__name__} in the place of a run")
    return run


def head_from(fields: Fields) -> Head:
    """Return the head of these fields.

    Raises:
        FormatError: they are not those of a head, or of one that cannot be stored.
    """
    head = _codec.decode_head(_body("head", fields))
    check_head(head)
    return head


def difference(plain: Fields, wanted: Fields) -> dict[str, Any]:
    """Return what makes `wanted` of `plain`, as JSON."""
    changed = {name: raw for name, raw in wanted.items() if plain.get(name) != raw}
    return _patch(changed, [name for name in plain if name not in wanted])


def _patch(changed: Fields, unset: list[str], *, as_text: bool = False) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "text" if as_text else "set": changed if as_text else {name: load_text(changed[name]) for name in changed},
        "unset": unset,
    }
    return {"v": 1, **{name: part for name, part in parts.items() if part}}


def applied(fields: Fields, patch: Patch) -> Fields:
    """Return fields after a patch."""
    kept = {name: raw for name, raw in fields.items() if name not in patch.unset}
    return {**kept, **{name: json.dumps(value) for name, value in patch.set.items()}, **patch.text}


def patched_run(run: Run, patch: object) -> Run:
    """Return a run after a patch that was read.

    Raises:
        FormatError: it is none, or what it makes is no run.
    """
    try:
        said = msgspec.convert(patch, _SimplePatch).set
        if math.isfinite(said.created_at):
            return msgspec.structs.replace(run, created_at=said.created_at, status=said.status, counts=said.counts)
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError):
        pass  # it says more
    made = to_patch(patch, Patch)
    given = applied({}, made)
    # Only what is patched is decoded and checked: the rest was when it was read.
    over = _run_from({"id": json.dumps(run.id), "input": '""', **given})
    unset = [name for name in made.unset if name not in given]
    if not {"id", "input"}.isdisjoint(unset):
        raise FormatError("a patch that leaves a run without id or input")
    extra = {name: value for name, value in run.extra.items() if name not in unset} | dict(over.extra)
    fields = {name: getattr(over, name) for name in _FIELDS if name in given or name in unset}
    return msgspec.structs.replace(run, **fields, extra=extra or EMPTY)


def run_patch(plain: Run, run: Run, fields: Fields) -> Mapping[str, Any]:
    """Return the patch that makes `run`, of these fields, of `plain`."""
    theirs, ours = _members(plain), _members(run)
    names = [name for name in theirs | ours if theirs.get(name) != ours.get(name)]
    changed = {name: raw for name, raw in fields.items() if name in names}
    unset = [name for name in names if name not in fields]
    patch = _patch(changed, unset)
    if is_same(patched_run(plain, patch), run):
        return patch
    return _patch(changed, unset, as_text=True)  # an `Opaque` in a spelling of its own


def is_same(one: Run, other: Run) -> bool:
    """Tell whether two runs are the same, also in what Python takes for equal, as `1`, `1.0` and `True`."""
    return _members(one) == _members(other)


_FIELDS: Final = tuple(name for name in Run.__struct_fields__ if name != "extra")


def _members(run: Run) -> dict[str, str]:
    return {name: repr(getattr(run, name)) for name in _FIELDS} | {k: repr(v) for k, v in run.extra.items()}


def to_patch(value: object, cls: type[P]) -> P:
    """Return a patch that was read.

    Raises:
        FormatError: it is none.
    """
    try:
        return msgspec.convert(value, cls)
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError) as error:
        raise FormatError(f"not what memkit has written: {error}") from error


def _body(kind: str, fields: Fields) -> bytes:
    # With a `minor`, so that no field that is unknown gets lost.
    every = {"v": "1", "minor": "0", "kind": json.dumps(kind), **fields}
    text = ",".join(f"{json.dumps(name)}:{raw}" for name, raw in every.items())
    try:
        return f"{{{text}}}".encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"not JSON text: {error}") from error

"""What griptape's form has no word for, as the difference that makes a memkit value of what was read.

It lies under the key `memkit` of a `meta`, which griptape loads and stores as it is. Fields are compared as the
JSON text that `JsonCodec` writes, so nothing is taken for equal that is not the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from memkit.checks import check_entry, check_head
from memkit.codec import JsonCodec
from memkit.conversation import Head
from memkit.errors import FormatError
from memkit.rawjson import load_text, split_object
from memkit.run import Run

Fields: TypeAlias = dict[str, str]
"""The fields of a value by name, each as its JSON text."""

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


def run_from(fields: Fields) -> Run:
    """Return the run of these fields.

    Raises:
        FormatError: they are not those of a run, or of one that cannot be stored.
    """
    run = _codec.decode(_body("run", fields))
    if not isinstance(run, Run):
        raise FormatError(f"a {type(run).__name__} in the place of a run")
    check_entry(run)
    return run


def head_from(fields: Fields) -> Head:
    """Return the head of these fields.

    Raises:
        FormatError: they are not those of a head, or of one that cannot be stored.
    """
    head = _codec.decode_head(_body("head", fields))
    check_head(head)
    return head


def difference(plain: Fields, wanted: Fields, *, as_text: bool = False) -> dict[str, Any]:
    """Return what makes `wanted` of `plain`, as JSON."""
    changed = {name: raw for name, raw in wanted.items() if plain.get(name) != raw}
    parts: dict[str, Any] = {
        "text" if as_text else "set": changed if as_text else {name: load_text(changed[name]) for name in changed},
        "unset": [name for name in plain if name not in wanted],
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
    return run_from(applied(fields_of(run), to_patch(patch, Patch)))


def run_patch(plain: Run, wanted: Fields) -> Mapping[str, Any]:
    """Return the patch that makes a run of these fields of `plain`."""
    patch = difference(fields_of(plain), wanted)
    if fields_of(patched_run(plain, patch)) == wanted:
        return patch
    return difference(fields_of(plain), wanted, as_text=True)  # an `Opaque` in a spelling of its own


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

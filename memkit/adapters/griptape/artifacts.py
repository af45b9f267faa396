"""griptape's artifacts as content, and back.

What an artifact says becomes content. Its *shell* is all the rest of it: type, id, name, meta, keys that are not
known. Where content cannot give the value back as it was, the shell is the whole artifact; where JSON as memkit
stores it cannot hold that, or it is no object, the shell is its JSON text. Nothing here is a special case on the
way back: what was made is used only if it reads as the same content and shell again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias, cast

import msgspec

from memkit.adapters.griptape.leaves import Value, new_leaf, read_leaf, value_of_leaf
from memkit.adapters.griptape.schema import (
    Artifact,
    is_array,
    is_loadable_artifact,
    is_object,
    is_storable,
    value_of_text,
)
from memkit.content import EMPTY, Content, Json, Opaque, Part, Text

Shell: TypeAlias = dict[str, Any] | str
Report: TypeAlias = Callable[[str], None]

SHELL: Final = "griptape"
"""The field of `extra` in which a shell is kept."""

# How deep the shell of an artifact lies in a stored run.
_DEPTH: Final = 4
_LIST: Final = "ListArtifact"
_PLAIN: Final = {"type", "value"}


def no_report(_: str) -> None:
    """Report nothing."""


def content_of(artifact: Any, report: Report = no_report) -> tuple[Content, Shell]:
    """Return any JSON value in the place of an artifact as content and its shell.

    What is no artifact that is known here is kept whole as the shell, its content is what can be read of it, and
    `report` is told.
    """
    if isinstance(artifact, str):
        return artifact, {}
    if is_object(artifact) and _is_plain_text(artifact):
        return artifact["value"], {}
    found = _read(artifact, report)
    if found is not None and _is_storable(*found):
        return found
    report(f"{_name_of(artifact)} is kept as it is, its value as text")
    return _opaque(artifact)


def _is_plain_text(artifact: Artifact) -> bool:
    return artifact.keys() == _PLAIN and artifact["type"] == "TextArtifact" and isinstance(artifact["value"], str)


def artifact_of(content: Content, shell: Shell) -> Artifact:
    """Return content as an artifact that griptape 1.13 loads: the one that it was, else one made of it alone."""
    restored = _restored(content, shell) if shell else None
    if is_loadable_artifact(restored):
        return restored
    return _fresh(content)


# --- reading ---


def _read(artifact: Any, report: Report) -> tuple[Content, Shell] | None:
    if not is_object(artifact):
        return None
    content = _read_list(artifact, report) if artifact.get("type") == _LIST else read_leaf(artifact)
    if content is None:
        return None
    rest = _rest(artifact)
    if _joined(content, rest) != artifact:
        return content, artifact
    return content, {} if _fresh(content) == artifact else rest


def _opaque(artifact: Any) -> tuple[Content, Shell]:
    view: Any = artifact.get("value", artifact) if is_object(artifact) else artifact
    if not isinstance(view, str):
        view = "" if view is None else json.dumps(view, ensure_ascii=False)
    if is_object(artifact) and artifact and _is_storable(view, artifact):
        return view, artifact
    return view, json.dumps(artifact)


def _is_storable(content: Content, shell: Shell) -> bool:
    parts = () if isinstance(content, str) else content
    values = [shell, *(part.value for part in parts if isinstance(part, Json))]
    shells = [_shell_of(part) for part in parts]
    return all(is_storable(value, _DEPTH) for value in values) and is_storable(shells, _DEPTH)


def _name_of(artifact: Any) -> str:
    if not is_object(artifact):
        return f"a {type(artifact).__name__} in the place of an artifact"
    return f"an artifact of the type {artifact.get('type')!r:.60}"


def _rest(artifact: Artifact) -> Artifact:
    """Return the shell of an artifact whose content says all of its value."""
    rest = {key: value for key, value in artifact.items() if key != "value"}
    if artifact.get("type") == "ActionArtifact":
        rest["value"] = {
            key: value for key, value in artifact["value"].items() if key not in {"tag", "name", "input"}
        }
    return rest


# --- writing ---


def _restored(content: Content, shell: Shell) -> Any:
    """Return the artifact of which `content` and `shell` were read, None if they do not belong together."""
    for candidate in _candidates(content, shell):
        if content_of(candidate) == (content, shell):
            return candidate
    return None


def _candidates(content: Content, shell: Shell) -> Iterator[Any]:
    if isinstance(shell, str):
        yield value_of_text(shell)
        return
    yield _joined(content, shell)
    yield shell


def _joined(content: Content, rest: Artifact) -> Artifact | None:
    """Return the artifact of a shell with the value that content gives it."""
    value = _list_value(content) if rest.get("type") == _LIST else value_of_leaf(content)
    if value is None:
        return None
    if is_object(value.json) and is_object(more := rest.get("value")):
        return _ordered({**rest, "value": _ordered({**more, **value.json})})
    return _ordered({**rest, "value": value.json})


# The order in which griptape writes the keys of an artifact and of an action; others come after them.
_ORDER: Final = ("type", "tag", "id", "reference", "meta", "name", "value", "path", "input")


def _ordered(fields: Artifact) -> Artifact:
    known: Artifact = {key: fields[key] for key in _ORDER if key in fields}
    return known | fields


def _fresh(content: Content) -> Artifact:
    """Return the least artifact that says `content`, or as much of it as griptape has words for."""
    if isinstance(content, str):
        return {"type": "TextArtifact", "value": content}
    if len(content) == 1 and not isinstance(lone := content[0], Text) and not _shell_of(lone):
        return new_leaf(lone)
    return {"type": _LIST, "value": [artifact_of(*_split(part)) for part in content]}


# --- lists ---


def _read_list(artifact: Artifact, report: Report) -> Content | None:
    children = artifact.get("value")
    return tuple(_part_of(child, report) for child in children) if is_array(children) else None


def _part_of(child: Any, report: Report) -> Part:
    if is_object(child) and child.get("type") == _LIST:
        report("a list within a list is kept as it is, its value as text")
        content, shell = _opaque(child)
    else:
        content, shell = content_of(child, report)
    part = Text(content) if isinstance(content, str) else cast("Text", content[0])
    return msgspec.structs.replace(part, extra={SHELL: shell}) if shell else part


def _list_value(content: Content) -> Value | None:
    return None if isinstance(content, str) else Value([_child(part) for part in content])


def _child(part: Part) -> Any:
    content, shell = _split(part)
    restored = _restored(content, shell) if shell else None
    return _fresh(content) if restored is None else restored


def _split(part: Part) -> tuple[Content, Shell]:
    """Return a part of a list as the content and the shell that its artifact had."""
    shell = _shell_of(part)
    if isinstance(part, Text):
        return part.text, shell
    return (part if isinstance(part, Opaque) else msgspec.structs.replace(part, extra=EMPTY),), shell


def _shell_of(part: Part) -> Shell:
    return as_shell({} if isinstance(part, Opaque) else part.extra.get(SHELL))


def as_shell(value: object) -> Shell:
    """Return a shell as it is, and an empty one in the place of anything else."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    return value if isinstance(value, str) else {}

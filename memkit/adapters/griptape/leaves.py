"""The artifacts that hold no others, each as the one content or part that it says."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from memkit.adapters.griptape.schema import Artifact, is_object, value_of_text
from memkit.content import Blob, Content, Json, Part, Ref, ToolCall, text_of


class Value(NamedTuple):
    """The value of an artifact, which may be null."""

    json: Any


def read_leaf(artifact: Artifact) -> Content | None:
    """Return what an artifact says; None if its type is not known, or its value not of that type."""
    kind = artifact.get("type", "TextArtifact")
    read = _READERS.get(kind) if isinstance(kind, str) else None
    return read(artifact) if read else None


def value_of_leaf(content: Content) -> Value | None:
    """Return the value that content is in an artifact that can say it; of a call, as much of it as it says."""
    match content:
        case str():
            return Value(content)
        case (Json(value=value),):
            return Value(value)
        case (Ref(url=url),):
            return Value(url)
        case (Blob(data=data),):
            return Value(base64.b64encode(data).decode())
        case (ToolCall() as call,):
            return Value({"tag": call.id, "name": call.name, "input": value_of_text(call.arguments)})
        case _:
            return None


# --- reading ---


def _read_text(artifact: Artifact) -> Content | None:
    value = artifact.get("value")
    if isinstance(value, str):
        return value
    if "type" not in artifact:
        return None
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, int | float) else None


def _read_json(artifact: Artifact) -> Content | None:
    return (Json(artifact["value"]),) if "value" in artifact else None


def _read_url(artifact: Artifact) -> Content | None:
    url = artifact.get("value")
    return (Ref(url, _MEDIA_OF[artifact["type"]]),) if isinstance(url, str) else None


def _read_blob(artifact: Artifact) -> Content | None:
    media_type, value = _media_type(artifact), artifact.get("value")
    if media_type is None or not isinstance(value, str):
        return None
    try:
        return (Blob(media_type, base64.b64decode("".join(value.split()), validate=True)),)
    except (binascii.Error, ValueError):
        return None


_FORMATS: Final = {"jpg": "jpeg", "mp3": "mpeg"}


def _media_type(artifact: Artifact) -> str | None:
    family = {"ImageArtifact": "image", "AudioArtifact": "audio"}.get(artifact["type"])
    if family is None:
        return "application/octet-stream"
    name = artifact.get("format")
    if name is None and isinstance(old := artifact.get("mime_type"), str) and old.startswith(f"{family}/"):
        return old
    if name is None:
        return f"{family}/*"
    return f"{family}/{_FORMATS.get(name.lower(), name.lower())}" if isinstance(name, str) else None


def _read_action(artifact: Artifact) -> Content | None:
    match artifact.get("value"):
        case {"tag": str(tag), "name": str(name)} as value:
            asked = json.dumps(cast("Artifact", value).get("input", {}), ensure_ascii=False)
            return (ToolCall(tag, name, asked),)
        case _:
            return None


_URL_OF: Final = {"image": "ImageUrlArtifact", "audio": "AudioUrlArtifact", "video": "VideoUrlArtifact"}
_MEDIA_OF: Final = {kind: f"{family}/*" for family, kind in _URL_OF.items()}
_READERS: Final[dict[str, Callable[[Artifact], Content | None]]] = {
    **dict.fromkeys(("TextArtifact", "ErrorArtifact", "InfoArtifact"), _read_text),
    **dict.fromkeys(("JsonArtifact", "GenericArtifact", "BooleanArtifact", "ModelArtifact"), _read_json),
    **dict.fromkeys(("ImageArtifact", "AudioArtifact", "BlobArtifact"), _read_blob),
    **dict.fromkeys(_URL_OF.values(), _read_url),
    "ActionArtifact": _read_action,
}


# --- writing ---


def new_leaf(part: Part) -> Artifact:
    """Return the least artifact that says a part, or as much of it as griptape has words for."""
    match part:
        case Json(value=value):
            return {"type": _json_kind(value), "value": value}
        case Blob():
            return _new_blob(part)
        case Ref(url=url, media_type=media_type) if kind := _URL_OF.get(media_type.partition("/")[0]):
            return {"type": kind, "value": url}
        case ToolCall(id=tag, name=name) if is_object(asked := value_of_text(part.arguments)):
            action = {"type": "ToolAction", "tag": tag, "name": name, "path": None, "input": asked}
            return {"type": "ActionArtifact", "value": action}
        case _:
            return {"type": "TextArtifact", "value": text_of((part,))}


def _json_kind(value: Any) -> str:
    # A JsonArtifact of 2.5 is loaded as 2, one of a list with null in it not at all.
    if isinstance(value, bool):
        return "BooleanArtifact"
    return "JsonArtifact" if value is None or isinstance(value, dict) else "GenericArtifact"


def _new_blob(blob: Blob) -> Artifact:
    family, _, name = blob.media_type.partition("/")
    value = base64.b64encode(blob.data).decode()
    match family:
        case "image":
            return {"type": "ImageArtifact", "value": value, "format": name, "width": 0, "height": 0}
        case "audio":
            return {"type": "AudioArtifact", "value": value, "format": "mp3" if name == "mpeg" else name}
        case _:
            return {"type": "BlobArtifact", "value": value}

"""The codec for threads of Griptape Cloud: each run is a message that griptape reads, too."""

from __future__ import annotations

import json
from collections.abc import Container
from typing import Any, Final

import msgspec

from memkit.adapters.griptape.artifacts import Report, no_report
from memkit.adapters.griptape.payload import head_of, metadata_of
from memkit.adapters.griptape.runs import StoredRun, run_of, stored_of, without
from memkit.adapters.griptape.schema import is_object, value_of_text
from memkit.codec import MAX_BODY
from memkit.conversation import Head
from memkit.errors import FormatError, UnsupportedError
from memkit.run import Entry, Run


class GriptapeCodec:
    """Writes runs as messages of a thread: `{"input": "...", "output": "...", "metadata": {"run_id": "..."}}`.

    Input and output are the JSON text of artifacts. What those have no word for is kept in the metadata, under
    `memkit`, so that every run comes back as it was.
    """

    def encode(self, entry: Entry, /) -> bytes:
        """Return the body of a run.

        Raises:
            UnsupportedError: a change of a run, since a thread holds whole runs.
            FormatError: a value that JSON cannot hold, nesting deeper than 100 levels, or too large a body.
        """
        if not isinstance(entry, Run):
            raise UnsupportedError(
                f"a thread holds whole runs: the {type(entry).__name__} {entry.id!r} cannot be kept in one; "
                "store runs when they are complete, and change none, or use another driver"
            )
        stored = stored_of(entry, lambda item: read_message(_write(_message(item, entry.id))))
        return _checked(_write(_message(stored, entry.id)), repr(entry.id))

    def decode(self, body: bytes, /) -> Run:
        """Return the run of a body, also of a message that another program has put into the thread.

        Raises:
            FormatError: not a JSON object.
        """
        return read_message(body)

    def encode_head(self, head: Head, /) -> bytes:
        """Return a head as the metadata of a thread.

        Raises:
            FormatError: meta that JSON cannot hold, or too large a head.
        """
        return _checked(_write(metadata_of(head, None)), "the head")

    def decode_head(self, data: bytes, /) -> Head:
        """Return the head of the metadata of a thread.

        Raises:
            FormatError: not a JSON object.
        """
        try:
            return head_of({"metadata": _object(data)}, None, no_report)
        except RecursionError as error:
            raise FormatError("the metadata of a thread are nested too deep to be read") from error


def _message(stored: StoredRun, run_id: str) -> dict[str, Any]:
    return {
        "input": json.dumps(stored["input"]),
        "output": json.dumps(stored["output"]),
        "metadata": {"run_id": run_id, **without(stored["meta"] or {}, "run_id")},
    }


def read_message(body: bytes, taken: Container[str] = (), report: Report = no_report) -> Run:
    """Return the run of a message, with an id that is not among those taken, and report what is odd about it.

    Raises:
        FormatError: not a JSON object.
    """
    message = _object(body)
    meta, run_id = message.get("metadata"), message.get("message_id")
    if is_object(meta):
        own = meta.get("run_id")
        run_id = own if isinstance(own, str) and own else run_id or own
        meta = without(meta, "run_id") or None
    stored = {side: _artifact(message[side]) for side in ("input", "output") if side in message}
    try:
        run = run_of({**stored, "id": run_id, "meta": meta}, 0, taken, report)
    except RecursionError as error:
        raise FormatError("a message is nested too deep to be read") from error
    # What lies in the metadata may not give a run another id than its message has.
    is_own = isinstance(run_id, str) and run_id and run_id not in taken
    return msgspec.structs.replace(run, id=run_id) if is_own else run


def _artifact(value: Any) -> Any:
    """Return the artifact that a text in a thread is, or the text itself."""
    if not isinstance(value, str):
        return value
    artifact = value_of_text(value)
    kind = artifact.get("type") if is_object(artifact) and "value" in artifact else None
    return artifact if isinstance(kind, str) and kind.endswith("Artifact") else value


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error} (it begins {body[:60]!r})") from error
    if not is_object(value):
        raise FormatError(f"a thread holds JSON objects, and this is a {type(value).__name__}")
    return value


_encoder: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_escaping: Final = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def _write(value: dict[str, Any]) -> bytes:
    try:
        try:
            return _encoder.encode(value).encode()
        except UnicodeEncodeError:
            return _escaping.encode(value).encode()  # a lone surrogate, which only an escape can hold
    except (ValueError, RecursionError) as error:
        raise FormatError(f"this cannot be kept in a thread: {error}") from error


def _checked(body: bytes, what: str) -> bytes:
    if len(body) > MAX_BODY:
        raise FormatError(
            f"{what} takes {len(body):,} bytes, more than {MAX_BODY:,}; keep large media elsewhere, as a Ref"
        )
    return body

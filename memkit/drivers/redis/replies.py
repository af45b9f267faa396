"""What replies of the scripts and errors of the server or the client mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from redis import exceptions

from memkit.driver import (
    Appended,
    Log,
    Record,
    check_end,
    check_epoch,
    check_positions,
    check_revision,
    position_of,
)
from memkit.drivers.redis.scripts import VERSION
from memkit.errors import DriverError, FormatError, MemkitError, UnsupportedError


def appended(
    key: str, records: Sequence[Record], expect: int | None, epoch: str | None, reply: list[Any]
) -> Appended:
    """Return what an append has answered."""
    if type(reply[0]) is int:
        return Appended(reply[0], reply[1], reply[2].decode())
    if reply[0] == b"known":
        _, end, actual, known = reply
        places = zip(records, known[::2], known[1::2], strict=True)
        stored = {
            record.id: (position, record.body if same else record.body + b"?")
            for record, position, same in places
            if position >= 0
        }
        position = position_of(key, records, stored)
        if position is not None:
            return Appended(position, end, actual.decode())
    raise _refusal(key, reply, epoch=epoch, expect=expect)


def loaded(key: str, reply: list[Any]) -> Log:
    """Return what a load has answered."""
    if not reply:
        return Log()
    if type(reply[0]) is not int:
        raise _refusal(key, reply)
    base, end, start, epoch, revision, head, records = reply
    bodies = list(map(_body, reversed(records)))
    return Log(epoch.decode(), base, start, end, bodies, head, revision.decode())


def done(
    key: str,
    reply: list[Any],
    *,
    epoch: str | None = None,
    revision: str = "",
    positions: Sequence[int] = (),
) -> list[Any]:
    """Return the reply of any other script.

    Raises:
        ConflictError: what the caller expected is not what there is.
        FormatError: what is stored cannot be understood.
    """
    if type(reply[0]) is not int:
        raise _refusal(key, reply, epoch=epoch, revision=revision, positions=positions)
    return reply


def _body(record: bytes) -> bytes:
    colon = record.index(b":")
    start = colon + 1 + int(record[:colon])
    if not colon + 1 < start <= len(record):
        raise ValueError("no record")
    return record[start:]


def record_of(record: Record) -> tuple[bytes, bytes]:
    """Return the id and the form in which a record is stored."""
    record_id = record.id.encode()
    return record_id, b"%d:%b%b" % (len(record_id), record_id, record.body)


def _refusal(
    key: str,
    reply: list[Any],
    *,
    epoch: str | None = None,
    expect: int | None = None,
    revision: str = "",
    positions: Sequence[int] = (),
) -> FormatError:
    """Raise the conflict that a reply tells of, or return what else is wrong."""
    what, *actual = reply
    if what == b"epoch":
        check_epoch(key, epoch, actual[0].decode())
    elif what == b"end":
        check_end(key, expect, actual[0])
    elif what == b"revision":
        check_revision(key, revision, actual[0].decode())
    elif what == b"positions":
        check_positions(key, positions, *actual)
    elif what == b"newer":
        version = actual[0].decode("ascii", "replace")
        return FormatError(
            f"{key!r} was written by a newer memkit: its layout is version {version}, this one knows {VERSION}; "
            "upgrade memkit. Nothing was written"
        )
    elif what == b"foreign":
        return FormatError(
            f"under the key of {key!r} lies a hash that is not one of memkit; use another prefix. "
            "Nothing was written"
        )
    elif what == b"damaged":
        return FormatError(f"{key!r} is damaged: there is no record at position {actual[0]}. Nothing was written")
    return FormatError(f"{key!r} got a reply that no script gives: {what!r}")


# --- errors ---

_CODE: Final = re.compile(
    r"\b(OOM|READONLY|MISCONF|NOREPLICAS|NOAUTH|WRONGPASS|NOPERM|LOADING|BUSY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN"
    r"|CROSSSLOT|WRONGTYPE|NOSCRIPT)\b"
)
_CODES: Final[Sequence[tuple[type[Exception], str]]] = (
    (exceptions.NoScriptError, "NOSCRIPT"),
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.AuthenticationError, "NOAUTH"),
    (exceptions.AuthorizationError, "NOAUTH"),
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.TryAgainError, "TRYAGAIN"),
    (exceptions.ClusterCrossSlotError, "CROSSSLOT"),
)
_UNKNOWN: Final = "the outcome is unknown; repeat it with the same record"
PASSING: Final = {"READONLY", "NOREPLICAS", "LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"}
"""Errors that pass by themselves, be it by a failover. Nothing was stored."""

_LATER: Final = PASSING | {"OOM", "MISCONF"}
_ADVICE: Final = {
    "OOM": "it is out of memory: raise maxmemory, or let conversations expire, and repeat",
    "READONLY": "it is a replica that takes no writes: connect to the master, by Sentinel if there is one",
    "MISCONF": "it cannot save to its disk and takes no writes: see its log, and repeat",
    "NOREPLICAS": "too few replicas are linked for its min-replicas-to-write; repeat when they are",
    "NOAUTH": "it wants other credentials: check user and password",
    "NOPERM": "the user may not do this: it needs @hash, @keyspace, @scripting and @connection",
    "LOADING": "it is still loading its data; repeat",
    "BUSY": "a script of someone else keeps it busy; repeat",
    "MASTERDOWN": "its link to the master is down; repeat",
    "CLUSTERDOWN": "the cluster does not serve all slots; repeat when it does",
    "TRYAGAIN": "the slot is being moved; repeat",
    "CROSSSLOT": "a proxy takes the keys of one call for several; connect to the cluster itself",
}


def code_of(error: object) -> str:
    """Return the code with which the server began an error; "" if there is none that we know, or no error."""
    if not isinstance(error, Exception):
        return ""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    # Redis 6.2 puts text of its own before the error of a command in a script.
    text = str(error)
    if "ACL failure in script" in text or "executing the script can't" in text:
        return "NOPERM"
    found = _CODE.search(text)
    return found[1] if found else code_of(error.__cause__)


def may_pass(reply: object) -> bool:
    """Tell whether a reply is an error after which the same command may be done, then or elsewhere."""
    return isinstance(reply, Exception) and (
        isinstance(reply, exceptions.AskError) or code_of(reply) in PASSING | {"NOSCRIPT"}
    )


def asked_node(error: Exception) -> str | None:
    """Return the node that a cluster wants to be asked just this once, as it is taking the slot over."""
    if isinstance(error, exceptions.AskError) and not isinstance(error, exceptions.MovedError):
        asked: Any = error
        return f"{asked.host}:{asked.port}"
    return None


def is_final(error: BaseException) -> bool:
    """Tell whether connecting has failed in a way that trying again does not change."""
    code = code_of(error)
    return code in {"NOAUTH", "NOPERM"} or (
        isinstance(error, exceptions.ResponseError) and not code and not isinstance(error, exceptions.AskError)
    )


def explained(error: Exception, key: str, *, is_open: bool) -> MemkitError:
    """Return what an error of the server means for the caller.

    `is_open` says that the command was sent before, without an answer.
    """
    code = code_of(error)
    known: MemkitError
    if code == "WRONGTYPE":
        known = FormatError(
            f"under the key of {key!r} lies something that is no hash; use another prefix. Nothing was written"
        )
    elif not code and "user_script" in str(error):
        known = FormatError(f"{key!r} is damaged: a script found what none of ours writes: {_said(error)}")
    else:
        advice = _ADVICE.get(code, "what was stored before is as it was")
        outcome = _UNKNOWN if is_open else "nothing was stored"
        known = DriverError(
            f"the server refused {key!r}: {_said(error)}; {advice}; {outcome}",
            retryable=code in _LATER or is_open,
        )
    known.__cause__ = error
    return known


def given_up(error: BaseException | None, key: str, retry_for: float, *, is_open: bool) -> MemkitError:
    """Return the error of a command that was tried until its time was over; `error` is that of the last try."""
    if isinstance(error, exceptions.ResponseError):
        return explained(error, key, is_open=is_open)
    cause = f" ({_said(error)})" if error is not None and str(error) else ""
    outcome = _UNKNOWN if is_open else "nothing was stored; repeat it"
    known = DriverError(f"no server answered {key!r} within {retry_for:g} s{cause}; {outcome}", retryable=True)
    known.__cause__ = error
    return known


def _said(error: BaseException) -> str:
    """Return what an error says, without the arguments of a command: passwords, and what people have said."""
    return str(error).partition(", with args")[0]


def too_few_replicas(key: str, wanted: int) -> DriverError:
    """Return the error of a write that the master has, and too few of its replicas."""
    return DriverError(
        f"fewer than {wanted} replicas have confirmed what was written to {key!r}; {_UNKNOWN}", retryable=True
    )


def check_version(info: object) -> None:
    """Refuse a server that is too old, by its answer to INFO.

    Raises:
        UnsupportedError: it is older than Redis 6.2.
    """
    found = re.search(rb"^redis_version:(\d+)\.(\d+)", info, re.MULTILINE) if isinstance(info, bytes) else None
    if found and (int(found[1]), int(found[2])) < (6, 2):
        raise UnsupportedError(
            f"the server is Redis {found[1].decode()}.{found[2].decode()}; 6.2 or later, or Valkey, is needed"
        )

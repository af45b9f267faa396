"""What errors of AWS and of its SDK mean for the caller.

The words of the service are left out of ours where they may repeat what was sent: those about a wrong signature
hold the session token. The cause of an error has the words, except in these cases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from botocore import exceptions

from memkit.errors import ClosedError, DriverError, FormatError, MemkitError


class _Meaning(NamedTuple):
    """What an error means: what it says, whether it may pass, and the class of ours."""

    text: str
    may_pass: bool
    kind: type[MemkitError] = DriverError


_UNKNOWN: Final = "whether a write was done is unknown, and repeating an append is safe"
_UNSURE: Final = _Meaning(_UNKNOWN, True)
_CONFLICT: Final = _Meaning("someone else wrote at the same time; repeat it", True)
_TOO_FAST: Final = _Meaning(
    "repeat it later; if it stays so, use on-demand billing or more capacity (one partition takes 1,000 units of "
    "writing and 3,000 of reading a second)",
    True,
)
_RENEW: Final = _Meaning(
    "renew the credentials that the AWS SDK finds (environment, profile, role), then open a new driver", False
)
_SIGNATURE: Final = _Meaning("check secret key and session token, and the clock of this machine", False)
_DENIED: Final = _Meaning("allow it in the IAM policy", False)
_NO_TABLE: Final = _Meaning(
    "there is no such table in this region and account, or not yet; check name, region and endpoint, or make it "
    "with memkit.drivers.dynamodb.create_table()",
    False,
)

_CODES: Final[Mapping[str, _Meaning]] = {
    "AccessDenied": _DENIED,
    "ConditionalCheckFailed": _CONFLICT,
    "ExpiredToken": _RENEW,
    "IdempotentParameterMismatch": _Meaning("another write had the same token; append a new record", False),
    "IncompleteSignature": _SIGNATURE,
    "InternalFailure": _UNSURE,
    "InternalServerError": _UNSURE,
    "InvalidClientTokenId": _RENEW,
    "InvalidSignature": _SIGNATURE,
    "ItemCollectionSizeLimitExceeded": _Meaning(
        "a table with local secondary indexes takes 10 GB a partition; trim the conversation, or move it",
        False,
    ),
    "LimitExceeded": _Meaning("too many tables are being created or changed; repeat it later", True),
    "MissingAuthenticationToken": _RENEW,
    "NotAuthorized": _DENIED,
    "ProvisionedThroughputExceeded": _TOO_FAST,
    "ReplicatedWriteConflict": _CONFLICT,
    "RequestExpired": _SIGNATURE,
    "RequestLimitExceeded": _TOO_FAST,
    "RequestTimeout": _UNSURE,
    "ResourceInUse": _Meaning("the table is being created, changed or deleted; repeat it later", True),
    "ResourceNotFound": _NO_TABLE,
    "ServiceUnavailable": _UNSURE,
    "SignatureDoesNotMatch": _SIGNATURE,
    "Throttling": _TOO_FAST,
    "ThrottlingError": _TOO_FAST,
    "TooManyRequests": _TOO_FAST,
    "TransactionConflict": _CONFLICT,
    "TransactionInProgress": _Meaning("the same write is still under way; repeat it", True),
    "UnrecognizedClient": _RENEW,
}
"""By code, without the `Exception` at its end."""

_RIGHTS: Final = {"TransactWriteItems": "PutItem, UpdateItem and ConditionCheckItem"}
_KEY_SCHEMA: Final = re.compile(
    r"key element|key schema|conditions on the keys|missing the key|type mismatch for key|match schema type|"
    r"key condition not supported|number of attributes in key|required keys was not given",
    re.IGNORECASE,
)
"""How the service says that keys are not those of the table."""

_INDEX_KEY: Final = re.compile(r"type mismatch for index key (\w+)", re.IGNORECASE)
"""How it says that an index has another attribute of that name."""

_SETTINGS: Final = "the AWS SDK cannot use its settings"
_SDK: Final[Sequence[tuple[type[Exception] | tuple[type[Exception], ...], _Meaning]]] = [
    (
        (
            exceptions.NoCredentialsError,
            exceptions.NoAuthTokenError,
            exceptions.PartialCredentialsError,
            exceptions.CredentialRetrievalError,
            exceptions.TokenRetrievalError,
            exceptions.SSOError,
        ),
        _Meaning(
            "the AWS SDK finds no credentials; set AWS_PROFILE, AWS_ACCESS_KEY_ID and so on, or a role", False
        ),
    ),
    (
        exceptions.NoRegionError,
        _Meaning("there is no region; give region=, or set AWS_DEFAULT_REGION or AWS_PROFILE", False, FormatError),
    ),
    (exceptions.ProfileNotFound, _Meaning(f"{_SETTINGS}; check AWS_PROFILE", False, FormatError)),
    (
        exceptions.SSLError,
        _Meaning("TLS failed; check the endpoint, and the file of AWS_CA_BUNDLE if that is set", False),
    ),
    (exceptions.ProxyConnectionError, _Meaning("the proxy cannot be reached; check HTTPS_PROXY", True)),
    (
        (exceptions.EndpointConnectionError, exceptions.ConnectTimeoutError),
        _Meaning("the endpoint cannot be reached; check region and endpoint, or repeat it later", True),
    ),
    ((exceptions.ReadTimeoutError, TimeoutError), _Meaning(f"there was no answer in time; {_UNKNOWN}", True)),
    (
        (exceptions.HTTPClientError, exceptions.ConnectionError, OSError),
        _Meaning(f"the connection broke; {_UNKNOWN}", True),
    ),
    (
        (exceptions.BotoCoreError, ValueError),
        _Meaning(f"{_SETTINGS}; its error, the cause of this, says more", False),
    ),
]
"""By class of the SDK's own errors; the first that fits."""


def explained(
    error: Exception, table: str, key: str | None, doing: str, *, keys: Sequence[str] = ()
) -> MemkitError:
    """Return what an error of the service or of the SDK means for the caller.

    `doing` is what was tried, as in "append to" a conversation or, without a `key`, "open" a table. `keys` are
    the partition key and the sort key that the table was expected to have. Raise the result `from` its own
    `__cause__`: that is `error`, or None where it might show credentials.
    """
    if isinstance(error, MemkitError):
        return error
    where = f"table {table!r}" if key is None else f"{key!r} in table {table!r}"
    code = _code(error)
    meaning = _of_service(error, keys) if isinstance(error, exceptions.ClientError) else _of_sdk(error)
    text = f"cannot {doing} {where}: {code or type(error).__name__}: {meaning.text}"
    known = DriverError(text, retryable=meaning.may_pass) if meaning.kind is DriverError else meaning.kind(text)
    known.__cause__ = None if meaning is _SIGNATURE else error
    return known


def reasons(error: Exception) -> list[dict[str, Any]]:
    """Return why a transaction was cancelled: for each of its actions `Code`, and `Item` if that was asked for.

    Items have the form of the wire, `{"end": {"N": "7"}}`. Any other error has no reasons.
    """
    found = _response(error).get("CancellationReasons")
    return cast("list[dict[str, Any]]", found) if isinstance(found, list) else []


def _of_service(error: exceptions.ClientError, keys: Sequence[str]) -> _Meaning:
    response, code = _response(error), _code(error)
    said = " ".join(str(part.get("Message", "")) for part in (response.get("Error", {}), *reasons(error)))
    meaning = _CODES.get(code)
    if meaning is _DENIED:
        # A transaction needs the rights of its actions. Which of them is missing only the service tells.
        found = re.search(r"perform: dynamodb:(\w+)", said)
        action = found[1] if found else _RIGHTS.get(error.operation_name, error.operation_name)
        return _Meaning(f"allow dynamodb:{action} on the table in the IAM policy", False)
    if meaning is not None:
        return meaning
    if _KEY_SCHEMA.search(said):
        return _Meaning(_other_keys(keys), False, FormatError)
    index_key = _INDEX_KEY.search(said)
    if index_key is not None:
        name = index_key[1]
        text = f"an index of the table has a key {name!r} of another type; give memkit's attribute another name"
        return _Meaning(f'{text}, as in attributes={{"{name}": "memkit_{name}"}}', False, FormatError)
    if response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
        return _UNSURE
    return _Meaning(f"the service refused it: {said[:300]}", False)


def _of_sdk(error: Exception) -> _Meaning:
    for kinds, meaning in _SDK:
        if isinstance(error, kinds):
            return meaning
    if isinstance(error, RuntimeError) and "closed" in str(error):
        return _Meaning("its client is closed; use the driver inside its `async with`", False, ClosedError)
    return _Meaning(f"the AWS SDK failed; the cause of this error says more; {_UNKNOWN}", False)


def _other_keys(keys: Sequence[str]) -> str:
    names = f"; expected were {' and '.join(map(repr, keys))}" if keys else ""
    return (
        f"the table has other keys{names}. Give partition_key= and sort_key= as the table has them, both of type "
        "S, and sort_key=None if it has a partition key only"
    )


def _code(error: Exception) -> str:
    """Return the code of an error of the service; of a cancelled transaction that of the weightiest reason."""
    code = str(_response(error).get("Error", {}).get("Code", "")).removesuffix("Exception")
    if code != "TransactionCanceled":
        return code
    found = {str(reason.get("Code")) for reason in reasons(error)} - {"None"}
    lasting = {name for name in found if name not in _CODES or not _CODES[name].may_pass}
    return min(lasting or found or {code})


def _response(error: Exception) -> dict[str, Any]:
    return cast("dict[str, Any]", error.response) if isinstance(error, exceptions.ClientError) else {}

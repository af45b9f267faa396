"""Opening a table of DynamoDB, making one, and what errors of AWS and its SDK become."""

from __future__ import annotations

import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from anyio import create_task_group
from botocore import exceptions
from botocore.exceptions import ClientError

from memkit.driver import Record
from memkit.drivers.dynamodb import connect, create_table
from memkit.drivers.dynamodb.errors import explained, reasons
from memkit.errors import ClosedError, DriverError, FormatError, MemkitError, UnsupportedError
from tests.servers.dynamodb import DynamoDB

pytestmark = pytest.mark.anyio
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.fixture
def name(dynamodb: DynamoDB) -> Iterator[str]:
    """A name that no table has, and is deleted if one has it in the end."""
    name = f"memkit-{uuid4().hex[:8]}"
    yield name
    client = dynamodb.resource.meta.client
    if name in client.list_tables()["TableNames"]:
        client.delete_table(TableName=name)


# --- connect ---

ELSEWHERE = """
import asyncio, ssl, sys, threading

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in {"boto3", "aioboto3", "aiobotocore", "aiohttp", "botocore.session"}:
            print(name, threading.current_thread() is threading.main_thread())

sys.meta_path.insert(0, Finder())
read = ssl.SSLContext.load_verify_locations
def load_verify_locations(*args):
    print("certificates", threading.current_thread() is threading.main_thread())
    return read(*args)
ssl.SSLContext.load_verify_locations = load_verify_locations

from memkit.drivers.dynamodb import connect

async def main():
    async with connect(sys.argv[1]) as driver:
        await driver.load("key")

asyncio.run(main())
"""


def test_the_sdk_is_made_ready_in_a_worker_thread(dynamodb: DynamoDB) -> None:
    command = [sys.executable, "-c", ELSEWHERE, dynamodb.table({"pk": "S", "sk": "S"})]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    told = dict(line.split() for line in done.stdout.splitlines())
    assert told == dict.fromkeys(
        ["aioboto3", "boto3", "aiobotocore", "aiohttp", "botocore.session", "certificates"], "False"
    )


def test_without_the_sdk_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['aioboto3'] = None; import memkit.drivers.dynamodb"
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=False)
    assert re.search(r"ImportError: .*pip install .memkit\[dynamodb\]", done.stderr)


@on_asyncio
async def test_a_driver_finds_its_table_as_the_sdk_does(dynamodb: DynamoDB) -> None:
    name = dynamodb.table({"pk": "S", "sk": "S"})
    key = f"key-{uuid4().hex}"
    async with connect(name) as driver:
        assert (await driver.append(key, [Record("1", b"1")])).position == 0
    session = dynamodb.async_session
    async with connect(name, region="eu-west-1", session=session, endpoint_url=dynamodb.url) as driver:
        assert (await driver.load(key)).bodies == [b"1"]
    with pytest.raises(ClosedError, match="inside its `async with`"):
        await driver.load(key)


@on_asyncio
async def test_there_is_no_region(dynamodb: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.delenv("AWS_REGION", raising=False)
    with pytest.raises(
        FormatError, match="cannot open table 'chats': NoRegionError: there is no region; give region="
    ):
        async with connect("chats"):
            pass
    async with connect("chats", region="us-east-1"):
        pass


@on_asyncio
async def test_there_are_no_credentials(dynamodb: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DriverError, match=r"cannot open table 'chats': .* finds no credentials") as caught:
        async with connect("chats"):
            pass
    assert not caught.value.retryable


@on_asyncio
async def test_there_is_no_such_profile(dynamodb: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(FormatError, match="check AWS_PROFILE"):
        async with connect("chats"):
            pass


@on_asyncio
@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_there_are_no_certificates(
    dynamodb: DynamoDB, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with pytest.raises(DriverError, match=r"TLS failed; .* AWS_CA_BUNDLE"):
        async with connect("chats"):
            pass


@on_asyncio
@pytest.mark.parametrize("url", ["localhost:8000", "", "ftp://here", "http://", "http://[", "http://here:x"])
async def test_an_endpoint_that_is_none(url: str) -> None:
    with pytest.raises(FormatError, match="endpoint_url must begin with http"):
        async with connect("chats", endpoint_url=url):
            pass


@on_asyncio
async def test_options_are_looked_at_when_it_is_opened(dynamodb: DynamoDB) -> None:
    with pytest.raises(FormatError, match="ttl=0"):
        async with connect("chats", ttl=0):
            pass


# --- create_table ---


@on_asyncio
@pytest.mark.parametrize("sort_key", ["sk", None])
async def test_a_table_is_made_ready_to_be_used(dynamodb: DynamoDB, name: str, sort_key: str | None) -> None:
    await create_table(name, sort_key=sort_key)

    client = dynamodb.resource.meta.client
    table = client.describe_table(TableName=name)["Table"]
    assert [item["AttributeName"] for item in table["KeySchema"]] == (["pk", "sk"] if sort_key else ["pk"])
    assert table["TableStatus"] == "ACTIVE"
    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    ttl = client.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
    assert (ttl["TimeToLiveStatus"], ttl["AttributeName"]) == ("ENABLED", "expires")


@on_asyncio
async def test_several_may_make_the_same_table_at_once_and_again(dynamodb: DynamoDB, name: str) -> None:
    async with create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(create_table, name)
    await create_table(name)
    assert dynamodb.resource.Table(name).table_status == "ACTIVE"


@on_asyncio
async def test_a_table_without_a_time_to_live(dynamodb: DynamoDB, name: str) -> None:
    await create_table(name, ttl_attribute=None)
    ttl = dynamodb.resource.meta.client.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
    assert ttl["TimeToLiveStatus"] == "DISABLED"


@on_asyncio
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"user": "S"}, "HASH 'user' of type S, not HASH 'pk' of type S, RANGE 'sk' of type S"),
        ({"pk": "S", "sk": "N"}, "HASH 'pk' of type S, RANGE 'sk' of type N, not"),
        ({"pk": "B", "sk": "S"}, "HASH 'pk' of type B"),
    ],
)
async def test_a_table_with_other_keys_is_not_taken(
    dynamodb: DynamoDB, keys: dict[str, str], message: str
) -> None:
    there = dynamodb.table(keys)
    with pytest.raises(FormatError, match=message) as caught:
        await create_table(there)
    assert there in str(caught.value)


@on_asyncio
async def test_a_table_with_another_ttl_attribute_is_not_taken(name: str) -> None:
    await create_table(name, ttl_attribute="gone")
    with pytest.raises(FormatError, match="in 'gone', not in 'expires'"):
        await create_table(name)


@on_asyncio
async def test_a_name_that_no_table_can_have(dynamodb: DynamoDB) -> None:
    with pytest.raises(DriverError, match="cannot create table 'a b'") as caught:
        await create_table("a b")
    assert not caught.value.retryable


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="aioboto3 runs on asyncio"):
        await create_table("table")
    with pytest.raises(UnsupportedError, match="aioboto3 runs on asyncio"):
        async with connect("table"):
            pass


# --- what errors mean ---


def refused(code: str, message: str = "no", status: int = 400, **others: Any) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response | others, "PutItem")


def cancelled(*codes: str) -> ClientError:
    return refused("TransactionCanceledException", CancellationReasons=[{"Code": code} for code in codes])


PASSING = [
    *(
        refused(f"{code}Exception")
        for code in (
            "LimitExceeded",
            "ProvisionedThroughputExceeded",
            "ReplicatedWriteConflict",
            "RequestLimitExceeded",
            "ResourceInUse",
            "Throttling",
            "TransactionConflict",
            "TransactionInProgress",
        )
    ),
    refused("RequestLimitExceeded"),
    refused("ThrottlingException"),
    refused("InternalServerError", status=500),
    refused("ServiceUnavailable", status=503),
    refused("502", status=502),
    cancelled("ConditionalCheckFailed", "None"),
    cancelled("None", "TransactionConflict"),
    cancelled("None", "ThrottlingError", "ProvisionedThroughputExceeded"),
    exceptions.EndpointConnectionError(endpoint_url="https://dynamodb"),
    exceptions.ConnectTimeoutError(endpoint_url="https://dynamodb"),
    exceptions.ReadTimeoutError(endpoint_url="https://dynamodb"),
    exceptions.ConnectionClosedError(endpoint_url="https://dynamodb"),
    exceptions.HTTPClientError(error="?"),
    exceptions.ProxyConnectionError(proxy_url="http://proxy"),
    TimeoutError(),
    ConnectionResetError(),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: f"{error!s:.60}")
def test_what_may_pass(error: Exception) -> None:
    known = explained(error, "chats", "user-1", "append to")
    assert isinstance(known, DriverError)
    assert known.retryable
    assert "cannot append to 'user-1' in table 'chats': " in str(known)
    assert known.__cause__ is error


LASTING: list[tuple[Exception, type[MemkitError], str]] = [
    (
        refused("ResourceNotFoundException"),
        DriverError,
        r"or make it with memkit\.drivers\.dynamodb\.create_table",
    ),
    (refused("AccessDeniedException"), DriverError, "allow dynamodb:PutItem on the table in the IAM policy"),
    (
        refused("AccessDeniedException", "User x is not authorized to perform: dynamodb:UpdateItem on resource y"),
        DriverError,
        "allow dynamodb:UpdateItem on the table",
    ),
    (refused("ExpiredTokenException"), DriverError, "renew the credentials"),
    (refused("UnrecognizedClientException"), DriverError, "renew the credentials"),
    (refused("IdempotentParameterMismatchException"), DriverError, "append a new record"),
    (refused("ItemCollectionSizeLimitExceededException"), DriverError, "trim the conversation"),
    (cancelled("ConditionalCheckFailed", "ItemCollectionSizeLimitExceeded"), DriverError, "trim the conversation"),
    (
        refused("ValidationException", "The provided key element does not match the schema"),
        FormatError,
        "other keys",
    ),
    (
        refused("ValidationException", "Missing the key sk in the item"),
        FormatError,
        "'pk' and 'sk'. Give partition_",
    ),
    (refused("ValidationException", "Item size has exceeded"), DriverError, "refused it: Item size has exceeded"),
    (exceptions.NoCredentialsError(), DriverError, "finds no credentials"),
    (exceptions.PartialCredentialsError(provider="env", cred_var="x"), DriverError, "finds no credentials"),
    (exceptions.NoRegionError(), FormatError, "there is no region; give region="),
    (exceptions.ProfileNotFound(profile="p"), FormatError, "check AWS_PROFILE"),
    (exceptions.SSLError(endpoint_url="https://dynamodb", error="?"), DriverError, "AWS_CA_BUNDLE"),
    (RuntimeError("Session is closed"), ClosedError, "inside its `async with`"),
    (KeyError("Item"), DriverError, "the AWS SDK failed; the cause of this error says more"),
]


@pytest.mark.parametrize(("error", "kind", "message"), LASTING, ids=lambda value: f"{value!s:.60}")
def test_what_does_not_pass(error: Exception, kind: type[MemkitError], message: str) -> None:
    known = explained(error, "chats", "user-1", "append to", keys=["pk", "sk"])
    assert type(known) is kind
    assert not getattr(known, "retryable", False)
    with pytest.raises(kind, match=message):
        raise known from known.__cause__
    assert known.__cause__ is error


@pytest.mark.parametrize("code", ["InvalidSignatureException", "IncompleteSignatureException"])
def test_no_error_shows_what_was_signed(code: str) -> None:
    def call() -> None:
        try:
            raise refused(code, "should have been 'POST x-amz-security-token:a-secret-token'")
        except ClientError as error:
            known = explained(error, "chats", None, "open")
            raise known from known.__cause__

    with pytest.raises(DriverError, match=r"cannot open table 'chats': .*check secret key") as caught:
        call()
    assert "a-secret-token" not in "".join(traceback.format_exception(caught.value))


def test_our_own_errors_stay_as_they_are() -> None:
    error = FormatError("as it is")
    assert explained(error, "chats", "user-1", "load") is error


def test_the_reasons_of_a_cancelled_transaction() -> None:
    found = [{"Code": "ConditionalCheckFailed", "Item": {"end": {"N": "7"}}}, {"Code": "None"}]
    assert reasons(refused("TransactionCanceledException", CancellationReasons=found)) == found
    assert reasons(refused("ThrottlingException")) == []
    assert reasons(TimeoutError()) == []

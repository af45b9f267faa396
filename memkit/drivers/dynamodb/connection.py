"""`connect`: a driver with a client of its own, by the name of a table. `create_table` makes one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from anyio import CancelScope, fail_after, sleep, to_thread

from memkit.drivers.dynamodb.driver import PREFIX, RETRY_FOR, DynamoDbDriver
from memkit.drivers.dynamodb.errors import explained
from memkit.errors import FormatError, UnsupportedError
from memkit.finish import asyncio_loop

if TYPE_CHECKING:
    import aioboto3
    from types_aiobotocore_dynamodb import DynamoDBClient
    from types_aiobotocore_dynamodb.service_resource import Table
    from types_aiobotocore_dynamodb.type_defs import TableDescriptionTypeDef, TimeToLiveSpecificationTypeDef


@asynccontextmanager
async def connect(
    table_name: str,
    *,
    region: str | None = None,
    endpoint_url: str | None = None,
    session: aioboto3.Session | None = None,
    partition_key: str = "pk",
    sort_key: str | None = "sk",
    attributes: Mapping[str, str] | None = None,
    prefix: str = PREFIX,
    ttl: float | None = None,
    retry_for: float = RETRY_FOR,
    consistent: bool = True,
) -> AsyncGenerator[DynamoDbDriver]:
    """Open a driver with a client of its own, and close it in the end. Nothing is sent before the first call.

    One driver is enough for all conversations of a program. Region, endpoint and credentials that are given
    neither here nor by a `session` of your own are found as the AWS SDK finds them. That, and importing the SDK,
    happen in a worker thread. The rest is as in `DynamoDbDriver`.

    Raises:
        FormatError: there is no region, or an option or a setting of the SDK is wrong.
        DriverError: there are no credentials.
        UnsupportedError: this is not asyncio.
    """
    async with _table(table_name, region, endpoint_url, session) as table:
        yield DynamoDbDriver(
            table,
            partition_key=partition_key,
            sort_key=sort_key,
            attributes=attributes,
            prefix=prefix,
            ttl=ttl,
            retry_for=retry_for,
            consistent=consistent,
        )


CREATION_TIMEOUT: Final = 120.0
"""Seconds that a new table may take until it is active; usually it is some ten."""


async def create_table(
    table_name: str,
    *,
    partition_key: str = "pk",
    sort_key: str | None = "sk",
    ttl_attribute: str | None = "expires",
    region: str | None = None,
    endpoint_url: str | None = None,
    session: aioboto3.Session | None = None,
) -> None:
    """Make a table for `connect`, with billing on demand, and wait until it can be used.

    A table that is there and has these keys is left as it is, but for the time to live, which is turned on where
    it is off. `sort_key=None` makes a table with a partition key only.

    Raises:
        FormatError: there is a table of this name with other keys or another TTL attribute; or no region.
        DriverError: the service refused it, or did not do it in time.
        UnsupportedError: this is not asyncio.
    """
    keys = {"HASH": partition_key} | ({"RANGE": sort_key} if sort_key is not None else {})
    async with _table(table_name, region, endpoint_url, session) as table:
        client = table.meta.client
        try:
            with fail_after(CREATION_TIMEOUT):
                await _create(client, table_name, keys)
                if ttl_attribute is not None:
                    await _turn_ttl_on(client, table_name, ttl_attribute)
        except Exception as error:
            known = explained(error, table_name, None, "create", keys=[*keys.values()])
            raise known from known.__cause__


async def _create(client: DynamoDBClient, name: str, keys: Mapping[str, str]) -> None:
    """Make the table unless it is there, and wait until it is active."""
    kinds: Any = [{"AttributeName": attribute, "AttributeType": "S"} for attribute in keys.values()]
    schema: Any = [{"AttributeName": attribute, "KeyType": role} for role, attribute in keys.items()]
    with suppress(client.exceptions.ResourceInUseException):
        await client.create_table(
            TableName=name, AttributeDefinitions=kinds, KeySchema=schema, BillingMode="PAY_PER_REQUEST"
        )
    while True:
        with suppress(client.exceptions.ResourceNotFoundException):  # not everywhere known yet
            found = (await client.describe_table(TableName=name))["Table"]
            _check_keys(name, found, keys)
            if found.get("TableStatus") == "ACTIVE":
                return
        await sleep(0.5)


def _check_keys(name: str, found: TableDescriptionTypeDef, keys: Mapping[str, str]) -> None:
    types = {item["AttributeName"]: item["AttributeType"] for item in found.get("AttributeDefinitions", ())}
    stored = {str(item["KeyType"]): item["AttributeName"] for item in found.get("KeySchema", ())}
    if stored != keys or any(types.get(attribute) != "S" for attribute in keys.values()):
        there = ", ".join(
            f"{role} {attribute!r} of type {types.get(attribute)}" for role, attribute in stored.items()
        )
        wanted = ", ".join(f"{role} {attribute!r} of type S" for role, attribute in keys.items())
        raise FormatError(
            f"table {name!r} is there and has other keys: {there}, not {wanted}. Nothing was changed; take "
            "another name, or give partition_key= and sort_key= as they are"
        )


async def _turn_ttl_on(client: DynamoDBClient, name: str, attribute: str) -> None:
    if await _has_ttl(client, name, attribute):
        return
    wanted: TimeToLiveSpecificationTypeDef = {"Enabled": True, "AttributeName": attribute}
    try:
        await client.update_time_to_live(TableName=name, TimeToLiveSpecification=wanted)
    except client.exceptions.ClientError:
        if not await _has_ttl(client, name, attribute):  # nobody was quicker
            raise


async def _has_ttl(client: DynamoDBClient, name: str, attribute: str) -> bool:
    found = (await client.describe_time_to_live(TableName=name))["TimeToLiveDescription"]
    if found.get("TimeToLiveStatus") not in {"ENABLED", "ENABLING"}:
        return False
    if found.get("AttributeName") != attribute:
        raise FormatError(
            f"table {name!r} has its time to live in {found.get('AttributeName')!r}, not in {attribute!r}; give "
            "that as ttl_attribute="
        )
    return True


@asynccontextmanager
async def _table(
    name: str, region: str | None, endpoint_url: str | None, session: aioboto3.Session | None
) -> AsyncGenerator[Table]:
    """Open a table with a client of its own, and close that in the end.

    It is made in a worker thread: importing the SDK and reading its models take most of a second.
    """
    if asyncio_loop() is None:
        raise UnsupportedError("aioboto3 runs on asyncio; use asyncio, or SqliteDriver or FileDriver on trio")
    if endpoint_url is not None and not _is_url(endpoint_url):
        raise FormatError("endpoint_url must begin with http:// or https:// and a host")

    def make() -> Table:
        from memkit.drivers.dynamodb.client import open_table  # noqa: PLC0415 - slow, as said above

        return asyncio.run(open_table(name, session, region, endpoint_url))

    try:
        table = await to_thread.run_sync(make)
    except Exception as error:
        known = explained(error, name, None, "open")
        raise known from known.__cause__
    try:
        yield table
    finally:
        with CancelScope(shield=True):
            await table.meta.client.close()


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False

"""What is asked of DynamoDB: few requests at a time, each tried until its time is over, errors in our words."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from botocore.exceptions import ClientError, HTTPClientError

from memkit.drivers.dynamodb.errors import explained, reasons
from memkit.drivers.dynamodb.layout import Item, Layout, from_wire
from memkit.drivers.dynamodb.tries import Tries, pause
from memkit.errors import MemkitError, UnsupportedError
from memkit.finish import asyncio_loop
from memkit.run import new_id

T = TypeVar("T")

Action: TypeAlias = dict[str, dict[str, Any]]
"""One write of a transaction, in the form of the API."""

IN_FLIGHT: Final = 4
"""How many requests are under way at a time. If more answers came together, the event loop would stand still."""

_PAGE: Final = 100_000  # more never fit in one
_BATCH_WRITE: Final = 25
_BARE: Final = "#memkit #entry #packed #count #groups #of #expires"
_VALUE: Final = re.compile(r":\w+")


class Reading(NamedTuple):
    """How items are read: as of now, or of a moment ago for half the price; with their bodies or without."""

    consistent: bool = True
    bodies: bool = True


WHOLE: Final = Reading()
BARE: Final = Reading(bodies=False)


class RefusedError(Exception):
    """A condition did not hold, and nothing was written.

    `refused` tells of each action whether its condition was that, and `items` has what there was then.
    """

    def __init__(self, refused: Sequence[bool], items: Sequence[Item | None]) -> None:
        super().__init__("a condition did not hold")
        self.refused = refused
        self.items = items


class Requests:
    """Requests to one table."""

    def __init__(self, table: Any, layout: Layout, *, retry_for: float, consistent: bool) -> None:
        self.name: Final[str] = table.name
        self.layout: Final = layout
        self.retry_for: Final = retry_for
        self.consistent: Final = consistent
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Final = table.meta.client
        self._gate: Final = asyncio.Semaphore(IN_FLIGHT)

    def check_loop(self) -> None:
        """Refuse an event loop that cannot be served: connections belong to the one that was the first.

        Raises:
            UnsupportedError: saying what to do.
        """
        loop = asyncio_loop()
        if loop is None:
            raise UnsupportedError("aioboto3 runs on asyncio; use asyncio, or SqliteDriver or FileDriver on trio")
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise UnsupportedError(
                f"the driver of table {self.name!r} belongs to another event loop; open one in each"
            )

    def where(self, key: str) -> str:
        """Return how errors name a conversation."""
        return f"{key!r} in table {self.name!r}"

    async def get(self, key: str, item_key: Item, *, consistent: bool = True) -> Item | None:
        """Return an item, or None."""
        answer = await self._call("get_item", key, "read", Key=item_key, ConsistentRead=consistent)
        item = answer.get("Item")
        return None if item is None else self.layout.read(item)

    async def page(self, key: str, low: Item, high: Item, limit: int, reading: Reading) -> tuple[list[Item], bool]:
        """Return items of a partition from `high` down to `low`, the last first, and whether there may be more."""
        partition, sort = self.layout.keys[0], self.layout.keys[-1]
        condition = "#pk = :pk AND #sk BETWEEN :low AND :high"
        answer = await self._call(
            "query",
            key,
            "read",
            KeyConditionExpression=condition,
            ExpressionAttributeValues={":pk": low[partition], ":low": low[sort], ":high": high[sort]},
            ScanIndexForward=False,
            Limit=min(limit, _PAGE),
            ConsistentRead=reading.consistent,
            **self._shown(condition, reading),
        )
        return list(map(self.layout.read, answer["Items"])), "LastEvaluatedKey" in answer

    async def get_many(self, key: str, item_keys: Sequence[Item], reading: Reading) -> list[Item]:
        """Return those of up to 100 items that there are, in no order."""
        found: list[Item] = []
        asked = {"Keys": item_keys, "ConsistentRead": reading.consistent, **self._shown("", reading)}
        async for answer in self._batches("batch_get_item", key, "read", asked, "UnprocessedKeys"):
            found += map(self.layout.read, answer["Responses"].get(self.name, ()))
        return found

    def _shown(self, condition: str, reading: Reading) -> dict[str, Any]:
        shown = "" if reading.bodies else " ".join(("#pk", *(["#sk"] if self.layout.has_sort_key else ()), _BARE))
        asked: dict[str, Any] = {"ProjectionExpression": shown.replace(" ", ", ")} if shown else {}
        names = self.layout.names(condition, shown)
        return asked | ({"ExpressionAttributeNames": names} if names else {})

    async def put(self, key: str, item: Item) -> None:
        """Store an item."""
        await self._call("put_item", key, "write to", Item=item)

    async def delete_all(self, key: str, item_keys: Sequence[Item]) -> None:
        """Delete items, be they there or not."""
        batches = [item_keys[at : at + _BATCH_WRITE] for at in range(0, len(item_keys), _BATCH_WRITE)]
        await together(self._delete_some(key, batch) for batch in batches)

    async def _delete_some(self, key: str, item_keys: Sequence[Item]) -> None:
        asked = [{"DeleteRequest": {"Key": item_key}} for item_key in item_keys]
        async for _ in self._batches("batch_write_item", key, "delete", asked, "UnprocessedItems"):
            pass

    async def _batches(self, operation: str, key: str, doing: str, asked: Any, rest: str) -> AsyncIterator[Any]:
        """Yield answers until there is none that has a rest."""
        left: Any = {self.name: asked}
        tries = 0
        while left:
            answer = await self._call(operation, key, doing, has_table=False, RequestItems=left)
            yield answer
            left = answer.get(rest)
            if left:
                await pause(tries)
                tries += 1

    async def scan(self, condition: str, values: Item, after: Item | None) -> tuple[list[Item], Item | None]:
        """Return some of the items of the table for which a condition holds, and where to go on."""
        asked: dict[str, Any] = {} if after is None else {"ExclusiveStartKey": after}
        if values:
            asked["ExpressionAttributeValues"] = values
        shown = "#pk, #memkit, #until, #gone"
        answer = await self._call(
            "scan",
            None,
            "list",
            FilterExpression=condition,
            ProjectionExpression=shown,
            ExpressionAttributeNames=self.layout.names(condition, shown),
            ConsistentRead=self.consistent,
            **asked,
        )
        return list(map(self.layout.read, answer["Items"])), answer.get("LastEvaluatedKey")

    # --- conditional writes ---

    def update(self, item_key: Item, changes: str, condition: str, values: Mapping[str, Any]) -> Action:
        """Return the action that changes attributes if a condition holds. Unused values are left out."""
        used = set(_VALUE.findall(f"{changes} {condition}"))
        action: dict[str, Any] = {"TableName": self.name, "Key": item_key, "UpdateExpression": changes}
        action["ExpressionAttributeNames"] = self.layout.names(changes, condition)
        if used:
            action["ExpressionAttributeValues"] = {name: values[name] for name in used}
        if condition:
            action |= {"ConditionExpression": condition, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
        return {"Update": action}

    def insert(self, item: Item) -> Action:
        """Return the action that stores an item where none is."""
        return {
            "Put": {
                "TableName": self.name,
                "Item": item,
                "ConditionExpression": "attribute_not_exists(#pk)",
                "ExpressionAttributeNames": self.layout.names("#pk"),
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            }
        }

    def replace(self, item: Item) -> Action:
        """Return the action that stores an item, whatever is there."""
        return {"Put": {"TableName": self.name, "Item": item}}

    def check(self, item_key: Item, condition: str, values: Mapping[str, Any]) -> Action:
        """Return the action that only sees whether a condition holds."""
        action = self.update(item_key, "", condition, values)["Update"]
        del action["UpdateExpression"]
        return {"ConditionCheck": action}

    async def write(self, key: str, doing: str, actions: Sequence[Action], deadline: float | None = None) -> None:
        """Do all of these actions or none. Repeated by whoever has had no answer, they are done once.

        Raises:
            RefusedError: a condition did not hold.
        """
        if len(actions) == 1 and "Update" in actions[0]:
            await self._call("update_item", key, doing, deadline, **actions[0]["Update"])
            return  # a Put has no token: after a deletion its second try would store it again
        await self._call(
            "transact_write_items",
            key,
            doing,
            deadline,
            has_table=False,
            TransactItems=actions,
            ClientRequestToken=new_id(),
        )

    async def delete_if(self, key: str, item_key: Item, condition: str, values: Mapping[str, Any]) -> None:
        """Delete an item if a condition holds; otherwise leave it."""
        action = self.check(item_key, condition, values)["ConditionCheck"]
        try:
            await self._call("delete_item", key, "delete", **action)
        except RefusedError:
            return

    # --- trying ---

    def tries(self, key: str) -> Tries:
        """Return what limits how often something is tried that others spoil by writing at the same time."""
        return Tries(self.where(key), self.retry_for)

    async def _call(
        self,
        operation: str,
        key: str | None,
        doing: str,
        deadline: float | None = None,
        *,
        has_table: bool = True,
        **asked: Any,
    ) -> Any:
        if has_table:
            asked["TableName"] = self.name
        loop = asyncio.get_running_loop()
        if deadline is None:
            deadline = loop.time() + self.retry_for
        tries = 0
        known: MemkitError | None = None
        while True:
            try:
                async with asyncio.timeout_at(deadline), self._gate:
                    answer = await getattr(self._client, operation)(**asked)
                # Of a page for people, as a proxy may send one, the SDK makes an answer with nothing in it.
                if "json" in answer["ResponseMetadata"]["HTTPHeaders"].get("content-type", ""):
                    return answer
                raise HTTPClientError(error="what came is no answer of DynamoDB")  # noqa: TRY301
            except Exception as error:
                refused = self._refused(error)
                if refused is not None:
                    raise refused from error
                if known is None or not isinstance(error, TimeoutError):  # the error before says more
                    known = explained(error, self.name, key, doing, keys=self.layout.keys)
            if not getattr(known, "retryable", False):
                raise known from known.__cause__
            await pause(tries, deadline)
            if loop.time() >= deadline:
                raise known from known.__cause__
            tries += 1

    def _refused(self, error: Exception) -> RefusedError | None:
        """Return what an error says about conditions that did not hold, if it does."""
        if not isinstance(error, ClientError):
            return None
        response: Any = error.response
        found: list[Any] = reasons(error) or [response]
        codes = [reason.get("Code") or reason.get("Error", {}).get("Code") for reason in found]
        refused = [code in {"ConditionalCheckFailed", "ConditionalCheckFailedException"} for code in codes]
        if not any(refused):
            return None
        items = [reason.get("Item") for reason in found]
        return RefusedError(refused, [self.layout.read(from_wire(item)) if item else None for item in items])


async def together(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all of these, and return their results in order, or raise the first error when all have ended."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__
    return [task.result() for task in tasks]

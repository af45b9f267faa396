"""A proxy before DynamoDB Local that does what service and network may do, and counts what goes through."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import aiohttp
from aiohttp import web

Kind: TypeAlias = Literal[
    "throttled",  # ProvisionedThroughputExceededException, nothing done
    "limited",  # ThrottlingException, nothing done
    "failed",  # 500, nothing done
    "failed after",  # 500, but it was done
    "unavailable",  # 503, nothing done
    "conflict",  # someone else's transaction is under way on an item
    "in progress",  # TransactionInProgressException, nothing done
    "cut",  # the connection breaks before the request was read
    "lost",  # it was done, and then the connection breaks
    "unprocessed",  # a batch is done by half
    "late",  # it is done after `delay` seconds
    "garbled",  # a page for people, as of a proxy that wants one to log in
    "refused",  # 400 with the `code` of the fault, nothing done
]

MIX: Final[tuple[Kind, ...]] = (
    "throttled",
    "limited",
    "failed",
    "failed after",
    "unavailable",
    "conflict",
    "in progress",
    "cut",
    "lost",
    "unprocessed",
)
"""All kinds that a careful program survives without waiting."""

_ERRORS: Final[dict[Kind, tuple[int, str, str]]] = {
    "throttled": (
        400,
        "ProvisionedThroughputExceededException",
        "The level of configured throughput was exceeded.",
    ),
    "limited": (400, "ThrottlingException", "Rate of requests exceeds the allowed throughput."),
    "failed": (500, "InternalServerError", "The request processing has failed because of an unknown error."),
    "failed after": (500, "InternalServerError", "The request processing has failed because of an unknown error."),
    "unavailable": (503, "ServiceUnavailable", "The service cannot handle the request."),
    "conflict": (400, "TransactionConflictException", "Transaction is ongoing for the item"),
    "in progress": (400, "TransactionInProgressException", "The transaction with the given token is in progress."),
}
_BATCH: Final = {"BatchWriteItem": "UnprocessedItems", "BatchGetItem": "UnprocessedKeys"}
_TRANSACTION: Final = {"TransactWriteItems", "TransactGetItems"}
_WRITE: Final = {"PutItem", "UpdateItem", "DeleteItem"}
_ONLY: Final[dict[Kind, set[str]]] = {
    "conflict": _WRITE | _TRANSACTION,
    "in progress": {"TransactWriteItems"},
    "unprocessed": {*_BATCH},
}
"""What the service does with some operations only."""


@dataclass
class Fault:
    """What happens to the next requests, `times` of them, of this operation; of any, if none is named."""

    kind: Kind
    operation: str = ""
    times: int = 1
    code: str = ""
    reached: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Traffic:
    """What went through: requests, bytes of bodies both ways, and capacity units as the server reports them."""

    requests: int = 0
    sent: int = 0
    received: int = 0
    units: float = 0.0


class FaultProxy:
    """Hands everything on until told otherwise, by `faults` that come in turn, or by chance at a `rate`."""

    def __init__(self, upstream: str, *, seed: int = 7) -> None:
        self.url = ""
        self.faults: list[Fault] = []
        self.rate = 0.0
        """The part of the requests that suffers a fault, of `kinds`."""
        self.kinds: tuple[Kind, ...] = MIX
        self.delay = 0.02
        """Seconds that a request is late, where it is to be late."""
        self.measures = False
        """Whether the server is asked for the capacity units of each request."""
        self.keeps = False
        """Whether the bodies of requests are kept, in `bodies`."""
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.traffic: dict[str, Traffic] = {}
        """By operation. `total` adds it up."""
        self.most_at_once = 0
        """How many requests were under way at the same time."""
        self.suffered: Counter[str] = Counter()
        """How many faults of each kind there were."""
        self._upstream = upstream
        self._random = random.Random(seed)
        self._client: aiohttp.ClientSession | None = None
        self._under_way = 0

    @property
    def total(self) -> Traffic:
        """What went through of all operations."""
        every = self.traffic.values()
        return Traffic(
            sum(one.requests for one in every),
            sum(one.sent for one in every),
            sum(one.received for one in every),
            sum(one.units for one in every),
        )

    def reset(self) -> None:
        """Count from 0 again."""
        self.traffic.clear()
        self.suffered.clear()
        self.bodies.clear()
        self.most_at_once = 0

    def add_fault(self, kind: Kind, operation: str = "", times: int = 1, *, code: str = "") -> Fault:
        """Let the next requests of an operation suffer a fault."""
        fault = Fault(kind, operation, times, code)
        self.faults.append(fault)
        return fault

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[FaultProxy]:
        """Serve while the context is entered."""
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0]
            self.url = f"http://{host}:{port}"
            async with aiohttp.ClientSession(auto_decompress=False) as self._client:
                yield self
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            return await self._answer(request)
        finally:
            self._under_way -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        operation = request.headers["X-Amz-Target"].rpartition(".")[2]
        body = await request.read()
        traffic = self.traffic.setdefault(operation, Traffic())
        traffic.requests += 1
        traffic.sent += len(body)
        if self.keeps:
            self.bodies.append((operation, json.loads(body)))
        fault = self._fault(operation)
        kind = fault.kind if fault else None
        if kind == "late":
            await asyncio.sleep(self.delay)
        if kind == "cut":
            return _cut(request)
        if kind == "garbled":
            return web.Response(body=b"<html>Please log in</html>", content_type="text/html")
        if fault and (kind in _ERRORS or kind == "refused") and kind != "failed after":
            return _error(fault, operation, body)
        status, reply, headers = await self._forward(request, operation, body, halved=kind == "unprocessed")
        if kind == "lost":
            return _cut(request)
        if fault and kind == "failed after":
            return _error(fault, operation, body)
        traffic.received += len(reply)
        traffic.units += _units(reply) if self.measures else 0
        return web.Response(status=status, body=reply, headers=headers)

    def _fault(self, operation: str) -> Fault | None:
        fault = next((item for item in self.faults if item.times and item.operation in ("", operation)), None)
        if fault is None and self._random.random() < self.rate:
            fault = Fault(self._random.choice(self.kinds))
        if fault is None or operation not in _ONLY.get(fault.kind, {operation}):
            return None
        fault.times -= 1
        fault.reached.set()
        self.suffered[fault.kind] += 1
        return fault

    async def _forward(
        self, request: web.Request, operation: str, body: bytes, *, halved: bool
    ) -> tuple[int, bytes, dict[str, str]]:
        held_back: Any = None
        if halved or self.measures:
            parsed = json.loads(body)
            if halved:
                held_back = _hold_back(parsed["RequestItems"])
            if self.measures:
                parsed["ReturnConsumedCapacity"] = "TOTAL"
            body = json.dumps(parsed).encode()
        kept = {"Authorization", "Content-Type", "X-Amz-Date", "X-Amz-Target", "X-Amz-Security-Token"}
        headers = {name: value for name, value in request.headers.items() if name in kept}
        assert self._client is not None
        async with self._client.post(self._upstream, data=body, headers=headers) as response:
            reply = await response.read()
            kept = {"Content-Type", "x-amzn-RequestId"}  # not the checksum, for what may be changed
            told = {name: value for name, value in response.headers.items() if name in kept}
        if held_back and response.status == 200:
            parsed = json.loads(reply)
            unprocessed = parsed.setdefault(_BATCH[operation], {})
            for table, asked in held_back.items():
                unprocessed[table] = _joined(asked, unprocessed.get(table))
            reply = json.dumps(parsed).encode()
        return response.status, reply, told


def _hold_back(tables: dict[str, Any]) -> dict[str, Any]:
    """Take away, and return, the second half of what is asked of each table."""
    held: dict[str, Any] = {}
    for table, asked in tables.items():
        every: list[Any] = asked["Keys"] if isinstance(asked, dict) else asked
        kept, rest = every[: (len(every) + 1) // 2], every[(len(every) + 1) // 2 :]
        if rest:
            is_read = isinstance(asked, dict)
            tables[table], held[table] = (
                ({**asked, "Keys": kept}, {**asked, "Keys": rest}) if is_read else (kept, rest)
            )
    return held


def _joined(asked: Any, more: Any) -> Any:
    if not more:
        return asked
    return asked + more if isinstance(asked, list) else asked | {"Keys": asked["Keys"] + more["Keys"]}


def _cut(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()  # which goes nowhere


def _error(fault: Fault, operation: str, body: bytes) -> web.Response:
    status, name, message = _ERRORS.get(fault.kind, (400, fault.code, "The request is refused."))
    reply: dict[str, Any] = {"message": message}
    if fault.kind == "conflict" and operation in _TRANSACTION:
        name = "TransactionCanceledException"
        count = len(json.loads(body)["TransactItems"])
        codes = ["TransactionConflict", *["None"] * (count - 1)]
        reply["message"] = f"Transaction cancelled, please refer cancellation reasons for specific reasons {codes}"
        reply["CancellationReasons"] = [{"Code": code} for code in codes]
    reply["__type"] = f"com.amazonaws.dynamodb.v20120810#{name}"
    return web.json_response(reply, status=status, content_type="application/x-amz-json-1.0")


def _units(reply: bytes) -> float:
    consumed: Any = json.loads(reply).get("ConsumedCapacity", [])
    return sum(one["CapacityUnits"] for one in (consumed if isinstance(consumed, list) else [consumed]))

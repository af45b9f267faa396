"""Griptape Cloud when it fails: what is repeated, what is not, and that nothing is stored twice or told away."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import msgspec
import pytest
from anyio import CancelScope, create_task_group, sleep, to_thread

from memkit.driver import Log, Record
from memkit.drivers.griptape_cloud import GriptapeCloudDriver, api, connect
from memkit.errors import ClosedError, ConflictError, DriverError, FormatError, MemkitError
from tests.griptape_cloud import KEY, Fault, GriptapeCloud, serve

pytestmark = pytest.mark.anyio

THREADS = "/api/threads"
THREAD = "/api/threads/[^/]+"
MESSAGES = "/api/threads/.+/messages"


@pytest.fixture
def cloud() -> Generator[GriptapeCloud]:
    with serve(GriptapeCloud()) as service:
        yield service


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the driver would have waited; it does not."""
    waited: list[float] = []

    async def record_only(seconds: float) -> None:
        waited.append(seconds)
        await sleep(0)

    monkeypatch.setattr(api, "sleep", record_only)
    return waited


@pytest.fixture
async def driver(cloud: GriptapeCloud, pauses: list[float]) -> AsyncGenerator[GriptapeCloudDriver]:
    async with connect(api_key=KEY, base_url=cloud.url) as opened:
        yield opened


@pytest.fixture
async def impatient(cloud: GriptapeCloud) -> AsyncGenerator[GriptapeCloudDriver]:
    async with connect(api_key=KEY, base_url=cloud.url, retry_for=0) as opened:
        yield opened


def record(run_id: str = "r1", said: str = "hello") -> Record:
    body = {"input": said, "output": "hi", "metadata": {"run_id": run_id}}
    return Record(run_id, msgspec.json.encode(body))


def stored(cloud: GriptapeCloud) -> list[str]:
    """The ids of the runs of the only thread."""
    (messages,) = cloud.messages.values()
    return [message["metadata"]["run_id"] for message in messages]


# --- what is repeated ---


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize(("method", "path"), [("GET", THREADS), ("GET", MESSAGES), ("GET", THREAD)])
async def test_reads_are_repeated(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, pauses: list[float], method: str, path: str, status: int
) -> None:
    thread_id = cloud.add_thread("key")
    for _ in range(2):
        cloud.add_fault(method, path, status=status)
    assert (await driver.load("key")).epoch == thread_id
    assert cloud.faults == []
    assert len(pauses) == 2


LOSSES: dict[str, dict[str, Any]] = {
    "the request is lost": {"lose": "request"},
    "the reply is lost": {"lose": "reply"},
    "half of the reply is lost": {"lose": "half of the reply"},
    "not done, 429": {"status": 429},
    "not done, 500": {"status": 500},
    "not done, 503": {"status": 503},
    "an answer that is not JSON": {"status": 201, "body": b"<html>"},
    "an answer without fields": {"status": 201, "body": b"{}"},
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
async def test_a_message_is_stored_once(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, loss: dict[str, Any], first: bool
) -> None:
    if not first:
        await driver.append("key", [record("r0")])
    for _ in range(2):
        cloud.add_fault("POST", MESSAGES, **loss)
    position = 0 if first else 1
    appended = await driver.append("key", [record()], since=position)
    assert (appended.position, appended.end) == (position, position + 1)
    assert stored(cloud) == ["r0", "r1"][first:]


async def test_a_message_is_stored_once_though_others_write_meanwhile(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver
) -> None:
    thread_id = (await driver.append("key", [record("r0")])).epoch
    fault = cloud.add_fault("POST", MESSAGES, lose="reply", hold=threading.Event())

    def others() -> None:
        fault.reached.wait(30)
        for n in range(3):
            cloud.add_message(thread_id, metadata={"run_id": f"other{n}"})
        fault.hold.set()

    async with create_task_group() as tasks:
        tasks.start_soon(to_thread.run_sync, others)
        appended = await driver.append("key", [record()], since=1)
    assert (appended.position, appended.end) == (1, 5)
    assert stored(cloud).count("r1") == 1


async def test_a_reply_that_is_lost_for_good_is_found_by_the_next_append(
    cloud: GriptapeCloud, impatient: GriptapeCloudDriver
) -> None:
    cloud.add_fault("POST", MESSAGES, lose="reply")
    with pytest.raises(DriverError, match="got no answer") as caught:
        await impatient.append("key", [record()])
    assert caught.value.retryable
    assert (await impatient.append("key", [record()])).position == 0
    assert stored(cloud) == ["r1"]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
@pytest.mark.parametrize("are_unique", [True, False])
async def test_a_thread_is_made_once(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, loss: dict[str, Any], are_unique: bool
) -> None:
    cloud.unique_aliases = are_unique
    cloud.add_fault("POST", THREADS, **loss)
    assert (await driver.append("key", [record()])).position == 0
    assert len(cloud.threads) == 1


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
async def test_a_head_is_stored_once(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, loss: dict[str, Any]
) -> None:
    cloud.add_thread("key")
    cloud.add_fault("PATCH", THREAD, **loss)
    revision = await driver.commit("key", b'{"a":1}', revision=(await driver.load("key")).revision)
    log = await driver.load("key")
    assert (log.head, log.revision) == (b'{"a":1}', revision)


async def test_a_head_is_not_repeated_over_that_of_others(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver
) -> None:
    thread_id = cloud.add_thread("key")
    revision = (await driver.load("key")).revision
    fault = cloud.add_fault("PATCH", THREAD, lose="request")
    original = fault.reached.set

    def overtake() -> None:
        cloud.threads[thread_id]["metadata"] = {"theirs": 1}
        original()

    fault.reached.set = overtake  # type: ignore[method-assign]
    with pytest.raises(ConflictError):
        await driver.commit("key", b'{"ours":1}', revision=revision)
    assert cloud.threads[thread_id]["metadata"] == {"theirs": 1}


async def test_a_service_that_keeps_no_metadata(cloud: GriptapeCloud, impatient: GriptapeCloudDriver) -> None:
    thread_id = cloud.add_thread("key")
    answer = json.dumps(cloud.threads[thread_id]).encode()
    cloud.add_fault("PATCH", THREAD, status=200, body=answer)
    with pytest.raises(DriverError, match="does not keep metadata"):
        await impatient.commit("key", b"{}", revision=(await impatient.load("key")).revision)


@pytest.mark.parametrize("loss", [{"lose": "request"}, {"lose": "reply"}, {"status": 503}], ids=str)
async def test_a_deletion_whose_reply_is_lost_was_one(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, loss: dict[str, Any]
) -> None:
    cloud.add_thread("key")
    cloud.add_fault("DELETE", THREAD, **loss)
    assert await driver.delete("key") is True
    assert cloud.threads == {}
    assert await driver.delete("key") is False


# --- how long ---


async def test_pauses_grow_up_to_a_limit(cloud: GriptapeCloud, pauses: list[float]) -> None:
    for _ in range(8):
        cloud.add_fault("GET", THREADS, status=503)
    async with connect(api_key=KEY, base_url=cloud.url, retry_for=60) as driver:
        assert await driver.load("key") == Log()
    limits = [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, limits, strict=True))


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


WAITS: dict[str, tuple[Callable[[], str], float, float]] = {
    "seconds": (lambda: "5", 5, 5),
    "no seconds": (lambda: "0", 0.05, 0.1),
    "too many seconds": (lambda: "3600", 9, 10),
    "far too many seconds": (lambda: "9" * 400, 0.05, 0.1),
    "a date": (lambda: in_seconds(3600), 9, 10),
    "a date that is over": (lambda: in_seconds(-3600), 0.05, 0.1),
    "the last date": (lambda: "Fri, 31 Dec 9999 23:59:59 -2359", 9, 10),
    "a date that is none": (lambda: "Fri, 31 Dec 99999999999999999999 23:59:59 GMT", 0.05, 0.1),
    "a word": (lambda: "soon", 0.05, 0.1),
    "less than nothing": (lambda: "-1", 0.05, 0.1),
    "another digit": (lambda: "\xb2", 0.05, 0.1),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=list(WAITS))
async def test_a_service_that_asks_to_wait_is_obeyed_within_limits(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, pauses: list[float], wait: Any
) -> None:
    asked, least, most = wait
    cloud.add_fault("GET", THREADS, status=429, headers={"Retry-After": asked()})
    assert await driver.load("key") == Log()
    (pause,) = pauses
    assert least <= pause <= most


@pytest.mark.parametrize(
    "fault", [{"status": 429}, {"status": 503}, {"lose": "request"}, {"lose": "half of the reply"}], ids=str
)
async def test_an_end_to_repeating(cloud: GriptapeCloud, fault: dict[str, Any]) -> None:
    for _ in range(1000):
        cloud.add_fault("GET", THREADS, **fault)
    async with connect(api_key=KEY, base_url=cloud.url, retry_for=0.05) as driver:
        with pytest.raises(DriverError, match="'key': GET /api/threads") as caught:
            await driver.load("key")
    assert caught.value.retryable
    assert len(cloud.requests) <= 2  # one at the start, one when the time is over


async def test_a_service_that_is_not_there() -> None:
    with serve(GriptapeCloud()) as gone:
        pass
    async with connect(api_key=KEY, base_url=gone.url, retry_for=0) as driver:
        with pytest.raises(DriverError, match="got no answer") as caught:
            await driver.load("key")
    assert caught.value.retryable


async def test_a_service_that_is_silent(cloud: GriptapeCloud) -> None:
    fault = cloud.add_fault("GET", THREADS, hold=threading.Event())
    client = httpx.AsyncClient(base_url=cloud.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=0.05)
    async with client:
        driver = GriptapeCloudDriver(client, retry_for=0)
        with pytest.raises(DriverError, match="ReadTimeout") as caught:
            await driver.load("key")
        fault.hold.set()
        assert await driver.load("key") == Log()
    assert caught.value.retryable


async def test_a_write_that_hangs_is_given_up(cloud: GriptapeCloud) -> None:
    fault = cloud.add_fault("POST", MESSAGES, hold=threading.Event())
    async with connect(api_key=KEY, base_url=cloud.url, write_timeout=0.3) as driver:
        with pytest.raises(DriverError, match="outcome is unknown") as caught:
            await driver.append("key", [record()])
        fault.hold.set()
        assert caught.value.retryable
        assert (await driver.append("key", [record()])).position == 0
    assert stored(cloud) == ["r1"]


# --- what is not ---


@pytest.mark.parametrize("status", [401, 403])
async def test_a_wrong_key(cloud: GriptapeCloud, driver: GriptapeCloudDriver, status: int) -> None:
    cloud.add_fault("GET", THREADS, status=status)
    with pytest.raises(DriverError, match=r"GT_CLOUD_API_KEY, or api_key=") as caught:
        await driver.load("key")
    assert not caught.value.retryable
    assert len(cloud.requests) == 1


async def test_a_key_that_the_service_does_not_know(cloud: GriptapeCloud) -> None:
    async with connect(api_key="another-key", base_url=cloud.url) as driver:
        with pytest.raises(DriverError, match="401: Unauthorized") as caught:
            await driver.append("key", [record()])
    assert "another-key" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 413, 418, 422, 501])
async def test_what_the_service_says_is_told(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, status: int
) -> None:
    said = {"errors": [{"message": f"too\nlong\x1b[31m {KEY}"}, {"message": "x" * 10_000}]}
    cloud.add_thread("key")
    cloud.add_fault("POST", MESSAGES, status=status, body=json.dumps(said).encode())
    with pytest.raises(DriverError, match=rf"answered with {status}: too long\[31m \.\.\.; xxx") as caught:
        await driver.append("key", [record()])
    assert len(str(caught.value)) < 500
    assert not caught.value.retryable
    assert stored(cloud) == []


async def test_a_message_that_the_service_finds_wrong(cloud: GriptapeCloud, driver: GriptapeCloudDriver) -> None:
    cloud.add_fault("POST", MESSAGES, status=409)
    with pytest.raises(ConflictError):
        await driver.append("key", [record()])


NONSENSE = {
    "nothing": b"",
    "not JSON": b"<html>Please log in</html>",
    "not UTF-8": b"\xff\xfe",
    "a number": b"1",
    "no fields": b"{}",
    "a list that is none": b'{"threads":{},"messages":{},"pagination":{"total_count":0,"total_pages":1}}',
    "no pagination": b'{"threads":[],"messages":[],"thread_id":1}',
    "too deep": b"[" * 100_000,
    "a large number": b'{"threads":[],"pagination":{"total_count":1e999,"total_pages":1}}',
}


@pytest.mark.parametrize("raw", NONSENSE.values(), ids=list(NONSENSE))
@pytest.mark.parametrize("path", [THREADS, MESSAGES, THREAD])
async def test_an_answer_that_makes_no_sense(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, path: str, raw: bytes
) -> None:
    cloud.add_thread("key")
    cloud.add_fault("GET", path, status=200, body=raw)
    with pytest.raises(FormatError, match="something else than its API says"):
        await driver.load("key")


async def test_an_answer_that_is_too_large(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "MAX_REPLY", 100_000)
    cloud.add_fault("GET", THREADS, status=200, body=b" " * 100_001)
    with pytest.raises(DriverError, match="more than 100,000 bytes"):
        await driver.load("key")
    large = cloud.add_message(cloud.add_thread("key"), input="x" * 90_000)
    assert json.loads((await driver.load("key")).bodies[0])["message_id"] == large["message_id"]


async def test_a_large_page_is_read(cloud: GriptapeCloud, driver: GriptapeCloudDriver) -> None:
    said = "x" * 1_000_000
    await driver.append("key", [record("r1", said)])
    assert list((await driver.load("key")).bodies) == [record("r1", said).body]


async def test_a_redirection_is_not_followed(cloud: GriptapeCloud) -> None:
    with serve(GriptapeCloud()) as other:
        fault = {"status": 307, "headers": {"Location": f"{other.url}/api/threads"}}
        cloud.add_fault("GET", THREADS, **fault)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=cloud.url, headers=headers, follow_redirects=True) as client:
            with pytest.raises(DriverError, match="not followed"):
                await GriptapeCloudDriver(client).load("key")
        assert other.requests == []


async def test_a_closed_client(cloud: GriptapeCloud) -> None:
    async with connect(api_key=KEY, base_url=cloud.url) as driver:
        pass
    with pytest.raises(ClosedError):
        await driver.load("key")


async def test_the_key_is_in_no_error_and_no_log(cloud: GriptapeCloud, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    quoting = json.dumps({"errors": [{"message": f"{KEY} is wrong"}]}).encode()
    faults: list[dict[str, Any]] = [
        {"status": 403},
        {"status": 429},
        {"status": 400},
        {"status": 200},
        {"lose": "reply"},
    ]
    async with connect(api_key=KEY, base_url=cloud.url, retry_for=0) as driver:
        for fault in faults:
            cloud.add_fault("GET", THREADS, **({"body": quoting} | fault))
            with pytest.raises(MemkitError) as caught:
                await driver.load("key")
            assert KEY not in "".join(traceback.format_exception(caught.value))
    assert KEY not in caplog.text


@pytest.mark.parametrize("header", [f"Bearer {KEY}\n", f"Bearer {KEY}\r\nX: y", f"Bearer {KEY} "])
async def test_a_header_that_cannot_be_sent_is_refused_without_being_quoted(header: str) -> None:
    async with httpx.AsyncClient(headers={"Authorization": header}) as client:
        with pytest.raises(FormatError, match="header 'authorization'") as caught:
            GriptapeCloudDriver(client)
    assert KEY not in str(caught.value)


# --- cancellation ---


async def by_scope(call: Callable[[], Awaitable[object]], fault: Fault) -> bool:
    with CancelScope() as scope:
        async with create_task_group() as tasks:
            tasks.start_soon(cancel_in_the_middle, fault, scope.cancel)
            await call()
    return scope.cancelled_caught


async def by_task(call: Callable[[], Awaitable[object]], fault: Fault) -> bool:
    async def run() -> None:
        await call()

    task = asyncio.create_task(run())
    await cancel_in_the_middle(fault, task.cancel)
    await asyncio.wait((task,))
    return task.cancelled()


async def cancel_in_the_middle(fault: Fault, cancel: Callable[[], object]) -> None:
    with CancelScope(shield=True):
        await to_thread.run_sync(fault.reached.wait, 30)
        cancel()
        for _ in range(10):
            await sleep(0)
        fault.hold.set()


WAYS = [("asyncio", by_scope), ("trio", by_scope), ("asyncio", by_task)]


@pytest.mark.parametrize(("anyio_backend", "way"), WAYS)
@pytest.mark.parametrize("lose", [None, "reply", "half of the reply"])
async def test_a_cancelled_append_is_stored_once_before_the_cancellation_is_raised(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, anyio_backend: str, way: Any, lose: Any
) -> None:
    await driver.append("key", [record("r0")])
    fault = cloud.add_fault("POST", MESSAGES, hold=threading.Event(), lose=lose)
    assert await way(lambda: driver.append("key", [record()], since=1), fault)
    requests = len(cloud.requests)
    assert stored(cloud) == ["r0", "r1"]
    assert (await driver.append("key", [record()], since=1)).position == 1
    assert stored(cloud) == ["r0", "r1"]
    assert cloud.log[requests:][0].startswith("GET")


@pytest.mark.parametrize(("anyio_backend", "way"), WAYS)
async def test_a_cancelled_load_leaves_the_driver_as_it_was(
    cloud: GriptapeCloud, driver: GriptapeCloudDriver, anyio_backend: str, way: Any
) -> None:
    await driver.append("key", [record()])
    fault = cloud.add_fault("GET", MESSAGES, hold=threading.Event())
    assert await way(lambda: driver.load("key"), fault)
    assert len((await driver.load("key")).bodies) == 1

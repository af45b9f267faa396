"""The HTTP of the driver: one request, what is read of its reply, how it fails, and when it is repeated."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final, Protocol, TypeVar

import httpx
import msgspec
from anyio import CancelScope, current_time, sleep, to_thread

from memkit.drivers.griptape_cloud.wire import Pagination, read
from memkit.errors import ClosedError, ConflictError, DriverError, FormatError, MemkitError
from memkit.finish import worker_threads

T = TypeVar("T")

MAX_REPLY: Final = 64 * 1024 * 1024
"""The largest reply that is read, in bytes."""

_LARGE: Final = 256 * 1024  # bytes of JSON that are not read on the event loop
_TRANSIENT: Final = {429, 500, 502, 503, 504}
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
_READS: Final = 6  # of a list that changes while its pages are read
_MAX_PAGES: Final = 10_000
_MORE_PAGES: Final = 100  # that may come to a list while it is read


class NotFoundError(DriverError):
    """The service knows no such thread."""


class TransientError(DriverError):
    """A request failed, maybe after it took effect, and may succeed if it is repeated."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message, retryable=True)
        self.wait = wait


class Item(Protocol):
    """What pages are made of."""

    @property
    def id(self) -> str:
        """The item's own id."""
        ...


class Page(Protocol[T]):
    """Some items of a list."""

    @property
    def items(self) -> list[T]:
        """The items, in no order."""
        ...

    @property
    def pagination(self) -> Pagination:
        """Where the page stands."""
        ...


I = TypeVar("I", bound=Item)  # noqa: E741 - an item


class Call:
    """The requests of one call of the driver.

    All of them share the seconds in which they are repeated: those that pass in requests that fail and between
    them. A long list, each page of which comes at the first request, takes nothing of that time.
    """

    def __init__(self, client: httpx.AsyncClient, key: str, retry_for: float) -> None:
        self._client = client
        self._name = repr(key[:80])
        self._left = retry_for
        self._since = current_time()  # of the last reply, or the end of the last pause
        self._pauses = 0

    async def get(self, path: str, kind: type[T], params: Mapping[str, str | int] | None = None) -> T:
        """Return what is at this path; repeated while the service cannot answer."""
        while True:
            try:
                return await self.read(await self.send("GET", path, params=params), kind)
            except TransientError as error:
                await self.pause(error)

    async def get_all(self, path: str, kind: type[Page[I]], params: Mapping[str, str] | None = None) -> list[I]:
        """Return all items of a list, each once, in no order.

        Raises:
            DriverError: some did not come, since others are deleted all the while, or since the service
                answers with the same page again and again; or there is no end of pages.
        """
        reads = 0
        while True:
            items, total = await self._read_pages(path, kind, params or {})
            if len(items) >= total:
                return list(items.values())
            error = DriverError(
                f"{self._name}: only {len(items)} of {total} items of {path} could be read; "
                "either the list is being rewritten, or the service does not page as it says",
                retryable=True,
            )
            reads += 1
            if reads == _READS:
                raise error
            await self.pause(error)

    async def _read_pages(
        self, path: str, kind: type[Page[I]], params: Mapping[str, str]
    ) -> tuple[dict[str, I], int]:
        items: dict[str, I] = {}
        total, most = None, _MAX_PAGES
        for number in range(1, _MAX_PAGES + 1):
            page = await self.get(path, kind, {**params, "page": number})
            where, known = page.pagination, len(items)
            if total is None:
                total, most = where.total_count, min(_MAX_PAGES, where.total_pages + _MORE_PAGES)
            items.update((item.id, item) for item in page.items)
            if number >= where.total_pages or len(items) == known:  # the end, or the same page as before
                return items, total
            if number >= most:
                break
        raise DriverError(
            f"{self._name}: {path} has no end: {most:,} pages were read, and the service has still more; "
            "it does not page as it says"
        )

    async def send(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        params: Mapping[str, str | int] | None = None,
    ) -> bytes:
        """Make one request, once, and return the body of the reply.

        Raises:
            NotFoundError: 404.
            ConflictError: 409.
            TransientError: the service was not reached, or cannot answer now; the outcome is unknown.
            DriverError: the service refuses.
        """
        if self._client.is_closed:
            raise ClosedError(f"{self._name}: the HTTP client is closed; use the driver inside its `async with`")
        request = f"{self._name}: {method} {path}"
        try:
            async with self._client.stream(
                method,
                path,
                params=params,
                content=content,
                headers={"Content-Type": "application/json"} if content is not None else None,
                follow_redirects=False,  # the key must not go anywhere else
            ) as response:
                raw = await _body(response, request)
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError):
            # Not from its cause, which quotes headers, among them the key.
            raise DriverError(
                f"{request} cannot be sent; look at the base URL and the headers of the client"
            ) from None
        except httpx.HTTPError as error:
            raise TransientError(f"{request} got no answer: {str(error) or type(error).__name__}") from error
        if not response.is_success:
            raise self._failure(request, response, raw)
        self._since = current_time()
        return raw

    async def read(self, raw: bytes, kind: type[T]) -> T:
        """Return the body of a reply as a value; a large one is read in a thread."""
        try:
            if len(raw) < _LARGE:
                return read(raw, kind)
            return await to_thread.run_sync(read, raw, kind, limiter=worker_threads())
        except FormatError as error:
            raise FormatError(
                f"{self._name}: Griptape Cloud has answered something else than its API says: {error}; "
                "is the base URL right?"  # not what it is, which may be anything, the key too
            ) from error

    async def pause(self, error: MemkitError) -> None:
        """Wait before a request is repeated.

        Raises:
            MemkitError: this one, if the time in which requests are repeated is over.
        """
        left = self._left - (current_time() - self._since)
        if left <= 0:
            raise error
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._pauses)
        self._pauses += 1
        asked = error.wait if isinstance(error, TransientError) else 0.0
        await sleep(min(left, max(asked, random.uniform(longest / 2, longest))))  # noqa: S311 - jitter
        now = current_time()
        self._left -= now - self._since
        self._since = now

    def _failure(self, request: str, response: httpx.Response, raw: bytes) -> MemkitError:
        status = response.status_code
        said = _said(raw, self._client.headers.get("authorization", "").rpartition(" ")[2])
        what = f"{request} was answered with {status}{f': {said}' if said else ''}"
        if status in {401, 403}:
            return DriverError(f"{what}; is the key right (GT_CLOUD_API_KEY, or api_key= of connect)?")
        if status == HTTPStatus.NOT_FOUND:
            return NotFoundError(what)
        if status == HTTPStatus.CONFLICT:
            return ConflictError(what)
        if status in _TRANSIENT:
            return TransientError(what, _wait(response.headers.get("retry-after", "")))
        if response.is_redirect:
            return DriverError(f"{what}, a redirection, which is not followed; is the base URL right?")
        return DriverError(what)


async def _body(response: httpx.Response, request: str) -> bytes:
    body = bytearray()
    with CancelScope() as scope:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_REPLY:
                scope.cancel()  # a mere break would leave generators of httpx open
    if len(body) > MAX_REPLY:
        raise DriverError(f"{request} was answered with more than {MAX_REPLY:,} bytes, which are not read")
    return bytes(body)


class _Error(msgspec.Struct):
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] = []


def _said(raw: bytes, secret: str) -> str:
    """Return what the service says about an error, in one short line and without the key."""
    try:
        text = "; ".join([error.message for error in read(raw, _Errors).errors])
    except FormatError:
        return ""
    if secret:
        text = text.replace(secret, "...")
    return "".join(filter(str.isprintable, " ".join(text[:1000].split())))[:300]


def _wait(retry_after: str) -> float:
    """Return the seconds that a `Retry-After` asks for, in either of its forms."""
    if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 10:
        return float(retry_after)
    try:
        moment = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return 0.0
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()

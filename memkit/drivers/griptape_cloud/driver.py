"""The driver: what the contract of drivers becomes in threads and messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import httpx

from memkit.driver import Appended, Log, Promise, Record, check_key, check_revision, clip, position_of
from memkit.drivers.griptape_cloud.api import Call, NotFoundError
from memkit.drivers.griptape_cloud.operations import Append, delete_thread, patch_head, read_head, read_messages
from memkit.drivers.griptape_cloud.threads import AliasedThreads, OvertakenError, checked_id
from memkit.drivers.griptape_cloud.wire import Thread, body_of, dump, metadata_of, read_body, stored_head
from memkit.errors import DriverError, FormatError, UnsupportedError
from memkit.finish import finish_async
from memkit.run import new_id

T = TypeVar("T")

RETRY_FOR: Final = 10.0
"""Seconds for which requests that fail for a while are repeated."""

WRITE_TIMEOUT: Final = 30.0
"""Seconds after which a write is given up, all requests that it takes and repeats together."""

_TRIES: Final = 5  # to find a thread that is deleted and made anew meanwhile


class GriptapeCloudDriver:
    """Keeps conversations as threads of Griptape Cloud, each run a message that griptape reads too.

    Borrows a client whose base URL and headers are set; `connect` owns one. The conversation of a key is the
    thread of that alias, made on the first write. With `thread_id` there is one conversation, whose key is the
    id of the thread. What fails for a while is repeated for `retry_for` seconds, in all; a write takes at most
    `write_timeout` seconds.

    Stores the bodies of `GriptapeCodec` only, one with each append. The service has neither transactions nor
    versions, so four promises are waived: see `waives`. Positions count the messages that there are: they
    shift when someone else deletes one.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        thread_id: str | None = None,
        retry_for: float = RETRY_FOR,
        write_timeout: float = WRITE_TIMEOUT,
    ) -> None:
        self.thread_id: Final = None if thread_id is None else checked_id(thread_id)
        self._client = _checked(client)
        self._threads = AliasedThreads()
        self._retry_for = retry_for
        self._write_timeout = write_timeout

    def __repr__(self) -> str:
        return f"GriptapeCloudDriver({self._client.base_url!r}, thread_id={self.thread_id!r})"

    def waives(self) -> frozenset[Promise]:
        """Return the promises that are not kept, as every call is several requests."""
        return frozenset({"batches", "one moment", "compare-and-set", "idempotence"})

    def check_body(self, body: bytes, /) -> None:
        """Refuse a body that is no message.

        Raises:
            UnsupportedError: naming the codec whose bodies are messages.
        """
        read_body(body)

    async def load(self, key: str, start: int = -200, stop: int | None = None, /) -> Log:
        """Return entries `start:stop`, then the head; all pages are read, as the service may order them anyhow."""

        async def use(call: Call, thread_id: str | None) -> Log:
            if thread_id is None:
                return Log()
            messages = await read_messages(call, thread_id)
            stored = await read_head(call, thread_id)
            low, high = clip(0, len(messages), start, stop)
            bodies = [body_of(message) for message in messages[low:high]]
            return Log(thread_id, 0, low, len(messages), bodies, stored.head, stored.revision)

        return await self._on_thread(key, use)

    async def append(
        self,
        key: str,
        records: Sequence[Record],
        /,
        *,
        since: int = 0,
        expect: int | None = None,
        epoch: str | None = None,
    ) -> Appended:
        """Store one record; entries from `since` on are read to look for its id, if there are any.

        Raises:
            UnsupportedError: several records, a body that is no message, or `expect`.
            ConflictError: also where `since` is beyond the end, since someone has rewritten the thread.
        """
        check_key(key)
        position_of(key, records, {})
        if len(records) > 1:
            raise UnsupportedError(f"{key[:80]!r}: Griptape Cloud stores messages one by one; append them so")
        if expect is not None:
            raise UnsupportedError(
                f"{key[:80]!r}: Griptape Cloud stores a message whatever the end of the thread is by then; "
                "leave expect out"
            )
        body = read_body(records[0].body, records[0].id)

        async def use(call: Call, thread_id: str | None) -> Appended:
            append = Append(call, key, records[0], body, since)
            if thread_id is not None and (found := await append.look(thread_id)) is not None:
                return found
            append.check(thread_id, epoch)

            async def write() -> Appended:
                return await append.post(thread_id or await self._threads.create(call, key))

            return await finish_async(write, time_limit=self._write_timeout)

        return await self._on_thread(key, use)

    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        """Put `head` in the place of the head of that `revision`, read just before; return the new revision.

        Raises:
            UnsupportedError: the head is no JSON object.
            ConflictError: the head has another revision by now.
        """
        check_key(key)
        nonce = new_id()
        content = dump({"metadata": metadata_of(head, nonce)})

        async def use(call: Call, thread_id: str | None) -> str:
            current = "" if thread_id is None else (await read_head(call, thread_id)).revision
            check_revision(key, revision, current)

            async def write() -> str:
                made = thread_id or await self._threads.create(call, key)
                before = current or stored_head(Thread(made)).revision
                return await patch_head(call, key, made, content, nonce=nonce, before=before)

            return await finish_async(write, time_limit=self._write_timeout)

        return await self._on_thread(key, use)

    async def delete(self, key: str, /) -> bool:
        """Delete the thread; return whether there was one."""

        async def use(call: Call, thread_id: str | None) -> bool:
            if thread_id is None:
                return False
            try:
                await finish_async(lambda: delete_thread(call, thread_id), time_limit=self._write_timeout)
            except NotFoundError:
                if self.thread_id is None:
                    raise  # maybe there is a newer one
                return False
            self._threads.forget(key)
            return True

        return await self._on_thread(key, use)

    async def _find(self, call: Call, key: str) -> str | None:
        if self.thread_id is None:
            return await self._threads.find(call, key)
        if key != self.thread_id:
            raise UnsupportedError(
                f"this driver has one conversation, whose key is {self.thread_id!r} (driver.thread_id), not "
                f"{key[:80]!r}; leave thread_id out, and GT_CLOUD_THREAD_ID unset, to have one thread for each key"
            )
        return self.thread_id

    async def _on_thread(self, key: str, use: Callable[[Call, str | None], Awaitable[T]]) -> T:
        """Use the thread of a key; look it up again if it is gone, or if another one was made meanwhile."""
        check_key(key)
        call = Call(self._client, key, self._retry_for)
        error: DriverError | None = None
        for _ in range(_TRIES):
            thread_id = await self._find(call, key)
            try:
                return await use(call, thread_id)
            except NotFoundError as gone:
                if self.thread_id is not None:
                    raise DriverError(
                        f"there is no thread {self.thread_id!r} in Griptape Cloud, and none was made; "
                        "is thread_id (or GT_CLOUD_THREAD_ID) right?"
                    ) from gone
                self._threads.forget(key)
                error = gone
            except OvertakenError as overtaken:
                error = overtaken
        raise DriverError(
            f"{key[:80]!r}: its thread is deleted and made anew all the time; repeat it later", retryable=True
        ) from error


def _checked(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """Refuse headers that cannot be sent, without their values: the client would write them into its log."""
    for name, value in client.headers.items():
        if not value.isprintable() or value != value.strip():
            raise FormatError(f"the header {name!r} of the HTTP client holds a newline or space around; remove it")
    return client

"""What one call of the driver does to one thread, request by request."""

from __future__ import annotations

from memkit.driver import Appended, Record, check_epoch, check_revision, position_of
from memkit.drivers.griptape_cloud.api import Call, NotFoundError, TransientError
from memkit.drivers.griptape_cloud.wire import (
    Body,
    Message,
    MessagePage,
    StoredHead,
    Thread,
    find,
    messages_path,
    stored_head,
    thread_path,
)
from memkit.errors import ConflictError, DriverError, FormatError


async def read_messages(call: Call, thread_id: str) -> list[Message]:
    """Return all messages of a thread in their order, which the service does not promise to keep."""
    messages = await call.get_all(messages_path(thread_id), MessagePage)
    messages.sort(key=lambda message: (message.index, message.id))
    return messages


class Append:
    """An append of one record: looked for, posted, and after a lost reply looked for again."""

    def __init__(self, call: Call, key: str, record: Record, body: Body, since: int) -> None:
        self._call = call
        self._key = key
        self._record = record
        self._body = body
        self._since = since
        self._count = 0
        self._first: float | None = None  # the lowest index

    async def look(self, thread_id: str) -> Appended | None:
        """Return where the record is stored; None if it is not."""
        page = await self._call.get(messages_path(thread_id), MessagePage, {"page_size": 1})
        self._count = page.pagination.total_count
        self._first = min((message.index for message in page.items), default=None)
        if self._count <= self._since:
            return None
        messages = await read_messages(self._call, thread_id)
        self._count = len(messages)
        self._first = messages[0].index if messages else None
        found = find(messages, self._body, self._since)
        if found is None:
            return None
        position, is_same = found
        stored = {self._record.id: (position, self._record.body if is_same else b"")}
        position_of(self._key, [self._record], stored)
        return Appended(position, self._count, thread_id)

    def check(self, thread_id: str | None, epoch: str | None) -> None:
        """Compare what the caller knows with what is there.

        Raises:
            ConflictError: the thread is another one, or shorter than it was.
        """
        check_epoch(self._key, epoch, thread_id or "")
        if self._since > self._count:
            raise ConflictError(
                f"{self._key!r} ends at {self._count}, before {self._since}: someone has rewritten its thread; "
                "read it again",
                expected=self._since,
                actual=self._count,
            )

    async def post(self, thread_id: str) -> Appended:
        """Store the record; repeat that only if it is not there."""
        while True:
            try:
                raw = await self._call.send("POST", messages_path(thread_id), self._record.body)
                return await self._place(thread_id, await self._call.read(raw, Message))
            except (TransientError, FormatError) as error:
                await self._call.pause(error)
            if (found := await self.look(thread_id)) is not None:
                return found

    async def _place(self, thread_id: str, posted: Message) -> Appended:
        if self._first is not None and posted.index - self._first == self._count:
            return Appended(self._count, self._count + 1, thread_id)
        messages = await read_messages(self._call, thread_id)
        for position, message in enumerate(messages):
            if message.id == posted.id:
                return Appended(position, len(messages), thread_id)
        raise DriverError(
            f"{self._key!r}: the service has stored {self._record.id!r}, but does not list it; repeat the append",
            retryable=True,
        )


async def read_head(call: Call, thread_id: str) -> StoredHead:
    """Return the head of a thread."""
    return stored_head(await call.get(thread_path(thread_id), Thread))


async def patch_head(call: Call, key: str, thread_id: str, content: bytes, *, nonce: str, before: str) -> str:
    """Store metadata that hold `nonce`, and return their revision; repeat that only over the revision `before`.

    Raises:
        ConflictError: someone else has stored others meanwhile.
    """
    while True:
        try:
            raw = await call.send("PATCH", thread_path(thread_id), content)
            stored = stored_head(await call.read(raw, Thread))
            if stored.nonce == nonce:
                return stored.revision
            error: DriverError | FormatError = DriverError(f"{key!r}: the service does not keep metadata")
        except (TransientError, FormatError) as failed:
            error = failed
        await call.pause(error)
        stored = await read_head(call, thread_id)
        if stored.nonce == nonce:
            return stored.revision
        check_revision(key, before, stored.revision)


async def delete_thread(call: Call, thread_id: str) -> None:
    """Delete a thread.

    Raises:
        NotFoundError: it was not there.
    """
    is_repeated = False
    while True:
        try:
            await call.send("DELETE", thread_path(thread_id))
        except TransientError as error:
            await call.pause(error)
            is_repeated = True
        except NotFoundError:
            if not is_repeated:
                raise
            return  # by the request whose reply was lost
        else:
            return

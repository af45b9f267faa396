"""Which thread is the conversation of a key: the one whose alias it is."""

from __future__ import annotations

import re
from contextlib import suppress
from hashlib import blake2b
from typing import Final

from memkit.drivers.griptape_cloud.api import Call, TransientError
from memkit.drivers.griptape_cloud.wire import (
    THREADS,
    MessagePage,
    Thread,
    ThreadPage,
    dump,
    messages_path,
    thread_path,
)
from memkit.errors import ConflictError, DriverError, FormatError

_MAX_ALIAS: Final = 200
_MAX_KNOWN: Final = 4096
_DIGESTED: Final = re.compile(r".*~[0-9a-f]{32}", re.DOTALL)
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")


class OvertakenError(DriverError):
    """Someone else has made a thread for the same key; it is to be looked up again."""


class AliasedThreads:
    """One thread for each key, found by its alias and made on the first write."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    async def find(self, call: Call, key: str) -> str | None:
        """Return the id of the oldest thread of this alias, None if there is none."""
        known = self._known.get(key)
        if known is not None:
            return known
        alias = alias_of(key)
        found = await call.get_all(THREADS, ThreadPage, {"alias": alias})
        threads = [thread for thread in found if thread.alias == alias]
        if not threads:
            return None
        oldest = min(threads, key=lambda thread: (thread.created_at, thread.id))
        return self._remember(key, checked_id(oldest.id))

    async def create(self, call: Call, key: str) -> str:
        """Make a thread of this alias, and return its id.

        Raises:
            OvertakenError: others did so at the same time, and one of them has won.
        """
        alias = alias_of(key)
        while True:
            try:
                raw = await call.send("POST", THREADS, dump({"name": alias, "alias": alias}))
                made = checked_id((await call.read(raw, Thread)).id)
                break
            except (TransientError, FormatError) as error:
                await call.pause(error)
                if await self.find(call, key) is not None:  # it was made after all, by whomever
                    raise _overtaken(key) from error
            except ConflictError as error:
                if await self.find(call, key) is not None:
                    raise _overtaken(key) from error
                raise DriverError(
                    f"{key[:80]!r}: the alias {alias!r} is taken by a thread that this API key cannot see"
                ) from error
        winner = await self.find(call, key) or self._remember(key, made)
        if winner != made:
            await _delete_if_empty(call, made)
            raise _overtaken(key)
        return made

    def forget(self, key: str) -> None:
        """Look the thread of a key up again when it is used next."""
        self._known.pop(key, None)

    def _remember(self, key: str, thread_id: str) -> str:
        if len(self._known) >= _MAX_KNOWN:
            self._known.pop(next(iter(self._known)))
        self._known[key] = thread_id
        return thread_id


def _overtaken(key: str) -> OvertakenError:
    return OvertakenError(f"{key[:80]!r}: someone else has made a thread for it", retryable=True)


async def _delete_if_empty(call: Call, thread_id: str) -> None:
    with suppress(DriverError):  # what stays is empty, and younger than the thread that is used
        page = await call.get(messages_path(thread_id), MessagePage, {"page_size": 1})
        if page.pagination.total_count == 0:
            await call.send("DELETE", thread_path(thread_id))


def alias_of(key: str) -> str:
    """Return the alias of a key: the key itself, or what is readable of it and a digest.

    No two keys have the same, also where the service ignores space around it. Nor does a key that looks like
    the alias of another one become it.
    """
    is_plain = key.isprintable() and key == key.strip() and not _DIGESTED.fullmatch(key)
    if is_plain and len(key) <= _MAX_ALIAS:
        return key
    readable = re.sub(r"[^\w.:@/-]", "_", key[:150])
    return f"{readable}~{blake2b(key.encode(), digest_size=16).hexdigest()}"


def checked_id(thread_id: str) -> str:
    """Refuse an id that would lead a request to another path.

    Raises:
        FormatError: the id cannot be that of a thread.
    """
    if not _SAFE_ID.fullmatch(thread_id):
        raise FormatError(f"{thread_id[:100]!r} is no id of a thread of Griptape Cloud")
    return thread_id

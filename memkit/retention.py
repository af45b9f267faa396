"""What leaves the store: old entries that are trimmed, and the text of runs that were taken back."""

from __future__ import annotations

import msgspec

from memkit.codec import Codec
from memkit.conversation import Head
from memkit.driver import Redact, Trim
from memkit.history import redactions
from memkit.window import Window


async def trim(window: Window, driver: Trim, keep: int, *, limit: int | None = None) -> int:
    """Drop all but the newest `keep` runs from the store, none from `limit` on; return how many entries went."""
    while len((now := window.conversation).runs) < keep and now.start > now.base:
        await window.load_older()
    now = window.conversation
    positions, _ = now.resolved()
    if len(positions) < keep:
        return 0
    before = positions[len(positions) - keep] if keep else now.end
    if limit is not None:
        before = min(before, limit)
    if before <= now.base:
        return 0
    await keep_summary(window, before)
    base = await driver.trim(now.key, before, epoch=now.epoch or None)
    window.trimmed(base)
    return base - now.base


async def trim_sometimes(window: Window, driver: Trim, retain: int, position: int, *, is_summarized: bool) -> None:
    """Keep at least `retain` runs and at most a quarter more, after an append at `position`.

    To know how many runs there are, all must be read, so only every so many entries somebody looks. Where there
    is a summariser, what it has not read is kept as well, up to twice `retain` runs in all.
    """
    slack = retain // 8
    stride = max(1, slack)
    now = window.conversation
    if now.end - now.base <= retain + slack or now.end // stride == position // stride:
        return
    while (now := window.conversation).start > now.base and len(now.runs) <= retain + slack:
        await window.load_older()
    if (count := len(now.runs)) > retain + slack:
        covered = now.head.summary.upto if now.head.summary else 0
        limit = covered if is_summarized and count <= 2 * retain else None
        await trim(window, driver, retain, limit=limit)


async def keep_summary(window: Window, before: int) -> None:
    """Move the mark up to which a summary is known to be true, if the entries after it are about to go.

    Without them nobody could tell any more whether a run that it covers was changed, and it would not be shown.
    """
    await window.read_head()
    summary = window.conversation.head.summary
    if summary is None or summary.seen >= before:
        return
    if await window.shown_summary() is None:
        return
    moved = msgspec.structs.replace(summary, seen=window.conversation.end)
    await window.commit(
        lambda head: msgspec.structs.replace(head, summary=moved) if head.summary == summary else head
    )


async def remove_text(window: Window, at: int) -> None:
    """Let the text of the run at a position be gone from the summary, by removing that if it covers the run."""
    await window.read_head()

    def without_summary(head: Head) -> Head:
        covers = head.summary is not None and at < head.summary.upto
        return msgspec.structs.replace(head, summary=None) if covers else head

    await window.commit(without_summary)


async def erase(window: Window, driver: Redact, codec: Codec, at: int, before: int) -> None:
    """Overwrite in the store what entries before a position say of the run at `at`."""
    blank = await redactions(window, at, before)
    bodies = {position: codec.encode(entry) for position, entry in blank.items()}
    await driver.redact(window.conversation.key, bodies, epoch=window.conversation.epoch)

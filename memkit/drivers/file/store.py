"""What happens to a conversation's file: reading without a lock, writing under one. All of it blocks.

Whoever writes holds `flock` on the file and appends one line with one `pwrite`; readers look at what the last
complete line says and never wait. What cannot be done by a line at the end (trim, redact) is done in a new
file that takes the old one's name. A line torn by a crash is moved to `<name>.torn` by the next writer.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from memkit.driver import (
    MAX_LOAD,
    Appended,
    Log,
    Record,
    check_end,
    check_epoch,
    check_positions,
    check_revision,
    clip,
    new_epoch,
    position_of,
)
from memkit.drivers.file.layout import (
    Header,
    append_line,
    blanked,
    bodies_of,
    head_line,
    header_line,
    is_head,
    position_at,
    records_of,
    rewritten,
)
from memkit.drivers.file.locking import close_locked, lock, open_locked
from memkit.drivers.file.reading import (
    BLOCK,
    Backwards,
    OvertakenError,
    Snapshot,
    line_at,
    offset_of,
    read_header,
    take_snapshot,
)
from memkit.errors import FormatError

T = TypeVar("T")

_TRIES: Final = 8
_COMMITS_KEPT: Final = 256  # after so many commits the file is written anew without what is left of old heads
_LONG_BATCH: Final = 64  # entries in one line, beyond which loads of a few of them would read too much
_log: Final = logging.getLogger(__name__)


class ConversationFile:
    """The file of one conversation: a path, and what was last seen behind it."""

    def __init__(self, path: Path, key: str, *, durable: bool) -> None:
        self._path = path
        self._name = str(path)
        self._key = key
        self._durable = durable
        self._seen: Snapshot | None = None

    # --- reading ---

    def load(self, start: int, stop: int | None) -> Log:
        """Return head and entries of one moment, without a lock unless writers are always quicker."""
        for left in reversed(range(_TRIES)):
            try:
                fd = os.open(self._name, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                break
            try:
                if left == 0:
                    lock(fd, self._name)
                return self._read(fd, start, stop)
            except FormatError:  # maybe of a line that a writer has just rolled back
                if left == 0:
                    raise
            except OvertakenError as error:
                if left == 0:
                    raise self._damaged("its newest head is blanked out") from error
            finally:
                (os.close if left else close_locked)(fd)
        return Log()

    def _read(self, fd: int, start: int, stop: int | None) -> Log:
        now, tail = take_snapshot(fd, os.fstat(fd).st_size, self._name, BLOCK)
        if now is None or self._is_over(now):
            return Log()
        base = now.header.base
        low, high = clip(base, now.end, start, stop)
        bodies: list[bytes] = []
        if low < high:
            size = now.size
            if high < now.end:
                size = offset_of(fd, now, high)
                tail = Backwards(fd, len(now.raw_header), size)
            try:
                first, found = bodies_of(*tail.lines(low, size, MAX_LOAD))
            except (ValueError, KeyError, msgspec.MsgspecError) as error:
                raise self._damaged(str(error)) from error
            if first + len(found) < high:
                raise self._damaged(f"entry {first + len(found)} is missing")
            low = max(low, first)
            bodies = found[low - first : high - first]
        return Log(now.header.epoch, base, low, now.end, bodies, now.head, now.revision)

    # --- writing, one line at the end ---

    def append(self, records: Sequence[Record], since: int, expect: int | None, epoch: str | None) -> Appended:
        """Store all records as one line, unless they are stored already."""

        def append(fd: int, now: Snapshot | None) -> Appended:
            end, actual = (now.end, now.header.epoch) if now else (0, "")
            stored = self._stored_since(fd, now, since) if now and since < end else {}
            position = position_of(self._key, records, stored)
            if position is not None:
                return Appended(position, end, actual)
            check_epoch(self._key, epoch, actual)
            check_end(self._key, expect, end)
            if now is None:
                batches = range(0, len(records), _LONG_BATCH)
                lines = [append_line(at, -1, records[at : at + _LONG_BATCH]) for at in batches]
                header = self._create(fd, lambda _: lines)
                return Appended(0, len(records), header.epoch)
            line = append_line(end, now.head_at, records)
            self._put(fd, now.size, line)
            self._seen = msgspec.structs.replace(now, size=now.size + len(line), end=end + len(records))
            return Appended(end, end + len(records), actual)

        return self._locked(append)

    def commit(self, head: bytes, revision: str) -> str:
        """Store a head as one line, if the head of that revision is still the current one."""

        def commit(fd: int, now: Snapshot | None) -> str:
            check_revision(self._key, revision, now.revision if now else "")
            if now is None:
                header = self._create(fd, lambda epoch: [head_line(0, f"{epoch}.1", None, head)])
                return f"{header.epoch}.1"
            epoch, _, number = now.revision.rpartition(".")
            new = f"{epoch}.{int(number) + 1}"
            if int(number) % _COMMITS_KEPT == 0 and now.head_at >= 0:
                after = msgspec.structs.replace(now, head=head, revision=new)
                self._rewrite(fd, after, now.header.base, {})
                return new
            return self._put_head(fd, now, new, now.expires, head)

        return self._locked(commit)

    def expire(self, moment: float | None) -> bool:
        """Store when the conversation expires, with the head as it is."""

        def expire(fd: int, now: Snapshot | None) -> bool:
            if now is None:
                return False
            self._put_head(fd, now, now.revision, moment, now.head)
            return True

        return self._locked(expire, create=False)

    def delete(self) -> bool:
        """Remove the file, and what was set aside from it; also one that is damaged."""
        fd, size = open_locked(self._path, create=False)
        if fd < 0:
            return False
        try:
            try:
                now = self._look(fd, size)
                was_there = now is not None and not self._is_over(now)
            except (FormatError, OvertakenError):
                header = read_header(fd, self._name)
                if header is None or header[1].key != self._key:
                    raise
                was_there = True
            self._path.unlink()
            self._forget_copies()
            self._sync_folder()
            return was_there
        finally:
            self._seen = None
            close_locked(fd)

    def _create(self, fd: int, first_lines: Callable[[str], Sequence[bytes]]) -> Header:
        """Begin a conversation with lines, in an empty file or in the place of one that has expired."""
        header = Header(1, self._key, new_epoch(), 0, _new_file_id())
        lines = header_line(header), *first_lines(header.epoch)
        if len(lines) > 2 or os.fstat(fd).st_size:
            self._replace_file(fd, lines)  # several lines are all or nothing only in a new file
        else:
            self._put(fd, 0, b"".join(lines))
            self._sync_folder()
        return header

    def _put_head(self, fd: int, now: Snapshot, revision: str, expires: float | None, head: bytes | None) -> str:
        line = head_line(now.end, revision, expires, head)
        self._put(fd, now.size, line)
        if now.head_at >= 0:  # what the old head said must not stay in the file, once the disk has the new one
            os.fdatasync(fd)
            os.pwrite(fd, blanked(line_at(fd, now.head_at, now.size)), now.head_at)
        self._seen = msgspec.structs.replace(
            now, size=now.size + len(line), head_at=now.size, head=head, revision=revision, expires=expires
        )
        return revision

    def _put(self, fd: int, at: int, data: bytes) -> None:
        """Write at the end of the file, all or nothing."""
        try:
            written = os.pwrite(fd, data, at)
            while written < len(data):
                written += os.pwrite(fd, data[written:], at + written)
            if self._durable:
                os.fdatasync(fd)
        except BaseException:
            os.ftruncate(fd, at)
            raise

    # --- writing a new file ---

    def trim(self, before: int, epoch: str | None) -> int:
        """Drop the entries before this position."""

        def trim(fd: int, now: Snapshot | None) -> int:
            check_epoch(self._key, epoch, now.header.epoch if now else "")
            if now is None:
                return 0
            base = min(max(before, now.header.base), now.end)
            if base > now.header.base:
                self._rewrite(fd, now, base, {})
            return base

        return self._locked(trim, create=False)

    def redact(self, bodies: Mapping[int, bytes], epoch: str) -> None:
        """Put other bodies in the place of those at these positions."""

        def redact(fd: int, now: Snapshot | None) -> None:
            check_epoch(self._key, epoch, now.header.epoch if now else "")
            base, end = (now.header.base, now.end) if now else (0, 0)
            check_positions(self._key, bodies, base, end)
            if now is None:
                return
            self._rewrite(fd, now, now.header.base, bodies)
            self._forget_copies()

        return self._locked(redact, create=False)

    def _rewrite(self, fd: int, now: Snapshot, base: int, replaced: Mapping[int, bytes]) -> None:
        start = offset_of(fd, now, base)
        before = Backwards(fd, len(now.raw_header), start, 4096).last()
        if before is not None and not is_head(before[1]):
            start = before[0]  # an append of several entries may lie on both sides of the base
        header = msgspec.structs.replace(now.header, base=base, file=_new_file_id())
        kept = rewritten(_lines(fd, start, now.size), base, replaced)
        head = () if now.head_at < 0 else (head_line(now.end, now.revision, now.expires, now.head),)
        self._replace_file(fd, (header_line(header), *kept, *head))

    def _replace_file(self, fd: int, lines: Sequence[bytes]) -> None:
        path = self._new_path  # one name, which a crash may leave and the next writer takes over
        try:
            with path.open("wb") as file:
                os.fchmod(file.fileno(), os.fstat(fd).st_mode & 0o777)
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            path.replace(self._path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        self._seen = None
        _sync(self._path.parent)

    # --- the file under its lock ---

    def _locked(self, do: Callable[[int, Snapshot | None], T], *, create: bool = True) -> T:
        """Do something with the locked file, -1 if there is none, and its conversation, None if it has none."""
        fd, size = open_locked(self._path, create=create)
        if fd < 0:
            return do(fd, None)
        try:
            return do(fd, self._live(fd, size))
        except BaseException as error:
            raise self._cleaned_up(fd, error) from error.__cause__
        finally:
            close_locked(fd)

    def _live(self, fd: int, size: int) -> Snapshot | None:
        now = self._look(fd, size)
        return None if now is None or self._is_over(now) else now

    def _cleaned_up(self, fd: int, error: BaseException) -> BaseException:
        """Trust nothing that was seen, leave no empty file that was made for nothing, and return what to raise."""
        self._seen = None
        if isinstance(error, OvertakenError):
            return self._damaged("its newest head is blanked out")
        if os.fstat(fd).st_size == 0:
            self._path.unlink(missing_ok=True)
        return error

    def _look(self, fd: int, size: int) -> Snapshot | None:
        """Return what the file holds, None if nothing was ever stored; set aside what a crash has torn."""
        now = self._seen
        if now is None or now.size != size or os.pread(fd, len(now.raw_header), 0) != now.raw_header:
            now, _ = take_snapshot(fd, size, self._name, 4096)
            sound = now.size if now else 0
            if sound < size:
                self._set_aside(fd, sound, size)
        return now

    def _is_over(self, now: Snapshot) -> bool:
        if now.header.key != self._key:
            raise FormatError(
                f"{self._path} is the file of {now.header.key[:80]!r}, not of {self._key[:80]!r}; was it renamed?"
            )
        return now.expires is not None and now.expires <= time.time()

    def _set_aside(self, fd: int, sound: int, size: int) -> None:
        torn = os.pread(fd, size - sound, sound)
        with self._torn_path.open("ab") as file:
            file.write(torn + b"\n")
        os.ftruncate(fd, sound)
        _log.warning(
            "%s ended in %d bytes that a crash had left unfinished; they were moved to %s",
            self._path, len(torn), self._torn_path.name,
        )  # fmt: skip

    def _stored_since(self, fd: int, now: Snapshot, since: int) -> dict[str, tuple[int, bytes]]:
        low = max(since, now.header.base)
        stored: dict[str, tuple[int, bytes]] = {}
        if low < now.end:
            data, start, stop = Backwards(fd, len(now.raw_header), now.size).lines(low, now.size, now.size)
            for line in data[start:stop].split(b"\n")[:-1]:
                if not is_head(line):
                    for position, record in enumerate(records_of(line), position_at(line)):
                        stored[record.id] = position, record.body
        return {record_id: item for record_id, item in stored.items() if item[0] >= low}

    def _sync_folder(self) -> None:
        if self._durable:
            _sync(self._path.parent)

    def _forget_copies(self) -> None:
        self._torn_path.unlink(missing_ok=True)
        self._new_path.unlink(missing_ok=True)

    @property
    def _new_path(self) -> Path:
        return self._path.with_name(f"{self._path.name}.tmp")

    @property
    def _torn_path(self) -> Path:
        return self._path.with_name(f"{self._path.name}.torn")

    def _damaged(self, what: str) -> FormatError:
        return FormatError(f"{self._path} is damaged: {what}; restore it from a backup, nothing was changed")


def live_key(path: Path) -> str | None:
    """Return the key of a file, if there is a conversation in it that has not expired."""
    with suppress(FileNotFoundError, FormatError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = read_header(fd, str(path))
        finally:
            os.close(fd)
        if found is not None:
            key = found[1].key
            return key if ConversationFile(path, key, durable=False).load(0, 0).epoch else None
    return None


def _lines(fd: int, start: int, stop: int) -> Iterator[bytes]:
    rest = b""
    while start < stop:
        block = os.pread(fd, min(16 * BLOCK, stop - start), start)
        start += len(block)
        *lines, rest = (rest + block).split(b"\n")
        yield from lines


def _new_file_id() -> str:
    return secrets.token_hex(4)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

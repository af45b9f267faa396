"""Finding lines in a conversation's file, with nothing but `pread`: from the end, or by bisection."""

from __future__ import annotations

import os
from typing import Final

import msgspec

from memkit.drivers.file.layout import START, Header, body_of, count_of, is_head, number_at, position_at
from memkit.errors import FormatError

BLOCK: Final = 32 * 1024
_HEADER_BLOCK: Final = 512
_HEADER_START: Final = b'{"memkit":'
_KINDS: Final = (b'{"p":', b'{"n":', b'{"x":')


class Snapshot(msgspec.Struct, frozen=True):
    """What the last complete line of a file tells: the state of the conversation at one moment."""

    raw_header: bytes
    header: Header
    size: int  # of the header and all complete lines
    end: int
    head_at: int = -1  # offset of the newest head line, -1 if there is none
    head: bytes | None = None
    revision: str = ""
    expires: float | None = None


class OvertakenError(Exception):
    """A writer was quicker than this reader. Reading again helps."""


class _HeadLine(msgspec.Struct, frozen=True):
    v: str
    x: float | None
    head: msgspec.Raw = msgspec.Raw(b"null")
    dead: msgspec.Raw = msgspec.Raw(b"null")


class Backwards:
    """The lines of a file before the offset `stop`, read from the end, as far as they are asked for."""

    def __init__(self, fd: int, floor: int, stop: int, block: int = BLOCK) -> None:
        self._fd = fd
        self._floor = floor  # where the first line begins
        self._at = stop
        self._data = b""
        self._block = block

    def lines(self, low: int, stop: int, limit: int) -> tuple[bytes, int, int]:
        """Return `data, start, stop`: the lines `data[start:stop]` that lie before the offset `stop` of the file.

        They begin with an append at position `low` or earlier.

        If they have more than about `limit` bytes, fewer, but at least one append.
        """
        while self._at > self._floor:
            start = self._first_append(stop)
            if start >= 0:
                missing = position_at(self._data[start : start + START]) - low
                if missing <= 0 or len(self._data) > limit:
                    break
                # All lines are about as long as those that are here.
                here = self._data.count(b"\n")
                self._block = min(limit, max(self._block, (missing + missing // 8 + 4) * len(self._data) // here))
            self._more()
        else:
            start = max(0, self._first_append(stop))
        return self._data, start, stop - self._at

    def last(self) -> tuple[int, bytes] | None:
        """Return offset and bytes of the last line that is complete and sound; None if there is none."""
        behind = 0  # bytes after the line that is looked at
        while True:
            stop = self._data.rfind(b"\n", 0, len(self._data) - behind) + 1
            start = self._data.rfind(b"\n", 0, max(0, stop - 1)) + 1
            if start == 0 and self._at > self._floor:
                self._more()
                continue
            if stop == 0:
                return None
            line = self._data[start : stop - 1]
            if line.startswith(_KINDS) and line.endswith(b"}") and b"\0" not in line:
                return self._at + start, line
            behind = len(self._data) - start

    def _first_append(self, stop: int) -> int:
        """Return where in the data the first whole append begins, -1 if none does."""
        start = 0 if self._at == self._floor else self._data.find(b"\n") + 1 or len(self._data)
        while start < stop - self._at:
            if not is_head(self._data[start : start + START]):
                return start
            start = self._data.find(b"\n", start) + 1
        return -1

    def _more(self) -> None:
        size = min(self._block, self._at - self._floor)
        self._at -= size
        self._block *= 2
        # What is here is read again: to join megabytes holds up every other thread, to read them does not.
        data = os.pread(self._fd, size + len(self._data), self._at)
        if len(data) < size + len(self._data):
            raise OvertakenError
        # Where a head was blanked out meanwhile, what was read first is of the moment that was begun with.
        self._data = data if data.endswith(self._data) else data[:size] + self._data


def read_header(fd: int, where: str) -> tuple[bytes, Header] | None:
    """Return the first line of a file; None if its creation was never finished.

    Raises:
        FormatError: the file is not memkit's, or of a version that this one cannot read.
    """
    data = os.pread(fd, _HEADER_BLOCK, 0)
    if b"\n" not in data:
        data = os.pread(fd, BLOCK, 0)
    begun = data[: len(_HEADER_START)]
    if b"\n" not in data and len(data) < BLOCK and (_HEADER_START.startswith(begun) or not data.strip(b"\0")):
        return None
    if begun != _HEADER_START or b"\n" not in data:
        raise FormatError(f"{where} is not a file of memkit (it begins {data[:40]!r}); move it away")
    raw = data[: data.index(b"\n") + 1]
    try:
        version = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])["memkit"]
        if bytes(version) != b"1":
            raise FormatError(f"{where} has version {bytes(version).decode()} of the layout; upgrade memkit")
        return raw, msgspec.json.decode(raw, type=Header)
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError) as error:
        raise FormatError(f"the first line of {where} is damaged: {error}; restore it from a backup") from error


def take_snapshot(fd: int, size: int, where: str, block: int) -> tuple[Snapshot | None, Backwards]:
    """Return what the last complete line tells, None if nothing was ever stored, and the tail that was read.

    Raises:
        FormatError: the file is not memkit's, or damaged.
        OvertakenError: the head was replaced while this was looking for it.
    """
    first = read_header(fd, where)
    if first is None:
        return None, Backwards(fd, 0, 0)
    raw, header = first
    tail = Backwards(fd, len(raw), size, block)
    last = tail.last()
    if last is None:
        return Snapshot(raw, header, len(raw), header.base, revision=f"{header.epoch}.0"), tail
    offset, line = last
    size = offset + len(line) + 1
    try:
        if is_head(line):
            end, head_at = position_at(line), offset
        else:
            end, head_at = position_at(line) + count_of(line), number_at(line, b'"h":')
        if head_at < 0:
            return Snapshot(raw, header, size, end, revision=f"{header.epoch}.0"), tail
        found = msgspec.json.decode(line_at(fd, head_at, size), type=_HeadLine)
    except (ValueError, msgspec.MsgspecError) as error:
        raise FormatError(f"{where} is damaged near byte {offset}: {error}; restore it from a backup") from error
    if bytes(found.dead) != b"null":
        raise OvertakenError
    raw_head = bytes(found.head)
    head = None if raw_head == b"null" else body_of(raw_head)
    return Snapshot(raw, header, size, end, head_at, head, found.v, found.x), tail


def line_at(fd: int, offset: int, size: int) -> bytes:
    """Return the line that begins at `offset`, with its newline."""
    return os.pread(fd, _line_after(fd, offset, size) - offset, offset)


def offset_of(fd: int, snapshot: Snapshot, position: int) -> int:
    """Return the offset of the first line whose position is not before `position`, by bisection."""
    low, high = len(snapshot.raw_header), snapshot.size
    while low < high:
        middle = (low + high) // 2
        start = low if middle == low else _line_after(fd, middle - 1, snapshot.size)
        if start >= high or position_at(os.pread(fd, START, start)) >= position:
            high = middle  # the line at `start`, if it is the one, is reached again as the one after `low`
        else:
            low = _line_after(fd, start, snapshot.size)
    return low


def _line_after(fd: int, at: int, size: int) -> int:
    """Return the offset behind the first newline at or after `at`."""
    while at < size:
        block = os.pread(fd, 4096, at)
        newline = block.find(b"\n")
        if newline >= 0:
            return at + newline + 1
        at += 4096
    return size

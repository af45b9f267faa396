"""The lines of a conversation's file, and how to find them. Pure but for `pread`.

A file is one header and one line for each append and each commit::

    {"memkit":1,"key":"...","epoch":"...","base":0,"file":"..."}
    {"p":120,"h":8842,"id":"...","body":{...}}                      an append of one entry
    {"n":2,"p":121,"h":8842,"r":[["id",{...}],["id","<base64>"]]}   an append of several
    {"x":null,"p":123,"v":"<revision>","head":{...}}                a commit; x = when it all expires

`p` is the position of the first entry of a line, or the end of the log for a head; `h` is the byte offset of
the head that was the newest when the line was written, -1 for none. So the last complete line tells all: the
end of the log and where its head is. Lines only ever come at the end, and every line carries its position,
so any position is found by bisection. The first key tells what kind of line it is. A lone body is cut out of its
line, not parsed; one that cannot be, or is no JSON in an append of several, is in base64, in a line of the second
kind.
A rewritten file gets a new `file` id: two files with equal headers are one and the same.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from memkit.driver import Record
from memkit.errors import FormatError

BLOCK: Final = 32 * 1024
START: Final = 64
"""So many bytes of a line hold its position."""

_HEADER_BLOCK: Final = 512
_BODY_MARK: Final = b'","body":'
_KINDS: Final = (b'{"p":', b'{"n":', b'{"x":')
_HEADER_START: Final = b'{"memkit":'


class Header(msgspec.Struct, frozen=True):
    """The first line of a file: whose log it is, and how far it was trimmed."""

    memkit: int
    key: str
    epoch: str
    base: int
    file: str


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


def header_line(header: Header) -> bytes:
    """Return the first line of a file."""
    return msgspec.json.encode(header) + b"\n"


def append_line(position: int, head_at: int, records: Sequence[Record]) -> bytes:
    """Return the line of an append."""
    if len(records) == 1 and _fits_a_line(records[0].body):
        record_id, body = msgspec.json.encode(records[0].id), records[0].body
        return b'{"p":%d,"h":%d,"id":%b,"body":%b}\n' % (position, head_at, record_id, body)
    items = b",".join(b"[%b,%b]" % (msgspec.json.encode(record.id), _value(record.body)) for record in records)
    return b'{"n":%d,"p":%d,"h":%d,"r":[%b]}\n' % (len(records), position, head_at, items)


def head_line(position: int, revision: str, expires: float | None, head: bytes | None) -> bytes:
    """Return the line of a commit."""
    value = b"null" if head is None else _value(head)
    moment = msgspec.json.encode(expires)
    return b'{"x":%b,"p":%d,"v":%b,"head":%b}\n' % (moment, position, msgspec.json.encode(revision), value)


def blanked(line: bytes) -> bytes:
    """Return a head line without its head, as long as it was: marked dead, so that no reader takes it."""
    start = line.index(b'"head":')
    value_at = start + len(b'"head":')
    return line[:start] + b'"dead":' + b"0".ljust(len(line) - value_at - 2) + b"}\n"


def body_of(value: bytes) -> bytes:
    """Return stored bytes: JSON as it stands, anything else out of its base64."""
    return base64.b64decode(value) if value.startswith(b'"') else value


def position_at(line: bytes) -> int:
    """Return the position that a line begins with; its first `START` bytes are enough."""
    return _number(line, b'"p":')


def is_head(line: bytes) -> bool:
    """Tell a head from an append."""
    return line.startswith(b'{"x":')


def count_of(line: bytes) -> int:
    """Return how many entries an append has."""
    return _number(line, b'"n":') if line.startswith(b'{"n":') else 1


def records_of(line: bytes) -> list[Record]:
    """Return ids and bodies of an append."""
    if line.startswith(b'{"p":'):
        # All quotes inside an id are escaped, so the first of these marks ends it.
        start, stop = line.index(b'"id":') + 5, line.index(_BODY_MARK) + 1
        return [Record(msgspec.json.decode(line[start:stop], type=str), line[stop + 8 : -1])]
    items = msgspec.json.decode(line, type=dict[str, msgspec.Raw])["r"]
    pairs = msgspec.json.decode(items, type=list[tuple[str, msgspec.Raw]])
    return [Record(record_id, body_of(bytes(value))) for record_id, value in pairs]


def bodies_of(data: bytes, start: int, stop: int) -> tuple[int, list[bytes]]:
    """Return the bodies in the whole lines `data[start:stop]`, and the position of the first, an append.

    Raises:
        ValueError: a line is damaged, or one is missing between others.
    """
    first = position_at(data[start : start + START])
    bodies: list[bytes] = []
    at = last = start
    while at < stop and data.startswith(b'{"p":', at):
        # An append of one entry, as nearly always: its body is cut out, not parsed.
        end = data.index(b"\n", at)
        bodies.append(data[data.index(_BODY_MARK, at) + 9 : end - 1])
        last, at = at, end + 1
    if at == stop and position_at(data[last : last + START]) == first + len(bodies) - 1:
        return first, bodies
    return first, _bodies_one_by_one(data[start:stop], first)


def _bodies_one_by_one(data: bytes, first: int) -> list[bytes]:
    bodies: list[bytes] = []
    for line in data.split(b"\n")[:-1]:
        if not is_head(line):
            if position_at(line) != first + len(bodies):
                raise ValueError(f"entry {position_at(line)} follows entry {first + len(bodies) - 1}")
            bodies += [record.body for record in records_of(line)]
    return bodies


def _number(line: bytes, mark: bytes) -> int:
    start = line.index(mark) + len(mark)
    return int(line[start : line.index(b",", start)])


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
                self._block = min(limit, (missing + missing // 8 + 4) * len(self._data) // here)
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
        self._data = os.pread(self._fd, size, self._at) + self._data


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
            end, head_at = position_at(line) + count_of(line), _number(line, b'"h":')
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


def rewritten(lines: Iterator[bytes], base: int, replaced: Mapping[int, bytes]) -> Iterator[bytes]:
    """Yield append lines without what lies before `base` and with other bodies; heads are left out."""
    for line in lines:
        if is_head(line):
            continue
        first = position_at(line)
        positions = range(first, first + count_of(line))
        if positions.stop <= base:
            continue
        if first >= base and replaced.keys().isdisjoint(positions):
            yield line + b"\n"
            continue
        records = [
            Record(record.id, replaced.get(position, record.body))
            for position, record in zip(positions, records_of(line), strict=True)
            if position >= base
        ]
        yield append_line(max(first, base), -1, records)


def _value(body: bytes) -> bytes:
    return body if _is_plain(body) else b'"%b"' % base64.b64encode(body)


def _fits_a_line(body: bytes) -> bool:
    """Tell whether a body can be cut out of a line as it stands, whatever it is."""
    return body.startswith(b"{") and body.endswith(b"}") and b"\n" not in body and b"\0" not in body


def _is_plain(body: bytes) -> bool:
    """Tell whether a body is one JSON object, in UTF-8 and on one line."""
    if not _fits_a_line(body):
        return False
    try:
        body.decode()
        msgspec.json.decode(body, type=msgspec.Raw)
    except (ValueError, RecursionError):
        return False
    return True

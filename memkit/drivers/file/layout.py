"""The lines of a conversation's file. Pure.

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
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from memkit.driver import Record

START: Final = 64
"""So many bytes of a line hold its position."""

_BODY_MARK: Final = b'","body":'


class Header(msgspec.Struct, frozen=True):
    """The first line of a file: whose log it is, and how far it was trimmed."""

    memkit: int
    key: str
    epoch: str
    base: int
    file: str


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
    return number_at(line, b'"p":')


def is_head(line: bytes) -> bool:
    """Tell a head from an append."""
    return line.startswith(b'{"x":')


def count_of(line: bytes) -> int:
    """Return how many entries an append has."""
    return number_at(line, b'"n":') if line.startswith(b'{"n":') else 1


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


def number_at(line: bytes, mark: bytes) -> int:
    """Return the number that stands between `mark` and the next comma."""
    start = line.index(mark) + len(mark)
    return int(line[start : line.index(b",", start)])


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

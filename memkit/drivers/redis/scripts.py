"""What is stored under a key, and the Lua scripts that read and change it: one script for each operation.

A conversation is one hash, `{prefix}{key}`: one slot of a cluster, one time to live, evicted and deleted whole.

    v              the version of this layout
    e, b, n        epoch, base, end
    r, h           revision and head, once there was a commit; the first revision is the epoch
    x              there if `expire` was called, after which no write sets the time to live
    f              from which position on a trim has yet to delete what lies before the base
    17             the record at position 17: the length of its id in bytes, ":", the id, the body
    i<id>          the position of the record of that id

So every id that is stored is known. Positions are doubles in Lua, exact up to 2**53. Each script checks everything
before it writes, and its first write is the one that a server out of memory refuses, so that it writes all or
nothing. Only commands of Redis 6.2 are used. A reply begins with the name of a refusal, or with a number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from typing import Final

from memkit.driver import MAX_LOAD

VERSION: Final = 1

MAX_ENTRIES: Final = 5_000
"""How many records a load returns at most: the server does nothing else meanwhile."""

SWEEP: Final = 250
"""How many records a trim deletes at a time, for the same reason."""

_NUMBERS: Final = {"VERSION": VERSION, "MAX_LOAD": MAX_LOAD, "MAX_ENTRIES": MAX_ENTRIES, "SWEEP": SWEEP}

_PRELUDE: Final = """
local key, args = KEYS[1], ARGV
local function digits(number) return string.format('%.0f', number) end
local function number(digits) return tonumber(digits or '0') end

-- Lua takes at most 8000 arguments.
local function get(fields)
  if #fields <= 4000 then return redis.call('HMGET', key, unpack(fields)) end
  local values = {}
  for from = 1, #fields, 4000 do
    local part = redis.call('HMGET', key, unpack(fields, from, math.min(from + 3999, #fields)))
    for i = 1, #part do values[from + i - 1] = part[i] end
  end
  return values
end

local function set(pairs)
  for from = 1, #pairs, 4000 do
    redis.call('HSET', key, unpack(pairs, from, math.min(from + 3999, #pairs)))
  end
end

-- What cannot be understood is never overwritten.
local function strange(version, epoch)
  if version == 'VERSION' and epoch then return nil end
  if version and version ~= 'VERSION' then return {'newer', version} end
  if redis.call('EXISTS', key) == 1 then return {'foreign'} end
  return nil
end

local function prolong(ttl)
  if ttl ~= '' and redis.call('HEXISTS', key, 'x') == 0 then redis.call('PEXPIRE', key, ttl) end
end

-- A write that changes nothing: or WAIT, which waits for what this connection has written, would not wait for what
-- was written before over another.
local function touch(field, value)
  if value then redis.pcall('HSET', key, field, value) end
end

local function id_end(record)
  local colon = string.find(record, ':', 1, true)
  return colon + tonumber(string.sub(record, 1, colon - 1)), colon
end
"""

# One record of a new id: what nearly every append is. It needs no tables and none of the functions.
_APPEND_ONE: Final = """
if #ARGV == 6 then
  local key, fresh, expect, epoch, ttl, id = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], 'i' .. ARGV[5]
  local values = redis.call('HMGET', key, 'v', 'e', 'n', id)
  local actual, stop = values[2], values[3]
  local is_new = not values[1] and not actual and redis.call('EXISTS', key) == 0
  if is_new then actual, stop = '', '0' end
  if (is_new or values[1] == 'VERSION') and actual and stop and not values[4]
      and (expect == '' or expect == stop) and (epoch == '' or epoch == '=' .. actual) then
    local position = tonumber(stop)
    local after = string.format('%.0f', position + 1)
    if is_new then
      actual = fresh
      redis.call('HSET', key, 'v', 'VERSION', 'e', fresh, stop, ARGV[6], id, stop, 'n', after)
    else
      redis.call('HSET', key, stop, ARGV[6], id, stop, 'n', after)
    end
    if ttl ~= '' and redis.call('HEXISTS', key, 'x') == 0 then redis.call('PEXPIRE', key, ttl) end
    return {position, position + 1, actual}
  end
end
"""

_APPEND: Final = """
local fresh, expect, epoch, ttl = args[1], args[2], args[3], args[4]
local fields = {'v', 'e', 'b', 'n'}
for i = 5, #args, 2 do fields[#fields + 1] = 'i' .. args[i] end
local values = get(fields)
local refused = strange(values[1], values[2])
if refused then return refused end
local actual, base, stop = values[2] or '', number(values[3]), number(values[4])

-- What is known: pairs of a position and whether the record there is the same. Nothing else is checked then.
local known, some = {}, false
for i = 5, #fields do
  local position, same = number(values[i] or '-1'), 0
  if position < base then position = -1 else
    some = true
    if redis.call('HGET', key, values[i]) == args[2 * i - 4] then same = 1 end
  end
  known[#known + 1], known[#known + 2] = position, same
end
if some then
  touch('n', values[4])
  return {'known', stop, actual, known}
end
if epoch ~= '' and epoch ~= '=' .. actual then return {'epoch', actual} end
if expect ~= '' and tonumber(expect) ~= stop then return {'end', stop} end

local pairs, position = {}, stop
for i = 5, #args, 2 do
  local at = digits(position)
  pairs[#pairs + 1], pairs[#pairs + 2], pairs[#pairs + 3], pairs[#pairs + 4] = at, args[i + 1], 'i' .. args[i], at
  position = position + 1
end
pairs[#pairs + 1], pairs[#pairs + 2] = 'n', digits(position)
if actual == '' then
  actual = fresh
  pairs[#pairs + 1], pairs[#pairs + 2], pairs[#pairs + 3], pairs[#pairs + 4] = 'v', 'VERSION', 'e', fresh
end
set(pairs)
prolong(ttl)
return {stop, position, actual}
"""

_LOAD: Final = """
local from, upto, ttl = tonumber(args[1]), tonumber(args[2]), args[3]
local values = redis.call('HMGET', key, 'v', 'e', 'b', 'n', 'r', 'h')
local refused = strange(values[1], values[2])
if refused then return refused end
if not values[2] then return {} end
local base, stop = number(values[3]), number(values[4])
if from < 0 then from = from + stop end
if not upto then upto = stop elseif upto < 0 then upto = upto + stop end
local high = math.min(stop, upto)
local low = math.min(math.max(base, from), stop)
high = math.max(low, high)

-- Backwards, in slices that grow only while records turn out to be short.
local records, count, size, longest, at, slice = {}, 0, 0, 1, high, 2
while at > low and count < MAX_ENTRIES and size < MAX_LOAD do
  local first, fields = math.max(low, at - slice, high - MAX_ENTRIES), {}
  for position = first, at - 1 do fields[position - first + 1] = position end
  local part = redis.call('HMGET', key, unpack(fields))
  for i = at - first, 1, -1 do
    local record = part[i]
    if not record then return {'damaged', first + i - 1} end
    local length = #record
    size = size + length
    if length > longest then longest = length end
    if size > MAX_LOAD and count > 0 then break end
    count = count + 1
    records[count] = record
  end
  at, slice = first, math.min(slice * 4, 512, math.max(1, math.floor((MAX_LOAD - size) / longest)))
end
prolong(ttl)
return {base, stop, high - count, values[2], values[5] or values[2], values[6], records}
"""

_COMMIT: Final = """
local fresh, ttl, expected, revision, head = args[1], args[2], args[3], args[4], args[5]
local values = redis.call('HMGET', key, 'v', 'e', 'r')
local refused = strange(values[1], values[2])
if refused then return refused end
local current = values[3] or values[2] or ''
if current == revision then  -- this very commit, whose answer was lost
  touch('r', revision)
  return {0}
end
if current ~= expected then return {'revision', current} end
if values[2] then redis.call('HSET', key, 'r', revision, 'h', head)
else redis.call('HSET', key, 'v', 'VERSION', 'e', fresh, 'r', revision, 'h', head) end
prolong(ttl)
return {0}
"""

_DELETE: Final = """
local values = redis.call('HMGET', key, 'v', 'e')
local refused = strange(values[1], values[2])
if refused then return refused end
if values[2] == args[1] then redis.call('UNLINK', key)
elseif values[2] then touch('e', values[2])
else  -- deleted before, maybe by this very call, whose answer was lost
  touch('v', 'VERSION')
  redis.call('UNLINK', key)
end
return {0}
"""

_TRIM: Final = """
local before, epoch = tonumber(args[1]), args[2]
local values = redis.call('HMGET', key, 'v', 'e', 'b', 'n', 'f')
local refused = strange(values[1], values[2])
if refused then return refused end
local actual, base = values[2] or '', number(values[3])
if epoch ~= '' and epoch ~= '=' .. actual then return {'epoch', actual} end
if actual == '' then return {0, 0, ''} end
local swept = number(values[5] or values[3])
base = math.min(math.max(before, base), number(values[4]))
if swept == base then
  touch('b', values[3])
  return {base, 0, actual}
end

-- The base first: nobody sees any more what is deleted in slices.
local upto = math.min(swept + SWEEP, base)
redis.call('HSET', key, 'b', digits(base), 'f', digits(upto))
local positions, ids, gone = {}, {}, {}
for position = swept, upto - 1 do positions[#positions + 1] = digits(position) end
for i, record in ipairs(get(positions)) do
  gone[#gone + 1] = positions[i]
  if record then
    local last, colon = id_end(record)
    ids[#ids + 1] = 'i' .. string.sub(record, colon + 1, last)
  end
end
for i, position in ipairs(#ids > 0 and get(ids) or {}) do  -- not of a record that was stored once more since
  if position and tonumber(position) < base then gone[#gone + 1] = ids[i] end
end
redis.call('HDEL', key, unpack(gone))
if upto == base then redis.call('HDEL', key, 'f') end
return {base, base - upto, actual}
"""

_REDACT: Final = """
local values = redis.call('HMGET', key, 'v', 'e', 'b', 'n')
local refused = strange(values[1], values[2])
if refused then return refused end
local actual, base, stop = values[2] or '', number(values[3]), number(values[4])
if actual ~= args[1] then return {'epoch', actual} end
local positions, pairs = {}, {}
for i = 2, #args, 2 do
  local position = tonumber(args[i])
  if position < base or position >= stop then return {'positions', base, stop} end
  positions[#positions + 1] = args[i]
end
for i, record in ipairs(#positions > 0 and get(positions) or {}) do
  if not record then return {'damaged', tonumber(positions[i])} end
  pairs[#pairs + 1], pairs[#pairs + 2] = positions[i], string.sub(record, 1, (id_end(record))) .. args[2 * i + 1]
end
set(pairs)
return {0}
"""

_EXPIRE: Final = """
local values = redis.call('HMGET', key, 'v', 'e')
local refused = strange(values[1], values[2])
if refused then return refused end
if not values[2] then return {0} end
redis.call('HSET', key, 'x', '1')
if args[1] == '' then redis.call('PERSIST', key) else redis.call('PEXPIRE', key, args[1]) end
return {1}
"""


class Script:
    """A script, and how a call of it begins. A server knows it by its digest once it was loaded."""

    def __init__(self, source: str, *, shortcut: str = "") -> None:
        text = shortcut + _PRELUDE + source
        for name, value in _NUMBERS.items():
            text = text.replace(name, str(value))
        self.source: Final = text.encode()
        self._start = b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n" % hashlib.sha1(self.source).hexdigest().encode()  # noqa: S324 - what EVALSHA takes

    def call(self, key: bytes, args: Sequence[bytes]) -> bytes:
        """Return a call of this script in the protocol of Redis."""
        return b"*%d\r\n%b%b" % (4 + len(args), self._start, _strings((key, *args)))


APPEND: Final = Script(_APPEND, shortcut=_APPEND_ONE)
LOAD: Final = Script(_LOAD)
COMMIT: Final = Script(_COMMIT)
DELETE: Final = Script(_DELETE)
TRIM: Final = Script(_TRIM)
REDACT: Final = Script(_REDACT)
EXPIRE: Final = Script(_EXPIRE)

SCRIPTS: Final = (APPEND, LOAD, COMMIT, DELETE, TRIM, REDACT, EXPIRE)


def pack(*args: bytes) -> bytes:
    """Return a command in the protocol of Redis."""
    return b"*%d\r\n%b" % (len(args), _strings(args))


def _strings(values: Sequence[bytes]) -> bytes:
    return b"$%d\r\n%b\r\n" * len(values) % tuple(chain.from_iterable(zip(map(len, values), values, strict=True)))

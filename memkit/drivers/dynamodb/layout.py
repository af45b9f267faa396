"""Where the items of a conversation lie, how their attributes are called, and how large they may be.

| item | end of its key | attributes |
|---|---|---|
| head | `~` | `epoch base end revision head groups until expires pin gone swept` |
| entry | `#epoch#position` | `entry body packed`, or `count groups`; `expires` |
| alias of an entry, with a partition key only | `#epoch#position` | `of`, the position of the entry; `expires` |
| part of what is too large for one item | `!id!number` | `body`, `expires` |
| list of parts that nothing refers to | `!` | `staged garbage` |

With a sort key, the partition key is prefix + key and the sort key `memkit` + that end, so that head and entries
are neighbours, the newest first when read backwards. Without one, the partition key is prefix + key + that end. No
item can be taken for that of another key, whatever a key is: the last character of the end tells what it is, but
for digits, where the character 46 from the end does; the rest of the end has a fixed length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final, TypeAlias

from memkit.errors import FormatError

Item: TypeAlias = dict[str, Any]
"""Attributes and their values: `str`, `int`, `bytes` or a set of `str`."""

VERSION: Final = 1
MAX_INLINE: Final = 350 * 1024
"""Bytes of an item; DynamoDB takes 400 KB."""

MAX_HEAD: Final = 4 * 1024
"""Bytes of the head in the item that each append pays for. Larger ones lie in parts; see `Commits`."""

MAX_ACTIONS: Final = 100
MAX_TRANSACTION: Final = 600 * 1024
"""Bytes of the entries of a transaction. In base64, and with their keys, that is less than 1 MB.

DynamoDB takes 4 MB, which would hold up the event loop for too long, and aiohttp warns of more than 1 MB.
"""

ALIVE: Final = (
    "#memkit = :version AND #epoch = :epoch AND attribute_not_exists(#gone) "
    "AND (attribute_not_exists(#until) OR #until > :now)"
)
"""The condition that a head is the one that was seen, and that its conversation is alive."""

_MAX_PREFIX: Final = 512
_SORT: Final = "memkit"
_ATTRIBUTES: Final = frozenset(
    {
        *("memkit", "expires"),
        *("epoch", "base", "end", "revision", "head", "until", "pin", "gone", "swept"),
        *("entry", "body", "packed", "count", "groups", "of"),
        *("staged", "garbage"),
    }
)
_NAME: Final = re.compile(r"#(\w+)")


class Layout:
    """The keys and the attributes of the items in a table."""

    def __init__(
        self, partition_key: str, sort_key: str | None, prefix: str, attributes: Mapping[str, str]
    ) -> None:
        unknown = attributes.keys() - _ATTRIBUTES
        if unknown:
            raise FormatError(f"there are no attributes {sorted(unknown)}, only {sorted(_ATTRIBUTES)}")
        self._names: Final = {name: name for name in _ATTRIBUTES} | dict(attributes) | {"pk": partition_key}
        if sort_key is not None:
            self._names["sk"] = sort_key
        if len(set(self._names.values())) < len(self._names):
            raise FormatError(
                f"the keys {partition_key!r} and {sort_key!r} and the attributes of memkit have names in common; "
                'give other ones to the latter: attributes={"entry": "memkit_entry"}'
            )
        if len(prefix.encode(errors="surrogatepass")) > _MAX_PREFIX:
            raise FormatError(f"the prefix {prefix[:40]!r}... has more than {_MAX_PREFIX} bytes")
        self._ours: Final = {theirs: name for name, theirs in self._names.items()}
        self.prefix: Final = prefix
        self.has_sort_key: Final = sort_key is not None
        self.keys: Final[tuple[str, ...]] = (partition_key,) if sort_key is None else (partition_key, sort_key)

    # --- keys ---

    def head(self, key: str) -> Item:
        """Return the key of the head's item."""
        return self._key(key, "~")

    def loose(self, key: str) -> Item:
        """Return the key of the list of parts that nothing refers to."""
        return self._key(key, "!")

    def entry(self, key: str, epoch: str, position: int) -> Item:
        """Return the key of an entry's item."""
        return self._key(key, f"#{epoch}#{position:016d}")

    def part(self, key: str, parts: str, number: int) -> Item:
        """Return the key of a part's item."""
        return self._key(key, f"!{parts}!{number:016d}")

    def _key(self, key: str, end: str) -> Item:
        if not self.has_sort_key:
            return {self.keys[0]: f"{self.prefix}{key}{end}"}
        return {self.keys[0]: f"{self.prefix}{key}", self.keys[1]: f"{_SORT}{end}"}

    def first(self, key: str) -> Item:
        """Return the key before which no entry and no head lies, for a table with a sort key."""
        return self._key(key, "#")

    def key_of(self, head: Item) -> str:
        """Return the key of the conversation that has this head."""
        found: str = head["pk"]
        return found[len(self.prefix) :] if self.has_sort_key else found[len(self.prefix) : -1]

    def position_of(self, item: Item) -> tuple[str, int]:
        """Return epoch and position in the key of an entry's item.

        Raises:
            ValueError: it is none.
        """
        _, epoch, position = self.last(item).rsplit("#", 2)
        return epoch, int(position)

    def last(self, item: Item) -> str:
        """Return the part of the key that tells items of a conversation apart."""
        found: str = item["sk" if self.has_sort_key else "pk"]
        return found

    def is_at(self, item: Item, item_key: Item) -> bool:
        """Tell whether an item that was read has this key."""
        expected: str = item_key[self.keys[-1]]
        return self.last(item) == expected

    # --- attributes ---

    def names(self, *expressions: str) -> dict[str, str]:
        """Return the names for the placeholders `#name` in expressions."""
        found = {name for expression in expressions for name in _NAME.findall(expression)}
        return {f"#{name}": self._names[name] for name in found}

    def written(self, values: Mapping[str, Any]) -> Item:
        """Return attributes as the table has them. What is None is left out."""
        return {self._names[name]: value for name, value in values.items() if value is not None}

    def read(self, item: Mapping[str, Any]) -> Item:
        """Return the attributes of an item that are ours, with its keys as `pk` and `sk`."""
        return {self._ours[name]: _plain(value) for name, value in item.items() if name in self._ours}


def from_wire(item: Mapping[str, Any]) -> Item:
    """Return an item in the form that a client without a resource gives: that of errors."""
    read: Item = {}
    for name, value in item.items():
        ((kind, content),) = value.items()
        read[name] = Decimal(content) if kind == "N" else content
    return read


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value)
    # boto3 gives bytes in a class of its own, whose module takes long to import.
    return bytes(value.value) if type(value).__name__ == "Binary" else value


# --- an entry of several positions, where each position is looked up by itself ---


def aliases(position: int, count: int) -> Iterator[int]:
    """Yield the positions, besides its own, at which an entry of `count` positions is to be found.

    These are the beginnings of the fewest blocks of 2 to the power of n that make up the entry, each at a multiple
    of its length. So an entry of a million positions has at most 40.
    """
    at, end = position, position + count
    while at < end:
        if at != position:
            yield at
        length = at & -at or 1 << count.bit_length()
        while at + length > end:
            length //= 2
        at += length


def beginnings(position: int) -> Iterator[int]:
    """Yield where the blocks begin that may hold a position: one of them is an entry or the alias of one."""
    yield position
    while position:
        position &= position - 1
        yield position

"""What turns one block of a message into another, without a copy of the media in its content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from memkit.rawjson import difference, restored


def change_of(made: dict[str, Any], block: dict[str, Any]) -> dict[str, Any]:
    """Return what `changed` needs to turn `made` into `block`."""
    change = difference(made, block)
    items, written = _items(made.get("content")), _items(block.get("content"))
    pairs = list(zip(items, written, strict=False))
    are_alike = all(one == other or (isinstance(one, dict) and isinstance(other, dict)) for one, other in pairs)
    if items != written and len(items) == len(written) and are_alike:
        del change["set"]["content"]
        change["items"] = [{} if one == other else difference(one, other) for one, other in pairs]
    return change


def changed(block: dict[str, Any], change: object) -> dict[str, Any]:
    """Return a block with a change, which may be anything that was stored."""
    if not isinstance(change, Mapping):
        return block
    made = restored(block, cast("Mapping[str, Any]", change))
    items, changes = _items(made.get("content")), _items(cast("Mapping[str, Any]", change).get("items"))
    if not items or len(items) != len(changes):
        return made
    return {**made, "content": [_item(*pair) for pair in zip(items, changes, strict=True)]}


def _item(item: Any, change: Any) -> Any:
    if not isinstance(item, dict) or not isinstance(change, Mapping):
        return cast("Any", item)
    return restored(cast("dict[str, Any]", item), cast("Mapping[str, Any]", change))


def _items(content: object) -> list[Any]:
    return cast("list[Any]", content) if isinstance(content, list) else []

"""What an append writes: the head with another end, and the entries that it now counts."""

from __future__ import annotations

from msgspec.structs import replace

from memkit.driver import new_epoch
from memkit.drivers.dynamodb.items import Head, Lifetime
from memkit.drivers.dynamodb.lanes import Waiting
from memkit.drivers.dynamodb.layout import ALIVE, VERSION, aliases
from memkit.drivers.dynamodb.loads import now
from memkit.drivers.dynamodb.requests import Action, Requests


def raised(requests: Requests, key: str, head: Head | None, count: int, life: Lifetime) -> tuple[Head, Action]:
    """Return the head with so many entries more, and the action that stores it."""
    item_key = requests.layout.head(key)
    if head is None:
        epoch = new_epoch()
        new = Head(epoch, count, epoch, until=life.until, expires=life.expires)
        return new, requests.insert(item_key | requests.layout.written(new.values()))
    new = replace(head, end=head.end + count, until=life.until, expires=life.expires)
    changes = "SET #end = :end"
    if life.until is not None and not life.pin:
        changes += ", #until = :until, #expires = :expires"
    values = {
        ":end": new.end,
        ":seen": head.end,
        ":epoch": head.epoch,
        ":version": VERSION,
        ":now": now(),
        ":until": life.until,
        ":expires": life.expires,
        ":pin": head.pin,
    }
    return new, requests.update(item_key, changes, f"{ALIVE} AND #end = :seen AND {head.same_pin}", values)


def entries(requests: Requests, key: str, epoch: str, position: int, waiting: Waiting) -> list[Action]:
    """Return the actions that store what an append has brought."""
    expires = waiting.life.expires if waiting.life else None
    groups = iter(waiting.groups)
    actions: list[Action] = []
    for item in waiting.drafts:
        values = item.values([next(groups) for _ in item.packs], expires)
        places = [(position, values)]
        if not requests.layout.has_sort_key:
            alias = {"memkit": VERSION, "of": position, "expires": expires}
            places += [(at, alias) for at in aliases(position, item.count)]
        for at, content in places:
            item_key = requests.layout.entry(key, epoch, at)
            actions.append(requests.replace(item_key | requests.layout.written(content)))
        position += item.count
    return actions

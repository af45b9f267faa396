"""The capability `ListKeys`: which conversations there are."""

from __future__ import annotations

from memkit.driver import Driver, Expire, ListKeys
from memkit.testing.conformance.check import check, need
from memkit.testing.conformance.keys import ALIKE, STRANGE
from memkit.testing.conformance.tools import append_numbers, holds, new_key, same, state, wait_until_gone


@check("list_keys")
async def prefix(driver: Driver) -> None:
    """Listed is what begins with the prefix, taken as it is and exactly, each key once."""
    mark = new_key()
    names = ["", "a", "ab", "aB", "Ab", "abc", "a*", "a?", "a[b]", "a%", "a_", "a\\", "*", "%", "_b", "[a]"]
    for name in names:
        await append_numbers(driver, mark + name, [0])
    for start in ("", "a", "ab", "a*", "a?", "a[", "a%", "a_", "a\\", "*", "%", "_", "[", "nothing"):
        expected = sorted(mark + name for name in names if name.startswith(start))
        same(await _listed(driver, mark + start), expected, f"list_keys with {start!r}")


@check("list_keys")
async def all_keys(driver: Driver) -> None:
    """Without a prefix all conversations are listed, those too that have a head only."""
    one, other = new_key(), new_key()
    await append_numbers(driver, one, [0])
    await driver.commit(other, b"head", revision="")
    keys = await _listed(driver, "")
    for key in (one, other):
        same(keys.count(key), 1, f"how often {key!r} is listed")


@check("list_keys")
async def exact_keys(driver: Driver) -> None:
    """Keys come back as they were given, whatever is in them."""
    mark = new_key()
    names = [*STRANGE, *(name for group in ALIKE for name in group), "k" * (1024 - len(mark))]
    for name in names:
        await append_numbers(driver, mark + name, [0])
    same(await _listed(driver, mark), sorted(mark + name for name in names), "list_keys")


@check("list_keys")
async def deleted(driver: Driver) -> None:
    """What is deleted is not listed; what is made anew is; what is only read never was."""
    mark = new_key()
    for name in ("stays", "goes", "comes back"):
        await append_numbers(driver, f"{mark} {name}", [0])
    for name in ("goes", "comes back"):
        await driver.delete(f"{mark} {name}")
    await append_numbers(driver, f"{mark} comes back", [0])
    await driver.load(f"{mark} only read")
    same(await _listed(driver, mark), [f"{mark} comes back", f"{mark} stays"], "list_keys")


@check("list_keys")
async def expired(driver: Driver) -> None:
    """What is expired is not listed."""
    need(driver, ListKeys)
    expire, mark = need(driver, Expire), new_key()
    for name in ("stays", "goes"):
        await append_numbers(driver, f"{mark} {name}", [0])
    before = await state(driver, f"{mark} goes")
    await expire.expire(f"{mark} goes", 0.2)
    await wait_until_gone(driver, f"{mark} goes", before)
    same(await _listed(driver, mark), [f"{mark} stays"], "list_keys")


async def _listed(driver: Driver, prefix: str) -> list[str]:
    keys = [key async for key in need(driver, ListKeys).list_keys(prefix)]
    holds(len(set(keys)) == len(keys), f"list_keys({prefix!r}) yielded a key twice")
    return sorted(keys)

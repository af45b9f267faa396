"""Appends that are repeated: storing the same records again changes nothing."""

from __future__ import annotations

from memkit.driver import Appended, Driver, Record
from memkit.errors import FormatError
from memkit.run import new_id
from memkit.testing.conformance.check import OpenDriver, check, check_store, opened
from memkit.testing.conformance.tools import (
    append_numbers,
    new_key,
    nothing_stored,
    numbers,
    records,
    same,
    state,
)


@check("retries")
async def record(driver: Driver) -> None:
    """A repeated append answers with the position of the first one, and stores nothing."""
    key = new_key()
    await append_numbers(driver, key, range(2))
    late = records(b"late")
    first = await driver.append(key, late, since=2)
    await _answers(driver, key, late, first, since=2)
    await append_numbers(driver, key, range(3))
    await _answers(driver, key, late, Appended(2, 6, first.epoch), since=2)
    await _answers(driver, key, late, Appended(2, 6, first.epoch), since=0)


@check("retries")
async def batch(driver: Driver) -> None:
    """A repeated batch is known as a whole, however long it is."""
    key = new_key()
    await append_numbers(driver, key, [0])
    for length in (2, 100, 300):
        since = (await driver.load(key, -1)).end
        late = records(*numbers(range(length)))
        first = await driver.append(key, late, since=since)
        await _answers(driver, key, late, first, since=since)


@check("retries")
async def long_after(driver: Driver) -> None:
    """A record is known again after 200 appends by others, from the end at which it was made."""
    key = new_key()
    await append_numbers(driver, key, range(5))
    alone, together = records(b"alone"), records(b"one", b"two")
    first = await driver.append(key, alone, since=5)
    await driver.append(key, together, since=5)
    for end in range(8, 208):
        await append_numbers(driver, key, [end], since=end)
    await _answers(driver, key, alone, Appended(5, 208, first.epoch), since=5)
    await _answers(driver, key, together, Appended(6, 208, first.epoch), since=5)


@check_store("retries")
async def by_another_driver(open_driver: OpenDriver) -> None:
    """A repeated append is known whoever repeats it: the store knows, not the driver."""
    key = new_key()
    late = records(b"one", b"two")
    async with opened(open_driver) as driver:
        await append_numbers(driver, key, range(3))
        first = await driver.append(key, late, since=3)
    async with opened(open_driver) as other:
        await _answers(other, key, late, first, since=3)


@check("retries")
async def before_expectations(driver: Driver) -> None:
    """Ids are looked for first: a repeated append is answered, though the log has moved on since."""
    key = new_key()
    late = records(b"first of all")
    first = await driver.append(key, late, expect=0, epoch="")
    await append_numbers(driver, key, range(3))
    same(
        await driver.append(key, late, expect=0, epoch=""),
        Appended(0, 4, first.epoch),
        'a repeated append with expect=0 and epoch=""',
    )
    late = records(b"one", b"two")
    await driver.append(key, late, expect=4, epoch=first.epoch, since=4)
    same(
        await driver.append(key, late, expect=4, epoch=first.epoch, since=4),
        Appended(4, 6, first.epoch),
        "a repeated append with the end that it expected",
    )


@check("retries")
async def other_bytes(driver: Driver) -> None:
    """A known id with other bytes is a conflict: what would be lost is never swallowed."""
    key = new_key()
    one, two = records(b"one", b"two")
    await driver.append(key, [one, two])
    for changed in ([Record(one.id, b"new"), two], [one, Record(two.id, b"new")], [Record(one.id, b"")]):
        async with nothing_stored(driver, key, f"known ids with the bodies {[r.body for r in changed]}"):
            await driver.append(key, changed)


@check("retries")
async def known_in_part(driver: Driver) -> None:
    """A batch of which only a part is stored is a conflict: the rest is not stored, nor the part doubled."""
    key = new_key()
    one, two = records(b"one", b"two")
    await driver.append(key, [one])
    await append_numbers(driver, key, range(2))
    for known in ([one, two], [two, one]):
        async with nothing_stored(driver, key, "a batch known in part"):
            await driver.append(key, known)
    await driver.append(key, [two])


@check("retries")
async def impossible_batches(driver: Driver) -> None:
    """A batch without records, with an id twice or with an empty one is refused: FormatError."""
    known, unknown = new_key(), new_key()
    await append_numbers(driver, known, [0])
    twice = new_id()
    for key in (known, unknown):
        async with nothing_stored(driver, key, "an append of no records", FormatError):
            await driver.append(key, [])
        async with nothing_stored(driver, key, "an append with an id twice", FormatError):
            await driver.append(key, [Record(twice, b"one"), *records(b"two"), Record(twice, b"one")])
        async with nothing_stored(driver, key, "an append with an empty id", FormatError):
            await driver.append(key, [*records(b"one"), Record("", b"two")])


@check("retries")
async def any_ids(driver: Driver) -> None:
    """Ids are any text, and are compared exactly."""
    key = new_key()
    ids = [
        "a",
        "A",
        " a",
        "a:b",
        'quo"te',
        "back\\slash",
        "new\nline",
        "nul\x00",
        "caf\u00e9",
        "cafe\u0301",
        "*",
    ]
    for at, name in enumerate(ids):
        appended = await driver.append(key, [Record(name, b"%d" % at)], since=at)
        same(appended.position, at, f"the position of a record with the id {name!r}")
    for at, name in enumerate(ids):
        appended = await driver.append(key, [Record(name, b"%d" % at)], since=at)
        same((appended.position, appended.end), (at, len(ids)), f"a repeated append with the id {name!r}")


async def _answers(driver: Driver, key: str, late: list[Record], answer: Appended, *, since: int) -> None:
    before = await state(driver, key)
    what = f"a repeated append of {len(late)} records since {since}"
    same(await driver.append(key, late, since=since), answer, what)
    same(await state(driver, key), before, f"what is stored after {what}")

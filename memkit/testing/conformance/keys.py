"""Keys: any text of up to 1024 bytes is one, and no two are the same conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from memkit.driver import Driver
from memkit.errors import FormatError
from memkit.testing.conformance.check import check
from memkit.testing.conformance.tools import holds, new_key, records, refused, same

STRANGE: Final = (
    ".",
    "..",
    "/",
    "//",
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\con",
    "~",
    " ",
    "\t",
    "\n",
    "\x00",
    "a\x00b",
    "*",
    "%",
    "_",
    "[a-z]?",
    "%2e%2e",
    "{}",
    "user:1",
    "\u043a\u043b\u044e\u0447 \U0001f511",
    "\u202ertl",
    "\ufeff",
    "\U0010ffff",
)

ALIKE: Final = (
    ("key", "Key", "KEY"),
    ("stra\u00dfe", "strasse"),
    ("caf\u00e9", "cafe\u0301"),
    ("\u212b", "\u00c5"),
    ("a", "a ", " a", "a.", "a/", "a\x00", "a\n"),
    ("a/b", "a//b", "a/./b", "a\\b", "a_b", "a%2fb"),
    ("1", "01", "1.0"),
)
"""Keys that file systems, databases and Unicode take for one another."""

IMPOSSIBLE: Final = ("", "k" * 1025, "\u00e9" * 513, "lone\ud800")


@check("keys")
async def strange(driver: Driver) -> None:
    """A key may be any text; each is a conversation of its own, and none reaches outside of the store."""
    await _all_differ(driver, STRANGE)


@check("keys")
async def alike(driver: Driver) -> None:
    """Keys are compared exactly: case, Unicode form and trailing characters tell them apart."""
    for group in ALIKE:
        prefix = new_key()
        await _all_differ(driver, [prefix + name for name in group])


@check("keys")
async def long(driver: Driver) -> None:
    """A key has up to 1024 bytes of UTF-8, and all of them count."""
    start = new_key()
    filler = "k" * (1023 - len(start))
    wide = "\u00e9" * ((1024 - len(start)) // 2)
    await _all_differ(driver, [f"{start}{filler}a", f"{start}{filler}b", f"{start}{filler}", start + wide])


@check("keys")
async def impossible(driver: Driver) -> None:
    """An empty key, one of more than 1024 bytes, and one with a lone surrogate are refused: FormatError."""
    for key in IMPOSSIBLE:
        what = f"the key {key[:8]!r}"
        with refused(FormatError, f"load of {what}"):
            await driver.load(key)
        with refused(FormatError, f"append to {what}"):
            await driver.append(key, records(b"a"))
        with refused(FormatError, f"commit to {what}"):
            await driver.commit(key, b"head", revision="")
        with refused(FormatError, f"delete of {what}"):
            await driver.delete(key)


async def _all_differ(driver: Driver, keys: Sequence[str]) -> None:
    owners: dict[str, str] = {}
    for key in keys:
        body = f"{new_key()} of {key}".encode()
        appended = await driver.append(key, records(body))
        at, epoch = appended.position, appended.epoch
        log = await driver.load(key, at, at + 1)
        same((log.epoch, list(log.bodies)), (epoch, [body]), f"the entry of the key {key[-40:]!r}")
        holds(epoch not in owners, f"the keys {owners.get(epoch)!r} and {key[-40:]!r} are one conversation")
        owners[epoch] = key[-40:]

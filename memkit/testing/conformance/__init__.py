"""The contract of drivers, sentence by sentence: one module for each group of checks."""

from __future__ import annotations

from typing import Final

from memkit.testing.conformance import (
    cancellation,
    concurrency,
    conflicts,
    epochs,
    expire,
    head,
    keys,
    large,
    list_keys,
    log,
    redact,
    retries,
    slices,
    trim,
)
from memkit.testing.conformance.check import Check

_MODULES: Final = (
    log,
    slices,
    head,
    conflicts,
    epochs,
    retries,
    keys,
    large,
    concurrency,
    cancellation,
    trim,
    redact,
    expire,
    list_keys,
)


def driver_checks() -> list[Check]:
    """Return all checks that a driver must pass, for `pytest.mark.parametrize` with `ids=str`.

    Each is called with a function that opens the driver, takes keys of its own, and raises `AssertionError`
    with the broken sentence of the contract. What the driver does not promise raises `unittest.SkipTest`.
    The checks leave their conversations behind: give them a store that can be thrown away.
    """
    return [item for module in _MODULES for item in vars(module).values() if isinstance(item, Check)]

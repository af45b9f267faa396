"""Every error that memkit raises. All of them derive from `MemkitError`.

An error names the conversation, says what happened and what to do next, and is raised `from` the
exception that caused it. Whatever is raised, what had been stored before is still stored.
"""

from __future__ import annotations


class MemkitError(Exception):
    """The root of all errors of this package."""


class ConflictError(MemkitError):
    """The store holds something else than the caller believed. Nothing was stored.

    `expected` is what the caller gave, `actual` what the store holds: ends, revisions, epochs or ids.
    """

    def __init__(self, message: str, *, expected: object = None, actual: object = None) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class DriverError(MemkitError):
    """A store could not do what it was asked for.

    `retryable` tells whether the same call may succeed later. Repeating an append with the same record is
    always safe, also when the outcome of the first attempt is unknown.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class FormatError(MemkitError, ValueError):
    """Something given or stored does not have the form that it must have."""


class UnsupportedError(MemkitError):
    """The driver, the platform or the event loop cannot do this at all."""


class SummaryError(MemkitError):
    """A summary could not be made. The conversation is as it was.

    `retryable` tells whether trying again may help before more has been said.
    """

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class VocabularyError(MemkitError):
    """The vocabulary of a token counter could not be loaded."""


class BudgetError(MemkitError, ValueError):
    """A token budget is impossible, or cannot be checked without blocking the event loop."""


class ClosedError(MemkitError):
    """A handle was used outside its `async with`."""

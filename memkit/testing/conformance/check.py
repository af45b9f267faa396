"""A check of the conformance suite: what it promises, how it is run, and how it fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar, cast
from unittest import SkipTest

from anyio import fail_after

from memkit.driver import Driver, Promise, Waives, capability
from memkit.errors import UnsupportedError

T = TypeVar("T")

TIME_LIMIT: Final = 120.0
"""Seconds after which a check that hangs has failed."""

OpenDriver: TypeAlias = Callable[[], Driver | AbstractAsyncContextManager[Driver]]
"""Returns a driver, or an async context manager of one; every call must reach the same store."""


class Absent(SkipTest):
    """The driver does not promise what a check is about. pytest and unittest show the check as skipped."""

    def __init__(self, what: str) -> None:
        super().__init__(f"absent: {what}")


@dataclass(frozen=True, slots=True)
class Check:
    """One sentence of the contract of drivers, and the test of it."""

    group: str
    name: str
    contract: str
    run: Callable[[OpenDriver], Awaitable[None]]

    def __str__(self) -> str:
        return f"{self.group}-{self.name}"

    async def __call__(self, open_driver: OpenDriver) -> None:
        """Run the check on fresh keys of the store that `open_driver` reaches.

        Raises:
            AssertionError: the contract is broken; the message says which sentence of it, and how.
            Absent: the driver lacks the capability, or raised `UnsupportedError`.
        """
        try:
            with fail_after(TIME_LIMIT):
                await self.run(open_driver)
        except Exception as error:
            causes = list(_leaves(error))
            broken = [cause for cause in causes if not isinstance(cause, (SkipTest, UnsupportedError))]
            if broken:
                raise AssertionError(f"{self.contract}\n{_explain(broken[0])}") from error
            if isinstance(causes[0], SkipTest):
                raise causes[0] from None
            raise Absent(str(causes[0])) from error


def check(group: str) -> Callable[[Callable[[Driver], Awaitable[None]]], Check]:
    """Make a check of a function of one driver. Its docstring is the sentence of the contract."""

    def decorate(function: Callable[[Driver], Awaitable[None]]) -> Check:
        async def run(open_driver: OpenDriver) -> None:
            async with opened(open_driver) as driver:
                await function(driver)

        return _check(group, function, run)

    return decorate


def check_store(group: str) -> Callable[[Callable[[OpenDriver], Awaitable[None]]], Check]:
    """Make a check of a function that opens as many drivers as it needs."""
    return lambda function: _check(group, function, function)


@asynccontextmanager
async def opened(open_driver: OpenDriver) -> AsyncGenerator[Driver]:
    """Open a driver, and close it if it can be closed."""
    driver = open_driver()
    if isinstance(driver, AbstractAsyncContextManager):
        async with driver as entered:
            yield entered
    else:
        yield driver


def need(driver: Driver, kind: Callable[..., T]) -> T:
    """Return what provides a capability for a driver.

    Raises:
        Absent: nothing does.
    """
    found = capability(driver, kind)
    if found is None:
        raise Absent(kind.__name__)
    return found


def waived(driver: Driver) -> frozenset[Promise]:
    """Return the promises that a driver says it does not keep."""
    waives = capability(driver, Waives)
    return frozenset() if waives is None else waives.waives()


def need_promise(driver: Driver, promise: Promise) -> None:
    """Leave the check if the driver does not promise what it is about.

    Raises:
        Absent: it says so.
    """
    if promise in waived(driver):
        raise Absent(promise)


def _check(group: str, function: Callable[..., object], run: Callable[[OpenDriver], Awaitable[None]]) -> Check:
    name = function.__name__.replace("_", "-")
    contract = " ".join((function.__doc__ or name).split())
    return Check(group, name, contract, run)


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for part in cast("ExceptionGroup[Exception]", error).exceptions:
            yield from _leaves(part)
    else:
        yield error


def _explain(error: Exception) -> str:
    if isinstance(error, AssertionError):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"the check did not end within {TIME_LIMIT:g} s: {error!r}"
    return f"the driver raised {type(error).__name__}: {error}"

"""The conformance report: what a driver keeps of the contract, group by group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeAlias
from unittest import SkipTest

import msgspec

from memkit.testing.conformance import driver_checks
from memkit.testing.conformance.check import Check, OpenDriver

Status: TypeAlias = Literal["passed", "absent", "failed"]


class Outcome(msgspec.Struct, frozen=True):
    """How one check ended. `message` says what is absent, or what is broken."""

    group: str
    name: str
    status: Status
    message: str = ""


class Report(msgspec.Struct, frozen=True):
    """How all checks ended. Its `str()` is a table, with a line for each thing that is absent or failed."""

    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """What is broken; empty for a driver that keeps the contract."""
        return tuple([outcome for outcome in self.outcomes if outcome.status == "failed"])

    def __str__(self) -> str:
        groups: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            groups.setdefault(outcome.group, []).append(outcome)
        notes = [
            f"{outcome.group}-{outcome.name} {outcome.status}: {outcome.message}"
            for outcome in self.outcomes
            if outcome.status != "passed"
        ]
        title = f"{'group':<14}{'passed':>8}{'absent':>8}{'failed':>8}"
        rows = [_row(group, outcomes) for group, outcomes in groups.items()]
        return "\n".join([title, *rows, _row("all", self.outcomes), *notes])


async def driver_report(open_driver: OpenDriver) -> Report:
    """Run all checks on a driver and return how each of them ended.

    `open_driver` returns a driver, or an async context manager of one, and reaches the same store each time.
    """
    return Report(tuple([await _outcome(check, open_driver) for check in driver_checks()]))


async def _outcome(check: Check, open_driver: OpenDriver) -> Outcome:
    try:
        await check(open_driver)
    except SkipTest as error:
        return Outcome(check.group, check.name, "absent", str(error).removeprefix("absent: "))
    except AssertionError as error:
        return Outcome(check.group, check.name, "failed", str(error))
    return Outcome(check.group, check.name, "passed")


def _row(name: str, outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcome.status for outcome in outcomes)
    return f"{name:<14}{counts['passed']:>8}{counts['absent']:>8}{counts['failed']:>8}"

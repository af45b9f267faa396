"""What memkit is tested with, for your own drivers and strategies too.

    @pytest.mark.anyio
    @pytest.mark.parametrize("check", driver_checks(), ids=str)
    async def test_my_driver(check, tmp_path):
        await check(functools.partial(FileDriver, tmp_path))

Nothing here needs pytest. `print(await driver_report(open_driver))` shows the same as a table.
"""

from __future__ import annotations

from memkit.testing.conformance import driver_checks
from memkit.testing.conformance.check import Absent, Check, OpenDriver
from memkit.testing.faults import CountingDriver, Fault, FlakyDriver, SlowDriver, random_faults
from memkit.testing.report import Outcome, Report, driver_report
from memkit.testing.strategies import strategy_checks

__all__ = (
    "Absent",
    "Check",
    "CountingDriver",
    "Fault",
    "FlakyDriver",
    "OpenDriver",
    "Outcome",
    "Report",
    "SlowDriver",
    "driver_checks",
    "driver_report",
    "random_faults",
    "strategy_checks",
)

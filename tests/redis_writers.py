"""Writers that go on through faults as a careful program does, and the count of what became of what they wrote."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from anyio import create_task_group, current_time

from memkit.driver import Driver, Record
from memkit.errors import DriverError


@dataclass
class Writers:
    """Sixteen writers. Each repeats a record until it is acknowledged, if it repeats, then writes the next."""

    driver: Driver
    key: str
    count: int = 16
    conversations: int = 4
    repeats: bool = True
    acknowledged: dict[bytes, int] = field(default_factory=dict[bytes, int])
    """The position that was answered for each body."""
    errors: int = 0

    async def run(self, seconds: float) -> None:
        """Write for some seconds."""
        until = current_time() + seconds
        async with create_task_group() as tasks:
            for writer in range(self.count):
                tasks.start_soon(self._write, writer, until)

    async def _write(self, writer: int, until: float) -> None:
        key, since, n = f"{self.key}-{writer % self.conversations}", 0, 0
        while current_time() < until:
            body = b"%d-%d" % (writer, n)
            record = Record(f"{self.key}-{writer}-{n}", body)
            try:
                appended = await self.driver.append(key, [record], since=since)
            except DriverError as error:
                if not error.retryable:
                    raise
                self.errors += 1
                n += not self.repeats
                continue
            self.acknowledged[body] = appended.position
            since, n = appended.end, n + 1

    async def check(self) -> str:
        """Demand that nothing was lost or doubled, and that all is where it was said to be; return the figures."""
        stored: Counter[bytes] = Counter()
        for n in range(self.conversations):
            log = await self.driver.load(f"{self.key}-{n}", 0)
            bodies = list(log.bodies)
            while log.start > log.base:
                log = await self.driver.load(f"{self.key}-{n}", 0, log.start)
                bodies = [*log.bodies, *bodies]
            stored.update(bodies)
            for position, body in enumerate(bodies):
                assert self.acknowledged.get(body, position) == position, f"{body!r} is at {position}"
        lost = [body for body in self.acknowledged if body not in stored]
        doubled = [body for body, times in stored.items() if times > 1]
        figures = (
            f"acknowledged {len(self.acknowledged)}, stored {sum(stored.values())}, "
            f"lost {len(lost)}, doubled {len(doubled)}, errors {self.errors}"
        )
        assert not lost, f"{figures}: {lost[:5]}"
        assert not doubled, f"{figures}: {doubled[:5]}"
        return figures

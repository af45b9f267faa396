"""A plain list beside the real thing: what a log holds, and which runs it makes."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from memkit.run import Amend, Entry, Extend, Run


def bare(run: Run) -> Run:
    return msgspec.structs.replace(run, counts=None)


@dataclass
class Log:
    """All entries that one epoch ever had, and its meta.

    `erased` is what is stored in the place of some of them; handles that have not read up to `erased_until` may
    show one or the other.
    """

    entries: list[Entry] = field(default_factory=list)
    erased: dict[int, Entry] = field(default_factory=dict)
    erased_until: int = 0
    base: int = 0
    meta: dict[str, int] = field(default_factory=dict)

    def runs(self, base: int, end: int) -> dict[int, Run]:
        """Return the runs of `[base, end)` by position: changes applied one after the other, naively."""
        runs: dict[int, Run] = {}
        for position, entry in enumerate(self.entries[:end]):
            if isinstance(entry, Run):
                runs[position] = entry
            elif entry.at in runs:
                run = runs.pop(entry.at)
                if isinstance(entry, Amend):
                    runs[entry.at] = entry.run
                elif isinstance(entry, Extend):
                    steps = run.steps[: len(run.steps) - entry.drop] + entry.steps
                    output = run.output if entry.output is None else entry.output
                    status = entry.status or run.status
                    runs[entry.at] = msgspec.structs.replace(run, steps=steps, output=output, status=status)
        return {position: bare(runs[position]) for position in sorted(runs) if position >= base}

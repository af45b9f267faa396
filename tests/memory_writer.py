"""A process that adds runs to one conversation; started by `test_memory_stores.py`, not by itself.

Every run is added by a handle of its own, as a server does, or by turns by one handle that stays.
"""

from __future__ import annotations

import sys

import anyio

from memkit.drivers.file import FileDriver
from memkit.memory import Memory
from memkit.strategies import everything

KEY = "shared"


async def add(memory: Memory, said: str, number: int) -> None:
    """Add a run in one of three ways, and take every tenth back."""
    if number % 3 == 0:
        async with memory.turn(said, early=True) as turn:
            turn.step(f"step of {said}")
            await turn.save()
            turn.write("yes")
        run = turn.run
    elif number % 3 == 1:
        run = await memory.add(said, "yes")
    else:
        run = await memory.add(said, "no")
        await memory.amend(run.replace(output="yes"))
    if number % 10 == 9:
        await memory.retract(run)
    await memory.update_meta(lambda meta: {**meta, "count": meta.get("count", 0) + 1})


async def main(folder: str, name: str, count: int) -> None:
    driver = FileDriver(folder)
    async with Memory(driver, KEY, strategy=everything) as staying:
        for number in range(count):
            if number % 2:
                await add(staying, f"{name} {number}", number)
            else:
                async with Memory(driver, KEY, strategy=everything) as memory:
                    await add(memory, f"{name} {number}", number)


if __name__ == "__main__":
    anyio.run(main, sys.argv[2], sys.argv[3], int(sys.argv[4]), backend=sys.argv[1])

"""Kills servers as soon as the process that started them is gone: the pipe from it ends, however it ended.

Run as a script. It reads `+pid` where a server was started and `-pid` where one was stopped.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress


def watch() -> None:
    """Read to the end, then kill what is left."""
    running: set[int] = set()
    for line in sys.stdin:
        change = running.add if line[0] == "+" else running.discard
        change(int(line[1:]))
    for pid in running:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    watch()

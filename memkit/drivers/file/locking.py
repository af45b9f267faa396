"""A file that many processes write to: opened, locked, and known to be the one at its path."""

from __future__ import annotations

import fcntl
import os
import random
import time
from pathlib import Path
from typing import Final

from memkit.errors import DriverError

LOCK_TIMEOUT: Final = 5.0
"""Seconds for which a writer waits for others that hold the file."""


def open_locked(path: Path, *, create: bool) -> tuple[int, int]:
    """Return the file, locked for writing, and its size; -1 if there is none and it is not to be created."""
    name = str(path)
    flags = os.O_RDWR | os.O_CLOEXEC
    while True:
        try:
            fd = os.open(name, flags, 0o666)
        except FileNotFoundError:
            if not create:
                return -1, 0
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags |= os.O_CREAT
            continue
        try:
            lock(fd, name)
            status = os.fstat(fd)
            if _is_at(name, status):
                return fd, status.st_size
        except BaseException:
            close_locked(fd)
            raise
        close_locked(fd)  # renamed over or deleted while we waited: what we hold is not the file any more


def lock(fd: int, name: str) -> None:
    """Wait until no other process holds the file, and hold it.

    Raises:
        DriverError: others have held it for `LOCK_TIMEOUT` seconds.
    """
    deadline = 0.0
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            now = time.monotonic()
            deadline = deadline or now + LOCK_TIMEOUT
            if now > deadline:
                raise DriverError(
                    f"other processes have held {name} for {LOCK_TIMEOUT:g} s; try again", retryable=True
                ) from None
            time.sleep(random.uniform(0.0001, 0.002))  # noqa: S311 - spreads the waiters, hides nothing


def close_locked(fd: int) -> None:
    """Close the file and let go of it, also where a child has it open that was forked meanwhile."""
    try:  # noqa: SIM105 - a hot path
        fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError:
        pass
    os.close(fd)


def _is_at(name: str, status: os.stat_result) -> bool:
    # Not by the number of links: a backup may hold one to the old file.
    try:
        there = os.stat(name)  # noqa: PTH116 - a hot path
    except FileNotFoundError:
        return False
    return there.st_ino == status.st_ino and there.st_dev == status.st_dev

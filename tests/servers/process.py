"""Starting servers, waiting until they answer, and seeing to it that none outlives the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self

import pytest

_WATCHDOG: Final = Path(__file__).with_name("watchdog.py")


def unavailable(why: str) -> NoReturn:
    """Skip the test because a server cannot be had, or fail it where all of them must be there."""
    if os.environ.get("MEMKIT_CI") == "1":
        pytest.fail(f"{why} (and with MEMKIT_CI=1 this is no reason to skip)")
    pytest.skip(why)


class Watchdog:
    """A process that kills the servers of this one when this one is gone, also if it was killed itself."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-IS", str(_WATCHDOG)], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    @contextmanager
    def server(
        self, command: Sequence[str], log: Path, is_ready: Callable[[], bool], time_limit: float = 30.0
    ) -> Iterator[int]:
        """Run a server while the context is entered, and give its process id once it is ready.

        What it prints goes to the file `log`, the end of which is shown if it does not become ready.
        """
        with log.open("wb") as output:
            # A session of its own: Ctrl-C is for the tests, which then stop the server themselves.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                start_new_session=True,
            )
        self._tell(f"+{process.pid}")
        try:
            _wait(process, log, is_ready, time_limit)
            yield process.pid
        finally:
            _stop(process)
            self._tell(f"-{process.pid}")

    def _tell(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()


def _wait(process: subprocess.Popen[bytes], log: Path, is_ready: Callable[[], bool], time_limit: float) -> None:
    deadline = time.monotonic() + time_limit
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            state = "still starting" if process.returncode is None else f"ended with {process.returncode}"
            tail = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{process.args!r} is not ready but {state}; its last words:\n{tail}")
        time.sleep(0.01)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

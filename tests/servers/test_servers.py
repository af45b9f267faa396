"""That no server outlives the tests, and that one that cannot start says why."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.servers.process import Watchdog, unavailable
from tests.servers.valkey import answers

_ENDLESS = """
import time
from tests.servers.process import Watchdog
from tests.servers.valkey import BINARIES, redis_server

with Watchdog() as watchdog, redis_server(BINARIES["valkey9"](), watchdog) as path:
    print(path, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_is_gone_with_the_process_that_started_it(sign: signal.Signals) -> None:
    tests = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert tests.stdout is not None
    path = tests.stdout.readline().strip()
    assert answers(path)
    tests.send_signal(sign)
    tests.communicate()
    while answers(path):  # until the time limit of the test
        time.sleep(0.01)
    shutil.rmtree(Path(path).parent)


def test_a_server_that_ends_at_once_is_reported_with_its_last_words(watchdog: Watchdog, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such port')"]
    with (
        pytest.raises(RuntimeError, match=r"ended with 1.*\n.*no such port"),
        watchdog.server(command, tmp_path / "log", lambda: False),
    ):
        pass


def test_what_is_missing_skips_elsewhere_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMKIT_CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Valkey"):
        unavailable("no Valkey")
    monkeypatch.setenv("MEMKIT_CI", "1")
    with pytest.raises(pytest.fail.Exception, match="no Valkey"):
        unavailable("no Valkey")

"""What all tests share: both event loops, vocabularies, and the real data where it lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.vocabulary import unpack

pytest_plugins = ["tests.servers.fixtures"]

SHARED = Path(os.environ.get("MEMKIT_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run every asynchronous test on both event loops."""
    return request.param


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real conversations; tests that need it skip loudly where it is missing."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data: {SHARED / 'data'} is missing (set MEMKIT_SHARED to where it lies)")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Put the files that tiktoken would download where it looks for them, and return them by encoding."""
    return unpack(tmp_path_factory.mktemp("vocabularies"))

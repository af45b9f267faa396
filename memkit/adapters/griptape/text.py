"""The text of stored memories, also where a number or a byte in it cannot be read as what it should be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from memkit.adapters.griptape.schema import is_object, levels

_ESCAPED: Final = re.compile("[\udc80-\udcff]")  # what bytes that are not UTF-8 become


class StoredText:
    """The JSON value of a text, and what in it had to be kept as something else.

    Integers of more digits than Python converts are kept as text, and bytes that are not UTF-8 as lone
    surrogates, so that none of them costs the rest of a file.
    """

    def __init__(self, stored: str | bytes) -> None:
        self._digits: list[str] = []
        self._has_bytes = False
        self.text = stored.removeprefix("\ufeff") if isinstance(stored, str) else self._decoded(stored)

    def parse(self) -> Any:
        """Return the value.

        Raises:
            ValueError: not JSON.
            RecursionError: nested too deep.
        """
        try:
            return json.loads(self.text)
        except json.JSONDecodeError:
            raise
        except ValueError:
            return json.loads(self.text, parse_int=self._integer)

    def problems_in(self, value: Any) -> Iterator[str]:
        """Tell what was wrong in a part of the value."""
        if not self._digits and not self._has_bytes:
            return
        numbers = set(map(id, self._digits))
        items = [item for level in levels(value) for item in level]
        for item in items:
            if id(item) in numbers:
                yield f"an integer of {len(item):,} digits is kept as text"
        texts = (text for item in items for text in (item if is_object(item) else (item,)))
        if self._has_bytes and any(isinstance(text, str) and _ESCAPED.search(text) for text in texts):
            yield "bytes that are not UTF-8 are kept as lone surrogates"

    def _decoded(self, stored: bytes) -> str:
        try:
            return stored.decode("utf-8-sig")
        except UnicodeDecodeError:
            self._has_bytes = True
            return stored.decode("utf-8-sig", "surrogateescape")

    def _integer(self, digits: str) -> int | str:
        try:
            return int(digits)
        except ValueError:
            self._digits.append(digits)  # found again by identity
            return digits

"""`connect`: a driver with a client of its own, set up as griptape sets its own up."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import httpx

from memkit.drivers.griptape_cloud.driver import RETRY_FOR, WRITE_TIMEOUT, GriptapeCloudDriver
from memkit.errors import FormatError

BASE_URL: Final = "https://cloud.griptape.ai"
REQUEST_TIMEOUT: Final = 10.0
"""Seconds that the service may be silent."""


@asynccontextmanager
async def connect(
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    thread_id: str | None = None,
    retry_for: float = RETRY_FOR,
    write_timeout: float = WRITE_TIMEOUT,
) -> AsyncGenerator[GriptapeCloudDriver]:
    """Open a driver with a client of its own, and close it in the end.

    What is not given is taken from GT_CLOUD_API_KEY, GT_CLOUD_BASE_URL and GT_CLOUD_THREAD_ID.

    Raises:
        FormatError: there is no key, or key or URL cannot be right.
    """
    key = _checked_key(api_key or os.environ.get("GT_CLOUD_API_KEY", ""))
    url = _checked_url(base_url or os.environ.get("GT_CLOUD_BASE_URL") or BASE_URL)
    one_thread = thread_id or os.environ.get("GT_CLOUD_THREAD_ID") or None
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=REQUEST_TIMEOUT) as client:
        yield GriptapeCloudDriver(client, thread_id=one_thread, retry_for=retry_for, write_timeout=write_timeout)


def _checked_key(key: str) -> str:
    if not key:
        raise FormatError("there is no key for Griptape Cloud: set GT_CLOUD_API_KEY, or give connect an api_key")
    if not key.isascii() or not key.isprintable() or " " in key:
        # The key itself stays out of errors, and of those that httpx would raise.
        raise FormatError(
            "the key for Griptape Cloud holds a space, a newline or what is not ASCII; copy it again"
        )
    return key


def _checked_url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise FormatError(f"the base URL {base_url[:200]!r} is none: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise FormatError(f"the base URL {base_url[:200]!r} must begin with https:// and a host")
    return url

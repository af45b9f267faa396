"""`GriptapeCloudDriver`: conversations as threads of Griptape Cloud, which griptape reads and writes too.

    async with connect() as driver:
        memory = Memory(driver, "user-id-123", codec=GriptapeCodec())

Needs the extra `cloud`. Runs on asyncio and trio. An append is two requests: one to see what is there, one that
stores the message; nothing is rewritten.
"""

from __future__ import annotations

try:
    import httpx as _  # noqa: F401 - so that nothing below fails with less to say
except ImportError as error:
    raise ImportError('the driver of Griptape Cloud needs httpx: pip install "memkit[cloud]"') from error

from memkit.drivers.griptape_cloud.connection import connect
from memkit.drivers.griptape_cloud.driver import GriptapeCloudDriver

__all__ = ("GriptapeCloudDriver", "connect")

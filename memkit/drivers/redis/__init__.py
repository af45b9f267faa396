"""`RedisDriver`: conversations in Redis 6.2 or later or Valkey, alone, with Sentinel or as a cluster.

    async with connect("redis://localhost") as driver:
        memory = Memory(driver, "user-id-123")

Needs the extra `redis`. Runs on asyncio only. An append, a load or a commit is one round trip, and those that wait
leave together. What is stored, and by which scripts, is told in `scripts`; who sends what when, in `batches`.
"""

from __future__ import annotations

try:
    import redis.asyncio as _  # noqa: F401 - so that nothing below fails with less to say
except ImportError as error:
    raise ImportError('the driver of Redis needs redis-py: pip install "memkit[redis]"') from error

from memkit.drivers.redis.connection import connect
from memkit.drivers.redis.driver import RedisDriver

__all__ = ("RedisDriver", "connect")

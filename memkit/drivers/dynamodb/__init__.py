"""`DynamoDbDriver`: conversations in a table of Amazon DynamoDB, an item for each run.

    async with connect("conversations") as driver:
        memory = Memory(driver, "user-id-123")

Needs the extra `dynamodb`. Runs on asyncio only. An append is one transaction, the newest runs are one query, and
nothing is rewritten. What is stored, and under which keys, is told in `layout`.
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("aioboto3") is None:  # importing it takes half a second, which `connect` spends in a thread
    raise ImportError('the driver of DynamoDB needs aioboto3: pip install "memkit[dynamodb]"')

from memkit.drivers.dynamodb.connection import connect, create_table
from memkit.drivers.dynamodb.driver import DynamoDbDriver

__all__ = ("DynamoDbDriver", "connect", "create_table")

"""The fixtures of the servers. Each is started when a test wants it first, once in each worker of pytest-xdist."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.servers.dynamodb import ENVIRONMENT, DynamoDB, dynamodb_server
from tests.servers.process import Watchdog
from tests.servers.valkey import BINARIES, RedisServers


@pytest.fixture(scope="session")
def watchdog() -> Iterator[Watchdog]:
    """Kill the servers of this session if the session is killed."""
    with Watchdog() as watchdog:
        yield watchdog


@pytest.fixture(scope="session")
def redis_servers(watchdog: Watchdog) -> Iterator[RedisServers]:
    """Give servers by name."""
    with ExitStack() as stack:
        yield RedisServers(watchdog, stack)


@pytest.fixture(params=list(BINARIES))
def redis_socket(request: pytest.FixtureRequest, redis_servers: RedisServers) -> str:
    """Give the socket of each server in turn. Keys of other tests are in it: use names of your own."""
    return redis_servers.socket(request.param)


@pytest.fixture(scope="session")
def dynamodb(watchdog: Watchdog) -> Iterator[DynamoDB]:
    """Give a DynamoDB, which clients of AWS find by themselves. Items of other tests are in it."""
    with dynamodb_server(watchdog) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL_DYNAMODB": server.url}.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        yield server

"""`connect`: a driver with a client of its own, by a URL."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, cast
from urllib.parse import SplitResult, unquote, urlsplit

from anyio import CancelScope
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException

from memkit.drivers.redis.driver import PREFIX, RETRY_FOR, TIMEOUT, WAIT_TIMEOUT, RedisDriver
from memkit.errors import FormatError, UnsupportedError
from memkit.finish import SEVERAL_WRITES, asyncio_loop, finish_async

MAX_CONNECTIONS: Final = 8
_SENTINEL: Final = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
_CLUSTER: Final = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
_FORMS: Final = (
    "redis://host:port/db, rediss://, unix:///path?db=0, redis+sentinel://host:port,host:port/service/db, "
    "rediss+sentinel://, redis+cluster://host:port,host:port or rediss+cluster://"
)


@asynccontextmanager
async def connect(
    url: str,
    *,
    cluster: bool = False,
    prefix: str = PREFIX,
    ttl: float | None = None,
    refresh_on_read: bool = False,
    timeout: float = TIMEOUT,  # noqa: ASYNC109 - of each try, not of this
    retry_for: float = RETRY_FOR,
    wait_replicas: int = 0,
    wait_timeout: float = WAIT_TIMEOUT,
    sentinel_username: str | None = None,
    sentinel_password: str | None = None,
) -> AsyncGenerator[RedisDriver]:
    """Open a driver with a client of its own, and close it in the end. Nothing is sent before the first call.

    URLs are those of redis-py, with its options as a query (`?ssl_ca_certs=...`), and
    `redis+sentinel://host:port,host:port/service/db` and `redis+cluster://host:port,host:port`, both also with
    `rediss`. User and password before the hosts are those of the servers, not of the Sentinels. `cluster=True`
    takes `redis://` for a node of a cluster. The rest is as in `RedisDriver`.

    Raises:
        FormatError: the URL has none of these forms.
        UnsupportedError: this is not asyncio.
    """
    if asyncio_loop() is None:
        raise UnsupportedError("redis-py runs on asyncio; use asyncio, or SqliteDriver or FileDriver on trio")
    auth = {"username": sentinel_username, "password": sentinel_password}
    client, sentinels = _client(url, cluster, timeout, {name: value for name, value in auth.items() if value})
    driver = RedisDriver(
        client,
        prefix=prefix,
        ttl=ttl,
        refresh_on_read=refresh_on_read,
        timeout=timeout,
        retry_for=retry_for,
        wait_replicas=wait_replicas,
        wait_timeout=wait_timeout,
    )

    async def close() -> None:
        async with AsyncExitStack() as opened:
            for each in (client, *sentinels):
                opened.push_async_callback(each.aclose)
            await driver.close()

    try:
        yield driver
    finally:
        with CancelScope(shield=True):
            await finish_async(close, time_limit=SEVERAL_WRITES)


_HANGING: Final = 4
"""How many Sentinels, or nodes of a cluster, that hang leave time to ask one that does not."""

# Functions of redis-py whose types are not complete.
_blocking_pool: Final[Callable[..., BlockingConnectionPool]] = cast("Any", BlockingConnectionPool).from_url
_pool: Final[Callable[..., ConnectionPool]] = cast("Any", ConnectionPool).from_url
_sentinel: Final = cast("Callable[..., Any]", Sentinel)


def _client(
    url: str, cluster: bool, timeout: float, sentinel_auth: dict[str, str]
) -> tuple[Redis | RedisCluster, list[Redis]]:
    """Return a client that tries everything once, as the driver tries again itself, and its Sentinels."""
    once: dict[str, Any] = {"socket_connect_timeout": timeout, "retry": Retry(NoBackoff(), 0)}
    # Who hangs must leave time to ask the others in the same try.
    limits = dict.fromkeys(("socket_connect_timeout", "socket_timeout"), timeout / _HANGING)
    try:
        parts = urlsplit(url)
        if parts.scheme in _SENTINEL:
            return _by_sentinel(parts, {**once, **limits, **sentinel_auth}, once)
        if cluster or parts.scheme in _CLUSTER:
            return _of_cluster(parts, {**once, **limits}), []
        pool = _blocking_pool(url, max_connections=MAX_CONNECTIONS, timeout=timeout, socket_timeout=None, **once)
        pool.connection_class(
            **pool.connection_kwargs
        )  # which knows what options there are, and connects to nothing
    except (ValueError, TypeError, RedisClusterException) as error:
        # Neither the URL, which may hold a password, nor what was made of it is shown.
        raise FormatError(f"this is no URL that connect knows ({type(error).__name__}): give {_FORMS}") from None
    return Redis.from_pool(pool), []


def _by_sentinel(
    parts: SplitResult, sentinel_options: dict[str, Any], once: dict[str, Any]
) -> tuple[Redis, list[Redis]]:
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("no service")
    options = _options(parts, _SENTINEL[parts.scheme], f"/{database or 0}")
    options.pop("connection_class", None)
    tls = {"ssl": True, **{name: value for name, value in options.items() if name.startswith("ssl_")}}
    is_tls = parts.scheme.startswith("rediss")
    sentinel = _sentinel(_hosts(parts, 26379), sentinel_kwargs={**sentinel_options, **(tls if is_tls else {})})
    client = sentinel.master_for(unquote(service), **{**once, "socket_timeout": None, "ssl": is_tls, **options})
    return client, sentinel.sentinels


def _of_cluster(parts: SplitResult, once: dict[str, Any]) -> RedisCluster:
    scheme = _CLUSTER.get(parts.scheme, parts.scheme)
    nodes = [ClusterNode(host, port) for host, port in _hosts(parts, 6379)]
    return RedisCluster.from_url(_one_host(parts, scheme, parts.path), startup_nodes=nodes, **once)


def _options(parts: SplitResult, scheme: str, path: str) -> dict[str, Any]:
    """Return what redis-py makes of user, password, database and query."""
    options: dict[str, Any] = _pool(_one_host(parts, scheme, path)).connection_kwargs
    return {name: value for name, value in options.items() if name not in {"host", "port", "himport_registry"}}


def _one_host(parts: SplitResult, scheme: str, path: str) -> str:
    """Return the URL as redis-py knows it, with the first host only."""
    user, at, hosts = parts.netloc.rpartition("@")
    return parts._replace(scheme=scheme, netloc=user + at + hosts.split(",")[0], path=path).geturl()


def _hosts(parts: SplitResult, default_port: int) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for netloc in parts.netloc.rpartition("@")[2].split(","):
        one = urlsplit(f"//{netloc}")
        if not one.hostname:
            raise ValueError("no host")
        found.append((one.hostname, one.port or default_port))
    return found

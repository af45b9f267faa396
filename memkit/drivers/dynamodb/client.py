"""What is made with the AWS SDK, which takes most of a second to import: in a worker thread, by `connection`."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final, cast

import aioboto3
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiohttp import TCPConnector
from botocore.exceptions import NoCredentialsError, SSLError
from botocore.httpsession import create_urllib3_context, get_cert_path

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb.service_resource import DynamoDBServiceResource, Table

CONNECT_TIMEOUT: Final = 3.0
READ_TIMEOUT: Final = 5.0
"""Seconds that an answer may take."""
MAX_CONNECTIONS: Final = 16


async def open_table(name: str, session: Any, region: str | None, endpoint_url: str | None) -> Table:
    """Return a table with a client of its own, which another event loop may use, and has to close.

    Raises:
        Exception: of the SDK: there is no region, there are no credentials, the endpoint is no URL ...
    """
    session = session or aioboto3.Session()
    config = AioConfig(
        retries={"mode": "standard", "total_max_attempts": 1},  # the driver tries again, and knows for how long
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        max_pool_connections=MAX_CONNECTIONS,
        tcp_keepalive=True,
        parameter_validation=False,  # takes a sixth of the time of a call, and the driver knows what it sends
        user_agent_extra="memkit",
        http_session_cls=_PreparedSession,
    )
    opening = session.resource("dynamodb", region_name=region, endpoint_url=endpoint_url, config=config)
    resource: DynamoDBServiceResource = await opening.__aenter__()
    if await session.get_credentials() is None:
        raise NoCredentialsError
    return await resource.Table(name)


class _PreparedSession(AIOHTTPSession):
    """Sends requests with a TLS context that was made with it, and nothing once it is closed.

    The usual session makes the context at the first request, which holds up the event loop for 20 ms, and opens
    connections after it was closed, which nobody closes.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._options = options
        self._is_closed = False
        self._prepared: ssl.SSLContext | None = None
        if options["verify"] and not options["client_cert"]:
            context: ssl.SSLContext = cast("Any", create_urllib3_context)()
            certificates = get_cert_path(options["verify"])
            try:
                context.load_verify_locations(certificates)
            except OSError as error:
                raise SSLError(endpoint_url=str(certificates), error=error) from error
            self._prepared = context

    async def __aexit__(self, *error: object) -> None:
        self._is_closed = True
        await cast("Any", super()).__aexit__(*error)

    async def send(self, request: Any) -> Any:
        if self._is_closed:
            raise RuntimeError("the session is closed")
        return await super().send(request)

    def _create_connector(self, proxy_url: str | None) -> TCPConnector:
        if proxy_url or self._prepared is None:
            usual: TCPConnector = cast("Any", super())._create_connector(proxy_url)  # noqa: SLF001 - overridden
            return usual
        limit, others = self._options["max_pool_connections"], self._options["connector_args"]
        return TCPConnector(limit=limit, ssl=self._prepared, **others)

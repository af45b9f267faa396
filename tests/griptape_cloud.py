"""A stand-in for Griptape Cloud on the loopback: threads and messages as its API describes them, and faults."""

from __future__ import annotations

import json
import random
import re
import socket
import sys
import threading
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

KEY = "gt-a-key-that-nobody-may-see"


@dataclass
class Fault:
    """What happens to the next request of this method whose path matches, instead of the usual or after it."""

    method: str
    path: str
    status: int = 0  # answered instead of doing anything; 0: the request is done
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    lose: Literal["request", "reply", "half of the reply"] | None = None
    hold: threading.Event | None = None  # the reply waits for it, after the effect
    reached: threading.Event = field(default_factory=threading.Event)

    def hits(self, method: str, path: str) -> bool:
        return method == self.method and re.fullmatch(self.path, path) is not None


@dataclass
class Request:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    authorization: str

    def __str__(self) -> str:
        return f"{self.method} {re.sub('[0-9a-f-]{36}', 'ID', self.path)}"


class RefusedError(Exception):
    """The service says no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class GriptapeCloud:
    """The state of the service. Everything that its API leaves open is an attribute that tests set."""

    def __init__(self) -> None:
        self.url = ""
        self.page_size = 100
        self.order: Literal["ascending", "descending", "shuffled"] = "ascending"
        self.unique_aliases = False
        self.first_index = 0
        self.has_next_page = True  # else only page_number and total_pages
        self.ignores_page = False
        self.ignores_alias = False  # lists all threads, whatever alias is asked for
        self.prefix = ""  # of the path, as behind a gateway
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.threads: dict[str, dict[str, Any]] = {}
        self.messages: dict[str, list[dict[str, Any]]] = {}
        self._made = 0
        self._lock = threading.RLock()
        self._random = random.Random(7)

    @property
    def log(self) -> list[str]:
        """The requests so far, in short."""
        return [str(request) for request in self.requests]

    def add_fault(self, method: str, path: str, **what: Any) -> Fault:
        fault = Fault(method, path, **what)
        self.faults.append(fault)
        return fault

    def add_thread(self, alias: str | None = None, **fields: Any) -> str:
        with self._lock:
            return self._new_thread({"name": alias or "a thread", "alias": alias} | fields)["thread_id"]

    def add_message(self, thread_id: str, **fields: Any) -> dict[str, Any]:
        with self._lock:
            return self._new_message(thread_id, {"input": "", "output": "", "metadata": {}} | fields)

    # --- the API ---

    def answer(self, request: Request) -> tuple[int, Any]:
        if request.authorization != f"Bearer {KEY}":
            raise RefusedError(401, "Unauthorized")
        if not request.path.startswith(f"{self.prefix}/api/"):
            raise RefusedError(404, "no such path")
        parts = request.path.removeprefix(f"{self.prefix}/api/").split("/")
        with self._lock:
            match request.method, *parts:
                case "GET", "threads":
                    return 200, self._page("threads", self._threads_of(request.query.get("alias")), request)
                case "POST", "threads":
                    return 201, self._new_thread(request.body)
                case "GET", "threads", thread_id:
                    return 200, self._thread(thread_id)
                case "PATCH", "threads", thread_id:
                    return 200, self._patch(thread_id, request.body)
                case "DELETE", "threads", thread_id:
                    self._thread(thread_id)
                    del self.threads[thread_id], self.messages[thread_id]
                    return 204, None
                case "GET", "threads", thread_id, "messages":
                    self._thread(thread_id)
                    return 200, self._page("messages", self.messages[thread_id], request)
                case "POST", "threads", thread_id, "messages":
                    self._thread(thread_id)
                    return 201, self._new_message(thread_id, request.body)
                case _:
                    raise RefusedError(404, "no such path")

    def _thread(self, thread_id: str) -> dict[str, Any]:
        if thread_id not in self.threads:
            raise RefusedError(404, "Thread not found")
        return self.threads[thread_id]

    def _threads_of(self, alias: str | None) -> list[dict[str, Any]]:
        return [
            thread
            for thread in self.threads.values()
            if alias is None or thread["alias"] == alias or self.ignores_alias
        ]

    def _new_thread(self, body: dict[str, Any]) -> dict[str, Any]:
        name, alias = body.get("name"), body.get("alias")
        for what, value in (("name", name), ("alias", alias)):
            if not (value is None and what == "alias") and not 1 <= len(value or "") <= 200:
                raise RefusedError(422, f"{what}: must have 1 to 200 characters")
        taken = {thread["alias"] for thread in self.threads.values()}
        if alias is not None and self.unique_aliases and alias in taken:
            raise RefusedError(409, "Thread alias already exists")
        thread_id = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        made = {"thread_id": thread_id, "organization_id": "org", "created_by": "me", **self._times()}
        self.threads[thread_id] = made | {"name": name, "alias": alias, "metadata": body.get("metadata") or {}}
        self.messages[thread_id] = []
        self._add_messages(thread_id, body.get("messages") or [])
        if "created_at" in body:  # only by add_thread
            self.threads[thread_id]["created_at"] = body["created_at"]
        return self.threads[thread_id]

    def _patch(self, thread_id: str, body: dict[str, Any]) -> dict[str, Any]:
        thread = self._thread(thread_id)
        for name in ("name", "metadata"):  # what else there is in the body is dropped without a word
            if name in body:
                thread[name] = body[name]
        if "messages" in body:
            self.messages[thread_id] = []
            self._add_messages(thread_id, body["messages"])
        thread["updated_at"] = self._times()["updated_at"]
        return thread

    def _add_messages(self, thread_id: str, bodies: list[dict[str, Any]]) -> None:
        for body in bodies:
            self._new_message(thread_id, body)

    def _new_message(self, thread_id: str, body: dict[str, Any]) -> dict[str, Any]:
        for name in ("input", "output"):
            if not isinstance(body.get(name), str):
                raise RefusedError(422, f"{name}: a string is required")
        messages = self.messages[thread_id]
        message = {
            "message_id": str(uuid.UUID(int=self._random.getrandbits(128), version=4)),
            "thread_id": thread_id,
            "created_by": "me",
            **self._times(),
            "index": body.get("index", messages[-1]["index"] + 1 if messages else self.first_index),
            "input": body["input"],
            "output": body["output"],
            "metadata": body.get("metadata"),
        }
        messages.append(message)
        return message

    def _page(self, name: str, items: list[dict[str, Any]], request: Request) -> dict[str, Any]:
        size = min(int(request.query.get("page_size", self.page_size)), self.page_size)
        number = 1 if self.ignores_page else int(request.query.get("page", 1))
        items = items[::-1] if self.order == "descending" else list(items)
        total = max(1, -(-len(items) // size))
        page = items[(number - 1) * size : number * size]
        if self.order == "shuffled":
            self._random.shuffle(page)
        pagination = {"total_count": len(items), "page_number": number, "page_size": size, "total_pages": total}
        if self.has_next_page and number < total:
            pagination["next_page"] = number + 1
        return {name: page, "pagination": pagination}

    def _times(self) -> dict[str, str]:
        self._made += 1
        now = (datetime(2025, 1, 1, tzinfo=UTC) + timedelta(milliseconds=self._made)).isoformat()
        return {"created_at": now, "updated_at": now}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    service: GriptapeCloud

    def do_GET(self) -> None:
        target = urlsplit(self.path)
        size = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(size)
        request = Request(
            self.command,
            target.path,
            {name: values[0] for name, values in parse_qs(target.query, keep_blank_values=True).items()},
            json.loads(raw) if raw else None,
            self.headers.get("Authorization", ""),
        )
        self.service.requests.append(request)
        faults = self.service.faults
        fault = next((item for item in faults if item.hits(request.method, request.path)), None)
        if fault is not None:
            faults.remove(fault)
        self._reply(request, fault or Fault("", ""))

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the names that http.server wants

    def _reply(self, request: Request, fault: Fault) -> None:
        if fault.lose == "request":
            fault.reached.set()
            return self._cut()
        status, headers, body = fault.status, fault.headers, fault.body
        if not status:
            status, body = self._answer(request)
        fault.reached.set()
        if fault.hold is not None:
            fault.hold.wait(30)
        if fault.lose == "reply":
            return self._cut()
        lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in headers.items())]
        if status != 204:
            lines.append(f"Content-Length: {len(body)}")
        data = ("\r\n".join(lines) + "\r\n\r\n").encode() + body
        if fault.lose == "half of the reply":
            self.wfile.write(data[: -len(body) // 2])
            return self._cut()
        self.wfile.write(data)
        return None

    def _answer(self, request: Request) -> tuple[int, bytes]:
        try:
            status, value = self.service.answer(request)
        except RefusedError as error:
            status = error.status
            value = {"type": "Error", "errors": [{"type": "Error", "message": str(error)}]}
        return status, b"" if value is None else json.dumps(value).encode()

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, service: GriptapeCloud) -> None:
        super().__init__(("127.0.0.1", 0), type("Handler", (_Handler,), {"service": service}))
        self.connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # that is a client that has gone away
            super().handle_error(request, client_address)


@contextmanager
def serve(service: GriptapeCloud) -> Generator[GriptapeCloud]:
    """Serve until the block is left; then cut what is still open."""
    with _Server(service) as server:
        service.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True).start()
        try:
            yield service
        finally:
            server.shutdown()
            for connection in list(server.connections):
                connection.close()

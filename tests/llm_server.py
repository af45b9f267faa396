"""A model service on the loopback interface: chat completions, plain and streamed, and Converse of Bedrock.

It speaks the wire format of the real ones to real clients. What goes wrong is scripted: a `Reply` a request.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

SUMMARY = "Collin likes tea."


@dataclass
class Reply:
    """How one request is answered. An `ending` of None is the usual one; `body` replaces the whole body."""

    text: str = SUMMARY
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    ending: str | None = None
    refusal: str | None = None
    body: bytes | None = None
    kind: str = "application/json"
    hangs: bool = False
    breaks_off: bool = False


@dataclass
class Request:
    """A request as it came, the names of its headers in lower case."""

    path: str
    headers: Mapping[str, str]
    body: Any


class LlmServer(ThreadingHTTPServer):
    """Answers what is in `script`, in that order, and then with `SUMMARY`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[Reply] = []
        self.requests: list[Request] = []
        self.is_closing = Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that have gone."""


@contextmanager
def llm_server() -> Iterator[LlmServer]:
    """Run a server in a thread."""
    with LlmServer() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.is_closing.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: LlmServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(Request(self.path, headers, given))
        reply = self.server.script.pop(0) if self.server.script else Reply()
        if reply.hangs:
            self.server.is_closing.wait()
            self.close_connection = True
            return
        body, kind = _body(self.path, given, reply)
        self.send_response(reply.status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = reply.breaks_off
        self.wfile.write(body[: len(body) // 2] if reply.breaks_off else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _body(path: str, given: Any, reply: Reply) -> tuple[bytes, str]:
    if reply.body is not None:
        return reply.body, reply.kind
    if reply.status != 200:
        message = "out of order"
        return json.dumps({"message": message, "error": {"message": message}}).encode(), reply.kind
    if path.endswith("/converse"):
        return json.dumps(_converse(reply)).encode(), reply.kind
    if given.get("stream"):
        return _stream(reply), "text/event-stream"
    return json.dumps(_completion(reply)).encode(), reply.kind


def _completion(reply: Reply) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
    choice = {"index": 0, "message": message, "finish_reason": reply.ending or "stop"}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "a-model", "choices": [choice]}


def _stream(reply: Reply) -> bytes:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in reply.text.split(" ")[:1]]
    deltas += [{"content": f" {piece}"} for piece in reply.text.split(" ")[1:]]
    if reply.refusal is not None:
        deltas.append({"refusal": reply.refusal})
    choices = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    choices.append([{"index": 0, "delta": {}, "finish_reason": reply.ending or "stop"}])
    choices.append([])  # the chunk that tells the usage
    about = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "a-model"}
    events = [json.dumps({**about, "choices": choice}) for choice in choices]
    return "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()


def _converse(reply: Reply) -> dict[str, Any]:
    return {
        "output": {"message": {"role": "assistant", "content": [{"text": reply.text}]}},
        "stopReason": reply.ending or "end_turn",
        "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2},
        "metrics": {"latencyMs": 1},
    }

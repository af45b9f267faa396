"""A bot behind HTTP that remembers each of its users: one driver, one Background, a token budget.

    python examples/bot_backend.py --port 8080
    curl -d '{"user": "ada", "text": "My name is Ada."}' http://127.0.0.1:8080/chat
    curl http://127.0.0.1:8080/health
    python examples/bot_load.py --port 8080 --users 500 --turns 10

Conversations are kept in the SQLite file --database, or, if MEMKIT_REDIS_URL is set, in Redis or Valkey. A
stand-in answers and summarises, after the time that a model would take (--model-ms).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

import memkit
from memkit import (
    Background,
    ChatMessage,
    Driver,
    Memory,
    Run,
    SqliteDriver,
    SummaryPolicy,
    counters,
    prune,
    text_of,
)

SYSTEM = "You are a helpful assistant. Answer in one sentence."
MAX_BODY = 1_000_000


class Bot:
    """Answers one request after the other of each user, and many users at once."""

    def __init__(self, driver: Driver, background: Background, args: argparse.Namespace) -> None:
        self.driver = driver
        self.background = background
        self.model_seconds = args.model_ms / 1_000
        counter = counters.approximate()
        self.options: memkit.Options = {
            "strategy": prune(args.budget, counter=counter, step=8),
            "summarizer": self.summarize,
            "policy": SummaryPolicy(keep=4, every=8),
            "background": background,
        }

    async def answer(self, user: str, text: str) -> str:
        async with Memory(self.driver, user, **self.options) as memory:
            messages = memory.messages(text, system=SYSTEM, reserve=300)
            # Left by an error or because the client has gone, what was said is stored as a partial run.
            async with memory.turn(text) as turn:
                turn.answer(await self.ask(messages))
            return text_of(turn.run.output)

    async def ask(self, messages: list[ChatMessage]) -> str:
        await anyio.sleep(self.model_seconds)
        return f"I have read {len(messages)} messages, the last of which is: {messages[-1]['content']}"

    async def summarize(self, runs: Sequence[Run], *, previous: str | None) -> str:
        await anyio.sleep(self.model_seconds)
        said = [text_of(run.input)[:60] for run in runs]
        return " ".join([*([previous] if previous else []), *said])[-800:]


class Lag:
    """How late the event loop is: the longest that a heartbeat of a millisecond came late since the last look."""

    def __init__(self) -> None:
        self.worst = 0.0

    async def watch(self) -> None:
        while True:
            begun = time.perf_counter()
            await anyio.sleep(0.001)
            self.worst = max(self.worst, time.perf_counter() - begun - 0.001)

    def take(self) -> float:
        worst, self.worst = self.worst, 0.0
        return worst


# --- HTTP, as little of it as this needs ---


class BadRequestError(Exception):
    """A request that is no question."""


async def serve(bot: Bot, lag: Lag, client: SocketStream) -> None:
    async with client:
        stream = BufferedByteReceiveStream(client)
        try:
            while request := await read_request(stream):
                status, reply = await respond(bot, lag, *request)
                body = json.dumps(reply).encode()
                fields = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
                await client.send(f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode() + body)
        except BadRequestError as error:  # what follows in the stream cannot be read
            await client.send(f"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\r\n{error}".encode())
        except (anyio.BrokenResourceError, anyio.IncompleteRead, anyio.DelimiterNotFound):
            pass  # the client has gone, or does not speak HTTP


async def read_request(stream: BufferedByteReceiveStream) -> tuple[str, str, bytes] | None:
    try:
        head = (await stream.receive_until(b"\r\n\r\n", 16_384)).decode("latin-1")
    except (anyio.EndOfStream, anyio.IncompleteRead):
        return None
    line, *fields = head.split("\r\n")
    method, path, *_ = [*line.split(" "), "", ""]
    split = [field.partition(":") for field in fields]
    headers = {name.strip().lower(): value.strip() for name, _, value in split}
    length = headers.get("content-length", "0")
    size = int(length) if length.isascii() and length.isdigit() and len(length) < 10 else -1
    if not 0 <= size <= MAX_BODY:
        raise BadRequestError(f"a body has at most {MAX_BODY:,} bytes")
    return method, path, await stream.receive_exactly(size) if size else b""


async def respond(bot: Bot, lag: Lag, method: str, path: str, body: bytes) -> tuple[str, dict[str, Any]]:
    try:
        if (method, path) == ("GET", "/health"):
            background = bot.background
            numbers = {"pending": background.pending, "running": background.running, "failed": background.failed}
            return "200 OK", {**numbers, "worst_lag_ms": round(1_000 * lag.take(), 2)}
        if (method, path) != ("POST", "/chat"):
            return "404 Not Found", {"error": "there are POST /chat and GET /health"}
        user, text = question(body)
        return "200 OK", {"answer": await bot.answer(user, text)}
    except BadRequestError as error:
        return "400 Bad Request", {"error": str(error)}
    except memkit.FormatError as error:
        return "422 Unprocessable Content", {"error": str(error)}
    except memkit.MemkitError as error:
        return "503 Service Unavailable", {"error": str(error)}


def question(body: bytes) -> tuple[str, str]:
    try:
        given = json.loads(body)
        user, text = given["user"], given["text"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadRequestError('send {"user": "...", "text": "..."}') from error
    if not isinstance(user, str) or not isinstance(text, str) or not text:
        raise BadRequestError("user and text must be text")
    return user, text


@asynccontextmanager
async def open_driver(args: argparse.Namespace) -> AsyncIterator[Driver]:
    if url := os.environ.get("MEMKIT_REDIS_URL"):
        from memkit.drivers import redis

        async with redis.connect(url) as driver:
            yield driver
    else:
        async with SqliteDriver(args.database, durable=not args.quick) as driver:
            yield driver


async def main(args: argparse.Namespace) -> None:
    lag = Lag()
    async with open_driver(args) as driver, Background() as background:
        bot = Bot(driver, background, args)
        listener = await anyio.create_tcp_listener(local_host=args.host, local_port=args.port)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        print(f"{driver!r} answers at http://{args.host}:{port}/chat", flush=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lag.watch)
            await listener.serve(lambda client: serve(bot, lag, client))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 is any that is free (default: 8080)")
    parser.add_argument("--database", default="bot.sqlite", help="the SQLite file (default: bot.sqlite)")
    parser.add_argument("--quick", action="store_true", help="do not wait for the disk")
    parser.add_argument("--budget", type=int, default=4_000, help="tokens for prompt and answer (default: 4000)")
    parser.add_argument("--model-ms", type=float, default=50, help="how long the stand-in thinks (default: 50)")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        anyio.run(main, arguments())
    except KeyboardInterrupt:
        pass
    except (memkit.MemkitError, OSError) as error:
        sys.exit(f"bot_backend.py: {error}")

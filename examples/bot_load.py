"""Put load on bot_backend.py: many users who talk at once; throughput, latencies and the lag of its event loop.

python examples/bot_backend.py --port 8080 --model-ms 0
python examples/bot_load.py --port 8080 --users 500 --turns 10
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from statistics import quantiles
from typing import Any

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

GONE = (anyio.BrokenResourceError, anyio.EndOfStream, anyio.IncompleteRead)


async def request(
    client: SocketStream, stream: BufferedByteReceiveStream, method: str, path: str, given: object = None
) -> dict[str, Any]:
    body = b"" if given is None else json.dumps(given).encode()
    fields = f"Host: bot\r\nContent-Length: {len(body)}"
    await client.send(f"{method} {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body)
    head = (await stream.receive_until(b"\r\n\r\n", 16_384)).decode("latin-1")
    length = int(head.lower().partition("content-length:")[2].split("\r\n")[0])
    reply: dict[str, Any] = json.loads(await stream.receive_exactly(length))
    if " 200 " not in head.split("\r\n")[0]:
        raise RuntimeError(f"{head.splitlines()[0]}: {reply}")
    return reply


async def main(args: argparse.Namespace) -> None:
    latencies: list[float] = []
    failures: list[str] = []
    finished = 0

    async def talk(user: int) -> None:
        nonlocal finished
        try:
            async with await anyio.connect_tcp(args.host, args.port) as client:
                stream = BufferedByteReceiveStream(client)
                for turn in range(args.turns):
                    begun = time.perf_counter()
                    text = f"This is turn {turn} of user {user}. What do you say?"
                    await request(client, stream, "POST", "/chat", {"user": f"user-{user}", "text": text})
                    latencies.append(time.perf_counter() - begun)
        except (OSError, RuntimeError, *GONE) as error:
            failures.append(repr(error))
        finished += 1

    async def progress() -> None:
        while finished < args.users:
            so_far = f"{len(latencies):,} answers, {finished:,} of {args.users:,} users are done"
            print(f"\r{so_far}", end="", flush=True)
            await anyio.sleep(0.5)

    begun = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        if sys.stderr.isatty():
            tasks.start_soon(progress)
        for user in range(args.users):
            tasks.start_soon(talk, user)
    seconds = time.perf_counter() - begun
    if failures:
        sys.exit(f"bot_load.py: {len(failures)} of {args.users} users failed, the first by {failures[0]}")
    health = await look(args)
    cuts = quantiles(latencies, n=100) if len(latencies) > 1 else latencies * 99
    print(f"\r{len(latencies):,} answers in {seconds:.2f} s: {len(latencies) / seconds:,.0f} a second")
    print("latency: " + ", ".join(f"p{n} {1_000 * cuts[n - 1]:.1f} ms" for n in (50, 90, 99)))
    print(f"the loop of the bot was late by {health['worst_lag_ms']} ms at worst; summaries: {health}")


async def look(args: argparse.Namespace) -> dict[str, Any]:
    async with await anyio.connect_tcp(args.host, args.port) as client:
        return await request(client, BufferedByteReceiveStream(client), "GET", "/health")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--users", type=positive, default=200, help="who talk at once (default: 200)")
    parser.add_argument("--turns", type=positive, default=10, help="of each user (default: 10)")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        anyio.run(main, arguments())
    except KeyboardInterrupt:
        sys.exit(130)

"""Commands of many tasks leave together: one pipeline on one connection while others wait for the next.

Each server has a lane. A command that finds its lane idle is sent at once, by the task that wants it: nothing is
quicker. What comes while the lane is busy waits, and a flusher, a task that the lane starts when something waits,
sends it in pipelines until nothing waits any more. The flusher owns all retries, too.

Nobody is left alone, because:

- A lane is busy exactly while a task sends at once or a flusher runs. The task that sends at once starts the
  flusher if something waits when it leaves, however it leaves; the flusher sees that nothing waits and makes the
  lane idle without awaiting anything between.
- The flusher ends with every command that it took being answered, put into a lane whose flusher runs, or given the
  error that ended it. It is not to be cancelled: a cancellation (that of all tasks at the end of `asyncio.run`)
  only cuts its connection, as a fault would.
- Replies that were taken from the connection are told before the flusher ends or pauses; while there is enough to
  send, they are told after the next pipeline has left, so that server and callers work at the same time.
- It lives while callers wait for it, and no longer: a caller whose write may have left waits to its end, whoever
  cancels, and every command ends, as `retry_for` bounds how often it is tried and `timeout` each try. A caller
  that only reads may leave at once; what nobody waits for is not tried again.

What was cut, or had no answer in time, is sent again, in order, with pauses that double. That is safe because
every operation may be repeated: ids are known, a commit brings its own revision, a deletion names the epoch.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisClusterException, RedisError

from memkit.drivers.redis.commands import Command
from memkit.drivers.redis.nodes import reader_of
from memkit.drivers.redis.replies import (
    asked_node,
    check_version,
    code_of,
    explained,
    given_up,
    is_final,
    may_pass,
    too_few_replicas,
)
from memkit.drivers.redis.scripts import SCRIPTS, pack
from memkit.drivers.redis.timelimit import TimeLimit
from memkit.errors import MemkitError

if TYPE_CHECKING:
    from memkit.drivers.redis.lanes import Lanes

PIPELINE: Final = 128
"""How many commands a pipeline has at most: with more, all would wait for the last."""

MAX_BYTES: Final = 8 * 1024 * 1024
"""About how many bytes go and come in a pipeline at most, if it is more than one command."""

SLICE: Final = 32
"""How many callers are told in one turn of the event loop, which must not stand still for all of them."""

_LONGEST_PAUSE: Final = 1.0
_FAILURES: Final = (OSError, RedisError, RedisClusterException, TimeoutError, asyncio.CancelledError)
_ASKING: Final = pack(b"ASKING")


class Lane:
    """The commands for one server."""

    def __init__(self, lanes: Lanes, name: str) -> None:
        self.failures = 0
        self.is_busy = False
        self._lanes = lanes
        self._nodes = lanes.nodes
        self._name = name
        self._waiting: deque[Command] = deque()
        self._answered: deque[tuple[Command, Any]] = deque()  # replies that callers are still to be told
        self._time_limit = TimeLimit(lanes.timeout)
        self._flusher: asyncio.Task[None] | None = None  # or nothing would keep it
        self._tries = 0
        self._is_stale = False  # the connection leads to what is no master any more

    async def do(self, command: Command) -> Any:
        """Send a command at once if nothing is under way, with the next pipeline otherwise; return the reply."""
        if self.is_busy or self._lanes.wait_replicas:
            self.put(command)
            return await command.outcome()
        self.is_busy = True
        replies: list[Any] = []
        try:
            await self._exchange((command,), replies)
        except asyncio.CancelledError:
            command.is_open = command.is_write and command.was_sent
            self._leave(command if command.is_open else None)
            if command.is_open:
                with suppress(Exception):
                    await command.outcome()
            raise
        except _FAILURES as error:
            self._failed(error, (command,))
        except BaseException as error:
            self._leave(None)
            if isinstance(error, Exception):
                raise explained(error, command.key, is_open=False) from error
            raise
        if not replies or may_pass(replies[0]):
            self._leave(command)
            return await command.outcome()
        self._leave(None)
        self._tries = 0
        if isinstance(replies[0], Exception):
            raise explained(replies[0], command.key, is_open=False) from replies[0]
        return replies[0]

    def put(self, command: Command) -> None:
        """Let a command leave with the next pipeline."""
        command.expect()
        self._waiting.append(command)
        if not self.is_busy:
            self._go_on()

    def _leave(self, command: Command | None) -> None:
        """End what was sent at once, be it that the flusher must send it again."""
        if command is not None:
            command.expect()
            self._waiting.appendleft(command)
        self._go_on()

    def _go_on(self) -> None:
        """Start the flusher if something waits, or else make the lane idle."""
        self.is_busy = bool(self._waiting)
        if self.is_busy:
            self._flusher = self._lanes.loop.create_task(self._flush(), name="memkit redis")
            self._flusher.add_done_callback(self._flusher_ended)

    def _flusher_ended(self, flusher: asyncio.Task[None]) -> None:
        """Start another one if this was cancelled before its first step, as `asyncio.run` does at its end."""
        if flusher.cancelled() and self._waiting:
            self._go_on()

    async def _flush(self) -> None:
        batch: list[Command] = []
        try:
            while self._waiting or self._answered:
                if len(self._waiting) < SLICE:
                    with suppress(asyncio.CancelledError):
                        await self._tell()
                batch = self._next_batch()
                if batch:
                    await self._attempt(batch)
        except BaseException as error:  # whatever it is, those who wait must be told
            _settle_all((*batch, *self._waiting, *(command for command, _ in self._answered)), error)
            self._waiting.clear()
            self._answered.clear()
            if not isinstance(error, Exception):
                raise
        finally:
            self._flusher = None
            self.is_busy = False

    def _next_batch(self) -> list[Command]:
        batch: list[Command] = []
        size = 0
        for command in islice(self._waiting, PIPELINE):
            size += command.weight
            if size > MAX_BYTES and batch:
                break
            batch.append(command)
        for _ in batch:
            self._waiting.popleft()
        return batch

    async def _exchange(self, batch: Sequence[Command], replies: list[Any]) -> bool:
        """Send commands and collect their replies; return whether enough replicas have what was written.

        What has no reply when this raises may have been done.
        """
        lanes = self._lanes
        waits = lanes.wait_replicas > 0 and any(command.is_write for command in batch)
        with self._time_limit:
            connection = await self._nodes.acquire(self._name)
            try:
                if self._is_stale:
                    await connection.disconnect(nowait=True)
                    await connection.connect()
                    self._is_stale = False
                packed = [_ASKING + command.packed if command.asking else command.packed for command in batch]
                for command in batch:
                    command.was_sent = True
                await connection.send_packed_command(
                    [*packed, lanes.wait] if waits else packed, check_health=False
                )
                if self._answered:  # the last batch, while the server is busy with this one
                    await self._tell()
                read = reader_of(connection)
                for command in batch:
                    if command.asking:
                        await read()
                    replies.append(await read())
                reached = await read() if waits else 0
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            finally:
                await self._nodes.release(self._name, connection)
        return not waits or (type(reached) is int and reached >= lanes.wait_replicas)

    async def _attempt(self, batch: Sequence[Command]) -> None:
        """Send a batch and take its replies. What has to be sent again waits again, in front."""
        replies: list[Any] = []
        failure: BaseException | None = None
        reached = True
        try:
            reached = await self._exchange(batch, replies)
        except _FAILURES as error:
            failure = error
            if self._lanes.wait_replicas:
                replies.clear()  # whether the replicas have it is not known
            self._failed(error, batch[len(replies) :])
        again: list[Command] = []
        for command, reply in zip(batch, replies, strict=False):
            if not isinstance(reply, Exception):
                is_safe = reached or not command.is_write
                self._answered.append(
                    (command, reply if is_safe else too_few_replicas(command.key, self._lanes.wait_replicas))
                )
            elif may_pass(reply):
                self._note(command, reply)
                again.append(command)
            else:
                self._answered.append((command, explained(reply, command.key, is_open=command.is_open)))
        again += batch[len(replies) :]
        if not again:
            self._tries = 0
            return
        with suppress(asyncio.CancelledError):
            await self._tell()
        if failure is not None and is_final(failure):
            _settle_all(again, failure)
        else:
            await self._repeat(again)

    async def _tell(self) -> None:
        """Let callers go on, in slices. What is left when this is cancelled is told the next time."""
        while self._answered:
            for _ in range(min(SLICE, len(self._answered))):
                command, reply = self._answered.popleft()
                if isinstance(reply, Exception):
                    command.settle(None, reply)
                else:
                    command.settle(reply)
            await asyncio.sleep(0)

    def _failed(self, error: BaseException, commands: Sequence[Command]) -> None:
        self.failures += 1
        for command in commands:
            command.error, command.asking = error, None
            command.is_open = command.is_open or command.was_sent

    def _note(self, command: Command, reply: Exception) -> None:
        code = code_of(reply)
        command.error = reply
        if code == "READONLY":
            self._is_stale = True
        if code != "NOSCRIPT":
            command.asking = asked_node(reply)

    async def _repeat(self, again: Sequence[Command]) -> None:
        """Let commands wait once more, each in the lane of the server that has its slot by now."""
        lanes = self._lanes
        codes = {code_of(command.error) for command in again}
        if "NOSCRIPT" in codes:
            try:
                refusal = await self._load_scripts()
            except _FAILURES as error:
                self._failed(error, ())
            else:
                if refusal is not None:
                    _settle_all(again, refusal)
                    return
        if self._tries > 0:  # at once for the first time: a connection that was idle for long is often cut
            longest = min(_LONGEST_PAUSE, 0.01 * 2**self._tries)
            await _pause(longest * random.uniform(0.5, 1))  # noqa: S311 - so that not all clients come back at once
        self._tries += 1
        if codes != {"NOSCRIPT"}:
            with suppress(Exception, asyncio.CancelledError):  # then what is known already has to do
                async with asyncio.timeout(lanes.timeout):
                    await self._nodes.refresh()
        waiting = [command for command in (*again, *self._waiting) if command.is_wanted()]
        self._waiting.clear()
        for command in waiting:
            if command.deadline <= lanes.loop.time():
                late = given_up(command.error, command.key, lanes.retry_for, is_open=command.is_open)
                command.settle(None, late)
                continue
            lane = lanes.lane(command.asking or self._nodes.name_of(command.slot))
            if lane is self:
                self._waiting.append(command)
            else:
                lane.put(command)

    async def _load_scripts(self) -> Exception | None:
        """Load all scripts; return what the server has against that."""
        batch = [Command("", 0, pack(b"INFO", b"server"), is_write=False)]
        batch += [Command("", 0, pack(b"SCRIPT", b"LOAD", script.source), is_write=False) for script in SCRIPTS]
        replies: list[Any] = []
        await self._exchange(batch, replies)
        try:
            check_version(replies[0])
        except MemkitError as error:
            return error
        return next((reply for reply in replies[1:] if isinstance(reply, Exception)), None)


def _settle_all(commands: Iterable[Command], error: BaseException) -> None:
    for command in commands:
        if isinstance(error, MemkitError) or not isinstance(error, Exception):
            command.settle(None, error)
        else:
            command.settle(None, explained(error, command.key, is_open=command.is_open))


async def _pause(seconds: float) -> None:
    with suppress(asyncio.CancelledError):  # the flusher ends when all that waits has been answered
        await asyncio.sleep(seconds)

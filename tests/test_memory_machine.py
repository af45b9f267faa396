"""Any sequence of calls on several handles, with lost requests and replies, leaves what a plain log would hold."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memkit import viewer as viewer_module
from memkit import window as window_module
from memkit.content import Text
from memkit.conversation import Head
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ConflictError, DriverError
from memkit.memory import Memory
from memkit.run import Amend, Entry, Extend, Retract, Run, new_run
from memkit.strategies import Strategy, everything, last_runs, prune
from memkit.testing import Fault, FlakyDriver
from memkit.tokens import cost_of, counted
from tests.memories import CODEC, Words, ids, store, stored, summarize
from tests.plain_log import Log, bare

T = TypeVar("T")

KEY = "k"
WORDS = Words(per_message=1)
RETAIN = 9

strategies: Sequence[Strategy] = (last_runs(2), everything, prune(25, counter=WORDS), last_runs(4))
handles = st.integers(0, len(strategies) - 1)
which = st.integers(0, 100)
texts = st.sampled_from(["yes", "one two three", ""])


@dataclass
class Handle:
    """A handle, and whether a failure has left it with too small a window."""

    memory: Memory
    is_settled: bool = True


class MemoryMachine(RuleBasedStateMachine):
    """Handles with different strategies on one conversation. Subclasses say in which store, on which loop."""

    backend: str
    store: str

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        for module in (window_module, viewer_module):
            patch.setattr(module, "PAGE", 4)  # so that short logs are read in pages
        self.portal = self.stack.enter_context(start_blocking_portal(self.backend))
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.driver = InMemoryDriver() if self.store == "memory" else FileDriver(folder)
        self.faults: deque[Fault | None] = deque()
        self.log = Log()
        self.logs = {"": Log()}
        self.unsure: list[tuple[Handle, Run, int, str]] = []
        self.number = 0

    @initialize(number=st.integers(0, 30), changes=st.lists(st.tuples(which, st.booleans()), max_size=12))
    def open_handles(self, number: int, changes: list[tuple[int, bool]]) -> None:
        steps = (Text(text="one"), Text(text="two"))
        entries: list[Entry] = [Run(f"r{n}", self.new_text(), steps, "yes") for n in range(number)]
        for n, (which, is_retract) in enumerate(changes if number else ()):
            at = which % number
            change = Retract(f"x{n}", f"r{at}", at) if is_retract else Extend(f"x{n}", f"r{at}", at, output=f"{n}")
            entries.append(change)
        if entries:
            self.call(partial(store, self.driver, KEY, entries))
            self.take_in()
        self.handles = [self.call(partial(self.open, strategy)) for strategy in strategies]

    async def open(self, strategy: Strategy) -> Handle:
        flaky = FlakyDriver(self.driver, iter(self.next_fault, "never"))
        # Without a counter of its own, a handle would store other bytes than the handle that repeats for it.
        memory = Memory(
            flaky, KEY, strategy=strategy, counter=WORDS, retain=RETAIN if strategy is strategies[3] else None
        )
        await memory.__aenter__()
        return Handle(memory)

    def next_fault(self) -> Fault | None:
        return self.faults.popleft() if self.faults else None

    def teardown(self) -> None:
        self.stack.close()

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        return self.portal.call(function)

    def act(self, handle: Handle, function: Callable[[], Awaitable[T]]) -> T | Exception:
        """Call a method of a handle; return its result, or how it failed because of a fault or a conflict."""
        had_faults = bool(self.faults)
        self.was_stale = self.is_stale(handle)
        try:
            result = self.call(function)
        except DriverError as error:
            assert had_faults, "a failure out of nowhere"
            handle.is_settled = False
            return error
        except ConflictError as error:
            return error
        finally:
            self.faults.clear()
        return result

    def take_in(self) -> list[Entry]:
        """Return what has been stored since the last look; check that nothing else has changed."""
        raw = self.call(partial(self.driver.load, KEY, 0))
        if raw.epoch not in self.logs:
            self.logs[raw.epoch] = Log()
        self.log = self.logs[raw.epoch]
        known, found = self.log.entries, [CODEC.decode(body) for body in raw.bodies]
        assert raw.base >= self.log.base
        assert raw.base + len(found) == raw.end >= len(known)
        expected = [self.log.erased.get(at, entry) for at, entry in enumerate(known)][raw.base :]
        assert found[: len(expected)] == expected, "what was stored has changed"
        new = found[len(known) - raw.base :] if raw.base <= len(known) else found
        known += new
        self.log.base = raw.base
        return new

    def take_in_erased(self, at: int) -> None:
        """Let what is stored of the run at this position be another than it was."""
        raw = self.call(partial(self.driver.load, KEY, 0))
        for position, entry in enumerate(self.log.entries[raw.base :], raw.base):
            if (position if isinstance(entry, Run) else entry.at) == at:
                self.log.erased[position] = CODEC.decode(raw.bodies[position - raw.base])
        self.log.erased_until = raw.end

    def log_of(self, handle: Handle) -> Log:
        return self.logs[handle.memory.conversation.epoch]

    def is_stale(self, handle: Handle) -> bool:
        return handle.memory.conversation.epoch != "" and self.log_of(handle) is not self.log

    def new_text(self) -> str:
        self.number += 1
        return f"text {self.number}"

    def expect(self, result: Any, handle: Handle, *kinds: type[Entry]) -> list[Entry]:
        """Demand that these kinds of entries were stored: none in a conflict, maybe none after a failure."""
        base = self.log.base
        new = self.take_in()
        end = len(self.log.entries)
        if kinds and not isinstance(result, Exception):
            assert handle.memory.conversation.end == end
        if kinds and self.log.base > base:
            assert len(self.log.runs(self.log.base, end)) >= RETAIN
        if isinstance(result, ConflictError):
            assert not new
        elif not isinstance(result, DriverError) or new:
            assert [type(entry) for entry in new] == list(kinds)
        if self.was_stale and kinds:
            assert isinstance(result, Exception)
        return new

    # --- rules ---

    @rule(faults=st.lists(st.sampled_from(["before", "after", None]), min_size=1, max_size=4))
    def break_the_store(self, faults: list[Fault | None]) -> None:
        self.faults.extend(faults)

    @rule(n=handles, output=texts)
    def add(self, n: int, output: str) -> None:
        handle, text = self.handles[n], self.new_text()
        result = self.act(handle, partial(handle.memory.add, text, output, meta={"n": n}))
        new = self.expect(result, handle, Run)
        if isinstance(result, Run):
            assert bare(new[0]) == result
        if isinstance(result, ConflictError):
            assert self.was_stale

    @rule(n=handles, size=st.integers(1, 3))
    def append(self, n: int, size: int) -> None:
        handle = self.handles[n]
        batch = [new_run(self.new_text(), "yes") for _ in range(size)]
        end, epoch = len(self.log.entries), handle.memory.conversation.epoch
        since = handle.memory.conversation.end
        result = self.act(handle, partial(handle.memory.append, *batch))
        new = self.expect(result, handle, *[Run] * size)
        if isinstance(result, int):
            assert result == end
            assert [bare(entry) for entry in new if isinstance(entry, Run)] == batch
        elif isinstance(result, DriverError) and size == 1:
            self.unsure.append((handle, batch[0], since, epoch))

    @precondition(lambda self: self.unsure)
    @rule(n=which, m=handles, by_another=st.booleans())
    def append_again(self, n: int, m: int, by_another: bool) -> None:
        first, run, since, epoch = self.unsure[n % len(self.unsure)]
        handle = self.handles[m] if by_another else first
        if epoch == "" or self.logs[epoch] is not self.log or handle not in self.handles or self.is_stale(handle):
            return
        known = ids(self.log.entries)
        position = known.index(run.id) if run.id in known else len(known)
        if position < self.log.base or (position in self.log.erased):
            return  # trimmed or erased, and with it the proof that it was stored
        repeat = partial(handle.memory.append, run, since=None if handle is first else since)
        result = self.act(handle, repeat)
        new = self.take_in()
        if isinstance(result, int):
            assert result == position
            self.unsure.pop(n % len(self.unsure))
        assert ids(new) == [] if run.id in known else [[], [run.id]]
        assert ids(self.log.entries).count(run.id) <= 1

    @rule(n=handles, early=st.booleans(), steps=st.integers(0, 3))
    def turn(self, n: int, early: bool, steps: int) -> None:
        async def turn() -> Run:
            async with handle.memory.turn(text, early=early) as turn:
                for step in range(steps):
                    turn.step(f"step {step}")
                    if early:
                        await turn.save()
                turn.write("yes")
            return turn.run

        handle, text = self.handles[n], self.new_text()
        self.faults.clear()
        result = self.act(handle, turn)
        new = self.expect(result, handle, Run, *[Extend] * (steps + 1 if early else 0))
        if isinstance(result, Run):
            position = len(self.log.entries) - len(new)
            assert self.log.runs(0, len(self.log.entries))[position] == result

    def pick(self, handle: Handle, n: int) -> tuple[int, Run, bool] | None:
        """Return a run of the log, and whether the handle must know it."""
        log = self.log_of(handle)
        at = [position for position, entry in enumerate(log.entries) if isinstance(entry, Run)]
        if not at:
            return None
        position = at[n % len(at)]
        now = handle.memory.conversation
        alive = log.runs(log.base, now.end)
        run = log.entries[position]
        assert isinstance(run, Run)
        return position, run, position in alive

    def expect_change(
        self, handle: Handle, result: Any, kind: type[Entry], at: int, is_known: bool
    ) -> list[Entry]:
        new = self.take_in()
        # What this handle does not know to be trimmed or taken back may be changed, without effect.
        assert [type(entry) for entry in new] in ([[kind]] if is_known and result is None else [[kind], []])
        assert not new or not isinstance(result, ConflictError)
        for entry in new:
            assert isinstance(entry, Extend | Amend | Retract)
            assert entry.at == at
        if self.was_stale:
            assert isinstance(result, Exception)
        elif is_known:
            assert not isinstance(result, ConflictError)
        if result is None and new:
            assert handle.memory.conversation.end == len(self.log.entries)
        return new

    @rule(n=handles, m=which, output=st.none() | texts, drop=st.integers(0, 2))
    def extend(self, n: int, m: int, output: str | None, drop: int) -> None:
        handle = self.handles[n]
        if (picked := self.pick(handle, m)) is None:
            return
        at, run, is_known = picked
        drop = min(drop, len(self.log_of(handle).runs(0, len(self.log_of(handle).entries)).get(at, run).steps))
        extend = partial(handle.memory.extend, run.id, steps=Text(text=self.new_text()), output=output, drop=drop)
        for entry in self.expect_change(handle, self.act(handle, extend), Extend, at, is_known):
            assert isinstance(entry, Extend)
            assert (entry.drop, entry.output) == (drop, output)

    @rule(n=handles, m=which, output=texts, erase=st.booleans())
    def amend(self, n: int, m: int, output: str, erase: bool) -> None:
        handle = self.handles[n]
        if (picked := self.pick(handle, m)) is None:
            return
        at, run, is_known = picked
        amended = run.replace(input=self.new_text(), output=output)
        result = self.act(handle, partial(handle.memory.amend, amended, erase=erase))
        self.expect_removal(handle, result, Amend, at, is_known, erase)

    @rule(n=handles, m=which, erase=st.booleans())
    def retract(self, n: int, m: int, erase: bool) -> None:
        handle = self.handles[n]
        if (picked := self.pick(handle, m)) is None:
            return
        at, run, is_known = picked
        result = self.act(handle, partial(handle.memory.retract, run.id, erase=erase))
        self.expect_removal(handle, result, Retract, at, is_known, erase)

    def expect_removal(
        self, handle: Handle, result: Any, kind: type[Entry], at: int, is_known: bool, erase: bool
    ) -> None:
        if erase and not self.was_stale:
            self.take_in_erased(at)
        self.expect_change(handle, result, kind, at, is_known)
        if result is None:
            summary = self.stored_head().summary
            assert summary is None or summary.upto <= at
            if erase and at >= self.log.base:
                entry = self.log.erased[at]
                assert isinstance(entry, Run)
                assert (entry.input, entry.steps, entry.output, entry.meta) == ((), (), (), {})

    @rule(n=handles, name=st.sampled_from("abc"), value=st.integers(0, 9))
    def update_meta(self, n: int, name: str, value: int) -> None:
        handle = self.handles[n]
        result = self.act(handle, partial(handle.memory.update_meta, {name: value}))
        self.expect(result, handle) if isinstance(result, Exception) else self.take_in()
        stored = dict(self.stored_head().meta)
        updated = {**self.log.meta, name: value}
        if isinstance(result, dict):
            assert stored == result == updated
        elif isinstance(result, ConflictError):
            assert self.was_stale
            assert stored == self.log.meta
        else:
            assert stored in (self.log.meta, updated)
        self.log.meta = stored

    def stored_head(self) -> Head:
        head = self.call(partial(self.driver.load, KEY, 0, 0)).head
        return Head() if head is None else CODEC.decode_head(head)

    @rule(n=handles)
    def refresh(self, n: int) -> None:
        handle = self.handles[n]
        if isinstance(self.act(handle, handle.memory.refresh), Exception):
            return
        handle.is_settled = True
        assert self.log_of(handle) is self.log or not self.log.entries
        assert handle.memory.conversation.end == len(self.log.entries)
        assert handle.memory.meta == self.log.meta

    @rule(n=handles)
    def reopen(self, n: int) -> None:
        self.faults.clear()
        self.handles[n] = self.call(partial(self.open, strategies[n]))
        self.refresh(n)

    @rule(n=handles, share=st.floats(0, 1))
    def summarize(self, n: int, share: float) -> None:
        """Let somebody commit a summary of the log as it is now."""
        end = len(self.log.entries)
        upto = int(share * (end - self.log.base)) + self.log.base
        if end and upto > self.log.base:
            self.call(partial(summarize, self.driver, KEY, upto=upto, seen=end))

    @rule(n=handles)
    def history(self, n: int) -> None:
        async def history() -> list[Run]:
            return [bare(run) async for run in handle.memory.history()]

        handle = self.handles[n]
        result = self.act(handle, history)
        if isinstance(result, Exception):
            assert isinstance(result, DriverError) or self.was_stale
        elif not self.was_stale and handle.memory.conversation.end >= self.log.erased_until:
            assert result == list(self.log.runs(self.log.base, handle.memory.conversation.end).values())

    @precondition(lambda self: len(self.log.entries) > 6)
    @rule(n=handles, keep=st.integers(0, 6))
    def trim(self, n: int, keep: int) -> None:
        handle = self.handles[n]
        before = self.log.runs(self.log.base, handle.memory.conversation.end)
        result = self.act(handle, partial(handle.memory.trim, keep))
        self.expect(result, handle)
        if not self.was_stale:
            after = self.log.runs(self.log.base, handle.memory.conversation.end)
            assert list(after) == list(before)[-len(after) :][: len(after)]
            assert len(after) >= min(keep, len(before))
            if not isinstance(result, Exception) and self.log.base < handle.memory.conversation.end:
                assert len(after) <= keep

    @rule(n=handles)
    def fork(self, n: int) -> None:
        handle = self.handles[n]
        key = self.new_text()
        result = self.act(handle, partial(handle.memory.fork, key))
        if not isinstance(result, Memory):
            assert isinstance(result, DriverError) or self.was_stale
            return
        if self.was_stale or handle.memory.conversation.end < self.log.erased_until:
            return
        expected = list(self.log.runs(self.log.base, handle.memory.conversation.end).values())
        copy = self.call(partial(stored, self.driver, key))
        assert [bare(run) for run in copy if isinstance(run, Run)] == expected
        assert len(copy) == len(expected)

    @precondition(lambda self: len(self.log.entries) > 10)  # short lives find little
    @rule(n=handles)
    def clear(self, n: int) -> None:
        handle = self.handles[n]
        self.act(handle, handle.memory.clear)
        self.take_in()

    # --- what must hold ---

    @invariant()
    def views_are_what_a_plain_log_gives(self) -> None:
        for handle, strategy in zip(self.handles, strategies, strict=True):
            if handle.is_settled:
                self.check_view(handle, strategy)

    def check_view(self, handle: Handle, strategy: Strategy) -> None:
        memory = handle.memory
        now, view = memory.conversation, memory.view()
        log = self.log_of(handle)
        if now.end < log.erased_until:
            return
        runs = log.runs(now.base, now.end)
        summary = now.head.summary
        if summary is not None:
            changes = [entry for entry in log.entries[summary.seen : now.end] if not isinstance(entry, Run)]
            is_stale = any(change.at < summary.upto for change in changes)
            if is_stale or summary.seen < now.base or summary.seen > now.end:
                summary = None
        assert view.summary in (summary, None) if strategy is strategies[2] else view.summary == summary
        if summary is not None:
            runs = {at: run for at, run in runs.items() if at >= summary.upto}
        expected = list(runs.values())
        if strategy is strategies[0]:
            expected = expected[-2:]
        elif strategy is strategies[3]:
            expected = expected[-4:]
        elif strategy is strategies[2]:
            budget = 25 - (0 if view.summary is None else 3)
            while expected and sum(cost_of(counted(run, WORDS), WORDS) for run in expected) > budget:
                del expected[0]
        assert [bare(run) for run in view.runs] == expected


def machine_test(store: str, loop: str) -> type:
    """Return the test of the machine with a store, on an event loop."""
    bound = type(f"{store.title()}On{loop.title()}", (MemoryMachine,), {"backend": loop, "store": store})
    bound.TestCase.settings = settings(
        max_examples=80, stateful_step_count=40, deadline=None, derandomize=True, database=None
    )
    return bound.TestCase


TestInMemoryOnAsyncio = machine_test("memory", "asyncio")
TestInMemoryOnTrio = machine_test("memory", "trio")
TestFileOnAsyncio = machine_test("file", "asyncio")
TestFileOnTrio = pytest.mark.long(machine_test("file", "trio"))

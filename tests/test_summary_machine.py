"""Whatever happens while a conversation is summarised: what is summarised, shown and left out is the history."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import pytest
from anyio import Event
from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memkit import folding as folding_module
from memkit import viewer as viewer_module
from memkit import window as window_module
from memkit.content import Text, text_of
from memkit.conversation import Head, Summary
from memkit.driver import Driver
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ConflictError, SummaryError
from memkit.memory import Memory
from memkit.run import Run
from memkit.strategies import Strategy, everything, last_runs
from memkit.summaries import SummaryPolicy
from memkit.testing import CountingDriver
from tests.memories import CODEC, Words
from tests.plain_log import Log

T = TypeVar("T")

KEY = "k"
PADDING = " word" * 30
"""So many words that a summary, of one word in its frame, saves some."""

POLICY = SummaryPolicy(keep=1, every=2, overlap=1, max_input_tokens=100)
OPTIONS: Sequence[tuple[Strategy, int | None]] = ((everything, None), (last_runs(2), None), (last_runs(3), 6))
handles = st.integers(0, len(OPTIONS) - 1)
which = st.integers(0, 100)
places = st.sampled_from(["model", "before commit", "after commit"])
endings = st.sampled_from(["well", "well", "badly", "cancelled"])
acts = st.sampled_from(["add", "extend", "amend", "retract", "retract", "trim", "fold"])


def item(run: Run) -> str:
    """Return a run in one word, with a name for all that is said in it."""
    said = (run.input, *[(step,) for step in run.steps], run.output)
    return f"{run.id}:{','.join(text_of(content).split(maxsplit=1)[0] for content in said if content)}"


@dataclass
class Gate:
    """Where a fold waits while others write."""

    where: str
    reached: Event = field(default_factory=Event)
    opened: Event = field(default_factory=Event)
    left: Event = field(default_factory=Event)
    fails: bool = False

    async def wait(self) -> None:
        self.reached.set()
        await self.opened.wait()


@dataclass
class Fold:
    """A fold that is under way, waiting at its gate."""

    memory: Memory
    gate: Gate
    future: Future[bool]


class Gated(CountingDriver):
    """A driver whose next commit waits at a gate, if there is one: before it reaches the store, or after."""

    gate: Gate | None = None

    async def commit(self, key: str, head: bytes, /, *, revision: str) -> str:
        gate, self.gate = self.gate, None
        if gate is not None and gate.where == "before commit":
            await gate.wait()
        answer = await super().commit(key, head, revision=revision)
        if gate is not None and gate.where == "after commit":
            await gate.wait()
        return answer


class SummaryMachine(RuleBasedStateMachine):
    """Handles that write, change, trim and fold. Subclasses say in which store, on which loop."""

    backend: str
    store: str

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        for module in (window_module, viewer_module, folding_module):
            patch.setattr(module, "PAGE", 4)  # so that short logs are read in pages
        self.portal = self.stack.enter_context(start_blocking_portal(self.backend))
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.driver: Driver = InMemoryDriver() if self.store == "memory" else FileDriver(folder)
        self.log = Log()
        self.names: dict[int, set[str]] = {}  # what was said in the run at a position
        self.removed: dict[str, int] = {}  # what was taken back, and since when
        self.erased: set[str] = set()
        self.number = 0
        self.folds: list[Fold] = []
        self.gate: Gate | None = None
        self.failures = 0
        self.head = Head()

    @initialize(count=st.integers(3, 12))
    def open_handles(self, count: int) -> None:
        self.handles = [self.call(partial(self.open, n)) for n in range(len(OPTIONS))]
        self.add(0, count)
        for n in range(1, len(OPTIONS)):
            self.refresh(n)

    async def open(self, n: int) -> Memory:
        strategy, retain = OPTIONS[n]
        driver = Gated(self.driver)
        memory = Memory(
            driver,
            KEY,
            strategy=strategy,
            counter=Words(),
            retain=retain,
            summarizer=self.summarize,
            policy=POLICY,
        )
        return await memory.__aenter__()

    def teardown(self) -> None:
        for fold in list(self.folds):
            self.end(fold)
        self.nothing_taken_back_is_in_the_store()
        self.stack.close()

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        return self.portal.call(function)

    # --- the summariser ---

    async def summarize(self, runs: Sequence[Run], /, *, previous: str | None) -> str:
        """Name what is read, and refuse to be shown what was taken back before."""
        known = (previous or "").split()
        made = "|".join([*known, *[item(run) for run in runs if item(run) not in (previous or "").split("|")]])
        assert not [name for name in self.removed if name in made], "it was shown what was taken back"
        if (gate := self.gate) is not None and gate.where == "model":
            self.gate = None
            await gate.wait()
            if gate.fails:
                raise RuntimeError("the model is overloaded")
        elif self.failures:
            self.failures -= 1
            raise RuntimeError("the model is overloaded")
        return made

    def new_name(self) -> str:
        self.number += 1
        return f"<{self.number}>"

    # --- what is stored ---

    def take_in(self) -> None:
        """Take note of what has been stored since the last look."""
        raw = self.call(partial(self.driver.load, KEY, 0))
        new = raw.bodies[len(self.log.entries) - raw.base :] if raw.base <= len(self.log.entries) else raw.bodies
        self.log.entries += map(CODEC.decode, new)
        self.log.base = raw.base
        assert len(self.log.entries) == raw.end

    def stored_head(self) -> Head:
        head = self.call(partial(self.driver.load, KEY, 0, 0)).head
        return Head() if head is None else CODEC.decode_head(head)

    def act(self, function: Callable[[], Awaitable[Any]]) -> bool:
        """Do something, and tell whether it was done: a run may be trimmed or taken back."""
        try:
            self.call(function)
        except ConflictError:
            return False
        finally:
            self.take_in()
        return True

    # --- rules ---

    @rule(n=handles, count=st.integers(1, 3))
    def add(self, n: int, count: int) -> None:
        for _ in range(count):
            name = self.new_name()
            assert self.act(partial(self.handles[n].add, name + PADDING, "yes"))
            self.names[len(self.log.entries) - 1] = {name}

    def pick(self, m: int) -> tuple[int, Run] | None:
        at = [position for position in self.names if position >= self.log.base]
        if not at:
            return None
        run = self.log.entries[at[m % len(at)]]
        assert isinstance(run, Run)
        return at[m % len(at)], run

    @rule(n=handles, m=which, is_step=st.booleans())
    def extend(self, n: int, m: int, is_step: bool) -> None:
        if (picked := self.pick(m)) is None:
            return
        at, run = picked
        name = self.new_name()
        said: Any = {"steps": Text(text=name)} if is_step else {"output": name + PADDING}
        if self.act(partial(self.handles[n].extend, run, **said)):
            self.names[at].add(name)
            if not self.is_alive(at):
                self.removed[name] = len(self.log.entries) - 1

    def is_alive(self, at: int) -> bool:
        return at in self.log.runs(0, len(self.log.entries))

    @rule(n=handles, m=which, erase=st.booleans())
    def amend(self, n: int, m: int, erase: bool) -> None:
        if (picked := self.pick(m)) is None:
            return
        at, run = picked
        name = self.new_name()
        amended = Run(run.id, name + PADDING, created_at=run.created_at)
        if self.act(partial(self.handles[n].amend, amended, erase=erase)):
            self.note_removal(at, erase)
            self.names[at] = {name}
            if not self.is_alive(at):
                self.removed[name] = len(self.log.entries) - 1

    @rule(n=handles, m=which, erase=st.booleans())
    def retract(self, n: int, m: int, erase: bool) -> None:
        if (picked := self.pick(m)) is None:
            return
        at, run = picked
        end = self.handles[n].conversation.end
        if self.act(partial(self.handles[n].retract, run, erase=erase)):
            is_seen = len(self.log.entries) == self.handles[n].conversation.end
            self.note_removal(at, erase and is_seen and end <= len(self.log.entries))

    def note_removal(self, at: int, erase: bool) -> None:
        for name in self.names[at]:
            self.removed.setdefault(name, len(self.log.entries) - 1)
        if erase:
            self.erased |= self.names[at]
        # A removal takes the summary with it, of whatever it was made.
        if self.head.summary is not None and at < self.head.summary.upto:
            self.head = Head()

    @rule(n=handles, keep=st.integers(0, 6))
    def trim(self, n: int, keep: int) -> None:
        memory = self.handles[n]
        if len(self.log.entries) <= 6:
            return
        shown, is_current = memory.view().summary, memory.conversation.head == self.stored_head()
        self.act(partial(memory.trim, keep))
        if shown is not None and is_current and memory.conversation.end == len(self.log.entries):
            assert memory.view().summary is not None, "with the runs went the summary that stands for them"

    @rule(n=handles)
    def refresh(self, n: int) -> None:
        self.call(self.handles[n].refresh)
        assert self.handles[n].conversation.end == len(self.log.entries)

    @rule(n=handles)
    def restart(self, n: int) -> None:
        self.handles[n] = self.call(partial(self.open, n))
        self.refresh(n)

    @rule(n=handles)
    def fold(self, n: int) -> None:
        """Fold what is due: then nothing is, unless somebody else writes."""
        self.call(self.handles[n].summarize)
        view = self.handles[0].view() if n == 0 else None
        if view is not None:
            assert len(view.runs) <= POLICY.keep + POLICY.every - 1

    @rule(n=handles)
    def fold_and_fail(self, n: int) -> None:
        before = self.stored_head()
        self.failures = 1
        try:
            self.call(self.handles[n].summarize)
            assert self.failures == 1, "a failure was kept quiet"
        except SummaryError:
            assert self.stored_head() == before
        self.failures = 0

    @precondition(lambda self: len(self.folds) < 3)
    @rule(n=handles, where=places)
    def begin_fold(self, n: int, where: str) -> None:
        memory = self.handles[n]
        gate = self.call(partial(self.new_gate, where))
        driver = memory._settings.driver
        assert isinstance(driver, Gated)
        self.gate, driver.gate = (gate, None) if where == "model" else (None, gate)
        fold = Fold(memory, gate, self.portal.start_task_soon(partial(self.fold_until, memory, gate)))
        self.call(gate.reached.wait)
        self.gate = driver.gate = None
        if fold.future.done() or gate.opened.is_set():
            fold.future.result()
        else:
            self.folds.append(fold)

    async def new_gate(self, where: str) -> Gate:
        return Gate(where)

    async def fold_until(self, memory: Memory, gate: Gate) -> bool:
        try:
            return await memory.summarize()
        finally:
            if not gate.reached.is_set():
                gate.opened.set()  # nothing was due
                gate.reached.set()
            gate.left.set()

    @rule(n=handles, where=places, how=endings, acts=st.lists(st.tuples(acts, handles, which), max_size=4))
    def race(self, n: int, where: str, how: str, acts: list[tuple[str, int, int]]) -> None:
        """Let others write while a fold waits somewhere."""
        before = len(self.folds)
        self.begin_fold(n, where)
        for act, other, m in acts:
            self.a_summary_never_goes_backwards()
            match act:
                case "add":
                    self.add(other, 1 + m % 3)
                case "extend":
                    self.extend(other, m, m % 2 == 0)
                case "amend":
                    self.amend(other, m, m % 2 == 0)
                case "retract":
                    self.retract(other, m, m % 2 == 0)
                case "trim":
                    self.trim(other, m % 4)
                case _:
                    self.fold(other)
        self.a_summary_never_goes_backwards()
        if len(self.folds) > before:
            self.end_fold(before, how)

    @precondition(lambda self: self.folds)
    @rule(n=which, how=endings)
    def end_fold(self, n: int, how: str) -> None:
        fold = self.folds[n % len(self.folds)]
        fold.gate.fails = how == "badly"
        if how == "cancelled":
            fold.future.cancel()
        self.end(fold)

    def end(self, fold: Fold) -> None:
        self.folds.remove(fold)
        self.call(partial(self.open_gate, fold.gate))
        try:
            fold.future.result()
        except SummaryError:
            assert fold.gate.fails
        except BaseException:
            assert fold.future.cancelled()
        self.call(fold.gate.left.wait)  # a future that is cancelled does not wait for its task

    async def open_gate(self, gate: Gate) -> None:
        gate.opened.set()

    @rule(n=handles)
    def fork(self, n: int) -> None:
        """A fork shows what its source shows."""

        async def fork() -> None:
            async with await source.fork(self.new_name()) as copy:
                await self.check_same(source, copy)

        source = self.handles[n]
        self.call(fork)

    async def check_same(self, source: Memory, copy: Memory) -> None:
        view, copied = source.view(), copy.view()
        assert [item(run) for run in copied.runs] == [item(run) for run in view.runs]
        if view.summary is not None:
            assert copied.summary is not None
            assert copied.summary.content == view.summary.content

    # --- what must hold ---

    @invariant()
    def what_is_summarised_and_shown_is_the_history(self) -> None:
        for n, memory in enumerate(self.handles):
            if any(fold.memory is memory for fold in self.folds):
                continue  # it loads what its view needs when the fold is over
            view, end = memory.view(), memory.conversation.end
            runs = self.log.runs(0, end)
            upto = 0
            if view.summary is not None:
                upto = view.summary.upto
                self.check_covers(view.summary, {at: item(run) for at, run in runs.items() if at < upto})
            shown = [item(run) for run in view.runs]
            waiting = [item(run) for at, run in runs.items() if at >= max(upto, memory.conversation.base)]
            known_erased = any(name in said for said in waiting for name in self.erased)
            if known_erased or any(name in said for said in shown for name in self.erased):
                continue
            left_out = len(waiting) if n == 0 else min(len(waiting), n + 1)
            assert shown == waiting[len(waiting) - left_out :]

    def check_covers(self, summary: Summary, expected: dict[int, str]) -> None:
        """Demand that it says of each run what that says now; of trimmed ones it may say nothing."""
        said = text_of(summary.content).split("|")
        assert len(set(said)) == len(said), "a run is summarised twice"
        positions = {text: at for at, text in expected.items()}
        assert set(said) <= set(positions), "it says what the history does not"
        assert [positions[text] for text in said] == sorted(positions[text] for text in said)
        assert all(at < self.log.base for text, at in positions.items() if text not in said), "a run is left out"

    @invariant()
    def nothing_taken_back_is_in_a_prompt(self) -> None:
        for memory in self.handles:
            prompt = str(memory.messages("go on"))
            end = memory.conversation.end
            assert not [name for name, since in self.removed.items() if since < end and name in prompt]

    @invariant()
    def nothing_taken_back_is_in_the_store(self) -> None:
        if any(fold.gate.where != "model" for fold in self.folds):
            return  # its last look is still to come
        raw = self.call(partial(self.driver.load, KEY, 0))
        head = (raw.head or b"").decode()
        assert not [name for name in self.removed if name in head]
        bodies = b"".join(raw.bodies).decode()
        assert not [name for name in self.erased if name in bodies]

    @invariant()
    def a_summary_never_goes_backwards(self) -> None:
        before, now = self.head.summary, self.stored_head().summary
        if before is not None and (now is None or now.upto < before.upto):
            changes = (entry for entry in self.log.entries[before.seen :] if not isinstance(entry, Run))
            assert before.seen < self.log.base or any(change.at < before.upto for change in changes)
        self.head = Head(summary=now)


def machine_test(store: str, loop: str) -> type:
    """Return the test of the machine with a store, on an event loop."""
    bound = type(f"{store.title()}On{loop.title()}", (SummaryMachine,), {"backend": loop, "store": store})
    bound.TestCase.settings = settings(
        max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None
    )
    return bound.TestCase


TestInMemoryOnAsyncio = machine_test("memory", "asyncio")
TestInMemoryOnTrio = machine_test("memory", "trio")
TestFileOnAsyncio = machine_test("file", "asyncio")
TestFileOnTrio = pytest.mark.long(machine_test("file", "trio"))

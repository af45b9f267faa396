"""Any sequence of calls leaves a driver as it leaves a plain list."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memkit.driver import Appended, Log, Record
from memkit.drivers.file import FileDriver
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import ConflictError

P = ParamSpec("P")
T = TypeVar("T")

KEY = "the one conversation"

bodies = st.one_of(
    st.sampled_from(
        [b"{}", b'{"a":"b"}', b'{"n":\n1}', b"null", b"", b"\n", b"\xff\x00", b'{"x":' + b"1" * 500 + b"}"]
    ),
    st.binary(max_size=20),
)
batches = st.lists(bodies, min_size=1, max_size=4)
positions = st.integers(-12, 30)
belief = st.sampled_from(["none", "right", "wrong"])


@dataclass
class Sent:
    """An append that was stored, as its writer would repeat it."""

    position: int
    records: list[Record]
    since: int


@dataclass
class Model:
    """What the store should hold. `entries` are all of the epoch, those too that were trimmed."""

    epoch: str = ""
    base: int = 0
    entries: list[bytes] = field(default_factory=list)
    head: bytes | None = None
    revision: str = ""
    sent: list[Sent] = field(default_factory=list)

    @property
    def end(self) -> int:
        return len(self.entries)

    def load(self, start: int, stop: int | None) -> list[tuple[int, bytes]]:
        return [(at, body) for at, body in list(enumerate(self.entries))[start:stop] if at >= self.base]


class DriverMachine(RuleBasedStateMachine):
    """Two drivers on one store, called in turns, beside the model. Subclasses say which, and on which loop."""

    backend: str

    def open_drivers(self) -> Sequence[InMemoryDriver | FileDriver]:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.portal = self.stack.enter_context(start_blocking_portal(self.backend))
        self.drivers = self.open_drivers()
        self.model = Model()
        self.stale_epochs = ["never there"]
        self.stale_revisions = ["never there"]
        self.ids = 0
        self.calls = 0

    def teardown(self) -> None:
        self.stack.close()

    def call(self, method: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        return self.portal.call(partial(method, *args, **kwargs))

    @property
    def driver(self) -> InMemoryDriver | FileDriver:
        self.calls += 1
        return self.drivers[self.calls % len(self.drivers)]

    def new_records(self, batch: Sequence[bytes]) -> list[Record]:
        self.ids += len(batch)
        return [Record(f"id-{self.ids - n}", body) for n, body in enumerate(batch)]

    def epoch_as(self, believed: str, wrong: str) -> str | None:
        return {"none": None, "right": self.model.epoch, "wrong": wrong}[believed]

    def now_exists(self, epoch: str) -> None:
        assert epoch
        if not self.model.epoch:
            assert epoch not in self.stale_epochs
            self.model.epoch = epoch
        assert epoch == self.model.epoch

    # --- rules ---

    @rule(batch=batches, expect=belief, epoch=belief, lag=st.integers(0, 5), data=st.data())
    def append(self, batch: list[bytes], expect: str, epoch: str, lag: int, data: st.DataObject) -> None:
        model, records = self.model, self.new_records(batch)
        since = max(0, model.end - lag)
        call = partial(
            self.driver.append,
            KEY,
            records,
            since=since,
            expect={"none": None, "right": model.end, "wrong": model.end + 1}[expect],
            epoch=self.epoch_as(epoch, data.draw(st.sampled_from(self.stale_epochs))),
        )
        if "wrong" in (expect, epoch):
            with pytest.raises(ConflictError):
                self.call(call)
            return
        appended = self.call(call)
        self.now_exists(appended.epoch)
        assert appended == Appended(model.end, model.end + len(batch), model.epoch)
        model.sent.append(Sent(model.end, records, since))
        model.entries += batch

    @precondition(lambda self: self.model.sent)
    @rule(data=st.data(), expect=belief, from_start=st.booleans())
    def retry(self, data: st.DataObject, expect: str, from_start: bool) -> None:
        model = self.model
        sent = data.draw(st.sampled_from(model.sent))
        if sent.position < model.base:
            return  # its ids are gone, in part at least
        call = partial(
            self.driver.append,
            KEY,
            sent.records,
            since=0 if from_start else sent.since,
            expect={"none": None, "right": sent.position, "wrong": 1000}[expect],
            epoch=model.epoch,
        )
        stored = model.entries[sent.position : sent.position + len(sent.records)]
        if stored != [record.body for record in sent.records]:  # it was redacted
            with pytest.raises(ConflictError):
                self.call(call)
        else:
            assert self.call(call) == Appended(sent.position, model.end, model.epoch)

    @precondition(lambda self: self.model.sent)
    @rule(data=st.data(), more=bodies)
    def retry_with_a_difference(self, data: st.DataObject, more: bytes) -> None:
        sent = data.draw(st.sampled_from(self.model.sent))
        if sent.position < self.model.base:
            return
        first, *rest = sent.records
        other = Record(first.id, self.model.entries[sent.position] + b"x")
        new = self.new_records([more])
        changed = data.draw(st.sampled_from([[other, *rest], [*sent.records, *new], [*new, *sent.records]]))
        with pytest.raises(ConflictError):
            self.call(self.driver.append, KEY, changed, since=sent.since)

    @rule(head=bodies)
    def commit(self, head: bytes) -> None:
        revision = self.call(self.driver.commit, KEY, head, revision=self.model.revision)
        assert revision
        assert revision not in (self.model.revision, *self.stale_revisions)
        self.model.head = head
        self.now_exists(self.call(self.driver.load, KEY).epoch)
        self.retire_revision()
        self.model.revision = revision

    @rule(data=st.data(), head=bodies)
    def stale_commit(self, data: st.DataObject, head: bytes) -> None:
        stale = data.draw(st.sampled_from(self.stale_revisions))
        with pytest.raises(ConflictError):
            self.call(self.driver.commit, KEY, head, revision=stale)

    @precondition(lambda self: self.model.end > 8)  # short lives find little
    @rule()
    def delete(self) -> None:
        assert self.call(self.driver.delete, KEY)
        assert not self.call(self.driver.delete, KEY)
        self.stale_epochs.append(self.model.epoch)
        self.retire_revision()
        self.model = Model()

    @rule(drop=st.integers(-2, 4) | st.just(100), epoch=belief, data=st.data())
    def trim(self, drop: int, epoch: str, data: st.DataObject) -> None:
        before = max(0, self.model.base + drop)
        wrong = data.draw(st.sampled_from(self.stale_epochs))
        call = partial(self.driver.trim, KEY, before, epoch=self.epoch_as(epoch, wrong))
        if epoch == "wrong":
            with pytest.raises(ConflictError):
                self.call(call)
            return
        self.model.base = min(max(before, self.model.base), self.model.end)
        assert self.call(call) == self.model.base

    @rule(items=st.dictionaries(st.integers(0, 5), bodies, min_size=1, max_size=3), epoch=belief, data=st.data())
    def redact(self, items: Mapping[int, bytes], epoch: str, data: st.DataObject) -> None:
        model = self.model
        new = {model.base + offset: body for offset, body in items.items()}
        wrong = data.draw(st.sampled_from(self.stale_epochs))
        call = partial(self.driver.redact, KEY, new, epoch=wrong if epoch == "wrong" else model.epoch)
        if epoch == "wrong" or not all(model.base <= at < model.end for at in new):
            with pytest.raises(ConflictError):
                self.call(call)
            return
        self.call(call)
        for at, body in new.items():
            model.entries[at] = body

    @rule(start=positions, stop=st.none() | positions)
    def load(self, start: int, stop: int | None) -> None:
        expected = self.model.load(start, stop)
        log = self.call(self.driver.load, KEY, start, stop)
        assert list(log.bodies) == [body for _, body in expected]
        assert not expected or log.start == expected[0][0]

    @invariant()
    def is_as_the_model(self) -> None:
        model = self.model
        log = self.call(self.driver.load, KEY, 0)
        if log.revision and not model.revision:
            model.revision = log.revision  # the first append has made one
            assert log.revision not in self.stale_revisions
        expected = Log(
            model.epoch, model.base, model.base, model.end, model.entries[model.base :], model.head, model.revision
        )
        assert [*vars_of(log)] == [*vars_of(expected)]

    def retire_revision(self) -> None:
        if self.model.revision:
            self.stale_revisions.append(self.model.revision)


def vars_of(log: Log) -> Sequence[object]:
    return log.epoch, log.base, log.start, log.end, list(log.bodies), log.head, log.revision


class InMemoryMachine(DriverMachine):
    def open_drivers(self) -> Sequence[InMemoryDriver]:
        return [InMemoryDriver()]


class FileMachine(DriverMachine):
    def open_drivers(self) -> Sequence[FileDriver]:
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        return [FileDriver(folder), FileDriver(folder)]


def machine_test(machine: type[DriverMachine], loop: str) -> type:
    """Return the test of a machine on an event loop."""
    bound = type(f"{machine.__name__}On{loop.title()}", (machine,), {"backend": loop})
    bound.TestCase.settings = settings(
        max_examples=40, stateful_step_count=40, deadline=None, derandomize=True, database=None
    )
    return bound.TestCase


TestInMemoryOnAsyncio = machine_test(InMemoryMachine, "asyncio")
TestInMemoryOnTrio = machine_test(InMemoryMachine, "trio")
TestFileOnAsyncio = machine_test(FileMachine, "asyncio")
TestFileOnTrio = machine_test(FileMachine, "trio")

"""`Background`: bounded, one task for each conversation, and nothing that happens in it ends the program."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import anyio
import pytest
from anyio import Event, create_task_group, fail_after, get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from memkit import background as background_module
from memkit.background import Background
from memkit.errors import BudgetError, ClosedError

pytestmark = pytest.mark.anyio

DRIVER = object()


class Work:
    """A job that waits until it may end, fails as often as it is told, and counts."""

    def __init__(self, failures: int = 0, *, is_open: bool = False) -> None:
        self.failures = failures
        self.begun = 0
        self.done = 0
        self.at_once = 0
        self.most_at_once = 0
        self.opened = Event()
        if is_open:
            self.opened.set()

    async def __call__(self) -> None:
        self.begun += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.opened.wait()
            await checkpoint()
        finally:
            self.at_once -= 1
        if self.failures > 0:
            self.failures -= 1
            raise ValueError("the model is overloaded")
        self.done += 1


async def until(condition: Callable[[], bool]) -> None:
    with fail_after(5):
        while not condition():
            await anyio.sleep(0)


async def test_so_many_at_once_and_no_more() -> None:
    work = Work()
    async with Background(limit=3) as background:
        for n in range(10):
            assert background.submit(DRIVER, f"k{n}", work)
        assert (background.pending, background.running) == (10, 0)
        await until(lambda: work.begun == 3)
        for _ in range(20):
            await checkpoint()
        assert (background.pending, background.running, background.failed) == (7, 3, 0)
        work.opened.set()
    assert (work.done, work.most_at_once) == (10, 3)
    assert (background.pending, background.running, background.failed) == (0, 0, 0)


async def test_one_at_a_time_for_each_conversation() -> None:
    work = Work()
    async with Background() as background:
        for _ in range(5):
            assert background.submit(DRIVER, "k", work)
        await until(lambda: work.begun == 1)
        assert (background.pending, background.running) == (0, 1)
        work.opened.set()
    assert (work.begun, work.most_at_once) == (1, 1)  # it was asked five times before it began


async def test_asked_again_while_running_it_looks_once_more_with_the_newest_job() -> None:
    first, second, third = Work(), Work(is_open=True), Work(is_open=True)
    async with Background() as background:
        background.submit(DRIVER, "k", first)
        await until(lambda: first.begun == 1)
        background.submit(DRIVER, "k", second)
        background.submit(DRIVER, "k", third)
        first.opened.set()
    assert (first.done, second.done, third.done) == (1, 0, 1)


async def test_the_same_key_of_two_drivers_is_two_conversations() -> None:
    work = Work()
    async with Background() as background:
        background.submit(DRIVER, "k", work)
        background.submit(Background(), "k", work)
        await until(lambda: work.begun == 2)
        work.opened.set()


async def test_no_more_wait_than_may() -> None:
    work = Work()
    async with Background(limit=1, max_pending=2) as background:
        assert background.submit(DRIVER, "running", work)
        await until(lambda: work.begun == 1)
        assert [background.submit(DRIVER, f"k{n}", work) for n in range(3)] == [True, True, False]
        assert background.submit(DRIVER, "k0", work)  # is there already
        work.opened.set()
    assert work.done == 3


# --- failures ---


async def test_what_fails_is_tried_again_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(failures=2, is_open=True)
    failures: list[tuple[str, str]] = []

    def note(key: str, error: Exception) -> None:
        failures.append((key, str(error)))

    async with Background(backoff=0.001, on_failure=note) as background:
        background.submit(DRIVER, "k", work)
        await until(lambda: work.done == 1)
    assert background.failed == 2
    assert failures == [("k", "the model is overloaded")] * 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "the work for 'k' failed: the model is overloaded" in caplog.text


async def test_it_gives_up_after_so_many_tries_and_takes_it_again(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(failures=3, is_open=True)
    async with Background(tries=3, backoff=0.001) as background:
        background.submit(DRIVER, "k", work)
        await until(lambda: background.pending + background.running == 0)
        assert (work.begun, work.done, background.failed) == (3, 0, 3)
        assert "the work for 'k' is given up after 3 tries" in caplog.text
        assert background.submit(DRIVER, "k", work)
    assert work.done == 1


async def test_pauses_double_up_to_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def no_pause(seconds: float) -> anyio.CancelScope:
        pauses.append(seconds)
        return anyio.move_on_after(0)

    monkeypatch.setattr("random.random", lambda: 1.0)
    monkeypatch.setattr(background_module, "move_on_after", no_pause)
    work = Work(failures=1_100, is_open=True)
    async with Background(tries=1_100, backoff=1.0) as background:
        background.submit(DRIVER, "k", work)
        await until(lambda: work.failures == 0)
        assert pauses[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
        assert set(pauses[8:]) == {60}


async def test_half_of_a_pause_is_left_to_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("random.random", lambda: 0.0)
    monkeypatch.setattr(
        background_module, "move_on_after", lambda seconds: (pauses.append(seconds), anyio.move_on_after(0))[1]
    )
    async with Background(tries=3, backoff=1.0) as background:
        background.submit(DRIVER, "k", Work(failures=3, is_open=True))
        await until(lambda: background.failed == 3)
    assert pauses[:2] == [0.5, 1]


@pytest.mark.parametrize("error", [KeyError(), MemoryError(), RecursionError(), ExceptionGroup("", [OSError()])])
async def test_nothing_that_a_job_raises_ends_the_program(error: Exception) -> None:
    async def job() -> None:
        raise error

    async with Background(tries=2, backoff=0) as background:
        background.submit(DRIVER, "k", job)
        await until(lambda: background.failed == 2)
        work = Work(is_open=True)
        assert background.submit(DRIVER, "k", work)
    assert work.done == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_job_that_awaits_what_was_cancelled_ends_nothing_else() -> None:
    async def job() -> None:
        raise asyncio.CancelledError

    failures: list[Exception] = []
    async with Background(tries=2, backoff=0, on_failure=lambda _, error: failures.append(error)) as background:
        background.submit(DRIVER, "k", job)
        await until(lambda: background.failed == 2)
        await anyio.sleep(0.01)  # a cancellation of the body would come here
        failures.append(ValueError("the body goes on"))
    assert [str(error) for error in failures] == ["it awaited something that was cancelled"] * 2 + [
        "the body goes on"
    ]


async def test_a_handler_that_fails_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def handler(key: str, error: Exception) -> None:
        raise RuntimeError(f"cannot report {error} of {key}")

    work = Work(failures=1, is_open=True)
    async with Background(backoff=0, on_failure=handler) as background:
        background.submit(DRIVER, "k", work)
        await until(lambda: work.done == 1)
    assert "on_failure of a Background failed for 'k'" in caplog.text


# --- leaving ---


async def test_leaving_waits_for_what_has_begun_and_what_waits() -> None:
    work = Work()
    async with create_task_group() as tasks:
        async with Background(limit=1) as background:
            for n in range(3):
                background.submit(DRIVER, f"k{n}", work)
            await until(lambda: work.begun == 1)
            tasks.start_soon(open_later, work)
        assert work.done == 3
    assert not background.is_open
    assert not background.submit(DRIVER, "k", work)


async def open_later(*works: Work) -> None:
    for _ in range(5):
        await checkpoint()
    for work in works:
        work.opened.set()


async def test_leaving_makes_no_pauses() -> None:
    work = Work(failures=3, is_open=True)
    with fail_after(5):
        async with Background(backoff=1_000) as background:
            background.submit(DRIVER, "k", work)
            await until(lambda: background.failed == 1)
    assert (work.done, background.failed) == (1, 3)


async def test_leaving_by_an_error_drains_and_raises_that_error() -> None:
    async def program() -> None:
        async with Background() as background:
            background.submit(DRIVER, "k", work)
            await until(lambda: work.begun == 1)
            tasks.start_soon(open_later, work)
            raise ValueError("of the body")

    work = Work()
    async with create_task_group() as tasks:
        with pytest.raises(ValueError, match=r"^of the body$"):  # as it is, in no group
            await program()
    assert work.done == 1


async def test_a_cancellation_from_outside_lets_what_has_begun_land() -> None:
    work = Work()
    is_cancelled = False
    async with create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            try:
                async with Background() as background:
                    background.submit(DRIVER, "begun", work)
                    await until(lambda: work.begun == 1)
                    tasks.start_soon(open_later, work)
                    scope.cancel()
                    await anyio.sleep_forever()
            except get_cancelled_exc_class():
                is_cancelled = True
                raise
    assert scope.cancelled_caught
    assert (is_cancelled, work.done) == (True, 1)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("while_leaving", [False, True])
async def test_a_native_cancellation_lets_what_has_begun_land(while_leaving: bool) -> None:
    work = Work()
    left = asyncio.Event()

    async def program() -> None:
        async with Background() as background:
            background.submit(DRIVER, "k", work)
            await until(lambda: work.begun == 1)
            left.set()
            if not while_leaving:
                await asyncio.sleep(1_000)

    task = asyncio.create_task(program())
    await left.wait()
    for _ in range(3):  # once for the body, and twice more while it drains
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not task.done()
    work.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.done == 1


async def test_after_the_grace_time_what_is_left_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    work = Work()
    with fail_after(5):
        async with Background(limit=1, grace=0.02) as background:
            background.submit(DRIVER, "a", work)
            background.submit(DRIVER, "b", work)
            await until(lambda: work.begun == 1)
    assert (work.begun, work.done, work.at_once) == (1, 0, 0)
    assert (background.pending, background.running, background.failed) == (0, 0, 0)
    assert "the work for 2 conversations is left undone, such as ['a', 'b']" in caplog.text


async def test_without_grace_nothing_is_waited_for() -> None:
    work = Work()
    with fail_after(5):
        async with Background(grace=0) as background:
            background.submit(DRIVER, "k", work)
    assert work.done == 0


async def test_what_is_asked_for_again_while_leaving_is_done_once_more() -> None:
    work = Work(is_open=True)

    async def job() -> None:
        assert not background.submit(DRIVER, "k", job)  # no more is taken
        await work()

    background = Background()
    async with background:
        background.submit(DRIVER, "k", job)
    assert work.done == 1


async def test_it_is_entered_once() -> None:
    background = Background()
    assert not background.is_open
    assert not background.submit(DRIVER, "k", Work())
    with pytest.raises(ClosedError, match="was never entered"):
        await background.__aexit__(None, None, None)
    async with background:
        assert background.is_open
        with pytest.raises(ClosedError, match="make another one"):
            await background.__aenter__()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it_may_be_made_before_there_is_a_loop(backend: str) -> None:
    background = await anyio.to_thread.run_sync(Background)
    done: list[int] = []

    async def job() -> None:
        done.append(1)

    async def program() -> None:
        async with background:
            background.submit(DRIVER, "k", job)

    await anyio.to_thread.run_sync(lambda: anyio.run(program, backend=backend))
    assert done == [1]


@pytest.mark.parametrize(
    "options", [{"limit": 0}, {"tries": 0}, {"max_pending": 0}, {"backoff": -1.0}, {"grace": -0.1}]
)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_numbers_that_cannot_be(options: dict[str, float]) -> None:
    make: Callable[..., Awaitable[object] | Background] = Background
    with pytest.raises(BudgetError):
        make(**options)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_loop_that_ends_is_not_held_up_by_work_that_begins_again() -> None:
    begun = 0

    async def hangs() -> None:
        nonlocal begun
        begun += 1
        await anyio.sleep_forever()

    async with Background(grace=0.05) as background:
        background.submit(DRIVER, "k", hangs)
        await until(lambda: begun == 1)
        # As `asyncio.run` does with all tasks that are left.
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if "_fly" in str(task):
                task.cancel()
        await until(lambda: background.running == 0)
    assert begun == 1

"""When a run is made, in programs of several tasks: one for the whole structure, or one for each task.

A structure is one pass of a pipeline, a graph or an agent, from the question to the answer; a task is one
step of it that asks a model. Tasks may run one after another, side by side or inside each other; the recorder
owns no task group, and works with any.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, cast, get_args

from msgspec import UNSET, UnsetType

from memkit.checks import check_content, check_parts
from memkit.content import Content, ContentLike, Part, parts_of, to_content, to_parts
from memkit.conversation import View
from memkit.errors import ClosedError, FormatError
from memkit.memory import Memory
from memkit.messages import ChatMessage, chat_messages
from memkit.run import Run, new_run

Recording: TypeAlias = Literal["per_structure", "per_task"]


class Recorder:
    """Decides what of a program of several tasks becomes a run of `memory`.

    "per_structure": one run, of the input of the task that started first and the output of the task that
    finished last, stored when the structure is left without an error. What lies between is forgotten; with
    `keep_steps=True` it is kept as the steps of the run, task by task as they finished: the steps of each,
    then its output. "per_task": one run for each task that is left with an output, with its steps, stored
    as soon as it is left.

    With `memory=None` everything runs as it would, prompts have no history, and nothing is stored.

    Raises:
        FormatError: `memory` is no Memory, or there is no such strategy.
    """

    def __init__(
        self, memory: Memory | None, strategy: Recording = "per_structure", *, keep_steps: bool = False
    ) -> None:
        if cast("object", strategy) not in get_args(Recording):
            raise FormatError(f'a recorder records "per_structure" or "per_task", not {strategy!r}')
        _check_is_memory(memory)
        self._memory = memory
        self._strategy: Final = strategy
        self._keep_steps = keep_steps

    def structure(self) -> Structure:
        """Return the context of one pass of the program, in which its tasks run."""
        return Structure(self._memory, self._strategy, keep_steps=self._keep_steps)


class Structure:
    """One pass of a program of several tasks, to be used with `async with`.

    Left by an error or a cancellation, it stores nothing; tasks that were stored by then, "per_task", stay,
    since those after them have read them. Nothing is stored either if the task that finished last has no
    output. A task that failed, and whose error the program survived, has not finished.

    `run` is what was stored on leaving, or None. If the store failed, `await memory.append(structure.run)`
    tries again and stores nothing twice. `async with` raises `ClosedError` where `memory` is closed.
    """

    def __init__(self, memory: Memory | None, strategy: Recording, *, keep_steps: bool) -> None:
        self._memory = memory
        self._strategy = strategy
        self._keep_steps = keep_steps
        self._started: list[Task] = []
        self._finished: list[Task] = []
        self._answer: Content = ()
        self._is_open: bool | None = None  # None: not yet
        self.run: Run | None = None

    def task(self, input: ContentLike = None, *, memory: Memory | UnsetType | None = UNSET) -> Task:
        """Return the context of one task. No `input` is `""`.

        `memory` is what the task reads, and writes if it is a run of its own: by default that of the
        recorder; another one is used instead, and with None the task neither reads nor writes. Whatever it
        reads, the input and output of a task may become those of the structure.

        Raises:
            FormatError: `input` cannot be stored, or `memory` is no Memory.
        """
        self._check_open()
        content = to_content(input) or ""
        check_content(content, "input")
        if memory is UNSET:
            memory = self._memory
        _check_is_memory(memory)
        return Task(content, memory, self._start, self._finish)

    def answer(self, output: ContentLike) -> None:
        """Take the answer of the whole structure, in the place of the output of the task that finishes last.

        Tasks that run side by side finish in any order: where no task joins what they found, this does.

        Raises:
            FormatError: it cannot be stored; it was not taken.
        """
        self._check_open()
        self._answer = _checked(output)

    async def __aenter__(self) -> Self:
        if self._is_open is not None:
            raise ClosedError("this structure has been used already; make one for each `async with`")
        _check_is_open(self._memory)
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        if error is None and self._memory is not None and self._strategy == "per_structure":
            self.run = self._whole()
            if self.run is not None:
                await self._memory.append(self.run)

    def _whole(self) -> Run | None:
        last = self._finished[-1] if self._finished and self._answer == () else None
        output = self._answer if last is None else last.output
        if not self._started or output == ():
            return None
        steps: list[Part] = []
        for task in self._finished if self._keep_steps else ():
            steps += task.steps
            if task is not last and task.output:
                steps += parts_of(task.output)
        return new_run(self._started[0].input, output, steps=steps)

    def _start(self, task: Task) -> None:
        self._check_open()
        self._started.append(task)

    async def _finish(self, task: Task) -> None:
        self._check_open()
        self._finished.append(task)
        if self._strategy == "per_task" and task.memory is not None and task.output != ():
            task.run = new_run(task.input, task.output, steps=task.steps)
            await task.memory.append(task.run)

    def _check_open(self) -> None:
        if not self._is_open:
            raise ClosedError("this structure is not running; use it inside `async with recorder.structure()`")


class Task:
    """One task of a structure, to be used with `async with`. Left by an error, it stores nothing.

    `run` is what was stored on leaving, or None: always None "per_structure". If the store failed,
    `await task.memory.append(task.run)` tries again and stores nothing twice.
    """

    def __init__(
        self,
        input: Content,
        memory: Memory | None,
        start: Callable[[Task], None],
        finish: Callable[[Task], Awaitable[None]],
    ) -> None:
        self.input: Final = input
        self.memory: Final = memory
        self.run: Run | None = None
        self._start = start
        self._finish = finish
        self._steps: list[Part] = []
        self._output: Content = ()
        self._is_open: bool | None = None  # None: not yet

    @property
    def steps(self) -> tuple[Part, ...]:
        """The steps that were taken."""
        return tuple(self._steps)

    @property
    def output(self) -> Content:
        """What was answered; `()` if nothing was."""
        return self._output

    def messages(
        self, *, system: ContentLike = None, reserve: int = 0, tokens: int | None = None
    ) -> list[ChatMessage]:
        """Return the prompt as chat messages: what `Memory.messages` makes of the task's memory and input.

        Raises:
            BudgetError: as `Memory.messages` does.
        """
        if self.memory is None:
            return chat_messages(View(), system=to_content(system), input=self.input)
        return self.memory.messages(self.input, system=system, reserve=reserve, tokens=tokens)

    def step(self, *parts: Part | str) -> None:
        """Take steps: what the model said before a tool call, the call, its result.

        Raises:
            FormatError: one that cannot be stored; none of them was taken.
        """
        self._check_open()
        steps = to_parts(parts)
        check_parts(steps, "steps")
        self._steps += steps

    def answer(self, output: ContentLike) -> None:
        """Take the output of the task, in the place of an earlier one; None is no output.

        Raises:
            FormatError: it cannot be stored; it was not taken.
        """
        self._check_open()
        self._output = _checked(output)

    async def __aenter__(self) -> Self:
        if self._is_open is not None:
            raise ClosedError("this task has been used already; make one for each `async with`")
        _check_is_open(self.memory)
        self._start(self)
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        if error is None:
            await self._finish(self)

    def _check_open(self) -> None:
        if not self._is_open:
            raise ClosedError("this task is not running; use it inside `async with structure.task(...) as task`")


def _checked(output: ContentLike) -> Content:
    content = to_content(output)
    check_content(content, "output")
    return content


def _check_is_memory(memory: object) -> None:
    if memory is not None and not isinstance(memory, Memory):
        raise FormatError(f"a recorder takes a Memory or None, not a {type(memory).__name__}; see memkit.open()")


def _check_is_open(memory: Memory | None) -> None:
    """Refuse a closed handle now: later the answer of a model would be lost."""
    if memory is not None:
        _ = memory.conversation

"""The three programs of griptape's documentation: what they print with memkit, and what griptape itself prints."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from examples import griptape_programs as programs
from memkit import Run
from tests.griptape_agents import griptape_modules

PROGRAM = Path(programs.__file__)

BUFFER = """\
--- buffer: BufferConversationMemory(buffer_size=3): all is kept, the newest three exchanges are sent.
4 exchanges are stored, the prompt has 3:
user: What is my name?
assistant: Your name is John, as you told me when we began. How can I help you further?
user: My favourite colour is blue, and I like cats more than dogs.
assistant: Blue is a great colour! It is often associated with calmness. Is there anything else you like?
user: What is my favourite colour?
assistant: It is blue.

"""

SUMMARY = """\
--- summary: SummaryConversationMemory(offset=2): all but the newest two are summed up, a call for each exchange.
Q: Hello, my name is John.
A: Hello John! It is good to meet you. How can I assist you today?
Q: What is my name?
A: Your name is John, as you told me when we began. How can I help you further?
Q: My favourite colour is blue, and I like cats more than dogs.
A: Blue is a great colour! It is often associated with calmness. Is there anything else you like?
Summary: The user said: Hello, my name is John.

"""

FILE = """\
--- file: LocalConversationMemoryDriver(persist_file=...): stored by one handle, read by another.
Q: Hello, my name is John.
A: Hello John! It is good to meet you. How can I assist you today?
Q: What is my name?
A: Your name is John, as you told me when we began. How can I help you further?
Q: And who am I?
A: Your name is John, as you told me when we began. How can I help you further?

"""


@pytest.mark.parametrize(
    ("names", "printed"),
    [
        ([], BUFFER + SUMMARY + FILE),
        (["file"], FILE),
        (["summary", "buffer"], SUMMARY + BUFFER),
    ],
)
def test_the_transcripts(names: list[str], printed: str, tmp_path: Path) -> None:
    done = run_program(*names, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == printed
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    done = run_program("bufffer", cwd=tmp_path)
    assert done.returncode == 2
    assert "invalid choice: 'bufffer'" in done.stderr


def run_program(*names: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *names]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60, check=False)


# --- the original ---


@pytest.fixture(scope="session")
def gt() -> SimpleNamespace:
    """Give griptape, which takes seconds to import."""
    return griptape_modules()


def answer(messages: list[tuple[str, str]]) -> str:
    """Answer as the stand-in of the programs does, from griptape's messages."""
    return programs.answer([{"role": "user", "content": text} for _, text in messages])


def talked(gt: SimpleNamespace, memory: Any, questions: Sequence[str]) -> Any:
    """Return a memory of griptape after these questions have been asked."""
    agent = gt.Agent(prompt_driver=gt.StandIn(answer), conversation_memory=memory)
    for question in questions:
        agent.run(question)
    return memory


def printed_by(
    capsys: pytest.CaptureFixture[str], program: Callable[[], Awaitable[None]], *, but: int = 0
) -> list[str]:
    """Return the lines that one of the programs prints, without some at the beginning and the empty one."""
    anyio.run(program)
    return capsys.readouterr().out.splitlines()[but:-1]


def test_the_buffer_is_what_griptape_sends(gt: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    memory = talked(gt, gt.ConversationMemory(conversation_memory_driver=gt.Local()), programs.QUESTIONS)
    assert len(gt.Conversation(memory).lines()) == 8
    newest = gt.ConversationMemory(conversation_memory_driver=gt.Local(), runs=memory.runs[-3:])
    lines = gt.Conversation(newest).prompt_stack()
    assert lines == [f"{message.role}: {message.to_text()}" for message in memory.to_prompt_stack(3).messages]
    printed = printed_by(capsys, programs.buffer, but=1)
    assert printed == lines
    named = [line.replace("user: ", "Q: ", 1).replace("assistant: ", "A: ", 1) for line in printed]
    assert named == gt.Conversation(newest).lines() == gt.Conversation(memory).lines()[2:]


def test_the_summary_is_what_griptape_prints(gt: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    class Summing(gt.SummaryConversationMemory):  # type: ignore[misc, name-defined]
        def summarize_runs(self, previous_summary: str | None, runs: list[Any]) -> str:
            ours = [Run(run.id, run.input.to_text(), output=run.output.to_text()) for run in runs]

            async def summarized() -> str:
                return await programs.summarize(ours, previous=previous_summary)

            return anyio.run(summarized)

    memory = Summing(conversation_memory_driver=gt.Local(), prompt_driver=gt.StandIn(), offset=2)
    talked(gt, memory, programs.QUESTIONS[:3])
    lines = gt.Conversation(memory).lines()
    assert lines[-1] == "Summary: The user said: Hello, my name is John."
    assert printed_by(capsys, programs.summary) == lines


def test_the_file_is_what_griptape_prints(
    gt: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = gt.Local(persist_file=str(tmp_path / "memory.json"))
    talked(gt, gt.ConversationMemory(conversation_memory_driver=local), programs.QUESTIONS[:2])
    memory = talked(gt, gt.ConversationMemory(conversation_memory_driver=local), ["And who am I?"])
    assert printed_by(capsys, programs.file) == gt.Conversation(memory).lines()

"""The examples are documentation: each of them runs as it is, offline, in an empty folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import anyio
import pytest

import memkit
from tests.servers.dynamodb import DynamoDB

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(
    folder: Path,
    name: str,
    *args: object,
    before: str = "",
    typed: str = "",
    stdout: int = subprocess.PIPE,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run an example in a folder, in a process in which the program `before` has run and this is typed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OPENAI_")}
    path = str(EXAMPLES / name)
    program = f"import runpy, sys\n{before}\ndel sys.argv[0]\nrunpy.run_path({path!r}, run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", program, path, *map(str, args)],
        cwd=folder,
        env=kept | environment,
        input=typed,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def without(package: str) -> str:
    """A program after which a package is as good as not installed."""
    return f"sys.modules[{package!r}] = None"


# --- hello.py ---


def test_hello_prints_the_prompt_with_what_was_said_before(tmp_path: Path) -> None:
    done = run(tmp_path, "hello.py")

    assert [line.strip() for line in done.stdout.splitlines()] == [
        "user: Hello, my name is Collin.",
        "assistant: Hello Collin! How can I help you?",
        "user: What is my name?",
    ]


# --- session.py ---


def test_a_session_remembers_from_one_call_to_the_next(tmp_path: Path) -> None:
    first = run(tmp_path, "session.py", "Hello my name is Collin.", "user-id-123")
    second = run(tmp_path, "session.py", "What is my name?", "user-id-123")
    someone_else = run(tmp_path, "session.py", "What is my name?", "user-id-124")

    assert "stand-in" in first.stdout
    assert "Hello Collin!" in first.stdout
    assert "remembered 0 earlier exchanges" in first.stdout
    assert "Your name is Collin." in second.stdout
    assert "remembered 1 earlier exchange and left out 0" in second.stdout
    assert "I do not know your name yet." in someone_else.stdout
    assert (tmp_path / ".memkit").is_dir()


GROUP = [
    ("Zach", "Hello my name is Zach.", "Hello Zach!"),
    ("Matt", "And I'm Matt", "Hello Matt!"),
    ("Collin", "And I'm Collin, who all is here?", "Hello Collin! So far I have met Zach, Matt and Collin here."),
]


@pytest.mark.parametrize("named", [True, False])
def test_a_session_may_be_that_of_a_group(tmp_path: Path, named: bool) -> None:
    for name, text, answer in GROUP:
        done = run(tmp_path, "session.py", text, "group-id-123", *(["--name", name] if named else []))
        assert done.stdout.splitlines()[0].endswith(f"] {answer}"), done.stderr

    runs = stored(tmp_path, "group-id-123")

    assert [run.meta.get("name") for run in runs] == [name if named else None for name, _, _ in GROUP]
    assert [run.input for run in runs] == [f"{name} says: {text}" if named else text for name, text, _ in GROUP]


def test_a_session_knows_who_of_a_group_asks(tmp_path: Path) -> None:
    for name in ("Zach", "Mary Ann"):
        run(tmp_path, "session.py", "Hi", "group-id-123", "--name", name)

    asked = run(tmp_path, "session.py", "What is my name?", "group-id-123", "--name", "Zach")
    listed = run(tmp_path, "session.py", "Who is here?", "group-id-123", "--name", "Mary Ann")

    assert "Your name is Zach." in asked.stdout
    assert "Hello Mary Ann! So far I have met Zach and Mary Ann here." in listed.stdout


def test_a_model_is_told_who_of_a_group_says_what(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    run(tmp_path, "session.py", "Hello my name is Zach.", "us", "--name", "Zach")
    with endpoint(["Hello", " Matt!"]) as (url, asked):
        settings = {"OPENAI_BASE_URL": url, "OPENAI_MODEL": "some-model"}
        run(tmp_path, "session.py", "And I'm Matt", "us", "--name", "Matt", **settings)

    system, *others = (message["content"] for message in asked[0]["messages"])
    assert "a group of people" in system
    assert (others[0], others[-1]) == ("Zach says: Hello my name is Zach.", "Matt says: And I'm Matt")


def stored(folder: Path, key: str) -> list[memkit.Run]:
    """All runs of a session."""

    async def read() -> list[memkit.Run]:
        async with memkit.open(key, folder / ".memkit") as memory:
            return [run async for run in memory.history()]

    return anyio.run(read)


def test_no_answer_controls_the_terminal(tmp_path: Path) -> None:
    name = "\x1b]52;c;cm0gLXJmIH4=\x07\x1b[2A"

    done = run(tmp_path, "session.py", "Hi", "me", "--name", name)

    assert "Hello \\x1b]52;c;cm0gLXJmIH4=\\x07\\x1b[2A!" in done.stdout
    assert "\x1b" not in done.stdout


def test_what_does_not_fit_the_budget_is_left_out_of_the_prompt(tmp_path: Path) -> None:
    run(tmp_path, "session.py", "Hello my name is Collin.", "me", "--directory", "kept")

    done = run(tmp_path, "session.py", "What is my name?", "me", "--directory", "kept", "--budget", 530)

    assert "I do not know your name yet." in done.stdout
    assert "remembered 0 earlier exchanges and left out 1" in done.stdout
    assert "of 530 tokens" in done.stdout


def test_a_session_asks_the_endpoint_that_is_set(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    run(tmp_path, "session.py", "Hello my name is Collin.", "me")
    with endpoint(["Your name", " is Collin."]) as (url, asked):
        settings = {"OPENAI_BASE_URL": url, "OPENAI_MODEL": "some-model"}
        done = run(tmp_path, "session.py", "What is my name?", "me", **settings)

    assert done.stdout.startswith("Your name is Collin.\n"), done.stderr
    assert [question["model"] for question in asked] == ["some-model"]
    system, said, answered, question = asked[0]["messages"]
    assert [system["role"], said["role"], answered["role"]] == ["system", "user", "assistant"]
    assert [said["content"], question["content"]] == ["Hello my name is Collin.", "What is my name?"]


def test_an_answer_that_is_cut_off_is_remembered_as_far_as_it_came(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    with endpoint(["Certainly, my name is Hal", None]) as (url, _):
        cut = run(tmp_path, "session.py", "Hello?", "me", OPENAI_BASE_URL=url, OPENAI_MODEL="some-model")

    done = run(tmp_path, "session.py", "Go on.", "me")

    assert cut.returncode == 1
    assert cut.stdout == "Certainly, my name is Hal"
    assert "remembered 1 earlier exchange" in done.stdout


@pytest.mark.parametrize(
    ("settings", "before", "complaint"),
    [
        ({"OPENAI_API_KEY": "secret"}, without("openai"), "pip install openai"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:9"}, "", "which model?"),
    ],
)
def test_a_session_says_what_the_endpoint_lacks(
    tmp_path: Path, settings: dict[str, str], before: str, complaint: str
) -> None:
    done = run(tmp_path, "session.py", "Hello?", "me", before=before, **settings)

    assert done.returncode == 1
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_session_explains_a_user_it_cannot_have(tmp_path: Path) -> None:
    done = run(tmp_path, "session.py", "Hello?", "")

    assert done.returncode == 1
    assert done.stderr.startswith("session.py: the key of a conversation")


@contextmanager
def endpoint(pieces: Sequence[str | None]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve chat completions that stream these pieces and break off at None; yield the URL and what is asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            chunks = [_chunk(piece) for piece in pieces if piece is not None]
            body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            cut = body.index("data: [DONE]") if None in pieces else len(body)
            self.wfile.write(body[:cut].encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", asked
        finally:
            server.shutdown()
            thread.join()


def _chunk(piece: str) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
    return {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}


# --- replay.py ---


def turns(number: int) -> list[dict[str, Any]]:
    """A conversation with a tool call in each turn."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You find things. " * 10}]
    for turn in range(number):
        function = {"name": "find", "arguments": f'{{"number": {turn}}}'}
        messages += [
            {"role": "user", "content": f"Find number {turn}. " * 10},
            {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": "c", "name": "find", "content": "here " * 20},
            {"role": "assistant", "content": f"Here is number {turn}."},
        ]
    return messages


def written(folder: Path, *lines: object) -> Path:
    """A file of JSON Lines; a line that is text is written as it is."""
    path = folder / "conversations.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_json_lines_are_replayed_and_nothing_is_lost(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png", "detail": "low"}}
    told = [{"role": "user", "content": [image]}, {"role": "assistant", "content": None, "refusal": "No."}]

    done = run(tmp_path, "replay.py", written(tmp_path, turns(3), "", {"messages": told}))

    assert done.returncode == 0, done.stderr
    assert "15 messages in 2 conversations, 0 repairs" in done.stdout
    assert [line.split()[:2] for line in done.stdout.splitlines()[:4]] == [
        ["no.", "turns"],
        ["1", "3"],
        ["3", "1"],
        ["all", "4"],
    ]
    assert done.stdout.count("0 conversations lost") == 2
    assert done.stdout.count("0 prompts over the budget") == 2
    assert os.listdir(tmp_path) == ["conversations.jsonl"]


def test_a_small_budget_prunes_and_a_larger_step_repeats_more(tmp_path: Path) -> None:
    path = written(tmp_path, turns(40))

    done = run(tmp_path, "replay.py", path, "--budget", 1_200, "--step", 1, "--step", 4)

    heads, cells = (line.split() for line in done.stdout.splitlines()[:2])
    found = dict(zip(heads, cells, strict=True))
    assert done.returncode == 0, done.stderr
    assert int(found["largest"].replace(",", "")) <= 1_200
    assert int(found["pruned/1"]) > 20
    assert float(found["repeats/4"].strip("%")) > float(found["repeats/1"].strip("%"))


def test_a_budget_that_the_system_text_alone_exceeds_is_reported(tmp_path: Path) -> None:
    done = run(tmp_path, "replay.py", written(tmp_path, turns(2)), "--budget", 20)

    assert done.returncode == 0, done.stderr
    assert "2 prompts over the budget without any" in done.stdout


def test_a_broken_conversation_is_replayed_as_repaired(tmp_path: Path) -> None:
    broken = [message for message in turns(2) if message["role"] != "tool"]

    done = run(tmp_path, "replay.py", written(tmp_path, broken))

    assert done.returncode == 0, done.stderr
    assert "2 repairs" in done.stdout


def test_real_conversations_are_replayed_and_nothing_is_lost(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "tau_bench_gpt-4o-airline.json"

    done = run(tmp_path, "replay.py", path, "--limit", 5, "--directory", "kept", "--encoding", "gpt-4o")

    assert done.returncode == 0, done.stderr
    assert "in 5 conversations, 0 repairs" in done.stdout
    assert len(os.listdir(tmp_path / "kept")) == 10


def test_a_replay_does_not_add_to_what_is_there(tmp_path: Path) -> None:
    path = written(tmp_path, turns(1))
    run(tmp_path, "replay.py", path, "--directory", "kept")

    again = run(tmp_path, "replay.py", path, "--directory", "kept")

    assert again.returncode == 2
    assert "choose another --directory" in again.stderr


def test_a_replay_needs_no_progress_bar(tmp_path: Path) -> None:
    path = written(tmp_path, turns(1), turns(1))

    done = run(tmp_path, "replay.py", path, before=without("rich.progress"))

    assert done.returncode == 0, done.stderr
    assert "conversation 2 of 2" in done.stderr


FORGETFUL = """
import memkit
async def nothing(self):
    for run in ():
        yield run
memkit.Memory.history = nothing
"""
GREEDY = "import memkit; memkit.prune = lambda budget, **options: memkit.everything"


@pytest.mark.parametrize(
    ("sabotage", "complaint"), [(FORGETFUL, "1 conversations lost"), (GREEDY, "7 prompts over")]
)
def test_a_replay_fails_if_memkit_does(tmp_path: Path, sabotage: str, complaint: str) -> None:
    path = written(tmp_path, turns(9))

    done = run(tmp_path, "replay.py", path, "--budget", 300, before=sabotage)

    assert done.returncode == 1, done.stderr
    assert complaint in done.stdout


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "there is no conversation in it"),
        ([turns(1), '[{"role": "us'], "line 2 is not JSON"),
        ([turns(1), [{"role": "user"}, {"content": "Hi"}]], "conversation 2: message 1 has the role None"),
        ([{"text": "Hi"}], "conversation 1: chat messages come as a list"),
        (["3"], "conversation 1: chat messages come as a list"),
        ([turns(1), [3]], "conversation 2: message 0 is a int"),
    ],
)
def test_a_file_that_cannot_be_replayed_is_explained(tmp_path: Path, lines: list[object], complaint: str) -> None:
    done = run(tmp_path, "replay.py", written(tmp_path, *lines))

    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--budget", 0], "max_tokens"),
        (["--step", 0], "step"),
        (["--encoding", "none"], "no vocabulary for 'none'"),
    ],
)
def test_options_that_make_no_sense_are_explained(tmp_path: Path, options: list[object], complaint: str) -> None:
    done = run(tmp_path, "replay.py", written(tmp_path, turns(1)), *options)

    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    done = run(tmp_path, "replay.py", "nowhere.json")

    assert done.returncode == 2
    assert done.stderr.startswith("replay.py: nowhere.json: [Errno 2] No such file")


# --- all of them ---

ALL = sorted(path.name for path in EXAMPLES.glob("*.py"))
SERVERS = {"bot_backend.py", "bot_load.py", "dynamodb_sessions.py"}  # which go on, or need one that does
OF_FRAMEWORKS = {"agents_session.py", "langchain_agent.py", "pydantic_ai_agent.py", "griptape_programs.py"}  # slow


@pytest.mark.parametrize("name", ALL)
def test_help_shows_how_to_use_it(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, name, "--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert f"python examples/{name}" in " ".join(done.stdout.split())
    assert os.listdir(tmp_path) == []


def test_background_summaries_are_made_whatever_fails_first(tmp_path: Path) -> None:
    done = run(tmp_path, "background_summary.py")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("is tried again: ") == done.stdout.count("the model is out of order") == 1
    assert done.stdout.count("were folded by the stand-in") == 3


@pytest.mark.parametrize(
    ("name", "unbuffered"),
    [(name, mode) for name in ALL if name not in SERVERS for mode in ("", "1")[: 1 + (name not in OF_FRAMEWORKS)]],
)
def test_it_ends_quietly_once_nobody_reads_what_it_prints(tmp_path: Path, name: str, unbuffered: str) -> None:
    args = {name: ["Hi", "me"] for name in ("session.py", "agents_session.py", "langchain_agent.py")}
    args["replay.py"] = [written(tmp_path, turns(1))]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run(tmp_path, name, *args.get(name, []), typed="Hi\n", stdout=writing, PYTHONUNBUFFERED=unbuffered)
    finally:
        os.close(writing)

    assert done.returncode in {1, -signal.SIGPIPE}
    assert [line for line in done.stderr.splitlines() if not line.startswith(("replaying", "conversation"))] == []


def test_what_nobody_read_to_the_end_is_remembered_as_far_as_it_came(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    run(tmp_path, "session.py", "My name is Collin.", "me", stdout=writing)
    os.close(writing)

    (cut,) = stored(tmp_path, "me")

    assert (cut.input, cut.status) == ("My name is Collin.", "partial")


# --- bot_backend.py and bot_load.py ---


def test_the_bot_serves_many_users_and_remembers_them(tmp_path: Path) -> None:
    path = str(EXAMPLES / "bot_backend.py")
    command = [sys.executable, path, "--port", "0", "--model-ms", "1", "--quick"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as bot:
        try:
            assert bot.stdout is not None
            announced = bot.stdout.readline()
            port = announced.rpartition(":")[2].partition("/")[0]
            done = run(tmp_path, "bot_load.py", "--port", port, "--users", "20", "--turns", "3")
            assert (done.returncode, done.stderr) == (0, "")
            assert "60 answers in " in done.stdout
            told = ask_bot(port, {"user": "user-7", "text": "And now?"})
            assert told == (200, {"answer": "I have read 8 messages, the last of which is: And now?"})
            assert ask_bot(port, "hello")[0] == 400
            assert ask_bot(port, {"user": "", "text": "x"})[0] == 422
        finally:
            bot.send_signal(signal.SIGINT)
    assert bot.returncode == 0


def ask_bot(port: str, given: object) -> tuple[int, object]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/chat", json.dumps(given).encode())
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


# --- dynamodb_sessions.py ---


def test_sessions_in_dynamodb(tmp_path: Path, dynamodb: DynamoDB) -> None:
    where = ["--local", "--endpoint", dynamodb.url, "--table", f"memkit-{uuid4().hex[:8]}"]
    hello = run(tmp_path, "dynamodb_sessions.py", "Hello my name is Collin.", "user-id-123", *where)
    name = run(tmp_path, "dynamodb_sessions.py", "What is my name?", "user-id-123", *where)
    other = run(tmp_path, "dynamodb_sessions.py", "What is my name?", "user-id-124", *where)
    assert (hello.stdout, hello.stderr) == ("Hello Collin!\n", "")
    assert name.stdout == "Your name is Collin.\n"
    assert other.stdout == "I do not know your name yet.\n"

    for who, text, _ in GROUP:
        done = run(tmp_path, "dynamodb_sessions.py", text, "group-id-123", "--name", who, *where)
    assert done.stdout == "So far I have met Zach, Matt, Collin.\n"


def test_sessions_in_a_table_that_is_missing(tmp_path: Path, dynamodb: DynamoDB) -> None:
    done = run(tmp_path, "dynamodb_sessions.py", "Hello", "user-id-123", "--table", "memkit-none")
    assert done.returncode == 1
    assert done.stderr.startswith("dynamodb_sessions.py: cannot read 'user-id-123' in table 'memkit-none': ")
    assert "create_table()" in done.stderr

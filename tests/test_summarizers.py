"""Summarisers that ask real models: the real clients, against a server that speaks their wire format."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import aioboto3
import anyio
import pytest
from openai import AsyncOpenAI

from memkit.content import Json
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import FormatError, SummaryError, UnsupportedError
from memkit.memory import Memory
from memkit.run import Run, new_run
from memkit.summaries import NamesModel, SummaryPolicy
from memkit.summarizers import bedrock, griptape, openai, quoted
from tests.llm_server import SUMMARY, LlmServer, Reply, llm_server
from tests.test_examples import run

pytestmark = pytest.mark.anyio

KEY: Final = "sk-hush-0123456789"
RUNS: Final = [new_run("My name is Collin. " * 20, "Hello Collin! " * 20), new_run("Tea?", "Yes, please.")]

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.fixture
def server() -> Iterator[LlmServer]:
    with llm_server() as server:
        yield server


@pytest.fixture(autouse=True)
def settings(server: LlmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both clients find the server and their credentials as they find those of the real services."""
    for name, value in {
        "OPENAI_BASE_URL": f"{server.url}/v1",
        "OPENAI_API_KEY": KEY,
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": server.url,
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_BEARER_TOKEN_BEDROCK": KEY,
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


async def ask_openai(previous: str | None = None, **options: Any) -> Any:
    async with openai.connect("a-model", **options) as summarizer:
        return await summarizer(RUNS, previous=previous)


async def ask_bedrock(previous: str | None = None, **options: Any) -> Any:
    async with bedrock.connect("a-model", **options) as summarizer:
        return await summarizer(RUNS, previous=previous)


async def fails(ask: Any, **options: Any) -> str:
    """Return what a summariser says when it fails, which must not hold the key."""
    with pytest.raises(SummaryError) as caught:
        await ask(**options)
    assert caught.value.__cause__ is not None
    assert KEY not in str(caught.value)
    assert "'a-model'" in str(caught.value)
    return str(caught.value)


# --- openai ---


async def test_an_endpoint_is_asked_and_its_answer_is_the_summary(server: LlmServer) -> None:
    assert await ask_openai("They met.") == SUMMARY

    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.body == {"model": "a-model", "messages": quoted(RUNS, "They met."), "stream": False}


async def test_own_prompts_and_a_bound_are_sent(server: LlmServer) -> None:
    await ask_openai(prompt=griptape, max_tokens=300)

    (request,) = server.requests
    assert request.body["messages"] == griptape(RUNS, None)
    assert request.body["max_completion_tokens"] == 300


async def test_a_borrowed_client_is_left_open(server: LlmServer) -> None:
    async with AsyncOpenAI() as client:
        summarizer = openai.OpenAISummarizer(client, "a-model")
        assert await summarizer(RUNS, previous=None) == SUMMARY
        assert not client.is_closed()
        assert await summarizer(RUNS, previous=None) == SUMMARY
        assert isinstance(summarizer, NamesModel)
        assert summarizer.model == "a-model"


async def test_an_owned_client_is_closed() -> None:
    async with openai.connect("a-model") as summarizer:
        pass
    with pytest.raises(SummaryError):
        await summarizer(RUNS, previous=None)


async def test_an_endpoint_that_is_too_busy_is_asked_again_when_it_says(server: LlmServer) -> None:
    soon = {"retry-after": "0.01"}
    server.script = [Reply(status=429, headers=soon), Reply(status=500, headers=soon)]

    assert await ask_openai() == SUMMARY
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
async def test_an_error_of_the_endpoint_is_no_summary(server: LlmServer, status: int) -> None:
    server.script = [Reply(status=status)]

    assert f"Error code: {status}" in await fails(ask_openai, max_retries=0)


@pytest.mark.parametrize("padding", [0, 270, 295])
async def test_an_endpoint_that_says_the_key_does_not_get_it_into_errors(server: LlmServer, padding: int) -> None:
    said = "x" * padding + KEY
    error = json.dumps({"error": {"message": said}}).encode()
    server.script = [Reply(status=401, body=error), Reply(text="", refusal=said), Reply(text=said)]

    for options in ({}, {}, {"schema": {"type": "object"}}):
        reason = await fails(ask_openai, **options)
        assert KEY[:8] not in reason
        assert len(reason) < 400


async def test_an_endpoint_that_says_nothing_is_given_up(server: LlmServer) -> None:
    server.script = [Reply(hangs=True)]

    assert "within 0.2 seconds" in await fails(ask_openai, timeout=0.2)


async def test_a_connection_that_is_cut_is_no_summary(server: LlmServer) -> None:
    server.script = [Reply(breaks_off=True)]

    await fails(ask_openai, max_retries=0)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(ending="length"), "cut off"),
        (Reply(ending="content_filter"), "filter"),
        (Reply(text="", refusal="I would rather not."), "I would rather not"),
        (Reply(text=""), "empty"),
        (Reply(text=" \n "), "empty"),
    ],
)
async def test_an_answer_that_is_not_whole_is_no_summary(server: LlmServer, reply: Reply, reason: str) -> None:
    server.script = [reply]

    assert reason in await fails(ask_openai)


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": []}',
        b'{"choices": null}',
        b"{}",
        b"[]",
        b"null",
        b'"text"',
        b"{",
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"choices": [null]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {"content": ["x"]}}]}',
        b'{"choices": [{"message": {"content": 1}, "finish_reason": "stop"}]}',
        b'{"choices": [{"message": {"content": "x"}, "finish_reason": ["stop"]}]}',
    ],
)
async def test_nonsense_is_no_summary(server: LlmServer, body: bytes) -> None:
    server.script = [Reply(body=body)]

    await fails(ask_openai)


async def test_a_page_of_a_web_site_is_no_summary_and_the_base_url_is_suspected(server: LlmServer) -> None:
    server.script = [Reply(body=b"<html>Welcome</html>", kind="text/html")]

    assert "base URL" in await fails(ask_openai)


async def test_text_that_is_not_valid_is_made_valid(server: LlmServer) -> None:
    server.script = [Reply(text="half \ud83d of it")]

    assert await ask_openai() == "half \ufffd of it"


async def test_with_a_schema_the_summary_is_a_json_object(server: LlmServer) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    server.script = [Reply(text='{"name": "Collin"}')]

    assert await ask_openai(schema=schema) == {"name": "Collin"}
    form = server.requests[0].body["response_format"]
    assert form == {"type": "json_schema", "json_schema": {"name": "summary", "strict": True, "schema": schema}}


@pytest.mark.parametrize(
    "text", ["Collin", "[1]", "{}", '{"a": NaN}', '{"a": 1e999}', '{"a": ' * 5_000, "1" * 5_000]
)
async def test_with_a_schema_anything_else_is_no_summary(server: LlmServer, text: str) -> None:
    server.script = [Reply(text=text)]

    await fails(ask_openai, schema={"type": "object"})


async def test_a_missing_key_is_reported_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")

    with pytest.raises(FormatError, match="'a-model'"):
        await ask_openai()


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}…", f"{KEY}\ud800"])
async def test_a_key_that_no_header_can_hold_stays_out_of_errors(key: str) -> None:
    await fails(ask_openai, api_key=key, max_retries=0)


# --- bedrock ---


@on_asyncio
async def test_bedrock_is_asked_and_its_answer_is_the_summary(server: LlmServer) -> None:
    assert await ask_bedrock("They met.", max_tokens=300) == SUMMARY

    (request,) = server.requests
    system, user = quoted(RUNS, "They met.")
    assert request.path == "/model/a-model/converse"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.body == {
        "system": [{"text": system["content"]}],
        "messages": [{"role": "user", "content": [{"text": user["content"]}]}],
        "inferenceConfig": {"maxTokens": 300},
    }


@on_asyncio
async def test_a_borrowed_client_of_bedrock_is_left_open_and_signs_as_it_does(
    server: LlmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_BEARER_TOKEN_BEDROCK")
    session = aioboto3.Session(aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="hush")
    async with session.client("bedrock-runtime") as client:
        summarizer = bedrock.BedrockSummarizer(client, "a-model")
        assert [await summarizer(RUNS, previous=None) for _ in range(2)] == [SUMMARY, SUMMARY]
        assert isinstance(summarizer, NamesModel)
        assert summarizer.model == "a-model"
    assert server.requests[1].headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")


@on_asyncio
async def test_a_prompt_without_a_system_message_will_do_for_bedrock(server: LlmServer) -> None:
    await ask_bedrock(prompt=griptape)

    (message,) = griptape(RUNS, None)
    assert server.requests[0].body == {"messages": [{"role": "user", "content": [{"text": message["content"]}]}]}


@on_asyncio
async def test_bedrock_that_is_too_busy_is_asked_again(server: LlmServer) -> None:
    server.script = [Reply(status=429, headers={"x-amzn-errortype": "ThrottlingException"}), Reply(status=500)]

    assert await ask_bedrock() == SUMMARY
    assert len(server.requests) == 3


@on_asyncio
@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "ValidationException"), (403, "AccessDeniedException"), (429, "ThrottlingException"), (500, "X")],
)
async def test_an_error_of_bedrock_is_no_summary(server: LlmServer, status: int, code: str) -> None:
    body = json.dumps({"message": f"not with the token {KEY}"}).encode()
    server.script = [Reply(status=status, body=body, headers={"x-amzn-errortype": code})]

    assert f"{code!r}, status {status}" in await fails(ask_bedrock, max_retries=0)


@on_asyncio
async def test_bedrock_that_says_nothing_is_given_up(server: LlmServer) -> None:
    server.script = [Reply(hangs=True)]

    assert "within 0.2 seconds" in await fails(ask_bedrock, timeout=0.2, max_retries=0)


@on_asyncio
@pytest.mark.parametrize(
    "reply",
    [
        Reply(ending="max_tokens"),
        Reply(ending="content_filtered"),
        Reply(ending="guardrail_intervened"),
        Reply(ending="model_context_window_exceeded"),
        Reply(ending="something new"),
        Reply(text=""),
        Reply(text=" \n"),
        Reply(breaks_off=True),
        Reply(body=b""),
        Reply(body=b"{}"),
        Reply(body=b"[]"),
        Reply(body=b"\xff{"),
        Reply(body=b"[" * 100_000),
        Reply(body=b'{"stopReason": "end_turn"}'),
        Reply(body=b'{"stopReason": "end_turn", "output": {}}'),
        Reply(body=b'{"stopReason": "end_turn", "output": {"message": {"content": []}}}'),
        Reply(body=b'{"stopReason": "end_turn", "output": {"message": {"content": [{"text": 1}]}}}'),
    ],
)
async def test_an_answer_of_bedrock_that_is_not_whole_is_no_summary(server: LlmServer, reply: Reply) -> None:
    server.script = [reply]

    await fails(ask_bedrock, max_retries=0)


@on_asyncio
async def test_thoughts_of_a_model_are_no_part_of_the_summary(server: LlmServer) -> None:
    blocks = [{"reasoningContent": {"reasoningText": {"text": "Hm."}}}, {"text": "They "}, {"text": "met."}]
    body = {"output": {"message": {"role": "assistant", "content": blocks}}, "stopReason": "end_turn"}
    server.script = [Reply(body=json.dumps(body).encode())]

    assert await ask_bedrock() == "They met."


@on_asyncio
async def test_missing_credentials_and_regions_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_BEARER_TOKEN_BEDROCK", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert "NoCredentialsError" in await fails(ask_bedrock)

    for name in ("AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FormatError, match="NoRegionError"):
        await ask_bedrock()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_bedrock_says_that_it_needs_asyncio(server: LlmServer) -> None:
    with pytest.raises(UnsupportedError, match="asyncio"):
        await ask_bedrock()
    with pytest.raises(UnsupportedError, match="asyncio"):
        await bedrock.BedrockSummarizer(None, "a-model")(RUNS, previous=None)  # type: ignore[arg-type]
    assert server.requests == []


# --- in a memory ---


async def test_a_failure_of_the_endpoint_leaves_the_memory_as_it_was_and_the_next_call_makes_the_summary(
    server: LlmServer,
) -> None:
    server.script = [Reply(ending="length")]
    policy = SummaryPolicy(keep=1, every=1)
    async with (
        openai.connect("a-model") as summarizer,
        Memory(InMemoryDriver(), "k", summarizer=summarizer, policy=policy) as memory,
    ):
        await memory.append(*RUNS)
        with pytest.raises(SummaryError):
            await memory.summarize()
        assert memory.view().summary is None
        assert memory.view().runs == memory.conversation.runs

        assert await memory.summarize()

        summary = memory.view().summary
        assert summary is not None
        assert (summary.content, summary.model, summary.upto) == (SUMMARY, "a-model", 1)


async def test_a_structured_summary_is_stored_as_a_json_part_and_given_back_as_text(server: LlmServer) -> None:
    server.script = [Reply(text='{"name": "Collin"}')]
    policy = SummaryPolicy(keep=1, every=1)
    async with (
        openai.connect("a-model", schema={"type": "object"}) as summarizer,
        Memory(InMemoryDriver(), "k", summarizer=summarizer, policy=policy) as memory,
    ):
        await memory.append(*RUNS)
        await memory.summarize()
        summary = memory.view().summary
        assert summary is not None
        assert summary.content == (Json({"name": "Collin"}),)

        server.script = [Reply(text='{"name": "Collin", "drink": "tea"}')]
        await memory.add("Tea then. " * 50, "Here you are. " * 50)
        await memory.add("Bye.", "Bye!")
        await memory.summarize()
        quoted_before = server.requests[1].body["messages"][1]["content"].splitlines()[1]
        assert json.loads(quoted_before) == {"previous_summary": '{"name":"Collin"}'}


async def pieces(runs: Sequence[Run], *, previous: str | None) -> AsyncIterator[str]:
    """Summarise as `docs/summaries.md` says how to in a stream."""
    messages: Any = quoted(runs, previous)
    ending = None
    async with (
        AsyncOpenAI(max_retries=0) as client,
        await client.chat.completions.create(model="a-model", messages=messages, stream=True) as stream,
    ):
        async for chunk in stream:
            for choice in chunk.choices:
                ending = choice.finish_reason
                yield choice.delta.content or ""
    if ending != "stop":
        raise SummaryError(f"the stream ended by {ending!r}")


@on_asyncio  # on trio the client leaves its generators to the garbage collector, and trio warns of that
@pytest.mark.parametrize(
    "broken",
    [
        Reply(breaks_off=True),
        Reply(ending="length"),
        Reply(status=500),
        Reply(text=""),
        Reply(body=b"data: [DONE]\n\n", kind="text/event-stream"),
    ],
)
async def test_an_answer_may_come_as_a_stream_and_counts_once_it_is_whole(
    server: LlmServer, broken: Reply
) -> None:
    server.script = [broken]
    policy = SummaryPolicy(keep=1, every=1)
    async with Memory(InMemoryDriver(), "k", summarizer=pieces, policy=policy) as memory:
        await memory.append(*RUNS)
        with pytest.raises(SummaryError):
            await memory.summarize()
        assert memory.view().summary is None

        await memory.summarize()
        summary = memory.view().summary
        assert summary is not None
        assert summary.content == SUMMARY


async def test_a_call_that_is_cancelled_ends(server: LlmServer) -> None:
    server.script = [Reply(hangs=True)]
    with anyio.move_on_after(0.2) as scope:
        await ask_openai()
    assert scope.cancelled_caught


# --- the example ---


def test_the_example_folds_behind_the_replies_and_shows_what_a_model_reads(tmp_path: Path) -> None:
    first = run(tmp_path, "background_summary.py", "--failures", 2, "--directory", "chats")
    second = run(tmp_path, "background_summary.py", "--failures", 0, "--directory", "chats")

    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.count("turn ") == 10
    assert first.stdout.count("failed and is tried again") == 2
    assert "Summaries: 0 pending, 0 running, 2 failed\n" in first.stdout
    assert first.stdout.count("were folded by the stand-in") == 3
    for name in ("Collin", "Mei", "Amara"):
        assert f"     My name is {name}. I want to see" in first.stdout
    assert "Summaries: 0 pending, 0 running, 0 failed\n" in second.stdout


def test_the_example_asks_an_endpoint_if_one_is_set(tmp_path: Path, server: LlmServer) -> None:
    where = {"OPENAI_BASE_URL": f"{server.url}/v1"}
    without_model = run(tmp_path, "background_summary.py", **where)
    done = run(tmp_path, "background_summary.py", "--model", "a-model", **where)
    without_client = run(tmp_path, "background_summary.py", before="sys.modules['openai'] = None", **where)

    assert without_model.stderr == "background_summary.py: which model? Set OPENAI_MODEL, or use --model\n"
    assert done.stdout.count("were folded by a-model") == 3
    assert f"     {SUMMARY}\n" in done.stdout
    assert "pip install 'memkit[openai]'" in without_client.stderr


def test_the_example_helps(tmp_path: Path) -> None:
    assert "--failures" in run(tmp_path, "background_summary.py", "--help").stdout


# --- imports ---


def test_no_client_is_imported_before_it_is_asked_for() -> None:
    program = (
        "import sys, memkit, memkit.summarizers\n"
        "assert not {'openai', 'aioboto3', 'boto3', 'botocore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("module", "package"), [("openai", "openai"), ("bedrock", "aioboto3")])
def test_a_missing_client_is_reported_with_what_to_install(module: str, package: str) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; import memkit.summarizers.{module}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"pip install 'memkit[{module}]'" in done.stderr

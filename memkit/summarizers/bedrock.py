"""Summaries by models of Amazon Bedrock, through its Converse API and aioboto3. On asyncio only.

async with connect("anthropic.claude-3-haiku-20240307-v1:0", region="eu-central-1") as summarizer:
    memory = Memory(driver, key, summarizer=summarizer)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack, cast

from anyio import fail_after

from memkit.content import clean
from memkit.errors import FormatError, MemkitError, SummaryError, UnsupportedError
from memkit.messages import ChatMessage
from memkit.run import Run
from memkit.summarizers.prompts import Prompt, quoted

try:
    import aioboto3
    from aiobotocore.config import AioConfig
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError as error:
    raise ImportError("this summariser needs the package aioboto3: pip install 'memkit[bedrock]'") from error

if TYPE_CHECKING:
    from types_aiobotocore_bedrock_runtime import BedrockRuntimeClient
    from types_aiobotocore_bedrock_runtime.type_defs import ConverseResponseTypeDef

TIMEOUT: Final = 120.0
"""Seconds that a summary may take."""


class Options(TypedDict, total=False):
    """The options of a `BedrockSummarizer`, for `connect` to pass on."""

    prompt: Prompt
    max_tokens: int | None
    timeout: float


class BedrockSummarizer:
    """Asks a model for summaries, with a client of `bedrock-runtime` that it borrows.

    `model` is the id or the ARN of a model or of an inference profile. `prompt` makes the messages, of text only.
    `max_tokens` bounds what the model writes; a summary that is cut off there is none. `timeout` is in seconds,
    for a whole summary: the client's own retries have to fit in.
    """

    def __init__(
        self,
        client: BedrockRuntimeClient,
        model: str,
        *,
        prompt: Prompt = quoted,
        max_tokens: int | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._client = client
        self._model = model
        self._prompt = prompt
        self._timeout = timeout
        self._options: dict[str, Any] = {}
        if max_tokens is not None:
            self._options["inferenceConfig"] = {"maxTokens": max_tokens}

    @property
    def model(self) -> str:
        """The id of the model."""
        return self._model

    async def __call__(self, runs: Sequence[Run], /, *, previous: str | None) -> str:
        """Return a summary of `previous` and `runs`.

        Raises:
            SummaryError: the service did not answer in time, or with an error, or with what is no whole summary.
            UnsupportedError: the event loop is not asyncio's.
        """
        _check_loop()
        request = _request(self._prompt(runs, previous))
        try:
            with fail_after(self._timeout):
                reply = await self._client.converse(modelId=self.model, **request, **self._options)
            return _text(reply)
        except TimeoutError as error:
            raise SummaryError(f"{self.model!r} made no summary within {self._timeout:g} seconds") from error
        except Exception as error:  # the client checks little of a reply, which can make anything fail
            raise SummaryError(f"{self.model!r} made no summary: {_reason(error)}") from error


@asynccontextmanager
async def connect(
    model: str, *, region: str | None = None, max_retries: int = 2, **options: Unpack[Options]
) -> AsyncGenerator[BedrockSummarizer]:
    """Open a summariser with a client of its own, and close it in the end.

    Credentials, and the region if it is not given, are found as the tools of AWS find them. What is too busy or
    out of order is asked again `max_retries` times, after a pause. Making the client takes the event loop some
    time: once, as the program starts, is best.

    Raises:
        FormatError: there is no region, or what is configured is wrong.
        UnsupportedError: the event loop is not asyncio's.
    """
    _check_loop()
    config = AioConfig(
        retries={"mode": "standard", "total_max_attempts": max_retries + 1},
        read_timeout=options.get("timeout", TIMEOUT),
    )
    session: Any = aioboto3.Session()  # its stubs know no services but those installed with them
    async with AsyncExitStack() as stack:
        try:
            opening = session.client("bedrock-runtime", region_name=region, config=config)
            client: BedrockRuntimeClient = await stack.enter_async_context(opening)
        except Exception as error:
            raise FormatError(f"the client of {model!r} cannot be made: {_reason(error)}") from error
        yield BedrockSummarizer(client, model, **options)


def _check_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        raise UnsupportedError("Bedrock needs asyncio, for aioboto3 runs on no other event loop") from error


def _request(messages: Sequence[ChatMessage]) -> dict[str, Any]:
    request: dict[str, Any] = {"messages": []}
    for message in messages:
        text = {"text": message["content"]}
        if message["role"] in {"system", "developer"}:
            request.setdefault("system", []).append(text)
        else:
            request["messages"].append({"role": message["role"], "content": [text]})
    return request


def _text(reply: ConverseResponseTypeDef) -> str:
    """Return the text of a reply, if it is a whole one."""
    ending = reply["stopReason"]
    if ending not in {"end_turn", "stop_sequence"}:
        hint = "; allow more with max_tokens" if ending == "max_tokens" else ""
        raise SummaryError(f"the answer is not whole, but ended by {ending!r:.100}{hint}")
    blocks = reply["output"].get("message", {}).get("content", [])
    text = "".join(block.get("text", "") for block in blocks)
    if not text.strip():
        raise SummaryError("the answer is empty")
    return clean(text)


def _reason(error: Exception) -> str:
    """Return why a call failed, without the words of the service: they may hold the token that it was sent."""
    if isinstance(error, MemkitError):
        return str(error)
    if isinstance(error, ClientError):
        reply = cast("dict[str, Any]", error.response)
        status = reply.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return f"{reply.get('Error', {}).get('Code')!r:.100}, status {status}; the cause of this error says more"
    return f"{type(error).__name__}: {error}" if isinstance(error, BotoCoreError) else type(error).__name__

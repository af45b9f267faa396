"""Summaries by any endpoint that speaks chat completions, through the openai package.

async with connect("gpt-4o-mini") as summarizer:
    memory = Memory(driver, key, summarizer=summarizer)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypedDict, Unpack, cast

from anyio import fail_after

from memkit.content import clean
from memkit.errors import FormatError, MemkitError, SummaryError
from memkit.messages import sendable
from memkit.rawjson import load_text, to_json
from memkit.run import Run
from memkit.summaries import Summarized
from memkit.summarizers.prompts import Prompt, quoted

try:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion
except ImportError as error:
    raise ImportError("this summariser needs the package openai: pip install 'memkit[openai]'") from error

TIMEOUT: Final = 120.0
"""Seconds that a summary may take."""


class Options(TypedDict, total=False):
    """The options of an `OpenAISummarizer`, for `connect` to pass on."""

    prompt: Prompt
    schema: Mapping[str, Any] | None
    max_tokens: int | None
    timeout: float


class OpenAISummarizer:
    """Asks a model for summaries, with a client that it borrows.

    `prompt` makes the messages. With a JSON `schema`, as the endpoint takes it, the summary is a JSON object.
    `max_tokens` bounds what the model writes; a summary that is cut off there is none. `timeout` is in
    seconds, for a whole summary: the client's own retries have to fit in.
    """

    def __init__(
        self,
        client: AsyncOpenAI,
        model: str,
        *,
        prompt: Prompt = quoted,
        schema: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._client = client
        self._model = model
        self._prompt = prompt
        self._is_json = schema is not None
        self._timeout = timeout
        self._options: dict[str, Any] = {}
        if max_tokens is not None:
            self._options["max_completion_tokens"] = max_tokens
        if schema is not None:
            form = {"name": "summary", "strict": True, "schema": schema}
            self._options["response_format"] = {"type": "json_schema", "json_schema": form}

    @property
    def model(self) -> str:
        """The name of the model."""
        return self._model

    async def __call__(self, runs: Sequence[Run], /, *, previous: str | None) -> Summarized:
        """Return a summary of `previous` and `runs`.

        Raises:
            SummaryError: the endpoint did not answer in time, or with an error, or with what is no whole summary.
        """
        messages = self._prompt(runs, previous)
        try:
            with fail_after(self._timeout):
                reply = await self._client.chat.completions.create(
                    model=self.model, messages=cast("Any", messages), stream=False, **self._options
                )
            text = _text(reply)
            return _object(text) if self._is_json else clean(text)
        except TimeoutError as error:
            raise SummaryError(f"{self.model!r} made no summary within {self._timeout:g} seconds") from error
        except Exception as error:  # the client checks little of a reply, which can make anything fail
            raise SummaryError(f"{self.model!r} made no summary: {self._reason(error)}") from error

    def _reason(self, error: Exception) -> str:
        reason = str(error) if isinstance(error, MemkitError) else f"{type(error).__name__}: {str(error)!r}"
        # An endpoint may say anything, the key that it was sent included.
        key = self._client.api_key
        return f"{reason.replace(key, '[key]') if key else reason:.300}"


@asynccontextmanager
async def connect(
    model: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    max_retries: int = 2,
    **options: Unpack[Options],
) -> AsyncGenerator[OpenAISummarizer]:
    """Open a summariser with a client of its own, and close it in the end.

    What is not given is taken from OPENAI_BASE_URL and OPENAI_API_KEY; an endpoint that wants no key takes any.
    What is too busy or out of order is asked again `max_retries` times, when it says or after a pause.

    Raises:
        FormatError: there is no key, or the URL is none.
    """
    try:
        client = AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=max_retries)
    except Exception as error:
        raise FormatError(f"the client of {model!r} cannot be made: {error}") from error
    async with client:
        yield OpenAISummarizer(client, model, **options)


_NOT_WHOLE: Final = {"length": "it was cut off; allow more with max_tokens", "content_filter": "a filter took it"}


def _text(reply: object) -> str:
    """Return the text of a reply, if it is a whole one."""
    if not isinstance(reply, ChatCompletion):
        raise SummaryError("the reply is no chat completion; does the base URL end as it should, in /v1?")
    if not reply.choices:
        raise SummaryError("the reply holds no choice")
    choice = reply.choices[0]
    if choice.message.refusal:
        raise SummaryError(f"the model refused: {choice.message.refusal!r}")
    if choice.finish_reason in _NOT_WHOLE:
        raise SummaryError(_NOT_WHOLE[choice.finish_reason])
    text = choice.message.content
    if text is None or not text.strip():
        raise SummaryError(f"the answer is empty, and ended by {choice.finish_reason!r}")
    return text


def _object(text: str) -> Mapping[str, Any]:
    value = to_json(load_text(text), "the summary")
    if not isinstance(value, dict) or not value:
        raise SummaryError(f"the answer is no JSON object with members, but {text!r}")
    return cast("dict[str, Any]", sendable(value))

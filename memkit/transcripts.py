r"""Conversations as text for people to read, of which only labels begin a line.

Every line of a text but its first is indented, whatever it takes for the end of a line, and control
characters are written out. Lines are not wrapped: a window that is narrower than a line goes on at its margin,
and what it shows there may look like a label. Where that matters, print with `memkit.console`, which wraps,
or read line by line. Of all that is stored, what the summary covers included:

    runs = [run async for run in memory.history()]
    print("\n".join(questions_and_answers(runs, memory.view().summary)))

and of what would be sent: `prompt_lines(memory.messages())`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

from memkit.content import Json, Part, ToolCall, ToolResult, clean, text_of
from memkit.conversation import Summary
from memkit.items import as_str, call_of, part_of
from memkit.messages import ChatMessage
from memkit.run import Run

_ESCAPED: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_LINE_ENDS: Final = dict.fromkeys(map(ord, "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), "\n")
_HARMLESS: Final = _ESCAPED | _LINE_ENDS
_INDENT: Final = "\n   "


def transcript(runs: Iterable[Run]) -> str:
    """Return runs as text for people to read: who said what, tool traffic included."""
    return "\n".join(_line(label, text) for run in runs for label, text in _whole(run))


def questions_and_answers(runs: Iterable[Run], summary: Summary | None = None) -> list[str]:
    """Return runs as `Q: ...` and `A: ...`, and at the end the summary, if there is one, as `Summary: ...`.

    Each item of the list is what was said at once, of one line or more. Steps are left out, as is a side on
    which nothing was said; media are named as `text_of` does, and what was cut off says so.
    """
    return [_line(label, text) for label, text in spoken(runs, summary)]


def prompt_lines(messages: Iterable[ChatMessage]) -> list[str]:
    """Return chat messages as `user: ...`, `assistant: ...`, in their order: what a model would read.

    Each item of the list is one message, of one line or more. Calls and media are named as `text_of` does.
    """
    return [_line(as_str(message.get("role")), _text_of_message(message)) for message in messages]


def _whole(run: Run) -> Iterator[tuple[str, str]]:
    if run.input != ():
        yield "User", text_of(run.input)
    for part in run.steps:
        label = "Call" if isinstance(part, ToolCall) else "Result" if isinstance(part, ToolResult) else "Assistant"
        yield label, text_of((part,))
    if run.output != ():
        yield "Assistant", _answer(run)


def _answer(run: Run) -> str:
    return text_of(run.output) + (" [cut off]" if run.status == "partial" else "")


def spoken(runs: Iterable[Run], summary: Summary | None = None) -> Iterator[tuple[str, str]]:
    """Yield who said what, as pairs of a label, `Q`, `A` or `Summary`, and harmless text."""
    for run in runs:
        if run.input != ():
            yield "Q", harmless(text_of(run.input))
        if run.output != ():
            yield "A", harmless(_answer(run))
    if summary is not None:
        yield "Summary", harmless(text_of(summary.content))


def harmless(text: str) -> str:
    r"""Return text that a terminal can only show: `\n` ends every line, other control characters are escaped.

    Tabs stay, and lone surrogates become U+FFFD.
    """
    return clean(text).replace("\r\n", "\n").translate(_HARMLESS)


def _line(label: str, text: str) -> str:
    return harmless(f"{label}: {text}").removesuffix("\n").replace("\n", _INDENT)


def _text_of_message(message: ChatMessage) -> str:
    content = message.get("content")
    parts: list[Part] = [part_of(item) for item in ([content] if isinstance(content, str) else _items(content))]
    if message.get("role") == "tool":
        result_of, name = as_str(message.get("tool_call_id")), as_str(message.get("name"))
        return text_of((ToolResult(result_of, tuple(parts), name),))
    parts += [
        call_of(cast("ChatMessage", call)) for call in _items(message.get("tool_calls")) if isinstance(call, dict)
    ]
    if not parts:
        # Nothing that has a name here, such as a refusal.
        rest = {key: value for key, value in message.items() if key not in {"role", "content"}}
        return text_of((Json(rest),)) if rest else ""
    return text_of(tuple(parts))


def _items(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []

"""memkit remembers conversations for programs that talk to language models.

It stores each exchange as an immutable run, keeps safe what has been stored, and decides, in microseconds,
which part of it goes into the next prompt. Start with `memkit.open` or `Memory`.
"""

from typing import TYPE_CHECKING, Any

from memkit import counters
from memkit.background import Background
from memkit.codec import Codec, JsonCodec
from memkit.content import Blob, Content, Json, Opaque, Part, Ref, Text, ToolCall, ToolResult, text_of, to_content
from memkit.conversation import Conversation, Head, Summary, View
from memkit.driver import (
    Appended,
    Driver,
    Expire,
    ListKeys,
    Log,
    Record,
    Redact,
    Trim,
    capability,
)
from memkit.drivers.inmemory import InMemoryDriver
from memkit.errors import (
    BudgetError,
    ClosedError,
    ConflictError,
    DriverError,
    FormatError,
    MemkitError,
    SummaryError,
    UnsupportedError,
    VocabularyError,
)
from memkit.explanation import Explanation
from memkit.memory import Memory, open  # noqa: A004 - `memkit.open` reads as it should
from memkit.messages import ChatMessage, chat_messages
from memkit.options import Options
from memkit.recorder import Recorder
from memkit.run import Amend, Counts, Entry, Extend, Retract, Run, new_id, new_run
from memkit.strategies import (
    Strategy,
    compose,
    everything,
    forget_steps,
    last_runs,
    pin,
    prune,
    since,
    where,
)
from memkit.summaries import Summarizer, SummaryPolicy
from memkit.tokens import TokenCounter, approximate
from memkit.transcripts import transcript
from memkit.turn import Turn

if TYPE_CHECKING:
    from memkit.drivers.file import FileDriver
    from memkit.drivers.sqlite import SqliteDriver


def __getattr__(name: str) -> Any:
    """Import a driver when it is asked for: what it needs takes several milliseconds."""
    if name == "FileDriver":
        from memkit.drivers.file import FileDriver  # noqa: PLC0415

        return FileDriver
    if name == "SqliteDriver":
        from memkit.drivers.sqlite import SqliteDriver  # noqa: PLC0415

        return SqliteDriver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Amend",
    "Appended",
    "Background",
    "Blob",
    "BudgetError",
    "ChatMessage",
    "ClosedError",
    "Codec",
    "ConflictError",
    "Content",
    "Conversation",
    "Counts",
    "Driver",
    "DriverError",
    "Entry",
    "Expire",
    "Explanation",
    "Extend",
    "FileDriver",
    "FormatError",
    "Head",
    "InMemoryDriver",
    "Json",
    "JsonCodec",
    "ListKeys",
    "Log",
    "MemkitError",
    "Memory",
    "Opaque",
    "Options",
    "Part",
    "Record",
    "Recorder",
    "Redact",
    "Ref",
    "Retract",
    "Run",
    "SqliteDriver",
    "Strategy",
    "Summarizer",
    "Summary",
    "SummaryError",
    "SummaryPolicy",
    "Text",
    "TokenCounter",
    "ToolCall",
    "ToolResult",
    "Trim",
    "Turn",
    "UnsupportedError",
    "View",
    "VocabularyError",
    "approximate",
    "capability",
    "chat_messages",
    "compose",
    "counters",
    "everything",
    "forget_steps",
    "last_runs",
    "new_id",
    "new_run",
    "open",
    "pin",
    "prune",
    "since",
    "text_of",
    "to_content",
    "transcript",
    "where",
]  # fmt: skip

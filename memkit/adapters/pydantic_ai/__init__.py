"""pydantic-ai: what its agents say as runs, and a store for its conversations.

`to_runs`, `to_run` and `to_messages` translate the JSON of its messages, and need no package. All else does.
"""

from typing import TYPE_CHECKING, Any

from memkit.adapters.pydantic_ai.messages import to_messages, to_run, to_runs

if TYPE_CHECKING:
    from memkit.adapters.pydantic_ai.agents import history, model_messages, processor, remember
    from memkit.adapters.pydantic_ai.store import DriverConversationStore


def __getattr__(name: str) -> Any:
    """Import what needs pydantic-ai when it is asked for."""
    if name in {"history", "model_messages", "processor", "remember"}:
        from memkit.adapters.pydantic_ai import agents  # noqa: PLC0415

        return getattr(agents, name)
    if name == "DriverConversationStore":
        from memkit.adapters.pydantic_ai.store import DriverConversationStore  # noqa: PLC0415

        return DriverConversationStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DriverConversationStore",
    "history",
    "model_messages",
    "processor",
    "remember",
    "to_messages",
    "to_run",
    "to_runs",
]

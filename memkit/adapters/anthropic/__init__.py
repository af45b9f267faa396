"""Messages of Anthropic as runs, and back, and a view as a prompt. Works without the anthropic package."""

from memkit.adapters.anthropic.messages import FIRST, Prompt, prompt, to_messages, to_runs
from memkit.adapters.blocks import Imported, Message

__all__ = ["FIRST", "Imported", "Message", "Prompt", "prompt", "to_messages", "to_runs"]

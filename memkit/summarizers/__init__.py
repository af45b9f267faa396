"""Summarisers that ask real models, and the prompts that they send.

Each is a module of its own and imports its client: `memkit.summarizers.openai` for any endpoint that speaks chat
completions, `memkit.summarizers.bedrock` for Amazon Bedrock. Any async function of the same shape will do as well,
see `memkit.summaries.Summarizer`.
"""

from memkit.summarizers.prompts import Prompt, griptape, quoted

__all__ = ["Prompt", "griptape", "quoted"]

"""LangChain and LangGraph: messages as runs, agents that remember, and a chat message history.

`memkit.adapters.langchain.agents` has middleware for `create_agent`, `memkit.adapters.langchain.bounded` a
function from a strategy for every other graph, `memkit.adapters.langchain.history` the history. They need the
package: `pip install 'memkit[langchain]'`. What is exported here is loaded without it.
"""

from memkit.adapters.langchain.messages import Imported, to_dicts, to_messages, to_runs, view_messages

__all__ = ("Imported", "to_dicts", "to_messages", "to_runs", "view_messages")

"""The libraries that one would take instead of memkit, each called as its documentation says."""

from __future__ import annotations

from benchmarks.peers import agent_framework, griptape, langchain, llama_index, openai_agents
from benchmarks.peers.base import Holder, Pruner, Store

_MODULES = (griptape, langchain, llama_index, openai_agents, agent_framework)

PRUNERS: tuple[Pruner, ...] = tuple(
    pruner for module in (griptape, langchain, llama_index, agent_framework) for pruner in module.PRUNERS
)
STORES: tuple[Store, ...] = tuple(
    store for module in (griptape, llama_index, openai_agents, agent_framework) for store in module.STORES
)
OPENED: tuple[Store, ...] = (*STORES, openai_agents.KEPT_OPEN)
"""Those that open a conversation and build a prompt."""
COUNTERS: tuple[Pruner, ...] = (
    *griptape.PRUNERS,
    langchain.PRUNERS[0],
    *llama_index.COUNTERS,
    *agent_framework.PRUNERS,
)
"""Those that count exactly, by the call that a program with an event loop makes."""
HOLDERS: tuple[Holder, ...] = tuple(
    module.HOLDER for module in (griptape, langchain, llama_index, agent_framework)
)
IMPORTS: dict[str, str] = {name: what for module in _MODULES for name, what in module.IMPORTS.items()}
"""What is imported to use each library for the same, by its name."""

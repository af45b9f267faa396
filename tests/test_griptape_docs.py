"""The page on coming from griptape: every public name of what memkit replaces is on it."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import warnings
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "griptape.md").read_text(encoding="utf-8")

CONVERSATION = "griptape.drivers.memory.conversation"
CLASSES = {
    "griptape.memory.structure": [
        "BaseConversationMemory",
        "ConversationMemory",
        "SummaryConversationMemory",
        "Run",
    ],
    CONVERSATION: ["BaseConversationMemoryDriver"],
    f"{CONVERSATION}.local": ["LocalConversationMemoryDriver"],
    f"{CONVERSATION}.redis": ["RedisConversationMemoryDriver"],
    f"{CONVERSATION}.amazon_dynamodb": ["AmazonDynamoDbConversationMemoryDriver"],
    f"{CONVERSATION}.griptape_cloud": ["GriptapeCloudConversationMemoryDriver"],
    "griptape.utils": ["Conversation", "Chat"],
}
PARTLY = {
    "griptape.structures": ["Structure", "Agent", "Pipeline", "Workflow"],
    "griptape.tasks": ["PromptTask"],
}
"""Of these, only what has to do with conversation memory."""


def imported(module: str, name: str) -> type:
    pytest.importorskip("griptape")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module(module), name)


def public_names(cls: type) -> set[str]:
    """Return what a class defines, its base classes of griptape included, and what it is made with."""
    own = {name for base in cls.__mro__ if base.__module__.startswith("griptape") for name in vars(base)}
    return {name for name in own | set(inspect.signature(cls).parameters) if not name.startswith("_")}


def is_on_page(name: str) -> bool:
    """Tell whether a name stands as code in a line of the tables."""
    rows = (line for line in PAGE.splitlines() if line.startswith("|"))
    codes = (code for row in rows for code in re.findall(r"`[^`]+`", row))
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", code) for code in codes)


@pytest.mark.parametrize(("module", "name"), [(m, name) for m, names in CLASSES.items() for name in names])
def test_every_public_name_is_on_the_page(module: str, name: str) -> None:
    names = public_names(imported(module, name))
    assert sorted(each for each in {name, *names} if not is_on_page(each)) == []


@pytest.mark.parametrize(("module", "name"), [(m, name) for m, names in PARTLY.items() for name in names])
def test_every_name_about_conversation_memory_is_on_the_page(module: str, name: str) -> None:
    names = {each for each in public_names(imported(module, name)) if "conversation_memory" in each}
    assert names
    assert sorted(each for each in {name, *names} if not is_on_page(each)) == []


def test_a_name_that_is_not_there_is_missed() -> None:
    assert not is_on_page("conversation_memories")
    assert not is_on_page("last")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_an_example_imports_what_it_uses(code: str) -> None:
    tree = compile(code, "page", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    bound = {node.id for node in names if isinstance(node.ctx, ast.Store)} | vars(builtins).keys()
    bound |= {(node.asname or node.name) for node in ast.walk(tree) if isinstance(node, ast.alias)}
    assert {node.id for node in names} <= bound

"""Random values for the property tests: contents, entries, strategies, and the histories that memkit ships."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from memkit.content import EMPTY, Blob, Json, Opaque, Part, Ref, Text, ToolCall, ToolResult
from memkit.conversation import Head, Summary
from memkit.run import Amend, Counts, Entry, Extend, Retract, Run
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
from memkit.testing.histories import CHARACTERS, History, histories

__all__ = ["CHARACTERS", "History", "examples", "histories"]


def examples(number: int) -> settings:
    """Return the settings of a property test: the same examples every time, and as slow as it takes."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


# --- content ---


def _joined(text: str) -> str:
    """Return text in which a split surrogate pair is one character, as it is after any trip through JSON."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


texts = st.text(max_size=12) | st.text('a\ud83d\ude00é\n"\\', max_size=4).map(_joined)
"""Text, lone surrogates among it now and then."""

numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)

objects = st.dictionaries(texts, json_values, max_size=3)

extras = st.one_of(
    st.just(EMPTY),
    st.just(EMPTY),
    st.dictionaries(st.sampled_from(("later", "chat", "n", "é")), json_values, min_size=1),
)
"""Unknown fields; mostly there are none."""

opaques = st.builds(
    lambda kind, fields, indent: Opaque(json.dumps({"kind": kind, **fields}, indent=indent).encode()),
    st.sampled_from(("later", "RUN", "")) | st.integers(0, 9),
    objects.map(lambda fields: {f"the {name}": value for name, value in fields.items()}),
    st.sampled_from((None, 2)),
)

simple_parts: st.SearchStrategy[Part] = st.one_of(
    st.builds(Text, text=texts, extra=extras),
    st.builds(Json, value=json_values, extra=extras),
    st.builds(Blob, media_type=texts, data=st.binary(max_size=9), extra=extras),
    st.builds(Ref, url=texts, media_type=texts, text=texts, extra=extras),
    st.builds(ToolCall, id=texts, name=texts, arguments=texts, extra=extras),
    opaques,
)


def _contents(parts: st.SearchStrategy[Part]) -> st.SearchStrategy[str | tuple[Part, ...]]:
    return texts | st.lists(parts, max_size=3).map(tuple)


parts = st.recursive(
    simple_parts,
    lambda inner: st.builds(
        ToolResult, id=texts, content=_contents(inner), name=texts, error=st.booleans(), extra=extras
    ),
    max_leaves=4,
)
contents = _contents(parts)
steps = st.lists(parts, max_size=4).map(tuple)

# --- entries and heads ---

ids = st.text(min_size=1, max_size=8)
times = st.floats(0, 2e9)
counts = st.none() | st.builds(Counts, texts, *[st.integers(0, 2**40)] * 4)
positions = st.integers(0, 2**53)
metas = st.just(EMPTY) | objects
statuses = st.sampled_from(("complete", "partial"))

runs = st.builds(
    Run,
    id=ids,
    input=contents,
    steps=steps,
    output=contents,
    created_at=times,
    status=statuses,
    meta=metas,
    counts=counts,
    extra=extras,
)
extends = st.builds(
    Extend,
    id=ids,
    target=ids,
    at=positions,
    drop=st.integers(0, 9),
    steps=steps,
    output=st.none() | contents,
    status=st.none() | statuses,
    counts=counts,
    extra=extras,
)
entries: st.SearchStrategy[Entry] = st.one_of(
    runs,
    extends,
    st.builds(Amend, id=ids, at=positions, run=runs, extra=extras),
    st.builds(Retract, id=ids, target=ids, at=positions, extra=extras),
)
summaries = st.builds(
    Summary,
    content=texts,
    upto=positions,
    upto_id=ids,
    seen=positions,
    created_at=times,
    model=texts,
    counts=counts,
    extra=extras,
)
heads = st.builds(Head, summary=st.none() | summaries, meta=metas, extra=extras)

# --- strategies ---

STEPS = st.sampled_from((1, 1, 2, 3, 8, 12))
BUDGETS = st.sampled_from((1, 30, 100, 2_000))

cuts: st.SearchStrategy[Strategy] = st.one_of(
    st.just(everything),
    st.builds(last_runs, st.integers(0, 12), step=STEPS),
    st.builds(since, st.integers(0, 20)),
    st.builds(
        prune,
        BUDGETS,
        counter=st.just(CHARACTERS),
        step=STEPS,
        on_overflow=st.sampled_from(("empty", "last", "raise")),
    ),
)
filters: st.SearchStrategy[Strategy] = st.one_of(
    st.just(where(lambda run: run.input != "question 1")),
    st.just(where(lambda run: not run.steps)),
    st.builds(forget_steps, keep=st.integers(0, 5), step=STEPS),
)
some_ids = st.sets(st.integers(0, 14).map("r{}".format), max_size=3)
strategies: st.SearchStrategy[Strategy] = st.recursive(
    cuts | filters,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: compose(*parts)),
        st.builds(pin, some_ids, inner),
    ),
    max_leaves=5,
)

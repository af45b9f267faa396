"""Conversations to measure with: recorded ones from a file, or made up.

The made-up ones are seeded, about 240 tokens and 1 kB a run, with code, other scripts and emoji in them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec

from memkit import Run, text_of
from memkit.adapters.openai import to_runs
from memkit.tokens import TokenCounter, count_run

SEED = 1
DIFFERENT = 1_000
"""Made-up exchanges repeat after so many: the newest of a long history are those of a short one."""

_WORDS = (  # noqa: SIM905 - a text reads better than a list of a hundred words
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were all her she there would their we him been has when who will no more if out so up said "
    "what its about than into them can only other time new some could these two may first then do any like my "
    "now over such our man me even most made after also did many off before must well back through years much "
    "conversation memory budget token summary driver append strategy position revision window"
).split()
_OTHER = (
    "def prune(view):\n    return view.suffix(3)\n",
    '{"id": 17, "items": [1, 2.5, null], "ok": true}',
    "これは会話の記憶です。",
    "Это память разговора. ",
    "محادثة قصيرة ",
    "👍🏽🚀 ",
    "naïve façade, Größe 12 µm ",
)


def _text(rng: random.Random, tokens: float) -> str:
    words: list[str] = []
    left = int(rng.lognormvariate(0, 0.6) * tokens)
    while left > 0:
        if rng.random() < 0.01:
            words.append(rng.choice(_OTHER))
            left -= 12
        else:
            words.append(rng.choice(_WORDS))
            left -= 1
    return " ".join(words)


@cache
def runs(count: int, seed: int = SEED, data: Path | None = None) -> tuple[Run, ...]:
    """Return `count` runs, the same every time: made up, or what was said in the file `data`, over and over."""
    rng = random.Random(seed)
    if data is None:
        said: Sequence[tuple[str, str]] = [(_text(rng, 50), _text(rng, 150)) for _ in range(min(count, DIFFERENT))]
    else:
        said = recorded(data)
    ids = (f"{number:012x}{rng.getrandbits(64):016x}" for number in range(count))
    return tuple(
        Run(run_id, asked, (), answered, created_at=1.7e9)
        for number, run_id in enumerate(ids)
        for asked, answered in (said[(number - count) % len(said)],)
    )


@cache
def recorded(data: Path) -> tuple[tuple[str, str], ...]:
    """Return what was asked and answered in a JSON list of conversations, each with its messages as "traj".

    What tools have said is a part of the answer, so that libraries take part that have no place for it.
    """
    talks = json.loads(data.read_text("utf-8"))
    return tuple(
        (text_of(run.input), "\n".join(filter(None, (text_of(run.steps), text_of(run.output)))))
        for talk in talks
        for run in to_runs(talk["traj"]).runs
    )


def with_counts(items: Sequence[Run], counter: TokenCounter) -> tuple[Run, ...]:
    """Return runs as they are stored by a handle with this counter."""
    return tuple(msgspec.structs.replace(run, counts=count_run(run, counter)) for run in items)

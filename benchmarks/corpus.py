"""Made-up conversations: seeded, about 240 tokens and 1 kB a run, with code, other scripts and emoji in them."""

from __future__ import annotations

import random
from functools import cache

from memkit import Run

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
def runs(count: int, seed: int = 1) -> tuple[Run, ...]:
    """Return `count` runs, the same ones every time."""
    rng = random.Random(seed)
    # A thousand different exchanges, over and over: the newest of a long history are those of a short one.
    said = [(_text(rng, 50), _text(rng, 150)) for _ in range(min(count, 1_000))]
    ids = (f"{number:012x}{rng.getrandbits(64):016x}" for number in range(count))
    return tuple(
        Run(
            run_id,
            said[(number - count) % len(said)][0],
            (),
            said[(number - count) % len(said)][1],
            created_at=1.7e9,
        )
        for number, run_id in enumerate(ids)
    )

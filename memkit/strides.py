"""Where to cut so that the beginning of a prompt stays the same from turn to turn.

A provider charges a fraction for the tokens with which the prompt before began. A cut that moves each turn pays
the full price for all that it keeps; one that moves by `step` entries of the log pays it once in `step` turns.
`docs/strategies.md` has the arithmetic.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import sqrt
from typing import Final, Literal, TypeAlias

from memkit.errors import BudgetError

Step: TypeAlias = int | Literal["auto"]

CACHED_PRICE: Final = 0.1
"""What a token costs that the provider has in its cache, when any other costs 1: a tenth is usual."""


def check_step(step: object) -> None:
    """Refuse what is no step.

    Raises:
        BudgetError: it is neither a positive integer nor `"auto"`.
    """
    if step != "auto" and not (isinstance(step, int) and step > 0):
        raise BudgetError(f'step must be at least 1, not {step!r}, or "auto"')


def step_beside(kept: int, step: Step) -> int:
    """Return `step`, or for `"auto"` the one that costs least where at least `kept` runs stay in the prompt.

    Once in `step` turns the kept runs are sent at the full price instead of the cached price c, and on average
    half a step of runs is sent that need not be. In prices of a run that is (1 - c) (kept - 1) / step +
    c step / 2 a turn, and least where both terms are equal.
    """
    if step != "auto":
        return step
    return max(1, round(sqrt(2 * max(0, kept - 1) * (1 - CACHED_PRICE) / CACHED_PRICE)))


def stable_cut(positions: Sequence[int], sums: Sequence[int], first: int, step: Step) -> int:
    """Return the index of the first run to keep, of runs that fit from `first` > 0 on.

    It is the first one at or after a multiple of `step`, halved until half of the tokens that fit are kept.
    `"auto"` begins with a step that is larger than any position. `sums[i]` is what the runs before run i cost.
    """
    if step == "auto":
        return _rarest_cut(positions, sums, first)
    too_old = positions[first - 1]
    fits = sums[-1] - sums[first]
    while step > 1:
        index = bisect_left(positions, (too_old // step + 1) * step, first)
        if index < len(positions) and 2 * (sums[-1] - sums[index]) >= fits:
            return index
        step //= 2
    return first


def _rarest_cut(positions: Sequence[int], sums: Sequence[int], first: int) -> int:
    """Return the cut at the position that can be halved most often, of those that keep half of what fits."""
    half = (sums[-1] - sums[first] + 1) // 2
    last = bisect_right(sums, sums[-1] - half, first, len(positions)) - 1
    too_old, newest = positions[first - 1], positions[last]
    # Cleared below the highest bit in which they differ, `newest` ends in more zeros than any number between.
    zeros = (too_old ^ newest).bit_length() - 1
    return bisect_left(positions, newest >> zeros << zeros, first)

"""When a fold is due, how much it takes, and what counts as a summary: all of it pure."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkit.content import Blob, Json, Text, ToolCall, ToolResult, text_of
from memkit.errors import BudgetError, MemkitError, SummaryError
from memkit.run import Run, Status
from memkit.summaries import SETTLING_TIME, SummaryPolicy, content_of_summary, due, shortened
from memkit.tokens import approximate, cost_of
from tests.histories import examples
from tests.memories import Words

WORDS = Words()
NOW = 1_000_000.0


def run(n: int, words: int = 10, status: Status = "complete", age: float = 0.0) -> Run:
    return Run(f"r{n}", "word " * words, created_at=NOW - age, status=status)


def runs(count: int, words: int = 10) -> list[Run]:
    return [run(n, words) for n in range(count)]


def due_of(given: list[Run], *, is_stale: bool = False, **policy: Any) -> int:
    return due(given, SummaryPolicy(**policy), counter=WORDS, now=NOW, is_stale=is_stale)


@pytest.mark.parametrize(
    ("name", "least"), [("keep", 0), ("every", 1), ("tokens", 1), ("overlap", 0), ("max_input_tokens", 100)]
)
def test_a_policy_refuses_what_cannot_be(name: str, least: int) -> None:
    assert getattr(SummaryPolicy(**{name: least}), name) == least
    for value in (least - 1, float(least + 1), "4", True):
        with pytest.raises(BudgetError, match=f"^{name} of a SummaryPolicy is an int of at least {least}, not "):
            SummaryPolicy(**{name: value})


def test_only_tokens_may_be_left_open() -> None:
    assert SummaryPolicy(tokens=None).tokens is None
    with pytest.raises(BudgetError, match="not None"):
        SummaryPolicy(keep=None)  # type: ignore[arg-type]


def test_by_default_four_runs_stay_and_eight_are_folded() -> None:
    assert [due_of(runs(count)) for count in (0, 4, 11, 12, 13)] == [0, 0, 0, 8, 9]


@pytest.mark.parametrize(("keep", "every"), [(0, 1), (0, 3), (1, 1), (5, 2)])
def test_due_when_so_many_wait_before_those_that_stay(keep: int, every: int) -> None:
    for count in range(20):
        waiting = max(0, count - keep)
        assert due_of(runs(count), keep=keep, every=every) == (waiting if waiting >= every else 0)


def test_due_when_so_many_tokens_wait() -> None:
    assert due_of(runs(6), keep=2, every=100, tokens=41) == 0
    assert due_of(runs(6), keep=2, every=100, tokens=40) == 4
    assert due_of(runs(2, words=500), keep=2, every=100, tokens=40) == 0


def test_tokens_do_not_put_off_what_is_due_by_number() -> None:
    assert due_of(runs(6), keep=2, every=4, tokens=10_000) == 4


def test_a_stale_summary_is_made_anew_without_waiting() -> None:
    assert due_of(runs(3), keep=2, every=100) == 0
    assert due_of(runs(3), keep=2, every=100, is_stale=True) == 1
    assert due_of(runs(2), keep=2, every=100, is_stale=True) == 0


def test_a_call_carries_what_fits_and_at_least_one_run() -> None:
    assert due_of(runs(50), keep=0, every=8, max_input_tokens=100) == 10
    assert due_of(runs(50, words=99), keep=0, every=8, max_input_tokens=100) == 1
    assert due_of(runs(50, words=1_000), keep=0, every=8, max_input_tokens=100) == 1


@pytest.mark.parametrize(
    ("age", "status", "expected"),
    [(0.0, "partial", 3), (SETTLING_TIME - 1, "partial", 3), (SETTLING_TIME, "partial", 9), (0.0, "complete", 9)],
)
def test_a_partial_run_and_what_follows_waits_for_an_hour(age: float, status: Status, expected: int) -> None:
    given = runs(10)
    given[3] = run(3, status=status, age=age)
    assert due_of(given, keep=1, every=3) == expected


def test_a_clock_that_is_ahead_does_not_end_the_wait() -> None:
    assert due_of([run(0, status="partial", age=-600), *runs(9)], keep=0, every=1) == 0


def test_what_claims_to_come_from_a_far_future_is_not_waited_for() -> None:
    assert due_of([run(0, status="partial", age=-1e6), *runs(9)], keep=0, every=1) == 10


def test_what_other_things_take_of_a_call_is_left_free() -> None:
    given = runs(9, words=40)
    cost = cost_of(given[0], WORDS)
    policy = SummaryPolicy(keep=0, every=1, max_input_tokens=5 * cost)
    assert due(given, policy, counter=WORDS, now=NOW) == 5
    assert due(given, policy, counter=WORDS, now=NOW, taken=2 * cost) == 3
    assert due(given, policy, counter=WORDS, now=NOW, taken=9 * cost) == 1


def test_nothing_is_tokenised_that_is_not_due() -> None:
    counter = Words()
    assert due(runs(11), SummaryPolicy(), counter=counter, now=NOW) == 0
    assert counter.counted == []


@given(
    sizes=st.lists(st.integers(0, 60), max_size=30),
    keep=st.integers(0, 6),
    every=st.integers(1, 6),
    limit=st.integers(100, 200),
    is_stale=st.booleans(),
)
@examples(200)
def test_folding_what_is_due_ends_with_nothing_due(
    sizes: list[int], keep: int, every: int, limit: int, is_stale: bool
) -> None:
    left = [run(n, size) for n, size in enumerate(sizes)]
    while count := due_of(left, keep=keep, every=every, max_input_tokens=limit, is_stale=is_stale):
        assert 1 <= count <= len(left) - keep
        assert count == 1 or sum(cost_of(run, WORDS) for run in left[:count]) <= limit
        left = left[count:]
    assert len(left) < keep + (1 if is_stale else every) or not sizes


# --- a run that is longer than a call ---


def test_a_run_that_fits_is_given_as_it_is() -> None:
    assert shortened(given := run(0, 100), 100, WORDS) is given


def test_steps_go_before_texts_are_cut() -> None:
    call = ToolCall(id="c", name="read", arguments="word " * 500)
    given = Run("r", "a question", (call, ToolResult(id="c", content="word " * 500)), "an answer")
    short = shortened(given, 100, WORDS)
    assert (short.input, short.steps, short.output) == ("a question", (), "an answer")


def test_long_texts_keep_their_ends_and_say_what_is_missing() -> None:
    text = f"begin {'word ' * 5_000}end"
    short = text_of(shortened(Run("r", text, output="fine"), 200, WORDS).input)
    assert short.startswith("begin word")
    assert short.endswith("word end")
    assert "characters left out ...]" in short


@pytest.mark.parametrize("input", [(), "short"])
@pytest.mark.parametrize("output", [(), "word " * 5_000])
def test_what_was_not_said_stays_unsaid(input: Any, output: Any) -> None:
    short = shortened(Run("r", input, (Text(text="word " * 500),), output), 100, WORDS)
    assert short.input == input
    assert (short.output == ()) == (output == ())


@given(st.text(max_size=400), st.text(max_size=400), st.integers(100, 300), st.sampled_from([1, 40, 4_000]))
@examples(150)
def test_any_run_ends_up_about_as_long_as_a_call_may_be(said: str, answer: str, limit: int, times: int) -> None:
    counter = approximate(bytes_per_token=1.0)
    short = shortened(Run("r", said * times, (), answer * times), limit, counter)
    assert cost_of(short, counter) <= max(limit + 400, 400)


def test_media_become_their_names() -> None:
    given = Run("r", (Text(text="word " * 5_000), Blob("image/png", b"x" * 9)), (), "yes")
    assert "[image/png, 9 bytes]" in text_of(shortened(given, 100, WORDS).input)


# --- what a summariser may return ---


def test_text_is_stripped_and_an_object_is_kept() -> None:
    assert content_of_summary("  in short\n") == "in short"
    assert content_of_summary({"facts": ("a", 1)}) == (Json({"facts": ["a", 1]}),)


def test_an_object_is_copied() -> None:
    made: dict[str, Any] = {"facts": []}
    content = content_of_summary(made)
    made["facts"].append("later")
    assert content == (Json({"facts": []}),)


DEEP: dict[str, Any] = {}
for _ in range(200):
    DEEP = {"deeper": DEEP}


@pytest.mark.parametrize(
    "made",
    [
        "",
        " \n\t",
        None,
        b"text",
        7,
        [],
        ["text"],
        {},
        object(),
        {"a": float("nan")},
        {1: "a"},
        {"a": {1, 2}},
        DEEP,
    ],
    ids=lambda made: f"{made!r:.20}",
)
def test_anything_else_is_refused(made: Any) -> None:
    with pytest.raises(SummaryError, match=r"the summariser made (no summary, but .*|an object that is not JSON)"):
        content_of_summary(made)
    assert issubclass(SummaryError, MemkitError)

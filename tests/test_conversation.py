"""What a window of the log shows: changes applied, summaries only where they are true."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkit.content import Content, Part, Text, ToolCall, ToolResult
from memkit.conversation import (
    SUMMARY_FRAME,
    Conversation,
    Head,
    Summary,
    View,
    apply,
    price_of,
    resolve,
    shows_summary,
)
from memkit.run import Amend, Counts, Entry, Extend, Retract, Run
from memkit.tokens import approximate, count_run, counted
from tests.histories import CHARACTERS, History, contents, examples, histories
from tests.histories import steps as some_steps

CALL = ToolCall("1", "look", "{}")
RESULT = ToolResult("1", "nothing")


def runs_until(end: int, start: int = 0) -> tuple[Run, ...]:
    return tuple(Run(f"r{position}", f"question {position}") for position in range(start, end))


def log_of(*entries: Entry, start: int = 0, base: int = 0, summary: Summary | None = None) -> Conversation:
    return Conversation(
        key="k",
        head=Head(summary=summary),
        base=base,
        start=start,
        end=start + len(entries),
        entries=entries,
    )


def summary_of(upto: int, seen: int, **fields: Any) -> Summary:
    return Summary(content="in short", upto=upto, seen=seen, **{"upto_id": f"r{upto - 1}", **fields})


def shown(conversation: Conversation) -> list[str]:
    return [run.id for run in conversation.runs]


# --- changes ---


def test_runs_alone_are_handed_out_as_they_are() -> None:
    entries = runs_until(5)
    positions, runs = resolve(entries, 20)
    assert positions == range(20, 25)
    assert runs is entries


def test_an_extend_adds_steps_and_finishes_the_answer() -> None:
    begun = Run("r0", "question", (CALL,), status="partial")
    log = log_of(
        begun,
        Extend(id="c1", target="r0", at=0, steps=(RESULT,)),
        Extend(id="c2", target="r0", at=0, output="answer", status="complete"),
    )
    assert log.runs == (Run("r0", "question", (CALL, RESULT), "answer"),)


def test_an_extend_leaves_what_it_does_not_name() -> None:
    run = Run("r0", "question", (CALL,), "answer", created_at=5.0, status="partial", meta={"a": 1}, extra={"b": 2})
    assert apply(run, Extend(id="c", target="r0", at=0)) == run
    emptied = apply(run, Extend(id="c", target="r0", at=0, output=()))
    assert emptied is not None
    assert emptied.output == ()


@pytest.mark.parametrize(("drop", "kept"), [(0, (CALL, RESULT)), (1, (CALL,)), (2, ()), (3, ()), (9, ())], ids=str)
def test_an_extend_drops_the_last_steps_before_it_adds(drop: int, kept: tuple[Part, ...]) -> None:
    run = Run("r0", "question", (CALL, RESULT))
    after = apply(run, Extend(id="c", target="r0", at=0, drop=drop, steps=(Text("new"),)))
    assert after is not None
    assert after.steps == (*kept, Text("new"))


def test_the_last_amend_wins_and_keeps_the_place() -> None:
    log = log_of(
        *runs_until(3),
        Amend(id="c3", at=0, run=Run("r0", "first edit")),
        Amend(id="c4", at=0, run=Run("r0", "second edit")),
    )
    assert [run.input for run in log.runs] == ["second edit", "question 1", "question 2"]
    assert list(log.view().positions) == [0, 1, 2]


def test_an_extend_of_an_amended_run_adds_to_the_amendment() -> None:
    log = log_of(
        Run("r0", "question", (CALL,)),
        Amend(id="c1", at=0, run=Run("r0", "edited")),
        Extend(id="c2", target="r0", at=0, output="answer"),
    )
    assert log.runs == (Run("r0", "edited", (), "answer"),)


def test_nothing_comes_back_after_a_retract() -> None:
    log = log_of(
        *runs_until(3),
        Retract(id="c3", target="r1", at=1),
        Amend(id="c4", at=1, run=Run("r1", "edited")),
        Extend(id="c5", target="r1", at=1, output="late"),
        Retract(id="c6", target="r1", at=1),
    )
    assert shown(log) == ["r0", "r2"]
    assert list(log.view().positions) == [0, 2]


@pytest.mark.parametrize(
    "change",
    [
        Retract(id="c", target="r0", at=1),
        Retract(id="c", target="r9", at=9),
        Retract(id="c", target="c3", at=3),
        Amend(id="c", at=2, run=Run("r0", "edited")),
        Extend(id="c", target="nobody", at=0, output="late"),
        Extend(id="c", target="r0", at=-3, output="late"),
    ],
    ids=repr,
)
def test_a_change_of_a_run_that_is_not_there_has_no_effect(change: Entry) -> None:
    entries = (*runs_until(3), Retract(id="c3", target="r2", at=2))
    assert log_of(*entries, change).runs == log_of(*entries).runs


def test_a_change_of_a_run_before_the_window_has_no_effect_in_it() -> None:
    log = log_of(*runs_until(14, 10), Retract(id="c14", target="r5", at=5), start=10)
    assert shown(log) == ["r10", "r11", "r12", "r13"]


@examples(200)
@given(histories(), st.data())
def test_a_window_shows_the_runs_of_the_whole_log_from_there_on(history: History, data: st.DataObject) -> None:
    start = data.draw(st.integers(history.base, history.end))
    whole = dict(zip(*history.window(history.base).resolved(), strict=True))
    window = dict(zip(*history.window(start).resolved(), strict=True))
    assert window == {position: run for position, run in whole.items() if position >= start}


@examples(200)
@given(histories(), st.data())
def test_a_conversation_grows_at_both_ends_to_what_was_loaded_at_once(
    history: History, data: st.DataObject
) -> None:
    cuts = data.draw(st.tuples(*[st.integers(history.base, history.end)] * 2).map(sorted))
    low, high = cuts[0] - history.base, cuts[1] - history.base
    middle = msgspec.structs.replace(history.window(cuts[0]), end=cuts[1], entries=history.entries[low:high])
    grown = middle.appended(history.entries[high:]).prepended(history.entries[:low])
    assert grown == history.window(history.base)
    assert grown.from_position(cuts[0]) == history.window(cuts[0])


# --- counts ---


def test_counts_of_a_run_are_the_sums_of_its_entries() -> None:
    run = Run("r0", "question", (CALL,), counts=Counts("c", input=8, steps=6, messages=2))
    extend = Extend(id="c1", target="r0", at=0, steps=(RESULT,), output="answer", counts=Counts("c", 0, 7, 6, 2))
    after = apply(run, extend)
    assert after is not None
    assert after.counts == Counts("c", input=8, steps=13, output=6, messages=4)


@pytest.mark.parametrize(
    "extend",
    [
        Extend(id="c", target="r0", at=0, drop=1, counts=Counts("c")),
        Extend(id="c", target="r0", at=0, steps=(RESULT,)),
        Extend(id="c", target="r0", at=0, steps=(RESULT,), counts=Counts("another", steps=7)),
    ],
    ids=["drop", "uncounted", "counted by another"],
)
def test_counts_that_are_not_known_are_dropped(extend: Extend) -> None:
    run = Run("r0", "question", (CALL, RESULT), counts=Counts("c", input=8, steps=13, messages=3))
    after = apply(run, extend)
    assert after is not None
    assert after.counts is None


@examples(120)
@given(
    contents,
    some_steps,
    st.lists(st.tuples(some_steps, st.none() | contents, st.sampled_from((0, 0, 0, 1))), max_size=4),
    st.sampled_from((CHARACTERS, approximate())),
)
def test_counts_after_extends_equal_a_recount(
    input: Content, steps: tuple[Part, ...], changes: list[tuple[Any, ...]], counter: Any
) -> None:
    entries: list[Entry] = [Run("r0", input, steps)]
    for number, (added, output, drop) in enumerate(changes, 1):
        entries.append(Extend(id=f"c{number}", target="r0", at=0, drop=drop, steps=added, output=output))
    run = log_of(*(counted(entry, counter) for entry in entries)).runs[0]
    if any(drop for *_, drop in changes):
        assert run.counts is None
    else:
        assert run.counts == count_run(run, counter)


# --- summaries ---


def test_a_summary_stands_in_for_what_it_covers() -> None:
    log = log_of(*runs_until(10), summary=summary_of(4, 6))
    view = log.view()
    assert view.summary == summary_of(4, 6)
    assert list(view.positions) == [4, 5, 6, 7, 8, 9]
    assert view.before == view.omitted == 0
    plain = log.view(use_summary=False)
    assert plain.summary is None
    assert list(plain.positions) == list(range(10))


def test_what_was_never_loaded_is_counted_from_the_summary_on() -> None:
    assert log_of(*runs_until(10, 7), start=7).view().before == 7
    assert log_of(*runs_until(10, 7), start=7, base=2).view().before == 5
    assert log_of(*runs_until(10, 7), start=7, summary=summary_of(4, 8)).view().before == 3
    assert log_of(*runs_until(10, 7), start=7, summary=summary_of(4, 8)).view(use_summary=False).before == 7


@pytest.mark.parametrize(
    "change",
    [
        Retract(id="c10", target="r3", at=3),
        Amend(id="c10", at=0, run=Run("r0", "edited")),
        Extend(id="c10", target="r2", at=2, output="more"),
    ],
    ids=["retract", "amend", "extend"],
)
def test_a_change_of_a_covered_run_makes_the_summary_stale(change: Entry) -> None:
    entries = (*runs_until(10), change)
    assert log_of(*entries, summary=summary_of(4, 10)).view().summary is None
    assert log_of(*entries, summary=summary_of(4, 11)).view().summary is not None, "the fold has read the change"
    assert log_of(*entries, summary=summary_of(1, 10, upto_id="r0")).view().summary is None or change.at > 0


def test_a_change_of_a_run_that_is_not_covered_leaves_the_summary() -> None:
    log = log_of(*runs_until(10), Retract(id="c10", target="r4", at=4), summary=summary_of(4, 6))
    view = log.view()
    assert view.summary is not None
    assert list(view.positions) == [5, 6, 7, 8, 9]


def test_a_retract_outside_the_window_keeps_the_summary_hidden() -> None:
    """The window must reach back to where the summary was made, or it would show what was taken back."""
    whole = (*runs_until(60), Retract(id="c60", target="r20", at=20), *runs_until(361, 61))
    summary = summary_of(50, 55)
    for start in (321, 100, 61, 60, 56, 55, 50, 0):
        log = log_of(*whole[start:], start=start, summary=summary)
        assert log.view().summary is None
        closed = View(closed=True)
        assert log.is_enough(closed) == (start <= 55)
    assert "r20" not in shown(log_of(*whole, summary=summary))


def test_a_retract_that_races_a_fold_is_caught() -> None:
    """The fold has read eight entries; before it commits, the third run is taken back."""
    fold = summary_of(8, 8)
    log = log_of(*runs_until(8), Retract(id="c8", target="r2", at=2), summary=fold)
    assert log.view().summary is None
    assert shown(log) == ["r0", "r1", "r3", "r4", "r5", "r6", "r7"]


def test_a_summary_of_another_log_is_not_shown() -> None:
    assert not shows_summary(log_of(*runs_until(10), summary=summary_of(4, 6, upto_id="foreign")))
    assert not shows_summary(log_of(*runs_until(5), summary=summary_of(4, 6)))
    assert shows_summary(log_of(*runs_until(10, 5), start=5, summary=summary_of(4, 6)))


@examples(250)
@given(histories())
def test_no_view_shows_a_summary_that_has_read_what_was_taken_back(history: History) -> None:
    """Told from the log alone: what the summary's text was made of is still what the log says."""
    view = history.view()
    if view.summary is not None:
        upto, seen = view.summary.upto, view.summary.seen
        then = resolve(history.entries[: seen - history.base], history.base)
        now = resolve(history.entries, history.base)
        assert _before(upto, *then) == _before(upto, *now)
        assert all(position >= upto for position in view.positions)


def _before(upto: int, positions: Any, runs: tuple[Run, ...]) -> list[Run]:
    return [run for position, run in zip(positions, runs, strict=True) if position < upto]


# --- is a window enough? ---


@pytest.mark.parametrize(
    ("start", "closed", "summary", "enough"),
    [
        (0, False, None, True),
        (5, False, None, False),
        (5, True, None, True),
        (8, True, summary_of(4, 6), False),
        (6, True, summary_of(4, 6), True),
        (6, False, summary_of(4, 6), False),
        (4, False, summary_of(4, 6), False),
        (3, False, summary_of(4, 6), True),
        (3, False, summary_of(4, 6, upto_id="r3"), True),
        (3, False, summary_of(4, 6, upto_id="foreign"), False),
        (3, True, summary_of(4, 6, upto_id="foreign"), True),
    ],
)
def test_when_a_window_is_enough(start: int, closed: bool, summary: Summary | None, enough: bool) -> None:
    log = log_of(*runs_until(10, start), start=start, summary=summary)
    assert log.is_enough(View(closed=closed)) is enough


def test_without_its_summary_only_what_the_strategy_says_counts() -> None:
    log = log_of(*runs_until(10, 8), start=8, summary=summary_of(4, 6))
    assert log.is_enough(View(closed=True), use_summary=False)
    assert not log.is_enough(View(), use_summary=False)


def test_a_summary_that_was_trimmed_past_is_not_waited_for() -> None:
    """It could be stale without anyone knowing, so it is never shown, and nothing is loaded for it."""
    log = log_of(*runs_until(100, 90), start=90, base=50, summary=summary_of(20, 30))
    assert log.is_enough(View(closed=True))
    assert log_of(*runs_until(100, 50), start=50, base=50, summary=summary_of(20, 30)).view().summary is None


# --- trimming ---


def test_trimming_never_shifts_positions() -> None:
    log = log_of(*runs_until(10), Retract(id="c10", target="r7", at=7)).trimmed(5)
    assert (log.base, log.start, log.end) == (5, 5, 11)
    assert list(log.view().positions) == [5, 6, 8, 9]
    assert log.trimmed(3) is log


def test_trimming_what_is_not_loaded_moves_the_base_alone() -> None:
    log = log_of(*runs_until(10, 6), start=6)
    trimmed = log.trimmed(4)
    assert (trimmed.base, trimmed.start, trimmed.entries) == (4, 6, log.entries)


def test_a_change_of_a_trimmed_run_has_no_effect() -> None:
    log = log_of(*runs_until(10), Amend(id="c10", at=2, run=Run("r2", "edited"))).trimmed(3)
    assert shown(log) == [f"r{position}" for position in range(3, 10)]


def test_a_summary_outlives_what_it_covers() -> None:
    log = log_of(*runs_until(10), summary=summary_of(4, 6))
    for base in (4, 6):
        assert log.trimmed(base).view().summary is not None
    assert log.trimmed(7).view().summary is None


def test_from_position_forgets_here_and_not_in_the_store() -> None:
    log = log_of(*runs_until(10))
    later = log.from_position(6)
    assert (later.base, later.start, later.end) == (0, 6, 10)
    assert shown(later) == ["r6", "r7", "r8", "r9"]
    assert log.from_position(-1) is log


# --- views ---


def test_a_view_keeps_its_prices_through_cuts_and_filters() -> None:
    runs = tuple(Run(f"r{at}", "", counts=Counts(CHARACTERS.name, input=at)) for at in range(6))
    view = View(runs=runs, positions=range(6)).priced(CHARACTERS)
    assert view.suffix(2).sums == [1, 3, 6, 10, 15]
    assert view.only(lambda run: run.id in {"r1", "r4"}).sums == [0, 1, 5]
    assert view.only(lambda _: True) is view
    assert view.changed(runs[::-1]).sums is None


def test_a_cut_closes_only_what_is_settled() -> None:
    view = View(runs=runs_until(3), positions=range(3))
    assert view.suffix(1).closed
    unsettled = msgspec.structs.replace(view, settled=False)
    assert not unsettled.suffix(1).closed
    assert msgspec.structs.replace(unsettled, closed=True).suffix(1).closed


def test_a_summary_costs_one_message() -> None:
    stored = summary_of(1, 1, counts=Counts(CHARACTERS.name, output=100, messages=1))
    assert price_of(stored, CHARACTERS) == 100 + CHARACTERS.per_message
    framed = len(SUMMARY_FRAME.format("in short")) + CHARACTERS.per_message
    assert price_of(summary_of(1, 1), CHARACTERS) == framed
    foreign = summary_of(1, 1, counts=Counts("another", output=100, messages=1))
    assert price_of(foreign, CHARACTERS) == framed

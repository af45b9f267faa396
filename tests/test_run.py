"""Runs as they are made: ids, content, meta, and what a change of content does to counts."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import msgspec
import pytest

from memkit.content import EMPTY, Json, Text, ToolCall, ToolResult
from memkit.errors import FormatError
from memkit.run import Amend, Counts, Run, new_id, new_run

CALL = ToolCall("1", "look", "{}")
RESULT = ToolResult("1", "nothing")


def milliseconds() -> int:
    return time.time_ns() // 1_000_000


def test_ids_begin_with_the_time_at_which_they_were_made() -> None:
    before = milliseconds()
    ids = [new_id() for _ in range(10_000)]
    after = milliseconds()
    times = [int(made[:12], 16) for made in ids]
    assert before <= times[0] <= times[-1] <= after
    assert times == sorted(times)
    assert {len(made) for made in ids} == {28}


def test_ids_sort_by_time() -> None:
    earlier = new_id()
    start = milliseconds()
    while milliseconds() == start:
        pass
    assert earlier < new_id()


def test_ids_are_unique() -> None:
    assert len({new_id() for _ in range(100_000)}) == 100_000


def test_processes_that_begin_at_once_make_different_ids() -> None:
    code = "from memkit.run import new_id; print(*[new_id() for _ in range(1000)])"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    made = [process.communicate()[0].split() for process in processes]
    assert len({*made[0], *made[1]}) == 2_000


def test_a_fork_makes_other_ids_than_its_parent() -> None:
    code = """if True:
        import os
        from memkit.run import new_id
        new_id()
        is_parent = os.fork()
        os.write(1, " ".join(["", *[new_id()[12:] for _ in range(100)]]).encode())
        if is_parent:
            os.wait()
    """
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split()
    assert len(set(said)) == len(said) == 200


def test_a_new_run_has_an_id_and_the_present_time() -> None:
    before = time.time()
    run = new_run("question", "answer")
    assert before <= run.created_at <= time.time()
    assert run == Run(run.id, "question", (), "answer", created_at=run.created_at)
    assert (run.status, run.meta, run.counts, run.extra) == ("complete", EMPTY, None, EMPTY)


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        (None, ()),
        (CALL, (CALL,)),
        ([CALL, RESULT], (CALL, RESULT)),
        ("thinking", (Text("thinking"),)),
        (["thinking", CALL], (Text("thinking"), CALL)),
    ],
    ids=range(5),
)
def test_steps_are_parts(given: Any, steps: Any) -> None:
    assert new_run("question", steps=given).steps == steps


def test_nothing_said_is_not_an_empty_text() -> None:
    assert (new_run(None).input, new_run(None).output) == ((), ())
    assert (new_run("", "").input, new_run("", "").output) == ("", "")


@pytest.mark.parametrize("field", ["input", "output", "steps"])
def test_what_is_no_content_is_refused(field: str) -> None:
    with pytest.raises(FormatError, match="wrap data in Json"):
        new_run(**{"input": "question", field: {"a": 1}})


def test_meta_is_copied_and_must_be_json() -> None:
    meta = {"tags": ["a"]}
    run = new_run("question", meta=meta)
    meta["tags"].append("b")
    assert run.meta == {"tags": ["a"]}
    assert new_run("question", meta={}).meta is EMPTY
    with pytest.raises(FormatError, match=r"meta\.at is a object"):
        new_run("question", meta={"at": object()})


COUNTED = Run(
    "r0", "question", (CALL, RESULT), "answer", status="partial", counts=Counts("c", 1, 2, 3, 4), extra={"a": 1}
)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"input": "other"}, ("other", (CALL, RESULT), "answer")),
        ({"steps": ()}, ("question", (), "answer")),
        ({"output": ()}, ("question", (CALL, RESULT), ())),
        ({"input": "", "output": (Json(1),)}, ("", (CALL, RESULT), (Json(1),))),
    ],
    ids=range(4),
)
def test_other_content_has_no_counts(change: dict[str, Any], expected: Any) -> None:
    changed = COUNTED.replace(**change)
    assert (changed.input, changed.steps, changed.output) == expected
    assert changed.counts is None
    assert (changed.id, changed.status, changed.extra) == ("r0", "partial", {"a": 1})
    assert COUNTED.counts == Counts("c", 1, 2, 3, 4)


def test_runs_are_values() -> None:
    run = new_run("question")
    assert run == msgspec.structs.replace(run)
    assert run != new_run("question")
    with pytest.raises(AttributeError):
        run.input = "other"  # type: ignore[misc]


def test_an_amend_targets_the_run_of_its_id() -> None:
    assert Amend(id="c1", at=0, run=COUNTED).target == "r0"

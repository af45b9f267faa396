"""Seventeen things that griptape 1.13 does wrong, each shown with the real one, and memkit doing them right."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memkit import FileDriver, InMemoryDriver, Memory, Run, SummaryPolicy, since, text_of
from memkit.adapters.griptape import GriptapeCodec
from memkit.adapters.griptape.sources import export, read_file
from memkit.adapters.griptape.sources import store as store_imported
from memkit.codec import JsonCodec
from memkit.driver import Driver
from memkit.drivers.griptape_cloud import connect
from memkit.errors import FormatError, SummaryError
from memkit.run import new_run
from memkit.strategies import prune
from memkit.testing import CountingDriver
from tests.griptape_agents import as_dicts, griptape_modules, griptape_run, memory_on, texts
from tests.griptape_cloud import KEY, GriptapeCloud, serve
from tests.memories import Words, ids, inputs
from tests.servers.dynamodb import DynamoDB

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

EACH = SummaryPolicy(keep=1, every=1)
"""What griptape's `offset=1` is."""


@pytest.fixture(scope="session")
def gt() -> SimpleNamespace:
    """Give griptape, which takes seconds to import."""
    return griptape_modules()


class Summarizer:
    """Counts what it is given, and names it in the summary."""

    def __init__(self, *, fails: int = 0) -> None:
        self.calls: list[tuple[str | None, list[str]]] = []
        self.fails = fails

    async def __call__(self, runs: Sequence[Run], /, *, previous: str | None) -> str:
        self.calls.append((previous, [text_of(run.input) for run in runs]))
        if len(self.calls) <= self.fails:
            raise OSError("the model is overloaded")
        return f"up to {text_of(runs[-1].input)}"


def said(n: int) -> tuple[str, str]:
    """Return the exchange number n: longer than a summary of it."""
    return f"q{n}", f"a{n} and so on and on, in more words than are left of it in the end"


def their_summary(gt: SimpleNamespace, driver: Any = None, **options: Any) -> Any:
    """Return griptape's summary memory; its model names the last question that it is given."""
    driver = driver or gt.Local()

    def answer(messages: list[tuple[str, str]]) -> str:
        asked = [word for word in messages[-1][1].split() if word[:1] == "q" and word[1:].isdigit()]
        return f"up to {asked[-1]}"

    model = options.pop("prompt_driver", None) or gt.StandIn(answer)
    return gt.SummaryConversationMemory(conversation_memory_driver=driver, prompt_driver=model, **options)


def their_prompt(memory: Any) -> str:
    return "\n".join(message.to_text() for message in memory.to_prompt_stack().messages)


async def test_01_a_summary_is_stored(gt: SimpleNamespace, tmp_path: Path) -> None:
    local = gt.Local(persist_file=str(tmp_path / "memory.json"))
    theirs = their_summary(gt, local)
    for n in (1, 2, 3):
        theirs.add_run(griptape_run(f"r{n}", *said(n)))
    assert (theirs.summary, theirs.summary_index) == ("up to q2", 2)
    again = their_summary(gt, local)
    assert (again.summary, again.summary_index) == (None, 0)
    again.add_run(griptape_run("r4", *said(4)))
    assert all(f"q{n}" in again.prompt_driver.prompts[0][0][1] for n in (1, 2, 3))  # all over again

    driver = FileDriver(tmp_path)
    async with Memory(driver, "k", summarizer=Summarizer(), policy=EACH) as memory:
        for n in (1, 2, 3):
            await memory.add(*said(n))
            await memory.summarize()
    ours = Summarizer()
    async with Memory(FileDriver(tmp_path), "k", summarizer=ours, policy=EACH) as memory:
        summary = memory.view().summary
        assert summary is not None
        assert (summary.content, summary.upto, inputs(memory)) == ("up to q2", 2, ["q3"])
        await memory.add(*said(4))
        await memory.summarize()
    assert ours.calls == [("up to q2", ["q3"])]


async def test_02_the_latest_summary_is_the_one_that_is_stored(gt: SimpleNamespace, tmp_path: Path) -> None:
    local = gt.Local(persist_file=str(tmp_path / "memory.json"))
    theirs = their_summary(gt, local, summary="the first", summary_index=0)
    for n in (1, 2, 3):
        theirs.add_run(griptape_run(f"r{n}", *said(n)))
    assert (theirs.summary, theirs.summary_index) == ("up to q2", 2)
    again = their_summary(gt, local)
    assert (again.summary, again.summary_index) == ("the first", 0)

    driver = FileDriver(tmp_path)
    imported = await read_file(tmp_path / "memory.json")
    await store_imported(imported, driver, "k")
    async with Memory(driver, "k", summarizer=Summarizer(), policy=EACH) as memory:
        assert memory.view().summary is not None
        await memory.summarize()
    async with Memory(driver, "k") as memory:
        summary = memory.view().summary
        assert summary is not None
        assert (summary.content, inputs(memory)) == ("up to q2", ["q3"])


async def test_03_a_summariser_that_fails_costs_no_run(
    gt: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> str:
        raise ValueError("the model is overloaded")

    with caplog.at_level(logging.CRITICAL):
        theirs = their_summary(gt, prompt_driver=gt.StandIn(fail))
        for n in (1, 2, 3):
            theirs.add_run(griptape_run(f"r{n}", *said(n)))
    assert theirs.summary is None
    assert "q3" in their_prompt(theirs)
    assert "q1" not in their_prompt(theirs)
    assert "q2" not in their_prompt(theirs)

    ours = Summarizer(fails=1)
    async with Memory(InMemoryDriver(), "k", summarizer=ours, policy=EACH) as memory:
        for n in (1, 2, 3):
            await memory.add(*said(n))
        with pytest.raises(SummaryError, match="overloaded"):
            await memory.summarize()
        assert (inputs(memory), memory.view().summary) == (["q1", "q2", "q3"], None)
        await memory.summarize()
        summary = memory.view().summary
        assert summary is not None
        assert (summary.content, inputs(memory)) == ("up to q2", ["q3"])
    assert ours.calls == [(None, ["q1", "q2"])] * 2


async def test_04_runs_that_go_do_not_shift_the_summary(gt: SimpleNamespace) -> None:
    theirs = their_summary(gt, max_runs=3)
    for n in range(1, 9):
        theirs.add_run(griptape_run(f"r{n}", *said(n)))
    assert "q8" not in their_prompt(theirs)
    calls = len(theirs.prompt_driver.prompts)
    theirs.add_run(griptape_run("r9", *said(9)))
    assert len(theirs.prompt_driver.prompts) == calls  # and never again

    ours, driver = Summarizer(), InMemoryDriver()
    async with Memory(driver, "k", summarizer=ours, policy=EACH, retain=3) as memory:
        for n in range(1, 10):
            await memory.add(*said(n))
            await memory.summarize()
            summary = memory.view().summary
            assert inputs(memory) == [f"q{n}"]
            assert n == 1 or (summary is not None and summary.content == f"up to q{n - 1}")
        assert (await driver.load("k", 0, 0)).base >= 5
    assert [runs for _, runs in ours.calls] == [[f"q{n}"] for n in range(1, 9)]


async def test_05_the_same_run_twice_is_summed_up_once(gt: SimpleNamespace) -> None:
    theirs = their_summary(gt)
    one = griptape_run("r1", *said(1))
    for _ in range(4):
        theirs.add_run(one)
    assert theirs.summary_index == 1
    assert [prompt[0][1].count("q1") for prompt in theirs.prompt_driver.prompts] == [1, 2, 3]

    ours, run = Summarizer(), new_run(*said(1))
    async with Memory(InMemoryDriver(), "k", summarizer=ours, policy=EACH) as memory:
        for _ in range(4):
            await memory.append(run)  # the same run
            await memory.summarize()
        assert (inputs(memory), ours.calls) == (["q1"], [])
        for _ in range(3):
            await memory.add(*said(1))  # the same words
            await memory.summarize()
        assert inputs(memory) == ["q1"]
    assert [runs for _, runs in ours.calls] == [["q1"]] * 3


async def test_06_pruning_tokenises_each_run_once(gt: SimpleNamespace) -> None:
    count, long = 60, " ".join(["word"] * 80)
    counted: list[int] = []

    class Noting(gt.Tokenizer):  # type: ignore[misc, name-defined]
        def count_tokens(self, text: str) -> int:
            counted.append(len(text))
            return len(text.split())

    model = gt.StandIn()
    model.tokenizer = Noting(characters_per_token=1, max_input_tokens=500, max_output_tokens=10)
    runs = [griptape_run(f"r{n}", long, "yes") for n in range(count)]
    theirs = gt.ConversationMemory(conversation_memory_driver=gt.Local(), runs=runs)
    for _ in range(2):
        stack = gt.PromptStack()
        theirs.add_to_prompt_stack(model, stack)
    assert len(stack.messages) == 12
    size = count * len(long)
    assert len(counted) == 2 * 55
    assert sum(counted) > 2 * size * 25  # O(n^2), and again for each prompt

    words, driver = Words(), InMemoryDriver()
    async with Memory(driver, "k", strategy=prune(500, counter=words)) as memory:
        for _ in range(count):
            await memory.add(long, "yes")
        once = sum(len(text_of(content)) for content in words.counted)
        assert once == size + count * len("yes")
        for _ in range(2):
            assert len(memory.messages()) == 12
        assert len(words.counted) == 2 * count
    words = Words()
    async with Memory(driver, "k", strategy=prune(500, counter=words)) as memory:  # in another process
        assert len(memory.messages()) == 12
    assert words.counted == []


async def test_07_an_append_writes_what_is_new_and_loses_nothing(gt: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    written: list[int] = []
    theirs = gt.ConversationMemory(conversation_memory_driver=gt.Local(persist_file=str(path)))
    other = gt.ConversationMemory(conversation_memory_driver=gt.Local(persist_file=str(path)))
    for n in range(10, 30):
        theirs.add_run(griptape_run(f"r{n}", *said(n)))
        written.append(path.stat().st_size)
    assert written[-1] > 15 * written[0]  # the whole file each time
    other.add_run(griptape_run("other", *said(1)))
    assert [run["id"] for run in json.loads(path.read_text())["runs"]] == ["other"]

    counting = CountingDriver(FileDriver(tmp_path))
    async with Memory(counting, "k") as memory, Memory(FileDriver(tmp_path), "k") as another:
        sizes: list[int] = []
        for n in range(10, 30):
            before = counting.bytes["append"]
            await memory.append(Run(f"r{n}", f"q{n}", output=f"a{n}", created_at=1.0))
            sizes.append(counting.bytes["append"] - before)
        assert set(sizes) == {sizes[0]}
        assert counting.bodies["append"] == 20
        await another.add(*said(1))
    async with Memory(FileDriver(tmp_path), "k") as memory:
        assert inputs(memory) == [*(f"q{n}" for n in range(10, 30)), "q1"]


async def test_08_a_memory_that_loads_nothing_overwrites_nothing(gt: SimpleNamespace, tmp_path: Path) -> None:
    local = gt.Local(persist_file=str(tmp_path / "memory.json"))
    for n in (1, 2):
        gt.ConversationMemory(conversation_memory_driver=local).add_run(griptape_run(f"r{n}", *said(n)))
    gt.ConversationMemory(conversation_memory_driver=local, autoload=False).add_run(griptape_run("r3", *said(3)))
    assert [run.id for run in local.load()[0]] == ["r3"]

    driver = FileDriver(tmp_path)
    async with Memory(driver, "k") as memory:
        await memory.append(*(Run(f"r{n}", f"q{n}", output="a", created_at=float(n)) for n in (1, 2)))
    async with Memory(driver, "k", strategy=since(1_000.0)) as memory:
        assert memory.messages() == []
        await memory.add(*said(3))
        assert inputs(memory) == ["q3"]
    memory_on(driver, autoload=False).add_run(griptape_run("r4", *said(4)))
    async with Memory(driver, "k") as memory:
        assert inputs(memory) == ["q1", "q2", "q3", "q4"]


async def test_09_loading_twice_doubles_nothing(
    gt: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from griptape.configs import Defaults

    path = tmp_path / "memory.json"
    local = gt.Local(persist_file=str(path))
    theirs = gt.ConversationMemory(conversation_memory_driver=local)
    theirs.add_run(griptape_run("r1", *said(1)))
    theirs.load_runs()
    assert [run.id for run in theirs.runs] == ["r1", "r1"]
    monkeypatch.setattr(Defaults.drivers_config, "conversation_memory_driver", local)
    again = gt.ConversationMemory.from_dict(gt.ConversationMemory().to_dict())
    assert [run.id for run in again.runs] == ["r1", "r1"]

    driver = FileDriver(tmp_path)
    imported = await read_file(path)
    for _ in range(2):
        await store_imported(imported, driver, "k")
    async with Memory(driver, "k") as memory:
        await memory.refresh()
        await memory.refresh()
        assert ids(memory.conversation.runs) == ["r1"]
        path.write_text(await export(memory))
    await store_imported(await read_file(path), driver, "k")
    async with Memory(driver, "k") as memory:
        assert ids(memory.conversation.runs) == ["r1"]


async def test_10_no_two_users_share_a_conversation_by_default(gt: SimpleNamespace) -> None:
    from griptape.drivers.memory.conversation.redis import RedisConversationMemoryDriver

    one, two = (
        RedisConversationMemoryDriver(host="h", port=1, index="i", client=object()) for _ in ("Ada", "Bob")
    )
    assert one.conversation_id == two.conversation_id

    with pytest.raises(TypeError, match="key"):
        Memory(InMemoryDriver())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="key"):
        gt.Memkit(driver=InMemoryDriver())
    for nobody in ("", None):
        with pytest.raises(FormatError, match="key"):
            Memory(InMemoryDriver(), nobody)  # type: ignore[arg-type]


async def test_11_a_driver_can_be_written_as_a_dict(gt: SimpleNamespace) -> None:
    from griptape.drivers.memory.conversation.amazon_dynamodb import AmazonDynamoDbConversationMemoryDriver
    from griptape.drivers.memory.conversation.redis import RedisConversationMemoryDriver

    theirs = [
        RedisConversationMemoryDriver(host="h", port=1, index="i", client=object()),
        AmazonDynamoDbConversationMemoryDriver(
            session=object(), table_name="t", partition_key="p", partition_key_value="v", value_attribute_key="a"
        ),
    ]
    for driver in theirs:
        with pytest.raises(NameError):
            driver.to_dict()

    ours = gt.Memkit(driver=InMemoryDriver(), key="user:1")
    assert ours.to_dict() == {"type": "MemkitConversationMemoryDriver", "key": "user:1"}


async def test_12_an_add_costs_the_same_however_long_the_conversation_is(
    gt: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from griptape.schemas import BaseSchema

    schemas: list[str] = []
    make = BaseSchema.from_attrs_cls.__func__

    def noting(cls: Any, attrs_cls: Any, **more: Any) -> Any:
        schemas.append(attrs_cls.__name__)
        return make(cls, attrs_cls, **more)

    monkeypatch.setattr(BaseSchema, "from_attrs_cls", classmethod(noting))

    def costs(memory: Any) -> list[int]:
        found: list[int] = []
        for n in range(6):
            schemas.clear()
            memory.add_run(griptape_run(f"r{n}", *said(n)))
            found.append(schemas.count("Run"))
        return found

    local = gt.Local(persist_file=str(tmp_path / "memory.json"))
    assert costs(gt.ConversationMemory(conversation_memory_driver=local)) == [1, 2, 3, 4, 5, 6]
    schemas.clear()
    gt.ConversationMemory(conversation_memory_driver=local)
    assert schemas.count("Run") == 6

    driver = InMemoryDriver()
    assert costs(memory_on(driver)) == [1] * 6
    schemas.clear()
    assert len(memory_on(driver).runs) == 6
    assert schemas == []

    encoded: list[str] = []

    class Noting(JsonCodec):
        def encode(self, entry: Any, /) -> bytes:
            encoded.append(entry.id)
            return super().encode(entry)

    async with Memory(driver, "k", codec=Noting()) as memory:
        encoded.clear()  # the constructor tries it once
        made = [await memory.add(*said(n)) for n in range(6)]
    assert encoded == ids(made)


IMPORTS = """
import json

before = json.JSONEncoder.default
import memkit, memkit.adapters.griptape, memkit.adapters.griptape.sources
print(json.JSONEncoder.default is before)
from griptape.memory.structure import ConversationMemory
print(json.JSONEncoder.default is before)
try:
    json.dumps({"x": object()})
except TypeError as error:
    print(error)
"""


async def test_13_an_import_changes_nothing_and_errors_say_what_is_wrong() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    ours, theirs, error = done.stdout.splitlines()
    assert (ours, theirs) == ("True", "False")
    assert "missing 1 required positional argument" in error

    async with Memory(InMemoryDriver(), "k") as memory:
        with pytest.raises(FormatError, match=r"meta\.x is a object, which JSON cannot hold"):
            await memory.add("q", "a", meta={"x": object()})
        with pytest.raises(FormatError, match=r"meta\.x is a object, which JSON cannot hold"):
            await memory.update_meta({"x": object()})


async def test_14_one_unreadable_run_costs_none_of_the_others(gt: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    runs = as_dicts([griptape_run(f"r{n}", *said(n)) for n in (1, 2, 3)])
    runs[1]["output"] |= {"type": "CsvRowArtifact", "value": {"a": "b"}}
    path.write_text(json.dumps({"runs": runs, "metadata": {}}))
    with pytest.raises(ValueError, match="Unable to load"):
        gt.Local(persist_file=str(path)).load()

    imported = await read_file(path)
    assert ids(imported.runs) == ["r1", "r2", "r3"]
    assert len(imported.problems) == 1
    assert "run 1: output: an artifact of the type 'CsvRowArtifact'" in imported.problems[0]
    driver = FileDriver(tmp_path)
    await store_imported(imported, driver, "k")
    assert texts(memory_on(driver).runs) == [said(1), ("q2", '{"a": "b"}'), said(3)]


async def test_15_griptape_cloud_keeps_metas_and_any_alias(
    gt: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from griptape.drivers.memory.conversation.griptape_cloud import GriptapeCloudConversationMemoryDriver

    monkeypatch.delenv("GT_CLOUD_THREAD_ID", raising=False)
    alias = "a&alias=b c/\u2603"
    with serve(GriptapeCloud()) as cloud:
        lost = cloud.add_thread()
        theirs = GriptapeCloudConversationMemoryDriver(thread_id=lost, api_key=KEY, base_url=cloud.url)
        theirs.store([griptape_run("r1", *said(1), meta={"cost": 1})], {"lang": "en"})
        (loaded,), meta = theirs.load()
        assert (loaded.id, loaded.meta, meta) == ("r1", {}, {})
        theirs = GriptapeCloudConversationMemoryDriver(alias=alias, api_key=KEY, base_url=cloud.url)
        assert theirs.thread["alias"] == alias
        assert cloud.requests[-2].query["alias"] == "a"  # it asked for another one's

        async with connect(api_key=KEY, base_url=cloud.url) as driver:
            async with Memory(driver, alias, codec=GriptapeCodec()) as memory:
                await memory.add(*said(1), meta={"cost": 1})
                await memory.update_meta({"lang": "en"})
            async with Memory(driver, alias, codec=GriptapeCodec()) as memory:
                (run,) = memory.view().runs
                assert (run.meta, memory.meta) == ({"cost": 1}, {"lang": "en"})
        assert [thread["alias"] for thread in cloud.threads.values()] == [None, alias]
        thread_id = list(cloud.threads)[-1]
        theirs = GriptapeCloudConversationMemoryDriver(thread_id=thread_id, api_key=KEY, base_url=cloud.url)
        (loaded,), meta = theirs.load()
        assert loaded.meta["cost"] == 1
        assert meta["lang"] == "en"


async def test_16_no_conversation_is_too_long_to_be_stored(
    gt: SimpleNamespace, dynamodb: DynamoDB, tmp_path: Path
) -> None:
    from botocore.exceptions import ClientError
    from griptape.drivers.memory.conversation.amazon_dynamodb import AmazonDynamoDbConversationMemoryDriver

    long = "x" * 45_000
    exchanges = [(f"q{n}", long) for n in range(10)]
    theirs = gt.ConversationMemory(
        conversation_memory_driver=AmazonDynamoDbConversationMemoryDriver(
            session=dynamodb.session,
            table_name=dynamodb.table({"user": "S"}),
            partition_key="user",
            partition_key_value=tmp_path.name,
            value_attribute_key="value",
        )
    )
    for n in range(9):
        theirs.add_run(griptape_run(f"r{n}", *exchanges[n]))
    with pytest.raises(ClientError, match=r"ValidationException.*size"):
        theirs.add_run(griptape_run("r9", *exchanges[9]))  # whose answer was paid for
    assert len(theirs.conversation_memory_driver.load()[0]) == 9

    driver: Driver = FileDriver(tmp_path)
    async with Memory(driver, "k") as memory:
        for exchange in exchanges:
            await memory.add(*exchange)
    ours = memory_on(driver)
    ours.add_run(griptape_run("r10", "q10", long))
    assert texts(memory_on(FileDriver(tmp_path)).runs) == [*exchanges, ("q10", long)]


async def test_17_making_a_handle_reaches_for_nothing(gt: SimpleNamespace, tmp_path: Path) -> None:
    loads: list[str] = []

    class Noting(gt.Local):  # type: ignore[misc, name-defined]
        def load(self) -> Any:
            loads.append("load")
            raise OSError("no route to host")

    with pytest.raises(OSError, match="no route"):
        gt.ConversationMemory(conversation_memory_driver=Noting())
    assert loads == ["load"]

    counting = CountingDriver(FileDriver(tmp_path / "there is no such folder"))
    made = Memory(counting, "k")
    gt.Memkit(driver=counting, key="k")
    assert not counting.calls
    assert not (tmp_path / "there is no such folder").exists()
    for _ in range(2):  # what waits is awaited, and can be done again
        async with made:
            assert made.messages() == []
    assert counting.calls["load"] == 2

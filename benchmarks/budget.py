"""Pruning to one budget: with nothing counted, with counts stored, with one run added, by an estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from benchmarks.corpus import SEED, runs, with_counts
from benchmarks.measure import OURS, Candidate, Row, Sitting, Timing, absolute, beside, row, shown, take_turns
from benchmarks.peers import PRUNERS
from benchmarks.peers.base import Pruner, is_there
from benchmarks.report import left_out
from memkit import Conversation, InMemoryDriver, JsonCodec, Memory, Record, Run, View, approximate, new_run, prune
from memkit.tokens import TokenCounter

SIZES = (100, 1_000, 10_000)
LADDER = (*SIZES, 300, 3_000)
"""Sizes at which a peer may be measured, those to extrapolate from included."""


class Budget:
    """What is measured with one budget."""

    def __init__(self, budget: int, counter: TokenCounter, sitting: Sitting) -> None:
        self._budget = budget
        self._counter = counter
        self._sitting = sitting
        self._rounds = 5 if sitting.quick else 15
        self._patience = 1.0 if sitting.quick else 3.0
        self._affordable: dict[str, list[int]] = {}
        self._runs = {size: runs(size, SEED, sitting.data) for size in (10, *LADDER)}
        self._strategy = prune(budget, counter=counter)
        self._fits = len(self._strategy(view_of(self._runs[SIZES[-1]])).runs)
        self._peers = [one for one in PRUNERS if sitting.peers and is_there(one.packages)]

    async def rows(self) -> list[Row]:
        """Return the rows: cold, stored, warm, estimated."""
        cold = await self._cold()
        rows = self._cold_rows(cold)
        rows += await self._stored_rows(cold)
        rows += await self._warm_rows()
        if self._sitting.peers:
            rows += await self._estimated_rows(cold)
        return rows

    # --- nothing counted yet ---

    async def _cold(self) -> dict[str, dict[int, Timing]]:
        """Return what everybody takes, by name and size."""
        candidates: dict[tuple[str, int], Candidate] = {}
        for size in SIZES:
            view = view_of(self._runs[size])
            candidates[OURS, size] = Candidate(partial(self._strategy, view), is_async=False)
            kept = self._strategy(view).runs
            candidates["limit", size] = Candidate(partial(tokenise, kept, self._counter), is_async=False)
        for peer in self._peers[:]:
            try:
                self._affordable[peer.name] = await self._sizes(peer)
            except Exception as error:
                left_out(peer.name, error)
                self._peers.remove(peer)
                continue
            for size in self._affordable[peer.name]:
                candidates[peer.name, size] = peer.cold(self._runs[size], self._budget)
        self._step("nothing counted")
        found = await self._turns(candidates, calls=5)
        for peer in self._peers:
            self._extrapolate(peer, found[peer.name])
        return found

    def _cold_rows(self, cold: Mapping[str, dict[int, Timing]]) -> list[Row]:
        rows: list[Row] = []
        chart = f"prune, nothing counted, {self._budget:,} tokens"
        for size in SIZES:
            what = f"prune, nothing counted, {size:,} runs, {self._budget:,} tokens"
            found = row(what, cold[OURS][size], cold["limit"][size], 1.15)
            rows.append(self._beside(found, cold, chart, size))
        what = f"the same, {SIZES[-1]:,} runs against {SIZES[-2]:,}"
        rows.append(row(what, cold[OURS][SIZES[-1]], cold[OURS][SIZES[-2]], 1.1))
        return rows

    async def _sizes(self, peer: Pruner) -> list[int]:
        """Return the sizes at which a peer is measured: those that take seconds, and two to extrapolate from.

        It is tried with longer and longer histories, until the next one would take too long.
        """
        await peer.cold(self._runs[10], self._budget).time()  # imports what it needs
        probe = self._fits * 9 // 8 + 1  # little of it is left out: the shortest history with which there is work
        tried, seconds = [probe], 0.0
        for size in sorted({*LADDER, probe}):
            expected = seconds * peer.growth(size, self._fits) / peer.growth(tried[-1], self._fits)
            if size > probe and expected > self._patience:
                break
            self._step(f"{peer.name}, a first look at {size:,} runs")
            known = self._runs.setdefault(size, runs(size, SEED, self._sitting.data))
            seconds = await peer.cold(known, self._budget).time()
            tried.append(size)
        two = tried[-2:] if tried[-1] < SIZES[-1] else []
        return sorted({*two, *(size for size in tried if size in SIZES)})

    def _extrapolate(self, peer: Pruner, found: dict[int, Timing]) -> None:
        """Continue the line through the two longest histories that were measured, time against work."""
        points = [(0.0, 0.0), *((peer.growth(size, self._fits), found[size].median) for size in sorted(found))]
        (before, less), (work, more) = points[-2:]
        slope = (more - less) / (work - before) if more > less else more / work
        for size in SIZES:
            if size > max(found):
                seconds = more + slope * (peer.growth(size, self._fits) - work)
                found[size] = Timing(seconds, seconds, seconds, extrapolated=True)

    # --- counts stored ---

    async def _stored_rows(self, cold: Mapping[str, dict[int, Timing]]) -> list[Row]:
        """Return what a view takes as a handle holds it, with the sums of its counts, and without the sums.

        Peers have what they store: counts, or nothing, so that they count anew.
        """
        self._step("counts stored")
        candidates: dict[tuple[str, int], Candidate] = {}
        for size in SIZES:
            view = view_of(with_counts(self._runs[size], self._counter))
            candidates["not summed", size] = Candidate(partial(self._strategy, view), is_async=False)
            for step in (1, 8):
                strategy = prune(self._budget, counter=self._counter, step=step)
                call = partial(strategy, view.priced(self._counter))
                candidates[f"step {step}", size] = Candidate(call, is_async=False)
        found = await self._turns(candidates, calls=200)
        kept = await self._kept()
        rows: list[Row] = []
        chart = f"prune, counts stored, {self._budget:,} tokens"
        for step in (1, 8):
            for size in SIZES:
                what = f"prune, counts stored, {size:,} runs, {self._budget:,} tokens, step {step}"
                one = absolute(what, found[f"step {step}"][size], 25e-6)
                rows.append(self._beside(one, {**cold, **kept}, chart, size) if step == 1 else one)
        for size in SIZES:
            what = f"the same, counts not summed yet, {size:,} runs, {self._budget:,} tokens"
            rows.append(shown(what, found["not summed"][size]))
        return rows

    async def _kept(self) -> dict[str, dict[int, Timing]]:
        """Return what peers take that store counts."""
        candidates = {
            (peer.name, size): peer.stored(self._runs[size], self._budget)
            for peer in self._peers
            if peer.stored is not None
            for size in self._affordable[peer.name]
        }
        if not candidates:
            return {}
        found = await self._turns(candidates, calls=5)
        for peer in self._peers:
            if peer.name in found:
                self._extrapolate(peer, found[peer.name])
        return found

    # --- one run added ---

    async def _warm_rows(self) -> list[Row]:
        """Return what adding a run and building the next prompt takes; of peers, of those that keep anything."""
        candidates: dict[tuple[str, int], Candidate] = {}
        for size in SIZES:
            candidates[OURS, size] = await _handle(self._runs[size], self._budget, self._counter)
        for peer in self._peers:
            if peer.warm is None:
                continue
            for size in [size for size in self._affordable[peer.name] if size in SIZES]:
                self._step(f"{peer.name}, one run added to {size:,}")
                candidates[peer.name, size] = await peer.warm(self._runs[size], self._budget)
        self._step("one run added")
        found = await self._turns(candidates, calls=10)
        rows: list[Row] = []
        for size in SIZES:
            one = shown(f"add a run to {size:,}, build the prompt, {self._budget:,} tokens", found[OURS][size])
            rows.append(self._beside(one, found, f"add a run and build the prompt, {self._budget:,} tokens", size))
        return rows

    # --- by an estimate ---

    async def _estimated_rows(self, cold: Mapping[str, dict[int, Timing]]) -> list[Row]:
        self._step("by an estimate")
        strategy = prune(self._budget, counter=approximate())
        candidates = {
            (OURS, size): Candidate(partial(strategy, view_of(self._runs[size])), is_async=False) for size in SIZES
        }
        found = await self._turns(candidates, calls=5)
        rows: list[Row] = []
        estimates = {one.name: cold[one.name] for one in self._peers if not one.is_exact}
        for size in SIZES:
            what = f"prune by an estimate, nothing counted, {size:,} runs, {self._budget:,} tokens"
            peers = {name: by_size[size] for name, by_size in estimates.items()}
            rows.append(beside(shown(what, found[OURS][size]), peers))
        return rows

    # --- what these share ---

    def _beside(self, found: Row, everybody: Mapping[str, dict[int, Timing]], chart: str, size: int) -> Row:
        peers = {one.name: everybody[one.name][size] for one in self._peers if size in everybody.get(one.name, ())}
        exact = [one.name for one in self._peers if one.is_exact]
        found = beside(found, peers, comparable=exact)
        found.chart, found.x = chart, size
        return found

    async def _turns(
        self, candidates: Mapping[tuple[str, int], Candidate], calls: int
    ) -> dict[str, dict[int, Timing]]:
        by_label = {f"{name}|{size}": (name, size) for name, size in candidates}
        timings = await take_turns(
            {label: candidates[key] for label, key in by_label.items()},
            rounds=self._rounds,
            calls=calls,
            pick=min,
            patience=self._patience,
        )
        found: dict[str, dict[int, Timing]] = {}
        for label, (name, size) in by_label.items():
            found.setdefault(name, {})[size] = timings[label]
        return found

    def _step(self, what: str) -> None:
        self._sitting.step(f"{self._budget:,} tokens: {what}")


async def _handle(items: Sequence[Run], budget: int, counter: TokenCounter) -> Candidate:
    """Return what adds a run to a handle and builds a prompt, counts stored."""
    driver, codec = InMemoryDriver(), JsonCodec()
    await driver.append("k", [Record(run.id, codec.encode(run)) for run in with_counts(items, counter)])
    memory = Memory(driver, "k", strategy=prune(budget, counter=counter))
    await memory.__aenter__()

    async def add(run: Run) -> None:
        await memory.append(run)
        memory.messages()

    return Candidate(add, lambda: new_run(items[-1].input, items[-1].output))


def view_of(items: Sequence[Run]) -> View:
    return Conversation(key="k", end=len(items), entries=tuple(items)).view()


def tokenise(items: Sequence[Run], counter: TokenCounter) -> None:
    for run in items:
        counter.count(run.input)
        counter.count(run.output)

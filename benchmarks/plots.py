"""Plots of what was measured: cost against the length of the history, one line for each library.

They are meant for pages of either colour: nothing is behind them, and all ink is in between. The same figures make
the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import OURS, Row, Timing, readable
from benchmarks.tables import charts

INK = "#757b82"
FAINT = "#757b8240"
OURS_INKS = ("#1f83f2", "#12a594", "#9a6cf0")
STYLE = {
    "svg.hashsalt": "memkit",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
}
BUDGETS = ("4,000 tokens", "32,000 tokens", "128,000 tokens")
STORES = {
    "append": ("append a run", "Appending a run"),
    "append-durable": ("append a run, durable", "Appending a run, on the disk when it returns"),
    "load": ("load all runs", "Loading a whole conversation"),
    "open": ("open and build a prompt", "Opening a conversation and building a prompt"),
}

Lines = Mapping[str, Mapping[float, Timing]]


def plot(folder: Path, groups: Mapping[str, Sequence[Row]]) -> list[Path]:
    """Write what can be drawn of these rows, and return the files.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    found = charts([row for rows in groups.values() for row in rows])
    with mpl.rc_context(STYLE):
        drawn = [_prune(found), *[_store(name, found) for name in STORES]]
        drawn += [_concurrency(groups.get("concurrency", ())), _cache(groups.get("cache", ()))]
        return [_save(folder / f"{name}.svg", figure) for name, figure in filter(None, drawn)]


def _save(path: Path, figure: Any) -> Path:
    import matplotlib.pyplot as plt

    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    plt.close(figure)
    # matplotlib ends lines with spaces, which tools that tidy files would take away.
    path.write_text("\n".join(map(str.rstrip, path.read_text("utf-8").splitlines())) + "\n", "utf-8")
    return path


# --- cost against history ---


def _prune(found: Mapping[str, Lines]) -> tuple[str, Any] | None:
    import matplotlib.pyplot as plt

    if not all(f"prune, counts stored, {budget}" in found for budget in BUDGETS):
        return None
    figure, axes = plt.subplots(1, len(BUDGETS), figsize=(13, 4.6), sharey=True)
    for axis, budget in zip(axes, BUDGETS, strict=True):
        cold, stored = found[f"prune, nothing counted, {budget}"], found[f"prune, counts stored, {budget}"]
        lines = {f"{name}, counts stored": line for name, line in stored.items() if line != cold[name]}
        lines |= {f"{OURS}, nothing counted" if name == OURS else name: line for name, line in cold.items()}
        del lines["limit"]
        _draw(axis, lines, labelled=axis is axes[-1])
        axis.set_title(budget, fontsize=10, loc="left")
    axes[0].set_ylabel("time per prompt")
    figure.suptitle(
        "Choosing what of the history fits the prompt", x=0.125, y=1.0, ha="left", fontsize=13, fontweight="bold"
    )
    figure.subplots_adjust(wspace=0.06)
    return "prune", figure


def _store(name: str, found: Mapping[str, Lines]) -> tuple[str, Any] | None:
    import matplotlib.pyplot as plt

    chart, title = STORES[name]
    if chart not in found:
        return None
    figure, axis = plt.subplots(figsize=(7.2, 4.4))
    _draw(axis, found[chart], labelled=True)
    axis.set_ylabel("time per call")
    _title(axis, title)
    return name, figure


def _draw(axis: Any, lines: Lines, *, labelled: bool) -> None:
    """Draw lines on logarithmic axes; what is extrapolated is dashed, and its points are hollow."""
    from matplotlib.ticker import LogLocator

    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("runs in the conversation")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    # A power of ten may be a little less than one, which `readable` would give a smaller unit.
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f} s" if value > 0.9 else readable(value * 1.001))
    axis.minorticks_off()
    axis.grid(visible=True, axis="y")
    axis.tick_params(length=0)
    inks = iter(OURS_INKS)
    ends: list[tuple[str, float, str]] = []
    last = max(x for points in lines.values() for x in points)
    for name, points in lines.items():
        is_ours = name.startswith(OURS)
        ink = next(inks) if is_ours else INK
        _line(axis, points, ink, is_ours=is_ours)
        end = max(points)
        ends.append((name, points[end].median, ink))
    low, high = axis.get_ylim()
    if high < 100 * low:
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    if labelled:
        _label(axis, last, ends)


def _line(axis: Any, points: Mapping[float, Timing], ink: str, *, is_ours: bool) -> None:
    width, order = (2.4, 3) if is_ours else (1.1, 2)
    known = [(x, timing.median) for x, timing in sorted(points.items()) if not timing.extrapolated]
    guessed = [(x, timing.median) for x, timing in sorted(points.items()) if timing.extrapolated]
    axis.plot(*zip(*known, strict=True), color=ink, lw=width, marker="o", ms=3.5, zorder=order) if known else None
    if guessed:
        axis.plot(*zip(*[*known[-1:], *guessed], strict=True), color=ink, lw=width, ls=(0, (3, 2)), zorder=order)
        axis.plot(*zip(*guessed, strict=True), color=ink, ls="", marker="o", mfc="none", ms=3.5, zorder=order)


def _label(axis: Any, x: float, ends: Sequence[tuple[str, float, str]]) -> None:
    """Write names beside the ends of lines, apart from each other."""
    axis.get_ylim()  # the scale is that of all lines from here on
    to_axes = axis.transData + axis.transAxes.inverted()
    ordered = sorted(ends, key=lambda end: end[1])
    heights = _apart([to_axes.transform((x, value))[1] for _, value, _ in ordered], 0.062)
    for (name, value, ink), height in zip(ordered, heights, strict=True):
        axis.annotate(
            name,
            (x, value),
            (1.06, height),
            textcoords="axes fraction",
            color=ink,
            va="center",
            fontsize=9,
            fontweight="normal" if ink == INK else "bold",
            arrowprops={
                "arrowstyle": "-",
                "color": ink,
                "lw": 0.5,
                "alpha": 0.6,
                "relpos": (0, 0.5),
                "shrinkB": 4,
            },
            annotation_clip=False,
        )


def _apart(heights: Sequence[float], least: float) -> list[float]:
    """Return sorted heights moved up and down as little as puts each so far above the one before."""
    up: list[float] = []
    for height in heights:
        up.append(max(height, up[-1] + least) if up else height)
    down: list[float] = []
    for height in reversed(heights):
        down.append(min(height, down[-1] - least) if down else height)
    return [(one + other) / 2 for one, other in zip(up, reversed(down), strict=True)]


def _title(axis: Any, title: str) -> None:
    axis.set_title(title, loc="left", pad=14, fontsize=13, fontweight="bold")


# --- bars ---


def _concurrency(rows: Iterable[Row]) -> tuple[str, Any] | None:
    """Draw how many appends a second each candidate does in one loop."""
    import matplotlib.pyplot as plt

    rates: dict[str, float] = {}
    for row in rows:
        named = re.fullmatch(r"(.+): 1,000 x 10 appends", row.what)
        if named and row.measured.endswith("/s"):
            rates[named[1]] = float(row.measured.removesuffix("/s").replace(",", ""))
    if not rates:
        return None
    ours = ("SQLite", "files", "Redis")
    names = sorted(rates, key=lambda name: rates[name])
    figure, axis = plt.subplots(figsize=(7.2, 0.36 * len(names) + 0.6))
    for place, name in enumerate(names):
        is_ours = name.startswith(ours)
        axis.barh(place, rates[name], color=OURS_INKS[0] if is_ours else FAINT, height=0.68)
        value = f"{rates[name]:,.0f}"
        axis.annotate(value, (rates[name], place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    labels = [f"{OURS}, {name}" if name.startswith(ours) else name for name in names]
    axis.set_yticks(range(len(names)), labels)
    for label, name in zip(axis.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name.startswith(ours) else "normal")
        label.set_color(OURS_INKS[0] if name.startswith(ours) else INK)
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines["bottom"].set_visible(False)
    _title(axis, "Appends a second, 1,000 conversations in one event loop")
    return "concurrency", figure


def _cache(rows: Iterable[Row]) -> tuple[str, Any] | None:
    """Draw what the prompts of a conversation cost for each step, beside a program that remembers its last cut."""
    import matplotlib.pyplot as plt

    lines: dict[str, dict[str, float]] = {}
    for row in rows:
        named = re.fullmatch(r"(.+), step (\w+)", row.what)
        if named and row.ratio is not None:
            lines.setdefault(named[1], {})[named[2]] = row.ratio
    if not lines:
        return None
    steps = list(next(iter(lines.values())))
    figure, axis = plt.subplots(figsize=(7.2, 4.0))
    last = len(steps) - 1
    for ratios in lines.values():
        axis.plot(range(len(steps)), [ratios[step] for step in steps], color=INK, lw=1.1, marker="o", ms=3.5)
        axis.plot(last, ratios[steps[-1]], marker="o", ms=7, color=OURS_INKS[0], zorder=3)
    axis.set_ylim(bottom=min(1.0, *axis.get_ylim()))
    _label(axis, last, [(title, ratios[steps[-1]], INK) for title, ratios in lines.items()])
    axis.set_xticks(range(len(steps)), [f"step={step}" if step != "auto" else 'step="auto"' for step in steps])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g} x")
    axis.grid(visible=True, axis="y")
    axis.tick_params(length=0)
    axis.set_ylabel("cost, against a remembered cut")
    _title(axis, "What a provider charges, by the step of the cut")
    return "cache", figure

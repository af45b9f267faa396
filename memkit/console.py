"""Conversations in a terminal, in colours, by rich: `pip install 'memkit[console]'`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from memkit.conversation import Summary
from memkit.run import Run
from memkit.transcripts import spoken

try:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise ImportError("memkit.console needs the package rich: pip install 'memkit[console]'") from error

_STYLES: Final = {"Q": "bold cyan", "A": "bold green"}


def print_conversation(
    runs: Iterable[Run], summary: Summary | None = None, *, console: Console | None = None
) -> None:
    """Print what `questions_and_answers` says, a colour for each side and the summary in a panel.

    Text stands in a column of its own, so that no line of it looks like a label. Nothing of it is taken for
    markup, and control characters are written out. `console` is where to print, by default the terminal.
    """
    console = console or Console()
    for label, said in spoken(runs, summary):
        text = Text(said.removesuffix("\n"), overflow="fold")
        style = _STYLES.get(label)
        console.print(Panel(text, title=label, title_align="left") if style is None else _row(label, style, text))


def _row(label: str, style: str, text: Text) -> Table:
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_column(no_wrap=True, style=style)
    row.add_column(overflow="fold")
    row.add_row(f"{label}:", text)
    return row

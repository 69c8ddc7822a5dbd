"""The table of results at a terminal and as Markdown, and the progress bars."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tests.benchmarks.rows import Chart, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND: Final = "python -m tests.benchmarks"
HEADINGS: Final = ("work", "ours", "compared with", "ratio", "by CPU", "to reach", "reached")
RIGHT: Final = {"ours", "ratio", "by CPU"}
PLAIN_WIDTH: Final = 160
Found = dict[str, list[Row | Chart]]


class Bars:
    """Two bars on stderr: for all benchmarks, and for the one that runs. Silent if stderr is not a terminal."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._all: TaskID = progress.add_task("benchmarks", total=total)
        self._one: TaskID = progress.add_task("", total=None)

    def begin(self, what: str, total: int) -> None:
        self._progress.reset(self._one, description=what, total=total)

    def tick(self) -> None:
        self._progress.advance(self._one)

    def next(self) -> None:
        self._progress.advance(self._all)


@contextmanager
def bars(total: int) -> Iterator[Bars]:
    """Show progress while the block runs."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bars(progress, total)


def show(found: Found, facts: Iterable[str]) -> None:
    """Print everything to stdout: in color at a terminal, elsewhere plain and wide."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH, no_color=True, highlight=False, markup=False, emoji=False)
    for fact in facts:
        console.print(fact)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in RIGHT else "left", overflow="fold")
    for name, results in found.items():
        table.add_row(Text(f"{COMMAND} {name}", style="bold"))
        for row in results:
            if isinstance(row, Row):
                table.add_row(*_cells(row)[:-1], _verdict(row))
        table.add_row()
    console.print(table)
    for chart in _charts(found):
        console.print(Text(chart.title, style="bold"))
        for line in chart.lines():
            console.print(f"  {line}")
        console.print()


def missed(found: Found) -> list[str]:
    """The rows whose bounds are not held."""
    rows = [row for results in found.values() for row in results if isinstance(row, Row)]
    return [f"{row.work} {row.ratio or row.ours}, {row.to_reach}" for row in rows if row.reached is False]


def markdown(found: Found, facts: Iterable[str]) -> str:
    """The same as Markdown."""
    lines = [*(f"{fact}  " for fact in facts), ""]
    lines += [_line([*HEADINGS, "repeat"]), _line(["---:" if heading in RIGHT else "---" for heading in HEADINGS] + ["---"])]
    lines += [
        _line([*_cells(row), f"`{COMMAND} {name}`"])
        for name, results in found.items()
        for row in results
        if isinstance(row, Row)
    ]
    for chart in _charts(found):
        lines += ["", f"{chart.title}:", "", "```text", *chart.lines(), "```"]
    return "\n".join(lines) + "\n"


def _charts(found: Found) -> list[Chart]:
    return [chart for results in found.values() for chart in results if isinstance(chart, Chart)]


def _cells(row: Row) -> list[str]:
    reached = {None: "", True: "yes", False: "**no**"}[row.reached]
    return [row.work, row.ours, row.compared, row.ratio, row.cpu_ratio, row.to_reach, reached]


def _verdict(row: Row) -> Text:
    return {None: Text(""), True: Text("yes", style="green"), False: Text("NO", style="bold red")}[row.reached]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

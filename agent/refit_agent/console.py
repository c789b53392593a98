"""Tables and progress bars: the one module that imports rich."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from refit_agent.cli.output import printable, write
from refit_agent.cli.progress_view import HighWater, detail_text
from refit_agent.progress import Progress

#: In a file or a pipe nothing is cut off or wrapped: the reader there is a program, or scrolls sideways.
_UNBOUNDED = 10_000


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output; a column whose name ends in ">" stands to the right."""
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        right = column.endswith(">")
        table.add_column(column.rstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        # As Text, so that brackets in a path are not taken for markup.
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = _console(sys.stdout.isatty())
    with console.capture() as captured:
        console.print(table)
    # rich pads every row to the width of the table: spaces that nobody wants in a log.
    write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def _console(terminal: bool) -> Console:
    return Console(width=None if terminal else _UNBOUNDED, markup=False, emoji=False, highlight=False)


class BarView:
    """A bar per piece of work, on standard error; gone when closed."""

    def __init__(self) -> None:
        console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self._bars = Bars(
            TextColumn("{task.fields[label]}", markup=False),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            console=console,
            transient=True,
        )
        self._fraction = HighWater()
        self._tasks: dict[str, TaskID] = {}
        self._bars.start()

    def show(self, label: str, progress: Progress) -> None:
        """Move the bar of ``label``."""
        detail = detail_text(progress)
        words = printable(progress.text + (f", {detail}" if detail else ""))
        fraction = self._fraction(label, progress.fraction)
        task = self._tasks.get(label)
        if task is not None:
            self._bars.update(task, completed=fraction, words=words)
            return
        for done in self._tasks.values():
            self._bars.update(done, visible=False)
        task = self._bars.add_task("", total=1.0, label=printable(label), words=words)
        self._bars.update(task, completed=fraction)
        self._tasks[label] = task

    def close(self) -> None:
        """Take the bars off the screen and give the cursor back."""
        self._bars.stop()

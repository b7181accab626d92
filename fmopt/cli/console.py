"""Where tables are printed: plain into a pipe, coloured on a terminal (NO_COLOR, FORCE_COLOR say otherwise), never too wide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.console import Group as Stack
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Column, Table

from fmopt.core import escaping

LOG_COLUMNS = 100  # of a table in a log: cells fold within so many
NAMED = ("model", "variant", "candidate", "bundle", "target")


class PlainConsole(Console):
    """A console that obeys nothing in a text: neither rich's markup, nor what a terminal would take for a command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    @property
    def size(self) -> ConsoleDimensions:
        """A file or a pipe has no width to fit into; what reads logs shows about so many columns."""
        return super().size if self.is_terminal else ConsoleDimensions(LOG_COLUMNS, 25)

    @size.setter
    def size(self, wanted: tuple[int, int]) -> None:
        self._width, self._height = wanted

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        """Everything that is shown comes by here, cell by cell."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escaping.terminal(segment.text))


out = PlainConsole()


def table_of(*columns: Column | str, **options: Any) -> Table:
    """A table without frames, which a narrow terminal has no room for."""
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", **options)


def show(drawn: Table | Stack) -> None:
    """Print a table, or tables and lines, whose long words go on in the next line instead of being cut."""
    tables = [drawn] if isinstance(drawn, Table) else [one for one in drawn.renderables if isinstance(one, Table)]
    for table in tables:
        for column in table.columns:
            column.overflow = "fold"
        named = next((column for column in table.columns if column.header in NAMED), None)
        if named is not None:  # others give way before a name is broken, where that leaves them room
            before = named.min_width
            named.min_width = max((cell_len(str(cell).split("\n")[0]) for cell in named.cells), default=1)
            if Measurement.get(out, out.options.update(width=10**4), table).minimum > out.width:
                named.min_width = before
        if Measurement.get(out, out.options.update(width=10**4), table).minimum > out.width:
            for column in table.columns:  # else some would be left out
                column.min_width, column.no_wrap = None, False
    out.print(drawn)

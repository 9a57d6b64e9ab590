"""Tables that stay readable: what does not fit into a terminal goes into a line below."""

from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_WIDEST = 10_000


def show(screen: Console, table: Table, spare: Sequence[str] = ()) -> None:
    """Print a table whole: in a file as wide as it is, on a terminal as wide as that is.

    Where it is too wide, columns go that are the same in every row, with a line that says so,
    then ``spare`` ones, the first of them first.
    """
    if not screen.is_terminal:
        screen.print(table, width=_width(screen, table), crop=False)
        return
    same: list[str] = []
    gone: list[str] = []
    while _width(screen, table) > screen.width:
        cells = {str(column.header): set(column.cells) for column in table.columns}
        alike = [name for name, values in cells.items() if len(values) == 1 and table.row_count > 1]
        found = [*alike, *(name for name in spare if name in cells)]
        if not found:
            break
        name = found[0]
        if alike:
            same.append(f"{name} {next(iter(cells[name]))}")
        else:
            gone.append(name)
        table = _without(table, name)
    screen.print(table)
    if same:
        screen.print(f"in all rows: {', '.join(same)}", markup=False)
    if gone:
        screen.print(f"no room for: {', '.join(gone)} (a wider window or a file has)", markup=False)


def _width(screen: Console, table: Table) -> int:
    wide = screen.options.update(width=_WIDEST)
    return Measurement.get(screen, wide, table).maximum


def _without(table: Table, name: str) -> Table:
    """Return a table without one of its columns."""
    kept = [column for column in table.columns if column.header != name]
    found = Table(
        title=table.title,
        title_justify="left",
        caption=table.caption,
        caption_justify=table.caption_justify,
    )
    for column in kept:
        found.add_column(column.header, justify=column.justify)
    for row, cells in zip(table.rows, zip(*(c.cells for c in kept), strict=True), strict=True):
        found.add_row(*cells, style=row.style)
    return found

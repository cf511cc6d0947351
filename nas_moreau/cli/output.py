"""What the command line prints: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def note(text: str = "") -> None:
    """Prints a message on standard error: standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def print_json(result: Any) -> None:
    """Prints plain data as JSON; NaN and infinity are refused."""
    print(json.dumps(result, indent=2, sort_keys=True, allow_nan=False))


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of texts as columns; the last text of a row may have any length."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(len(row) for row in rows) - 1)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), *row[len(widths) :]]).rstrip())


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, left: Sequence[str] = ()
) -> None:
    """Prints a table with borders, as wide as the terminal, or 200 columns where there is none.

    Args:
        columns: Headings.
        rows: A text for each column.
        title: Above the table.
        left: Columns that are aligned to the left, after the first.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 or name in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 200).print(table)

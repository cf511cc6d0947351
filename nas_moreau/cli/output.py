"""What the command line prints: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from itertools import zip_longest
from typing import Any

from nas_moreau import distributed
from nas_moreau.plugins import WITHIN
from nas_moreau.runs.heartbeat import note as note
from nas_moreau.text import NARROWEST, folded, printable

_UNBOUNDED = 1 << 16
_LONG = 30
"""Letters of a word, a path for example, that is broken rather than the whole table."""


class _Notes(logging.Handler):
    """Prints what the package logs, each message once, in rank 0 alone."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a message that was not printed yet."""
        if WITHIN in os.environ and record.name.startswith("nas_moreau.data"):
            return
        text = record.getMessage()
        if text not in self._printed and not distributed.rank():
            self._printed.add(text)
            note(text, activity=False)


@contextmanager
def printing_notes() -> Iterator[None]:
    """Within this context, what the package logs (notes on the images, the run folder) is printed."""
    logger, handler = logging.getLogger("nas_moreau"), _Notes()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks letters of a name shows escapes
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def silence(quiet: bool) -> Iterator[None]:
    """Within this context nothing is printed on standard error if `quiet`; errors are printed after it."""
    if not quiet:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stderr(nothing):
        yield


def open_closed_streams() -> None:
    """Gives a process that was started without standard streams (by a service, or `>&-`) empty ones.

    Files that are opened later would get the free numbers 0 to 2 otherwise, and what a library prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def print_json(result: Any) -> None:
    """Prints plain data as JSON; NaN and infinity are refused."""
    print(json.dumps(result, indent=2, sort_keys=True, allow_nan=False))


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of texts as columns; on a terminal the last text of a row is folded between words."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(len(row) for row in rows) - 1)]
    before = sum(widths) + 2 * len(widths)
    room = shutil.get_terminal_size().columns - before if sys.stdout.isatty() else _UNBOUNDED
    for row in rows:
        line = "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), *row[len(widths) :]]).rstrip()
        if len(row) > len(widths) and len(row[-1]) > room > NARROWEST:
            lines = textwrap.wrap(row[-1], room, break_long_words=False, break_on_hyphens=False)
            line = line[:before] + ("\n" + " " * before).join(lines)
        print(line)


def print_records(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows below their headings; a terminal that is too narrow gets a list of the columns for each row.

    Args:
        columns: Headings.
        rows: A text for each column; the last one may be folded.
    """
    widths = [max(len(printable(row[i])) for row in [columns, *rows]) for i in range(len(columns) - 1)]
    last = min(NARROWEST, max(len(printable(row[-1])) for row in [columns, *rows]))
    if not sys.stdout.isatty() or sum(widths) + 2 * len(widths) + last <= shutil.get_terminal_size().columns:
        print_rows([columns, *rows])
        return
    _print_lists(columns, rows)


def _print_lists(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        print_text(printable(row[0]))
        print_rows([(f"  {name}", value) for name, value in zip(columns[1:], row[1:])])


def print_text(text: str) -> None:
    """Prints lines; on a terminal each is folded between words, and its rest indented by two more columns."""
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNBOUNDED
    for line in text.split("\n"):
        print(folded(line, room))


def print_next(reason: str, command: str) -> None:
    """Prints what to do next; the command stands alone in a line, to be copied."""
    print(f"\n{printable(reason)}:\n  {printable(command)}")


def _longest_words(rows: Sequence[Sequence[str]]) -> list[int]:
    """Returns the letters of the longest word of each column, 0 where it is so long that it is broken anyway."""
    words = [[max(map(len, printable(cell).split()), default=0) for cell in row] for row in rows]
    columns = [max(column) for column in zip_longest(*words, fillvalue=0)]  # a row may end early
    return [length if length < _LONG else 0 for length in columns]


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, left: Sequence[str] = ()
) -> None:
    """Prints a table with borders, at most as wide as the terminal; where there is none, no text is folded.

    A terminal that cannot show it without breaking words gets a list of the columns for each row instead.

    Args:
        columns: Headings.
        rows: A text for each column.
        title: Above the table.
        left: Columns that are aligned to the left, after the first.
    """
    from rich.console import Console
    from rich.table import Table

    words = _longest_words([columns, *rows])
    if sys.stdout.isatty() and sum(width + 3 for width in words) + 1 > shutil.get_terminal_size().columns:
        print_text(title or "")
        _print_lists(columns, rows)
        return
    table = Table(title=title)
    for i, name in enumerate(columns):
        justify: Any = "left" if i == 0 or name in left else "right"
        table.add_column(name, justify=justify, overflow="fold", min_width=words[i])
    for row in rows:
        table.add_row(*map(printable, row))
    width = None if sys.stdout.isatty() else _UNBOUNDED
    Console(markup=False, highlight=False, emoji=False, width=width).print(table)

"""Names that users chose (files, classes) as text that a terminal, a message and a UTF-8 file can hold."""

from __future__ import annotations

import os
import re
import shlex
import textwrap
import unicodedata
from pathlib import Path


def name_text(name: str | os.PathLike[str]) -> str:
    r"""Returns a file name as text in NFC; bytes that are not UTF-8, as in zip files made on Windows, become \xNN."""
    raw = os.fspath(name)
    try:
        raw = raw.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        raw = raw.encode("utf-8", "backslashreplace").decode("utf-8")
    return unicodedata.normalize("NFC", raw)


def is_utf8(name: str | os.PathLike[str]) -> bool:
    """Returns whether the bytes of a file name are UTF-8."""
    try:
        os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return False
    return True


def printable(text: str | os.PathLike[str]) -> str:
    """Returns text for one line of a terminal: line ends, control characters and stray bytes are escaped."""
    text = os.fspath(text)
    if text.isprintable():
        return text
    text = name_text(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


NARROWEST = 20
"""Columns below which a text is left to the terminal to fold."""


def folded(line: str, width: int) -> str:
    """Returns a line folded between words to a width, its rest indented by two more columns than its beginning.

    A number and its per cent sign count as one word.
    """
    if not len(line) > width > NARROWEST:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    together = re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", line)
    found = textwrap.fill(together, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return found.replace("\N{NO-BREAK SPACE}%", " %")


def duration(seconds: float, digits: int = 1) -> str:
    """Returns a time in seconds (below a minute, with that many digits), minutes or hours."""
    if round(seconds, digits) < 60:
        return f"{seconds:.{digits}f} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def markdown(text: str) -> str:
    """Returns text of users as it stands in one line of Markdown: no markup, no HTML, no table's borders."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~!&])", r"\\\1", printable(text))


def path_of(text: str) -> Path:
    """Returns the path that UTF-8 text names, also where the system's locale is another one (LC_ALL=C)."""
    return Path(os.fsdecode(text.encode("utf-8", "surrogateescape"))).expanduser()


def specification(kind: str, place: str | os.PathLike[str]) -> str:
    """Returns a data specification, KIND:PLACE, as it is written on a command line, quoted where that is needed."""
    return shlex.quote(f"{kind}:{os.fspath(place)}")


def spreadsheet_text(text: str) -> str:
    """Returns text for a CSV file; a leading ' keeps spreadsheets from taking it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text

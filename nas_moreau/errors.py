"""The one exception for what a user can mend: a wrong file, flag, key, shape or value; and how to mend a slip."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class InputError(ValueError):
    """Something handed in cannot be used; the command line prints it in one line and exits with code 2.

    Args:
        cause: One sentence: what is wrong and where.
        cure: One sentence: what to do about it.
    """

    def __init__(self, cause: str, cure: str = ""):
        self.cause, self.cure = _one_line(cause), _one_line(cure)
        super().__init__(f"{self.cause} {self.cure}".strip())


def _one_line(text: str) -> str:
    """Returns the text with line ends and control characters, which may come from what was handed in, written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Returns a cure that names the nearest known word, or all of them when none is near."""
    near = difflib.get_close_matches(word, known, 1)
    return f"Did you mean '{near[0]}'?" if near else f"Known are {', '.join(known)}."

"""The one exception for what a user can mend (a wrong file, flag, key, shape or value), and words for its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


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


def meant(word: object, known: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the nearest known word, or nothing: for the middle of a sentence."""
    near = difflib.get_close_matches(word[:100], list(known), 1) if isinstance(word, str) else []
    return f" (did you mean '{near[0]}'?)" if near else ""


def quoted(value: object, limit: int = 60) -> str:
    """Returns repr(value), cut to `limit` characters, for a message; nested containers are not spelt out."""
    if isinstance(value, str):
        text = repr(value[: limit + 1])
    elif value is None or isinstance(value, bool | float):
        text = repr(value)
    elif isinstance(value, int):
        text = repr(value) if value.bit_length() < 64 else "a huge integer"
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def first_line(error: BaseException, limit: int = 200) -> str:
    """Returns the first line of what an error says, cut to `limit` characters; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]

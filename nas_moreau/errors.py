"""The exception for input that a user can correct (file, option, key, shape, value), and parts of its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from nas_moreau.text import printable


class InputError(ValueError):
    """An input cannot be used; the command line prints cause and cure in one line and exits with code 2.

    Args:
        cause: One sentence: what is wrong and where.
        cure: One sentence: what to do about it.
    """

    def __init__(self, cause: str, cure: str = ""):
        self.cause, self.cure = printable(cause), printable(cure)
        super().__init__(f"{self.cause} {self.cure}".strip())


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Returns the known name that is spelled most like `name`, or None if none is close."""
    if not isinstance(name, str):
        return None
    by_form = {_form(candidate): candidate for candidate in known}
    found = difflib.get_close_matches(_form(name[:100]), by_form, 1)
    return by_form[found[0]] if found else None


def _form(name: str) -> str:
    return name.lower().replace("-", "_")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Returns the cure for an unknown name: the nearest known one, or all of them if none is close."""
    known = list(known)
    found = nearest(name, known)
    return f"Did you mean '{found}'?" if found else f"Known are {', '.join(known)}."


def meant(name: object, known: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the nearest known name, or nothing: for the middle of a sentence."""
    found = nearest(name, known)
    return f" (did you mean '{found}'?)" if found else ""


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """Returns the error for a name that a table does not hold, for example `unknown("task", "sin", TASKS)`."""
    return InputError(f"Unknown {what} {quoted(name)}.", did_you_mean(name, known))


def quoted(value: object, limit: int = 60) -> str:
    """Returns repr(value), cut to `limit` characters, for a message; containers are named by their type."""
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
    """Returns the first line of an error's message, cut to `limit` characters; its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]

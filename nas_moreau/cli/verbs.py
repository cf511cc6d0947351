"""The table of verbs, from which the parser is made; each module registers its own with their functions."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Run = Callable[[argparse.Namespace], Any]


class Option(NamedTuple):
    """One argument of a verb: its names, the settings of `add_argument`, and its heading in the help."""

    names: tuple[str, ...]
    settings: dict[str, Any]
    group: str | None = None


class Verb(NamedTuple):
    """One row of the table.

    Attributes:
        name: As it is written on the command line.
        run: Takes the parsed options and returns plain data for `--json`, or None.
        summary: One line of help.
        examples: Commands without the program's name.
        options: Positional ones in their order.
        distributed: Whether it may run under torchrun.
    """

    name: str
    run: Run
    summary: str
    examples: Sequence[str]
    options: Sequence[Option] = ()
    distributed: bool = False


VERBS: dict[str, Verb] = {}
"""Name -> verb, in the order of the help."""


def option(*names: str, group: str | None = None, **settings: Any) -> Option:
    """Returns an argument of a verb; `settings` are those of `ArgumentParser.add_argument`."""
    return Option(names, settings, group)


def verb(
    name: str, summary: str, *, examples: Sequence[str], options: Sequence[Option] = (), distributed: bool = False
) -> Callable[[Run], Run]:
    """Registers the decorated function as a verb; the arguments are the attributes of `Verb`."""

    def register(run: Run) -> Run:
        VERBS[name] = Verb(name, run, summary, examples, options, distributed)
        return run

    return register

"""The verb list: one function for each kind of thing; only methods, rules and tasks load torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_moreau.cli.output import note, print_records, print_rows
from nas_moreau.cli.verbs import option, verb
from nas_moreau.data.sources import SOURCES
from nas_moreau.errors import InputError, unknown
from nas_moreau.presets import preset_header, preset_names
from nas_moreau.report.format import percent
from nas_moreau.runs.heartbeat import heartbeat

if TYPE_CHECKING:
    from nas_moreau.runs.history import Stage

Row = dict[str, Any]


def spaces() -> list[Row]:
    """Returns the search spaces with their numbers of genotypes and their operations."""
    from nas_moreau.architecture.spaces.space import load_space, space_names

    found = [load_space(name) for name in space_names()]
    return [{"name": s.name, "genotypes": f"{s.size():,}", "operations": ", ".join(s.operations)} for s in found]


def operations() -> list[Row]:
    """Returns the operations that a search space may name."""
    from nas_moreau.architecture.spaces.operation_table import OPERATIONS

    return [{"name": info.name, "kind": info.kind} for info in OPERATIONS.values()]


def presets() -> list[Row]:
    """Returns the presets with their purpose; `nas-moreau show NAME` prints the command that runs one."""
    return [{"name": name, "what": preset_header(name)[1]} for name in preset_names()]


def methods() -> list[Row]:
    """Returns the methods of a search, of `solve` and of the checks: evaluations of a step, additions, source."""
    from nas_moreau.search.methods import ADDITIONS, search_methods

    added = ", ".join(f"+{addition}" for addition in ADDITIONS)
    return [
        {
            "name": name,
            "evaluations": method.evaluations,
            "additions": added if method.learns_alphas and method.takes_steps else "-",
            "source": method.source,
        }
        for name, method in search_methods().items()
    ]


def rules() -> list[Row]:
    """Returns the derivation rules: whether each needs the trained supernet, and whether it keeps to a budget."""
    from nas_moreau.search.rules import RULES

    return [
        {
            "name": rule.name,
            "what": rule.what,
            "supernet": "needed" if rule.needs_supernet else "-",
            "budget": "kept" if rule.budget else "-",
        }
        for rule in RULES.values()
    ]


def tasks() -> list[Row]:
    """Returns the problems of `nas-moreau solve`."""
    from nas_moreau.problems.tasks import TASKS

    return [{"name": name, "what": task.what} for name, task in TASKS.items()]


def cells() -> list[Row]:
    """Returns the published and released cells with their predicted percentiles among random cells."""
    from nas_moreau.architecture.spaces.percentile import percentile
    from nas_moreau.architecture.spaces.zoo import cell_names, load_genotype, source

    found = []
    for name in cell_names():
        genotype = load_genotype(name)
        rank = percentile(genotype)
        values = [None] * 4 if rank is None else [rank.mean, rank.ridge, rank.trees, rank.of_size]
        ranks = ["-" if value is None else round(value) for value in values]
        columns = dict(zip(("percentile", "by ridge", "by trees", "of its size"), ranks))
        found.append({"name": name, "digest": genotype.digest(), **columns, "source": source(name)})
    return found


def sources() -> list[Row]:
    """Returns the data sources: the forms of --data."""
    return [{"name": source.form, "what": source.what} for source in SOURCES.values()]


LISTS: dict[str, Callable[[], list[Row]]] = {
    "spaces": spaces,
    "operations": operations,
    "presets": presets,
    "methods": methods,
    "rules": rules,
    "cells": cells,
    "tasks": tasks,
    "sources": sources,
}
"""Kind -> its rows; `runs`, which takes a folder, is the one further kind."""
KINDS = (*LISTS, "runs")
OTHER_KINDS = {
    "dataset": "sources",
    "data": "sources",
    "genotype": "cells",
    "model": "cells",
    "architecture": "cells",
    "config": "presets",
    "experiment": "runs",
    "optimizer": "methods",
    "algorithm": "methods",
    "problem": "tasks",
    "primitive": "operations",
    "op": "operations",
}
"""What other programs call them, without the s of the plural -> ours."""


HIDDEN = ("of", "updated")
"""Columns of runs that others show as well: in JSON alone."""
PLACE = "checkpoints"
"""Folder of runs that were given none."""


@verb(
    "list",
    f"list {', '.join(KINDS)}",
    examples=["list presets", "list cells", "list runs --output checkpoints"],
    options=[
        option("what", metavar="KIND", help=", ".join(KINDS)),
        option("--output", metavar="DIR", default=PLACE, help=f"folder of `list runs` (default {PLACE})"),
    ],
)
def list_all(args: argparse.Namespace) -> list[Row]:
    """Prints one kind of thing."""
    if args.what not in KINDS:
        other = OTHER_KINDS.get(args.what.lower().removesuffix("s"))
        raise (
            InputError(f"Unknown kind '{args.what}'.", f"Write list {other}.")
            if other
            else unknown("kind", args.what, KINDS)
        )
    with heartbeat(f"listing {args.what}"):
        rows = runs(Path(args.output)) if args.what == "runs" else LISTS[args.what]()
    if not args.json:
        shown = [[_shown(row, name) for name in row if name not in HIDDEN] for row in rows]
        if not rows:
            print(f"no runs in {args.output}")
        elif len(shown[0]) > 2:
            print_records([name for name in rows[0] if name not in HIDDEN], shown)
        else:  # a name and a text need no heading
            print_rows(shown)
        if args.what == "cells":
            from nas_moreau.architecture.spaces.percentile import limit

            note(limit())
    return rows


def _shown(row: Row, name: str) -> str:
    """Returns a value as it is printed: an accuracy with what it is of."""
    return f"{row[name]} ({row['of']})" if name == "accuracy" and row["of"] != "-" else str(row[name])


def runs(output: Path) -> list[Row]:
    """Returns the runs in a folder with their state, accuracy and age."""
    from nas_moreau.runs.history import Stage

    if not output.is_dir() and str(output) != PLACE:
        reason = "is not a folder" if output.exists() else "does not exist"
        raise InputError(f"{output} {reason}.", "Give --output the folder that holds the runs.")
    found = []
    for status in sorted(output.glob("*/status.json")):
        stage = Stage(status.parent)
        row: Row = {"run": str(stage.path)}
        try:
            row |= {"stage": stage.status.get("stage", "?"), "state": stage.state, **_of_configuration(stage)}
            accuracy, what = stage.measured or (None, "-")
            row |= {"accuracy": percent(accuracy), "of": what, "verdict": stage.verdict or "-"}
            updated = stage.status.get("updated", "?")
        except (InputError, OSError, ValueError, TypeError, AttributeError, KeyError):  # one run does not end the list
            row |= {"stage": "?", "state": "unreadable", "method": "-", "data": "-"}
            row |= {"accuracy": percent(None), "of": "-", "verdict": "-"}
            updated = "?"
        found.append(row | {"age": age(updated), "updated": updated})
    return found


def _of_configuration(stage: Stage) -> Row:
    """Returns method and data of a run: of its search, or those of a task."""
    config = stage.config
    search, data = config.get("search") or {}, config.get("data") or {}
    method = search.get("method") if stage.status.get("stage") not in ("retrain", "compare") else None
    return {"method": str(method or config.get("method") or "-"), "data": str(data.get("name") or "-")}


def age(moment: str, now: datetime | None = None) -> str:
    """Returns how long ago `moment` (ISO 8601, with its zone) was, "3 h ago" for example; "?" for anything else."""
    try:
        then = datetime.fromisoformat(moment.replace("Z", "+00:00"))
        seconds = ((now or datetime.now(timezone.utc)) - then).total_seconds()
    except (AttributeError, TypeError, ValueError):
        return "?"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit.rstrip('s') if count == 1 else unit} ago"
    return "just now"

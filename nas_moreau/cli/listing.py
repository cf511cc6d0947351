"""What `nas-moreau list` says; none of it loads torch but for the tables of methods and tasks."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nas_moreau.architecture.spaces.known_operations import KNOWN_OPERATIONS
from nas_moreau.architecture.spaces.space import load_space, space_names
from nas_moreau.architecture.spaces.zoo import cell_names, load_genotype, source
from nas_moreau.data.sources import SOURCES
from nas_moreau.presets.by_name import preset_names, preset_text


def rows(what: str, output: Path) -> list[dict[str, Any]]:
    """Returns the table of `nas-moreau list WHAT`."""
    if what == "spaces":
        spaces = [load_space(name) for name in space_names()]
        return [{"name": s.name, "genotypes": f"{s.size():,}", "operations": ", ".join(s.operations)} for s in spaces]
    if what == "operations":
        return [{"name": name} for name in KNOWN_OPERATIONS]
    if what == "presets":
        return [{"name": name, "command": _first_comment(preset_text(name))} for name in preset_names()]
    if what == "methods":
        from nas_moreau.search.methods import ADDITIONS, METHODS

        added = ", ".join(f"+{addition}" for addition in ADDITIONS)
        named = {name: added if entry.choose is None else "-" for name, entry in METHODS.items()}
        return [{"name": name, "additions": additions} for name, additions in (named | {"random": "-"}).items()]
    if what == "tasks":
        from nas_moreau.problems import network_tasks as solve_networks
        from nas_moreau.problems import small_tasks as solve

        small = [{"name": name, "what": task.what} for name, task in solve.TASKS.items()]
        return [*small, *({"name": name, "what": what} for name, what in solve_networks.TASKS.items())]
    if what == "rules":
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
    if what == "cells":
        return [{"name": name, "digest": load_genotype(name).digest(), "source": source(name)} for name in cell_names()]
    if what == "sources":
        return [{"name": source.form, "what": source.what} for source in SOURCES.values()]
    return _runs(output)


def _first_comment(text: str) -> str:
    return text.splitlines()[0].lstrip("# ")


def _runs(output: Path) -> list[dict[str, Any]]:
    found = []
    for status in sorted(output.glob("*/status.json")):
        try:
            state = json.loads(status.read_text(encoding="utf-8"))
            result_file = status.parent / "result.json"
            result = json.loads(result_file.read_text(encoding="utf-8")) if result_file.exists() else {}
        except (OSError, ValueError):
            state, result = {"state": "unreadable"}, {}
        whole = result.get("retrain", result)
        known = (whole.get(name) for name in ("test_accuracy", "held_out_accuracy", "accuracy"))
        accuracy = next((value for value in known if value is not None), None)
        found.append({
            "run": str(status.parent), "stage": state.get("stage", "?"), "state": state.get("state", "?"),
            "accuracy": "-" if accuracy is None else f"{100 * accuracy:.2f} %",
            "verdict": result.get("search", result).get("health", {}).get("verdict", "-"),
            "age": age(state.get("updated", "")), "updated": state.get("updated", "?"),
        })  # fmt: skip
    return found


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

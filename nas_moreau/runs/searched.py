"""What a search's folder says about its cell: how it looks, how long it stood, why each edge is what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nas_moreau.architecture.spaces.alpha_table import AlphaTable
from nas_moreau.architecture.spaces.derivation import explain
from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.architecture.spaces.space import load_space
from nas_moreau.errors import InputError
from nas_moreau.runs.folder import read_config
from nas_moreau.runs.plain_files import read_json
from nas_moreau.runs.stability import read_history


def search_lines(name: str) -> list[str]:
    """Returns sentences on the search in folder `name` (or its part `search`); [] where there is no finished one."""
    folder = _search_folder(name)
    result = (read_json(folder / "result.json") if folder else None) or {}
    lines = [result["verdict"]] if "verdict" in result else []
    if "stability" in result:
        found = result["stability"]
        lines.append(
            f"unchanged for the last {found['epochs_unchanged']} of {found['epochs']} epochs; "
            f"{100 * found['edges_unchanged']:.0f} % of its edges stood in all of the last {found['window']}"
        )
    if "before_rule" in result:
        before, after = result["before_rule"]["digest"], result["digest"]
        lines.append(f"before (the space's rule): {before}, after ({result['derived_by']['rule']}): {after}")
    if "guard" in result:
        lines.append("guard: " + ", ".join(f"{key} {value}" for key, value in result["guard"].items()))
    return lines


def explain_search(name: str) -> list[dict[str, Any]]:
    """Returns `explain`'s rows for the search in folder `name`, from its result or else its last epoch.

    Raises:
        InputError: It is no search, or one without alphas.
    """
    folder = _search_folder(name)
    if folder is None:
        raise InputError(f"{name} is no search, so nothing was chosen there.", "Give a search's folder with --why.")
    space = load_space(read_config(folder)["space"])
    result = read_json(folder / "result.json") or {}
    if result.get("alphas"):
        return explain(space, AlphaTable.from_dict(space, result))
    history = read_history(folder, space)
    if not history:
        raise InputError(f"{folder} has no alphas.", "Give a search by gradients that has finished an epoch.")
    return explain(space, history[-1])


def alternatives(genotype: Genotype, rows: list[dict[str, Any]], count: int = 5) -> list[dict[str, Any]]:
    """Returns the cells one operation away whose change costs the least margin, the closest first.

    Each row: `cell`, `edge` ("0-2"), `from`, `to`, `margin`, and the changed cell's `digest` and `genotype`.

    Args:
        genotype: The derived cell.
        rows: Of `explain_search`; edges that the genotype does not hold with their strongest operation are left out.
        count: At most so many.
    """
    found: list[dict[str, Any]] = []
    for row in sorted((row for row in rows if row["kept"] and row["runner_up"]), key=lambda row: row["margin"]):
        data = genotype.to_dict()
        source, target = map(int, row["edge"].split("-"))
        edges, old = data["cells"][row["cell"]]["edges"], [row["operation"], source, target]
        if old not in edges or len(found) == count:
            continue
        edges[edges.index(old)] = [row["runner_up"], source, target]
        changed = Genotype.from_json(json.dumps(data))
        found.append({
            "cell": row["cell"], "edge": row["edge"], "from": row["operation"], "to": row["runner_up"],
            "margin": row["margin"], "digest": changed.digest(), "genotype": changed.to_dict(),
        })  # fmt: skip
    return found


def alternative_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a heading and one line for each of `alternatives`."""
    return (["closest other cells, one operation changed:"] if rows else []) + [
        f"  {row['digest']}  {row['cell']} {row['edge']}  {row['from']} -> {row['to']}, margin {row['margin']:.3f}"
        for row in rows
    ]


def choice_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Returns one line an edge: what is strongest, the runner-up, the margin, and whether the edge was kept."""
    lines = []
    for row in rows:
        second = f", before {row['runner_up']} by {row['margin']:.3f}" if row["runner_up"] else ""
        kept = "" if row["kept"] else "  (edge not kept)"
        lines.append(f"{row['cell']} {row['edge']}  {row['operation']} {row['weight']:.3f}{second}{kept}")
    return lines


def _search_folder(name: str) -> Path | None:
    for place in (Path(name), Path(name) / "search"):
        if (place / "alphas.csv").exists() and (place / "config.yaml").exists():
            return place
    return None

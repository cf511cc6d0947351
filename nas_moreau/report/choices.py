"""Why each edge carries its operation, and how sure that is: for the report and, as lines of text, for `show`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from nas_moreau.architecture.spaces.alpha_table import EdgeWeights
from nas_moreau.architecture.spaces.derivation import explain
from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.architecture.spaces.percentile import limit, percentile, why_no_percentile
from nas_moreau.errors import InputError
from nas_moreau.runs.history import Stage, find_search


@dataclass(frozen=True)
class Choice:
    """What became of an edge of the search space.

    Attributes:
        cell: Name of the cell.
        row: The edge and the softmax weights of its operations.
        ranked: The operations that could be chosen, the strongest first.
        chosen: The operations that the derived cell has on this edge; none where the edge was dropped.
    """

    cell: str
    row: EdgeWeights
    ranked: tuple[str, ...]
    chosen: tuple[str, ...]

    @property
    def strongest(self) -> str:
        """The operation with the largest weight."""
        return self.ranked[0]

    @property
    def runner_up(self) -> str | None:
        """The operation with the next largest weight; None if there is no other."""
        return self.ranked[1] if len(self.ranked) > 1 else None

    @property
    def weight(self) -> float:
        """Softmax weight of the strongest operation."""
        return self.row.weights[self.strongest]

    @property
    def margin(self) -> float:
        """Softmax weight of the strongest operation minus that of the runner-up (0 without one)."""
        return self.weight - (self.row.weights[self.runner_up] if self.runner_up else 0.0)


def choices(search: Stage) -> list[Choice]:
    """Returns for every edge of the space what was strongest at the end, the runner-up, and what the cell has.

    Operations that the space excludes take part in the softmax but cannot be chosen; they are left out.
    """
    taken: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for name, cell in search.genotype.cells.items() if search.genotype is not None else ():
        for operation, a, b in cell.edges:
            taken.setdefault((name, (a, b)), []).append(operation)
    excluded = _excluded(search)
    found = []
    for cell_name, rows in search.final_alphas.cells.items() if search.final_alphas is not None else ():
        for row in rows:
            chosen = tuple(taken.get((cell_name, row.edge), ()))
            found.append(Choice(cell_name, row, tuple(row.ranked(excluded)), chosen))
    return found


def _excluded(search: Stage) -> tuple[str, ...]:
    """Returns the operations that the space excludes; without its file `none`, if no cell has it."""
    if search.space is not None:
        return search.space.derivation.exclude
    cells = search.genotype.cells.values() if search.genotype is not None else ()
    return () if any(operation == "none" for cell in cells for operation, _, _ in cell.edges) else ("none",)


def search_lines(name: str) -> list[str]:
    """Returns what the finished search in folder `name` found, as lines of text; [] if there is none."""
    search = find_search(name)
    result = search.result if search is not None else {}
    lines = [result["verdict"]] if "verdict" in result else []
    if "stability" in result:
        found = result["stability"]
        lines.append(
            f"unchanged for {found['epochs_unchanged']} of {found['epochs']} epochs at the end; "
            f"{100 * found['edges_unchanged']:.0f} % of its edges stood in all of the last {found['window']}"
        )
    if "before_rule" in result:
        before, after = result["before_rule"]["digest"], result["digest"]
        lines.append(f"before (the space's rule): {before}, after ({result['derived_by']['rule']}): {after}")
    if "guard" in result:
        lines.append("guard: " + ", ".join(f"{key} {value}" for key, value in result["guard"].items()))
    return lines


def percentile_lines(genotype: Genotype) -> list[str]:
    """Returns the predicted percentile of a genotype and what it is worth, or why it has none, as lines of text."""
    found = percentile(genotype)
    if found is None:
        return [f"percentile: none, {why_no_percentile(genotype)}"]
    return [f"percentile among random cells: {found}", f"  {limit()}"]


def explain_search(name: str) -> list[dict[str, Any]]:
    """Returns the rows of `architecture.explain` for the search in folder `name`.

    Raises:
        InputError: It is not a search, or one without alphas.
    """
    search = find_search(name)
    if search is None:
        raise InputError(f"{name} is not the folder of a search.", "Give a search's folder with --why.")
    if search.space is None or search.final_alphas is None:
        raise InputError(
            f"{search.path} has no alphas of a known space.", "Give a search by gradients that has finished an epoch."
        )
    try:
        search.final_alphas.check(search.space)
    except InputError as error:
        raise InputError(f"{search.path / 'alphas.csv'}: {error.cause}", "Restore the file.") from None
    return explain(search.space, search.final_alphas)


def alternatives(genotype: Genotype, rows: list[dict[str, Any]], count: int = 5) -> list[dict[str, Any]]:
    """Returns the cells one operation away whose change costs the least margin, the closest first.

    Each row: `cell`, `edge` ("0-2"), `from`, `to`, `margin`, and the changed cell's `digest`, `genotype` and predicted
    `percentile` (the mean of both models; None for cells that have none).

    Args:
        genotype: The derived cell.
        rows: From `explain_search`; edges that the genotype does not hold with their strongest operation are left out.
        count: Maximum number of cells.
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
        rank = percentile(changed)
        found.append(
            {
                "cell": row["cell"],
                "edge": row["edge"],
                "from": row["operation"],
                "to": row["runner_up"],
                "margin": row["margin"],
                "digest": changed.digest(),
                "genotype": changed.to_dict(),
                "percentile": None if rank is None else rank.mean,
            }
        )
    return found


def alternative_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a heading and one line for each of `alternatives`."""
    return (["closest other cells, one operation changed:"] if rows else []) + [
        f"  {row['digest']}  {row['cell']} {row['edge']}  {row['from']} -> {row['to']}, margin {row['margin']:.3f}"
        + ("" if row["percentile"] is None else f", percentile {row['percentile']:.0f}")
        for row in rows
    ]


def choice_lines(rows: list[dict[str, Any]], genotype: Genotype) -> list[str]:
    """Returns one line an edge: what is strongest, the runner-up, the margin, and what the cell has there.

    Args:
        rows: From `explain_search`.
        genotype: The cell of the search, which another rule than the space's may have chosen.
    """
    lines: list[str] = []
    edges: dict[tuple[str, str], str] = {}
    for name, cell in genotype.cells.items():
        edges |= {(name, f"{source}-{target}"): operation for operation, source, target in cell.edges}
    for row in rows:
        held = edges.get((row["cell"], row["edge"]))
        second = f", before {row['runner_up']} by {row['margin']:.3f}" if row["runner_up"] else ""
        kept = "" if held == row["operation"] else "  (edge not kept)" if held is None else f"  (in the cell: {held})"
        lines.append(f"{row['cell']} {row['edge']}  {row['operation']} {row['weight']:.3f}{second}{kept}")
    return lines

"""What a search would have returned had it been stopped earlier: accuracy against seconds, from its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from nas_moreau.architecture import derive, load_space
from nas_moreau.compare.nas_bench_table import name_of
from nas_moreau.errors import InputError
from nas_moreau.report.read_run import Stage, read_run
from nas_moreau.runs.stability import read_history

Curve = list[tuple[float, float]]  # (seconds, accuracy 0..1) after every epoch


def cost_curve(run: str | PathLike[str], accuracies: Mapping[str, float]) -> Curve:
    """Returns (seconds, accuracy) after every epoch of a search; [] where its folder does not say.

    Args:
        run: Folder of a search.
        accuracies: NAS-Bench-201 string -> accuracy of the cell derived at that time. Where there are none, the curve
            is the best held-out accuracy of the supernet so far.
    """
    stage = read_run(Path(run)).search if Path(run).is_dir() else None
    if stage is None:
        return []
    seconds = stage.metrics.get("wall_seconds", [])
    if not accuracies:
        points, best = [], -math.inf
        for time, accuracy in zip(seconds, stage.metrics.get("held_out_accuracy", [])):
            if time is not None and accuracy is not None:
                best = max(best, accuracy)
                points.append((time, best))
        return points
    cells = _cells_by_epoch(stage)
    if len(cells) != len(seconds):
        return []
    return [(time, accuracies[cell]) for time, cell in zip(seconds, cells) if time is not None and cell in accuracies]


def _cells_by_epoch(stage: Stage) -> list[str]:
    """Returns the NAS-Bench-201 string derived after every epoch; [] where alphas.csv does not give the result."""
    try:
        space = load_space(stage.config["space"])
        found = [derive(space, table) for table in read_history(stage.path, space)]
    except (InputError, KeyError):
        return []
    final = stage.result.get("before_rule", stage.result).get("digest")
    # a method may derive by more than the weights in the file
    return [name_of(cell) or "" for cell in found] if found and found[-1].digest() == final else []

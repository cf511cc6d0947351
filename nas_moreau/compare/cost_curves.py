"""Accuracy against seconds of a search: of the cell that it would have returned after every epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike

from nas_moreau.architecture import derive
from nas_moreau.compare.nas_bench_table import arch_string
from nas_moreau.runs.history import Stage, find_search

Curve = list[tuple[float, float]]  # (seconds, accuracy 0..1) after every epoch


def cost_curve(run: str | PathLike[str], accuracies: Mapping[str, float]) -> Curve:
    """Returns (seconds, accuracy) after every epoch of a search; [] if its folder does not have them.

    Args:
        run: Folder of a search.
        accuracies: NAS-Bench-201 string -> accuracy of the cell derived at that time. If empty, the curve is the best
            held-out accuracy of the supernet so far.
    """
    stage = find_search(run)
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
    if stage.space is None:
        return []
    found = [derive(stage.space, table) for table in stage.alphas.values()]
    final = stage.result.get("before_rule", stage.result).get("digest")
    # a method may derive by more than the weights in the file
    return [arch_string(cell) or "" for cell in found] if found and found[-1].digest() == final else []
